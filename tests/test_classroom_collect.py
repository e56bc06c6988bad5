"""Collecting submissions: every shape is found, every trick comes to nothing but a note."""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from shared.classroom.archives import open_archive
from shared.classroom.collect import collect, fingerprint
from shared.classroom.names import MAX_ID, parse, safe_id, shown, unique_ids
from shared.classroom.records import Submission
from shared.classroom.roster import RosterError, read_roster
from shared.classroom.tree import LIMITS, FileError, FolderTree, HandInError, Limits
from shared.errors import UserError
from shared.grading.lab import all_labs, load_lab
from shared.paths import ROOT
from tests.classroom_corpus import (
    Case,
    Files,
    corpus,
    honest_files,
    raw_zip,
    write_files,
    write_tar,
    write_zip,
)

DRIFT = load_lab(2)
SERVING = load_lab(1)
CASES = corpus()
LABS_HERE = cache(all_labs)


@pytest.fixture(autouse=True)
def _labs_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a small collection's time is reading `lab.toml`s."""
    monkeypatch.setattr("shared.classroom.collect.all_labs", LABS_HERE)


@pytest.fixture
def submissions(tmp_path: Path) -> Path:
    folder = tmp_path / "submissions"
    folder.mkdir()
    return folder


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "into"


def drift(mark: str = "") -> Files:
    """Lab 2's files; `mark` is a comment that tells one version of the first from another."""
    files = honest_files(DRIFT)
    files[DRIFT.tasks[0].file] += f"# {mark}\n".encode()
    return files


