"""Task 5.7: the air-gapped bundle, one archive that a device can trust, and its installer.

The branch has no network and nobody who could look at what arrives. A courier brings one file. It
holds all that the device needs (model, tokenizer, the wheels that run them, licences, a list of
what is in it), it proves where it comes from, and it installs whole or not at all.

The format is in `shared/device/layout.py`. What the device refuses, and how it says so:

- It raises `Refused` with the name of the member as the archive (or, for what is missing, the
  manifest) has it. Where no member can be named, the name is the archive's file name.
- Nothing of the archive but headers, `manifest.json` and `manifest.sig` is read before the
  signature has been found right. Nothing is written before the whole archive has been found right.
- The archive may change while it is read: it lies on a stick that others can write. What is
  installed is what was signed, or nothing.
- It does not ask for what `build` does only to get the same bytes again: from the third member on
  it takes any order, and of all members any mode, owner and time.

**Paths.** A path in a manifest is relative, its parts are parted by "/", each part is made of ASCII
letters, digits, ".", "_", "+", "-" and does not begin with "." or "-". It is ``sbom.cdx.json`` or
lies in one of the `FOLDERS`, it has one of the `SUFFIXES`, and no two paths are the same in small
letters. No path is a folder of another one.

**Formats.** A file is what its suffix says, by its content. Whoever can put a pickle there runs
code on the device as soon as a careless loader opens it.

==================  =============================================================================
``.gguf``           ``GGUF``, then the version, a little-endian uint32 from 1 to 3
``.json``           JSON in UTF-8
``.onnx``           a protobuf that begins with its first field, the IR version: byte 0x08, then a
                    byte from 3 to 31, then the tag of one of the fields 2 to 8, 14, 20 or 25
                    (the wire type as in ``onnx.proto``: 0x12, 0x1a, 0x22, 0x28, 0x32, 0x3a, 0x42,
                    0x72, 0xa2, 0xca)
``.safetensors``    a little-endian uint64 n, n bytes of a JSON object, and the tensors: each has
                    ``data_offsets`` [begin, end] into what follows, and together they fill it
                    without gap or overlap (``__metadata__`` is no tensor)
``.txt``            UTF-8 without the character NUL
``.whl``            a zip with one folder ``*.dist-info``, that holds METADATA, WHEEL and RECORD
==================  =============================================================================

A wheel is unpacked on the device. So its members have relative paths without "..", backslash and
":", none is a link, no path comes twice in one wheel and no file in two (in small letters), none is
in a format that runs code when it is loaded as data (``.pkl``, ``.pickle``, ``.pt``, ``.pth``,
``.joblib``), and those of one wheel together unpack to no more than `Limits.total_bytes`.

**On the device.** `dest` is the one folder that may be written::

    dest/installed.json           {"name", "current", "previous"}; previous may be null
    dest/versions/<version>/      all members of the bundle, and site/ with the unpacked wheels

A folder of this name is complete: it was made under another name, that begins with ".", and
renamed when all its files were on the disk (`os.fsync`); before it is removed it is renamed again.
`installed.json` is replaced in the same way, and not written where it is. A new name is on the disk
when its folder is: `os.fsync` is called for `versions` before `installed.json` names a version in
it, and for `dest` before an older version is removed and before `install` or `rollback` returns.
(It is not asked for the folders within a version.) So whenever the power fails, the device has the
version from before, or the new one, and the previous one that `installed.json` names.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component as BomComponent
from cyclonedx.model.component import ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from shared.device.keys import sign, signature_holds
from shared.device.layout import (
    BLOCK,
    FOLDERS,
    LICENCES,
    MANIFEST,
    SBOM,
    SIGNATURE,
    SIGNATURE_BYTES,
    SUFFIXES,
    Component,
    FileEntry,
    Limits,
    Manifest,
    Refused,
    version_key,
)
from shared.device.section import Section

STATE = "installed.json"
VERSIONS = "versions"
SITE = "site"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Installed:
    """What a device runs.

    Attributes:
        previous: the version that `rollback` goes back to, if any.
        folder: the current version's files.
    """

    name: str
    version: str
    previous: str | None
    folder: Path


def make_sbom(name: str, version: str, components: Sequence[Component]) -> bytes:
    """What is in a bundle: a CycloneDX 1.6 document in JSON.

    The bundle itself is `metadata.component`, an application. Each component has its type, name,
    version, licence (an SPDX identifier as such, an expression as one), the SHA-256 of its file,
    and its path as `bom-ref`. A wheel also has its package URL, ``pkg:pypi/<name>@<version>``.

    The same components give the same bytes in any order: no time, and a serial number (a UUID) that
    follows from the content, so that two bundles don't share one.

    Raises:
        ValueError: a licence is neither an SPDX identifier nor an expression (the message names the
            component), two components have one path, or the document does not hold to the schema
            (`JsonStrictValidator`).
    """
    raise NotImplementedError("Task 5.7: write make_sbom")


def build(
    archive: Path, *, name: str, version: str, components: Sequence[Component], private_key: bytes
) -> Manifest:
    """Write a bundle and return its manifest.

    It holds the components, ``licences/<component name>.txt`` for each of them, and the SBOM. The
    same components give the same bytes. `archive` is replaced in one step, or left as it was; its
    folder is there already.

    Raises:
        ValueError: as `make_sbom`; a licence text is empty; or two components have one name and
            different licence texts. The message names the component.
        Refused: a path or a file that the device would refuse.
    """
    raise NotImplementedError("Task 5.7: write build")


def check_format(path: str, content: BinaryIO, limits: Limits) -> None:
    """Refuse a file whose content is not what its suffix says; see the table at the top.

    Weights are not read as a whole: they may be larger than the memory. Of a file that has to be
    read as a whole (a safetensors header, JSON, text, a wheel) no more than `Limits.document_bytes`
    is taken.

    Args:
        path: its name in the bundle.
        content: the file, open for reading, seekable, at its start. It holds nothing else.

    Raises:
        Refused: naming `path`.
    """
    raise NotImplementedError("Task 5.7: write check_format")


def verify(archive: Path, public_key: bytes, limits: Limits | None = None) -> Manifest:
    """Read a bundle from its first byte to its last, and return its manifest if all is right.

    Nothing is written, and no member is held in memory as a whole but those that `check_format`
    has to read.

    Raises:
        Refused: naming what is wrong: a signature that is missing or not by this key, a file that
            is missing, changed, cut off, too much, or there twice, a member that is no regular
            file, a path or a format that is not taken, a bundle without SBOM (naming that), more
            than `limits`, or anything after the end. For too many files, or for too much in total,
            any member may be named.
    """
    raise NotImplementedError("Task 5.7: write verify")


def install(
    archive: Path,
    dest: Path,
    public_key: bytes,
    *,
    limits: Limits | None = None,
    allow_downgrade: bool = False,
) -> Installed:
    """Verify a bundle, then put it on the device and make it the current version.

    `dest` is made if it is not there. The version that was current becomes the previous one. Older
    ones are removed after the new one is current, not before; what an interrupted run left is
    removed, too. The version that is current already, with the same manifest, is left as it is, and
    nothing is written.

    Raises:
        Refused: as `verify`, before anything is written; or naming ``manifest.json``: the version
            is older than the current one (by `version_key`) and `allow_downgrade` is not given, the
            device has a folder of this version with another manifest (a rollback may have left it),
            or it runs a bundle of another name. 1.0 and 1.0.0 are two versions, neither is older.
        OSError: the disk is full, for one. The device still has the version from before.
    """
    raise NotImplementedError("Task 5.7: write install")


def installed(dest: Path) -> Installed | None:
    """What the device runs; None where nothing has been installed."""
    raise NotImplementedError("Task 5.7: write installed")


def rollback(dest: Path) -> Installed:
    """Make the previous version the current one. There is no previous one then.

    The version that was current keeps its folder until another one is installed.

    Raises:
        LookupError: there is none to go back to.
    """
    raise NotImplementedError("Task 5.7: write rollback")
