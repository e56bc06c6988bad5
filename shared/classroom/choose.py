"""Which files of a hand-in are graded: the task files of each lab, and harmless ones beside them.

A lab's files are looked for where learners work (``labs/lab_1_serving/starter``), in a folder
named like the lab, and, where no name says which lab it is, by the names of the task files.
Folders of a checkout that hold other people's work under the same names (solutions, drafts,
variants, checks) are never looked at, and neither is what a learner's edition brings of its own.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from shared.classroom.names import is_archive_name
from shared.classroom.noticing import LEFT_OUT, Noticed
from shared.classroom.tree import Entry, Limits, Parts, is_skipped
from shared.edition import MARKER, PRISTINE
from shared.grading.lab import Lab
from shared.paths import LABS, ROOT

_LAB_NAME = re.compile(r"lab[ _-]?0*(\d{1,2})(?!\d)", re.IGNORECASE)
_OTHERS = {"solution", "solutions", "drafts", "variants", "checks", "tests", "support", "shared"}
_NOT_LEARNERS = frozenset({*_OTHERS, "notebooks", "requirements"})
_OWN = frozenset({*_OTHERS, "labs", "starter"})
_EDITION_S = frozenset({MARKER, "tests/test_edition.py"})
"""Files that a learner's edition has and this checkout lacks, besides the starters as they were."""
_COMPILED = (".pyc", ".pyo", ".so", ".pyd", ".dll", ".dylib")


@dataclass
class LabFiles:
    """What is taken of one lab.

    Attributes:
        files: what a file will be called, and where it is.
        given: the lab's own files that are no task's: name and content. They are used as this
            checkout has them, whatever the hand-in holds under their names.
    """

    lab: Lab
    folder: Parts
    files: dict[str, Entry] = field(default_factory=dict)
    given: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    lab: int
    folder: Parts
    rank: int


def choose(
    entries: Iterable[Entry],
    labs: Collection[Lab],
    known: Collection[Lab],
    hint: str,
    noticed: Noticed,
    limits: Limits,
) -> list[LabFiles]:
    """Find labs in a hand-in, and the files of each that are graded.

    Args:
        entries: all that is in the hand-in.
        labs: those that are wanted.
        known: all labs of this checkout.
        hint: the hand-in's name, which may say a lab's number.
        noticed: takes down what is left out.
    """
    kept = _without_pristine(_without_tools(entries, noticed, limits))
    folders: dict[Parts, list[Entry]] = defaultdict(list)
    for entry in kept:
        if entry.kind != "folder":
            folders[entry.parts[:-1]].append(entry)
    best = _best(folders, labs, known, hint, noticed)
    chosen = [
        _select(lab, best[lab.number].folder, folders[best[lab.number].folder], noticed, limits)
        for lab in labs
        if lab.number in best
    ]
    _notice_the_rest(kept, chosen, noticed)
    return [c for c in chosen if c.files]


def given_files(lab: Lab) -> dict[str, bytes]:
    """The files that a learner of this lab is given as they are: name and content."""
    solution = lab.folder / "solution"
    folder = solution if solution.is_dir() else lab.folder / "starter"
    tasks = {task.file for task in lab.tasks}
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.py")) if p.name not in tasks}


