"""Run a command as it would run on a device without a network and with a read-only root.

Linux only: bubblewrap (`bwrap`) makes an empty network namespace, mounts the root read-only, and
leaves one folder writable. Where it is not installed, or the system forbids user namespaces (as
within some containers), there is no isolation, and a report has to say that it was not proven.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path


def isolated(command: Sequence[str], writable: Path, hidden: Sequence[Path] = ()) -> list[str]:
    """The command line that runs `command` in isolation.

    Args:
        writable: the one folder that it may write to.
        hidden: folders that it finds empty.
    """
    hide = [
        word for folder in hidden for word in ("--tmpfs", str(folder), "--remount-ro", str(folder))
    ]
    return [
        "bwrap",
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
        *hide,
        *("--bind", str(writable), str(writable)),
        *("--unshare-net", "--unshare-pid", "--die-with-parent", "--chdir", str(writable), "--"),
        *command,
    ]


@lru_cache(maxsize=1)
def why_not() -> str:
    """Why there is no isolation here; an empty text where there is."""
    if shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    root = Path("/var/tmp" if Path("/var/tmp").is_dir() else "/tmp")
    try:
        done = subprocess.run(
            isolated(["true"], root), capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run here: {error}"
    if done.returncode:
        said = (done.stderr.strip() or "no reason given").splitlines()[-1]
        return f"bubblewrap does not run here: {said}"
    return ""
