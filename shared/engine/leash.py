"""The leash: ends an engine when its keeper is gone, however the keeper went.

The keeper holds the other end of this process's standard input. A keeper that is killed cannot
tidy up, but the system closes its files, and that is what this process waits for.
"""

from __future__ import annotations

import os
import signal
import sys

from shared.engine.processes import end_owned


def main() -> int:
    """Wait until standard input closes, then end what carries the token."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1024):
        pass
    return 0 if end_owned(sys.argv[1]) else 1


if __name__ == "__main__":
    sys.exit(main())
