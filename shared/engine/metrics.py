"""What engines report about themselves: Prometheus pages and logs, read the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_LLAMA_KV = re.compile(
    r"llama_kv_cache: size =\s*(?P<mib>[\d.]+) MiB \(\s*(?P<cells>\d+) cells,.*?"
    r"(?P<streams>\d+)/\d+ seqs\)"
)
_VLLM_AVAILABLE = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
_LLAMA_STREAMS = re.compile(r"(?P<sequences>\d+)/(?P<streams>\d+) seqs\)")

PROMPT_TOKENS = {
    # llama.cpp counts prompt tokens that its cache spared apart; vLLM counts all in one.
    "portable": ("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
    "vllm": ("vllm:prompt_tokens_total",),
}
GENERATED_TOKENS = {
    "portable": ("llamacpp:tokens_predicted_total",),
    "vllm": ("vllm:generation_tokens_total",),
}
RUNNING = {
    "portable": ("llamacpp:requests_processing",),
    "vllm": ("vllm:num_requests_running",),
}
WAITING = {
    "portable": ("llamacpp:requests_deferred",),
    "vllm": ("vllm:num_requests_waiting",),
}


@dataclass(frozen=True)
class Sample:
    """One line of a Prometheus page."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class EngineCounters:
    """Totals since the engine started, and how many requests it is decoding now."""

    prompt_tokens: int
    generated_tokens: int
    running: int


@dataclass(frozen=True)
class KVCacheReport:
    """An engine's KV cache, as the engine itself reports it.

    `bytes` is the memory that the cache was given: vLLM cuts it into whole blocks of
    `block_tokens`, so up to one block's worth is left over; llama.cpp allocates token by token
    (`block_tokens` is 1) and uses all of it.
    """

    tokens: int
    block_tokens: int
    bytes: int


def parse_prometheus(page: str) -> list[Sample]:
    """Samples of a page in Prometheus's text format."""
    samples = []
    for line in page.splitlines():
        match = None if line.startswith("#") else _SAMPLE.match(line)
        if match is not None:
            labels = dict(_LABEL.findall(match["labels"] or ""))
            samples.append(Sample(match["name"], labels, float(match["value"])))
    return samples


def total(samples: list[Sample], names: tuple[str, ...]) -> int:
    """Sum over all series of these names."""
    return int(sum(s.value for s in samples if s.name in names))


def counters_of(page: str, family: str) -> EngineCounters:
    """Counters from the page of an engine of `family`, ``"vllm"`` or ``"portable"``."""
    samples = parse_prometheus(page)
    return EngineCounters(
        prompt_tokens=total(samples, PROMPT_TOKENS[family]),
        generated_tokens=total(samples, GENERATED_TOKENS[family]),
        running=total(samples, RUNNING[family]),
    )


def busy(page: str, family: str) -> bool:
    """Whether a request is being served or waits."""
    samples = parse_prometheus(page)
    return total(samples, RUNNING[family]) + total(samples, WAITING[family]) > 0


def kv_of_llama_log(log: str) -> KVCacheReport | None:
    """The KV cache from llama.cpp's log: cells of each stream, times streams."""
    found = None
    for line in log.splitlines():
        size, streams = _LLAMA_KV.search(line), _LLAMA_STREAMS.search(line)
        if size and streams:
            found = KVCacheReport(
                tokens=int(size["cells"]) * int(streams["streams"]),
                block_tokens=1,
                bytes=round(float(size["mib"]) * 2**20),
            )
    return found


def kv_of_vllm(page: str, log: str) -> KVCacheReport | None:
    """The KV cache from vLLM's `vllm:cache_config_info`.

    Where the memory was not configured but measured (on a GPU), only the log tells how much.
    """
    info = [s.labels for s in parse_prometheus(page) if s.name == "vllm:cache_config_info"]
    if not info:
        return None
    block = _integer(info[0].get("block_size"))
    tokens = _integer(info[0].get("kv_cache_size_tokens"))
    given = _integer(info[0].get("kv_cache_memory_bytes"))
    if block and not tokens:
        tokens = _integer(info[0].get("num_gpu_blocks")) * block
    if not given:
        logged = _VLLM_AVAILABLE.findall(log)
        given = round(float(logged[-1]) * 2**30) if logged else 0
    return KVCacheReport(tokens, block, given) if tokens and block and given else None


def _integer(text: str | None) -> int:
    """The number a label holds; 0 for ``"None"`` and the like."""
    return int(text) if text is not None and text.isdigit() else 0
