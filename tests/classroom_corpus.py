"""Hand-ins that are broken or hostile as they lie there, before any of their code runs.

Each is built anew, so that git holds no archive that a virus scanner, or a person, would rather
not meet. All are built on the starter, so nothing in them has earned a point.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shared.grading.lab import Lab, load_lab

LAB = 2
"""A lab that needs no engine."""
UNSOLVED = frozenset({"not_started"})
"""What an untouched starter's task is; a draft to review too, though it runs and fails."""
ABSENT = frozenset({"failed"})
ERROR = frozenset({"error"})
EVIL_CONFTEST = """
import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    outcome.get_result().outcome = "passed"
"""
EVIL_INI = "[pytest]\naddopts = --collect-only -p evil\npython_functions = nothing\n"
EVIL_MODULE = 'raise SystemExit("this module must never be imported")\n'
"""Any of these that is imported ends the grading of its task without a pass."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """One hand-in and what must become of it.

    Attributes:
        name: in words, fit for a file's name.
        build: makes it in a folder of submissions; returns what it made there.
        statuses: for each task of the lab the statuses that it may have; empty where the lab
            counts as not handed in, for want of any or of a usable file.
        notes: kinds of the notes that it must have, and no others.
        problem: words that its problem must hold; empty where it has none.
        helpers: names of harmless files beside the task files that are taken with them.
    """

    name: str
    build: Callable[[Path], Path]
    statuses: dict[str, frozenset[str]]
    notes: frozenset[str] = frozenset()
    problem: str = ""
    helpers: frozenset[str] = frozenset()


def honest_files(lab: Lab, kind: str = "starter") -> Files:
    """A lab's files as somebody hands them in: ``"starter"`` untouched, ``"solution"`` solved."""
    return {p.name: p.read_bytes() for p in sorted((lab.folder / kind).glob("*.py"))}


def write_files(folder: Path, files: Files) -> Path:
    """Write files into a folder, which is made; names may hold slashes."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_zip(path: Path, files: Files, more: Iterable[tuple[zipfile.ZipInfo, bytes]] = ()) -> Path:
    """Write a zip of files and then of members with headers of their own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for header, content in more:
            archive.writestr(header, content, zipfile.ZIP_DEFLATED)
    return path


