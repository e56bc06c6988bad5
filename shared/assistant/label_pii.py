"""Makes the texts about personal data: `python -m shared.assistant.label_pii`.

Half of the texts hold personal data, marked by its place; half hold none, most of them something
that looks like it. README.md states the rules. The two splits use different sentences.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from shared.assistant.customers import FIRST, LAST, make_email, make_phone
from shared.assistant.identifiers import ENTITY, make_card, make_iban, make_identifier
from shared.assistant.material import HERE, load_documents
from shared.assistant.records import DOMAINS, SPLITS, Domain, LabelledText, Span, Split

SEED = 20261126
PER_SPLIT = 160
"""Texts in each split, half of them with personal data: 320 a domain."""

CARD, IBAN, EMAIL, PHONE = "CREDIT_CARD", "IBAN_CODE", "EMAIL_ADDRESS", "PHONE_NUMBER"

_SENTENCES: Mapping[str, tuple[str, ...]] = {
    "card": (
        "The card on file is {}.",
        "I paid with {} last Tuesday.",
        "Please charge {} instead, it expires next spring.",
        "{} was declined twice.",
        "Card: {}, holder as above.",
        "Your card number {} has been noted.",
        "The customer read out {} on the phone.",
        "We refunded the amount to {}.",
        "My new card is {} and the old one is cut up.",
        "Payment method {} confirmed.",
    ),
    "iban": (
        "Please pay it to {}.",
        "My account is {} and nothing has arrived.",
        "IBAN {} belongs to the applicant.",
        "The money came from {} on Monday.",
        "Refund to {} requested.",
        "We have {} as your account for payments.",
        "The direct debit is taken from {}.",
        "Send the credit to {} within a week.",
        "Account holder's IBAN: {}.",
        "{} is the account that the bill was paid from.",
    ),
    "email": (
        "Write to {} if anything is missing.",
        "The address we have is {}.",
        "{} asked for a callback.",
        "A copy went to {} yesterday.",
        "You can reach me at {} in the evening.",
        "E-mail: {}.",
        "The form was sent by {}.",
        "I never got the message, my address is {}.",
        "Contact {} about the complaint.",
        "Log-in name {} was locked.",
    ),
    "phone": (
        "Call me back on {}.",
        "My number is {}, after six.",
        "The customer rang from {}.",
        "Mobile {}, no landline.",
        "We tried {} three times.",
        "Text the code to {}.",
        "She can be reached on {}.",
        "Phone: {}.",
        "Somebody answered {} and hung up.",
        "Please remove {} from my profile.",
    ),
    "identifier": (
        "My number with you is {}.",
        "{} has been our customer for years.",
        "Please look at {} again.",
        "The record {} was opened at noon.",
        "It concerns {}, the second entry.",
        "Reference of the person: {}.",
        "The letter to {} came back.",
        "I am {} and would like an answer.",
        "Under {} you will find the note.",
        "{} asked for a copy.",
    ),
    "order_number": (
        "Order {} was shipped on Friday.",
        "Your parcel has the number {}.",
        "Ticket {} is closed.",
        "Batch {} was recalled.",
        "The barcode reads {}.",
        "The tracking number {} is not known yet.",
    ),
    "broken_iban": (
        "The code {} in the sample form is not an account.",
        "An example such as {} fails the check.",
        "Template field: {}.",
        "{} was mistyped and refused.",
    ),
    "broken_identifier": (
        "The form shows {} as a made-up example.",
        "{} is not a number that we issue.",
        "The number {} was mistyped and belongs to nobody.",
        "Shelf mark {} in the archive.",
    ),
    "version": (
        "The app needs version {}.",
        "Release {} mends the printing fault.",
        "Firmware {} is installed by itself.",
        "Build {} is no longer supported.",
    ),
    "date": (
        "The appointment moved from {} to the week after.",
        "Valid from {} on.",
        "The letter of {} explains it.",
        "We closed the case on {}.",
    ),
    "document_id": (
        "See document {} for the rules.",
        "This is stated in {}.",
        "{} replaced an older text.",
        "The answer rests on {}.",
    ),
    "desk_contact": (
        "The desk answers on {}.",
        "You can reach us at {}.",
        "Questions go to {}.",
        "Our own line is {}.",
    ),
}
_POSITIVE = ("card", "iban", "email", "phone", "identifier")
_LOOKALIKE = (
    "order_number",
    "broken_iban",
    "broken_identifier",
    "version",
    "date",
    "document_id",
    "desk_contact",
)
_NOTHING = "nothing"


def make_pii(domain: Domain, seed: int = SEED) -> list[LabelledText]:
    """The labelled texts of a domain; the same seed gives the same ones."""
    made: list[LabelledText] = []
    for split in SPLITS:
        rng = random.Random(f"pii {domain} {split} {seed}")
        writer = _Writer(domain, split, rng)
        rows = [writer.text(rule) for rule in _plan()]
        rng.shuffle(rows)
        for text, spans, rule in rows:
            name = f"{domain[:3].upper()}-P{len(made) + 1:03d}"
            made.append(LabelledText(name, text, spans, rule, split))
    return made


def main() -> None:
    """Write the files anew."""
    for domain in DOMAINS:
        lines = [json.dumps(asdict(t), ensure_ascii=False) for t in make_pii(domain)]
        path = HERE / "labelled" / f"pii_{domain}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _plan() -> Iterator[str]:
    half = PER_SPLIT // 2
    kinds = (*_POSITIVE, "two")
    yield from (kinds[n % len(kinds)] for n in range(half))
    others = (*(f"lookalike:{k}" for k in _LOOKALIKE), _NOTHING)
    yield from (others[n % len(others)] for n in range(half))


class _Writer:
    def __init__(self, domain: Domain, split: Split, rng: random.Random) -> None:
        self._domain, self._rng = domain, rng
        half = SPLITS.index(split)
        self._sentences = {k: v[half::2] for k, v in _SENTENCES.items()}
        documents = load_documents(domain)[half::2]
        self._ids = [d.id for d in documents]
        self._neighbours = [s for d in documents for s in d.sentences if len(s) < 120]
        self._used: set[str] = set()

    def text(self, rule: str) -> tuple[str, tuple[Span, ...], str]:
        """A text that was not made before, its spans, and its rule."""
        while True:
            text, spans = self._once(rule)
            if text not in self._used:
                self._used.add(text)
                return text, spans, rule

    def _once(self, rule: str) -> tuple[str, tuple[Span, ...]]:
        if rule == _NOTHING:
            return " ".join(self._rng.sample(self._neighbours, 2)), ()
        kinds = [rule.removeprefix("lookalike:")]
        if rule == "two":
            kinds = self._rng.sample(_POSITIVE, 2)
        parts = [(self._rng.choice(self._sentences[k]), k) for k in kinds]
        if self._rng.random() < 0.5:
            parts.insert(self._rng.randint(0, len(parts)), (self._rng.choice(self._neighbours), ""))
        text, spans = "", []
        for sentence, kind in parts:
            text += " " if text else ""
            if not kind:
                text += sentence
                continue
            before, after = sentence.split("{}")
            value = self._value(kind)
            start = len(text) + len(before)
            if kind in _POSITIVE:
                spans.append(Span(start, start + len(value), self._entity(kind)))
            text += before + value + after
        return text, tuple(spans)

    def _entity(self, kind: str) -> str:
        entities = {"card": CARD, "iban": IBAN, "email": EMAIL, "phone": PHONE}
        return entities.get(kind, ENTITY[self._domain])

    def _value(self, kind: str) -> str:
        return _VALUES[kind](self)

    def _card(self, valid: bool = True) -> str:
        return self._grouped(make_card(self._rng, valid=valid), (" ", "-", ""))

    def _iban(self, valid: bool = True) -> str:
        return self._grouped(make_iban(self._rng, valid=valid), (" ", ""))

    def _email(self) -> str:
        address = make_email(f"{self._rng.choice(FIRST)} {self._rng.choice(LAST)}", self._rng)
        return address.title() if self._rng.random() < 0.1 else address

    def _phone(self) -> str:
        phone = make_phone(self._rng)
        national = phone[1:]
        forms = (
            phone,
            phone.replace(" ", ""),
            f"+44 {national}",
            f"+44{national}".replace(" ", ""),
        )
        return self._rng.choice(forms)

    def _identifier(self, valid: bool = True) -> str:
        written = make_identifier(self._domain, self._rng, valid=valid)
        return written.replace("-", self._rng.choice(("-", "-", "", " ")))

    def _order_number(self) -> str:
        return self._card(valid=False)

    def _version(self) -> str:
        r = self._rng
        return f"{r.randint(1, 40)}.{r.randint(0, 30)}.{r.randint(100, 9999)}.{r.randint(0, 999)}"

    def _date(self) -> str:
        r = self._rng
        day, month, year = r.randint(1, 28), r.randint(1, 12), r.randint(2019, 2026)
        return r.choice(
            (
                f"{year}-{month:02d}-{day:02d}",
                f"{day:02d}.{month:02d}.{year}",
                f"{year}{month:02d}{day:02d}",
            )
        )

    def _document_id(self) -> str:
        return self._rng.choice(self._ids)

    def _desk_contact(self) -> str:
        return self._rng.choice(DESK_CONTACTS[self._domain])

    def _grouped(self, compact: str, separators: tuple[str, ...]) -> str:
        separator = self._rng.choice(separators)
        return separator.join(compact[n : n + 4] for n in range(0, len(compact), 4))


DESK_CONTACTS: Mapping[str, tuple[str, ...]] = {
    "finance": (
        *("020 7946 0110", "020 7946 0112", "020 7946 0116", "020 7946 0118"),
        *("help@quillmere.example", "scams@quillmere.example"),
    ),
    "healthcare": (
        *("020 7946 0220", "020 7946 0222", "020 7946 0224", "020 7946 0226"),
        "complaints@brindlemoor.example",
    ),
    "climate": (
        *("020 7946 0330", "020 7946 0332", "020 7946 0334"),
        "desk@tarnbeck.example",
    ),
}
_VALUES: Mapping[str, Callable[[_Writer], str]] = {
    "card": _Writer._card,
    "iban": _Writer._iban,
    "email": _Writer._email,
    "phone": _Writer._phone,
    "identifier": _Writer._identifier,
    "order_number": _Writer._order_number,
    "broken_iban": lambda w: w._iban(valid=False),
    "broken_identifier": lambda w: w._identifier(valid=False),
    "version": _Writer._version,
    "date": _Writer._date,
    "document_id": _Writer._document_id,
    "desk_contact": _Writer._desk_contact,
}


if __name__ == "__main__":
    main()
