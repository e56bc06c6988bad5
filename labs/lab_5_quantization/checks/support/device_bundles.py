"""Bundles to install and to attack: real, small files, and a writer that breaks each rule."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers

from shared.device.keys import new_key, sign
from shared.device.layout import (
    LICENCES,
    MANIFEST,
    SBOM,
    SIGNATURE,
    Component,
    FileEntry,
    Manifest,
)

NAME = "branch-router"
MODEL = "model/router.onnx"
WEIGHTS = "model/table.safetensors"
TOKENIZER = "tokenizer/tokenizer.json"
WHEEL = "runtime/branch_runtime-1.4.0-py3-none-any.whl"
MIT = b"MIT License\n\nPermission is hereby granted, free of charge, to any person\n"
APACHE = b"Apache License\nVersion 2.0, January 2004\n"

Member = tuple[tarfile.TarInfo, bytes]


class RunsCode:
    """Pickled, this calls a function as soon as somebody loads it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return print, ("a pickle ran code on the device",)


def pickles() -> dict[str, bytes]:
    """Pickles that call a function, one a protocol, and a checkpoint in PyTorch's zip format."""
    every = {f"protocol {p}": pickle.dumps(RunsCode(), protocol=p) for p in range(6)}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as checkpoint:
        checkpoint.writestr("archive/data.pkl", every["protocol 2"])
        checkpoint.writestr("archive/data/0", bytes(64))
        checkpoint.writestr("archive/version", "3\n")
    return every | {"a PyTorch checkpoint": packed.getvalue()}


def onnx_model(rng: np.random.Generator) -> bytes:
    """A linear classifier of four numbers into three classes."""
    weights = numpy_helper.from_array(rng.normal(size=(4, 3)).astype(np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "router",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tokenizer_json() -> bytes:
    """A tokenizer of whole words."""
    words = {w: i for i, w in enumerate(["[UNK]", "what", "does", "a", "card", "cost", "?"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def wheel(
    name: str = "branch_runtime",
    version: str = "1.4.0",
    files: Iterable[tuple[str | zipfile.ZipInfo, bytes]] | None = None,
    *,
    info: Sequence[str] = ("METADATA", "WHEEL", "RECORD"),
) -> bytes:
    """A wheel, with other files or an incomplete dist-info where that is wanted."""
    if files is None:
        files = [(f"{name}/__init__.py", b'"""Runs the router."""\nANSWER = 42\n')]
    texts = {
        "METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for place, content in files:
            out.writestr(place, content)
        for part in info:
            out.writestr(f"{name}-{version}.dist-info/{part}", texts[part])
    return packed.getvalue()


@dataclass
class Workshop:
    """Where bundles are made: sources on disk, and the maker's key."""

    folder: Path
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.private, self.public = new_key()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mit = self.put("texts/MIT", MIT)
        self.apache = self.put("texts/Apache-2.0", APACHE)

    def put(self, name: str, content: bytes) -> Path:
        """A file of the workshop."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def components(self) -> list[Component]:
        """Four components, of fresh weights."""
        table = save({"table": self.rng.normal(size=(300, 256)).astype(np.float32)})
        made = [
            (
                MODEL,
                onnx_model(self.rng),
                "machine-learning-model",
                "router",
                "3.1.0",
                "Apache-2.0",
            ),
            (WEIGHTS, table, "machine-learning-model", "table", "3.1.0", "Apache-2.0"),
            (TOKENIZER, tokenizer_json(), "data", "words", "7", "CC-BY-4.0"),
            (WHEEL, wheel(), "library", "branch-runtime", "1.4.0", "MIT OR Apache-2.0"),
        ]
        return [
            Component(
                path,
                self.put(f"sources-{self.rng.integers(1 << 40)}/{Path(path).name}", content),
                kind,  # type: ignore[arg-type]
                name,
                version,
                licence,
                self.mit if "MIT" in licence else self.apache,
            )
            for path, content, kind, name, version, licence in made
        ]

    def files(self) -> dict[str, bytes]:
        """The files of a right bundle, without manifest and signature."""
        found = {c.path: c.source.read_bytes() for c in self.components()}
        texts = {f"{LICENCES}/{n}.txt": APACHE for n in ("router", "table", "words")}
        sbom = json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}).encode()
        return found | texts | {f"{LICENCES}/branch-runtime.txt": MIT, SBOM: sbom}

    def archive(self, file: str, files: dict[str, bytes] | None = None, **changes: Any) -> Path:
        """A right bundle of version 1.0.0, or one that is changed as `write_bundle` says."""
        content = self.files() if files is None else files
        return write_bundle(self.folder / file, content, self.private, **changes)


def manifest_of(files: dict[str, bytes], version: str = "1.0.0", name: str = NAME) -> Manifest:
    """The manifest that belongs to these files."""
    entries = {p: FileEntry(hashlib.sha256(c).hexdigest(), len(c)) for p, c in files.items()}
    return Manifest(name, version, entries)


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> Member:
    """A member of an archive, of any type."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


def write_bundle(
    path: Path,
    files: dict[str, bytes],
    private_key: bytes,
    *,
    version: str = "1.0.0",
    name: str = NAME,
    manifest: bytes | None = None,
    signature: bytes | None = None,
    edit: Callable[[list[Member]], list[Member]] | None = None,
    format_: int = tarfile.USTAR_FORMAT,
) -> Path:
    """Write a bundle whatever is wrong with it.

    Args:
        manifest: other bytes than those that belong to the files.
        signature: other bytes than the key's signature of the manifest.
        edit: changes the list of members before they are written.
    """
    signed = manifest_of(files, version, name).to_bytes() if manifest is None else manifest
    mark = sign(private_key, signed) if signature is None else signature
    listed = [member(MANIFEST, signed), member(SIGNATURE, mark)]
    listed += [member(p, files[p]) for p in sorted(files)]
    with tarfile.open(path, "w", format=format_) as tar:
        for info, content in edit(listed) if edit else listed:
            tar.addfile(info, io.BytesIO(content))
    return path


def offset_of(archive: Path, name: str) -> int:
    """Where a member's data begin."""
    with tarfile.open(archive) as tar:
        return tar.getmember(name).offset_data


def safetensors(offsets: dict[str, list[int]], size: int) -> bytes:
    """A safetensors file with tensors of these offsets."""
    header = json.dumps(
        {
            n: {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]}
            for n, (a, b) in offsets.items()
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def with_path(files: dict[str, bytes], path: str) -> Manifest:
    """A manifest with one path more."""
    return manifest_of(files | {path: b"{}"})
