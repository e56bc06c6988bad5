"""Checks of task 5.7: a bundle that is whole and signed, and an installer that believes nothing."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors.numpy import save
from support.bundle_expectations import (
    build,
    current_version,
    expect_install_refuses,
    expect_refused,
    expect_taken,
    expect_verify_refuses,
    expect_whole,
    first_difference,
    plain_installed,
    refusal,
    serial,
    tree,
    watched_install,
)
from support.device_bundles import (
    MIT,
    MODEL,
    NAME,
    TOKENIZER,
    WEIGHTS,
    WHEEL,
    Member,
    Workshop,
    manifest_of,
    member,
    offset_of,
    onnx_model,
    pickles,
    safetensors,
    tokenizer_json,
    wheel,
    with_path,
    write_bundle,
)
from support.device_runs import ASK, INSTALL, installed_wheel, on_device
from support.watched import killed_at, syncing, syncing_all, watched

from shared.device.isolation import why_not
from shared.device.keys import new_key, sign, signature_holds
from shared.device.layout import (
    LICENCES,
    MANIFEST,
    SBOM,
    SIGNATURE,
    Component,
    FileEntry,
    Limits,
    Manifest,
    Refused,
    members,
)
from shared.grading.expect import expect, expect_equal, expect_raises, fail, show
from shared.models import smollm2_gguf
from shared.paths import ROOT


@pytest.fixture(autouse=True)
def disk(monkeypatch) -> None:
    """What is handed to `os.fsync` is noted, and nothing waits for the real disk."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, syncing, raising=False)
    monkeypatch.setattr(os, "sync", syncing_all, raising=False)


@pytest.fixture
def workshop(tmp_path, rng) -> Workshop:
    """Where this check's bundles are made."""
    return Workshop(tmp_path / "workshop", rng)


def test_the_sbom_says_what_each_file_is_and_under_which_licence(learner, workshop):
    components = workshop.components()
    sbom = learner.make_sbom(NAME, "1.2.0", components)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.decode())
    expect(
        wrong is None,
        observed=f"an SBOM that the schema rejects: {str(wrong)[:300]}",
        expected="a document that holds to the schema of CycloneDX 1.6",
        why="The tools that read SBOMs reject it, and then nobody reads it.",
        hint="sbom",
    )
    read = json.loads(sbom)
    top = read.get("metadata", {}).get("component", {})
    expect_equal(
        [top.get("type"), top.get("name"), top.get("version")],
        ["application", NAME, "1.2.0"],
        what="type, name and version of metadata.component",
        why="A list of parts that does not say of what helps nobody.",
        hint="sbom",
    )
    by_path = {c.get("bom-ref"): c for c in read.get("components", [])}
    expect_equal(
        sorted(by_path, key=str),
        sorted(c.path for c in components),
        what="the bom-refs of the SBOM's components",
        why="A part that is not listed is not looked at when its licence or its weakness is.",
        hint="sbom",
    )
    for component in components:
        listed = by_path[component.path]
        digest = hashlib.sha256(component.source.read_bytes()).hexdigest()
        licence = (
            {"expression": component.licence}
            if " OR " in component.licence
            else {"license": {"id": component.licence}}
        )
        wanted: dict[str, Any] = {
            "type": component.kind,
            "name": component.name,
            "version": component.version,
            "licenses": [licence],
            "hashes": [{"alg": "SHA-256", "content": digest}],
            "purl": "pkg:pypi/branch-runtime@1.4.0" if component.kind == "library" else None,
        }
        for key, value in wanted.items():
            expect_equal(
                listed.get(key),
                value,
                what=f"{key} of {component.path}",
                why="Whether the bank may use this file, and whether it is this file, is answered "
                "from the SBOM, years later, by somebody who has never seen the model.",
                hint="sbom",
            )


def test_the_same_components_give_the_same_sbom(learner, workshop):
    components = workshop.components()
    first = learner.make_sbom(NAME, "1.2.0", components)
    again = learner.make_sbom(NAME, "1.2.0", components[::-1])
    expect(
        first == again,
        observed=f"two documents that differ {first_difference(first, again)}",
        expected="the same bytes whenever and in whatever order",
        why="A bundle that cannot be built again byte for byte can't be checked by another person.",
        hint="sbom",
    )
    others = {
        "of version 1.2.1": learner.make_sbom(NAME, "1.2.1", components),
        "with other weights": learner.make_sbom(NAME, "1.2.0", workshop.components()),
    }
    for what, other in others.items():
        expect(
            serial(first) not in (None, serial(other)),
            observed=f"serialNumber {serial(first)} in an SBOM and in one {what}",
            expected="a serial number in each, and not the same",
            why="The serial number is the name under which an SBOM is filed. Two with one name "
            "are one, and one is lost.",
            hint="sbom",
        )
    for licence in ("free for all", "", "Apache 2.0 or so"):
        broken = [replace(components[0], licence=licence), *components[1:]]
        expect_raises(
            ValueError,
            lambda broken=broken: learner.make_sbom(NAME, "1.2.0", broken),
            doing=f"a component with the licence {licence!r}",
            mentions=components[0].name,
            why="A licence that no machine can read is found by a lawyer, after the roll-out.",
            hint="sbom",
        )
    doubled = [*components, replace(components[0], name="another")]
    expect_raises(
        ValueError,
        lambda: learner.make_sbom(NAME, "1.2.0", doubled),
        doing="two components at one path",
        why="One of the two is not in the bundle, and the SBOM says that it is.",
        hint="sbom",
    )


