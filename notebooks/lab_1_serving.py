# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 1: what a model server does under load
#
# A chat endpoint answers well in a demo and falls over on Monday. This notebook shows why, on a
# real server on your machine. You will see
#
# 1. how much memory a conversation takes, and so how many of them fit,
# 2. what a user waits for: the first token, and then each next one,
# 3. how latency behaves as the load grows, and where the knee is,
# 4. why two load tests of one server can contradict each other.
#
# The code comes from the lab's tasks. `WORK = "solution"` runs the reference; set it to `"starter"`
# to run what you wrote yourself (tasks 1.1, 1.3 and 1.4).

# %%
WORK = "solution"  # or "starter": your own files

import asyncio
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "labs").is_dir())
sys.path[:0] = [str(ROOT), str(ROOT / "labs" / "lab_1_serving" / WORK)]

from shared import offline

offline.apply()
warnings.filterwarnings("ignore", message="IProgress not found")

import httpx
import matplotlib.pyplot as plt
import numpy as np
from kv_budget import kv_budget, kv_bytes_per_token
from load_test import (
    Outcome,
    find_knee,
    log_sweep,
    percentile,
    plot_sweep,
    poisson_arrivals,
    run_open_loop,
    summarize,
)
from records import SLO, RequestRecord
from streaming_client import RetryPolicy, StreamError, stream_chat

from shared.engine import ensure_engine
from shared.tracking import own_store

engine = ensure_engine(os.environ.get("ENGINE") or "portable")
rng = np.random.default_rng(7)
print(f"engine: {engine.kind}, model: {engine.model}, context: {engine.max_model_len} tokens")

# %% [markdown]
# ## 1. Memory: the KV cache decides how many users fit
#
# For each past token the server keeps a key and a value vector, in each layer, for each key-value
# head. Below, the memory of one token for a few published models, in bfloat16.

# %%
MODELS = {
    "Llama-2-7B (multi-head)": {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_size": 4096,
    },
    "Llama-3-8B (grouped-query)": {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
    },
    "Qwen2.5-7B (grouped-query)": {
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_size": 3584,
    },
    "Gemma-2B (multi-query)": {
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "hidden_size": 2048,
    },
}
MODELS[f"{engine.model} (here)"] = engine.model_config

for name, config in MODELS.items():
    print(f"{name:36} {kv_bytes_per_token(config) / 1024:8.1f} KiB a token")

# %% [markdown]
# A GPU with 16 GiB left for the cache, blocks of 16 tokens: how many sequences can be on the way
# at once, if each grows to a given length?

# %%
lengths = [256 * 2**i for i in range(9)]
GIB = 2**30

fig, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
for name, config in MODELS.items():
    sequences = [
        kv_budget(config, memory_bytes=16 * GIB, block_tokens=16, sequence_tokens=n).sequences
        for n in lengths
    ]
    axes.plot(lengths, [s or np.nan for s in sequences], "o-", label=name)
axes.set(
    xscale="log",
    yscale="log",
    xlabel="tokens a sequence",
    ylabel="sequences at once",
    title="What 16 GiB of KV cache hold",
)
axes.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
axes.minorticks_off()
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %% [markdown]
# The engine that runs here reports its own cache. Does your arithmetic agree with it?

# %%
report = engine.kv_cache()
mine = kv_budget(
    engine.model_config,
    memory_bytes=report.bytes,
    block_tokens=report.block_tokens,
    sequence_tokens=engine.max_model_len,
)
print(f"the engine says: {report.tokens:,} tokens in {report.bytes / 2**20:,.0f} MiB")
print(f"your function:   {mine.tokens:,} tokens, {mine.sequences} sequences of full length")

# %% [markdown]
# **Questions.** Llama-2-7B and Llama-3-8B have about the same weights. What lets one of them serve
# four times the users? By what factor does the number of sequences fall when the context
# doubles, and is that so at the very short end too? What would an 8-bit cache change?

# %% [markdown]
# ## 2. What a user waits for
#
# `stream_chat` (task 1.3) measures the time to first token (TTFT) and the gaps between tokens
# (inter-token latency, ITL). TTFT is mostly the time to read the prompt, ITL the time to write one
# more token. So they react to different things: the first to the prompt's length, the second to how
# many others are being served in the same batch.

# %%
http = httpx.AsyncClient(trust_env=False, timeout=120, limits=httpx.Limits(max_connections=None))
ONCE = RetryPolicy(max_attempts=1)  # a retry would hide what we want to see
TOPICS = ("the sea", "a bridge", "the moon", "a train", "the forest", "an island", "a clock")


