"""Lab 5's TensorRT path, as far as it goes without a GPU: the graph and what is read from it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from shared.paths import LABS

pytest.importorskip("torch", reason="Lab 5's tools are not installed")
pytest.importorskip("onnxscript", reason="Lab 5's tools are not installed")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The lab's module, imported as the lab does."""
    for folder in ("solution", "checks"):
        monkeypatch.syspath_prepend(str(LABS / "lab_5_quantization" / folder))
    import tensorrt_backend

    yield tensorrt_backend
    for name in ("tensorrt_backend", "serving", "support.small_llama", "support"):
        sys.modules.pop(name, None)


def test_the_exported_graph_scores_texts_as_pytorch_does(
    backend: ModuleType, tmp_path: Path
) -> None:
    import onnxruntime
    import torch
    from support.small_llama import make_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = make_model(tmp_path / "model", ("a text of a few words, and then a few more",), seed=1)
    graph = backend.export_onnx(model, tmp_path / "onnx")
    assert backend.export_onnx(model, tmp_path / "onnx") == graph, "made once"
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    server = backend.OnnxServer(session, AutoTokenizer.from_pretrained(model))
    tokens = [5, 9, 300, 41, 41, 7, 120]
    entries = server.prompt_logprobs(tokens)
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        logprobs = network(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert entries[0] is None
    for place in range(1, len(tokens)):
        want = logprobs[place - 1]
        assert entries[place][str(tokens[place])]["logprob"] == pytest.approx(
            float(want[tokens[place]]), abs=0.05
        )
        first = max(entries[place].values(), key=lambda entry: entry["logprob"])
        assert first["logprob"] == pytest.approx(float(want.max()), abs=0.05)


def test_without_a_gpu_it_is_not_proven_and_says_why(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(backend.NotProven, match="no NVIDIA GPU"):
        backend.tensorrt_server(tmp_path, tmp_path / "onnx")
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    with pytest.raises(backend.NotProven, match=r"neither .* is installed"):
        backend.tensorrt_server(tmp_path, tmp_path / "onnx")
