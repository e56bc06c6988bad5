"""The format of a device bundle: names, order, manifest, limits.

A bundle is one plain tar file in the ustar format (POSIX.1-1988), of regular files only. Models
hardly shrink when they are compressed, and a plain archive can be read in place.

=====================  ===========================================================================
member                 what it holds
=====================  ===========================================================================
``manifest.json``      first member: name, version, and path, size and SHA-256 of all files below
``manifest.sig``       second member: the 64 bytes of an Ed25519 signature over the bytes of
                       ``manifest.json``
``licences/*.txt``     the licence text of each component, ``licences/<component name>.txt``
``model/...``          weights and their configuration
``runtime/*.whl``      the wheels that run the model
``sbom.cdx.json``      what all of it is: CycloneDX 1.6
``tokenizer/...``      the tokenizer
=====================  ===========================================================================

Who makes a bundle sorts the members from the third on by name, and gives each mode 0644, user and
group 0 without names, and time 0, so that the same content is the same archive. The device does not
ask for that: the first two have their places, the others may come in any order, and all of them
with any mode, owner and time. What counts for it is signed: paths, sizes and hashes.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LAYOUT_VERSION = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
SBOM = "sbom.cdx.json"
LICENCES = "licences"
FOLDERS = ("model", "tokenizer", "runtime", LICENCES)
"""A bundle's folders. Beside them are only the three files above."""
SUFFIXES = frozenset({".gguf", ".json", ".onnx", ".safetensors", ".txt", ".whl"})
"""Formats that run no code when they are read. A wheel is code, and everybody knows that it is."""
SIGNATURE_BYTES = 64
BLOCK = 512
"""A tar header is one block; a member's data is filled up with zeros to whole blocks."""

Kind = Literal["machine-learning-model", "data", "library"]
_HASH = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"(?:0|[1-9]\d{0,5})(?:\.(?:0|[1-9]\d{0,5})){0,3}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Refused(Exception):
    """A bundle that the device does not take.

    Attributes:
        member: the member of the archive that it is refused for, as the archive or the manifest
            names it.
        reason: what is wrong with it.
    """

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"{member}: {reason}")
        self.member = member
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """What the device takes at most. It refuses more before it reads it."""

    files: int = 256
    """Those that the manifest lists; manifest and signature do not count."""
    total_bytes: int = 1 << 30
    """Of all members together, with manifest and signature. And of all that one wheel unpacks to,
    for each wheel by itself."""
    manifest_bytes: int = 1 << 20
    document_bytes: int = 128 << 20
    """Of one file that has to be read as a whole to know what it is: JSON, text, a wheel."""


@dataclass(frozen=True)
class Component:
    """One file of a bundle that somebody wrote and licensed.

    Attributes:
        path: where it lies in the bundle, e.g. ``model/model.onnx``.
        source: the file now.
        kind: its type in CycloneDX. A wheel is a library.
        licence: SPDX identifier or expression, e.g. ``Apache-2.0``.
        licence_text: the file that holds the text.
    """

    path: str
    source: Path
    kind: Kind
    name: str
    version: str
    licence: str
    licence_text: Path


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says about one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What is signed: the bundle's name and version, and each file but manifest and signature."""

    name: str
    version: str
    files: dict[str, FileEntry] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The bytes that are signed; the same manifest gives the same ones."""
        content = {
            "layout": LAYOUT_VERSION,
            "name": self.name,
            "version": self.version,
            "files": {
                path: {"sha256": entry.sha256, "bytes": entry.bytes}
                for path, entry in self.files.items()
            },
        }
        return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Read what `to_bytes` wrote. It looks at types and forms only, not at what paths mean.

        Raises:
            Refused: it is no manifest of this layout, or not written as `to_bytes` writes it.
        """
        try:
            read = json.loads(content)
            manifest = cls(
                read["name"],
                read["version"],
                {p: FileEntry(e["sha256"], e["bytes"]) for p, e in read["files"].items()},
            )
            well_formed = (
                read["layout"] == LAYOUT_VERSION
                and _NAME.fullmatch(manifest.name)
                and _VERSION.fullmatch(manifest.version)
                and all(_HASH.fullmatch(e.sha256) for e in manifest.files.values())
                and all(type(e.bytes) is int and e.bytes >= 0 for e in manifest.files.values())
                and manifest.to_bytes() == content
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Refused(MANIFEST, f"it cannot be read ({type(error).__name__})") from error
        if not well_formed:
            raise Refused(MANIFEST, f"it is no manifest of layout {LAYOUT_VERSION}")
        return manifest


def version_key(version: str) -> tuple[int, ...]:
    """A version as numbers, to compare: 1.10 is newer than 1.9, and 1.0 is as old as 1.0.0.

    Raises:
        ValueError: it is not made of one to four numbers.
    """
    if not _VERSION.fullmatch(version):
        raise ValueError(f"version {version!r} is not made of one to four numbers")
    parts = tuple(int(part) for part in version.split("."))
    return parts + (0,) * (4 - len(parts))


def members(bundle: Path) -> dict[str, bytes]:
    """All files of a bundle by name, for looking at it.

    It reads everything into memory and believes what the archive says: of two members with one
    name it shows the last, and what is no file it leaves out. Nothing to install with.

    Raises:
        tarfile.TarError: it is no tar file, or it ends too early.
    """
    with tarfile.open(bundle, "r:") as archive:
        found = {}
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is not None:
                found[member.name] = stream.read()
        return found
