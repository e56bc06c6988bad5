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
# # Lab 5: small enough for the branch
#
# A model is numbers, and most of them can be stored with less. This notebook looks at those of
# SmolLM2, and at what is lost when they get smaller. You will see
#
# 1. what weights look like, and which layers have outliers,
# 2. the error by bit width and group size,
# 3. activations, and three ways to choose where their grid ends,
# 4. the outliers moved from activations into weights,
# 5. columns that make up for each other's errors,
# 6. size against quality of the whole model,
# 7. size, quality and speed of the models as they are served: the frontier from which you choose.
#
# The code comes from the lab's tasks. `WORK = "solution"` runs the reference; set it to `"starter"`
# to run what you wrote yourself (tasks 5.1 to 5.3, each needed by its section only).

# %%
WORK = "solution"  # or "starter": your own files

import os
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")

ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "labs").is_dir())
LAB = ROOT / "labs" / "lab_5_quantization"
sys.path[:0] = [str(ROOT), str(LAB / WORK)]

from shared import offline

offline.apply()

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers.utils import logging

logging.disable_progress_bar()

from shared.compression.model import (
    layer_inputs,
    linear_names,
    linear_weight,
    load_model,
    token_windows,
)
from shared.compression.texts import calibration_texts, held_out_texts

DOMAIN = os.environ.get("DOMAIN") or "finance"  # or "healthcare", "climate"
calibration = token_windows(calibration_texts(DOMAIN))
held_out = token_windows(held_out_texts(DOMAIN))
names = linear_names()
print(f"{len(names)} linear layers; {calibration.size:,} tokens to calibrate on, of {DOMAIN},")
print(f"{held_out.size:,} tokens of other documents to measure on")

# %% [markdown]
# ## 1. Weights
#
# Four layers. The logarithmic axis shows what decides: a scale must reach the largest weight of all
# that share it, and the dashed lines are the 15 values that 4 bits have for a whole tensor.

# %%
shown = [
    "model.layers.0.self_attn.k_proj",
    "model.layers.0.mlp.down_proj",
    "model.layers.15.mlp.up_proj",
    "model.layers.29.self_attn.o_proj",
]
fig, axes = plt.subplots(1, 4, figsize=(16, 3.4), layout="constrained")
for ax, name in zip(axes, shown, strict=True):
    weight = linear_weight(name)
    largest = np.abs(weight).max()
    ax.hist(weight.ravel(), 200, log=True)
    for code in range(-7, 8):
        ax.axvline(code * largest / 7, color="k", lw=0.5, ls="--", alpha=0.5)
    ax.set(title=f"{name.removeprefix('model.')}\nlargest {largest / weight.std():.0f} std")
plt.show()

# %%
reach = {name: np.abs(w := linear_weight(name)).max() / w.std() for name in names}
kinds = sorted({name.rsplit(".", 1)[1] for name in names})
fig, ax = plt.subplots(figsize=(10, 3.2), layout="constrained")
for kind in kinds:
    ax.plot([reach[n] for n in names if n.endswith(kind)], label=kind)
ax.set(xlabel="block", ylabel="largest / standard deviation", yscale="log")
ax.set_title("How far a tensor's largest weight lies from the rest")
ax.legend(ncols=4, fontsize="small")
plt.show()

# %% [markdown]
# **Questions.** Of 15 values, how many does the bulk of the first layer's weights get? Which layers
# would you keep at 8 bits if you had to choose before any measurement?

# %% [markdown]
# ## 2. Error by bit width and group size
#
# `quantize` and `dequantize` (task 5.1). The error is that of the weights, relative to their size.
# The second axis is what a weight costs in bits, its share of the scales included.

# %%
from affine import Scheme, dequantize, quantize, stored_bytes

schemes = {
    "tensor": {"strategy": "tensor"},
    "channel": {"strategy": "channel"},
    **{f"group {g}": {"strategy": "group", "group_size": g} for g in (192, 64, 32, 16)},
}
sample = [n for n in names if n.split(".")[2] in ("0", "20")]
fig, axes = plt.subplots(1, 2, figsize=(14, 4), layout="constrained", sharey=True)
for bits in (8, 4):
    errors, cost = [], []
    for words in schemes.values():
        scheme = Scheme(bits=bits, symmetric=True, **words)
        lost = size = stored = count = 0.0
        for name in sample:
            weight = linear_weight(name)
            code = quantize(weight, scheme)
            lost += ((dequantize(code) - weight) ** 2).sum()
            size += (weight**2).sum()
            stored += stored_bytes(code)
            count += weight.size
        errors.append(np.sqrt(lost / size))
        cost.append(8 * stored / count)
    axes[0].plot(list(schemes), errors, "o-", label=f"{bits} bits")
    axes[1].plot(cost, errors, "o-", label=f"{bits} bits")
