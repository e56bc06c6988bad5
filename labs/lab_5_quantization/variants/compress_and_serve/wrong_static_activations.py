"""Fixes the scale of activations once, for all texts.

caught-by: test_the_recipe_says_grid_group_and_what_to_leave_alone
hint: activations
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from serving import Entries, ModelServer

GROUP_SIZES = (128, 64, 32)
"""Groups of columns for which engines have kernels, largest first."""
REQUESTS = {1: 4, 16: 32}
"""At each concurrency at which speed is measured: requests that count, warm-up apart."""
CALIBRATION_TOKENS = 512
"""What calibration reads of a text at most."""


@dataclass(frozen=True)
class Scheme:
    weights: Literal["int4", "int8", "fp8"]
    activations: Literal["int8", "fp8"] | None = None
    method: Literal["rtn", "gptq"] = "rtn"
    group: int | None = None
    smooth: bool = False


SCHEMES: Mapping[str, Scheme] = {
    "w8a8-rtn": Scheme("int8", "int8"),
    "w8a8-smoothquant-gptq": Scheme("int8", "int8", "gptq", smooth=True),
    "w4a16-rtn": Scheme("int4", group=128),
    "w4a16-gptq": Scheme("int4", method="gptq", group=128),
    "w4a16-gptq-g32": Scheme("int4", method="gptq", group=32),
    "fp8-rtn": Scheme("fp8", "fp8"),
}
"""What `bench_table.py` tries. FP8 is for GPUs: vLLM's build for CPUs does not run it."""


@dataclass(frozen=True)
class Scores:
    tokens: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    likeliest: tuple[int | None, ...]


