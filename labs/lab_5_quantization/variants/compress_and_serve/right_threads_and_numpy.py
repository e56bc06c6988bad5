"""The same with plain threads, NumPy, presets of llm-compressor and a temporary folder."""

from __future__ import annotations

import json
import math
import os
import queue
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GROUP_SIZES = (128, 64, 32)
REQUESTS = {1: 4, 16: 32}
CALIBRATION_TOKENS = 512


@dataclass(frozen=True)
class Scheme:
    weights: str
    activations: str | None = None
    method: str = "rtn"
    group: int | None = None
    smooth: bool = False


SCHEMES = {
    "w8a8-rtn": Scheme("int8", "int8"),
    "w8a8-smoothquant-gptq": Scheme("int8", "int8", "gptq", smooth=True),
    "w4a16-rtn": Scheme("int4", group=128),
    "w4a16-gptq": Scheme("int4", method="gptq", group=128),
    "w4a16-gptq-g32": Scheme("int4", method="gptq", group=32),
    "fp8-rtn": Scheme("fp8", "fp8"),
}


@dataclass(frozen=True)
class Scores:
    tokens: tuple
    logprobs: tuple
    likeliest: tuple


@dataclass(frozen=True)
class Row:
    name: str
    weight_bytes: int
    perplexity: float
    tokens_per_s: dict
    memory_bytes: int
    scores: tuple = field(repr=False, default=())


@dataclass(frozen=True)
class Comparison:
    row: Row
    size: float
    perplexity: float
    memory: float
    speed: dict
    agreement: float


@dataclass(frozen=True)
class Budget:
    disk_bytes: int
    memory_bytes: int
    concurrency: int
    perplexity: float
    agreement: float
    noise: float = 0.05


@dataclass(frozen=True)
class Choice:
    name: str | None
    reasons: dict


def group_size(wanted, config):
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim")
    if head_dim is None:
        head_dim = config["hidden_size"] // heads
    common = math.gcd(config["hidden_size"], heads * head_dim, config["intermediate_size"])
    good = [size for size in GROUP_SIZES if common % size == 0 and size <= wanted]
    if not good:
        raise ValueError(
            f"hidden_size {config['hidden_size']}, heads {heads * head_dim}, intermediate_size "
            f"{config['intermediate_size']}: no group fits"
        )
    return max(good)


def recipe(scheme, config):
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    preset = {"int8": "W8A8", "int4": "W4A16", "fp8": "FP8_DYNAMIC"}[scheme.weights]
    layers = preset_name_to_scheme(preset, ["Linear"])
    if scheme.group is not None:
        layers.weights.group_size = group_size(scheme.group, config)
    if scheme.activations is None:
        layers.input_activations = None
    modifiers: list[Any] = []
    if scheme.smooth:
        modifiers.append(SmoothQuantModifier(smoothing_strength=0.8))
    if scheme.method == "gptq":
        modifiers.append(GPTQModifier(config_groups={"all": layers}, ignore=["lm_head"]))
    else:
        modifiers.append(QuantizationModifier(config_groups={"all": layers}, ignore=["lm_head"]))
    return modifiers


def compress(source, scheme, texts, out):
    if os.path.lexists(out):
        raise FileExistsError(str(out))
    if not texts and (scheme.smooth or scheme.method != "rtn"):
        raise ValueError("no texts")
    steps = recipe(scheme, json.loads((source / "config.json").read_text()))
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    arguments: dict[str, Any] = {}
    if scheme.smooth or scheme.method != "rtn":
        arguments = {
            "dataset": Dataset.from_list(
                [{"input_ids": tokenizer(t)["input_ids"][:CALIBRATION_TOKENS]} for t in texts]
            ).map(lambda row: {"attention_mask": [1] * len(row["input_ids"])}),
            "num_calibration_samples": len(texts),
            "max_seq_length": CALIBRATION_TOKENS,
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=steps, **arguments)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".compress-") as scratch:
        ready = Path(scratch) / "ready"
        tokenizer.save_pretrained(ready)
        model.save_pretrained(ready, save_compressed=True)
        ready.rename(out)


def weight_bytes(model):
    if model.suffix == ".gguf":
        return model.stat().st_size
    index = model / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = []
    lost = [name for name in names if not (model / name).exists()]
    sizes = [p.stat().st_size for p in model.iterdir() if p.suffix == ".safetensors"]
    if lost or not sizes:
        raise ValueError(f"weights are missing: {lost}")
    return sum(sizes)


