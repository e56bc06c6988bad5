"""The class list: a CSV of the instructor's, or as a learning platform exports it.

Which column is which is known by its name in the first line, in any case and order: see `COLUMNS`.
As they come are read: Canvas' gradebook export (``Student,ID,SIS Login ID,Section``), Moodle's
grading worksheet (``Identifier,Full name,Email address``) and list of participants
(``First name,Last name,ID number,Email address``), and GitHub Classroom's roster
(``identifier,github_username,github_id,name``).

Grades are given to whom an id names, so a system's ids are taken only from columns that are its
own: by the whole first line, or by a name that says it (``Canvas ID``, ``Moodle username``).
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from shared.classroom.names import HandInName, folded, safe_id, shown, split_suffix, unique_ids
from shared.classroom.records import Learner
from shared.errors import UserError

MAX_BYTES = 5 * 2**20
COLUMNS = {
    "id": "id, student id, learner id, student number, id number, matriculation number, "
    "sis login id, sis user id, login id, user id, username, user name",
    "name": "name, full name, student, student name, learner, learner name, display name",
    "first": "first name, given name, firstname",
    "last": "last name, surname, family name, lastname",
    "email": "email, email address, e mail, mail",
    "section": "section, group, groups, class, course section",
    "external": "external id, identifier, canvas id, canvas user id, moodle id",
    "submission": "submission, folder, archive, file, submission folder, hand in",
    "github": "github, github username, github user, github login, github handle",
}
"""What a column holds, and the names it may have; of several the first of these counts."""
_OF_CANVAS = (
    *("LastName", "FirstName", "Student", "ID", "SIS User ID", "SIS Login ID"),
    *("Integration ID", "Root Account", "Section"),
)
"""The columns of Canvas' gradebook export that say who it is."""
_CANVAS_IDS = {
    "canvas user id": "ID",
    "canvas id": "ID",
    "sis user id": "SIS User ID",
    "sis login id": "SIS Login ID",
}
_MOODLE_IDS = {"moodle id number": "ID number", "moodle username": "Username"}
"""Columns of any list that hold a system's own ids, and what the system calls them."""
_MEANING = {
    name: (column, place)
    for column, names in COLUMNS.items()
    for place, name in enumerate(names.split(", "))
}


class RosterError(UserError):
    """The roster cannot be used; the message says where, and what to do."""


@dataclass(frozen=True)
class Row:
    """One learner of the roster.

    Attributes:
        given_id: the id as the roster has it; the learner's is made safe.
        submission: the name of what they handed in, where the roster says it.
        github: their user name there.
        line: of the file, from 1.
    """

    learner: Learner
    given_id: str
    submission: str
    github: str
    line: int

    def names(self, name: HandInName) -> bool:
        """Whether its column for what was handed in says this name, with or without ``.zip``."""
        stem = split_suffix(name.raw)[0]
        return bool(self.submission) and _same(self.submission) in {_same(name.raw), _same(stem)}


@dataclass(frozen=True)
class Roster:
    """A class list, in its order."""

    rows: tuple[Row, ...]

    def find(self, name: HandInName) -> tuple[int, list[Row]]:
        """Whose hand-in of that name it is: one learner, or none, or several whom it fits alike.

        What says most is asked first: the roster's own column, then the platform's number, ids,
        and at last the person's name.

        Returns:
            How sure it is, 0 being the surest, and whom it fits.
        """
        stem = split_suffix(name.raw)[0]
        people = {_same(name.person), _same(stem)}
        tiers = (
            [r for r in self.rows if r.names(name)],
            [r for r in self.rows if _is_number(r.learner, name)],
            [r for r in self.rows if people & {_same(t) for t in _handles(r) if t}],
            self._with_longest_ending(stem),
            [r for r in self.rows if _is_named(r.learner.name, name.person)],
        )
        return next(((n, fits) for n, fits in enumerate(tiers) if fits), (len(tiers), []))

    def _with_longest_ending(self, stem: str) -> list[Row]:
        """GitHub Classroom names a clone ``<assignment>-<user>``; a user may have dashes too."""
        fits = [r for r in self.rows if r.github and _same(stem).endswith(f"-{_same(r.github)}")]
        longest = max((len(r.github) for r in fits), default=0)
        return [r for r in fits if len(r.github) == longest]