def test_a_file_is_what_its_suffix_says(learner, rng, tmp_path):
    table = save({"a": rng.normal(size=(8, 3)).astype(np.float32), "b": np.arange(5)})
    named = save({"a": np.ones(2, np.float32)}, metadata={"format": "pt"})
    (length,) = struct.unpack("<Q", table[:8])
    empty = struct.pack("<Q", 2) + b"{}"
    good = {
        "model/a.safetensors": table,
        "model/b.safetensors": named,
        "model/c.safetensors": empty,
        MODEL: onnx_model(rng),
        "model/tiny.gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        "model/old.gguf": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        TOKENIZER: tokenizer_json(),
        "model/labels.json": '["Überweisung", "Karte"]'.encode(),
        "licences/a.txt": "Copyright © the authors.\n".encode(),
        "licences/b.txt": b"cos\nsystem\n(S'a licence may look odd'\ntR.",
        WHEEL: wheel(),
    }
    for path, content in good.items():
        expect_taken(learner, path, content)
    overlap = {"a": [0, 8], "b": [4, 12]}
    gap = {"a": [0, 4], "b": [8, 12]}
    bad = {
        f"{what} named {suffix}": (f"model/x{suffix}", content)
        for what, content in pickles().items()
        for suffix in (".safetensors", ".onnx", ".gguf", ".json", ".whl")
    }
    bad |= {
        "a file without a suffix": ("model/weights", table),
        "safetensors named .bin": ("model/weights.bin", table),
        "safetensors named .pt": ("model/weights.pt", table),
        "a script": ("runtime/start.py", b"print(1)\n"),
        "a shared library": ("runtime/fast.so", b"\x7fELF" + bytes(60)),
        "safetensors with a pickle behind it": (WEIGHTS, table + pickles()["protocol 4"]),
        "safetensors cut off": (WEIGHTS, table[:-1]),
        "safetensors with a header longer than the file": (
            WEIGHTS,
            struct.pack("<Q", 1 << 40) + table[8:],
        ),
        "safetensors whose tensors overlap": (WEIGHTS, safetensors(overlap, 12)),
        "safetensors with a gap": (WEIGHTS, safetensors(gap, 12)),
        "safetensors whose header is a list": (WEIGHTS, struct.pack("<Q", 2) + b"[]"),
        "safetensors of five bytes": (WEIGHTS, table[:5]),
        "safetensors whose header is cut": (WEIGHTS, table[: 8 + length - 1]),
        "ONNX named .safetensors": (WEIGHTS, onnx_model(rng)),
        "safetensors named .onnx": (MODEL, table),
        "GGUF of version 77": ("model/tiny.gguf", b"GGUF" + struct.pack("<IQQ", 77, 0, 0)),
        "GGUF of three bytes": ("model/tiny.gguf", b"GGU"),
        "an empty ONNX file": (MODEL, b""),
        "JSON cut off": (TOKENIZER, tokenizer_json()[:-1]),
        "JSON in UTF-16": (TOKENIZER, tokenizer_json().decode().encode("utf-16")),
        "JSON nested 100,000 deep": (TOKENIZER, b"[" * 100_000 + b"]" * 100_000),
        "text with NUL": ("licences/a.txt", b"MIT\0License"),
        "text in Latin-1": ("licences/a.txt", "Überall".encode("latin-1")),
    }
    for what, (path, content) in bad.items():
        expect_refused(
            learner,
            path,
            content,
            what,
            why="A loader goes by the name or by the content. Where the two differ, one loader "
            "runs what another one has checked.",
            hint="look-inside",
        )


def test_a_wheel_is_looked_into_before_it_is_unpacked(learner):
    link = zipfile.ZipInfo("branch_runtime/model.json")
    link.external_attr = (0o120777) << 16
    odd = [
        ("branch_runtime/data.txt", b"x"),
        ("branch_runtime/deep/er/a.py", b""),
        ("branch_runtime/_fast.abi3.so", b"\x7fELF"),
        ("branch_runtime/with space.txt", b"x"),
        ("branch_runtime/empty/", b""),
    ]
    expect_taken(learner, WHEEL, wheel(files=odd))
    one = [("a/__init__.py", b"")]
    cases = {
        "a member ../outside.py": wheel(files=[*one, ("../outside.py", b"")]),
        "a member a/../../outside.py": wheel(files=[*one, ("a/../../outside.py", b"")]),
        "a member /etc/outside.py": wheel(files=[*one, ("/etc/outside.py", b"")]),
        "a member ..\\outside.py": wheel(files=[*one, ("..\\outside.py", b"")]),
        "a member C:/outside.py": wheel(files=[*one, ("C:/outside.py", b"")]),
        "a link": wheel(files=[*one, (link, b"/etc/passwd")]),
        "a pickle": wheel(files=[*one, ("a/scaler.pkl", b"")]),
        "a PyTorch checkpoint": wheel(files=[*one, ("a/Model.PT", b"")]),
        "no METADATA": wheel(info=("WHEEL", "RECORD")),
        "no RECORD": wheel(info=("METADATA", "WHEEL")),
        "no dist-info at all": wheel(info=()),
        "two dist-info folders": wheel(files=[("b-1.dist-info/METADATA", b"")]),
    }
    packed = io.BytesIO(wheel())
    with zipfile.ZipFile(packed, "a") as again, pytest.warns(UserWarning, match="Duplicate"):
        again.writestr("branch_runtime/__init__.py", b"ANSWER = 43\n")
    cases["a member that comes twice"] = packed.getvalue()
    for what, content in cases.items():
        expect_refused(
            learner,
            WHEEL,
            content,
            f"a wheel with {what}",
            why="A wheel is an archive within the archive. Its members become files of the device "
            "as well.",
            hint="wheel-inside",
        )
    bomb = wheel(files=[("a/zeros.txt", bytes(6 << 20))])
    expect_refused(
        learner,
        WHEEL,
        bomb,
        f"a wheel of {len(bomb):,} bytes that unpacks to 6 MiB, where 4 MiB are allowed",
        limits=Limits(total_bytes=4 << 20),
        why="Zeros pack a thousandfold. A small stick fills the device's disk.",
        hint="limits",
    )
    document = json.dumps(["x" * 5000]).encode()
    expect_refused(
        learner,
        TOKENIZER,
        document,
        "JSON of 5 kB, where documents of 4 kB are allowed",
        limits=Limits(document_bytes=4000),
        why="What has to be read as a whole has to fit into the memory.",
        hint="limits",
    )
    expect_refused(
        learner,
        WEIGHTS,
        safetensors({"x" * 5000: [0, 4]}, 4),
        "safetensors with a header of 5 kB, where 4 kB are allowed",
        limits=Limits(document_bytes=4000),
        why="The header's length is what the file says it is.",
        hint="limits",
    )


