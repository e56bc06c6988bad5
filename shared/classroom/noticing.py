"""What is seen in a submission and has no effect: gathered, counted, and said in a few sentences.

A clone holds thousands of files and an archive may hold millions of tricks, so nothing here grows
with them: one note for each kind and lab, with a count and a few names.
"""

from __future__ import annotations

from collections import defaultdict

from shared.classroom.names import shown
from shared.classroom.records import Note

EXAMPLES = 3

LEFT_OUT = {
    "conftest.py": "pytest would run it before the checks",
    "pytest.ini": "it would change how the checks run",
    ".pytest.ini": "it would change how the checks run",
    "tox.ini": "it would change how the checks run",
    "setup.cfg": "it would change how the checks run",
    "pyproject.toml": "it would change how the checks run",
    "setup.py": "it is no part of a task",
    "sitecustomize.py": "Python would run it at its start",
    "usercustomize.py": "Python would run it at its start",
    "path file": "Python would run its lines at its start",
    "compiled code": "only source files are graded",
    "cache": "only source files are graded",
    "shadowing name": "a module of that name would take the place of a library's or the grader's",
    "test file": "the checks are this checkout's own",
    "unusual name": "Python cannot import a file of that name, or reads more into it",
    "case twin": "its name differs from another file's in upper and lower case only",
    "symbolic link": "links are never followed",
    "hard link": "links are never followed",
    "FIFO": "only regular files are graded",
    "device": "only regular files are graded",
    "socket": "only regular files are graded",
    "special file": "only regular files are graded",
    "unsafe path": "the path leads out of the folder",
    "unreadable": "it could not be read",
    "nested archive": "archives inside of archives are not opened",
    "too large": "it is larger than a file of a task may be",
    "too many files": "a lab has only so many",
    "folder": "only files beside the task files are taken",
    "other file": "it is no part of a task",
}
"""Why things of a kind were left out."""
_SAID = {
    "given file": "{} differs from the lab's own, which is used: it is given, not a task.",
    "other spelling": "{} is taken for the task's file, which is spelt otherwise.",
    "duplicate name": "{} is in the archive more than once; the last one counts.",
    "several copies": "The lab is in more than one place: {} is graded.",
    "late": "{} came after the deadline, as its name says, and is graded all the same.",
    "not chosen": "{} is left out: the roster's column submission names another one.",
    "handed in again": "The lab was handed in more than once: {} counts.",
    "which lab": "{} could be of more than one lab and is left out. Put it into the lab's folder.",
    "unknown lab": "{} is of a lab that is not in this checkout.",
    "wrong folder": "{} holds files named like a task's, but is not where learners work.",
    "archive bomb": "{} claims to unpack to far more than labs are. It is not unpacked.",
    "unreadable hand-in": "{}",
    "not in the roster": "{}",
    "many notes": "{}",
}
MOST = 40


class Noticed:
    """Gathers what is noticed in one learner's submission."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], list[str]] = defaultdict(list)
        self._counts: dict[tuple[int, str], int] = defaultdict(int)

    def add(self, kind: str, what: str, lab: int | None = None, count: int = 1) -> None:
        """Notice one thing (or `count` alike): its kind, what to call it, and its lab if any."""
        key = (lab or 0, kind)
        self._counts[key] += count
        if len(self._seen[key]) < EXAMPLES and what not in self._seen[key]:
            self._seen[key].append(what)

    def notes(self) -> tuple[Note, ...]:
        """All of it, by lab and kind; at most `MOST`."""
        found = [
            Note(kind=kind, text=self._text(lab, kind), lab=lab or None)
            for lab, kind in sorted(self._seen)
        ]
        if len(found) <= MOST:
            return tuple(found)
        text = f"{len(found) - MOST + 1} more kinds of things had no effect."
        return (*found[: MOST - 1], Note(kind="many notes", text=text))

    def _text(self, lab: int, kind: str) -> str:
        seen, count = self._seen[lab, kind], self._counts[lab, kind]
        if kind in ("unreadable hand-in", "not in the roster"):
            return " ".join(seen)
        names = ", ".join(shown(s) for s in seen)
        more = f" and {count - len(seen):,} more" if count > len(seen) else ""
        if kind in _SAID:
            return _SAID[kind].format(f"{names}{more}")
        return f"Left out: {names}{more}. Reason: {LEFT_OUT[kind]}."
