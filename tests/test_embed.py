"""MiniLM on onnxruntime gives the vectors that PyTorch gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.models import minilm, minilm_onnx, store
from shared.models.embed import DIMENSIONS, Embedder
from shared.models.to_onnx import FILE, build, read_safetensors
from shared.wheels import sha256_of

# Made with torch 2.13 and transformers 5.17 (BertModel, mean over the pieces, normalised), one text
# at a time, from the same safetensors.
GOLDEN = Path(__file__).with_name("golden") / "minilm.npz"


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(threads=1)


def test_vectors_are_those_of_pytorch(model: Embedder) -> None:
    golden = np.load(GOLDEN)
    texts = [str(t) for t in golden["texts"]]
    vectors = model.encode(texts)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - golden["vectors"]).max() < 1e-5


def test_vectors_have_length_one_and_do_not_depend_on_company(model: Embedder) -> None:
    texts = ["The fee is GBP 5.", "A much longer sentence about something else " * 9, "x"]
    together = model.encode(texts)
    assert np.allclose(np.linalg.norm(together, axis=1), 1)
    alone = np.concatenate([model.encode([t]) for t in texts])
    assert np.abs(together - alone).max() < 1e-5


def test_empty_texts_are_zero_and_long_ones_are_cut(model: Embedder) -> None:
    vectors = model.encode(["", " \n", "word " * 254, "word " * 900])
    assert not vectors[:2].any()
    assert np.allclose(vectors[2], vectors[3])
    assert model.encode([]).shape == (0, DIMENSIONS)


def test_one_string_is_refused(model: Embedder) -> None:
    with pytest.raises(TypeError, match="sequence"):
        model.encode("one text")
    with pytest.raises(ValueError, match="threads"):
        Embedder(threads=0)


def test_the_file_is_made_the_same_way_each_time(tmp_path: Path) -> None:
    build(minilm(), tmp_path)
    assert sha256_of(tmp_path / FILE) == sha256_of(minilm_onnx() / FILE)


def test_verify_names_the_made_file() -> None:
    minilm_onnx()
    found = {f.name: f for f in store.verify()}
    assert found["all-minilm-l6-v2-onnx"].ok


def test_another_data_type_is_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ValueError, match="BF16"):
        read_safetensors(path)