def read_roster(path: Path) -> Roster:
    """Read a class list.

    Raises:
        RosterError: it cannot be read, or leaves open who is who.
    """
    rows = _rows(_text(path), path.name)
    line, header = next(rows, (0, []))
    columns = _columns(header, path.name)
    own = _Own.of(header)
    found = []
    for line, cells in rows:
        if any(c for c in cells[len(header) :]):
            raise RosterError(
                f"{path.name}, line {line} has {len(cells)} cells, but the first line names "
                f"{len(header)} columns. Put quotes around cells that hold the separator."
            )
        row = _row(dict(zip(header, cells, strict=False)), columns, own, line)
        if row is not None:
            found.append(row)
    if not found:
        raise RosterError(f"{path.name} names no learner below its first line.")
    _refuse_doubles(found, path.name)
    ids = unique_ids((r.line, r.given_id, True) for r in found)
    return Roster(
        tuple(
            Row(
                r.learner.model_copy(update={"id": ids[r.line]}),
                r.given_id,
                r.submission,
                r.github,
                r.line,
            )
            for r in found
        )
    )


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RosterError(
            f"The roster {path} cannot be read: {error.strerror}. Give the path of a CSV file."
        ) from error
    if len(raw) > MAX_BYTES:
        raise RosterError(f"{path.name} is larger than {MAX_BYTES:,} bytes: that is no class list.")
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RosterError(
            f"{path.name}, line {line} is not in UTF-8 (byte 0x{raw[error.start]:02x}), and which "
            f"encoding it is in cannot be known, so names could come out wrong. Save it as "
            f'"CSV UTF-8" and run this again.'
        ) from error
    if "\0" in text:
        raise RosterError(
            f'{path.name} holds zero bytes: it is no CSV file. Save the list as "CSV UTF-8".'
        )
    return text


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    first = text.lstrip("\r\n").split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def cells() -> Iterator[tuple[int, list[str]]]:
        line = 1
        try:
            for row in reader:
                stripped = [cell.strip() for cell in row]
                if any(stripped):
                    yield line, stripped
                line = reader.line_num + 1
        except csv.Error as error:
            raise RosterError(
                f"{name} is broken near line {reader.line_num} ({error}). Open it in a "
                f'spreadsheet and save it anew as "CSV UTF-8".'
            ) from error

    return cells()


def _columns(header: list[str], name: str) -> dict[str, str]:
    """What is known about a learner, and the column that says it."""
    words = {cell: _word(cell) for cell in header}
    known: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for cell, word in words.items():
        if word in _MEANING:
            column, place = _MEANING[word]
            known[column].append((place, cell))
    doubled = sorted(c for c in words if words[c] in _MEANING and header.count(c) > 1)
    if doubled:
        raise RosterError(f"{name} has two columns named {shown(doubled[0])}. Rename one of them.")
    if not known:
        raise RosterError(
            f"The first line of {name} names no column that is known: "
            f"{shown(', '.join(header)) or 'it is empty'}. Begin the file with a line such as "
            f"id,name,email,section,external id,submission,github username"
        )
    columns = {column: min(cells)[1] for column, cells in known.items()}
    by_word = {word: cell for cell, word in words.items()}
    if _system(by_word.keys()) == "Canvas":
        # "ID" is its own number for the learner, which its import asks for.
        columns["external"] = by_word["id"]
        own = [w for w in ("sis login id", "sis user id", "id") if w in by_word]
        columns["id"] = by_word[own[0]]
    if "id" not in columns:
        stand_in = next((c for c in ("github", "external", "email") if c in columns), None)
        if "identifier" in by_word and "github" in columns:
            stand_in = "external"
        if stand_in is None:
            raise RosterError(
                f"{name} has no column that tells learners apart. It has: "
                f"{shown(', '.join(header))}. Add a column id (or email, external id, GitHub "
                f"username) with a different value for each learner."
            )
        columns["id"] = columns[stand_in]
    return columns


def _word(cell: str) -> str:
    """A column's name as `COLUMNS` has it."""
    return " ".join(re.findall(r"\w+", cell.replace("_", " ").casefold()))


def _system(words: Set[str]) -> str:
    """Whose list it is by the names of its columns; empty for one of the instructor's own."""
    names = "student" in words or {"lastname", "firstname"} <= words
    if names and "id" in words and {"sis login id", "sis user id"} & words:
        return "Canvas"
    if {"identifier", "github username"} <= words:
        return "GitHub"
    if {"identifier", "full name"} <= words:
        return "Moodle"
    if "first name" in words and {"surname", "last name"} & words:
        return "Moodle" if {"id number", "email address"} & words else ""
    return ""