axes[0].set(yscale="log", ylabel="relative error of the weights", title="by what shares a scale")
axes[1].set(xlabel="bits a weight, scales included", title="by what it costs")
axes[0].legend()
plt.show()

# %% [markdown]
# **Questions.** At 4 bits, what does halving the group size buy, and what does it cost? Is there a
# group size at which 4 bits are as good as 8 with one scale for the whole tensor?

# %% [markdown]
# ## 3. Activations
#
# What flows into a layer is known only from texts. `ActivationObserver` (task 5.2) sees it batch by
# batch and proposes where the grid should end: at the largest value, at a percentile, or where the
# squared error is least.

# %%
from calibration import ActivationObserver, fake_quantize

watched = ["model.layers.5.self_attn.q_proj", "model.layers.20.mlp.down_proj"]
seen = layer_inputs(watched, calibration[:4])
unseen = layer_inputs(watched, held_out[:2])
fig, axes = plt.subplots(1, 2, figsize=(14, 3.8), layout="constrained")
for ax, name in zip(axes, watched, strict=True):
    observer = ActivationObserver()
    for batch in np.array_split(seen[name], 4):
        observer.update(batch)
    ax.hist(np.abs(seen[name]).ravel(), 200, log=True, color="0.7")
    limits = {
        "largest": observer.max_limit(),
        "99.9 %": observer.percentile_limit(99.9),
        "least error, 8 bits": observer.mse_limit(8),
        "least error, 4 bits": observer.mse_limit(4),
    }
    print(name)
    for (label, limit), colour in zip(limits.items(), ("C3", "C0", "C2", "C1"), strict=True):
        ax.axvline(limit, color=colour, label=f"{label}: {limit:.3g}")
        values = unseen[name]
        lost = [
            np.linalg.norm(fake_quantize(values, limit, bits) - values) / np.linalg.norm(values)
            for bits in (8, 4)
        ]
        print(f"  {label:20} held-out error {lost[0]:6.2%} with 8 bits, {lost[1]:6.2%} with 4")
    ax.set(title=name.removeprefix("model."), xlabel="magnitude")
    ax.legend()
plt.show()

# %% [markdown]
# **Questions.** In which layer does the percentile do harm with 8 bits, and why? What would the
# observer have to see for its limits to be wrong next month?

# %% [markdown]
# ## 4. Smoothing
#
# A few input channels are far larger than the rest. `smoothing_scales` (task 5.2) moves a part of
# their size into the weights, which bear it better: the product stays the same.

# %%
from calibration import choose_alpha, smoothing_scales

name = watched[0]
weight, inputs = linear_weight(name), seen[name]
channel_max = np.abs(inputs).max(axis=0)
choice = choose_alpha(np.array_split(inputs, 4), weight)
scales = smoothing_scales(channel_max, weight, choice.alpha or 0.5)
fig, axes = plt.subplots(1, 3, figsize=(16, 3.6), layout="constrained")
for values, style in ((channel_max, "C3"), (channel_max / scales, "C0")):
    axes[0].plot(np.sort(values)[::-1], style)
axes[0].set(title="largest activation of each channel", yscale="log")
axes[0].legend(["before", "after"])
for values, style in ((weight, "C3"), (weight * scales, "C0")):
    axes[1].plot(np.sort(np.abs(values).max(axis=0))[::-1], style)
axes[1].set(title="largest weight of each channel", yscale="log")
axes[2].plot(list(choice.errors), list(choice.errors.values()), "o-")
axes[2].axhline(choice.unsmoothed, color="C3", ls="--")
axes[2].set(xlabel="alpha", title=f"error of the output, 8 bits (chosen: {choice.alpha})")
axes[2].legend(["smoothed", "not smoothed"])
plt.show()

# %% [markdown]
# **Question.** What do alpha 0 and alpha 1 mean, in a sentence each?

# %% [markdown]
# ## 5. Error compensation
#
# The solver of task 5.3 against round-to-nearest, on the same grid: 4 bits, groups of 64. The
# error is that of the layers' outputs on held-out texts.

# %%
from error_compensation import Grid, Hessian, output_error, quantize_layer, round_to_nearest

grid = Grid(bits=4, group_size=64)
layers = [f"model.layers.{b}.{k}" for b in (0, 20) for k in ("self_attn.q_proj", "mlp.up_proj")]
seen = layer_inputs(layers, calibration[:12])
unseen = layer_inputs(layers, held_out[:3])
errors: dict[str, tuple[float, float]] = {}
for name in layers:
    weight, hessian = linear_weight(name), Hessian(seen[name].shape[1])
    for batch in np.array_split(seen[name], 8):
        hessian.add(batch)
    plain = round_to_nearest(weight, grid).dequantize()
    solved = quantize_layer(weight, hessian.matrix(), grid).dequantize()
    errors[name] = tuple(output_error(weight, w, unseen[name]) for w in (plain, solved))
