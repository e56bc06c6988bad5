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
# # Lab 2: a model that was right last year
#
# Nobody changes a model in production, and one day it is wrong. This notebook looks at real data in
# which that happens, and at real data in which it does not. You will see
#
# 1. what distributions looked like then, and what they look like now,
# 2. drift over time, beside a data set that does not drift,
# 3. an alert rule's alarms against the truth,
# 4. performance estimated without labels, against what the labels said later,
# 5. why a PSI of partitions is not the mean of their PSIs.
#
# The code comes from the lab's tasks. `WORK = "solution"` runs the reference; set it to `"starter"`
# to run what you wrote yourself (tasks 2.2, 2.4, 2.5 and 2.8, each needed by its section only).

# %%
WORK = "solution"  # or "starter": your own files

import os
import sys
from pathlib import Path

ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "labs").is_dir())
sys.path[:0] = [str(ROOT), str(ROOT / "labs" / "lab_2_drift" / WORK)]

from shared import offline

offline.apply()

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from shared.domains.tabular import CONTROL, DOMAINS, load_tabular

DOMAIN = os.environ.get("DOMAIN") or "finance"  # or "healthcare", "climate"
data = load_tabular(DOMAIN)
reference = data.reference_frame
windows = dict(data.windows())
rng = np.random.default_rng(2)
print(data.name)
print(data.question)
print(f"reference: {data.reference[0]:%Y-%m-%d} to {data.reference[1]:%Y-%m-%d}")
for label, rows in {"reference": reference, **windows}.items():
    print(f"  {label:10} {len(rows):6,} rows, {rows[data.target].mean():.0%} {data.target}")

# %% [markdown]
# ## 1. Then and now
#
# `psi` (task 2.2) compares each column of a window with the reference. Below, the three numeric
# columns and the categorical one that moved most, in the window in which they moved most: the
# reference filled, that window as a line.

# %%
from drift_statistics import psi

scores = pd.DataFrame(
    {
        label: {name: psi(reference[name], rows[name]).value for name in data.features}
        for label, rows in windows.items()
    }
)
loudest = scores.mean().idxmax()
moved = scores[loudest].loc[list(data.numeric)].sort_values(ascending=False).index[:3]
category = scores[loudest].loc[list(data.categorical)].idxmax()

fig, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
for ax, name in zip(axes, moved, strict=False):
    both = pd.concat([reference[name], windows[loudest][name]]).dropna()
    edges = np.linspace(*both.quantile([0.005, 0.995]), 40)
    ax.hist(reference[name], edges, density=True, alpha=0.4, label="reference")
    ax.hist(windows[loudest][name], edges, density=True, histtype="step", lw=2, label=loudest)
    ax.set(title=f"{name}\nPSI {scores.loc[name, loudest]:.2f}", yticks=[])
    ax.legend()
shares = pd.DataFrame(
    {
        "reference": reference[category].value_counts(normalize=True, dropna=False),
        loudest: windows[loudest][category].value_counts(normalize=True, dropna=False),
    }
).fillna(0)
shares.index = shares.index.map(str)
shares.sort_values("reference").tail(12).plot.barh(
    ax=axes[-1], title=f"{category}\nPSI {scores.loc[category, loudest]:.2f}", ylabel=""
)
plt.show()

# %% [markdown]
# **Questions.** Which of these changes would you have found by looking at the mean alone? Which bin
# contributes most to each PSI, and would it still if the bins came from the current window?

# %% [markdown]
# ## 2. Drift over time
#
# The same PSI for every column and window. On the right the negative control: real data of four
# years in which hardly anything moved. A rule of thumb calls 0.1 noticeable and 0.25 large; the
# colour scale ends at 0.5.

# %%
control = load_tabular(CONTROL)
control_reference = control.reference_frame
control_scores = pd.DataFrame(
    {
        label: {name: psi(control_reference[name], rows[name]).value for name in control.features}
        for label, rows in control.windows()
    }
)

fig, axes = plt.subplots(
    1, 2, figsize=(14, 6), layout="constrained", width_ratios=[scores.shape[1] + 2, 5]
)
for ax, table, title in (
    (axes[0], scores, f"{DOMAIN}: PSI against the reference"),
    (axes[1], control_scores, "negative control"),
):
    picture = ax.imshow(table, cmap="OrRd", vmin=0, vmax=0.5, aspect="auto")
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=45)
    ax.set_yticks(range(len(table)), table.index)
    ax.set_title(title)
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        ink = "white" if value > 0.3 else "black"
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
fig.colorbar(picture, ax=axes, shrink=0.6, label="PSI", extend="max")
plt.show()
print(f"{DOMAIN}: {(scores > 0.25).sum().sum()} of {scores.size} are above 0.25")
print(f"control: {(control_scores > 0.25).sum().sum()} of {control_scores.size} are above 0.25")