@cache
def taken_names() -> frozenset[str]:
    """Names of modules that a learner's file must not take: Python's, libraries', the grader's."""
    names = set(sys.stdlib_module_names) | set(sys.builtin_module_names) | _OWN
    here = {ROOT, Path.cwd()}
    places = {*sys.path, *(sysconfig.get_path(n) for n in ("purelib", "platlib", "stdlib"))}
    for place in sorted(p for p in places if p):
        folder = Path(place)
        if folder.is_dir() and folder.resolve() not in here and not _below(folder, ROOT / "labs"):
            names |= {p.name.split(".")[0] for p in folder.iterdir()}
    # What a lab may need that is not installed here: the verdict must not depend on that.
    for file in sorted((ROOT / "requirements").glob("*.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line):
                names.add(re.sub(r"[-.]", "_", found[0].lower()))
    return frozenset(names)


def _below(folder: Path, above: Path) -> bool:
    return folder.resolve().is_relative_to(above)


def _without_tools(entries: Iterable[Entry], noticed: Noticed, limits: Limits) -> list[Entry]:
    """All but what tools leave behind; of two with one path the last, as programs unpack them."""
    found: dict[Parts, Entry] = {}
    for entry in entries:
        if entry.kind == "unsafe path":
            noticed.add("unsafe path", entry.name)
            continue
        if any(is_skipped(p) for p in entry.parts[:-1]) or len(entry.parts) > limits.depth:
            continue
        if is_skipped(entry.name) and entry.name.lower() not in LEFT_OUT:
            continue
        before = found.pop(entry.parts, None)
        if before is not None and "folder" not in (before.kind, entry.kind):
            noticed.add("duplicate name", "/".join(entry.parts))
        if before is not None and before.kind != "folder" and entry.kind == "folder":
            # A folder in a file's place hides nothing.
            entry = before
        found[entry.parts] = entry
    return list(found.values())


def _without_pristine(entries: list[Entry]) -> list[Entry]:
    """All but the starters as they were: each lab of a learner's edition has them in a folder.

    Nobody works there, so a file that was changed there is no news either.
    """
    worked_in = {e.parts[:n] for e in entries for n, p in enumerate(e.parts[:-1]) if p == "starter"}

    def is_pristine(parts: Parts) -> bool:
        return any(
            part == PRISTINE
            and (parts[:n] in worked_in or (n > 0 and _LAB_NAME.match(parts[n - 1]) is not None))
            for n, part in enumerate(parts)
        )

    return [e for e in entries if not is_pristine(e.parts)]


def _best(
    folders: dict[Parts, list[Entry]],
    labs: Collection[Lab],
    known: Collection[Lab],
    hint: str,
    noticed: Noticed,
) -> dict[int, _Candidate]:
    wanted = {lab.number for lab in labs}
    found: dict[int, list[_Candidate]] = defaultdict(list)
    elsewhere: dict[Parts, set[int]] = {}
    for folder, entries in sorted(folders.items()):
        names = {e.name for e in entries if e.kind == "file"}
        overlap = {lab.number: len(_task_files(lab, names)) for lab in known}
        candidate = _candidate(folder, names, overlap, wanted, hint, noticed)
        if candidate is not None:
            found[candidate.lab].append(candidate)
        elif any(overlap.values()):
            elsewhere[folder] = {n for n, count in overlap.items() if count} & wanted
    best = {}
    for number in sorted(wanted & set(found)):
        candidates = sorted(found[number], key=lambda c: (c.rank, len(c.folder), c.folder))
        best[number] = candidates[0]
        if len(candidates) > 1:
            noticed.add("several copies", _place(candidates[0].folder), number)
    for folder, numbers in elsewhere.items():
        if numbers and not numbers & set(best):
            noticed.add("wrong folder", _place(folder))
    return best


def _candidate(
    folder: Parts,
    names: set[str],
    overlap: dict[int, int],
    wanted: Collection[int],
    hint: str,
    noticed: Noticed,
) -> _Candidate | None:
    """The lab whose task files lie in this folder, if they do.

    Args:
        overlap: for each lab how many of its task files lie there, by their names.
    """
    inner = folder[-1].lower() if folder else ""
    canonical = inner == "starter" and len(folder) > 1
    named = _LAB_NAME.match(folder[-2] if canonical else inner)
    if named:
        number = int(named[1])
        if number not in overlap and names:
            noticed.add("unknown lab", _place(folder))
        return _Candidate(number, folder, not canonical) if overlap.get(number) else None
    most = max(overlap.values(), default=0)
    if not most or any(p.lower() in _NOT_LEARNERS for p in folder):
        return None
    likely = [number for number, count in overlap.items() if count == most]
    if len(likely) > 1:
        said = [int(n) for part in (*folder[::-1], hint) for n in _LAB_NAME.findall(part)]
        said = [n for n in said if overlap.get(n)]
        likely = said[:1] or [n for n in likely if n in wanted]
    if len(likely) > 1:
        noticed.add("which lab", f"{_place(folder)} ({', '.join(sorted(names)[:3])})")
    return _Candidate(likely[0], folder, 2) if len(likely) == 1 else None


def _place(folder: Parts) -> str:
    return "/".join(folder) or "the top folder"


def _task_files(lab: Lab, names: Collection[str]) -> set[str]:
    """The lab's task files among `names`, in whatever case."""
    there = {n.lower() for n in names}
    return {task.file for task in lab.tasks if task.file.lower() in there}


def _select(
    lab: Lab, folder: Parts, entries: list[Entry], noticed: Noticed, limits: Limits
) -> LabFiles:
    chosen = LabFiles(lab, folder, given=given_files(lab))
    regular = {e.name: e for e in entries if e.kind == "file"}
    tasks = {task.file for task in lab.tasks}
    room = limits.lab_bytes

    def take(name: str, entry: Entry) -> None:
        nonlocal room
        if entry.size > limits.file_bytes:
            noticed.add("too large", f"{entry.name} ({entry.size:,} bytes)", lab.number)
        elif len(chosen.files) >= limits.files_per_lab or entry.size > room:
            noticed.add("too many files", entry.name, lab.number)
        else:
            chosen.files[name] = entry
            room -= entry.size

    spelt = {}
    for file in sorted(tasks):
        alike = sorted(n for n in regular if n.lower() == file.lower())
        name = file if file in alike else alike[0] if alike else None
        if name is not None:
            spelt[name] = file
            if name != file:
                noticed.add("other spelling", name, lab.number)
            take(file, regular[name])
    if not chosen.files:
        # Nothing to grade; what else lies there is not looked at more closely.
        return chosen
    used = {file.lower() for file in (*tasks, *chosen.given)}
    for entry in sorted(entries, key=lambda e: e.parts):
        if entry.name in spelt:
            continue
        if entry.kind == "file" and entry.name in chosen.given:
            take(entry.name, entry)
            continue
        name = unicodedata.normalize("NFKC", entry.name)
        kind = _unfit(entry, name)
        if kind is None and name.lower() in used:
            kind = "case twin"
        if kind is not None:
            noticed.add(kind, entry.name, lab.number)
        else:
            used.add(name.lower())
            take(name, entry)
    return chosen


def _unfit(entry: Entry, name: str) -> str | None:
    """Why a file beside the task files is left out: the kind of note; None if it is a helper."""
    stem, dot, suffix = name.rpartition(".")
    if entry.kind != "file" or f"{dot}{suffix}" != ".py" or name.lower() in LEFT_OUT:
        return _kind(entry)
    if stem in taken_names():
        return "shadowing name"
    if stem.startswith("test_") or stem.endswith("_test"):
        return "test file"
    if not stem.isidentifier() or stem.startswith("__") or len(name.encode("utf-8")) > 120:
        return "unusual name"
    return None


def _kind(entry: Entry) -> str:
    """What to call a thing that is left out."""
    if entry.kind != "file":
        return entry.kind
    name = unicodedata.normalize("NFKC", entry.name).lower()
    if name in LEFT_OUT:
        return name
    if name.endswith(".pth"):
        return "path file"
    if name.endswith(_COMPILED):
        return "compiled code"
    return "nested archive" if is_archive_name(name) else "other file"


def _notice_the_rest(entries: list[Entry], chosen: Collection[LabFiles], noticed: Noticed) -> None:
    """Take down what lies elsewhere in the hand-in and is not a checkout's own."""
    places = {c.folder: c.lab.number for c in chosen}
    ancestors = {place[:n] for place in places for n in range(len(place))} | {()}
    roots = _roots(chosen)
    for entry in entries:
        parts = entry.parts
        if parts[:-1] in places:
            continue
        path = "/".join(parts)
        inside = next((parts[:n] for n in range(1, len(parts)) if parts[:n] in places), None)
        if inside is not None:
            if entry.kind != "folder":
                top = parts[len(inside)]
                kind = _kind(entry)
                if kind in ("other file", "file", "compiled code"):
                    kind = "shadowing name" if top in taken_names() else "folder"
                noticed.add(kind, path, places[inside])
            continue
        if entry.kind == "folder":
            continue
        if entry.kind == "file" and any(
            _is_there(base, parts[len(above) :])
            for above, base in roots
            if parts[: len(above)] == above
        ):
            continue
        kind = _kind(entry)
        if kind in ("other file", "compiled code"):
            kind = "shadowing name" if _shadows(parts, ancestors) else "other file"
        noticed.add(kind, path)


def _shadows(parts: Parts, ancestors: Collection[Parts]) -> bool:
    """Whether a file in a folder above the lab's is a module of a name that is taken."""
    stem, _, suffix = parts[-1].rpartition(".")
    if suffix != "py":
        return False
    if stem == "__init__" and len(parts) > 1:
        return parts[:-2] in ancestors and parts[-2] in taken_names()
    return parts[:-1] in ancestors and stem in taken_names()


def _roots(chosen: Collection[LabFiles]) -> set[tuple[Parts, Path]]:
    """Folders of the hand-in, and those of this checkout that they may be copies of."""
    roots: set[tuple[Parts, Path]] = {((), ROOT)}
    for one in chosen:
        lab = one.folder[:-1] if one.folder[-1:] == ("starter",) else one.folder
        roots.add((lab, one.lab.folder))
        if lab:
            roots.add((lab[:-1], LABS))
        if lab[-2:-1] == ("labs",):
            roots.add((lab[:-2], ROOT))
    return roots


def _is_there(base: Path, below: Parts) -> bool:
    """Whether this checkout has something of that path."""
    if base == ROOT and "/".join(below) in _EDITION_S:
        return True
    try:
        return bool(below) and len("/".join(below)) < 1000 and (base / Path(*below)).exists()
    except (OSError, ValueError):
        return False
