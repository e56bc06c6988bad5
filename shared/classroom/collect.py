"""Collect what a class handed in: for each learner a folder of ours with plain files only.

In the folder of submissions each entry is one learner's: a clone, a folder of lab folders, one
lab's folder or only its files, or an archive of any of these; also as Canvas and Moodle name and
nest them. Nothing of it is run, no link is followed, no archive is unpacked: the few files that
are graded are read, each up to a limit, and written anew.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shared.classroom.choose import given_files
from shared.classroom.looking import look
from shared.classroom.names import HandInName, is_archive_name, parse, shown, unique_ids
from shared.classroom.records import Learner, Note, Submission
from shared.classroom.roster import Roster, Row, read_roster
from shared.classroom.store import CollectError, Store, fingerprint
from shared.classroom.taking import Taker
from shared.classroom.tree import LIMITS, Limits, is_skipped, open_folder
from shared.grading.lab import Lab, all_labs, load_lab

__all__ = ["CollectError", "collect", "fingerprint"]


@dataclass
class _Group:
    """What one learner handed in: one thing as a rule, more if they did it again.

    Attributes:
        row: the learner in the roster.
        remark: why they are not found in it, if they are not.
        passed_over: what they handed in besides the one that the roster names.
    """

    hand_ins: list[HandInName]
    row: Row | None = None
    remark: str = ""
    passed_over: tuple[HandInName, ...] = ()


def collect(
    submissions: Path,
    into: Path,
    *,
    labs: Sequence[int] | None = None,
    roster: Path | None = None,
    limits: Limits = LIMITS,
) -> list[Submission]:
    """Bring everything that a class handed in into one shape: ``into/<learner's id>/lab_<N>/``.

    Running it again gives the same; each learner's folder is put in place in one step, so that
    what a kill leaves behind does not matter. Folders in `into` that are of no learner are left.
    Not for two runs into the same folder at once.

    Args:
        submissions: the folder with one entry for each learner.
        into: a folder of ours; made if it is not there.
        labs: numbers of the labs to take; all of this checkout if None.
        roster: a CSV with the class list.

    Returns:
        One for each learner: those of the roster in its order, then the others by id. One of
        whom nothing can be graded has a `problem`.

    Raises:
        UserError: the folder or the roster cannot be used, a lab does not exist, or `into`
            cannot be written to. Nothing was changed in the first three cases.
    """
    if os.open not in os.supports_dir_fd:
        raise CollectError("Collecting submissions safely needs Linux or macOS.")
    known = all_labs()
    there = {lab.number: lab for lab in known}
    numbers = sorted(there if labs is None else set(labs))
    wanted = [there[n] if n in there else load_lab(n) for n in numbers]
    with _opened(submissions, into) as folder:
        found = _class_in(folder, submissions, roster, known)
        store = Store(into)
        return [
            _collect_one(group, learner, Taker(folder, wanted, known, limits), store)
            for group, learner in found
        ]


def class_list(submissions: Path, into: Path, *, roster: Path | None = None) -> list[Learner]:
    """Who is of the class, in `collect`'s order: told before anything is written.

    Raises:
        UserError: as `collect` does.
    """
    with _opened(submissions, into) as folder:
        return [learner for _, learner in _class_in(folder, submissions, roster, all_labs())]


def _class_in(
    folder: int, submissions: Path, roster: Path | None, known: list[Lab]
) -> list[tuple[_Group, Learner]]:
    people = read_roster(roster) if roster is not None else None
    names = _hand_in_names(folder, roster)
    _refuse_one_learner(submissions, names, known)
    if not names and people is None:
        raise CollectError(
            f"There is nothing in {submissions}. Put each learner's folder or archive there."
        )
    groups = _groups(names, people)
    learners = [
        _with_canvas_id(learner, group, names)
        for group, learner in zip(groups, _learners(groups), strict=True)
    ]
    return sorted(
        zip(groups, learners, strict=True),
        key=lambda pair: (pair[0].row.line if pair[0].row else 2**62, pair[1].id),
    )


@contextmanager
def _opened(submissions: Path, into: Path) -> Iterator[int]:
    """The folder of submissions, opened."""
    path, target = submissions.resolve(), into.resolve()
    if path.is_file():
        raise CollectError(
            f"{submissions} is a file. Unpack it, and give the folder that holds one folder or "
            f"archive for each learner."
        )
    if path == target or target.is_relative_to(path) or path.is_relative_to(target):
        raise CollectError(f"{into} and {submissions} lie inside of each other. Give another OUT.")
    try:
        folder = open_folder(str(path))
    except OSError as error:
        raise CollectError(
            f"{submissions} cannot be read: {error.strerror}. Give the folder that holds one "
            f"folder or archive for each learner."
        ) from error
    try:
        yield folder
    finally:
        os.close(folder)


def _hand_in_names(folder: int, roster: Path | None) -> list[str]:
    """The entries of the folder, without what systems leave there, all that begins with a dot
    among it, and without the roster.
    """
    found = []
    for name in sorted(os.listdir(folder)):
        if is_skipped(name):
            continue
        if roster is not None:
            with suppress(OSError):
                there = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if os.path.samestat(there, os.stat(roster)):
                    continue
        found.append(name)
    return found


def _refuse_one_learner(submissions: Path, names: list[str], known: list[Lab]) -> None:
    """Notice that the folder is one learner's: their labs would be taken for learners."""
    parts = {"starter", *(lab.folder.name for lab in known)}
    parts |= {task.file for lab in known for task in lab.tasks}
    if {"labs", "shared", "pyproject.toml"} <= set(names) or (names and set(names) <= parts):
        raise CollectError(
            f"{submissions} looks like one learner's own folder. Give the folder that it lies in, "
            f"with one folder or archive for each learner."
        )


