"""Tool worlds: what an agent of each domain can do, with real state and a ledger of effects.

    world = open_world("finance", folder / "world.sqlite")
    for spec in world.tools():
        print(spec.name, spec.role, spec.risky)
    world.call("lookup", {"customer_id": "C-1001"})

Everything is made up, from word lists and a seed. A role (`lookup`, `act_risky`, ...) is the same
in every domain; the tool that plays it has the domain's own name.
"""

from shared.domains.worlds.errors import (
    CallTimeout,
    KeyReused,
    NotFound,
    PermanentError,
    Refused,
    ToolError,
    TransientError,
)
from shared.domains.worlds.records import (
    ROLES,
    BadArguments,
    CallRecord,
    Customer,
    Document,
    LedgerEntry,
    Role,
    Scenario,
    Step,
    ToolSpec,
)
from shared.domains.worlds.world import DOMAINS, Faults, World, open_world

__all__ = [
    "DOMAINS",
    "ROLES",
    "BadArguments",
    "CallRecord",
    "CallTimeout",
    "Customer",
    "Document",
    "Faults",
    "KeyReused",
    "LedgerEntry",
    "NotFound",
    "PermanentError",
    "Refused",
    "Role",
    "Scenario",
    "Step",
    "ToolError",
    "ToolSpec",
    "TransientError",
    "World",
    "open_world",
]