def test_a_bundle_holds_everything_and_its_manifest_lists_everything(learner, workshop, tmp_path):
    archive = tmp_path / "out" / "router.tar"
    components = workshop.components()
    returned = build(learner, workshop, archive, components)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        odd = [m.name for m in tar if m.type != tarfile.REGTYPE]
    texts = {f"{LICENCES}/{c.name}.txt" for c in components}
    wanted = {c.path for c in components} | texts | {SBOM}
    expect_equal(
        names,
        [MANIFEST, SIGNATURE, *sorted(wanted)],
        what="the archive's members",
        why="What is not in the bundle can't be fetched at the branch. What stands in another "
        "place, the installer does not find before it has to read the rest.",
        hint="start-here",
    )
    expect_equal(
        odd,
        [],
        what="members that are no regular files",
        why="The device takes regular files only.",
        hint="regular-files",
    )
    content = members(archive)
    signed = content.pop(MANIFEST)
    signature = content.pop(SIGNATURE)
    try:
        manifest = Manifest.from_bytes(signed)
    except Refused as error:
        fail(
            observed=f"{MANIFEST} is not readable: {error.reason}",
            expected="what Manifest.to_bytes writes",
            why="The device reads no other.",
            hint="lists-everything",
        )
    expect_equal(
        manifest,
        manifest_of(content, "1.2.0"),
        what="the manifest",
        why="The signature stands for the manifest, and the manifest for the files. A file that is "
        "not in it can be exchanged by anybody on the way.",
        hint="lists-everything",
    )
    expect_equal(
        returned,
        manifest,
        what="what build returned",
        why="The release record is made from it.",
        hint="lists-everything",
    )
    expect(
        signature_holds(workshop.public, signed, signature),
        observed=f"a signature of {len(signature)} bytes that does not belong to {MANIFEST}",
        expected="the Ed25519 signature over the very bytes in the archive",
        why="The device compares bytes, not meanings.",
        hint="who-signed",
    )
    for component in components:
        expect(
            content[component.path] == component.source.read_bytes()
            and content[f"{LICENCES}/{component.name}.txt"] == component.licence_text.read_bytes(),
            observed=f"{component.path} or its licence text is not what it was made from",
            expected="the same bytes",
            why="The device would run another model than the one that was evaluated.",
            hint="start-here",
        )
    expect(
        content[SBOM] == learner.make_sbom(NAME, "1.2.0", components),
        observed="another SBOM in the archive than make_sbom returns",
        expected="that one",
        why="Two lists of parts are one too many.",
        hint="sbom",
    )


def test_the_same_components_give_the_same_archive(learner, workshop, tmp_path):
    components = workshop.components()
    first, second = tmp_path / "a" / "router.tar", tmp_path / "b" / "another-name.tar"
    build(learner, workshop, first, components)
    copies = []
    for component in components:
        copy = workshop.put(
            f"copies/{component.name}/{component.source.name}", component.source.read_bytes()
        )
        os.utime(copy, (1_500_000_000, 1_500_000_000))
        copy.chmod(0o600)
        copies.append(replace(component, source=copy))
    build(learner, workshop, second, copies[::-1])
    one, two = first.read_bytes(), second.read_bytes()
    expect(
        one == two,
        observed=f"two archives that differ {first_difference(one, two)}",
        expected="the same bytes from files with other dates and modes, in another order",
        why="Whoever builds it again and gets other bytes cannot tell a date from a back door.",
        hint="same-bytes",
    )
    with tarfile.open(first) as tar:
        heads = {(m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime) for m in tar}
    expect_equal(
        heads,
        [[0o644, 0, 0, "", "", 0]],
        what="mode, user, group, their names and time of the members",
        why="They differ on each machine, and tell who built it, when and where.",
        hint="same-bytes",
    )


def test_build_refuses_what_the_device_would_refuse(learner, workshop, tmp_path):
    archive = tmp_path / "router.tar"
    components = workshop.components()
    build(learner, workshop, archive, components)
    before = archive.read_bytes()
    pickled = workshop.put("bad/pickled", pickles()["protocol 4"])
    empty = workshop.put("bad/empty", b" \n")
    first, *rest = components
    cases: list[tuple[str, type[Exception], list[Component], str]] = [
        ("a pickle as model/router.onnx", Refused, [replace(first, source=pickled), *rest], MODEL),
        (
            "model/router.pkl",
            Refused,
            [replace(first, path="model/router.pkl"), *rest],
            "model/router.pkl",
        ),
        (
            "model/../../router.onnx",
            Refused,
            [replace(first, path="model/../../router.onnx"), *rest],
            "model/../../router.onnx",
        ),
        (
            "an empty licence text",
            ValueError,
            [replace(first, licence_text=empty), *rest],
            first.name,
        ),
        (
            "two licence texts for one name",
            ValueError,
            [first, replace(rest[0], name=first.name, licence_text=workshop.mit), *rest[1:]],
            first.name,
        ),
    ]
    for what, kind, bad, named in cases:
        expect_raises(
            kind,
            lambda bad=bad: build(learner, workshop, archive, bad),
            doing=what,
            mentions=named,
            why="Found at the desk it costs a minute. Found at the branch it costs a journey.",
            hint="refuse-early",
        )
        left = sorted(p.name for p in tmp_path.iterdir() if p.is_file())
        same = archive.is_file() and archive.read_bytes() == before
        expect(
            left == [archive.name] and same,
            observed=f"after a refused build the folder holds {left}, "
            f"{archive.name} {'as before' if same else 'changed'}",
            expected="the archive from before, and nothing else",
            why="Half an archive looks like one.",
            hint="refuse-early",
        )


def test_a_right_bundle_verifies(learner, workshop, tmp_path):
    archive = workshop.archive("right.tar", version="1.10.3")
    with tarfile.open(archive) as tar:
        size = max(m.size for m in tar)
    content = members(archive)
    wanted = Manifest.from_bytes(content[MANIFEST])
    shuffled = workshop.archive(
        "shuffled.tar",
        version="1.10.3",
        files={k: v for k, v in content.items() if k not in (MANIFEST, SIGNATURE)},
        edit=lambda listed: [*listed[:2], *listed[:1:-1]],
    )
    own = tmp_path / "own.tar"
    build(learner, workshop, own, workshop.components())
    cases = [
        (archive, wanted),
        (shuffled, wanted),
        (own, Manifest.from_bytes(members(own)[MANIFEST])),
    ]
    for path, manifest in cases:
        try:
            returned = learner.verify(path, workshop.public)
        except Refused as error:
            fail(
                observed=f"Refused: {error}, for a right bundle ({path.name})",
                expected="its manifest",
                why="A device that takes nothing is safe, and is soon replaced by one that takes "
                "everything.",
                hint="too-strict",
            )
        expect_equal(
            returned,
            manifest,
            what="what verify returned",
            why="The installer goes on with it.",
            hint="start-here",
        )
    limits = Limits(
        files=len(wanted.files), total_bytes=archive.stat().st_size, manifest_bytes=4000
    )
    expect(
        learner.verify(archive, workshop.public, limits=limits) == wanted,
        observed=f"another manifest with {limits}",
        expected=f"the bundle is taken: its largest file has {size:,} bytes",
        why="Limits that a right bundle keeps to are no reason to refuse it.",
        hint="too-strict",
    )