# %% [markdown]
# **Questions.** Is the last window nearer to the reference than the one before? If so, what would
# have become of a model that was retrained on the loudest window? How many rows has a window here,
# and what PSI would you expect from chance alone with ten bins and that many rows?

# %% [markdown]
# ## 3. Alarms against the truth
#
# The alert rule of task 2.4 on streams of monthly windows, made from this domain's rows so that the
# truth is known. A dot is a window; from the bar on, something has changed; a filled red dot is an
# alarm. Left of the bar, and in the streams without a bar, each red dot is a false one.

# %%
from alert_rule import AlertRule, Schema

from shared.domains.streams import KINDS, control_stream, make_stream

EACH = 4
streams = [make_stream(data, kind, rng) for kind in KINDS for _ in range(EACH)]
streams += [control_stream(control, rng) for _ in range(EACH)]


def alarms(stream) -> list[bool]:
    """For each window of the stream: does the rule call someone?"""
    schema = Schema(stream.time, stream.target, stream.numeric, stream.categorical)
    rule = AlertRule(stream.reference, schema)
    return [rule.update(window) is not None for window in stream.windows]


raised = [alarms(stream) for stream in streams]

fig, ax = plt.subplots(figsize=(10, 9), layout="constrained")
for row, (stream, called) in enumerate(zip(streams, raised, strict=True)):
    for month, alarm in enumerate(called):
        ax.plot(month, row, "o", color="crimson" if alarm else "lightgrey", ms=7)
    if stream.onset is not None:
        ax.plot([stream.onset - 0.5] * 2, [row - 0.45, row + 0.45], color="black", lw=2)