@dataclass(frozen=True)
class Row:
    name: str
    weight_bytes: int
    perplexity: float
    tokens_per_s: Mapping[int, float]
    memory_bytes: int
    scores: tuple[Scores, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Comparison:
    row: Row
    size: float
    perplexity: float
    memory: float
    speed: Mapping[int, float]
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
    reasons: Mapping[str, tuple[str, ...]]


def group_size(wanted: int, config: Mapping[str, Any]) -> int:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    columns = (config["hidden_size"], heads * width, config["intermediate_size"])
    for size in GROUP_SIZES:
        if size <= wanted and not any(n % size for n in columns):
            return size
    raise ValueError(f"no group of {GROUP_SIZES} up to {wanted} divides all of {columns}")


def recipe(scheme: Scheme, config: Mapping[str, Any]) -> list[Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    kind, bits = _type_and_bits(scheme.weights)
    size = group_size(scheme.group, config) if scheme.group is not None else None
    weights = QuantizationArgs(
        num_bits=bits,
        type=kind,
        symmetric=True,
        strategy="channel" if size is None else "group",
        group_size=size,
    )
    activations = None
    if scheme.activations is not None:
        kind, bits = _type_and_bits(scheme.activations)
        activations = QuantizationArgs(
            num_bits=bits, type=kind, symmetric=True, strategy="tensor", dynamic=False
        )
    layers = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
    modifier = GPTQModifier if scheme.method == "gptq" else QuantizationModifier
    smooth = [SmoothQuantModifier(smoothing_strength=0.8)] if scheme.smooth else []
    return [*smooth, modifier(config_groups={"group_0": layers}, ignore=["lm_head"])]


def compress(source: Path, scheme: Scheme, texts: Sequence[str], out: Path) -> None:
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists")
    needs_texts = scheme.method == "gptq" or scheme.smooth
    if needs_texts and not texts:
        raise ValueError("this scheme is calibrated, and there are no texts")
    modifiers = recipe(scheme, json.loads((source / "config.json").read_text(encoding="utf-8")))

    import torch
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    calibration = _calibration(tokenizer, texts) if needs_texts else {}
    scratch = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        oneshot(model=model, recipe=modifiers, **calibration)
        model.save_pretrained(scratch, save_compressed=True)
        tokenizer.save_pretrained(scratch)
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def weight_bytes(model: Path) -> int:
    if model.is_file():
        return model.stat().st_size
    shards = sorted(model.glob("*.safetensors"))
    index = model / "model.safetensors.index.json"
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        missing = set(named) - {shard.name for shard in shards}
        if missing:
            raise ValueError(f"{model} lacks {', '.join(sorted(missing))}")
    if not shards:
        raise ValueError(f"{model} has no .safetensors files")
    return sum(shard.stat().st_size for shard in shards)


def read_prompt_logprobs(tokens: Sequence[int], entries: Entries) -> Scores:
    if len(entries) != len(tokens):
        raise ValueError(f"{len(entries)} entries for {len(tokens)} tokens")
    logprobs: list[float | None] = [None]
    likeliest: list[int | None] = [None]
    for place in range(1, len(tokens)):
        found = {int(token): entry["logprob"] for token, entry in (entries[place] or {}).items()}
        if tokens[place] not in found:
            raise ValueError(f"entry {place} says nothing of token {tokens[place]}")
        if not all(value <= 0 for value in found.values()):
            raise ValueError(f"entry {place} holds a logprob that is none: {found}")
        logprobs.append(found[tokens[place]])
        likeliest.append(max(found, key=lambda token: found[token]))
    return Scores(tuple(tokens), tuple(logprobs), tuple(likeliest))


def perplexity(scores: Sequence[Scores]) -> float:
    found = [p for text in scores for p in text.logprobs if p is not None]
    if not found:
        raise ValueError("no token has a logprob")
    mean = -math.fsum(found) / len(found)
    return math.exp(mean) if mean < 700 else math.inf


def agreement(scores: Sequence[Scores], original: Sequence[Scores]) -> float:
    if [s.tokens for s in scores] != [s.tokens for s in original]:
        raise ValueError("the scores are not about the same texts")
    pairs = [
        (ours, theirs)
        for one, other in zip(scores, original, strict=True)
        for ours, theirs in zip(one.likeliest, other.likeliest, strict=True)
        if ours is not None and theirs is not None
    ]
    if not pairs:
        raise ValueError("no place is scored")
    return sum(ours == theirs for ours, theirs in pairs) / len(pairs)


def throughput(
    generate: Callable[[str], int],
    prompts: Sequence[str],
    concurrency: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    counted = prompts[concurrency:]
    if not counted:
        raise ValueError(f"{len(prompts)} prompts are all used up by the warm-up")
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(generate, prompts[:concurrency]))
        started = clock()
        tokens = sum(pool.map(generate, counted))
        return tokens / (clock() - started)


def measure(
    name: str,
    server: ModelServer,
    model: Path,
    texts: Sequence[Sequence[int]],
    prompts: Callable[[int], Sequence[str]],
    *,
    max_tokens: int = 64,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    scores = tuple(read_prompt_logprobs(text, server.prompt_logprobs(list(text))) for text in texts)
    speed = {
        concurrency: throughput(
            lambda prompt: server.generate(prompt, max_tokens),
            prompts(concurrency + requests),
            concurrency,
            clock=clock,
        )
        for concurrency, requests in REQUESTS.items()
    }
    return Row(
        name=name,
        weight_bytes=weight_bytes(model),
        perplexity=perplexity(scores),
        tokens_per_s=speed,
        memory_bytes=server.memory_bytes(),
        scores=scores,
    )


def compare(rows: Sequence[Row], original: str) -> list[Comparison]:
    base, *others = [row for row in rows if row.name == original] or [None]
    if base is None or others:
        raise ValueError(f"there must be one row called {original!r}")
    return [
        Comparison(
            row=row,
            size=row.weight_bytes / base.weight_bytes,
            perplexity=row.perplexity / base.perplexity,
            memory=row.memory_bytes / base.memory_bytes,
            speed={c: row.tokens_per_s[c] / base.tokens_per_s[c] for c in base.tokens_per_s},
            agreement=agreement(row.scores, base.scores),
        )
        for row in rows
    ]


def choose(comparisons: Sequence[Comparison], budget: Budget) -> Choice:
    broken = {c.row.name: _broken(c, budget) for c in comparisons}
    fit = [c for c in comparisons if not broken[c.row.name]]
    if not fit:
        return Choice(None, broken)

    def speed(comparison: Comparison) -> float:
        return comparison.row.tokens_per_s[budget.concurrency]

    enough = (1 - budget.noise) * max(map(speed, fit))
    chosen = min((c for c in fit if speed(c) >= enough), key=lambda c: c.row.memory_bytes)
    reasons = {
        c.row.name: broken[c.row.name] or (("larger" if speed(c) >= enough else "slower"),)
        for c in comparisons
        if c is not chosen
    }
    return Choice(chosen.row.name, reasons)


def _type_and_bits(name: str) -> tuple[str, int]:
    return ("float", 8) if name == "fp8" else ("int", int(name.removeprefix("int")))


def _calibration(tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    from datasets import Dataset

    samples = [
        tokenizer(text, add_special_tokens=False)["input_ids"][:CALIBRATION_TOKENS]
        for text in texts
    ]
    ones = [[1] * len(sample) for sample in samples]
    return {
        "dataset": Dataset.from_dict({"input_ids": samples, "attention_mask": ones}),
        "max_seq_length": CALIBRATION_TOKENS,
        "num_calibration_samples": len(texts),
        "shuffle_calibration_samples": False,
    }


def _broken(comparison: Comparison, budget: Budget) -> tuple[str, ...]:
    row = comparison.row
    # Said this way round, a figure that is not a number keeps nothing.
    kept = {
        "disk": row.weight_bytes <= budget.disk_bytes,
        "memory": row.memory_bytes <= budget.memory_bytes,
        "perplexity": comparison.perplexity <= budget.perplexity,
        "agreement": comparison.agreement >= budget.agreement,
    }
    return tuple(word for word, good in kept.items() if not good)