def test_a_bundle_that_this_key_did_not_sign_is_refused(learner, workshop):
    files = workshop.files()
    manifest = manifest_of(files).to_bytes()
    other_private, other_public = new_key()
    right = sign(workshop.private, manifest)
    flipped = bytes([right[0] ^ 1]) + right[1:]
    newer = manifest_of(files, "9.0.0").to_bytes()
    carried = files | {"model/key.json": json.dumps(other_public.hex()).encode()}

    def drop(listed: list[Member]) -> list[Member]:
        return [listed[0], *listed[2:]]

    def at_the_end(listed: list[Member]) -> list[Member]:
        return [listed[0], *listed[2:], listed[1]]

    cases: dict[str, dict[str, Any]] = {
        "no signature": {"files": files, "edit": drop},
        "an empty signature": {"files": files, "signature": b""},
        "the signature of another key": {
            "files": files,
            "signature": sign(other_private, manifest),
        },
        "another key's signature, and that key in the bundle": {
            "files": carried,
            "signature": sign(other_private, manifest_of(carried).to_bytes()),
        },
        "a signature with one bit changed": {"files": files, "signature": flipped},
        "the signature of the archive's name": {
            "files": files,
            "signature": sign(workshop.private, b"bundle.tar"),
        },
        "an older version's signature": {"files": files, "manifest": newer, "signature": right},
        "a signature with more behind it": {"files": files, "signature": right + b"\0"},
        "the signature at the end": {"files": files, "edit": at_the_end},
    }
    for what, changes in cases.items():
        archive = workshop.archive("bundle.tar", **changes)
        expect_verify_refuses(
            learner,
            workshop,
            archive,
            SIGNATURE,
            what,
            why="The signature is the one thing that the courier cannot make himself.",
            hint="who-signed",
        )
    unmanifested = workshop.archive("bundle.tar", files=files, edit=lambda listed: listed[1:])
    expect_verify_refuses(
        learner,
        workshop,
        unmanifested,
        MANIFEST,
        "no manifest",
        why="Without it nothing says what belongs here.",
        hint="who-signed",
    )


def test_the_signature_is_checked_before_anything_else_is_read(learner, workshop):
    files = workshop.files()
    traps: dict[str, dict[str, Any]] = {
        "a pickle for a model": {"files": files | {MODEL: pickles()["protocol 4"]}},
        "a manifest that is no JSON": {"files": files, "manifest": b"{" * 1000},
        "a manifest with a path that leaves the folder": {
            "files": files,
            "manifest": with_path(files, "model/../../x.json").to_bytes(),
        },
        "a link": {
            "files": files,
            "edit": lambda listed: [
                *listed,
                member("model/l.json", kind=tarfile.SYMTYPE, link="/"),
            ],
        },
        "a file that is not listed": {
            "files": files,
            "edit": lambda listed: [*listed, member("model/more.json", b"{}")],
        },
    }
    for what, changes in traps.items():
        archive = workshop.archive("bundle.tar", signature=os.urandom(64), **changes)
        expect_verify_refuses(
            learner,
            workshop,
            archive,
            SIGNATURE,
            f"a wrong signature and {what}",
            why="Each parser has bugs. Who has no key should not reach any of them.",
            hint="signature-first",
        )


def test_a_changed_file_is_refused_by_name(learner, workshop, rng):
    files = workshop.files()
    archive = workshop.archive("right.tar", files=files)
    whole = bytearray(archive.read_bytes())
    for path, content in files.items():
        for place in (0, int(rng.integers(len(content))), len(content) - 1):
            at = offset_of(archive, path) + place
            whole[at] ^= 0x20
            changed = workshop.put("changed.tar", bytes(whole))
            whole[at] ^= 0x20
            expect_verify_refuses(
                learner,
                workshop,
                changed,
                path,
                f"one bit of byte {place} of {path} changed",
                why="One bit of a weight is enough to turn an answer round, or it is a scratch on "
                "the stick.",
                hint="whole-hash",
            )
    entry = manifest_of(files).files[MODEL]
    last = "0" if entry.sha256[-1] != "0" else "1"
    first = "0" if entry.sha256[0] != "0" else "1"
    cases = {
        "a hash that differs in its last digit": FileEntry(entry.sha256[:-1] + last, entry.bytes),
        "a hash that differs in its first digit": FileEntry(first + entry.sha256[1:], entry.bytes),
        "a size that is one less": FileEntry(entry.sha256, entry.bytes - 1),
        "a size that is one more": FileEntry(entry.sha256, entry.bytes + 1),
    }
    for what, changed_entry in cases.items():
        manifest = manifest_of(files)
        manifest.files[MODEL] = changed_entry
        archive = workshop.archive("bundle.tar", files=files, manifest=manifest.to_bytes())
        expect_verify_refuses(
            learner,
            workshop,
            archive,
            MODEL,
            f"a signed manifest that has, for {MODEL}, {what}",
            why="A hash that is compared in part is a hash that can be met: eight digits take an "
            "afternoon.",
            hint="whole-hash",
        )


def test_missing_extra_and_doubled_members_are_refused_by_name(learner, workshop):
    files = workshop.files()
    more = member("model/more.json", b"{}")
    double = member(TOKENIZER, files[TOKENIZER])
    again = member(MANIFEST, manifest_of(files).to_bytes())

    def without(name: str) -> Callable[[list[Member]], list[Member]]:
        return lambda listed: [m for m in listed if m[0].name != name]

    cases: list[tuple[str, str, Callable[[list[Member]], list[Member]]]] = [
        *((f"{name} missing", name, without(name)) for name in sorted(files)),
        ("a file that the manifest does not list", more[0].name, lambda m: [*m, more]),
        ("such a file between the others", more[0].name, lambda m: [*m[:4], more, *m[4:]]),
        ("an extra licence text", "licences/x.txt", lambda m: [*m, member("licences/x.txt", MIT)]),
        (f"{TOKENIZER} twice", TOKENIZER, lambda m: [*m, double]),
        ("the manifest twice", MANIFEST, lambda m: [*m, again]),
    ]
    for what, name, edit in cases:
        expect_verify_refuses(
            learner,
            workshop,
            workshop.archive("bundle.tar", files=files, edit=edit),
            name,
            what,
            why="What nobody signed must not lie beside what somebody did: a loader that reads "
            "the whole folder reads it too.",
            hint="count-both-ways",
        )
    bare = {p: c for p, c in files.items() if p != SBOM}
    expect_verify_refuses(
        learner,
        workshop,
        workshop.archive("bundle.tar", files=bare),
        SBOM,
        "a signed bundle without SBOM",
        why="The device keeps the list of what runs on it.",
        hint="count-both-ways",
    )