def below(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


def only(found: list[Submission]) -> Submission:
    assert len(found) == 1
    return found[0]


def kinds(submission: Submission) -> set[str]:
    return {note.kind for note in submission.notes}


def mark_of(submission: Submission) -> str:
    text = (submission.labs[2] / DRIFT.tasks[0].file).read_text(encoding="utf-8")
    return text.splitlines()[-1].removeprefix("# ")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else b""
        if stat.S_ISLNK(mode):
            content = os.fsencode(os.readlink(path))
        found[str(path.relative_to(folder))] = (mode, content)
    return found


# --- Shapes -----------------------------------------------------------------------------------

CLONE = below("labs/lab_2_drift/starter", drift("it")) | {
    "README.md": b"#",
    "pyproject.toml": b"",
    "tests/conftest.py": b"",
    "shared/paths.py": b"",
    "labs/lab_2_drift/solution/baseline.py": b"",
    ".git/HEAD": b"ref",
    ".venv/lib/site-packages/numpy.py": b"",
}
SHAPES: dict[str, Callable[[Path], object]] = {
    "a clone": lambda s: write_files(s / "ada", CLONE),
    "a zip of a clone, as GitHub makes it": lambda s: write_zip(
        s / "ada.zip", below("mlops-labs-main", CLONE)
    ),
    "a tar": lambda s: write_tar(s / "ada.tar", CLONE, mode="w"),
    "a tar.gz": lambda s: write_tar(s / "ada.tar.gz", CLONE),
    "a tgz in a folder in a folder": lambda s: write_tar(s / "ada.tgz", below("x/y", CLONE)),
    "a tar.bz2": lambda s: write_tar(s / "ada.tar.bz2", CLONE, mode="w:bz2"),
    "a tar.xz": lambda s: write_tar(s / "ada.tar.xz", CLONE, mode="w:xz"),
    "a tar.gz that is called a zip": lambda s: write_tar(s / "ada.zip", CLONE),
    "a folder of lab folders": lambda s: write_files(s / "ada", below("lab_2_drift", drift("it"))),
    "a lab's folder with a starter": lambda s: write_files(
        s / "ada" / "lab_2_drift", below("starter", drift("it"))
    ),
    "a lab's folder with a name of one's own": lambda s: write_files(
        s / "ada" / "my stuff" / "Lab 2", drift("it")
    ),
    "only the files": lambda s: write_files(s / "ada", drift("it")),
    "only a starter folder": lambda s: write_files(s / "ada" / "starter", drift("it")),
    "a zip of only the files": lambda s: write_zip(s / "ada.zip", drift("it")),
    "a zip with the separators of Windows": lambda s: write_zip(
        s / "ada.zip",
        {n.replace("/", "\\"): c for n, c in below("lab_2_drift", drift("it")).items()},
    ),
    "a zip of a Mac": lambda s: write_zip(
        s / "ada.zip",
        below("w", drift("it"))
        | below("__MACOSX/w", {"._baseline.py": b"\0"})
        | {".DS_Store": b""},
    ),
    "zips in a folder": lambda s: [
        write_zip(write_files(s / "ada", {}) / "work.zip", below("lab_2", drift("it")))
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hand_in_of_every_shape_is_found(shape: str, submissions: Path, into: Path) -> None:
    SHAPES[shape](submissions)
    found = only(collect(submissions, into))
    assert (found.learner.id, found.learner.name, found.problem) == ("ada", "ada", "")
    assert found.labs == {2: into / "ada" / "lab_2"}
    assert {p.name: p.read_bytes() for p in found.labs[2].iterdir()} == drift("it")
    assert found.notes == ()


def test_a_zip64_and_names_in_the_old_code_page_are_read(submissions: Path, into: Path) -> None:
    with zipfile.ZipFile(submissions / "ada.zip", "w") as archive:
        for name, content in drift("it").items():
            with archive.open(f"lab_2/{name}", "w", force_zip64=True) as member:
                member.write(content)
    old = [("caf\u00e9/readme".encode("cp437"), b"", 0, 0)]
    old += [(f"lab_2/{n}".encode(), c, len(c), 0) for n, c in drift("it").items()]
    (submissions / "bob.zip").write_bytes(raw_zip(old))
    assert [mark_of(s) for s in collect(submissions, into)] == ["it", "it"]


def test_platforms_names_are_taken_apart(submissions: Path, into: Path) -> None:
    write_zip(submissions / "doejane_12345_67890_lab3.zip", below("lab_2", drift("canvas")))
    write_zip(submissions / "roejim_LATE_23456_67891_my_work-1.zip", drift("late"))
    write_zip(
        write_files(submissions / "Ann Poe_345_assignsubmission_file_", {}) / "lab.zip",
        drift("moodle"),
    )
    write_zip(submissions / "Cy Orr_346_assignsubmission_file_lab 2.zip", drift("flat"))
    found = collect(submissions, into)
    assert [(s.learner.id, s.learner.name, s.learner.external_id, mark_of(s)) for s in found] == [
        ("Ann-Poe", "Ann Poe", "345", "moodle"),
        ("Cy-Orr", "Cy Orr", "346", "flat"),
        ("doejane", "doejane", "12345", "canvas"),
        ("roejim", "roejim", "23456", "late"),
    ]


def test_the_last_of_several_hand_ins_counts_lab_by_lab(submissions: Path, into: Path) -> None:
    for name, mark in (("-10", "last"), ("", "first"), ("-2", "second")):
        write_zip(submissions / f"doejane_12345_67890_lab2{name}.zip", drift(mark))
    serving = below("lab_1", honest_files(SERVING))
    write_zip(submissions / "doejane_12345_67880_lab1.zip", serving)
    found = only(collect(submissions, into))
    assert set(found.labs) == {1, 2}
    assert mark_of(found) == "last"
    assert kinds(found) == {"handed in again"}
    assert "lab2-10.zip" in found.notes[0].text


def test_a_late_hand_in_counts_and_is_noted_for_the_labs_that_come_from_it(
    submissions: Path, into: Path
) -> None:
    write_zip(submissions / "doejane_12345_67890_lab2.zip", drift("on time"))
    write_zip(submissions / "doejane_LATE_12345_67899_lab2-1.zip", drift("late"))
    write_zip(submissions / "doejane_12345_67880_lab1.zip", below("lab_1", honest_files(SERVING)))
    found = only(collect(submissions, into))
    assert mark_of(found) == "late"
    notes = {note.kind: note for note in found.notes}
    assert notes.keys() == {"late", "handed in again"}
    assert (notes["late"].lab, "lab2-1.zip" in notes["late"].text) == (2, True)
    (submissions / "doejane_LATE_12345_67899_lab2-1.zip").write_bytes(b"PK\x03\x04 broken")
    assert "late" not in kinds(only(collect(submissions, into)))


def test_a_late_single_file_is_noted(submissions: Path, into: Path) -> None:
    for number, (name, content) in enumerate(drift("it").items()):
        late = "LATE_" if number == 1 else ""
        (submissions / f"doejane_{late}12345_{67890 + number}_{name}").write_bytes(content)
    assert kinds(only(collect(submissions, into))) == {"late"}


@pytest.mark.parametrize("named", ["doejane_12345_67890_lab2.zip", "doejane_12345_67890_lab2"])
def test_the_roster_s_column_submission_chooses_between_hand_ins(
    named: str, tmp_path: Path, submissions: Path, into: Path
) -> None:
    write_zip(submissions / "doejane_12345_67890_lab2.zip", drift("on time"))
    write_zip(submissions / "doejane_LATE_12345_67899_lab2-1.zip", drift("late"))
    path = roster(tmp_path, f"id,name,submission\njdoe,Jane Doe,{named}\n")
    found = only(collect(submissions, into, roster=path))
    assert (mark_of(found), kinds(found)) == ("on time", {"not chosen"})
    assert found.source == "doejane_12345_67890_lab2.zip"
    assert "LATE" in found.notes[0].text


def test_where_the_last_hand_in_is_broken_the_one_before_counts(
    submissions: Path, into: Path
) -> None:
    write_zip(submissions / "doejane_12345_67890_lab2.zip", drift("first"))
    (submissions / "doejane_12345_67891_lab2-1.zip").write_bytes(b"PK\x03\x04 broken")
    found = only(collect(submissions, into))
    assert (mark_of(found), found.problem) == ("first", "")
    assert kinds(found) == {"unreadable hand-in"}


def test_single_files_from_a_platform_are_put_together(submissions: Path, into: Path) -> None:
    for number, (name, content) in enumerate(drift("first").items()):
        (submissions / f"doejane_12345_{67890 + number}_{name}").write_bytes(content)
    again = submissions / f"doejane_12345_68000_{DRIFT.tasks[0].stem}-1.py"
    again.write_bytes(drift("again")[DRIFT.tasks[0].file])
    found = only(collect(submissions, into))
    assert mark_of(found) == "again"
    assert len(list(found.labs[2].iterdir())) == len(drift())


def test_a_folder_and_an_archive_of_one_name_are_one_learner_s(
    submissions: Path, into: Path
) -> None:
    write_zip(submissions / "ada.zip", drift("packed"))
    write_files(submissions / "ada", drift("unpacked"))
    found = only(collect(submissions, into))
    assert (mark_of(found), kinds(found)) == ("unpacked", {"handed in again"})


def test_learners_numbered_by_dashes_stay_apart(submissions: Path, into: Path) -> None:
    write_files(submissions / "team-1", drift("1"))
    write_files(submissions / "team-2", drift("2"))
    assert [s.learner.id for s in collect(submissions, into)] == ["team-1", "team-2"]


def test_of_several_copies_of_a_lab_the_one_where_learners_work_is_taken(
    submissions: Path, into: Path
) -> None:
    folder = write_files(submissions / "ada", below("a/lab_2_drift", drift("copy")))
    write_files(folder / "z" / "labs" / "lab_2_drift" / "starter", drift("work"))
    found = only(collect(submissions, into))
    assert mark_of(found) == "work"
    assert "several copies" in kinds(found)


def test_what_a_learner_s_edition_brings_of_its_own_is_no_news(
    submissions: Path, into: Path
) -> None:
    """Each clone of it holds the starters as they were, changed ones too."""
    starters = below("labs/lab_2_drift/pristine", drift("pristine") | {"gateway.py": b"#"})
    own = {"shared/edition.json": b"{}", "tests/test_edition.py": b"#"}
    write_files(submissions / "ada", CLONE | starters | own)
    write_zip(submissions / "bob.zip", below("starter", drift("it")) | below("pristine", drift()))
    write_files(submissions / "cy", below("lab_2_drift/pristine", drift("pristine")))
    write_files(submissions / "di", below("pristine", drift("it")))
    ada, bob, cy, di = collect(submissions, into)
    assert (mark_of(ada), mark_of(bob), ada.notes, bob.notes) == ("it", "it", (), ())
    assert "No task file" in cy.problem
    assert mark_of(di) == "it"


def test_a_file_of_two_labs_is_placed_by_a_number_or_left_out(
    submissions: Path, into: Path
) -> None:
    gate = {"release_gate.py": b"# gate\n"}
    write_zip(submissions / "ada_12345_67890_lab3.zip", gate)
    write_files(submissions / "bob", gate)
    by_id = {s.learner.id: s for s in collect(submissions, into)}
    assert set(by_id["ada"].labs) == {3}
    assert by_id["bob"].problem
    assert kinds(by_id["bob"]) >= {"which lab"}
    one = {s.learner.id: s for s in collect(submissions, into, labs=[1])}
    assert set(one["bob"].labs) == {1}


def test_only_the_wanted_labs_are_taken_and_an_unknown_one_is_refused(
    submissions: Path, into: Path
) -> None:
    write_files(submissions / "ada" / "lab_2", drift())
    write_files(submissions / "ada" / "lab_1", honest_files(SERVING))
    write_files(submissions / "ada" / "lab_77_x", {"a.py": b""})
    found = only(collect(submissions, into, labs=[1]))
    assert set(found.labs) == {1}
    assert "unknown lab" in kinds(found)
    with pytest.raises(UserError, match="no lab 99"):
        collect(submissions, into, labs=[99])


def test_given_files_are_this_checkout_s_own(submissions: Path, into: Path) -> None:
    files = honest_files(SERVING)
    given = files["records.py"]
    write_files(submissions / "changed", files | {"records.py": b"raise SystemExit\n"})
    write_files(submissions / "missing", {n: c for n, c in files.items() if n != "records.py"})
    changed, missing = collect(submissions, into)
    assert (changed.labs[1] / "records.py").read_bytes() == given
    assert (missing.labs[1] / "records.py").read_bytes() == given
    assert kinds(changed) == {"given file"}
    assert not missing.notes


def test_a_task_file_in_another_spelling_is_taken_for_it(submissions: Path, into: Path) -> None:
    files = drift("it")
    first = DRIFT.tasks[0].file
    files[first.capitalize()] = files.pop(first)
    write_files(submissions / "ada", files)
    found = only(collect(submissions, into))
    assert (mark_of(found), kinds(found)) == ("it", {"other spelling"})


# --- Tricks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_what_is_broken_or_hostile_comes_to_nothing_but_a_note(case: Case, tmp_path: Path) -> None:
    submissions, into = tmp_path / "submissions", tmp_path / "into"
    neighbour = write_files(submissions / "neighbour" / "lab_2_drift" / "starter", drift("honest"))
    case.build(submissions)
    before = snapshot(submissions)
    found = {s.learner.id: s for s in collect(submissions, into, labs=[2])}
    assert snapshot(submissions) == before
    assert {p.name for p in tmp_path.iterdir()} == {"submissions", "into"}
    assert not Path("/tmp/escaped.py").exists()

    assert len(found) == 2
    assert {p.name: p.read_bytes() for p in found["neighbour"].labs[2].iterdir()} == {
        p.name: p.read_bytes() for p in neighbour.iterdir()
    }
    (one,) = (s for s in found.values() if s.learner.id != "neighbour")
    assert kinds(one) == case.notes
    assert len(one.notes) <= 40
    assert all(len(n.text) < 700 and n.text.isprintable() for n in one.notes)
    assert bool(one.problem) == bool(case.problem)
    assert case.problem in one.problem
    assert set(one.labs) == ({2} if case.statuses else set())
    if case.statuses:
        honest = honest_files(DRIFT)
        first = DRIFT.tasks[0].file
        taken = {p.name: p for p in one.labs[2].iterdir()}
        assert set(taken) | {first} == set(honest) | case.helpers
        assert all(taken[n].read_bytes() == c for n, c in honest.items() if n != first)
    for path in into.rglob("*"):
        status = path.lstat()
        assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
        assert path.is_dir() or (path.suffix == ".py" and status.st_size <= LIMITS.file_bytes)

    written = snapshot(into)
    assert list(collect(submissions, into, labs=[2])) == list(found.values())
    assert snapshot(into) == written


def test_the_corpus_is_large_and_its_names_differ() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 25


def test_sockets_are_left_out(
    submissions: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(submissions / "ada", drift("it"))
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("talk.py")
        assert kinds(only(collect(submissions, into))) == {"socket"}


def test_a_folder_without_end_is_given_up_and_others_are_not(submissions: Path, into: Path) -> None:
    write_files(submissions / "ada", drift("it"))
    write_files(submissions / "eve", drift("it") | {f"{n}.txt": b"" for n in range(60)})
    found = collect(submissions, into, limits=Limits(entries=50))
    assert [bool(s.problem) for s in found] == [False, True]


def test_a_tar_of_too_many_or_too_much_is_given_up(submissions: Path, into: Path) -> None:
    write_tar(submissions / "many.tar.gz", {f"{n}.txt": b"" for n in range(60)})
    write_tar(submissions / "much.tar", {"a.txt": bytes(100_000)}, mode="w")
    many, much = collect(submissions, into, limits=Limits(entries=50, unpacked_bytes=90_000))
    assert "more than 50 files" in many.problem
    assert "more than 90,000 bytes" in much.problem


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_packed_tar_that_is_cut_anywhere_is_refused(suffix: str, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole", drift("it"), mode=f"w:{suffix}").read_bytes()
    path = tmp_path / f"cut.tar.{suffix}"
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(HandInError, match="cut off"):
            open_archive(os.open(path, os.O_RDONLY), path.name)


def test_a_plain_tar_that_is_cut_between_two_files_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.py": b"1", "b.py": b"2"}, mode="w")
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(HandInError, match="the end is missing"):
        open_archive(os.open(path, os.O_RDONLY), path.name)


def test_rubbish_never_breaks_the_reading_of_archives(tmp_path: Path) -> None:
    chance = random.Random(7)
    zipped = write_zip(tmp_path / "a.zip", drift("it")).read_bytes()
    tarred = write_tar(
        tmp_path / "a.tar", {"a.py": b"1" * 600, "b.py": b"2"}, mode="w"
    ).read_bytes()
    path = tmp_path / "rubbish"
    for whole in [zipped] * 60 + [tarred] * 60 + [gzip.compress(tarred)] * 30:
        content = bytearray(whole)
        for _ in range(chance.randint(1, 12)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            tree = open_archive(os.open(path, os.O_RDONLY), "a.zip")
        except HandInError:
            continue
        files = [e for e in tree.entries if e.kind == "file" and e.size < 2**20]
        try:
            assert all(isinstance(c, bytes | FileError) for _, c in tree.read(files, 2**20))
        except HandInError:
            pass
        finally:
            tree.close()


def test_unusual_ways_of_packing_are_refused_in_words(submissions: Path, into: Path) -> None:
    with zipfile.ZipFile(submissions / "ada.zip", "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in drift().items():
            archive.writestr(name, content)
    (submissions / "bob.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(50))
    (submissions / "cy.zip").write_bytes(b"no archive at all")
    ada, bob, cy = collect(submissions, into)
    assert "unusual way (method 12)" in ada.problem
    assert "a 7-Zip archive" in bob.problem
    assert "damaged" in cy.problem


def test_a_tar_of_endless_attributes_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def header(kind: bytes, content: bytes) -> bytes:
        member = tarfile.TarInfo("h")
        member.size, member.type = len(content), kind
        return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)

    monkeypatch.setattr("shared.classroom.archives.ATTRIBUTES_BYTES", 2**19)
    large = header(b"x", b"".join(b"13 k%06d=v\n" % n for n in range(2_000)))
    small = header(b"g", b"9 a=bcde\n") * 15
    path = tmp_path / "a.tar"
    for before in (large, small):
        path.write_bytes((before + header(b"0", b"")) * 30)
        with pytest.raises(HandInError, match="names and attributes"):
            open_archive(os.open(path, os.O_RDONLY), path.name, Limits(entries=50))


def test_sparse_files_in_a_tar_are_left_out(submissions: Path, into: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in drift("it").items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        sparse = tarfile.TarInfo("huge.py")
        sparse.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0"}
        archive.addfile(sparse)
    (submissions / "ada.tar").write_bytes(buffer.getvalue())
    found = only(collect(submissions, into))
    assert (mark_of(found), kinds(found)) == ("it", {"special file"})


# --- Files that change while they are read --------------------------------------------------------


def test_what_is_swapped_after_it_was_listed_leads_nowhere(tmp_path: Path) -> None:
    secret = write_files(tmp_path / "secret", {"a.py": b"secret", "b.py": b"secret"})
    folder = write_files(
        tmp_path / "ada", dict.fromkeys(("a.py", "d/b.py", "p.py", "x.py"), b"own")
    )
    tree = FolderTree(str(folder))
    (folder / "a.py").unlink()
    (folder / "a.py").symlink_to(secret / "a.py")
    shutil.rmtree(folder / "d")
    (folder / "d").symlink_to(secret)
    (folder / "p.py").unlink()
    os.mkfifo(folder / "p.py")
    (folder / "x.py").unlink()
    files = [e for e in tree.entries if e.kind == "file"]
    read = {"/".join(e.parts): content for e, content in tree.read(files, 100)}
    tree.close()
    assert len(read) == 4
    said = {name: c.kind if isinstance(c, FileError) else c for name, c in read.items()}
    assert said == {
        "a.py": "symbolic link",
        "d/b.py": "unreadable",
        "p.py": "FIFO",
        "x.py": "unreadable",
    }


def test_a_file_that_grew_over_the_limit_is_left_out(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "ada", {"a.py": b"1"})
    tree = FolderTree(str(folder))
    (folder / "a.py").write_bytes(b"1" * 200)
    ((_, content),) = tree.read(tree.entries, 100)
    tree.close()
    assert isinstance(content, FileError)
    assert content.kind == "too large"


def test_the_whole_folder_may_vanish(submissions: Path, into: Path) -> None:
    write_files(submissions / "ada", drift("it"))
    tree = FolderTree(str(submissions / "ada"))
    shutil.rmtree(submissions / "ada")
    assert all(isinstance(c, FileError) for _, c in tree.read(tree.entries, 100))
    tree.close()


# --- Names and ids --------------------------------------------------------------------------------


def test_ids_are_safe_whatever_the_name() -> None:
    chance = random.Random(3)
    alphabet = "aZ9.-_/\\ \0\n:*?\"<>|'%=+@äßøİıł李雷\u202e\u0301\ufeff😀\ud800\U000e0041"
    names = ["", ".", "..", "-rf", "con", "NUL.txt", "com1", "../../etc", "=1+1"]
    names += ["a" * 300, "é" * 200]
    names += ["".join(chance.choices(alphabet, k=chance.randint(1, 120))) for _ in range(300)]
    for name in names:
        found = safe_id(name)
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", found), (name, found)
        assert len(found) <= MAX_ID
        assert not found.endswith((".", "-"))
        assert found.split(".")[0].lower() not in {"con", "nul", "com1"}
        assert shown(name).isprintable()
        shown(name).encode("utf-8")
    ids = unique_ids((n, n, False) for n in set(names)).values()
    assert len({i.casefold() for i in ids}) == len(set(names))


def test_names_are_made_plain() -> None:
    assert [safe_id(n) for n in ("Ünal Çelik", "Straße", "Łódź", "O'Neil, Ann")] == [
        "Unal-Celik",
        "Strasse",
        "Lodz",
        "O-Neil-Ann",
    ]


def test_ids_do_not_depend_on_who_else_is_there_or_on_the_order() -> None:
    both = unique_ids([("a", "Ünal", False), ("b", "Unal", False), ("c", "ada", False)])
    turned = unique_ids([("c", "ada", False), ("b", "Unal", False), ("a", "Ünal", False)])
    assert both == turned
    assert both["c"] == "ada"
    assert all(re.fullmatch(r"Unal-[0-9a-f]{6}", both[k]) for k in "ab")
    assert both["a"] != both["b"]
    roster = unique_ids([("a", "Ünal", False), ("b", "Unal", True)])
    assert roster["b"] == "Unal"
    assert roster["a"] == both["a"]


whole_names = pytest.mark.skipif(
    sys.platform == "darwin", reason="this system's folders cannot hold such names side by side"
)


@whole_names
def test_learners_whose_names_differ_in_case_or_accent_only_are_kept_apart(
    submissions: Path, into: Path
) -> None:
    for name in ("Ada", "ada", "Ünal", "Unal"):
        write_zip(submissions / f"{name}.zip", drift(name))
    found = collect(submissions, into)
    assert {s.learner.name: mark_of(s) for s in found} == {
        n: n for n in ("Ada", "ada", "Ünal", "Unal")
    }
    assert len({s.learner.id.casefold() for s in found}) == 4


def test_names_of_other_systems_and_of_attackers_are_read_without_harm() -> None:
    assert parse("doejane_late_12345_67890_a_b-3.tar.gz").file == "a_b.tar.gz"
    assert parse("doejane_late_12345_67890_a_b-3.tar.gz").order == (3, 67890)
    assert parse("alice_2_final.zip").person == "alice_2_final"
    assert parse("J. de_la Cruz_99_assignsubmission_onlinetext_").person == "J. de_la Cruz"
    assert parse(".zip").person == ".zip"


@whole_names
def test_a_name_that_is_no_text_is_shown_and_kept(submissions: Path, into: Path) -> None:
    name = os.fsencode(submissions) + b"/caf\xe9"
    os.mkdir(name)
    write_files(Path(os.fsdecode(name)), drift("it"))
    found = only(collect(submissions, into))
    assert mark_of(found) == "it"
    found.model_dump_json()


# --- Roster ---------------------------------------------------------------------------------------


def roster(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "class.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_roster_names_learners_and_who_is_missing(
    tmp_path: Path, submissions: Path, into: Path
) -> None:
    for name in ("team-7", "lab-mary-ann", "s3", "poejim", "Lee Kim", "guest"):
        write_files(submissions / name, drift(name))
    path = roster(
        tmp_path,
        "\ufeffName;ID;E-Mail;Section;Submission;GitHub Username\r\n"
        "Zoe Ray;s1;zoe@x.test;A;team-7;\r\n"
        "Mary Ann;s2;;A;;Mary-Ann\r\n"
        "Ann;s9;;B;;ann\r\n"
        "Bo;s3;;B;;\r\n"
        '"Poe; Jim";s4;;B;;\r\n'
        "Kim Lee;s5;;B;;\r\n"
        "Gone;s6;;B;lost.zip;\r\n",
    )
    found = {s.learner.name: s for s in collect(submissions, into, roster=path)}
    assert {n: (s.learner.id, mark_of(s) if s.labs else "") for n, s in found.items()} == {
        "Zoe Ray": ("s1", "team-7"),
        "Mary Ann": ("s2", "lab-mary-ann"),
        "Ann": ("s9", ""),
        "Bo": ("s3", "s3"),
        "Poe; Jim": ("s4", "poejim"),
        "Kim Lee": ("s5", "Lee Kim"),
        "Gone": ("s6", ""),
        "guest": ("guest", "guest"),
    }
    assert list(found)[-1] == "guest"
    assert kinds(found["guest"]) == {"not in the roster"}
    assert found["Ann"].problem == "Nothing was handed in."
    assert "lost.zip" in found["Gone"].problem
    assert (found["Zoe Ray"].learner.email, found["Zoe Ray"].learner.section) == ("zoe@x.test", "A")


def test_a_hand_in_that_fits_two_of_the_roster_is_given_to_neither(
    tmp_path: Path, submissions: Path, into: Path
) -> None:
    write_files(submissions / "Kim Lee", drift("it"))
    path = roster(tmp_path, "id,name\n1,Kim Lee\n2,Lee Kim\n")
    one, two, neither = collect(submissions, into, roster=path)
    assert one.problem
    assert two.problem
    assert mark_of(neither) == "it"
    assert "Kim Lee (1), Lee Kim (2)" in neither.notes[0].text


def test_a_file_named_after_somebody_does_not_replace_what_they_handed_in(
    tmp_path: Path, submissions: Path, into: Path
) -> None:
    write_zip(submissions / "s1.zip", drift("own"))
    write_zip(submissions / "z-ada.zip", drift("foreign"))
    path = roster(tmp_path, "id,name,github\ns1,Ada,ada\n")
    ada, other = collect(submissions, into, roster=path)
    assert (mark_of(ada), mark_of(other)) == ("own", "foreign")
    assert kinds(other) == {"not in the roster"}
    assert "may be that of Ada (s1)" in other.notes[0].text


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (
            "Student,ID,SIS User ID,SIS Login ID,Section,Lab 2 (123)\n"
            "    Points Possible,,,,,10\n"
            '"Doe, Jane",12345,900,jdoe,Group A,\n',
            "doejane_12345_67890_x.zip",
            ("jdoe", "Doe, Jane", "12345", "Group A"),
        ),
        (
            "Identifier,Full name,Email address,Status,Grade\n"
            "Participant 12345,Jane Doe,jane@x.test,Submitted,\n",
            "Anybody_12345_assignsubmission_file_x.zip",
            ("Participant-12345", "Jane Doe", "Participant 12345", ""),
        ),
        (
            "identifier,github_username,github_id,name\njdoe,Jane-D,77,Jane Doe\n",
            "drift-lab-jane-d.zip",
            ("jdoe", "Jane Doe", "jdoe", ""),
        ),
        (
            "First name\tSurname\tID number\nJane\tDoe\t0042\n",
            "doejane_12345_67890_x.zip",
            ("0042", "Jane Doe", "", ""),
        ),
    ],
)
def test_the_lists_of_platforms_are_read_as_they_come(
    text: str, name: str, expected: tuple[str, ...], tmp_path: Path, submissions: Path, into: Path
) -> None:
    write_zip(submissions / name, drift("it"))
    found = only(collect(submissions, into, roster=roster(tmp_path, text)))
    learner = found.learner
    assert (learner.id, learner.name, learner.external_id, learner.section) == expected
    assert mark_of(found) == "it"
    assert not found.notes


def test_a_number_in_a_name_is_an_id_of_its_own_system_only(
    tmp_path: Path, submissions: Path, into: Path
) -> None:
    write_zip(submissions / "müllerzoë_LATE_4242_998877_lab2.zip", drift("it"))
    canvas = only(collect(submissions, into)).learner
    assert (canvas.canvas, canvas.moodle) == ({"ID": "4242"}, {})
    # A list of one's own neither changes that nor gives it to anybody else.
    own = roster(tmp_path, "id,name,identifier\nzoe,Müller Zoë,77\nben,Ben,4242\n")
    zoe, ben = (s.learner for s in collect(submissions, into, roster=own))
    assert (zoe.canvas, ben.canvas) == ({"ID": "4242"}, {})
    # Beside other names, one that looks like Canvas's may be a team, a version and a year.
    write_zip(submissions / "Ann Poe_345_assignsubmission_file_lab2.zip", drift("it"))
    found = [s.learner for s in collect(submissions, into)]
    assert [(one.canvas, one.moodle) for one in found] == [({}, {}), ({}, {})]


@pytest.mark.parametrize(
    ("text", "canvas", "moodle"),
    [
        ("Student,ID,Email\nJane,12345,j@x.test\n", {}, {}),
        ("id,name,external id\njane,Jane,12345\n", {}, {}),
        (
            "id,canvas id,sis login id,moodle username\njane,12345,jd,jdoe\n",
            {"ID": "12345", "SIS Login ID": "jd"},
            {"Username": "jdoe"},
        ),
        (
            "First name,Last name,ID number,Email address\nJane,Doe,0042,j@x.test\n",
            {},
            {"ID number": "0042"},
        ),
        ("identifier,github_username,github_id,name\n12345,jd,7,Jane\n", {}, {}),
    ],
)
def test_a_system_s_ids_are_read_from_its_own_columns_only(
    text: str, canvas: dict[str, str], moodle: dict[str, str], tmp_path: Path
) -> None:
    (row,) = read_roster(roster(tmp_path, text)).rows
    assert (row.learner.canvas, row.learner.moodle) == (canvas, moodle)


def test_a_number_of_one_platform_finds_nobody_by_that_of_another(tmp_path: Path) -> None:
    moodle = "Identifier,Full name,Email address\nParticipant 12345,Jane Doe,j@x.test\n"
    people = read_roster(roster(tmp_path, moodle))
    assert people.find(parse("roejim_12345_67890_x.zip"))[1] == []
    assert len(people.find(parse("J_12345_assignsubmission_file_x.zip"))[1]) == 1


def test_a_roster_in_utf_16_is_read(tmp_path: Path) -> None:
    path = roster(tmp_path, "id,name\n1,Zoë\n".encode("utf-16"))
    assert [r.learner.name for r in read_roster(path).rows] == ["Zoë"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "names no column that is known"),
        (b"1,Jane Doe\n2,Jim Roe\n", "names no column that is known: 1, Jane Doe"),
        (b"name,section\nJane,A\n", "no column that tells learners apart"),
        (b"id,name\n", "names no learner"),
        (b"id,name\n7,Jane\n8,Jim\nS,X\n7,Joe\n", "the id 7 more than once, in lines 2, 5"),
        (b"id,name\nab,Jane\nAB,Jim\n", "more than once"),
        (b"id,id,name\n1,2,Jane\n", "two columns named id"),
        (b"id,name\n,Jane\n", "Line 2 of the roster .Jane. has nothing in the column id"),
        (b"id,name\n1,Doe, Jane\n", "line 2 has 3 cells"),
        (b"id,canvas id\n1,42\n2,42\n", "has the (external id|ID) 42 more than once"),
        (b"id,moodle username\n1,jd\n2,JD\n", "the Username (jd|JD) more than once"),
        (b"id,submission\n1,a.zip\n2,A.zip\n", "the submission [aA].zip more than once"),
        ("id,name\n1,Zoë\n".encode("latin-1"), 'line 2 is not in UTF-8.*"CSV UTF-8"'),
        (b"id,name\n1,\0\n", "zero bytes"),
        (b'id,name\n1,"Jane\n', "is broken near line"),
        (b"id,name\n" + b"x" * 6_000_000, "no class list"),
    ],
)
def test_a_roster_that_cannot_be_used_says_what_to_do_and_nothing_is_touched(
    content: bytes, says: str, tmp_path: Path, submissions: Path, into: Path
) -> None:
    write_files(submissions / "ada", drift("it"))
    with pytest.raises(RosterError, match=says) as caught:
        collect(submissions, into, roster=roster(tmp_path, content))
    assert str(tmp_path / "class.csv") not in str(caught.value)
    assert not into.exists()


def test_the_guide_s_commands_read_a_roster_of_excel(tmp_path: Path) -> None:
    guide = (ROOT / "shared" / "classroom" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^   \.venv/bin/python (-c '.*?') \.\./roster\.csv", guide, re.S | re.M)
    example = re.search(r"^```\n(id,name,.*?)^```", guide, re.S | re.M)
    assert found is not None
    assert example is not None
    path = roster(tmp_path, f"\ufeff{example[1]}".replace(",", ";").replace("\n", "\r\n"))
    command = f"{sys.executable} {found[1]} {path}".replace("\n   ", "\n")
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["ada-l", "benokri"]
    assert [row.submission for row in read_roster(path).rows] == ["", "ben_second_try.zip"]


def test_the_guide_s_columns_are_known(tmp_path: Path) -> None:
    guide = (ROOT / "shared" / "classroom" / "README.md").read_text(encoding="utf-8")
    table = guide.partition("| column | meaning |")[2].partition("\n\n")[0]
    names = re.findall(r"`([a-z_ ]+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M)))
    assert len(names) >= 13
    for name in names:
        (row,) = read_roster(
            roster(tmp_path, f"id,{name}\nx,7\n" if name != "id" else "id\n7\n")
        ).rows
        assert "7" in f"{row}", name


def test_a_roster_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RosterError, match=r"gone.csv cannot be read.*path of a CSV"):
        read_roster(tmp_path / "gone.csv")


def test_a_roster_among_the_submissions_is_no_learner(submissions: Path, into: Path) -> None:
    write_files(submissions / "ada", drift("it"))
    path = roster(submissions, "id,name\nada,Ada\n")
    assert only(collect(submissions, into, roster=path)).learner.name == "Ada"


# --- Folders --------------------------------------------------------------------------------------


def test_folders_that_cannot_be_meant_are_refused(tmp_path: Path, submissions: Path) -> None:
    into = tmp_path / "into"
    with pytest.raises(UserError, match="nothing in"):
        collect(submissions, into)
    with pytest.raises(UserError, match="cannot be read"):
        collect(tmp_path / "gone", into)
    with pytest.raises(UserError, match="looks like one learner's"):
        collect(ROOT, into)
    write_files(submissions / "lab_2_drift", drift())
    with pytest.raises(UserError, match="looks like one learner's"):
        collect(submissions, into)
    with pytest.raises(UserError, match="inside of each other"):
        collect(submissions, submissions / "out")
    with pytest.raises(UserError, match="inside of each other"):
        collect(submissions, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        collect(write_zip(tmp_path / "all.zip", {"a": b""}), into)
    assert not into.exists()


def test_a_folder_that_is_not_ours_is_never_replaced(submissions: Path, into: Path) -> None:
    write_files(submissions / "ada", drift("it"))
    kept = write_files(into / "ada", {"thesis.txt": b"years of work"})
    with pytest.raises(UserError, match="is in the way"):
        collect(submissions, into)
    assert (kept / "thesis.txt").read_bytes() == b"years of work"
    assert [p.name for p in into.iterdir()] == ["ada"]


def test_where_nothing_can_be_written_the_message_says_so(
    tmp_path: Path, submissions: Path
) -> None:
    write_files(submissions / "ada", drift("it"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        collect(submissions, tmp_path / "file" / "into")


def test_a_changed_hand_in_replaces_the_old_one_and_an_unchanged_one_is_left(
    submissions: Path, into: Path
) -> None:
    write_files(submissions / "ada", drift("old"))
    write_files(submissions / "bob", drift("same"))
    ada, bob = collect(submissions, into)
    before = fingerprint(ada.labs[2]), (into / "bob").stat().st_ino
    write_files(submissions / "ada", drift("new"))
    shutil.rmtree(submissions / "ada" / "lab_1", ignore_errors=True)
    ada, _ = collect(submissions, into)
    assert mark_of(ada) == "new"
    assert fingerprint(ada.labs[2]) != before[0]
    assert (into / "bob").stat().st_ino == before[1]
    shutil.rmtree(submissions / "bob")
    write_files(submissions / "bob", {})
    collect(submissions, into)
    assert not (into / "bob").exists()
    assert bob.labs


def test_a_fingerprint_is_of_names_and_contents_only(tmp_path: Path) -> None:
    files = {"a.py": b"1", "d/b.py": b"2"}
    first = write_files(tmp_path / "first", files)
    second = write_files(tmp_path / "second", dict(reversed(files.items())))
    os.utime(second / "a.py", (1, 1))
    assert fingerprint(first) == fingerprint(second)
    assert len(fingerprint(first)) == 64
    for other in ({"a.py": b"2", "d/b.py": b"2"}, {"a.py": b"1", "d/c.py": b"2"}, {"a.py": b"1"}):
        changed = write_files(tmp_path / str(len(list(tmp_path.iterdir()))), other)
        assert fingerprint(changed) != fingerprint(first)


def test_after_a_kill_at_any_moment_the_next_run_gives_the_same(
    tmp_path: Path, submissions: Path, into: Path
) -> None:
    """A process collects one of two versions after the other until it is killed in the middle."""
    other = tmp_path / "other"
    for name in ("ada", "bob", "cy"):
        write_files(submissions / name, drift("one"))
        write_files(other / name, drift("two") | {"helper.py": b"X = 1\n"})
    collect(submissions, tmp_path / "fresh")
    unbroken = fingerprint(tmp_path / "fresh")
    loop = (
        "import sys; from pathlib import Path; from shared.classroom.collect import collect\n"
        "one, two, into = map(Path, sys.argv[1:])\n"
        "while True:\n    collect(one, into); print('.', flush=True); collect(two, into)\n"
    )
    chance = random.Random(1)
    for _ in range(2):
        command = [sys.executable, "-c", loop, str(submissions), str(other), str(into)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b".\n"
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        for path in into.iterdir():
            assert path.name in ("ada", "bob", "cy") or path.name.startswith(".")
            if not path.name.startswith("."):
                assert fingerprint(path) in {
                    fingerprint(tmp_path / "fresh" / "ada"),
                    _fingerprint_of_the_other(other, tmp_path),
                }
        collect(submissions, into)
        assert fingerprint(into) == unbroken


def _fingerprint_of_the_other(other: Path, tmp_path: Path) -> str:
    collect(other, tmp_path / "fresh-other")
    return fingerprint(tmp_path / "fresh-other" / "ada")
