"""Looks into bytes for pieces of secrets: texts, compiled Python, archives, encodings.

What it opens: UTF-8 and UTF-16 texts, strings with escapes, HTML, base64 and hexadecimal runs, zip
(wheels too), tar, gzip, bzip2, xz, zlib, and `.pyc` files of this Python. What it cannot open is a
finding where an archive would be expected to open (encrypted, damaged, too large, an unknown
format), and is counted where nothing can be expected (pictures).
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import hashlib
import importlib.util
import io
import lzma
import marshal
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import IO, Any

from shared.release.secrets import Secrets, readings

DEEPEST = 6
LARGEST = 256 * 2**20
"""Bytes that are read of one file or member; what is larger is a finding."""

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{24,}\s*){2,}={0,2}|[A-Za-z0-9+/]{60,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){60,}")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"wOF2", b"wOFF")
_CLOSED = {
    b"7z\xbc\xaf\x27\x1c": "7z archive",
    b"Rar!\x1a\x07": "rar archive",
    b"\x28\xb5\x2f\xfd": "zstd file",
    b"\x04\x22\x4d\x18": "lz4 file",
}
_SMALLEST_CODE = 60
"""Bytes of bytecode below which functions of different sources are easily the same."""


@dataclass(frozen=True)
class Finding:
    """What must not be there.

    Attributes:
        where: the file, the object, the member, and the line.
        what: whose piece it is, or what is wrong.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Looker:
    """Looks into bytes.

    Attributes:
        secrets: the pieces to look for.
        same: SHA-256 of whole secret files, with their names.
        compiled: fingerprints of compiled functions of secret files, with their names.
        checkout: how the folder of the instructor's checkout would be named.
        seen: what was looked into, by kind.
        unseen: what cannot be looked into, by kind.
    """

    secrets: Secrets
    same: Mapping[str, str] = field(default_factory=dict)
    compiled: Mapping[str, str] = field(default_factory=dict)
    checkout: re.Pattern[bytes] | None = None
    seen: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)

    def look(self, where: str, data: bytes, depth: int = 0) -> Iterator[Finding]:
        """What is found in one file."""
        if self.checkout is not None and self.checkout.search(data):
            yield Finding(where, "names the folder of the instructor's checkout")
        if not data:
            return
        secret = self.same.get(hashlib.sha256(data).hexdigest())
        if secret is not None:
            yield Finding(where, f"is {secret}, byte for byte")
            return
        if data.startswith(_PICTURES):
            self.unseen["pictures"] += 1
            return
        closed = next((k for magic, k in _CLOSED.items() if data.startswith(magic)), None)
        if closed is not None:
            yield Finding(where, f"is a {closed}, which cannot be looked into")
            return
        if depth > DEEPEST:
            yield Finding(where, f"lies more than {DEEPEST} archives or encodings deep")
            return
        if _is_compiled(where, data):
            yield from self._compiled(where, data)
            return
        opened = self._archive(where, data, depth)
        if opened is not None:
            yield from opened
            return
        yield from self._text(where, data, depth)

    def _text(self, where: str, data: bytes, depth: int) -> Iterator[Finding]:
        self.seen["texts"] += 1
        for text in _decodings(data):
            yield from self._read(where, text, depth)

    def _read(self, where: str, text: str, depth: int) -> Iterator[Finding]:
        piece = next(self.secrets.pieces(text), None)
        if piece is not None:
            count = len({p.words for p in self.secrets.pieces(text)})
            more = f", and {count - 1} more" if count > 1 else ""
            line = f"{where}, line {piece.line}" if depth == 0 else where
            yield Finding(line, f'holds a piece of {piece.secret}: "{piece.words}"{more}')
        done = set()
        for shown in readings(text):
            for pattern, decode in _ENCODINGS:
                for match in pattern.finditer(shown):
                    if (decode, match[0]) in done:
                        continue
                    done.add((decode, match[0]))
                    inner = b""
                    with contextlib.suppress(ValueError):
                        inner = decode(match[0])
                    if len(inner) >= 32:
                        at = shown.count("\n", 0, match.start()) + 1
                        self.seen["encoded runs"] += 1
                        yield from self.look(f"{where}, encoded in line {at}", inner, depth + 1)

    def _archive(self, where: str, data: bytes, depth: int) -> Iterator[Finding] | None:
        """The findings in an archive or a compressed file; None if it is none."""
        if data[257:262] == b"ustar":
            return self._tar(where, data, depth)
        if data.startswith(b"PK\x03\x04") or (b"PK\x05\x06" in data and _opens_as_zip(data)):
            return self._zip(where, data, depth)
        for magic, make in _COMPRESSED:
            if data.startswith(magic):
                return self._compressed(where, data, depth, make)
        if data[0] == 0x78 and len(data) > 2 and (data[0] * 256 + data[1]) % 31 == 0:
            with contextlib.suppress(zlib.error):
                zlib.decompressobj().decompress(data, 64)
                return self._compressed(where, data, depth, zlib.decompressobj)
        return None

    def _zip(self, where: str, data: bytes, depth: int) -> Iterator[Finding]:
        self.seen["archives"] += 1
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in archive.infolist():
                    name = f"{where} > {member.filename}"
                    if member.flag_bits & 1:
                        yield Finding(name, "is encrypted, and cannot be looked into")
                        continue
                    with archive.open(member) as file:
                        yield from self._limited(name, file, depth)
        except _BROKEN as error:
            yield Finding(where, f"is an archive that cannot be read ({error})")

    def _tar(self, where: str, data: bytes, depth: int) -> Iterator[Finding]:
        self.seen["archives"] += 1
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield from self._limited(f"{where} > {member.name}", file, depth)
        except _BROKEN as error:
            yield Finding(where, f"is an archive that cannot be read ({error})")

    def _compressed(
        self, where: str, data: bytes, depth: int, make: Callable[[], Any]
    ) -> Iterator[Finding]:
        """Each stream of a compressed file, and what follows the last one."""
        self.seen["compressed files"] += 1
        try:
            stream = make()
            inner: bytes = stream.decompress(data, LARGEST + 1)
        except _BROKEN as error:
            yield Finding(where, f"is compressed and cannot be read ({error})")
            return
        if len(inner) > LARGEST:
            yield Finding(where, f"is larger than {LARGEST >> 20} MiB, and was not looked into")
            return
        yield from self.look(f"{where} (unpacked)", inner, depth + 1)
        if stream.unused_data:
            yield from self.look(f"{where} (what follows)", stream.unused_data, depth + 1)

    def _limited(self, where: str, file: IO[bytes], depth: int) -> Iterator[Finding]:
        inner = file.read(LARGEST + 1)
        if len(inner) > LARGEST:
            yield Finding(where, f"is larger than {LARGEST >> 20} MiB, and was not looked into")
        else:
            yield from self.look(where, inner, depth + 1)

    def _compiled(self, where: str, data: bytes) -> Iterator[Finding]:
        """Compiled functions are compared as such: names are there, the words' order is not."""
        self.seen["compiled Python files"] += 1
        code = None
        if data[:4] == importlib.util.MAGIC_NUMBER:
            with contextlib.suppress(ValueError, EOFError, TypeError):
                code = marshal.loads(data[16:])
        if not isinstance(code, CodeType):
            yield Finding(where, "was compiled by another Python, and cannot be looked into")
            return
        found = {self.compiled[f] for _, f in fingerprints(code) if f in self.compiled}
        if found:
            yield Finding(where, f"holds compiled functions of {', '.join(sorted(found))}")
        for inner in _codes(code):
            for text in (c for c in inner.co_consts if isinstance(c, str)):
                piece = next(self.secrets.pieces(text), None)
                if piece is not None:
                    yield Finding(where, f'holds a piece of {piece.secret}: "{piece.words}"')