def test_members_that_are_no_regular_files_are_refused_by_name(learner, workshop):
    files = workshop.files() | {"model/empty.txt": b""}
    kinds = {
        "a symbolic link": (tarfile.SYMTYPE, "/etc/passwd"),
        "a hard link": (tarfile.LNKTYPE, WEIGHTS),
        "a character device": (tarfile.CHRTYPE, ""),
        "a block device": (tarfile.BLKTYPE, ""),
        "a pipe": (tarfile.FIFOTYPE, ""),
        "a folder": (tarfile.DIRTYPE, ""),
        "a contiguous file": (tarfile.CONTTYPE, ""),
        "a sparse file": (tarfile.GNUTYPE_SPARSE, ""),
        "a global pax header": (tarfile.XGLTYPE, ""),
        "a GNU long name": (tarfile.GNUTYPE_LONGNAME, ""),
    }
    why = "A link makes the next write go elsewhere. A header of its own kind renames or resizes "
    why += "what follows, and not every reader agrees how."
    for what, (kind, link) in kinds.items():
        for name in ("model/odd.json", "model/empty.txt", MODEL):

            def edit(
                listed: list[Member], name: str = name, kind: bytes = kind, link: str = link
            ) -> list[Member]:
                kept = [m for m in listed if m[0].name != name]
                return [*kept[:3], member(name, kind=kind, link=link), *kept[3:]]

            expect_verify_refuses(
                learner,
                workshop,
                workshop.archive("bundle.tar", files=files, edit=edit),
                name,
                f"{what} named {name}",
                why=why,
                hint="regular-files",
            )


def test_paths_that_leave_the_folder_are_refused_by_name(learner, workshop):
    files = workshop.files()
    names = [
        "../outside.json",
        "/etc/outside.json",
        "model/../../outside.json",
        "model/./a.json",
        "model//a.json",
        "model/.hidden.json",
        "model/-rf.json",
        "model\\a.json",
        "model/a\n.json",
        "model/größe.json",
        "outside.json",
        "other/a.json",
        "model",
        "site/a.json",
        "model/a.py",
    ]
    why = "The manifest's author can be careless, or can be somebody who has the key for a day. "
    why += "What a path does on the device is the device's business."
    for name in names:
        expect_verify_refuses(
            learner,
            workshop,
            workshop.archive("bundle.tar", files=files | {name: b"{}"}),
            name,
            f"a signed file {name!r}",
            why=why,
            hint="paths",
        )
        if not name.isascii() or name == "model":
            continue
        archive = workshop.archive(
            "bundle.tar", files=files, edit=lambda m, name=name: [*m, member(name, b"{}")]
        )
        expect_verify_refuses(
            learner,
            workshop,
            archive,
            name,
            f"a member {name!r} that is not in the manifest",
            why=why,
            hint="paths",
        )
    for one, two in (("model/Map.json", "model/map.json"), ("model/a.json", "model/a.json/b.json")):
        error = refusal(
            learner,
            workshop,
            workshop.archive("bundle.tar", files=files | {one: b"{}", two: b"{}"}),
        )
        expect(
            error is not None and error.member in (one, two),
            observed="it is taken" if error is None else f"Refused for {error.member!r}",
            expected=f"a bundle with {one} and {two} to be refused for one of them",
            why="On some file systems the two are one file, and on none is a file a folder.",
            hint="paths",
        )


