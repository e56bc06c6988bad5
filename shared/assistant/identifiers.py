"""Identifiers with check digits: cards, IBANs, and each domain's own number.

=============  ===================  ==========================================================
identifier     written              rule
=============  ===================  ==========================================================
card           13 to 19 digits      Luhn (ISO/IEC 7812-1)
IBAN           country, 2 digits,   the number, with its first four characters at its end and
               up to 30 characters  letters as 10 to 35, leaves 1 when divided by 97 (ISO 13616)
customer       C-1234567-8          finance: digits weighted 3, 1, 3, 1, 3, 1, 3; the check digit
                                    fills the sum up to a multiple of 10
patient        P-1234-5678-9        healthcare: digits weighted 9, 8, ..., 2; the check digit is
                                    11 minus the sum modulo 11; 11 is written 0, and a number
                                    whose check digit would be 10 is never issued
meter point    T12-3456-7890-1      climate: digits weighted 3, 5, 7, 13, 17, 19, 23, 29, 31, 37;
                                    the check digit is the sum modulo 11, and that modulo 10
=============  ===================  ==========================================================

The domain's numbers are also written without hyphens or with blanks in their place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping

from shared.assistant.records import Domain

ENTITY: Mapping[str, str] = {
    "finance": "CUSTOMER_NUMBER",
    "healthcare": "PATIENT_NUMBER",
    "climate": "METER_POINT",
}
"""What the domain's own identifier is called where personal data is labelled."""

_PRIMES = (3, 5, 7, 13, 17, 19, 23, 29, 31, 37)


def digits_of(text: str) -> str:
    """The digits of a text, without whatever stands between them."""
    return re.sub(r"[^0-9]", "", text)


def luhn(digits: str) -> bool:
    """Whether a card number's last digit is right."""
    total = 0
    for place, digit in enumerate(int(d) for d in reversed(digits)):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def iban(text: str) -> bool:
    """Whether an IBAN's check digits are right."""
    compact = re.sub(r"\s", "", text).upper()
    if not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", compact):
        return False
    turned = compact[4:] + compact[:4]
    return int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def customer_number(digits: str) -> bool:
    """Whether the 8 digits of a customer number are right."""
    return len(digits) == 8 and digits[-1] == _customer_check(digits[:-1])


def patient_number(digits: str) -> bool:
    """Whether the 9 digits of a patient number are right."""
    return len(digits) == 9 and digits[-1] == _patient_check(digits[:-1])


def meter_point(digits: str) -> bool:
    """Whether the 11 digits of a meter point number are right."""
    return len(digits) == 11 and digits[-1] == _meter_check(digits[:-1])


VALID: Mapping[str, Callable[[str], bool]] = {
    "finance": customer_number,
    "healthcare": patient_number,
    "climate": meter_point,
}
"""Says of each domain's own identifier, given its digits, whether the check digit is right."""


def make_identifier(domain: Domain, rng: random.Random, *, valid: bool = True) -> str:
    """The domain's own number, as it is written; with `valid=False` its check digit is wrong."""
    check, length = _MAKERS[domain]
    while True:
        body = "".join(rng.choices("0123456789", k=length))
        digit = check(body)
        if digit is not None:
            break
    if not valid:
        digit = rng.choice([d for d in "0123456789" if d != digit])
    return _WRITTEN[domain](body + digit)


def make_card(rng: random.Random, *, valid: bool = True) -> str:
    """A 16-digit number from ranges that are used for tests, compact."""
    body = rng.choice(("400000", "424242", "555555", "510510"))
    body += "".join(rng.choices("0123456789", k=9))
    right = next(d for d in "0123456789" if luhn(body + d))
    return body + (right if valid else rng.choice([d for d in "0123456789" if d != right]))


def make_iban(rng: random.Random, *, valid: bool = True) -> str:
    """A compact IBAN of a bank that does not exist, of Britain, Germany or the Netherlands."""
    country, length = rng.choice((("GB", 14), ("DE", 10), ("NL", 10)))
    head = {"GB": "TEST", "DE": "00000000", "NL": "TEST"}[country]
    body = head + "".join(rng.choices("0123456789", k=length))
    checks = f"{98 - int(''.join(str(int(c, 36)) for c in body + country + '00')) % 97:02d}"
    if not valid:
        checks = f"{(int(checks) + rng.randint(1, 90)) % 97:02d}"
    return country + checks + body


def _customer_check(body: str) -> str:
    total = sum(int(d) * w for d, w in zip(body, (3, 1, 3, 1, 3, 1, 3), strict=True))
    return str(-total % 10)


def _patient_check(body: str) -> str | None:
    total = sum(int(d) * w for d, w in zip(body, range(9, 1, -1), strict=True))
    check = (11 - total % 11) % 11
    return None if check == 10 else str(check)


def _meter_check(body: str) -> str:
    return str(sum(int(d) * w for d, w in zip(body, _PRIMES, strict=True)) % 11 % 10)


_MAKERS: Mapping[str, tuple[Callable[[str], str | None], int]] = {
    "finance": (_customer_check, 7),
    "healthcare": (_patient_check, 8),
    "climate": (_meter_check, 10),
}
_WRITTEN: Mapping[str, Callable[[str], str]] = {
    "finance": lambda d: f"C-{d[:7]}-{d[7]}",
    "healthcare": lambda d: f"P-{d[:4]}-{d[4:8]}-{d[8]}",
    "climate": lambda d: f"T{d[:2]}-{d[2:6]}-{d[6:10]}-{d[10]}",
}
