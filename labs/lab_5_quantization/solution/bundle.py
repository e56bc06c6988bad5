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
    paths = [c.path for c in components]
    if len(set(paths)) != len(paths):
        raise ValueError(f"two components have one path: {sorted(paths)}")
    listed = sorted((_bom_component(c) for c in components), key=lambda c: str(c.bom_ref))
    content = [name, version, *(f"{c.bom_ref} {_facts(c)}" for c in listed)]
    bom = Bom(components=listed, serial_number=uuid.uuid5(uuid.NAMESPACE_OID, "\n".join(content)))
    bom.metadata.timestamp = None  # type: ignore[assignment]
    bom.metadata.component = BomComponent(
        type=ComponentType.APPLICATION, name=name, version=version, bom_ref="bundle"
    )
    bom.register_dependency(bom.metadata.component, listed)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise ValueError(f"the SBOM does not hold to the schema: {wrong}")
    return text.encode()


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
    sources: dict[str, Path | bytes] = {SBOM: make_sbom(name, version, components)}
    for component in components:
        text = component.licence_text.read_bytes()
        if not text.strip():
            raise ValueError(f"the licence text of {component.name} is empty")
        place = f"{LICENCES}/{component.name}.txt"
        if sources.setdefault(place, text) != text:
            raise ValueError(f"{component.name} comes with two licence texts")
    sources |= {c.path: c.source for c in components}
    _check_paths(sources)

    handle, scratch = tempfile.mkstemp(prefix=f".{archive.name}-", dir=archive.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            manifest = Manifest(name, version, {p: _entry(p, s) for p, s in sources.items()})
            signed = manifest.to_bytes()
            Manifest.from_bytes(signed)  # refuses a name or version that the device would
            head = {MANIFEST: signed, SIGNATURE: sign(private_key, signed)}
            with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for path, source in (head | dict(sorted(sources.items()))).items():
                    _add(tar, path, source)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, archive)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return manifest


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
    suffix = PurePosixPath(path).suffix
    if suffix not in SUFFIXES:
        raise Refused(path, f"files {suffix or 'without a suffix'} are not taken")
    size = content.seek(0, io.SEEK_END)
    content.seek(0)
    if suffix in (".json", ".txt", ".whl") and size > limits.document_bytes:
        raise Refused(path, f"{size} bytes, {limits.document_bytes} at most")
    try:
        if suffix == ".whl":
            _check_wheel(content, limits)
        elif suffix == ".safetensors":
            _check_safetensors(content, size, limits)
        elif suffix in (".onnx", ".gguf"):
            _check_head(content.read(8), suffix)
        else:
            text = content.read().decode("utf-8")
            if suffix == ".json":
                json.loads(text)
            elif "\0" in text:
                raise ValueError("it holds NUL")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(path, f"it is no {suffix} file: {error}") from error
    except (struct.error, zipfile.BadZipFile, EOFError) as error:
        raise Refused(path, f"it is damaged: {error}") from error


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
    with archive.open("rb") as file:
        return _verify(file, archive.name, public_key, limits or Limits()).manifest


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
    limits = limits or Limits()
    with archive.open("rb") as file:
        verified = _verify(file, archive.name, public_key, limits)
        manifest = verified.manifest
        before = installed(dest)
        folder = dest / VERSIONS / manifest.version
        if before is not None:
            _check_update(manifest, before, allow_downgrade)
        if folder.exists() and (folder / MANIFEST).read_bytes() != manifest.to_bytes():
            raise Refused(MANIFEST, f"version {manifest.version} is there with other content")
        if before is not None and before.version == manifest.version:
            return before

        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(dest, keep=None)
        if not folder.exists():
            staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder.parent))
            try:
                _unpack(verified, staging, limits)
                staging.chmod(0o755)
                os.rename(staging, folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            _to_disk(folder.parent)
    previous = before.version if before is not None else None
    now = _set_state(dest, manifest.name, manifest.version, previous)
    _sweep(dest, keep={now.version, now.previous})
    return now


def installed(dest: Path) -> Installed | None:
    """What the device runs; None where nothing has been installed."""
    try:
        state = json.loads((dest / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    folder = dest / VERSIONS / state["current"]
    return Installed(state["name"], state["current"], state["previous"], folder)


def rollback(dest: Path) -> Installed:
    """Make the previous version the current one. There is no previous one then.

    The version that was current keeps its folder until another one is installed.

    Raises:
        LookupError: there is none to go back to.
    """
    now = installed(dest)
    if now is None or now.previous is None:
        raise LookupError("there is no previous version to go back to")
    return _set_state(dest, now.name, now.previous, None)


_PART = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*")
_ONNX_TAGS = frozenset(bytes.fromhex("121a2228323a4272a2ca"))
_CODE_IN_WHEELS = frozenset({".pkl", ".pickle", ".pt", ".pth", ".joblib"})
_DIST_INFO = ("METADATA", "WHEEL", "RECORD")


def _bom_component(component: Component) -> BomComponent:
    licence = LicenseFactory().make_from_string(component.licence)
    named = isinstance(licence, DisjunctiveLicense) and licence.id is None
    if named or not component.licence.strip():
        raise ValueError(f"{component.name}: {component.licence!r} is no SPDX licence")
    wheel = component.kind == "library"
    with component.source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return BomComponent(
        type=ComponentType(component.kind),
        name=component.name,
        version=component.version,
        bom_ref=component.path,
        licenses=[licence],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        purl=PackageURL("pypi", None, component.name, component.version) if wheel else None,
    )


def _facts(component: BomComponent) -> str:
    hashes = ",".join(h.content for h in component.hashes)
    licences = ",".join(str(getattr(x, "id", None) or x.value) for x in component.licenses)
    return f"{component.type} {component.name} {component.version} {licences} {hashes}"


def _entry(path: str, source: Path | bytes) -> FileEntry:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        check_format(path, file, Limits())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(digest, file.seek(0, io.SEEK_END))


def _add(tar: tarfile.TarFile, path: str, source: Path | bytes) -> None:
    member = tarfile.TarInfo(path)  # mode 0644, user, group and time 0
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        member.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        tar.addfile(member, file)


def _check_paths(paths: Mapping[str, object]) -> None:
    seen: set[str] = set()
    for path in sorted(paths):
        parts = path.split("/")
        if not all(_PART.fullmatch(part) for part in parts):
            raise Refused(path, "it is no plain relative path")
        if path != SBOM and (len(parts) < 2 or parts[0] not in FOLDERS):
            raise Refused(path, f"files lie in {', '.join(FOLDERS)}")
        if PurePosixPath(path).suffix not in SUFFIXES:
            raise Refused(path, "files with this suffix are not taken")
        if path.lower() in seen:
            raise Refused(path, "another path differs in letter case only")
        seen.add(path.lower())
    for path in sorted(paths):
        if any(str(parent) in seen for parent in PurePosixPath(path.lower()).parents):
            raise Refused(path, "a folder of it is a file")


def _check_head(head: bytes, suffix: str) -> None:
    if suffix == ".gguf":
        magic, version = struct.unpack("<4sI", head)
        if magic != b"GGUF" or not 1 <= version <= 3:
            raise ValueError("it does not begin with GGUF and a known version")
    elif len(head) < 3 or head[0] != 0x08 or not 3 <= head[1] <= 31 or head[2] not in _ONNX_TAGS:
        raise ValueError("it does not begin with an IR version")


def _check_safetensors(content: BinaryIO, size: int, limits: Limits) -> None:
    (length,) = struct.unpack("<Q", content.read(8))
    if length > min(size - 8, limits.document_bytes):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(content.read(length).decode("utf-8"))
    spans = sorted(tuple(t["data_offsets"]) for n, t in header.items() if n != "__metadata__")
    end = 0
    for begin, until in spans:
        if begin != end or until < begin:
            raise ValueError("tensors overlap, or leave a gap")
        end = until
    if end != size - 8 - length:
        raise ValueError(f"tensors of {end} bytes in a file that has {size - 8 - length} for them")


def _check_wheel(content: BinaryIO, limits: Limits) -> None:
    with zipfile.ZipFile(content) as wheel:
        names: set[str] = set()
        total = 0
        for member in wheel.infolist():
            name, mode = member.filename, member.external_attr >> 16
            parts = name.rstrip("/").split("/")
            if re.search(r"[\\:\0]", member.orig_filename) or {"", ".", ".."} & set(parts):
                raise ValueError(f"{name!r} is no plain relative path")
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{name} is no regular file")
            if PurePosixPath(name).suffix.lower() in _CODE_IN_WHEELS:
                raise ValueError(f"{name} can carry code")
            if name.rstrip("/").lower() in names:
                raise ValueError(f"{name} comes twice")
            names.add(name.rstrip("/").lower())
            total += member.file_size
        if total > limits.total_bytes:
            raise ValueError(f"it unpacks to {total} bytes, {limits.total_bytes} at most")
        tops = {name.split("/")[0] for name in wheel.namelist()}
        infos = [top for top in tops if top.endswith(".dist-info")]
        if len(infos) != 1:
            raise ValueError(f"{len(infos)} folders .dist-info")
        for name in _DIST_INFO:
            wheel.getinfo(f"{infos[0]}/{name}")


def _walk(file: BinaryIO, archive: str, limits: Limits) -> Iterator[tuple[str, Section]]:
    """The members in their order. Headers are read one block at a time and nothing is believed."""
    end = file.seek(0, io.SEEK_END)
    offset, total, count = 0, 0, 0
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise Refused(archive, "the archive is cut off")
        offset += BLOCK
        if not any(block):
            break
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Refused(archive, f"a header at {offset - BLOCK} is damaged: {error}") from error
        if header.type != tarfile.REGTYPE:
            raise Refused(header.name, f"a member of type {header.type!r}, not a regular file")
        count += 1
        total += header.size
        if count > limits.files + 2 or header.size < 0 or total > limits.total_bytes:
            raise Refused(header.name, "more than the device takes")
        if offset + header.size > end:
            raise Refused(header.name, "the archive is cut off within it")
        yield header.name, Section(file, offset, header.size)
        offset += -(-header.size // BLOCK) * BLOCK
    file.seek(offset)
    rest = file.read(tarfile.RECORDSIZE + 1)
    if len(rest) < BLOCK or len(rest) > tarfile.RECORDSIZE or any(rest):
        raise Refused(archive, "the archive does not end as it should")


@dataclass(frozen=True)
class _Verified:
    """A bundle that is right, and where its files are in the archive."""

    manifest: Manifest
    signature: bytes
    places: dict[str, Section]


def _verify(file: BinaryIO, archive: str, public_key: bytes, limits: Limits) -> _Verified:
    walk = _walk(file, archive, limits)
    signed = _read_head(walk, MANIFEST, limits.manifest_bytes)
    signature = _read_head(walk, SIGNATURE, SIGNATURE_BYTES)
    if not signature_holds(public_key, signed, signature):
        raise Refused(SIGNATURE, "the manifest is not signed by the key that this device trusts")
    manifest = Manifest.from_bytes(signed)
    _check_paths(manifest.files)
    if SBOM not in manifest.files:
        raise Refused(SBOM, "the manifest does not list it")

    places: dict[str, Section] = {}
    unpacked: set[str] = set()
    for name, section in walk:
        entry = manifest.files.get(name)
        if entry is None:
            raise Refused(name, "the manifest does not list it")
        if name in places:
            raise Refused(name, "it comes twice")
        if section.size != entry.bytes or _digest(section) != entry.sha256:
            raise Refused(name, "it is not what was signed")
        check_format(name, _at_start(section), limits)
        if name.endswith(".whl"):
            _check_apart(name, _at_start(section), unpacked, limits)
        places[name] = section
    for path in sorted(manifest.files.keys() - places.keys()):
        raise Refused(path, "it is missing")
    return _Verified(manifest, signature, places)


def _read_head(walk: Iterator[tuple[str, Section]], name: str, at_most: int) -> bytes:
    found, section = next(walk, ("", None))
    if found != name or section is None:
        raise Refused(name, "it is missing, or not in its place")
    if section.size > at_most:
        raise Refused(name, f"{section.size} bytes, {at_most} at most")
    return section.read(at_most)


def _digest(section: Section) -> str:
    digest = hashlib.sha256()
    at = _at_start(section)
    while chunk := at.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _at_start(section: Section) -> Section:
    section.seek(0)
    return section


def _check_apart(name: str, content: Section, unpacked: set[str], limits: Limits) -> None:
    with zipfile.ZipFile(content) as wheel:
        files = {m.filename.lower() for m in wheel.infolist() if not m.is_dir()}
        if both := sorted(files & unpacked):
            raise Refused(name, f"another wheel unpacks to {both[0]}, too")
        unpacked |= files


def _check_update(manifest: Manifest, before: Installed, allow_downgrade: bool) -> None:
    if manifest.name != before.name:
        raise Refused(MANIFEST, f"it is a bundle of {manifest.name}, not of {before.name}")
    older = version_key(manifest.version) < version_key(before.version)
    if older and not allow_downgrade:
        raise Refused(MANIFEST, f"{manifest.version} is older than {before.version}")


def _unpack(verified: _Verified, folder: Path, limits: Limits) -> None:
    """Write the files, and hash what is written: the archive may have changed since it was read."""
    for path, section in verified.places.items():
        digest = hashlib.sha256()
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            at = _at_start(section)
            while chunk := at.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != verified.manifest.files[path].sha256:
            raise Refused(path, "it changed while it was read")
        if path.endswith(".whl"):  # from here on only what was written is read
            _unpack_wheel(path, target, folder / SITE, limits)
    _write(folder / MANIFEST, verified.manifest.to_bytes())
    _write(folder / SIGNATURE, verified.signature)


def _unpack_wheel(path: str, file: Path, site: Path, limits: Limits) -> None:
    with file.open("rb") as content:
        check_format(path, content, limits)
        try:
            with zipfile.ZipFile(content) as wheel:
                for member in wheel.infolist():
                    _unpack_member(wheel, member, site)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise Refused(path, f"it is damaged: {error}") from error


def _unpack_member(wheel: zipfile.ZipFile, member: zipfile.ZipInfo, site: Path) -> None:
    target = site / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(member) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, CHUNK)
        out.flush()
        os.fsync(out.fileno())


def _set_state(dest: Path, name: str, current: str, previous: str | None) -> Installed:
    content = {"name": name, "current": current, "previous": previous}
    scratch = dest / f".{STATE}"
    scratch.unlink(missing_ok=True)
    _write(scratch, json.dumps(content).encode())
    os.replace(scratch, dest / STATE)
    _to_disk(dest)
    return Installed(name, current, previous, dest / VERSIONS / current)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _to_disk(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(dest: Path, keep: set[str | None] | None) -> None:
    """Remove what interrupted runs left and, where `keep` is given, all other versions."""
    for path in (dest / VERSIONS).iterdir():
        if path.name.startswith("."):
            shutil.rmtree(path)
        elif keep is not None and path.name not in keep:
            # Renamed first: a folder with a version for a name is always whole.
            doomed = path.with_name(f".old-{path.name}")
            os.rename(path, doomed)
            shutil.rmtree(doomed)