def request(index: int, *, prompt_words: int = 2, max_tokens: int = 16) -> dict:
    """A chat request whose prompt no other request shares, so that no cache spares the reading."""
    words = [f"{TOPICS[(index + i) % len(TOPICS)]} {index + i}," for i in range(prompt_words)]
    prompt = f"Number {index}. Write a story about {' '.join(words)}"
    return {
        "model": engine.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def streams(count: int, at_once: int, first: int, **kind: int) -> list:
    """`count` answers, `at_once` of them at a time."""
    slots = asyncio.Semaphore(at_once)

    async def one(index: int):
        async with slots:
            return await stream_chat(http, engine.base_url, request(index, **kind), policy=ONCE)

    return await asyncio.gather(*(one(first + i) for i in range(count)))


await streams(1, 1, 0)  # the first request of all warms up caches
alone = await streams(6, 1, 100)
long_prompt = await streams(5, 1, 200, prompt_words=60)
crowd = await streams(12, 6, 300)

CASES = {
    "alone, short prompt": alone,
    "alone, long prompt": long_prompt,
    "6 at a time, short prompt": crowd,
}
for name, results in CASES.items():
    prompt_tokens = statistics.mean(r.prompt_tokens for r in results)
    ttft = percentile([r.ttft_s for r in results], 50)
    itl = percentile([gap for r in results for gap in r.itl_s], 50)
    print(
        f"{name:26} {prompt_tokens:5.0f} prompt tokens   "
        f"TTFT p50 {ttft * 1000:6.0f} ms   ITL p50 {itl * 1000:6.1f} ms"
    )

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, results in CASES.items():
    left.ecdf([r.ttft_s * 1000 for r in results], label=name)
    right.ecdf([gap * 1000 for r in results for gap in r.itl_s], label=name)
left.set(xlabel="time to first token (ms)", ylabel="share of requests")
right.set(xlabel="inter-token latency (ms)", ylabel="share of gaps", xscale="log")
right.set_xlim(left=1)
for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# **Questions.** Which of the two curves does a long prompt move, and which does company move? A
# user reads about five words a second: which of the ITLs above would they notice? The crowd's ITL
# has a tail: what does the server do at the moments at which a gap is long?

# %% [markdown]
# ## 3. Load: latency against offered rate
#
# First, roughly, what the server can do at most: twelve users who ask again and again. Then an
# open-loop sweep around that rate, with Poisson arrivals, as task 1.4 does it: each request is sent
# when it is due, and its wait counts from then.

# %%
TOKENS = 16


async def send(index: int) -> Outcome:
    """Send one request and tell how it went, in the words of the load test."""
    try:
        got = await stream_chat(
            http, engine.base_url, request(index, max_tokens=TOKENS), policy=ONCE
        )
    except StreamError as error:
        return Outcome(status=error.status or 0, error=str(error), attempts=error.attempts)
    return Outcome(
        status=200,
        ttft_s=got.ttft_s,
        prompt_tokens=got.prompt_tokens or 0,
        output_tokens=got.completion_tokens or 0,
        finish_reason=got.finish_reason,
        attempts=got.attempts,
    )


begun = time.perf_counter()
await streams(24, 12, 1000, max_tokens=TOKENS)
capacity = 24 / (time.perf_counter() - begun)

begun = time.perf_counter()
await streams(4, 1, 2000, max_tokens=TOKENS)
unloaded_s = (time.perf_counter() - begun) / 4

slo = SLO(ttft_s=2 * unloaded_s, latency_s=4 * unloaded_s)
print(f"at most about {capacity:.1f} requests/s; alone, a request takes {unloaded_s:.2f} s")
print(f"SLO: first token within {slo.ttft_s:.2f} s, the whole answer within {slo.latency_s:.2f} s")

# %%
sweep = []
for step, share in enumerate((0.15, 0.3, 0.5, 0.7, 0.9, 1.2)):
    rate = capacity * share
    seconds = min(max(12 / rate, 5.0), 15.0)  # a dozen requests at least, if it does not take long
    arrivals = poisson_arrivals(rate, seconds, rng) or [0.0]
    # Numbers that no other run uses, so that prompts stay distinct.
    first = 10_000 * (step + 1)
    records = await run_open_loop(lambda i, first=first: send(first + i), arrivals)
    summary = summarize(records, slo, offered_rps=rate)
    sweep.append((summary, records))
    print(
        f"{share:4.0%} of capacity: {summary.requests:3} requests, throughput "
        f"{summary.throughput_rps:5.2f}/s, goodput {summary.goodput_rps:5.2f}/s, latency p50 "
        f"{summary.latency_p50_s or float('nan'):5.2f} s, p99 "
        f"{summary.latency_p99_s or float('nan'):5.2f} s, SLO met by {summary.slo_attainment:.0%}"
    )

knee = find_knee([summary for summary, _ in sweep])
held = "not even the lowest rate held" if knee.held_rps is None else f"held {knee.held_rps:.2f}/s"
broke = "nothing broke it" if knee.broke_rps is None else f"broke at {knee.broke_rps:.2f}/s"
print(f"the knee: {held}, {broke}")

# %%
from tempfile import TemporaryDirectory

from IPython.display import Image

with TemporaryDirectory() as folder:
    plot_sweep([summary for summary, _ in sweep], slo, Path(folder) / "sweep.png", knee=knee)
    picture = Image(filename=Path(folder) / "sweep.png")
picture

# %% [markdown]
# The sweep goes to your own MLflow store; `make ui` shows it, with the records as artifacts.

# %%
import logging

for name in ("alembic", "mlflow"):  # the store's set-up messages
    logging.getLogger(name).setLevel(logging.WARNING)

run_id = log_sweep(
    sweep,
    slo,
    tracking_uri=own_store().uri,
    experiment="lab 1 load test",
    artifact_dir=own_store().artifacts,
    params={"engine": engine.kind, "model": engine.model, "tokens": TOKENS},
)
print("logged one run with", len(sweep), "rates")

# %% [markdown]
# **Questions.** Throughput still grows where goodput already falls: what does that mean for a
# capacity plan made from throughput? These runs are a few seconds long: which of the percentiles
# above would you show to your manager, and which rest on one request? Throughput lies below the
# offered rate even where the server keeps up: which seconds of a short run does it count that
# bring no new users?

# %% [markdown]
# ## 4. Two load tests, one server
#
# The same server, the same arrivals, the same incident: in the middle of the run, a gateway holds
# all new requests for two seconds. One test is open-loop. The other one waits for each
# answer before it sends the next request, and counts from when it sent: a plain loop, as many are
# written.

# %%
HELD_FROM, HELD_FOR, LENGTH = 4.0, 2.0, 10.0
quiet_rate = min(max(0.3 / unloaded_s, 1.0), 8.0)
arrivals = poisson_arrivals(quiet_rate, LENGTH, rng)


def with_incident(first: int):
    """A `send` for a run that begins now, with two bad seconds in the middle."""
    start = time.perf_counter()

    async def send_through_gateway(index: int) -> Outcome:
        arrived = time.perf_counter() - start
        held = HELD_FROM <= arrived < HELD_FROM + HELD_FOR
        if held:
            await asyncio.sleep(HELD_FROM + HELD_FOR - arrived)
        return await send(first + index)

    return send_through_gateway


async def run_closed_loop(send_one, arrivals: list[float]) -> list[RequestRecord]:
    """The plain loop: wait for each answer, count from sending. Not to be used elsewhere."""
    start = time.perf_counter()
    records = []
    for index, due in enumerate(arrivals):
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - start)))
        sent = time.perf_counter() - start
        got = await send_one(index)
        ended = time.perf_counter() - start
        records.append(
            RequestRecord(
                scheduled_s=sent,
                sent_s=sent,
                finished_s=ended,
                status=got.status,
                finish_reason=got.finish_reason,
                error=got.error,
            )
        )
    return records