def write_tar(
    path: Path, files: Files, more: Iterable[tarfile.TarInfo] = (), mode: str = "w:gz"
) -> Path:
    """Write a tar of files and then of members without content."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)
    return path


def tar_member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A link, a device or a pipe for a tar."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def zip_link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    """A symbolic link for a zip."""
    header = zipfile.ZipInfo(name)
    header.create_system = 3
    header.external_attr = 0o120777 << 16
    return header, target.encode()


def raw_zip(members: Iterable[tuple[bytes, bytes, int, int]]) -> bytes:
    """A zip whose list of members says what it likes.

    Args:
        members: name, content before packing, size that the list claims, flags.
    """
    body, directory, count = bytearray(), bytearray(), 0
    for name, content, claimed, flags in members:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(content) + packer.flush()
        common = struct.pack(
            "<HHHHHIIIHH", 20, flags, 8, 0, 0x21, zlib.crc32(content), len(packed), claimed,
            len(name), 0,
        )  # fmt: skip
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name
        body += b"PK\x03\x04" + common + name + packed
        count += 1
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + b"PK\x05\x06" + end)


def backwards_tar(files: Files) -> bytes:
    """A tar with a member of a negative size: who believes it reads the same header for ever."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        end = archive.offset
    header = bytearray(tarfile.TarInfo("again").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return buffer.getvalue()[:end] + bytes(header) + bytes(1024)


def long_header_bomb() -> bytes:
    """A packed tar whose only member has attributes of 512 MiB."""
    header = bytearray(tarfile.TarInfo("././@PaxHeader").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"x"
    header[124:136] = b"%011o\0" % (2**29)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(2**22))


@dataclass(frozen=True)
class _Maker:
    """Builds cases on one lab's starter."""

    lab: Lab
    cases: list[Case] = field(default_factory=list)

    @property
    def files(self) -> Files:
        return honest_files(self.lab)

    @property
    def starter(self) -> str:
        return f"{self.lab.folder.name}/starter"

    @property
    def task(self) -> str:
        return self.lab.tasks[0].file

    def placed(self) -> Files:
        """The starter, in a folder named like the lab."""
        return {f"{self.starter}/{name}": content for name, content in self.files.items()}

    def add(
        self,
        name: str,
        build: Callable[[Path], Path],
        *notes: str,
        first: frozenset[str] = UNSOLVED,
        missing: bool = False,
        problem: str = "",
        helpers: Iterable[str] = (),
    ) -> None:
        """Add a case; `first` is what the lab's first task may be, the others are unsolved."""
        statuses = {t.id: UNSOLVED for t in self.lab.tasks} | {self.lab.tasks[0].id: first}
        expected = {} if missing or problem else statuses
        self.cases.append(
            Case(name, build, expected, frozenset(notes), problem, frozenset(helpers))
        )

    def beside(self, name: str, files: Files, *notes: str, helpers: Iterable[str] = ()) -> None:
        """The starter, and something beside it."""

        def build(submissions: Path) -> Path:
            return write_files(submissions / name, self.placed() | files)

        self.add(name, build, *notes, helpers=helpers)

    def instead(self, name: str, content: bytes, status: frozenset[str]) -> None:
        """The starter with another content of its first task's file."""

        def build(submissions: Path) -> Path:
            changed = self.placed() | {f"{self.starter}/{self.task}": content}
            return write_files(submissions / name, changed)

        self.add(name, build, first=status)

    def linked(self, name: str, target: Callable[[Path], str]) -> None:
        """The starter with a link in place of its first task's file."""

        def build(submissions: Path) -> Path:
            folder = write_files(submissions / name, self.placed())
            path = folder / self.starter / self.task
            path.unlink()
            path.symlink_to(target(submissions))
            return folder

        self.add(name, build, "symbolic link", first=ABSENT)


def corpus(lab: Lab | None = None) -> list[Case]:
    """All hand-ins that are broken or hostile as they lie there, built on a lab's starter."""
    make = _Maker(lab if lab is not None else load_lab(LAB))
    _configuration(make)
    _links(make)
    _archive_tricks(make)
    _broken_archives(make)
    _contents_and_names(make)
    _not_a_lab(make)
    return make.cases


def _configuration(make: _Maker) -> None:
    at = make.starter
    evil = EVIL_MODULE.encode()
    make.beside(
        "conftest",
        {p: EVIL_CONFTEST.encode() for p in ("conftest.py", f"{at}/conftest.py")},
        "conftest.py",
    )
    ini = EVIL_INI.encode()
    make.beside(
        "pytest-settings",
        {f"{at}/{n}": ini for n in ("pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml")},
        *("pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml"),
    )
    make.beside(
        "sitecustomize",
        {
            f"{at}/sitecustomize.py": evil,
            f"{at}/usercustomize.py": evil,
            f"{at}/evil.pth": b"import os; os._exit(0)\n",
        },
        *("sitecustomize.py", "usercustomize.py", "path file"),
    )
    shadows = ("numpy.py", "pytest.py", "json.py", "shared.py", "support.py", "ｎｕｍｐｙ.py")
    make.beside("shadowing", {f"{at}/{n}": evil for n in shadows}, "shadowing name")
    make.beside(
        "shadowing-packages",
        {
            f"{at}/shared/__init__.py": evil,
            f"{at}/shared/grading/plugin.py": evil,
            f"{make.lab.folder.name}/numpy/__init__.py": evil,
            "pytest.py": evil,
        },
        "shadowing name",
    )
    make.beside(
        "own-checks",
        {
            f"{make.lab.folder.name}/checks/test_{make.task}": b"def test_passes(): pass\n",
            f"{at}/test_{make.task}": b"def test_passes(): pass\n",
            f"{make.lab.folder.name}/lab.toml": b"[lab]\nnumber = 2\n",
        },
        "test file",
    )
    make.beside(
        "compiled",
        {
            f"{at}/helper.pyc": b"\xa7\r\r\n" + bytes(12),
            f"{at}/fast.so": b"\x7fELF",
            f"{at}/__pycache__/{make.lab.tasks[0].stem}.cpython-311.pyc": b"\xa7\r\r\n" + bytes(12),
        },
        "compiled code",
    )


def _links(make: _Maker) -> None:
    solution = make.lab.folder / "solution"
    make.linked("link-to-passwd", lambda _: "/etc/passwd")
    make.linked("link-to-neighbour", lambda _: f"../../../neighbour/{make.starter}/{make.task}")
    make.linked("link-to-solution", lambda _: str(solution / make.task))

    def folder_link(submissions: Path) -> Path:
        folder = submissions / "folder-is-a-link" / make.lab.folder.name
        folder.mkdir(parents=True)
        (folder / "starter").symlink_to(solution)
        return folder.parent

    make.add("folder-is-a-link", folder_link, "symbolic link", problem="No task file")

    def whole_link(submissions: Path) -> Path:
        path = submissions / "all-is-a-link"
        path.symlink_to(make.lab.folder)
        return path

    make.add("all-is-a-link", whole_link, problem="symbolic link")

    def pipe(submissions: Path) -> Path:
        folder = write_files(submissions / "pipe", make.placed())
        path = folder / make.starter / make.task
        path.unlink()
        os.mkfifo(path)
        return folder

    make.add("pipe", pipe, "FIFO", first=ABSENT)


def _archive_tricks(make: _Maker) -> None:
    evil = EVIL_MODULE.encode()
    ways_out = {
        f"../../{make.starter}/{make.task}": evil,
        f"{make.starter}/../../../escaped.py": evil,
        "/tmp/escaped.py": evil,
        "C:\\escaped.py": evil,
        "..\\..\\escaped.py": evil,
    }
    make.add(
        "zip-traversal",
        lambda s: write_zip(s / "zip-traversal.zip", make.placed() | ways_out),
        "unsafe path",
    )
    make.add(
        "tar-traversal",
        lambda s: write_tar(s / "tar-traversal.tar.bz2", make.placed() | ways_out, mode="w:bz2"),
        "unsafe path",
    )

    def without_first() -> Files:
        return {n: c for n, c in make.placed().items() if not n.endswith(f"/{make.task}")}

    link = f"{make.starter}/{make.task}"
    make.add(
        "zip-link",
        lambda s: write_zip(s / "zip-link.zip", without_first(), [zip_link(link, "/etc/passwd")]),
        "symbolic link",
        first=ABSENT,
    )
    members = [
        tar_member(f"{make.starter}/way", tarfile.SYMTYPE, "/tmp"),
        tar_member(f"{make.starter}/way/through.py", tarfile.LNKTYPE, "/etc/passwd"),
        tar_member(link, tarfile.LNKTYPE, "/etc/passwd"),
        tar_member(f"{make.starter}/memory.py", tarfile.CHRTYPE),
        tar_member(f"{make.starter}/disk.py", tarfile.BLKTYPE),
        tar_member(f"{make.starter}/pipe.py", tarfile.FIFOTYPE),
    ]
    make.add(
        "tar-links-and-devices",
        lambda s: write_tar(s / "tar-links-and-devices.tgz", without_first(), members),
        *("symbolic link", "hard link", "device", "FIFO"),
        first=ABSENT,
    )

    def zip_bomb(submissions: Path) -> Path:
        honest = [(n.encode(), c, len(c), 0) for n, c in make.placed().items()]
        big = (f"{make.starter}/zeros.py".encode(), bytes(2**22), 2**32 - 2, 0)
        path = submissions / "zip-bomb.zip"
        path.write_bytes(raw_zip([*honest, big]))
        return path

    make.add("zip-bomb", zip_bomb, "archive bomb", "too large")

    def tar_bomb(submissions: Path) -> Path:
        path = submissions / "tar-bomb.tar.gz"
        packed = gzip.compress(bytes(2**22))
        header = tarfile.TarInfo("zeros.py")
        header.size = 2**32
        path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT)) + packed * 64)
        return path

    make.add("tar-bomb", tar_bomb, problem="bomb")

    def header_bomb(submissions: Path) -> Path:
        path = submissions / "header-bomb.tar.gz"
        path.write_bytes(long_header_bomb())
        return path

    make.add("header-bomb", header_bomb, problem="damaged")

    def backwards(submissions: Path) -> Path:
        path = submissions / "backwards.tar"
        path.write_bytes(backwards_tar(make.placed()))
        return path

    make.add("backwards", backwards, problem="damaged")

    def many(submissions: Path) -> Path:
        path = submissions / "many-files.zip"
        path.write_bytes(raw_zip((b"%d" % n, b"", 0, 0) for n in range(50_001)))
        return path

    make.add("many-files", many, problem="50,001 files")

    def nested(submissions: Path) -> Path:
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as archive:
            for name, content in make.placed().items():
                archive.writestr(name, content)
        return write_zip(submissions / "nested.zip", {"inner.zip": inner.getvalue()})

    make.add("nested", nested, "nested archive", problem="No task file")

    def lying(submissions: Path) -> Path:
        files = [(n.encode(), c, len(c), 0) for n, c in make.placed().items()]
        name, _, _, flags = files[0]
        path = submissions / "lying-size.zip"
        path.write_bytes(raw_zip([(name, bytes(2**23), 100, flags), *files[1:]]))
        return path

    make.add("lying-size", lying, problem="damaged")

    def twice(submissions: Path) -> Path:
        files = [(n.encode(), c, len(c), 0) for n, c in make.placed().items()]
        path = submissions / "twice.zip"
        path.write_bytes(raw_zip([(link.encode(), evil, len(evil), 0), *files]))
        return path

    make.add("twice", twice, "duplicate name")


