"""TensorRT as one more backend, through ONNX Runtime: given, nothing to write here.

    server = tensorrt_server(folder, cache)   # or raises NotProven with the reason

The model is exported to ONNX once, and run by ONNX Runtime with NVIDIA's execution provider for
TensorRT RTX (package `onnxruntime-ep-nv-tensorrt-rtx`), or the `TensorrtExecutionProvider` of
`onnxruntime-gpu`. It takes an NVIDIA GPU. `OnnxServer` itself runs on any provider, so that all but
the provider can be tried on a CPU.

The graph has no KV cache: it reads the whole text again for each new token, one request at a time.
Its speeds say what the kernels do, and lie below what TensorRT-LLM would give.

Source: https://nvidia.github.io/TensorRT-RTX-EP-ABI/installation.html and
https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from serving import Entries, gpu_memory_bytes

RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
CLASSIC = "TensorrtExecutionProvider"


class NotProven(Exception):
    """A backend that could not be measured here; the message says why."""


class OnnxServer:
    """A language model in ONNX Runtime, in this process, as something to measure."""

    def __init__(self, session: Any, tokenizer: Any) -> None:
        """Take a session of a graph that `export_onnx` made, and the model's tokenizer."""
        self._session = session
        self._tokenizer = tokenizer
        self._turn = threading.Lock()

    def prompt_logprobs(self, tokens: list[int]) -> Entries:
        """As `serving.ModelServer` says."""
        logits = self._logits(tokens)[:-1].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        entries: Entries = [None]
        for row, own in zip(logprobs, tokens[1:], strict=True):
            first = int(row.argmax())
            entry: dict[str, dict[str, Any]] = {str(own): {"logprob": min(0.0, float(row[own]))}}
            entry[str(first)] = {"logprob": min(0.0, float(row[first])), "rank": 1}
            entries.append(entry)
        return entries

    def generate(self, prompt: str, max_tokens: int) -> int:
        """As `serving.ModelServer` says: greedy, one request at a time, without a KV cache."""
        message = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True
        )
        tokens = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        with self._turn:
            for _ in range(max_tokens):
                tokens.append(int(self._logits(tokens)[-1].argmax()))
        return max_tokens

    def memory_bytes(self) -> int:
        """GPU memory that this process holds."""
        return gpu_memory_bytes({os.getpid()})

    def _logits(self, tokens: list[int]) -> np.ndarray:
        ids = np.array([tokens], dtype=np.int64)
        logits: np.ndarray = self._session.run(["logits"], {"input_ids": ids})[0][0]
        return logits


def tensorrt_server(model: Path, cache: Path) -> OnnxServer:
    """The model on TensorRT, exported to `cache` if it is not there yet (two minutes, once).

    Raises:
        NotProven: there is no NVIDIA GPU, no TensorRT for ONNX Runtime, or it takes no device. The
            message says which.
    """
    if shutil.which("nvidia-smi") is None:
        raise NotProven("TensorRT: this machine shows no NVIDIA GPU")
    import onnxruntime
    from transformers import AutoTokenizer

    rtx = importlib.util.find_spec(RTX_PACKAGE) is not None
    if not rtx and CLASSIC not in onnxruntime.get_available_providers():
        raise NotProven(
            f"TensorRT: neither {RTX_PACKAGE.replace('_', '-')} nor an onnxruntime-gpu with "
            f"{CLASSIC} is installed"
        )
    graph = export_onnx(model, cache)
    try:
        session = _rtx_session(graph) if rtx else _classic_session(graph)
    except NotProven:
        raise
    except Exception as error:
        # ONNX Runtime and the provider raise kinds of their own, which are not all public.
        raise NotProven(f"TensorRT: the session failed: {error}") from error
    return OnnxServer(session, AutoTokenizer.from_pretrained(model))


def export_onnx(model: Path, out: Path) -> Path:
    """The graph from token ids to logits, float16 weights; the file, made if it is not there.

    Input `input_ids` is int64, (1, tokens); output `logits` is (1, tokens, vocabulary).
    """
    graph = out / "model.onnx"
    if graph.is_file():
        return graph
    import torch
    from transformers import AutoModelForCausalLM

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.float16, attn_implementation="eager"
            )

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, use_cache=False).logits

    scratch = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    scratch.mkdir(parents=True)
    try:
        with torch.inference_mode():
            torch.onnx.export(
                Logits().eval(),
                (torch.arange(1, 17)[None],),
                str(scratch / graph.name),
                input_names=["input_ids"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": {1: torch.export.Dim("tokens", min=2, max=2048)}},
                dynamo=True,
            )
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return graph


def _rtx_session(graph: Path) -> Any:
    """A session on the plugin, which brings TensorRT RTX along."""
    import onnxruntime
    import onnxruntime_ep_nv_tensorrt_rtx as plugin

    name = plugin.get_ep_name()
    if not any(d.ep_name == name for d in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == name]
    if not devices:
        raise NotProven(f"TensorRT: {name} finds no device that it takes")
    options = onnxruntime.SessionOptions()
    options.add_provider_for_devices(devices[:1], {})
    return onnxruntime.InferenceSession(str(graph), sess_options=options)


def _classic_session(graph: Path) -> Any:
    """A session on the provider that onnxruntime-gpu has inside."""
    import onnxruntime

    options = {"trt_fp16_enable": True}
    session = onnxruntime.InferenceSession(str(graph), providers=[(CLASSIC, options)])
    if CLASSIC not in session.get_providers():
        raise NotProven(f"TensorRT: {CLASSIC} could not be loaded")
    return session
