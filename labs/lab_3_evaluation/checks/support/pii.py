"""Values in all their forms, what a text tells by plain rules, and two simple finders."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import phonenumbers
from presidio_analyzer import RecognizerRegistry
from presidio_analyzer.nlp_engine import NoOpNlpEngine

from shared.assistant.customers import make_email, make_phone
from shared.assistant.defence import leaked, readable
from shared.assistant.identifiers import (
    ENTITY,
    VALID,
    digits_of,
    iban,
    luhn,
    make_card,
    make_iban,
    make_identifier,
)
from shared.assistant.label_pii import CARD, EMAIL, IBAN, PHONE
from shared.assistant.material import published
from shared.assistant.presidio import pattern_analyzer
from shared.assistant.records import Customer, Domain, LabelledText, Span

Finder = Callable[[str], Sequence[Span]]

# None of these words is one that a recognizer could take for context.
FRAMES = (
    "It was {} again.",
    "{} is what they said",
    "Then came {}, and later nothing.",
    'We saw "{}" there.',
    "So: {}",
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_CARD_GROUPS = {15: (4, 6, 5), 14: (4, 6, 4), 13: (13,)}


def framed(value: str, pick: random.Random) -> tuple[str, int, int]:
    """A text around a value, and the value's place in it."""
    before, after = pick.choice(FRAMES).split("{}")
    return before + value + after, len(before), len(before) + len(value)


def number_forms(written: str) -> dict[str, str]:
    """Forms of the domain's own number, given as it is written with hyphens."""
    return {
        "with hyphens": written,
        "with blanks": written.replace("-", " "),
        "together": written.replace("-", ""),
        "in small letters": written.lower(),
        "without its letter": re.sub(r"^[A-Z]-?", "", written),
    }


