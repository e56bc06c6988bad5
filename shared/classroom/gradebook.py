"""`gradebook.csv`: one line a learner, for a person with a spreadsheet.

It holds verdicts only. What differs between an unbroken run and one that was continued (times,
durations, the words in which tampering was seen) is not in it, so the two files are equal.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from shared.classroom.records import ClassResult, Learner
from shared.classroom.text import cell, one_line
from shared.classroom.verdicts import (
    by_name,
    counts,
    note_line,
    notes,
    problems,
    score,
    to_look_at,
    totals,
)

BOM = "\ufeff"
"""Tells spreadsheets that the file is UTF-8."""


def gradebook(result: ClassResult) -> str:
    """The file's text.

    A lab's cell is empty where it was not handed in or could not be graded; the column Problems
    says which. Total is empty where no lab has points. Max and Percent are of the labs that count
    for the learner (`counts`), and Percent is empty while one of them is not graded.
    """
    labs = [name for lab in result.labs for name in (f"Lab {lab}", f"Lab {lab} max")]
    header = ["Learner", "Name", "Email", "Section", *labs, "Total", "Max", "Percent"]
    header += ["Flags", "Look at", "Problems", "Notes"]
    rows = [_row(result, learner) for learner in by_name(result)]
    return BOM + table([header, *rows])


def table(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV (RFC 4180, lines end with a line feed); texts are made safe, numbers stay."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow([cell(value) if isinstance(value, str) else value for value in row])
    return out.getvalue()


def _row(result: ClassResult, learner: Learner) -> list[object]:
    row: list[object] = [learner.id, learner.name, learner.email, learner.section]
    flags = []
    for lab in result.labs:
        graded = result.of(learner.id, lab)
        points = score(graded)
        counted = counts(result, learner.id, lab)
        row += ["" if points is None else points, result.max_scores.get(lab, 0) if counted else ""]
        found = graded.flags if graded is not None else ()
        flags += sorted({f"{flag.task}: {one_line(flag.kind, 120)}" for flag in found})
    sums = totals(result, learner.id)
    percent = sums.percent
    row += ["" if sums.points is None else sums.points, sums.maximum]
    row.append("" if percent is None else round(percent, 1))
    looks = sorted({note_line(note) for note in to_look_at(result, learner.id)})
    lines = sorted({note_line(note) for note in notes(result, learner.id)})
    said = (flags, looks, problems(result, learner.id), lines)
    return [*row, *("; ".join(texts) for texts in said)]
