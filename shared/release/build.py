"""`make release OUT=<folder>`: the learner's edition as a git repository of its own.

The folder is new or empty: the repository gets one commit. Or it holds an earlier release: the new
one becomes a commit on top, so that learners can pull it. Author and date of a commit are those of
`AUTHOR` and of the commit that it is made from, so the same state gives the same commit.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from shared.edition import MARKER, learners_edition
from shared.errors import UserError
from shared.release.edition import Planned, Whole, plan
from shared.release.leaks import differing_files, find_leaks, show
from shared.release.repository import git, git_bytes

AUTHOR = "MLOps Labs <labs@example.org>"
BRANCH = "main"


def make_release(
    console: Console, root: Path, out: str, author: str = "", allow_dirty: bool = False
) -> int:
    """Make or update the learner's edition, and prove it; 0 when nothing leaks.

    Args:
        out: the folder.
        author: ``Name <mail>`` of the commit.
        allow_dirty: take the checkout as it lies there, with what was not committed.

    Raises:
        UserError: the folder or the checkout is in no state for it; the message says what to do.
    """
    if not out:
        raise UserError("OUT is missing: make release OUT=../mlops-labs-for-learners")
    folder = Path(out).expanduser().absolute()
    _fit(folder, root)
    _clean(root, allow_dirty)
    with console.status("choosing what goes in …"):
        whole = Whole.of(root)
        planned = plan(whole)
    known = author or AUTHOR
    if not re.fullmatch(r"[^<>\n]+ <[^<>\s]+>", known):
        raise UserError(f"AUTHOR={known}: it takes a name and an address: Ada Teacher <ada@x.org>")
    done = write_release(folder, whole, planned, known)
    blanked = sum(planned.blanked.values())
    console.print(
        f"{done}: {len(planned.files)} files; {len(planned.secret) + len(planned.out)} stayed "
        f"out; {len(planned.changed)} were changed for learners; {blanked} outputs of notebooks "
        f"were left out.",
        markup=False,
    )
    report = find_leaks(folder, whole, planned)
    show(console, report, folder)
    return 0 if report.clean else 1


def write_release(folder: Path, whole: Whole, planned: Planned, author: str = AUTHOR) -> str:
    """Write a plan into a folder that is new, empty, or an earlier release; what was done.

    A new release appears in one piece. An earlier one keeps its newest commit until the next one
    is whole.
    """
    date = git(whole.root, "show", "-s", "--format=%cd", "--date=raw", "HEAD").strip()
    if (folder / ".git").is_dir():
        if not differing_files(folder, planned):
            return f"Nothing is new in {folder}"
        _commit(folder, planned, author, date, "The labs, a newer edition for learners\n", True)
        git(folder, "reset", "--hard", "-q", BRANCH)
        return f"Updated {folder}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        made.chmod(0o755)
        git(made, "init", "-q", "--template=", "-b", BRANCH)
        _commit(made, planned, author, date, "The labs, the edition for learners\n", False)
        git(made, "reset", "--hard", "-q", BRANCH)
        if folder.exists():
            folder.rmdir()  # it is empty
        os.replace(made, folder)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(made)
    return f"Made {folder}"


def _commit(
    folder: Path, planned: Planned, author: str, date: str, message: str, on_top: bool
) -> None:
    stream = [
        f"commit refs/heads/{BRANCH}\n".encode(),
        f"committer {author} {date}\n".encode(),
        f"data {len(message)}\n{message}".encode(),
    ]
    if on_top:
        stream.append(f"from refs/heads/{BRANCH}^0\ndeleteall\n".encode())
    for path, file in sorted(planned.files.items()):
        mode = "100755" if file.executable else "100644"
        stream.append(f'M {mode} inline "{path}"\ndata {len(file.data)}\n'.encode())
        stream.append(file.data + b"\n")
    git_bytes(folder, "fast-import", "--quiet", data=b"".join(stream))


def _fit(folder: Path, root: Path) -> None:
    """Refuse a folder that the release would spoil or that would spoil the release."""
    if folder.resolve() == root or folder.resolve().is_relative_to(root):
        raise UserError(f"OUT={folder} lies in this checkout. Give a folder outside of it.")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"OUT={folder} is a file. Give a new folder, or an earlier release.")
    if not any(folder.iterdir()):
        return
    if not (folder / ".git").is_dir() or learners_edition(folder) is None:
        raise UserError(
            f"OUT={folder} is neither empty nor an earlier release (it has no {MARKER}). Nothing "
            f"was changed."
        )
    if git(folder, "symbolic-ref", "-q", "HEAD").strip() != f"refs/heads/{BRANCH}":
        raise UserError(f"OUT={folder} is not on its branch {BRANCH}. Check it out first.")
    if changed := git(folder, "status", "--porcelain").splitlines():
        shown = ", ".join(line[3:] for line in changed[:5])
        raise UserError(
            f"OUT={folder} has changes that are not committed ({shown}). Move files of your own "
            f"out of it, and undo the rest: the new edition would overwrite it."
        )


def _clean(root: Path, allow_dirty: bool) -> None:
    changed = git(root, "status", "--porcelain", users_settings=True).splitlines()
    if changed and not allow_dirty:
        shown = ", ".join(line[3:] for line in changed[:5])
        raise UserError(
            f"{len(changed)} files are not as they were committed ({shown}). A release is made of "
            f"what is committed. Commit them, or add ALLOW_DIRTY=1 to release them as they are."
        )