place = np.arange(len(layers))
fig, ax = plt.subplots(figsize=(12, 3.6), layout="constrained")
ax.bar(place - 0.2, [e[0] for e in errors.values()], 0.4, label="round to nearest")
ax.bar(place + 0.2, [e[1] for e in errors.values()], 0.4, label="error compensation")
ax.set_xticks(place, [n.removeprefix("model.layers.") for n in layers], rotation=20)
ax.set(ylabel="relative squared error of the output", yscale="log")
ax.legend()
plt.show()

# %% [markdown]
# **Question.** The weights of the second bars lie further from the original than those of the
# first. Why is the layer's output closer all the same?

# %% [markdown]
# ## 6. The whole model
#
# All linear layers rounded to nearest, one scheme after the other. Perplexity is that of held-out
# tokens: the exponential of the mean loss over all tokens, not over windows. Embeddings stay as
# they are, and count.


# %%
def perplexity(model: torch.nn.Module) -> float:
    """Per token, over the held-out windows."""
    loss, tokens = 0.0, 0
    with torch.inference_mode():
        for window in torch.from_numpy(held_out[:6]):
            logits = model(window[None]).logits[0, :-1]
            loss += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            tokens += len(window) - 1
    return float(np.exp(loss / tokens))


model = load_model()
embeddings = model.get_input_embeddings().weight.numel() * 2
points = [
    ("bfloat16", embeddings + 2 * sum(linear_weight(n).size for n in names), perplexity(model))
]
for bits, words in (
    (8, "tensor"),
    (8, "channel"),
    (4, "channel"),
    (4, "group 64"),
    (4, "group 16"),
):
    scheme = Scheme(bits=bits, symmetric=True, **schemes[words])
    size = embeddings
    with torch.no_grad():
        for name in names:
            code = quantize(linear_weight(name), scheme)
            size += stored_bytes(code)
            model.get_submodule(name).weight.copy_(torch.from_numpy(dequantize(code)))
    points.append((f"{bits} bits, {words}", size, perplexity(model)))
for label, size, value in points:
    print(f"{label:20} {size / 1e6:6.0f} MB  perplexity {value:10.1f}")
fig, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
for label, size, value in points:
    ax.plot(size / 1e6, value, "o")
    ax.annotate(label, (size / 1e6, value), xytext=(6, 4), textcoords="offset points")
ax.set(xlabel="MB", ylabel="perplexity on held-out text", yscale="log")
ax.margins(x=0.2)
plt.show()

# %% [markdown]
# **Question.** Between which two of these points would you look for the smallest model that is
# still good? What could you change there besides the number of bits?

# %% [markdown]
# ## 7. Size, quality and speed: the frontier
#
# A model can be small and good and still be slow where it has to run. The table of task 5.4 has
# all three for each format on its engine. If you have made your own (`bench_table.py`), it is
# drawn here; else the one that is kept with the lab. A model is on the frontier, the grey line, if
# no other is at once cheaper and better. What it costs in time depends on how many ask at once.

# %%
import json

own, kept = ROOT / ".labs" / "bench" / "table.json", LAB / "bench_table.json"
table = json.loads((own if own.exists() else kept).read_text())
print(f"{'yours' if own.exists() else 'kept'}: {table['measured']}")
rows = [(row["row"], row["perplexity"], row["agreement"]) for row in table["rows"]]


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other equals or beats in both; less is better in both."""
    best = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    return sorted(best)


axes_of = {
    "weights, MB": lambda row: row["weight_bytes"] / 1e6,
    "server's memory, MB": lambda row: row["memory_bytes"] / 1e6,
    "milliseconds a token, one request": lambda row: 1000 / row["tokens_per_s"]["1"],
    "milliseconds a token, sixteen requests": lambda row: 1000 / row["tokens_per_s"]["16"],
}
fig, axes = plt.subplots(2, 2, figsize=(14, 9), layout="constrained", sharey=True)
for ax, (label, cost) in zip(axes.flat, axes_of.items(), strict=True):
    ax.plot(*zip(*frontier([(cost(row), loss) for row, loss, _ in rows]), strict=True), "0.7")
    for number, (row, loss, agreement) in enumerate(rows):
        name = f"{row['name']} (agreement {agreement:.2f})"
        ax.plot(cost(row), loss, "o", color=f"C{number}", label=name)
    ax.set(xlabel=label, ylabel="perplexity beside the original")
axes[0, 0].legend(fontsize="small")
plt.show()
for row in table["not_proven"]:
    print(f"not proven here: {row['name']}: {row['reason']}")

# %% [markdown]
# **Questions.** Which model leaves the frontier as soon as sixteen ask, and why? What do 4-bit
# weights under vLLM do for one request, and what for sixteen? Why do they hardly save memory?
