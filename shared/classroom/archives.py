"""Look into an archive and take single files out of it, without ever unpacking it.

Only the list of an archive's members is made, and of those the few that are wanted are read, as
bytes, each up to a limit. No member names a place on this machine: where a file goes is decided
elsewhere. So a path that leads out of the folder, a link, a device, or a file of a terabyte has
nothing to act on. What remains is time and memory, and these are limited here.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, cast

from shared.classroom.names import shown, split_suffix
from shared.classroom.tree import (
    LIMITS,
    PACK_LESS,
    Entry,
    FileError,
    HandInError,
    Kind,
    Limits,
    Parts,
    Tree,
    kind_of_mode,
)

PIECE = 2**16
HEADER_BYTES = 2**15
"""The longest header of a tar member: names and attributes."""
ATTRIBUTES_BYTES = 2**23
"""All long headers of a tar together. To take them apart costs far more than to skip content."""
DIRECTORY_BYTES = 2**23
"""The longest list of members of a zip; about 80,000 of them."""

_DAMAGED = "it is damaged or was cut off ({}). Ask for it again"
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (257, b"ustar", "tar"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"\x28\xb5\x2f\xfd", "packed with Zstandard"),
    (0, b"%PDF", "a PDF document"),
)
_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    "bzip2": lambda file: bz2.BZ2File(file),
    "xz": lambda file: lzma.LZMAFile(file, format=lzma.FORMAT_XZ),  # noqa: SIM115
    "tar": lambda file: file,
}


def open_archive(file: int, name: str, limits: Limits = LIMITS) -> Tree:
    """Look into an archive: a zip, or a tar that may be packed with gzip, bzip2 or xz.

    What it is shows in its first bytes; the name only decides where they say nothing.

    Args:
        file: the open archive; it is the tree's from now on, and closed with it.
        name: its name.

    Raises:
        HandInError: it is none of these, damaged, protected by a password, or a bomb.
    """
    opened = os.fdopen(file, "rb")
    try:
        head = opened.read(512)
        opened.seek(0)
        kind = next((k for at, m, k in _MAGIC if head[at : at + len(m)] == m), "")
        suffix = split_suffix(name)[1].lower()
        if not head:
            raise HandInError("it is empty: a file of 0 bytes")
        if kind == "zip" or (not kind and suffix == ".zip"):
            return ZipTree(opened, limits)
        if kind in _OPENERS or (not kind and suffix == ".tar"):
            return TarTree(opened, kind or "tar", limits)
        raise HandInError(
            f"it is {kind or 'no archive'}, and not one of zip, tar, tar.gz, tar.bz2 and tar.xz, "
            f"which can be read"
        )
    except BaseException:
        opened.close()
        raise


class ZipTree:
    """The members of a zip.

    Raises:
        HandInError: it cannot be read, holds too much, or asks for a password.
    """

    def __init__(self, file: IO[bytes], limits: Limits = LIMITS) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        try:
            self._zip = zipfile.ZipFile(_Sober(file, DIRECTORY_BYTES))
            members = self._zip.infolist()
        except HandInError:
            raise
        # A broken list of members comes out as almost any error.
        except Exception as error:
            raise HandInError(_DAMAGED.format(_reason(error))) from error
        if len(members) > limits.entries:
            raise HandInError(f"it holds {len(members):,} files. {PACK_LESS}")
        if any(m.flag_bits & 0x2041 for m in members):
            raise HandInError("it is protected by a password. Ask for it without one")
        self.bomb = _is_bomb(sum(m.file_size for m in members), size, limits)
        self.entries = [_entry(m.filename, _zip_kind(m), m.file_size, m) for m in members]

    def read(
        self, wanted: Iterable[Entry], limit: int
    ) -> Iterator[tuple[Entry, bytes | FileError]]:
        """The content of each of `wanted`."""
        for entry in wanted:
            member: zipfile.ZipInfo = entry.key
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # The others can unpack to hundreds of megabytes in one step.
                raise HandInError(
                    f"it is packed in an unusual way (method {member.compress_type}). Ask for a "
                    f"usual zip"
                )
            try:
                with self._zip.open(member) as opened:
                    content = _read_at_most(opened, limit + 1)
            except Exception as error:
                text = f"{shown(entry.name)}: {_reason(error)}"
                raise HandInError(_DAMAGED.format(text)) from error
            # Judged by what came out, whatever the header says.
            if len(content) > limit:
                yield entry, FileError("too large", f"it is larger than {limit:,} bytes")
            else:
                yield entry, content

    def close(self) -> None:
        """Let go of the archive."""
        with suppress(Exception):
            self._zip.close()
        self._file.close()


class TarTree:
    """The members of a tar.

    A tar has no list: it is read from its start, once to see what is in it, once more to take
    out what is wanted.

    Raises:
        HandInError: it cannot be read, or holds too much.
    """

    bomb = False

    def __init__(self, file: IO[bytes], packed: str, limits: Limits = LIMITS) -> None:
        self._file = file
        self._packed = packed
        self._limits = limits
        self.entries: list[Entry] = []
        for number, (member, _) in enumerate(self._members()):
            if number >= limits.entries:
                raise HandInError(f"it holds more than {limits.entries:,} files. {PACK_LESS}")
            self.entries.append(_entry(member.name, _tar_kind(member), member.size, number))

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, _Forward]]:
        self._file.seek(0)
        try:
            stream = _Forward(self._file, self._packed, self._limits)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    # Kept for going back, which nobody does here.
                    cast(Any, archive).members.clear()
                    yield member, stream
            stream.check_end()
        except HandInError:
            raise
        # Broken headers and packings come out as almost any error.
        except Exception as error:
            raise HandInError(_DAMAGED.format(_reason(error))) from error

    def read(
        self, wanted: Iterable[Entry], limit: int
    ) -> Iterator[tuple[Entry, bytes | FileError]]:
        """The content of each of `wanted`."""
        left = {entry.key: entry for entry in wanted}
        if not left:
            return
        for number, (member, stream) in enumerate(self._members()):
            entry = left.pop(number, None)
            if entry is None:
                continue
            if (_parts(member.name), member.size) != (entry.parts, entry.size):
                raise HandInError("it changed while it was read")
            if member.size > limit:
                yield entry, FileError("too large", f"it is larger than {limit:,} bytes")
            else:
                yield entry, stream.content(member.offset_data, member.size)
            if not left:
                return
        raise HandInError("it changed while it was read")

    def close(self) -> None:
        """Let go of the archive."""
        self._file.close()


class _Sober(io.RawIOBase):
    """A file that refuses to be read in gulps, whatever size a header asks for."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(position, whence)

    def read(self, size: int | None = -1) -> bytes:
        left = os.fstat(self._file.fileno()).st_size - self._file.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > self._most:
            raise HandInError(f"its list of files is longer than any lab needs. {PACK_LESS}")
        return self._file.read(max(wanted, 0))


