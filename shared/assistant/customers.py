"""Makes the customer records: `python -m shared.assistant.customers` writes customers/*.jsonl.

Names are drawn from two word lists and joined; nobody is meant. E-mail addresses are of
example.org and its sisters, telephone numbers of the range kept for fiction, cards of test ranges,
IBANs of a bank that does not exist.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict

from shared.assistant.identifiers import make_card, make_iban, make_identifier
from shared.assistant.material import HERE
from shared.assistant.records import DOMAINS, Customer, Domain

SEED = 20261125
COUNT = 24

FIRST = (
    *("Alba", "Brant", "Cleo", "Doran", "Edda", "Farley", "Greta", "Hollis", "Isolde", "Jory"),
    *("Kerra", "Linus", "Merle", "Nils", "Oona", "Perran", "Rhea", "Soren", "Tamsin", "Ulric"),
)
LAST = (
    *("Ashgrove", "Birchwell", "Coldbrook", "Dunmarsh", "Elderfen", "Foxmoor", "Gorsefield"),
    *("Heathcroft", "Ivystone", "Juniperhay", "Kestrelby", "Larchdale", "Mossgate", "Nettlecombe"),
)
_NOTES = {
    "finance": ("asked about an overdraft", "moved in May", "has a joint account", "lost a card"),
    "healthcare": ("allergic to penicillin", "needs an interpreter", "missed a visit", "diabetes"),
    "climate": ("has a battery", "on the Priority Register", "moved in May", "disputes a bill"),
}


def make_phone(rng: random.Random) -> str:
    """A telephone number of the ranges that Ofcom keeps for fiction; desks have 020 7946 0100 on.

    Mobile numbers of such a range exist too (07700 900...), but `phonenumbers`, and so Presidio,
    takes them for invalid.
    """
    if rng.random() < 0.4:
        return f"020 7946 0{rng.randint(400, 999):03d}"
    return f"0{rng.choice((113, 117, 131, 141, 161))} 496 0{rng.randint(0, 999):03d}"


def make_email(name: str, rng: random.Random) -> str:
    """An address at a domain that is kept for examples."""
    first, last = name.lower().split()
    local = rng.choice((f"{first}.{last}", f"{first[0]}{last}", f"{last}{rng.randint(10, 99)}"))
    return f"{local}@{rng.choice(('example.org', 'example.com', 'example.net'))}"


def make_customers(domain: Domain, seed: int = SEED) -> tuple[Customer, ...]:
    """Two dozen records, no name twice."""
    rng = random.Random(f"customers {domain} {seed}")
    names = rng.sample([f"{a} {b}" for a in FIRST for b in LAST], COUNT)
    return tuple(
        Customer(
            number=make_identifier(domain, rng),
            name=name,
            email=make_email(name, rng),
            phone=make_phone(rng),
            account=make_iban(rng) if domain == "finance" else make_card(rng),
            note=rng.choice(_NOTES[domain]),
        )
        for name in names
    )


def main() -> None:
    """Write the files anew; the same seed gives the same bytes."""
    folder = HERE / "customers"
    folder.mkdir(exist_ok=True)
    for domain in DOMAINS:
        lines = [json.dumps(asdict(c)) for c in make_customers(domain)]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
