"""git without the settings, hooks and variables of whoever runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from shared.errors import UserError


def environment(users_settings: bool = False) -> dict[str, str]:
    """The environment for git: nothing that points to another repository.

    A folder that belongs to somebody else is read all the same (`safe.directory`).

    Args:
        users_settings: whether the user's own settings count, e.g. which files they ignore.
    """
    settings = {"core.hooksPath": os.devnull, "safe.directory": "*", "core.fsmonitor": "false"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    if not users_settings:
        kept |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    kept |= {
        "GIT_CONFIG_COUNT": str(len(settings)),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "LC_ALL": "C.UTF-8",
    }
    for n, (key, value) in enumerate(settings.items()):
        kept |= {f"GIT_CONFIG_KEY_{n}": key, f"GIT_CONFIG_VALUE_{n}": value}
    return kept


def git(root: Path, *words: str, data: bytes | None = None, users_settings: bool = False) -> str:
    """What git says.

    Raises:
        UserError: git is missing or failed; the message is its own.
    """
    told = git_bytes(root, *words, data=data, users_settings=users_settings)
    return told.decode("utf-8", "surrogateescape")


def git_bytes(
    root: Path, *words: str, data: bytes | None = None, users_settings: bool = False
) -> bytes:
    """The same, undecoded."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            input=data,
            capture_output=True,
            env=environment(users_settings),
            check=False,
        )
    except OSError as error:
        raise UserError(f"git cannot be run ({error}). Install it first.") from error
    if done.returncode:
        told = done.stderr.decode("utf-8", "replace").strip()
        raise UserError(f"git {words[0]} failed in {root}: {told}")
    return done.stdout