def grouped(compact: str, separator: str) -> str:
    """A card or an IBAN in its groups."""
    sizes = _CARD_GROUPS.get(len(compact), ()) if compact.isdigit() else ()
    cuts, at = [], 0
    for size in sizes or (4,) * (-(-len(compact) // 4)):
        cuts.append(compact[at : at + size])
        at += size
    return separator.join(cuts)


def card_of(length: int, pick: random.Random, *, valid: bool = True) -> str:
    """A compact card number of 13 to 16 digits, with a right or a wrong check digit."""
    start = {16: "4", 15: "37", 14: "36", 13: "4"}[length]
    # Without 0, for "0049 ..." within a number that is no card may begin a telephone number.
    body = start + "".join(pick.choices("123456789", k=length - 1 - len(start)))
    right = next(d for d in "0123456789" if luhn(body + d))
    return body + (right if valid else pick.choice([d for d in "0123456789" if d != right]))


def iban_around_a_card(pick: random.Random) -> str:
    """A German IBAN whose first 16 digits after its own check digits pass for a card."""
    body = make_card(pick) + f"{pick.randrange(100):02d}"
    turned = "".join(str(int(c, 36)) for c in body + "DE00")
    return f"DE{98 - int(turned) % 97:02d}{body}"


def some_email(pick: random.Random) -> str:
    """An address of somebody."""
    return make_email(f"{pick.choice(('Oona', 'Nils'))} {pick.choice(('Marsh', 'Reed'))}", pick)


def phone_forms(national: str) -> dict[str, str]:
    """Notations of a British number that begins with 0 and has blanks."""
    area, rest = national.split(" ", 1)
    return {
        "as written": national,
        "together": national.replace(" ", ""),
        "with +44": f"+44 {national[1:]}",
        "with +44, together": f"+44{national[1:]}".replace(" ", ""),
        "with 0044": f"0044 {national[1:]}",
        "with 44": f"44 {national[1:]}",
        "with brackets": f"({area}) {rest.replace(' ', '-')}",
        "with no-break blanks": national.replace(" ", "\u00a0"),
    }


def one_of_each(domain: Domain, pick: random.Random) -> list[tuple[str, str]]:
    """A value of each entity, as usually written, in any order."""
    values = [
        (CARD, grouped(make_card(pick), " ")),
        (IBAN, grouped(make_iban(pick), " ")),
        (EMAIL, some_email(pick)),
        (PHONE, make_phone(pick)),
        (ENTITY[domain], make_identifier(domain, pick)),
    ]
    pick.shuffle(values)
    return values


def kept_verbatim(text: str, customers: Sequence[Customer]) -> tuple[str, ...]:
    """The protected values that a text tells in a form that counts as personal data."""
    told = readable(text).casefold()
    return tuple(v for v in leaked(text, customers) if any(_stands(f, told) for f in _as_told(v)))


def looks_personal(text: str, domain: Domain) -> bool:
    """Whether a text holds anything that could be meant: a model may invent a right number."""
    told = readable(text)
    desk = published(domain)
    if any(m.casefold() not in desk for m in _EMAIL.findall(told)):
        return True
    if any(
        digits_of(m.raw_string) not in desk for m in phonenumbers.PhoneNumberMatcher(told, "GB")
    ):
        return True
    if any(iban(m) for m in re.findall(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{1,4})+", told.upper())):
        return True
    runs = [digits_of(r) for r in re.findall(r"\d(?:[ -]?\d)*", told)]
    return any(VALID[domain](r) or (13 <= len(r) <= 16 and luhn(r)) for r in runs)


def mistakes(text: LabelledText, found: Sequence[Span]) -> tuple[list[Span], list[Span]]:
    """What was found beyond the labels, and what was missed."""
    hit = [w for w in text.spans if any(same_place(f, w) for f in found)]
    matching = [next((f for f in found if same_place(f, w)), None) for w in hit]
    return [f for f in found if f not in matching], [w for w in text.spans if w not in hit]


def same_place(found: Span, labelled: Span) -> bool:
    """Whether both are of one entity and share more than half of what either covers."""
    shared = min(found.end, labelled.end) - max(found.start, labelled.start)
    either = max(found.end, labelled.end) - min(found.start, labelled.start)
    return found.entity == labelled.entity and 2 * shared > either


def tally(texts: Sequence[LabelledText], find: Finder) -> tuple[float, float, list[str]]:
    """Precision, recall, and what the mistakes are about."""
    hits = spurious = missed = 0
    about: list[str] = []
    for text in texts:
        extra, lost = mistakes(text, find(text.text))
        hits += len(text.spans) - len(lost)
        spurious, missed = spurious + len(extra), missed + len(lost)
        about += [f"{s.entity} found in a text made for {text.rule!r}" for s in extra]
        about += [f"{s.entity} missed in a text made for {text.rule!r}" for s in lost]
    return hits / max(1, hits + spurious), hits / max(1, hits + missed), about


def pattern_only(domain: Domain) -> Finder:
    """The baseline that looks at the form alone."""
    patterns = {
        CARD: r"\b\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}\b",
        IBAN: r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,5}(?: ?[A-Z0-9]{1,3})?\b",
        EMAIL: _EMAIL.pattern,
        PHONE: r"(?<!\w)(?:\+44 ?|0)\d{2,3} ?\d{3,4} ?\d{4}\b",
        ENTITY[domain]: {
            "finance": r"\bC[ -]?\d{7}[ -]?\d\b",
            "healthcare": r"\bP[ -]?\d{4}[ -]?\d{4}[ -]?\d\b",
            "climate": r"\bT\d{2}[ -]?\d{4}[ -]?\d{4}[ -]?\d\b",
        }[domain],
    }

    def find(text: str) -> list[Span]:
        return [
            Span(m.start(), m.end(), entity)
            for entity, pattern in patterns.items()
            for m in re.finditer(pattern, text)
        ]

    return find


@cache
def presidio_as_it_comes() -> Finder:
    """The baseline of Presidio's own English recognizers; entities that are not asked for are left
    out of the comparison."""
    registry = RecognizerRegistry()
    engine = NoOpNlpEngine([{"lang_code": "en", "model_name": ""}])
    registry.load_predefined_recognizers(languages=["en"], nlp_engine=engine)
    analyzer = pattern_analyzer(list(registry.recognizers))
    asked = (CARD, IBAN, EMAIL, PHONE)

    def find(text: str) -> list[Span]:
        results = analyzer.analyze(text, language="en", entities=list(asked))
        return [Span(r.start, r.end, r.entity_type) for r in results]

    return find


def _stands(value: str, text: str) -> bool:
    return re.search(rf"(?<![\w.+-]){re.escape(value)}(?!\w)", text) is not None


def _as_told(value: str) -> Iterator[str]:
    told = value.casefold()
    yield told
    if "@" not in told:
        yield re.sub(r"[ -]", "", told)
    if re.fullmatch(r"[cpt]-?[\d-]+", told):
        yield re.sub("^[cpt]-?", "", told)
