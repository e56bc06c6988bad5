"""Task 5.8: the acceptance specification, what a bundle has to prove before it goes to the branch.

Somebody makes models smaller, and sends you bundles (`shared/device/layout.py`). You have the
device, or one of its kind (`shared/device/device.py`), a run of the original on it, and probes:
texts with the right topic, in slices. What goes out, nobody at the branch can take back.

A bundle is accepted, or it is blocked for reasons, each with the fault that it is:

==============  ====================================================================================
fault           a bundle has it that
==============  ====================================================================================
``unsigned``    is no readable archive, or is not, file by file, what the owner of the device's key
                signed: ``manifest.sig`` is not the key's signature of ``manifest.json``, a file is
                missing, changed, there twice, not in the manifest, or no regular file
``code``        carries code among its data: a file of a suffix that is not in `SUFFIXES`, or a
                file that is not what its suffix says. Wheels are code, and are meant to be
``unlicensed``  lacks, for a file in ``model``, ``tokenizer`` or ``runtime``: a component in the
                SBOM with its path as `bom-ref` and its SHA-256, a licence there by SPDX identifier
                or expression, or the text ``licences/<the component's name>.txt``, not empty
``broken``      does not answer all probes
``network``     tries to open a socket, to look up a name, or to start another program
``memory``      has more at once than the device's `memory_bytes`
``slow``        takes more cycles for the probes, all together, than the original
``tokenizer``   turns a probe into other token ids than the original
``quality``     answers worse than the original, in all slices or in one
==============  ====================================================================================

What good and bad bundles have in common, and what not:

- Good ones are made with different methods, and differ in all that is not in the table: size on
  the disk, compression of the wheel, the layout of tokenizer.json, more files, more licences, what
  their code imports, how long they take to load. Some are hardly faster than the original.
- A good one answers some probes otherwise than the original, by chance or because it is better. Of
  the right answers that the original has in a slice it loses at most 4 in 100, or one where that is
  less than one.
- One with a fault of quality has, in one slice at least, 20 in 100 and at least 8 fewer right
  answers. The mean over all probes can be as good as the original's, or better.
- Each bad one has one fault, though some faults bring others along: what breaks or has the wrong
  tokens also answers worse.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
import safetensors
from cyclonedx.spdx import is_expression, is_supported_id

from shared.device.device import Device, Probe, Run
from shared.device.keys import signature_holds
from shared.device.layout import (
    LICENCES,
    MANIFEST,
    SBOM,
    SIGNATURE,
    SUFFIXES,
    Manifest,
    Refused,
    members,
)

FAULTS = (
    "unsigned",
    "code",
    "unlicensed",
    "broken",
    "network",
    "memory",
    "slow",
    "tokenizer",
    "quality",
)


@dataclass(frozen=True)
class Reason:
    """Why a bundle is blocked.

    Attributes:
        fault: one of `FAULTS`.
        detail: what was found, for whoever has to mend it: the file, the slice, the figure.
    """

    fault: str
    detail: str


@dataclass(frozen=True)
class Report:
    """The verdict: accepted, and then without a reason, or blocked, for at least one."""

    accepted: bool
    reasons: tuple[Reason, ...] = ()


def accept(bundle: Path, device: Device, reference: Run, probes: Sequence[Probe]) -> Report:
    """Decide whether a bundle may go to the branch.

    What is ``unsigned`` or carries ``code`` is never run, not even here. Nothing that can be wrong
    with a bundle makes this raise.

    Args:
        bundle: the archive.
        device: knows the maker's public key and its memory, and runs bundles (`Device.run`).
        reference: the run of the original, on a device of this kind, with the texts of `probes`.
            Its answers, tokens and cycles are what this bundle is compared with.
        probes: texts, each with its slice and the right answer.

    Returns:
        The report. The detail of a `quality` reason names the slice, that of a `code` or
        `unlicensed` reason the file.
    """
    reasons = list(_not_as_signed(bundle, device.public_key))
    if reasons:
        return _report(reasons)  # no parser gets to see what a stranger made
    content = members(bundle)
    reasons = [*_code(content), *_unlicensed(content)]
    if any(r.fault == "code" for r in reasons):
        return _report(reasons)
    run = device.run(bundle, [p.text for p in probes])
    reasons += _conduct(run, device, reference, len(probes))
    reasons += _other_tokens(run, reference)
    reasons += _lost_quality(run, reference, probes)
    return _report(reasons)


def _report(reasons: Sequence[Reason]) -> Report:
    return Report(not reasons, tuple(reasons))


def _not_as_signed(bundle: Path, public_key: bytes) -> Iterator[Reason]:
    try:
        with tarfile.open(bundle, "r:") as archive:
            listed = archive.getmembers()
        content = members(bundle)
    except (tarfile.TarError, OSError, EOFError) as error:
        yield Reason("unsigned", f"no readable archive: {error}")
        return
    for member in listed:
        if not member.isreg():
            yield Reason("unsigned", f"{member.name} is no regular file")
    names = [m.name for m in listed]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield Reason("unsigned", f"{name} comes twice")
    signed, signature = content.pop(MANIFEST, b""), content.pop(SIGNATURE, b"")
    if not signature_holds(public_key, signed, signature):
        yield Reason("unsigned", f"{MANIFEST} is not signed by the key that the device trusts")
        return
    try:
        manifest = Manifest.from_bytes(signed)
    except Refused as error:
        yield Reason("unsigned", str(error))
        return
    for path in sorted(manifest.files.keys() - content.keys()):
        yield Reason("unsigned", f"{path} is missing")
    for path, data in content.items():
        entry = manifest.files.get(path)
        if entry is None:
            yield Reason("unsigned", f"{path} is not in the manifest")
        elif hashlib.sha256(data).hexdigest() != entry.sha256:
            yield Reason("unsigned", f"{path} is not what was signed")


def _code(content: dict[str, bytes]) -> Iterator[Reason]:
    for path, data in content.items():
        suffix = PurePosixPath(path).suffix
        if path in (MANIFEST, SIGNATURE):
            continue
        if suffix not in SUFFIXES:
            yield Reason("code", f"{path}: a suffix that the device does not take")
        elif not _is(suffix, data):
            yield Reason("code", f"{path} is no {suffix} file")


def _is(suffix: str, data: bytes) -> bool:
    """Whether a strict reader of this format reads it to its end."""
    try:
        if suffix == ".safetensors":
            safetensors.deserialize(data)
        elif suffix == ".onnx":
            onnx.checker.check_model(onnx.load_model_from_string(data))
        elif suffix == ".json":
            json.loads(data.decode("utf-8"))
        elif suffix == ".txt":
            data.decode("utf-8")
        elif suffix == ".gguf":
            return data.startswith(b"GGUF")
        else:
            with zipfile.ZipFile(io.BytesIO(data)) as wheel:
                return any(n.endswith(".dist-info/METADATA") for n in wheel.namelist())
    except Exception:  # each reader has its own way to say no
        return False
    return True


def _unlicensed(content: dict[str, bytes]) -> Iterator[Reason]:
    try:
        listed = {c["bom-ref"]: c for c in json.loads(content[SBOM])["components"]}
    except (KeyError, ValueError, TypeError) as error:
        yield Reason("unlicensed", f"{SBOM} lists no components ({type(error).__name__})")
        return
    for path, data in content.items():
        if path.split("/")[0] not in ("model", "tokenizer", "runtime"):
            continue
        component = listed.get(path)
        if component is None:
            yield Reason("unlicensed", f"{path} is not in the SBOM")
            continue
        hashes = {(h.get("alg"), h.get("content")) for h in component.get("hashes", [])}
        if ("SHA-256", hashlib.sha256(data).hexdigest()) not in hashes:
            yield Reason("unlicensed", f"{path}: the SBOM is about another file")
        if not any(_names_a_licence(entry) for entry in component.get("licenses", [])):
            yield Reason("unlicensed", f"{path} has no SPDX licence in the SBOM")
        if not content.get(f"{LICENCES}/{component.get('name')}.txt", b"").strip():
            yield Reason("unlicensed", f"{path} comes without the text of its licence")


def _names_a_licence(entry: dict) -> bool:
    identifier = entry.get("license", {}).get("id", "")
    expression = entry.get("expression", "")
    return is_supported_id(identifier) or (bool(expression) and is_expression(expression))


def _conduct(run: Run, device: Device, reference: Run, probes: int) -> Iterator[Reason]:
    if run.error is not None or len(run.answers) < probes:
        yield Reason("broken", f"{len(run.answers)} of {probes} probes answered: {run.error}")
    for tried in (*run.sockets, *run.processes)[:1]:
        yield Reason("network", tried)
    if run.peak_bytes > device.memory_bytes:
        yield Reason("memory", f"{run.peak_bytes:,} bytes of {device.memory_bytes:,}")
    done = len(run.cycles)  # what broke off is compared on what it did
    cycles, before = sum(run.cycles), sum(reference.cycles[:done])
    if cycles > before:
        yield Reason("slow", f"{cycles / max(1, before):.2f} times the original's cycles")


def _other_tokens(run: Run, reference: Run) -> Iterator[Reason]:
    pairs = list(zip(run.tokens, reference.tokens, strict=False))
    other = sum(mine != original for mine, original in pairs)
    if other:
        yield Reason("tokenizer", f"{other} of {len(pairs)} probes have other token ids")


def _lost_quality(run: Run, reference: Run, probes: Sequence[Probe]) -> Iterator[Reason]:
    """A slice that lost more than chance explains: over 10 in 100, and more than three probes.

    Good bundles lose up to 4 in 100, or one; bad ones 20 in 100 and at least eight.
    """
    answers = [*run.answers, *[""] * (len(probes) - len(run.answers))]
    lost: dict[str, list[int]] = {}
    for probe, mine, original in zip(probes, answers, reference.answers, strict=True):
        change = (original == probe.label) - (mine == probe.label)
        lost.setdefault(probe.slice, []).append(change)
    for name, changes in lost.items():
        if sum(changes) > max(3, 0.1 * len(changes)):
            yield Reason("quality", f"{name}: {sum(changes)} of {len(changes)} right answers lost")