for block in range(1, len(streams) // EACH):
    ax.axhline(block * EACH - 0.5, color="grey", lw=0.5)
ax.set_yticks(
    [EACH * i + (EACH - 1) / 2 for i in range(len(streams) // EACH)],
    [stream.kind for stream in streams[::EACH]],
)
ax.set(xlabel="window (month)", xticks=range(12), title=f"{DOMAIN}: alarms against the truth")
ax.invert_yaxis()
plt.show()

quiet = [
    alarm
    for stream, called in zip(streams, raised, strict=True)
    for alarm in called[: stream.onset]
]
delays = {}
for stream, called in zip(streams, raised, strict=True):
    if stream.onset is not None:
        late = called[stream.onset :]
        delays.setdefault(stream.kind, []).append(late.index(True) if any(late) else None)
print(f"false alarms: {sum(quiet)} in {len(quiet)} quiet windows")
for kind, found in delays.items():
    print(f"  {kind:15} windows from onset to alarm: {found}")

# %% [markdown]
# **Questions.** Which kind of drift does the rule find late, and why is that one hard? The season
# comes every year: what does the rule compare a July with? You may double the false alarms: what
# would you buy for them?

# %% [markdown]
# ## 4. Performance without labels
#
# A naive Bayes model, trained on a third of the reference. Its scores are extreme, as naive Bayes'
# scores are: taken at their word they promise too much. `fit_calibrator` (task 2.5) learns from
# another third what they are worth. Lines: what was estimated without a single label. Points with
# bars: what the labels said, at 95 %.

# %%
from performance_estimate import estimate_performance, fit_calibrator, report_window
from sklearn.impute import SimpleImputer
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline

FIGURES = {"accuracy": "accuracy", "positive_rate": "positive rate", "roc_auc": "ROC AUC"}


def judged(name: str) -> pd.DataFrame:
    """Estimated and realized figures of each window of a domain, held-out reference rows first."""
    its = load_tabular(name)
    old = its.reference_frame
    part = np.random.default_rng(5).permutation(len(old)) % 3
    model = make_pipeline(SimpleImputer(strategy="median"), GaussianNB())
    model.fit(old.loc[part == 0, list(its.numeric)], old.loc[part == 0, its.target])

    def scored(rows: pd.DataFrame) -> np.ndarray:
        return model.predict_proba(rows[list(its.numeric)])[:, 1].clip(0, 1)

    usable = old[part != 2]
    calibrate = fit_calibrator(scored(usable), usable[its.target], part[part != 2] == 0)
    rows = []
    for label, window in {"held out": old[part == 2], **dict(its.windows())}.items():
        s = scored(window)
        report = report_window(calibrate, s, window[its.target], confidence=0.95)
        raw = estimate_performance(lambda values: np.asarray(values), s)
        row = {"window": label, "verdict": report.verdict}
        for figure in FIGURES:
            seen = getattr(report.realized, figure)
            row[f"{figure} estimated"] = getattr(report.estimate, figure)
            row[f"{figure} raw"] = getattr(raw, figure)
            row[figure], row[f"{figure} low"], row[f"{figure} high"] = (
                seen.value,
                seen.low,
                seen.high,
            )
        rows.append(row)
    return pd.DataFrame(rows)


tables = {name: judged(name) for name in DOMAINS}

fig, axes = plt.subplots(3, 3, figsize=(15, 9), layout="constrained", sharex="col")
for column, (name, table) in zip(axes.T, tables.items(), strict=True):
    for ax, (figure, title) in zip(column, FIGURES.items(), strict=True):
        x = np.arange(len(table))
        bars = [table[figure] - table[f"{figure} low"], table[f"{figure} high"] - table[figure]]
        ax.errorbar(x, table[figure], bars, fmt="o", color="black", capsize=3, label="realized")
        ax.plot(x, table[f"{figure} estimated"], color="tab:blue", label="estimated")
        ax.plot(x, table[f"{figure} raw"], ":", color="tab:orange", label="raw scores")
        ax.axvline(0.5, color="grey", lw=0.5)
        ax.set_ylabel(title)
        ax.grid(alpha=0.3)
    column[0].set_title(name)
    column[-1].set_xticks(range(len(table)), table["window"], rotation=60)
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

for name, table in tables.items():
    off = (table["accuracy estimated"] - table["accuracy"]).abs()
    raw = (table["accuracy raw"] - table["accuracy"]).abs()
    print(
        f"{name:11} held out: {off[0]:.3f} off (raw scores {raw[0]:.3f});  later windows: "
        f"{off[1:].mean():.3f} (raw {raw[1:].mean():.3f}); "
        f"{(table['verdict'][1:] == 'outside').sum()} of {len(table) - 1} outside"
    )

# %% [markdown]
# The estimate is right where its assumption holds: on reference rows that it has not seen, in all
# three domains. Later it is as right as the score's meaning has stayed the same.
#
# **Questions.** In which domain does the meaning of a score change most, and could any statistic of
# the features have told you by how much? The estimate knows which rows came. Where does it follow
# reality, and where does it not? Whom would you show the estimate to, and with which words beside
# it?

# %% [markdown]
# ## 5. A PSI does not average
#
# A table comes in partitions, in order of time or of some key. Each partition by itself looks
# unlike the whole, so the mean of the partitions' PSIs depends on how the table was cut. Merged
# counts (task 2.8) do not.

# %%
from scale import NumericPlan, NumericSummary, QuantileSketch, numeric_drift

ROWS = 200_000
then = np.sort(rng.lognormal(0.0, 1.0, ROWS))
now = np.sort(rng.lognormal(0.1, 1.0, ROWS))

sketch = QuantileSketch()
sketch.update(then)
grid = tuple(sorted(set(sketch.quantiles([i / 200 for i in range(1, 200)]))))
plan = NumericPlan(edges=grid, bin_edges=grid[19::20])


def summary(values: np.ndarray) -> NumericSummary:
    """Counts of one partition."""
    found = NumericSummary(plan)
    found.update(values)
    return found


before = summary(then)
cuts = [1, 2, 4, 8, 16, 32, 64]
merged, averaged = [], []
for cut in cuts:
    parts = [summary(part) for part in np.array_split(now, cut)]
    averaged.append(np.mean([numeric_drift(before, part).psi for part in parts]))
    whole = NumericSummary(plan)
    for part in parts:
        whole.merge(part)
    merged.append(numeric_drift(before, whole).psi)

fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
ax.plot(cuts, averaged, "x--", label="mean of the partitions' PSIs")
ax.plot(cuts, merged, "o-", label="PSI of merged counts")
ax.set(xscale="log", yscale="log", xlabel="partitions", ylabel="PSI", title="The same rows, cut")
ax.set_xticks(cuts, cuts)
ax.minorticks_off()
ax.grid(alpha=0.3)
ax.legend()
plt.show()
print(
    f"sketch of {sketch.rows:,} rows: {sketch.size_bytes / 1024:.0f} KiB, "
    f"ranks right to {sketch.rank_error:.2%}"
)

# %% [markdown]
# **Questions.** The rows above are sorted. Would shuffled partitions make the mean right? What else
# on your dashboard is averaged over partitions, hours or customers that should be computed from
# merged counts?