def fingerprints(code: CodeType) -> Iterator[tuple[str, str]]:
    """Name and fingerprint of each function in a module's code that is long enough to be known."""
    for inner in _codes(code):
        if len(inner.co_code) >= _SMALLEST_CODE and inner.co_name != "<module>":
            parts = (inner.co_code, inner.co_names, inner.co_varnames)
            yield inner.co_name, hashlib.sha256(repr(parts).encode()).hexdigest()


def compiled_functions(path: str, data: bytes) -> Iterator[tuple[str, str]]:
    """The same of a Python file's text; nothing where it is no Python."""
    with contextlib.suppress(SyntaxError, ValueError):
        yield from fingerprints(compile(data, path, "exec", dont_inherit=True))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _is_compiled(where: str, data: bytes) -> bool:
    return data[2:4] == b"\r\n" and (
        where.endswith((".pyc", ".pyo")) or data[:4] == importlib.util.MAGIC_NUMBER
    )


def _decodings(data: bytes) -> Iterator[str]:
    """The texts that bytes may be: UTF-8, and UTF-16 where half of them are zero."""
    yield data.decode("utf-8", "replace")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        yield data.decode("utf-16", "replace")
    elif data.count(0) > len(data) // 4:
        yield data.decode("utf-16-le", "replace")
        yield data.decode("utf-16-be", "replace")


def _from_base64(text: str) -> bytes:
    compact = re.sub(r"[\s=]", "", text)
    return base64.b64decode(compact[: len(compact) // 4 * 4])


_ENCODINGS: tuple[tuple[re.Pattern[str], Callable[[str], bytes]], ...] = (
    (_BASE64, _from_base64),
    (_HEX, bytes.fromhex),
)


def _opens_as_zip(data: bytes) -> bool:
    return zipfile.is_zipfile(io.BytesIO(data))


_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # NotImplementedError too: a compression that zipfile does not know
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
)
_COMPRESSED: tuple[tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
)