class _Forward(io.RawIOBase):
    """What a packed file holds, from start to end, and no further than the limits.

    It never goes back: a header that sends the reader back to itself would never end.
    """

    def __init__(self, file: IO[bytes], packed: str, limits: Limits) -> None:
        self._size = os.fstat(file.fileno()).st_size
        self._unpacked = _OPENERS[packed](file)
        self._packed = packed
        self._limits = limits
        self._position = 0
        self._headers = 0
        self._attributes = 0
        self._last = b""

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self._position:
            raise HandInError(_DAMAGED.format("a header points backwards"))
        while self._position < position and self._take(min(PIECE, position - self._position)):
            pass
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """A header, or a part of one: the library reads nothing else."""
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise HandInError(_DAMAGED.format("a header is longer than any file's name"))
        self._headers += 1
        self._attributes += size if size > tarfile.BLOCKSIZE else 0
        # For each member at most its header, one for its attributes, these, and a look at its end.
        if self._headers > 5 * self._limits.entries or self._attributes > ATTRIBUTES_BYTES:
            raise HandInError(f"it holds more names and attributes than labs do. {PACK_LESS}")
        self._last = self._read(size)
        return self._last

    def content(self, start: int, size: int) -> bytes:
        """A member's content.

        Raises:
            HandInError: the end of it is missing.
        """
        self.seek(start)
        found = self._read(size)
        if len(found) < size:
            raise HandInError(_DAMAGED.format("the end is missing"))
        return found

    def _read(self, size: int) -> bytes:
        pieces = []
        while size > 0 and (piece := self._take(min(PIECE, size))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _take(self, size: int) -> bytes:
        piece = self._unpacked.read(size)
        self._position += len(piece)
        if self._packed != "tar" and _is_bomb(self._position, self._size, self._limits):
            raise HandInError(
                f"it is a bomb: {self._size:,} bytes unpack to more than {self._position:,}"
            )
        if self._position > self._limits.unpacked_bytes:
            raise HandInError(
                f"it unpacks to more than {self._limits.unpacked_bytes:,} bytes. {PACK_LESS}"
            )
        return piece

    def check_end(self) -> None:
        """See that the archive ends as tars do; the library takes any rubbish for the end.

        Raises:
            HandInError: it does not, so that files may be missing.
        """
        if not self._last or self._last.strip(b"\0"):
            raise HandInError(_DAMAGED.format("the end is missing"))


def _entry(name: str, kind: Kind, size: int, key: Any) -> Entry:
    parts = _parts(name)
    if parts is None:
        return Entry((name,), "unsafe path")
    return Entry(parts or (".",), kind if parts else "folder", size, key)


def _parts(name: str) -> Parts | None:
    """A member's path; None for one that is absolute or leads out of the folder."""
    # Some programs for Windows write their own separator into zips.
    slashed = name.replace("\\", "/")
    parts = [p for p in slashed.split("/") if p not in ("", ".")]
    drive = len(slashed) > 1 and slashed[1] == ":" and slashed[0].isalpha()
    if slashed.startswith("/") or drive or ".." in parts or "\0" in slashed:
        return None
    return tuple(parts)


def _zip_kind(member: zipfile.ZipInfo) -> Kind:
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return kind_of_mode(mode)
    return "folder" if member.is_dir() else "file"


def _tar_kind(member: tarfile.TarInfo) -> Kind:
    if member.issym():
        return "symbolic link"
    if member.islnk():
        return "hard link"
    if member.isfifo():
        return "FIFO"
    if member.ischr() or member.isblk():
        return "device"
    if member.isdir():
        return "folder"
    plain = member.isreg() and not member.issparse() and member.size >= 0
    return "file" if plain else "special file"


def _is_bomb(unpacked: int, packed: int, limits: Limits) -> bool:
    return unpacked > limits.ratio_from and unpacked > limits.ratio * max(packed, 1)


def _read_at_most(file: IO[bytes], most: int) -> bytes:
    pieces = []
    while most > 0 and (piece := file.read(min(PIECE, most))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def _reason(error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile) and "not a zip" in str(error):
        return "the list of its files is missing"
    return shown(str(error) or type(error).__name__)