@dataclass(frozen=True)
class _Own:
    """What of a list is a system's own: the system's name for a column, and the list's.

    Attributes:
        platform: whose numbers the column for external ids holds.
    """

    system: str
    platform: str
    canvas: Mapping[str, str]
    moodle: Mapping[str, str]

    @classmethod
    def of(cls, header: list[str]) -> _Own:
        by_word = {_word(cell): cell for cell in header}
        system = _system(by_word.keys())
        canvas = {new: by_word[w] for w, new in _CANVAS_IDS.items() if w in by_word}
        moodle = {new: by_word[w] for w, new in _MOODLE_IDS.items() if w in by_word}
        platform = system
        if system == "Canvas":
            canvas = {c: by_word[w] for c in _OF_CANVAS if (w := _word(c)) in by_word}
        elif system == "Moodle":
            more = {"ID number": "id number", "Username": "username"}
            moodle = {new: by_word[w] for new, w in more.items() if w in by_word} | moodle
        elif system == "" and "external id" not in by_word:
            named = next(
                (
                    w
                    for w in ("identifier", "canvas id", "canvas user id", "moodle id")
                    if w in by_word
                ),
                "",
            )
            platform = {"identifier": "other", "moodle id": "Moodle", "": ""}.get(named, "Canvas")
        return cls(system, platform, canvas, moodle)


def _row(cells: dict[str, str], columns: dict[str, str], own: _Own, line: int) -> Row | None:
    value = {column: cells.get(cell, "") for column, cell in columns.items()}
    name = value.get("name") or " ".join(
        part for part in (value.get("first", ""), value.get("last", "")) if part
    )
    given = value["id"] or value.get("external", "")
    if not given and folded(name).startswith("points possible"):
        # The second line of Canvas' export.
        return None
    if not given and not name and own.system == "Canvas":
        # The line that says which assignments are posted by hand.
        return None
    if not given:
        raise RosterError(
            f"Line {line} of the roster ({shown(name) or 'no name'}) has nothing in the column "
            f"{shown(columns['id'])}. Fill it in, or take the line out."
        )
    return Row(
        Learner(
            id=safe_id(given),
            name=shown(name or given),
            email=shown(value.get("email", "")),
            section=shown(value.get("section", "")),
            external_id=shown(value.get("external", "")),
            platform=own.platform if "external" in columns else "",
            canvas=_held(own.canvas, cells),
            moodle=_held(own.moodle, cells),
        ),
        given_id=given,
        submission=value.get("submission", "").rstrip("/"),
        github=value.get("github", "").lstrip("@"),
        line=line,
    )


def _held(columns: Mapping[str, str], cells: dict[str, str]) -> dict[str, str]:
    return {name: cells.get(cell, "") for name, cell in columns.items()}


def _refuse_doubles(rows: list[Row], name: str) -> None:
    for what, values in {
        "id": [(r.given_id, r.line) for r in rows],
        "external id": [(r.learner.external_id, r.line) for r in rows],
        "submission": [(r.submission, r.line) for r in rows],
        "GitHub username": [(r.github, r.line) for r in rows],
        **{c: [(r.learner.canvas.get(c, ""), r.line) for r in rows] for c in _CANVAS_IDS.values()},
        **{c: [(r.learner.moodle.get(c, ""), r.line) for r in rows] for c in _MOODLE_IDS.values()},
    }.items():
        lines: dict[str, list[int]] = defaultdict(list)
        for value, line in values:
            if value:
                lines[_same(value)].append(line)
        for value, where in lines.items():
            if len(where) > 1:
                raise RosterError(
                    f"{name} has the {what} {shown(value)} more than once, in lines "
                    f"{', '.join(map(str, where))}. Each learner needs one of their own: mend or "
                    f"take out all but one of these lines."
                )


def _same(text: str) -> str:
    """`text` without case and without the different ways to write an accent."""
    return shown(text, 1000).casefold()


def _handles(row: Row) -> tuple[str, ...]:
    email = row.learner.email
    return (row.given_id, row.learner.id, row.github, email, email.split("@")[0])


def _is_number(learner: Learner, name: HandInName) -> bool:
    """Whether a platform's number in the name is the learner's on that platform.

    Moodle calls its number 12345 ``Participant 12345`` in its own lists.
    """
    if learner.platform not in ("", name.platform):
        return False
    found = re.fullmatch(r"(?:\D*\s)?(\d+)", learner.external_id)
    return bool(name.external_id) and found is not None and found[1] == name.external_id


def _is_named(name: str, person: str) -> bool:
    """Whether `person` is `name` in either order, with or without spaces."""
    words, other = folded(name).split(), folded(person).split()
    if not words or not other:
        return False
    if sorted(words) == sorted(other):
        return True
    turned = (words[n:] + words[:n] for n in range(len(words)))
    return "".join(other) in {"".join(t) for t in turned}