def _broken_archives(make: _Maker) -> None:
    def cut(name: str, written: Callable[[Path], Path], share: float) -> Callable[[Path], Path]:
        def build(submissions: Path) -> Path:
            path = written(submissions / name)
            content = path.read_bytes()
            path.write_bytes(content[: int(len(content) * share)])
            return path

        return build

    def zipped(path: Path) -> Path:
        return write_zip(path, make.placed())

    def tarred(path: Path) -> Path:
        return write_tar(path, make.placed(), mode="w:xz")

    make.add("cut-zip", cut("cut-zip.zip", zipped, 0.6), problem="cut off")
    make.add("cut-tar", cut("cut-tar.tar.xz", tarred, 0.6), problem="cut off")
    make.add("empty-archive", cut("empty-archive.zip", zipped, 0), problem="0 bytes")

    def secret(submissions: Path) -> Path:
        path = submissions / "password.zip"
        files = make.placed().items()
        path.write_bytes(raw_zip((n.encode(), c, len(c), 1) for n, c in files))
        return path

    make.add("password", secret, problem="password")

    def damaged(submissions: Path) -> Path:
        path = submissions / "damaged.zip"
        content = bytearray(write_zip(path, make.placed()).read_bytes())
        for at in range(200, 260):
            content[at] ^= 0xFF
        path.write_bytes(content)
        return path

    make.add("damaged", damaged, problem="damaged")

    def document(submissions: Path) -> Path:
        path = submissions / "document.zip"
        path.write_bytes(b"%PDF-1.7\n" + bytes(100))
        return path

    make.add("document", document, problem="PDF")


