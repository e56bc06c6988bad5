"""Compress a model with the field's tool, serve what came out, and choose by what was measured.

The tool is llm-compressor, its format compressed-tensors, the server vLLM. A checkpoint that is
half the size is worth nothing until somebody has served it: so everything here that counts is
asked of a running server, of the original and of the compressed model in the same run, and what
is compared is ratios.
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
    """How a model is to be compressed.

    Attributes:
        weights: type of the weights of linear layers.
        activations: type to which their inputs are rounded while the model runs, each token with a
            scale of its own; None leaves them as they are.
        method: ``"rtn"`` rounds to nearest and needs no texts; ``"gptq"`` compensates errors.
        group: columns that share a scale, at most; None gives each row one scale.
        smooth: whether SmoothQuant comes first and moves outliers from activations to weights.
    """

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
    """What a model says of a text it is given, one value a token.

    Attributes:
        tokens: the text.
        logprobs: natural logarithm of the probability of each token after those before it. The
            first is None.
        likeliest: the token that the model finds most likely in its place. The first is None.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    likeliest: tuple[int | None, ...]


@dataclass(frozen=True)
class Row:
    """One model on one server, measured.

    Attributes:
        name: what to call it.
        weight_bytes: size of its weights on disk.
        perplexity: over all texts.
        tokens_per_s: generated tokens a second, at each concurrency of `REQUESTS`.
        memory_bytes: the most that its server had.
        scores: one for each text, in their order.
    """

    name: str
    weight_bytes: int
    perplexity: float
    tokens_per_s: Mapping[int, float]
    memory_bytes: int
    scores: tuple[Scores, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Comparison:
    """A row beside the original of the same run.

    Attributes:
        row: what was measured.
        size, perplexity, memory: the row's value over the original's.
        speed: the same of tokens a second, at each concurrency.
        agreement: share of places at which both find the same token most likely.
    """

    row: Row
    size: float
    perplexity: float
    memory: float
    speed: Mapping[int, float]
    agreement: float


@dataclass(frozen=True)
class Budget:
    """What a device has, and what its users accept.

    Attributes:
        disk_bytes, memory_bytes: the most that weights on disk and the server may take.
        concurrency: requests at once that the device is for, one of `REQUESTS`.
        perplexity: the largest ratio of perplexities that is accepted.
        agreement: the smallest agreement that is accepted.
        noise: speeds that differ by no more than this share count as equal.
    """

    disk_bytes: int
    memory_bytes: int
    concurrency: int
    perplexity: float
    agreement: float
    noise: float = 0.05


@dataclass(frozen=True)
class Choice:
    """The model for a device, and why not the others.

    Attributes:
        name: the row's name; None if none will do.
        reasons: for each row but the chosen one, why not, in this order of words: ``"disk"``,
            ``"memory"``, ``"perplexity"``, ``"agreement"`` (every one that it breaks); or, if it
            breaks none, ``"slower"`` or ``"larger"`` alone. The chosen row has no reasons.
    """

    name: str | None
    reasons: Mapping[str, tuple[str, ...]]


def group_size(wanted: int, config: Mapping[str, Any]) -> int:
    """The largest of `GROUP_SIZES` up to `wanted` that divides the columns of every linear layer.

    The columns of a Llama block's layers are `hidden_size` (what attention and MLP read),
    `num_attention_heads` times `head_dim` (what attention's output layer reads) and
    `intermediate_size` (what the MLP's last layer reads). An absent or null `head_dim` is
    `hidden_size` divided by `num_attention_heads`. A group that does not divide them cannot be
    stored, and the usual preset, 128, does not divide 576.

    Args:
        config: the model's `config.json`.

    Raises:
        ValueError: none will do; the message names the three numbers.
    """
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    columns = (config["hidden_size"], heads * width, config["intermediate_size"])
    for size in GROUP_SIZES:
        if size <= wanted and not any(n % size for n in columns):
            return size
    raise ValueError(f"no group of {GROUP_SIZES} up to {wanted} divides all of {columns}")


def recipe(scheme: Scheme, config: Mapping[str, Any]) -> list[Any]:
    """llm-compressor's modifiers for a scheme, in the order in which they are applied.

    `SmoothQuantModifier` (strength 0.8) first where the scheme is smooth, then
    `QuantizationModifier` for round-to-nearest or `GPTQModifier`. Quantized are the layers of class
    ``Linear``, but never ``lm_head``: the last layer is a small part of a large model, and every
    error in it goes straight into the probabilities.

    Each weight has a symmetric grid. Its scales are a row's own ("channel"), or, with
    `scheme.group`, a group's, of the size that `group_size` finds. Activations have a symmetric
    grid for each token, found while the model runs (dynamic).

    The modifiers are in `llmcompressor.modifiers.quantization` and, for SmoothQuant, in
    `llmcompressor.modifiers.transform.smoothquant`. `compressed_tensors.quantization` has the words
    for grids: `QuantizationScheme` and `QuantizationArgs`, for a modifier's `config_groups`, and
    `preset_name_to_scheme` for those who start from a preset.

    Args:
        config: the model's `config.json`.

    Raises:
        ValueError: as for `group_size`.
    """
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
            num_bits=bits, type=kind, symmetric=True, strategy="token", dynamic=True
        )
    layers = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
    modifier = GPTQModifier if scheme.method == "gptq" else QuantizationModifier
    smooth = [SmoothQuantModifier(smoothing_strength=0.8)] if scheme.smooth else []
    return [*smooth, modifier(config_groups={"group_0": layers}, ignore=["lm_head"])]