def read_prompt_logprobs(tokens, entries):
    if len(tokens) != len(entries):
        raise ValueError("lengths differ")
    logprobs, likeliest = [None], [None]
    for place, (token, entry) in enumerate(zip(tokens, entries, strict=True)):
        if place == 0:
            continue
        if entry is None or str(token) not in entry:
            raise ValueError(f"place {place} lacks its token")
        names = list(entry)
        values = np.array([entry[name]["logprob"] for name in names], dtype=float)
        if np.isnan(values).any() or (values > 0).any():
            raise ValueError(f"place {place} is no logprob")
        logprobs.append(float(entry[str(token)]["logprob"]))
        likeliest.append(int(names[int(values.argmax())]))
    return Scores(tuple(tokens), tuple(logprobs), tuple(likeliest))


def perplexity(scores):
    found = np.array([p for s in scores for p in s.logprobs[1:]], dtype=float)
    if found.size == 0:
        raise ValueError("nothing scored")
    with np.errstate(over="ignore"):
        return float(np.exp(-found.mean()))


def agreement(scores, original):
    if len(scores) != len(original):
        raise ValueError("not the same number of texts")
    same = total = 0
    for one, other in zip(scores, original, strict=True):
        if tuple(one.tokens) != tuple(other.tokens):
            raise ValueError("not the same text")
        for place in range(1, len(one.tokens)):
            total += 1
            same += one.likeliest[place] == other.likeliest[place]
    if not total:
        raise ValueError("nothing scored")
    return same / total


def throughput(generate, prompts, concurrency, *, clock=time.perf_counter):
    if concurrency < 1 or len(prompts) <= concurrency:
        raise ValueError("too few prompts, or no concurrency")
    _send(generate, prompts[:concurrency], concurrency)
    start = clock()
    tokens = _send(generate, prompts[concurrency:], concurrency)
    return tokens / (clock() - start)


def _send(generate, prompts, concurrency):
    todo: queue.SimpleQueue = queue.SimpleQueue()
    for prompt in prompts:
        todo.put(prompt)
    counts, errors = [], []

    def work():
        while not errors:
            try:
                prompt = todo.get_nowait()
            except queue.Empty:
                return
            try:
                counts.append(generate(prompt))
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts)


def measure(name, server, model, texts, prompts, *, max_tokens=64, clock=time.perf_counter):
    scores = []
    for text in texts:
        scores.append(read_prompt_logprobs(text, server.prompt_logprobs(list(text))))

    def generate(prompt):
        return server.generate(prompt, max_tokens)

    speed = {}
    for concurrency in sorted(REQUESTS):
        asked = prompts(REQUESTS[concurrency] + concurrency)
        speed[concurrency] = throughput(generate, asked, concurrency, clock=clock)
    size, quality = weight_bytes(model), perplexity(scores)
    return Row(name, size, quality, speed, server.memory_bytes(), tuple(scores))


def compare(rows, original):
    names = [row.name for row in rows]
    if names.count(original) != 1:
        raise ValueError("there is not one original")
    base = rows[names.index(original)]
    result = []
    for row in rows:
        speed = {c: v / base.tokens_per_s[c] for c, v in row.tokens_per_s.items()}
        result.append(
            Comparison(
                row,
                row.weight_bytes / base.weight_bytes,
                row.perplexity / base.perplexity,
                row.memory_bytes / base.memory_bytes,
                speed,
                agreement(row.scores, base.scores),
            )
        )
    return result


def choose(comparisons, budget):
    reasons, left = {}, []
    for c in comparisons:
        words = []
        if not c.row.weight_bytes <= budget.disk_bytes:
            words.append("disk")
        if not c.row.memory_bytes <= budget.memory_bytes:
            words.append("memory")
        if not c.perplexity <= budget.perplexity:
            words.append("perplexity")
        if not c.agreement >= budget.agreement:
            words.append("agreement")
        if words:
            reasons[c.row.name] = words
        else:
            left.append(c.row)
    if not left:
        return Choice(None, reasons)
    fastest = max(row.tokens_per_s[budget.concurrency] for row in left)
    equals = []
    for row in left:
        if row.tokens_per_s[budget.concurrency] >= fastest * (1 - budget.noise):
            equals.append(row)
        else:
            reasons[row.name] = ["slower"]
    equals.sort(key=lambda row: row.memory_bytes)
    for row in equals[1:]:
        reasons[row.name] = ["larger"]
    return Choice(equals[0].name, reasons)