def _contents_and_names(make: _Maker) -> None:
    make.instead("empty-file", b"", ABSENT)
    make.instead("binary-file", bytes(range(256)) * 8, ERROR)
    make.instead("latin-1-file", b'"""Caf\xe9."""\n', ERROR)
    make.instead("syntax-error", b"def broken(:\n", ERROR)

    def large(submissions: Path) -> Path:
        changed = make.placed() | {f"{make.starter}/{make.task}": b"#" * (2**20 + 1)}
        return write_files(submissions / "large-file", changed)

    make.add("large-file", large, "too large", first=ABSENT)
    helpers = {f"helper_{n:03}.py": b"X = 1\n" for n in range(200)}
    room = 50 - len(make.files)
    make.beside(
        "many-helpers",
        {f"{make.starter}/{n}": c for n, c in helpers.items()},
        "too many files",
        helpers=sorted(helpers)[:room],
    )
    strange = {
        "größe.py": b"X = 1\n",
        "line\nbreak.py": b"",
        "\u202eyp.live.py": b"",
        "-rf.py": b"",
        "=1+1.py": b"",
        "<script>.py": b"",
        f"{'n' * 200}.py": b"",
        "class.txt": b"",
    }
    make.beside(
        "strange-names",
        {f"{make.starter}/{n}": c for n, c in strange.items()},
        *("unusual name", "other file"),
        helpers=["größe.py"],
    )

    def long_path(submissions: Path) -> Path:
        return write_zip(
            submissions / f"{'very-long-' * 20}名前.zip",
            make.placed() | {f"{'deep/' * 400}x.py": b"", f"{'x' * 60_000}.py": b""},
        )

    make.add("long-path", long_path, "other file")

    def other_case(submissions: Path) -> Path:
        more = {f"{make.starter}/{make.task.upper()[:-3]}.py": EVIL_MODULE.encode()}
        return write_zip(submissions / "other-case.zip", make.placed() | more)

    make.add("other-case", other_case, "case twin")


def _not_a_lab(make: _Maker) -> None:
    make.add("nothing", lambda s: write_files(s / "nothing", {}), problem="No task file")
    make.add(
        "essay",
        lambda s: write_files(s / "essay", {"essay.txt": b"I did it.", "notes/a.md": b"#"}),
        "other file",
        problem="No task file",
    )

    def elsewhere(submissions: Path) -> Path:
        files = {f"{make.lab.folder.name}/solution/{n}": c for n, c in make.files.items()}
        return write_files(submissions / "in-solution", files)

    make.add("in-solution", elsewhere, "wrong folder", "other file", problem="No task file")

    def stray(submissions: Path) -> Path:
        path = submissions / "stray.txt"
        path.write_text("Remember to hand in.\n")
        return path

    make.add("stray", stray, problem="no archive")
