"""Everything that comes out of grading a class, written so that nothing is lost."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from shared.classroom.exports import (
    canvas_csv,
    canvas_unmatched,
    github_classroom_json,
    gradescope_json,
    junit_xml,
    moodle_csv,
)
from shared.classroom.gradebook import gradebook
from shared.classroom.pages import class_page, learner_page
from shared.classroom.records import ClassResult
from shared.classroom.similarity import similar_pairs, similarity_csv, similarity_page
from shared.classroom.text import one_line
from shared.classroom.tracking import log_class
from shared.classroom.verdicts import Labs, known_labs, totals
from shared.errors import UserError
from shared.grading.results import write_atomically

_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
# Windows takes these for devices, whatever follows the dot.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")

_MANIFEST = "written.json"
_OF_A_LEARNER = re.compile(
    rf"feedback/{_SAFE.pattern}\.html|exports/github-classroom/{_SAFE.pattern}\.json"
    rf"|exports/gradescope/{_SAFE.pattern}/results\.json"
)

Warn = Callable[[str], None]


def print_warning(text: str) -> None:
    """Show a warning in the terminal."""
    Console(stderr=True).print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)


def write_all(
    result: ClassResult, out: Path, *, labs: Labs | None = None, warn: Warn = print_warning
) -> list[Path]:
    """Write all reports below `out`; each file is replaced in one step, the gradebook first.

    ========================================  =============================================
    gradebook.csv                             for a person
    exports/canvas.csv, exports/moodle.csv    for these platforms
    exports/gradescope/<id>/results.json      one a learner who has points, were it none
    exports/github-classroom/<id>.json        one a learner
    exports/junit.xml                         the whole class
    feedback/<id>.html                        one a learner
    class.html                                for the instructor only
    similarity.csv, similarity.html           for the instructor only
    mlflow/                                   a store with a run for each learner and lab
    written.json                              what is here of single learners
    ========================================  =============================================

    Gradescope has no way to say "no grade": who has none gets no file. Of a learner who is no
    longer of the class the files that an earlier run wrote are removed, unless somebody has
    changed them since.

    Args:
        labs: the labs as this checkout describes them; read from it unless given.
        warn: told what could not be done although the rest could: similarity and MLflow must not
            cost anybody the gradebook.

    Returns:
        The files that were written, in that order.

    Raises:
        UserError: a file cannot be written, e.g. because the disk is full. Those that were there
            before are whole.
    """
    labs = known_labs(result) if labs is None else labs
    files = file_names(learner.id for learner in result.learners)
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        path = out / name
        try:
            write_atomically(path, text)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error.strerror or error}. What was there before is "
                "whole. Make room, or choose another folder with OUT=, and run the command again."
            ) from error
        written.append(path)

    write("gradebook.csv", gradebook(result))
    write("exports/canvas.csv", canvas_csv(result))
    if unmatched := canvas_unmatched(result):
        warn(unmatched)
    text, left_out = moodle_csv(result, labs)
    write("exports/moodle.csv", text)
    if left_out:
        warn(left_out)
    of_learners: dict[str, str] = {}

    def write_for_one(name: str, text: str) -> None:
        write(name, text)
        of_learners[name] = _digest(text)

    for id_, name in files.items():
        if totals(result, id_).points is not None:
            text = gradescope_json(result, id_, labs)
            write_for_one(f"exports/gradescope/{name}/results.json", text)
        text = github_classroom_json(result, id_, labs)
        write_for_one(f"exports/github-classroom/{name}.json", text)
    write("exports/junit.xml", junit_xml(result, labs))
    pages = {}
    for learner in result.learners:
        pages[learner.id] = learner_page(result, learner, labs)
        write_for_one(f"feedback/{files[learner.id]}.html", pages[learner.id])
    links = {id_: f"feedback/{name}.html" for id_, name in files.items()}
    write("class.html", class_page(result, labs, links))
    _similarity(result, labs, write, warn)
    _tracking(result, labs, out / "mlflow", pages, written, warn)
    _forget_others(out, of_learners, warn)
    return written


def file_names(ids: Iterable[str]) -> dict[str, str]:
    """A file name for each learner's id: the id itself where that is safe and nobody else's.

    Names that differ in upper and lower case only are one file on some systems.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for id_ in ids:
        safe = _SAFE.fullmatch(id_) and not _DEVICES.fullmatch(id_) and not id_.endswith(".")
        name = id_ if safe else ""
        if not name or name.casefold() in taken:
            digest = hashlib.sha256(id_.encode("utf-8", "surrogatepass")).hexdigest()
            name = f"learner-{digest[:16]}"
        taken.add(name.casefold())
        found[id_] = name
    return found


def _forget_others(out: Path, now: Mapping[str, str], warn: Warn) -> None:
    """Remove what earlier runs wrote of learners who are not of the class now.

    Args:
        now: the files of this run, below `out`, each with its text's SHA-256.
    """
    manifest = out / _MANIFEST
    there = {name.casefold() for name in now}  # "Ann.html" and "ann.html" may be one file
    try:
        kept = dict(now)
        for name, digest in _earlier(manifest).items():
            path = out / name
            # A name of the list is trusted no further than to a file of ours, still as written.
            if name.casefold() in there or not _OF_A_LEARNER.fullmatch(name) or not path.is_file():
                continue
            if any(map(Path.is_symlink, (path, path.parent, path.parent.parent))):
                continue
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                kept[name] = digest
                warn(f"{path} is of nobody of the class any more, but was changed: it stays.")
                continue
            path.unlink()
            if path.name == "results.json":
                with suppress(OSError):
                    path.parent.rmdir()
        write_atomically(manifest, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        warn(f"Files of learners who are gone may be left in {out}: {_said(error)}.")


def _earlier(manifest: Path) -> dict[str, str]:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        return {str(name): str(digest) for name, digest in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _similarity(
    result: ClassResult, labs: Labs, write: Callable[[str, str], None], warn: Warn
) -> None:
    try:
        pairs = similar_pairs(result, labs)
        write("similarity.csv", similarity_csv(pairs))
        write("similarity.html", similarity_page(pairs, result))
    except Exception as error:
        warn(f"No similarity report: {_said(error)}. The gradebook is complete without it.")


def _tracking(
    result: ClassResult,
    labs: Labs,
    folder: Path,
    pages: dict[str, str],
    written: list[Path],
    warn: Warn,
) -> None:
    try:
        log_class(result, labs, folder, pages)
    except Exception as error:
        warn(f"Not logged to MLflow: {_said(error)}. The gradebook is complete without it.")
    else:
        written.append(folder / "mlflow.db")


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)