def test_a_cut_off_archive_and_one_with_more_behind_it_are_refused_by_name(learner, workshop, rng):
    files = workshop.files()
    archive = workshop.archive("right.tar", files=files)
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        listed = tar.getmembers()
    for info in listed[2:]:
        for at in (info.offset_data, info.offset_data + int(rng.integers(info.size))):
            expect_verify_refuses(
                learner,
                workshop,
                workshop.put("cut.tar", whole[:at]),
                info.name,
                f"the archive cut off {at - info.offset_data} bytes into {info.name}",
                why="A stick that was pulled out too early is the commonest damage of all.",
                hint="where-it-ends",
            )
    end = listed[-1].offset_data + -(-listed[-1].size // 512) * 512
    after = {
        "without its end": whole[:end],
        "cut off in a header": whole[: listed[5].offset + 100],
        "with one block of zeros for its end": whole[:end] + bytes(512),
        "with bytes behind its end": whole + b"#!/bin/sh\n",
        "with another archive behind it": whole + whole,
        "with a megabyte of zeros behind it": whole + bytes(1 << 20),
        "that is empty": b"",
        "that is text": b"not an archive\n" * 100,
        "compressed with gzip": gzip.compress(whole),
    }
    for what, content in after.items():
        cut = workshop.put("bundle.tar", content)
        error = refusal(learner, workshop, cut)
        if what == "with one block of zeros for its end":
            continue  # POSIX asks for two, many writers' archives have less: both verdicts are fine
        allowed = {cut.name}
        if what in ("without its end", "cut off in a header", "that is empty", "that is text"):
            allowed |= {*files, MANIFEST}
        expect(
            error is not None and error.member in allowed,
            observed="it is taken" if error is None else f"Refused for {error.member!r}",
            expected=f"an archive {what} to be refused for {cut.name}",
            why="What comes after the end, one reader sees and another does not.",
            hint="where-it-ends",
        )


def test_more_than_the_device_takes_is_refused_by_name(learner, workshop):
    files = workshop.files()
    archive = workshop.archive("right.tar", files=files)
    signed = manifest_of(files).to_bytes()
    total = sum(map(len, files.values()))
    any_member = {*files, MANIFEST, SIGNATURE}
    cases: list[tuple[str, Path, Limits, set[str]]] = [
        ("a file too many", archive, Limits(files=len(files) - 1), any_member),
        ("a byte too much", archive, Limits(total_bytes=total - 1), any_member),
        (
            "a manifest that is too long",
            archive,
            Limits(manifest_bytes=len(signed) - 1),
            {MANIFEST},
        ),
    ]
    for what, path, limits, names in cases:
        error = refusal(learner, workshop, path, limits)
        expect(
            error is not None and error.member in names,
            observed="it is taken" if error is None else f"Refused for {error.member!r}",
            expected=f"{what} ({limits}) to be refused, by name",
            why="The device has so much memory and so much disk.",
            hint="limits",
        )
    header = member(MANIFEST)[0]
    header.size = 1 << 40
    huge = workshop.put("bundle.tar", header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    header = member(MODEL)[0]
    header.size = -512
    backwards = header.tobuf(tarfile.GNU_FORMAT)
    whole = archive.read_bytes()
    at = offset_of(archive, TOKENIZER) - 512
    loop = workshop.put("loop.tar", whole[:at] + backwards + whole[at:])
    for what, path, name in (
        ("a manifest that declares a terabyte", huge, MANIFEST),
        ("a member of -512 bytes", loop, MODEL),
    ):
        expect_verify_refuses(
            learner,
            workshop,
            path,
            name,
            what,
            why="A size is what the archive says it is. Memory that was asked for by a stranger "
            "stops the device, and a step backwards keeps it busy for ever.",
            hint="limits",
        )


def test_verify_holds_no_more_than_a_part_in_memory(learner, workshop):
    table = save({"table": np.zeros((24 << 20,), np.uint8)})
    archive = workshop.archive("large.tar", files=workshop.files() | {WEIGHTS: table})
    del table
    tracemalloc.start()
    try:
        learner.verify(archive, workshop.public)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    expect(
        peak < 12 << 20,
        observed=f"{peak / 1e6:.0f} MB allocated to verify weights of 25 MB",
        expected="less than half of them",
        why="A device with 1 GB has to verify a model of 1 GB.",
        hint="a-chunk-at-a-time",
    )


def test_install_puts_each_file_in_its_place(learner, workshop, tmp_path):
    dest = tmp_path / "device"
    deep = [("helper/__init__.py", b"WORD = 'deep'\n"), ("helper/data/a.txt", b"a" * 100_000)]
    files = workshop.files() | {"runtime/helper-2.0-py3-none-any.whl": wheel("helper", "2.0", deep)}
    archive = workshop.archive("right.tar", files=files)
    expect_equal(
        learner.installed(dest),
        None,
        what="installed() of a new device",
        why="It has nothing yet, and that is no error.",
        hint="layout-on-device",
    )
    with watched(dest, Path(tempfile.gettempdir())) as watch:
        returned = learner.install(archive, dest, workshop.public)
    elsewhere = [c for c in watch.changes if str(dest) not in c and "/" in c]
    expect(
        not elsewhere,
        observed=f"{elsewhere[:3]} while it installed",
        expected=f"changes below {dest.name} only",
        why="Everything else on the device is read-only.",
        hint="on-the-device",
    )
    wanted = {"name": NAME, "version": "1.0.0", "previous": None}
    for what, found in (("install", returned), ("installed", learner.installed(dest))):
        expect_equal(
            {k: getattr(found, k, None) for k in wanted},
            wanted,
            what=f"what {what}() returned",
            why="The service starts what it says.",
            hint="layout-on-device",
        )
        expect_equal(
            str(found.folder),
            str(dest / "versions" / "1.0.0"),
            what=f"folder of what {what}() returned",
            why="The service starts what is there.",
            hint="layout-on-device",
        )
    expect_equal(
        json.loads((dest / "installed.json").read_text())
        if (dest / "installed.json").is_file()
        else None,
        {"name": NAME, "current": "1.0.0", "previous": None},
        what="installed.json",
        why="The next installer, perhaps a later version of yours, reads it.",
        hint="layout-on-device",
    )
    content = members(archive)
    site = {
        "site/helper/__init__.py": deep[0][1],
        "site/helper/data/a.txt": deep[1][1],
        "site/branch_runtime/__init__.py": b'"""Runs the router."""\nANSWER = 42\n',
    }
    found = tree(returned.folder)
    for path, wanted_bytes in (content | site).items():
        expect(
            found.get(path) == wanted_bytes,
            observed=f"{path} is {'not there' if path not in found else 'another'}",
            expected="the file, byte for byte",
            why="The service looks for it there.",
            hint="layout-on-device",
        )
    extra = sorted(p for p in found if p not in content and not p.startswith("site/"))
    others = sorted(p.name for p in [*dest.iterdir(), *(dest / "versions").iterdir()])
    expect(
        not extra and others == ["1.0.0", "installed.json", "versions"],
        observed=f"besides, there are {extra[:3]}, and {others}",
        expected="the drawing at the top, and no more",
        why="What lies about, somebody will load.",
        hint="layout-on-device",
    )


def test_a_second_run_writes_nothing(learner, workshop, tmp_path):
    dest = tmp_path / "device"
    archive = workshop.archive("right.tar")
    first = learner.install(archive, dest, workshop.public)
    before = tree(dest)
    with watched(dest) as watch:
        second = learner.install(archive, dest, workshop.public)
    expect(
        not watch.changes
        and tree(dest) == before
        and plain_installed(first) == plain_installed(second),
        observed=f"{watch.changes[:2] or 'another result'} when the same bundle came again",
        expected="no change, and the same result",
        why="The service is running from this folder.",
        hint="twice",
    )
    other = workshop.archive("other.tar")
    expect_install_refuses(
        learner,
        workshop,
        other,
        dest,
        MANIFEST,
        "the same version with other content",
        hint="twice",
    )


def test_a_refused_bundle_leaves_the_device_untouched(learner, workshop, tmp_path):
    dest = tmp_path / "device"
    learner.install(workshop.archive("right.tar"), dest, workshop.public)
    files = workshop.files()
    last = sorted(files)[-1]
    archive = workshop.archive("next.tar", version="1.1.0", files=files)
    whole = bytearray(archive.read_bytes())
    whole[offset_of(archive, last) + 5] ^= 1
    second = wheel("other", "1.0", [("branch_runtime/__init__.py", b"ANSWER = 43\n")])
    cases = {
        f"the last file, {last}, changed": (
            workshop.put("a.tar", bytes(whole)),
            last,
            "verify-first",
        ),
        "a file that is not listed, at the end": (
            workshop.archive(
                "b.tar",
                version="1.1.0",
                files=files,
                edit=lambda m: [*m, member("model/z.json", b"{}")],
            ),
            "model/z.json",
            "verify-first",
        ),
        "a link at the end": (
            workshop.archive(
                "c.tar",
                version="1.1.0",
                files=files,
                edit=lambda m: [
                    *m,
                    member("model/z.json", kind=tarfile.SYMTYPE, link="/etc/passwd"),
                ],
            ),
            "model/z.json",
            "verify-first",
        ),
        "a signed pickle named .safetensors": (
            workshop.archive(
                "d.tar",
                version="1.1.0",
                files=files | {"tokenizer/z.safetensors": pickles()["protocol 5"]},
            ),
            "tokenizer/z.safetensors",
            "verify-first",
        ),
        "two wheels that write the same file": (
            workshop.archive(
                "e.tar",
                version="1.1.0",
                files=files | {"runtime/other-1.0-py3-none-any.whl": second},
            ),
            "runtime/other-1.0-py3-none-any.whl",
            "two-wheels",
        ),
    }
    for what, (path, name, hint) in cases.items():
        expect_install_refuses(learner, workshop, path, dest, name, what, hint=hint)


def test_what_is_installed_is_what_was_verified(learner, workshop, tmp_path):
    files = workshop.files()
    evil = files | {
        WEIGHTS: save({"table": workshop.rng.normal(size=(300, 256)).astype(np.float32)})
    }
    thief, _ = new_key()
    for what in ("overwritten in its place", "exchanged for another archive"):
        dest = tmp_path / what.replace(" ", "-")
        dest.mkdir()
        archive = workshop.archive("right.tar", files=files)
        at = offset_of(archive, WEIGHTS)
        other = write_bundle(workshop.folder / "evil.tar", evil, thief)

        def swap(
            step: int,
            change: str,
            what: str = what,
            archive: Path = archive,
            at: int = at,
            other: Path = other,
        ) -> None:
            if step != 1:
                return
            if what.startswith("overwritten"):
                with archive.open("r+b") as file:
                    file.seek(at)
                    file.write(evil[WEIGHTS])
            else:
                os.replace(other, archive)

        error: Refused | None = None
        try:
            with watched(dest, then=swap):
                learner.install(archive, dest, workshop.public)
        except Refused as caught:
            error = caught
        now = learner.installed(dest)
        placed = None if now is None else tree(now.folder).get(WEIGHTS)
        expect(
            placed == files[WEIGHTS] if error is None else now is None,
            observed=f"an archive {what} after it had been verified: "
            + (
                "the other weights are installed"
                if placed == evil[WEIGHTS]
                else f"{error}, but installed() is {now}"
            ),
            expected="what was signed, or Refused and nothing installed",
            why="Between the look and the step lies a moment, and the stick is in somebody "
            "else's hand.",
            hint="same-bytes-twice",
        )


def test_files_are_on_the_disk_before_they_get_their_name(learner, workshop, tmp_path):
    dest = tmp_path / "device"
    dest.mkdir()
    for version in ("1.0.0", "1.1.0"):
        older = workshop.archive(f"{version}.tar", version=version)
        learner.install(older, dest, workshop.public)
    archive = workshop.archive("1.2.0.tar", version="1.2.0")
    state = dest / "installed.json"
    early: dict[str, list[str]] = {}
    late: list[str] = []
    after_the_switch: list[str] = []

    def look(step: int, change: str) -> None:
        kind, _, path = change.partition(" ")
        if kind == "os.rename" and (lacking := watch.files_not_on_disk(Path(path))):
            early[Path(path).name] = [p.name for p in lacking]
        if current_version(dest) != "1.2.0":
            return
        if not after_the_switch and not watch.name_on_disk(dest / "versions" / "1.2.0"):
            late.append("the folder versions, when installed.json named 1.2.0")
        after_the_switch.append(change)
        if kind != "os.fsync" and not watch.name_on_disk(state):
            late.append(f"the folder {dest.name}, before {kind} {Path(path).name}")

    with watched(dest, then=look) as watch:
        learner.install(archive, dest, workshop.public)
    expect(
        not early,
        observed=f"renamed while not on the disk: {show(early)}",
        expected="os.fsync for each file before the folder, or installed.json, gets its name",
        why="The system writes when it likes, and names before contents. After a power failure the "
        "folder is there, and the weights are zeros.",
        hint="on-the-disk",
    )
    if not watch.name_on_disk(state):
        late.append(f"the folder {dest.name}, when install returned")
    with watched(dest) as watch:
        learner.rollback(dest)
    if not watch.name_on_disk(state):
        late.append(f"the folder {dest.name}, when rollback returned")
    expect(
        not late,
        observed=f"not handed to os.fsync: {'; '.join(late[:3])}",
        expected="os.fsync for versions before installed.json names a folder in it, and for dest "
        "before an older version goes and before install or rollback returns",
        why="A new name is kept in its folder, and the folder is written as late as any file. "
        "After a power failure the old installed.json is back, and what it names is gone.",
        hint="on-the-disk",
    )


def test_versions_go_forward_and_one_step_back(learner, workshop, tmp_path):
    dest = tmp_path / "device"
    archives = {
        v: workshop.archive(f"{v}.tar", version=v) for v in ("1.9.0", "1.10.0", "1.10.1", "1.11.0")
    }
    expect_raises(
        LookupError,
        lambda: learner.rollback(dest),
        doing="a rollback on a new device",
        why="There is nothing to go back to.",
        hint="way-back",
    )
    for version, previous in (("1.9.0", None), ("1.10.0", "1.9.0"), ("1.10.1", "1.10.0")):
        try:
            now = learner.install(archives[version], dest, workshop.public)
        except Refused as error:
            fail(
                observed=f"Refused: {error}, for {version} after {previous}",
                expected=f"{version} is newer",
                why="A device that believes that 1.9 comes after 1.10 never gets another update.",
                hint="which-version",
            )
        expect_equal(
            [now.version, now.previous],
            [version, previous],
            what="version and previous",
            why="The way back is the version that ran here, not the number below.",
            hint="way-back",
        )
    expect_equal(
        sorted(p.name for p in (dest / "versions").iterdir()),
        ["1.10.0", "1.10.1"],
        what="versions on the disk after three installs",
        why="Each of them is as large as the model. The disk holds two.",
        hint="old-versions",
    )
    expect_install_refuses(
        learner,
        workshop,
        archives["1.9.0"],
        dest,
        MANIFEST,
        "an older version, 1.9.0",
        hint="which-version",
    )
    stranger = workshop.archive("stranger.tar", version="2.0.0", name="cash-counter")
    expect_install_refuses(
        learner,
        workshop,
        stranger,
        dest,
        MANIFEST,
        "a bundle of another name",
        hint="which-version",
    )
    back = learner.rollback(dest)
    expect_equal(
        [back.version, back.previous, learner.installed(dest).version],
        ["1.10.0", None, "1.10.0"],
        what="version and previous after a rollback, and installed()",
        why="At night, at the branch, one command has to bring yesterday's model back.",
        hint="way-back",
    )
    expect_raises(
        LookupError,
        lambda: learner.rollback(dest),
        doing="a second rollback",
        why="The version that it would bring is the one that was rolled back for a reason.",
        hint="way-back",
    )
    again = learner.install(archives["1.10.1"], dest, workshop.public)
    older = learner.install(archives["1.9.0"], dest, workshop.public, allow_downgrade=True)
    expect_equal(
        [again.version, again.previous, older.version, older.previous],
        ["1.10.1", "1.10.0", "1.9.0", "1.10.1"],
        what="version and previous of 1.10.1 installed anew, then of 1.9.0 with allow_downgrade",
        why="A way back that is asked for is no attack.",
        hint="way-back",
    )
    expect(
        tree(older.folder).get(MODEL) == members(archives["1.9.0"])[MODEL],
        observed="another model than that of 1.9.0",
        expected="its own",
        why="The number on it is not what runs.",
        hint="way-back",
    )


def test_an_install_that_fails_leaves_the_version_from_before(learner, workshop, tmp_path):
    dest = tmp_path / "device"
    learner.install(workshop.archive("1.0.0.tar"), dest, workshop.public)
    before = tree(dest)
    archive = workshop.archive("1.1.0.tar", version="1.1.0")

    def full(step: int, change: str) -> None:
        if step > 9 and change.startswith(("open", "os.mkdir")):
            raise OSError(errno.ENOSPC, "No space left on device")

    expect_raises(
        OSError,
        lambda: watched_install(learner, archive, dest, workshop, full),
        doing="a full disk in the middle of an update",
        why="Whoever started the update has to know.",
        hint="one-step",
    )
    expect(
        tree(dest) == before,
        observed=f"besides what was there: {sorted(set(tree(dest)) - set(before))[:3]}",
        expected="the device as it was",
        why="What an update left behind fills the disk that was full already.",
        hint="one-step",
    )


@pytest.mark.limit(120)
def test_an_interrupted_install_leaves_a_whole_version(learner, workshop, tmp_path, figure):
    base = tmp_path / "base"
    few = {p: c for p, c in workshop.files().items() if p in (MODEL, TOKENIZER, WHEEL, SBOM)}
    archives = {
        v: workshop.archive(
            f"{v}.tar", few | {"model/version.json": json.dumps(v).encode()}, version=v
        )
        for v in ("1.0.0", "1.1.0", "1.2.0")
    }
    contents = {v: members(a) for v, a in archives.items()}
    learner.install(archives["1.0.0"], base, workshop.public)
    learner.install(archives["1.1.0"], base, workshop.public)
    steps = 0
    for step in range(1, 400):
        dest = tmp_path / "device"
        shutil.copytree(base, dest)
        died = killed_at(
            step, dest, lambda dest=dest: learner.install(archives["1.2.0"], dest, workshop.public)
        )
        what = f"the power failing at step {step} of an update from 1.1.0 to 1.2.0"
        expect_whole(learner, dest, contents, what, {"1.1.0", "1.2.0"} if died else {"1.2.0"})
        if not died:
            break
        steps += 1
        try:
            learner.install(archives["1.2.0"], dest, workshop.public)
        except Exception as error:
            fail(
                observed=f"{type(error).__name__}: {error}, in the next run after {what}",
                expected="the next run to install 1.2.0",
                why="Nobody at the branch can tidy up by hand.",
                hint="one-step",
            )
        expect_whole(learner, dest, contents, f"a second run after {what}", {"1.2.0"})
        now = learner.installed(dest)
        expect_equal(
            now.previous,
            "1.1.0",
            what=f"previous, after a second run after {what}",
            why="It is the way back.",
            hint="one-step",
        )
        shutil.rmtree(dest)
    expect(
        steps >= 10,
        observed=f"{steps} changes below dest during an update",
        expected="at least one for each file",
        why="The check stops the installer before each of them, and saw too few.",
        hint="one-step",
    )
    for step in range(1, 400):
        dest = tmp_path / f"rolled-back-{step}"
        shutil.copytree(base, dest)
        died = killed_at(step, dest, lambda dest=dest: learner.rollback(dest))
        what = f"the power failing at step {step} of a rollback from 1.1.0 to 1.0.0"
        expect_whole(learner, dest, contents, what, {"1.0.0", "1.1.0"} if died else {"1.0.0"})
        if not died:
            break
    figure("moments at which the power failed", steps)


@pytest.mark.limit(120)
def test_a_language_model_is_installed_and_answers_without_a_network(
    learner, target, workshop, tmp_path, figure
):
    archive, dest = tmp_path / "language.tar", tmp_path / "device"
    dest.mkdir()
    gguf = smollm2_gguf()
    components = [
        Component(
            "model/smollm2.gguf", gguf, "machine-learning-model", "smollm2-135m-instruct", "1.0",
            "Apache-2.0", ROOT / "LICENSE",
        ),
        installed_wheel("xllamacpp", workshop),
    ]  # fmt: skip
    learner.build(
        archive, name=NAME, version="1.0.0", components=components, private_key=workshop.private
    )
    figure("size of the language model's bundle", archive.stat().st_size / 1e6, unit="MB")
    alone = why_not() == ""
    figure("proven in an empty network namespace with a read-only root (0: not here)", float(alone))
    arguments = [str(target.path("bundle.py")), str(archive), str(dest), workshop.public.hex()]
    said = on_device(
        [sys.executable, "-B", "-c", INSTALL, *arguments],
        dest,
        {"PYTHONPATH": str(ROOT)},
        "the installer",
    )
    folder = Path(said.splitlines()[-1]) if said else dest
    expect(
        (folder / "model" / "smollm2.gguf").is_file() and (folder / "site" / "xllamacpp").is_dir(),
        observed=f"the installer printed {said[-200:]!r}",
        expected="the version's folder, with the model and the unpacked wheel",
        why="This is what the whole task is for.",
        hint="on-the-device",
    )
    python = getattr(sys, "_base_executable", sys.executable)
    # -I -S: no environment, no site-packages. What is imported comes from the bundle.
    said = on_device([python, "-I", "-S", "-B", "-c", ASK, str(folder)], dest, {}, "the model")
    answer = json.loads(said.splitlines()[-1])
    expect(
        answer["tokens"] > 0
        and answer["text"].strip() != ""
        and answer["from"].startswith(str(folder)),
        observed=f"{answer}",
        expected="an answer, by the runtime from the bundle",
        why="A device that needs one more package has no way to get it.",
        hint="on-the-device",
    )
    if alone:
        expect(
            answer["network"] != "reached" and answer["root"] == "read-only",
            observed=f"network: {answer['network']}, root: {answer['root']}",
            expected="neither a network nor a writable root",
            why="Else this proves nothing.",
        )