open_loop = await run_open_loop(with_incident(200_000), arrivals)
closed_loop = await run_closed_loop(with_incident(300_000), arrivals)

RUNS = {"open loop, from due": open_loop, "closed loop, from sent": closed_loop}
for name, records in RUNS.items():
    waits = [r.latency_s for r in records if r.ok]
    slow = sum(wait > HELD_FOR / 4 + unloaded_s for wait in waits)
    print(
        f"{name:24} {len(waits)} requests, {slow} of them slow; "
        + ", ".join(f"p{q} {percentile(waits, q):.2f} s" for q in (50, 90, 95, 99))
    )

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for (name, records), mark in zip(RUNS.items(), ("o", "x"), strict=True):
    waits = [r.latency_s for r in records if r.ok]
    left.plot([r.scheduled_s for r in records if r.ok], waits, mark, label=name)
    right.ecdf(waits, label=name)
left.axvspan(HELD_FROM, HELD_FROM + HELD_FOR, color="orange", alpha=0.25, label="incident")
left.set(
    xlabel="second of the run", ylabel="latency (s)", title="Each request; the incident shaded"
)
right.set(xlabel="latency (s)", ylabel="share of requests", title="Distribution")
for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend()
plt.show()

await http.aclose()

# %% [markdown]
# **Questions.** How many users arrived during the two bad seconds, and how many of them does each
# test know of? The closed loop's requests right after the incident look fast: when did their users
# begin to wait? Your dashboard is fed by a client that works one request at a time: what
# will its p99 say on the day of the outage?
