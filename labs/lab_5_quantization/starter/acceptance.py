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
    raise NotImplementedError("Task 5.8: write accept")