def compress(source: Path, scheme: Scheme, texts: Sequence[str], out: Path) -> None:
    """Write the compressed model, with its tokenizer, as a folder that vLLM serves.

    `llmcompressor.oneshot` applies `recipe`. Where the scheme needs texts (GPTQ and SmoothQuant),
    it is given all of them, one sample each, cut to `CALIBRATION_TOKENS` tokens of the source's own
    tokenizer, in the same order each time: the same texts give the same weights. Left to itself,
    `oneshot` reads 512 samples at most, shuffles them, and cuts none (`num_calibration_samples`,
    `shuffle_calibration_samples`, `max_seq_length`).

    The tokenizer is saved as the source has it. One that was called with ``truncation=True`` keeps
    that, and saves it.

    A model that `oneshot` has changed is saved by its `save_pretrained(..., save_compressed=True)`.

    `out` appears whole or not at all: while the work goes on, and after it has failed, nothing is
    at `out`, and after it has ended, well or not, nothing is left beside it.

    Args:
        source: a folder in Hugging Face's format. Not changed.
        texts: for calibration; never those that quality is measured on.
        out: where to write; its parent exists.

    Raises:
        FileExistsError: `out` exists: a folder, a file, or a link, even one that leads nowhere.
            Found out before any work.
        ValueError: the scheme needs texts and there are none; or as for `recipe`. Found out before
            any work too.
    """
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
    """Bytes of a model's weights on disk.

    Args:
        model: a .gguf file, or a folder with one or several .safetensors files. All that lie in
            the folder itself count, also one that the index does not name: it takes the disk all
            the same. Tokenizer, configs, sub-folders and whatever else lies there are no weights.

    Raises:
        ValueError: there are no weights, or a file that `model.safetensors.index.json` names is
            missing. The message says what is missing.
    """
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
    """Make scores of what a server says of a prompt.

    Args:
        tokens: the prompt.
        entries: one for each token, as `ModelServer.prompt_logprobs` gives them: the first is None,
            each other one a dict from token ids as text to a dict with ``"logprob"``. Entry i is
            about tokens[i]: it has this token, and the one that is likeliest in its place, perhaps
            the same. `rank` is not always there. Of two that are equally likely, either will do.
            The first entry is not looked at, whatever it is.

    Raises:
        ValueError: the lengths differ; an entry but the first is None or lacks its token; or any
            logprob of an entry, the text's own or the other, is NaN or above 0. The message names
            the place. Minus infinity is a value: the model excludes the token.
    """
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
    """exp of the mean negative logprob over all scored tokens of all texts together.

    Long texts count for more than short ones: the mean is over tokens. The first token of a text
    has no logprob and is not counted.

    Returns:
        1 or more; infinity if a token was excluded.

    Raises:
        ValueError: no token is scored.
    """
    found = [p for text in scores for p in text.logprobs if p is not None]
    if not found:
        raise ValueError("no token has a logprob")
    mean = -math.fsum(found) / len(found)
    return math.exp(mean) if mean < 700 else math.inf


def agreement(scores: Sequence[Scores], original: Sequence[Scores]) -> float:
    """Share of places at which two models find the same token most likely, over all texts together.

    Both have read the same text up to that place, so one early difference does not count again
    and again, as it would if each went on with its own words.

    Raises:
        ValueError: the two are not about the same texts in the same order, or no place is scored.
    """
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
    """Generated tokens a second of all requests together, with `concurrency` at a time.

    The first `concurrency` prompts warm the server up, all at once: memory is allocated, kernels
    are compiled, and neither their tokens nor their time count. When all of them are answered, the
    others are sent, `concurrency` at a time: as soon as one is answered the next goes out. The
    time is from just before the first of these to just after the last answer.

    Args:
        generate: sends a prompt, waits for the answer, and returns how many tokens it has. Safe to
            be called from threads. What it raises is raised here.
        prompts: each is sent once.
        clock: seconds.

    Raises:
        ValueError: `concurrency` is below 1, or no prompt is left after the warm-up.
    """
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
    """Measure a running server: quality on held-out texts, then speed, then memory.

    Speed is `throughput` at each concurrency of `REQUESTS`, with that many requests that count and
    the warm-up before them, and answers of `max_tokens` tokens. Memory is read last, so that it is
    the most that all of this took.

    Args:
        model: what the server serves, for `weight_bytes`.
        texts: held-out texts as tokens.
        prompts: gives a number of prompts that the server has never seen. Ask it anew for each
            concurrency: a prompt that comes twice is half answered by the server's cache.
    """
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
    """Each row beside the original, itself included, in their order.

    Raises:
        ValueError: no row, or more than one, is called `original`; or as for `agreement`.
    """
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
    """The model for a device: of those that fit and are good enough, the fastest.

    A row breaks the budget if it takes more disk or memory than there is, if its perplexity ratio
    is above or its agreement below what is accepted; just at the limit is within it. One of these
    four that is not a number breaks it too: what could not be measured is not proven. If every row
    breaks it, none is chosen: the least bad one is still too bad.

    Of the others the fastest at the budget's concurrency counts; speeds are always numbers,
    `throughput` gives no others. All whose tokens a second reach at
    least (1 - `noise`) of the fastest's are as fast as it; of these the one whose server takes the
    least memory is chosen, and of equal ones the first. Those that are not as fast are "slower",
    those that are as fast and not chosen "larger".

    Args:
        comparisons: rows beside their original, which is a candidate like the others. Names differ.
    """
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
    """The arguments with which `oneshot` reads all of these texts."""
    from datasets import Dataset

    # Cut here and not by the tokenizer, which would keep that setting and be saved with it.
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
