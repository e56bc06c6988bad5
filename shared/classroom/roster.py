"""The class list: a CSV of the instructor's, or as a learning platform exports it.

Which column is which is known by its name in the first line, in any case and order: see `COLUMNS`.
As they come are read: Canvas' gradebook export (``Student,ID,SIS Login ID,Section``), Moodle's
grading worksheet (``Identifier,Full name,Email address``) and GitHub Classroom's roster
(``identifier,github_username,github_id,name``).
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
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
            [r for r in self.rows if _is_number(r.learner.external_id, name.external_id)],
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
    found = []
    for line, cells in rows:
        if any(c for c in cells[len(header) :]):
            raise RosterError(
                f"{path.name}, line {line} has {len(cells)} cells, but the first line names "
                f"{len(header)} columns. Put quotes around cells that hold the separator."
            )
        row = _row(dict(zip(header, cells, strict=False)), columns, line)
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
    words = {
        cell: " ".join(re.findall(r"\w+", cell.replace("_", " ").casefold())) for cell in header
    }
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
    if "student" in by_word and "id" in by_word:
        # Canvas: "ID" is its own number for the learner, which its import asks for.
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


def _row(cells: dict[str, str], columns: dict[str, str], line: int) -> Row | None:
    value = {column: cells.get(cell, "") for column, cell in columns.items()}
    name = value.get("name") or " ".join(
        part for part in (value.get("first", ""), value.get("last", "")) if part
    )
    given = value["id"] or value.get("external", "")
    if not given and folded(name).startswith("points possible"):
        # The second line of Canvas' export.
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
        ),
        given_id=given,
        submission=value.get("submission", "").rstrip("/"),
        github=value.get("github", "").lstrip("@"),
        line=line,
    )


def _refuse_doubles(rows: list[Row], name: str) -> None:
    for what, values in {
        "id": [(r.given_id, r.line) for r in rows],
        "external id": [(r.learner.external_id, r.line) for r in rows],
        "submission": [(r.submission, r.line) for r in rows],
        "GitHub username": [(r.github, r.line) for r in rows],
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


def _is_number(external_id: str, number: str) -> bool:
    """Moodle calls its number 12345 ``Participant 12345`` in its own lists."""
    found = re.fullmatch(r"(?:\D*\s)?(\d+)", external_id)
    return bool(number) and found is not None and found[1] == number


def _is_named(name: str, person: str) -> bool:
    """Whether `person` is `name` in either order, with or without spaces."""
    words, other = folded(name).split(), folded(person).split()
    if not words or not other:
        return False
    if sorted(words) == sorted(other):
        return True
    turned = (words[n:] + words[:n] for n in range(len(words)))
    return "".join(other) in {"".join(t) for t in turned}
