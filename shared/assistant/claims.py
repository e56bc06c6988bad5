"""The changes that make a claim false, and those that leave it true.

Each takes a sentence and returns the changed one, or None where it does not apply.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence

_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
_VALUE = {word: number for number, word in enumerate(_WORDS)}
_PHONE = r"0\d{2} \d{4} \d{4}"
_NUMBER = re.compile(
    rf"{_PHONE}|\d{{1,2}}:\d{{2}}|\d{{1,3}}(?:,\d{{3}})+|\d+\.\d+|\d+|\b(?:{'|'.join(_WORDS[2:])})\b",
    re.IGNORECASE,
)
_FLIPS: tuple[tuple[str, str], ...] = (
    (r"\bcannot\b", "can"),
    (r"\b(is|are|does|do|need|must|may) not\b", r"\1"),
    (r"\bis never\b", "is always"),
    (r"\bare never\b", "are always"),
    (r"\bnever\b", "always"),
    (r"\b(is|are) (free|required|possible|allowed|refused|waived|included)\b", r"\1 not \2"),
    (r"\bcan be\b", "cannot be"),
    (r"\bThere is no\b", "There is a"),
    (r"\bhas no\b", "has a"),
)
_CONDITION = re.compile(r",? (?:unless|except|only if|only when|provided that) [^;:]*(?=\.$)")


def numbers(text: str) -> set[str]:
    """The numbers of a text, as values: "twelve" and "12" are the same, "1,200" is "1200"."""
    return {_plain(m.group()) for m in _NUMBER.finditer(text)}


def change_number(sentence: str, taken: Collection[str], rng: random.Random) -> str | None:
    """One number replaced by another that is not among `taken` and written in the same way."""
    places = list(_NUMBER.finditer(sentence))
    rng.shuffle(places)
    for place in places:
        old = place.group()
        for _ in range(40):
            new = _another(old, rng)
            if new != old and _plain(new) not in taken:
                return sentence[: place.start()] + new + sentence[place.end() :]
    return None


def swap_entity(
    sentence: str, groups: Sequence[Sequence[str]], contexts: str, rng: random.Random
) -> str | None:
    """One name replaced by another of its kind that `contexts` do not mention."""
    found = [
        (m, group)
        for group in groups
        for name in group
        for m in re.finditer(rf"\b{re.escape(name)}\b", sentence)
    ]
    # Of "river Tarn" and "Tarn" the longer one counts.
    found.sort(key=lambda f: (-len(f[0].group()), rng.random()))
    for match, group in found:
        others = [o for o in group if not re.search(rf"\b{re.escape(o)}\b", contexts, re.I)]
        if others:
            return (
                _with_article(sentence[: match.start()], rng.choice(others))
                + (sentence[match.end() :])
            )
    return None


def _with_article(before: str, name: str) -> str:
    """`before` and `name`, with "a" or "an" as the name needs it."""
    article = "an" if name[0].lower() in "aeiou" else "a"
    return re.sub(r"\b([Aa])n? $", lambda m: m[1] + article[1:] + " ", before) + name


def flip(sentence: str) -> str | None:
    """A "not" taken out or put in; only where the sentence has one place for it."""
    hits = [(p, r) for p, r in _FLIPS if re.search(p, sentence)]
    if not hits or sum(len(re.findall(p, sentence)) for p, _ in hits[:1]) != 1:
        return None
    pattern, replacement = hits[0]
    return re.sub(pattern, replacement, sentence)


def drop_condition(sentence: str) -> str | None:
    """The sentence without its last "unless ...", "except ..." or "only if ...", if it has one."""
    shorter = _CONDITION.sub("", sentence)
    return shorter if shorter != sentence and len(shorter.split()) >= 5 else None


def reformat(sentence: str, rng: random.Random) -> str | None:
    """The same numbers written in another way: "GBP 1,200" is "1200 pounds", "7" is "seven"."""
    changed = sentence
    for pattern, write in rng.sample(_FORMATS, len(_FORMATS)):
        changed = re.sub(pattern, write, changed)
    changed = changed[:1].upper() + changed[1:]
    return changed if changed != sentence else None


def merge(first: str, second: str, rng: random.Random) -> str:
    """Two sentences as one."""
    second = second if _starts_with_name(second) else _lower(second)
    return f"{first.rstrip('.!?')}{rng.choice((', and ', '; ', ', while '))}{second}"


def _plain(number: str) -> str:
    text = number.casefold().replace(",", "")
    if text in _VALUE:
        return str(_VALUE[text])
    return re.sub(r"\.0+$", "", text)


def _another(old: str, rng: random.Random) -> str:
    if re.fullmatch(_PHONE, old):
        return f"{old[:-2]}{rng.randint(10, 99)}"
    if ":" in old:
        hour, minute = old.split(":")
        return f"{(int(hour) + rng.randint(1, 5)) % 24}:{minute}"
    if old.casefold() in _VALUE:
        new = rng.choice(_WORDS[2:])
        return new.capitalize() if old[0].isupper() else new
    if "." in old:
        decimals = len(old.split(".")[1])
        other = float(old) * rng.choice((0.5, 0.8, 1.2, 1.5, 2)) + 0.1 * rng.randint(0, 4)
        return f"{other:.{decimals}f}"
    value = int(old.replace(",", ""))
    if value >= 100:
        step = 10 ** (len(str(value)) - 2)
        new_value = max(step, value + step * rng.choice((-6, -4, -3, -2, -1, 1, 2, 3, 5, 8)))
        return f"{new_value:,}" if "," in old or new_value >= 1000 else str(new_value)
    return str(max(1, value + rng.choice((-9, -5, -3, -2, -1, 1, 2, 3, 4, 6, 10))))


def _word(value: str) -> str:
    return _WORDS[int(value)]


def _starts_with_name(sentence: str) -> bool:
    first, *rest = sentence.split()
    return (len(first) > 1 and first.isupper()) or (bool(rest) and rest[0][:1].isupper())


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _clock(match: re.Match[str]) -> str:
    hour, minute = int(match[1]), match[2]
    return f"{(hour - 1) % 12 + 1}:{minute} {'am' if hour < 12 else 'pm'}"


def _pounds(amount: str) -> str:
    return f"{amount.replace(',', '')} {'pound' if amount == '1' else 'pounds'}"


_Written = Callable[[re.Match[str]], str]
_FORMATS: tuple[tuple[str, _Written], ...] = (
    (r"\bGBP 0\.(\d0)\b", lambda m: f"{m[1]} pence"),
    (r"\bGBP ([1-9]\d*(?:,\d{3})*(?:\.\d\d)?)(?![.,]?\d)", lambda m: _pounds(m[1])),
    (r"\b(\d+(?:\.\d+)?) percent\b", lambda m: f"{m[1]} %"),
    (r"\b14 days\b", lambda m: "two weeks"),
    (r"\b24 hours\b", lambda m: "one day"),
    (r"\b12 months\b", lambda m: "one year"),
    (r"(?<![\d.,:] )(?<![\d.,:])\b([2-9]|1[0-2])\b(?= (?:days|weeks|months|years|hours|minutes|"
     r"working|metres|times|sessions|km))", lambda m: _word(m[1])),
    (r"\b(\d{1,2}):(\d{2})\b", _clock),
)  # fmt: skip

ENTITIES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "finance": (
        (
            *("Everyday Account", "Student Account", "Plus Account", "Harbour Saver"),
            *("Beacon Saver", "Anchor Bond", "Acorn Saver", "Keel Loan", "Lantern Mortgage"),
        ),
        ("Swift Card", "Voyager Card", "virtual card"),
        ("Quill Pay", "Switch Service", "Winter Option"),
        ("Ostermouth", "Fairhaven"),
        ("ombudsman", "police", "tax office", "fraud team"),
        ("passport", "birth certificate", "driving licence", "student card"),
        ("courier", "adviser", "executor", "interpreter"),
        ("fingerprint", "PIN", "passcode"),
        ("Monday", "Friday", "Saturday", "Sunday"),
    ),
    "healthcare": (
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
        ("Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Sundays"),
        ("warfarin", "apixaban", "metformin", "insulin", "doxycycline", "metronidazole"),
        ("aspirin", "ibuprofen", "paracetamol", "penicillin"),
        ("cardiology", "dermatology", "physiotherapy", "counselling"),
        ("yellow fever", "rabies", "typhoid", "shingles", "influenza", "pneumonia"),
        ("pharmacy", "laboratory", "hospital", "desk", "cashier"),
        ("podiatrist", "pharmacist", "radiographer", "counsellor", "surveyor"),
        ("diabetes", "epilepsy", "psoriasis", "melanoma", "kidney disease"),
        ("Weaver Street", "Mill Lane", "Larkmoor"),
        ("terminal", "portal"),
    ),
    "climate": (
        (
            *("Peak Saver", "Flex Business", "Flex Home Battery", "Flex Heat Pump"),
            *("Flex Car Charging", "Winter Credit", "insulation loan", "heat pump grant"),
        ),
        ("Green Hours", "Steady", "Standard"),
        ("Emberford", "Sallowbridge", "Cauldmere", "Quarry Road"),
        ("Ember", "Sallow"),
        ("yellow", "orange", "red"),
        ("police", "ombudsman", "jury", "surveyor"),
        ("battery", "heat pump", "charger", "inverter"),
        ("landlord", "installer", "owner", "independent engineer"),
        ("sandbags", "flood boards"),
        ("Fridays", "Saturdays", "Sundays", "Mondays", "Thursday"),
        ("libraries", "halls", "post offices"),
    ),
}
"""Names of one kind stand together: one may be put in the place of another."""