def _groups(names: list[str], people: Roster | None) -> list[_Group]:
    """Whose what is: hand-ins by learner, the order in which they were handed in kept."""
    by_key: dict[tuple[str, str], list[HandInName]] = defaultdict(list)
    for name in names:
        parsed = parse(name)
        by_key[parsed.key].append(parsed)
    of_roster = {row.line: _Group([], row) for row in (people.rows if people else ())}
    others = []
    sure: dict[int, list[tuple[int, list[HandInName]]]] = defaultdict(list)
    for hand_ins in by_key.values():
        found = [people.find(h) for h in hand_ins] if people else []
        fits = {row.line: row for _, rows in found for row in rows}
        if len(fits) == 1:
            sure[next(iter(fits))].append((min(tier for tier, _ in found), hand_ins))
        else:
            remark = "It is not in the roster." if people else ""
            others.append(_Group(hand_ins, None, _unsure(list(fits.values())) if fits else remark))
    for line, claims in sure.items():
        best = min(tier for tier, _ in claims)
        for tier, hand_ins in claims:
            # Who names a file after somebody else must not replace what that one handed in.
            if tier == best:
                of_roster[line].hand_ins += hand_ins
            else:
                row = of_roster[line].row
                others.append(_Group(hand_ins, None, _unsure([row] if row else [])))
    groups = [*of_roster.values(), *others]
    for group in groups:
        if group.row is not None and group.row.submission:
            _keep_the_named(group, group.row)
        group.hand_ins.sort(key=lambda h: (h.order, not is_archive_name(h.raw), h.raw))
    return groups


def _keep_the_named(group: _Group, row: Row) -> None:
    """Who hands in more than once is graded on what the roster names, where it names one.

    Single files are parts of a hand-in, so one that is named does not stand for the others.
    """
    named = [h for h in group.hand_ins if row.names(h)]
    if named and not all(h.raw.endswith(".py") for h in named):
        group.passed_over = tuple(h for h in group.hand_ins if h not in named)
        group.hand_ins = named


def _unsure(fits: list[Row]) -> str:
    said = ", ".join(f"{row.learner.name} ({row.learner.id})" for row in fits)
    return (
        f"It is nobody's of the roster for sure; it may be that of {said}. Name it in the "
        f"roster's column submission."
    )


def _learners(groups: list[_Group]) -> list[Learner]:
    ids = unique_ids(
        (n, g.row.learner.id, True) if g.row else (g.hand_ins[0].key, g.hand_ins[0].person, False)
        for n, g in enumerate(groups)
    )
    found = []
    for n, group in enumerate(groups):
        if group.row is not None:
            found.append(group.row.learner.model_copy(update={"id": ids[n]}))
        else:
            first = group.hand_ins[0]
            found.append(
                Learner(
                    id=ids[first.key],
                    name=shown(first.person),
                    external_id=first.external_id,
                    platform=first.platform,
                )
            )
    return found


def _with_canvas_id(learner: Learner, group: _Group, names: list[str]) -> Learner:
    """The learner with the id that Canvas put into the names of their hand-ins.

    Other names can look like Canvas's by chance (``team_12_2026_final.zip``). So it is believed
    only where all names of the folder do, and the roster has no other id.
    """
    ids = {h.external_id for h in group.hand_ins if h.platform == "Canvas"}
    if len(ids) != 1 or learner.canvas.get("ID"):
        return learner
    if any(parse(name).platform != "Canvas" for name in names):
        return learner
    return learner.model_copy(update={"canvas": learner.canvas | {"ID": ids.pop()}})


def _collect_one(group: _Group, learner: Learner, taker: Taker, store: Store) -> Submission:
    if group.remark:
        taker.noticed.add("not in the roster", group.remark)
    for passed_over in group.passed_over:
        taker.noticed.add("not chosen", passed_over.raw)
    taker.take(group.hand_ins)
    places = store.put(learner.id, taker.files)
    problem = ""
    if not taker.files:
        problem = " ".join(taker.problems) or _what_is_missing(group, taker.wanted)
    else:
        for text in taker.problems:
            taker.noticed.add("unreadable hand-in", text)
    return Submission(
        learner=learner,
        source=", ".join(shown(h.raw) for h in group.hand_ins),
        labs=places,
        notes=(*_looked_at(taker), *taker.noticed.notes()),
        problem=problem,
    )


def _looked_at(taker: Taker) -> Iterator[Note]:
    """What the instructor should look at in the learner's own files."""
    for lab in taker.wanted:
        given = given_files(lab)
        files = taker.files.get(lab.number, {})
        yield from look({n: c for n, c in files.items() if given.get(n) != c}, lab.number)


def _what_is_missing(group: _Group, wanted: Collection[Lab]) -> str:
    if not group.hand_ins:
        named = group.row.submission if group.row else ""
        if named:
            return f"Nothing was handed in: the roster names {shown(named)}, which is not there."
        return "Nothing was handed in."
    labs = ", ".join(str(lab.number) for lab in wanted)
    names = ", ".join(shown(h.raw) for h in group.hand_ins)
    return (
        f"No task file of lab {labs} was found in {names}. Expected is a clone, a lab's "
        f"folder ({', '.join(lab.folder.name for lab in wanted)}), or an archive of these."
    )
