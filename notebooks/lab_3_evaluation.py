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
# # Lab 3: is the new assistant better?
#
# An assistant answers from a desk's documents. Its answers read well, right or wrong. This notebook
# measures it, and then measures the measures. You will see
#
# 1. what the retriever finds, by kind of question, and how sure that is,
# 2. scores of grounded and of invented answers, beside two baselines,
# 3. personal data found, and order numbers that only look like it,
# 4. how often attacks succeed, and what a defence costs,
# 5. a model as judge, judged itself,
# 6. what a release gate can see with so many questions,
# 7. suites of tests, and the bad assistants that they stop.
#
# The code comes from the lab's tasks. `WORK = "solution"` runs the reference; set it to `"starter"`
# to run what you wrote yourself (tasks 3.1 to 3.7, each needed by the section of its number only).
# Desks, documents and people are made up.

# %%
WORK = "solution"  # or "starter": your own files

import logging
import os
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "labs").is_dir())
LAB = ROOT / "labs" / "lab_3_evaluation"
sys.path[:0] = [str(ROOT), str(LAB / WORK)]
sys.path.append(str(LAB / "checks"))

from shared import offline

offline.apply()
warnings.filterwarnings("ignore", message="IProgress not found")
for name in ("alembic", "mlflow", "presidio-analyzer"):  # set-up messages
    logging.getLogger(name).setLevel(logging.ERROR)

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from shared.assistant.assistant import NO_ANSWER, Assistant
from shared.assistant.backends import Recorded
from shared.assistant.material import load_customers, load_documents, load_golden
from shared.engine import engine_status, ensure_engine, stop_engine

DOMAIN = os.environ.get("DOMAIN") or "finance"  # or "healthcare", "climate"
GREEN, RED, BLUE, AMBER, GREY = "#2a9d57", "#c8373f", "#3b75af", "#cf8a0a", "#8a8f98"
documents, golden = load_documents(DOMAIN), load_golden(DOMAIN)
recorded = Recorded.load(DOMAIN)
engine_was_there = bool(engine_status())
engine = ensure_engine(os.environ.get("ENGINE") or "portable")
print(f"{DOMAIN}: {len(documents)} documents in force, {len(golden)} golden questions")
print(f"recorded answers: {recorded.model} on {recorded.kind}, {recorded.date}")

# %% [markdown]
# The assistant itself, live. It is a real one, and its model is small. Below, two questions, one
# that the documents answer and one that they do not. Where later sections need its answers, they
# take recorded ones, of the same model.

# %%
live = Assistant(DOMAIN, engine)
for question in (
    next(q for q in golden if q.kind == "number"),
    next(q for q in golden if not q.answerable),
):
    answer = live.ask(question.question)
    print(f"{question.question}\n   says:   {answer.text}\n   wanted: {question.reference}")
    print(f"   found:  {', '.join(c.id for c in answer.contexts)}\n")

# %% [markdown]
# **Questions.** Which parts of these two answers could a program check, and what would it need for
# that? How would you find out whether the retriever or the model is to blame?

# %% [markdown]
# ## 1. What the retriever finds
#
# `evaluate_retriever` (task 3.1) asks each golden question and compares the ranking with the
# documents that are known to hold the answer. On the left MiniLM and a retriever that counts shared
# words, three documents each; bars are 95 % intervals. On the right MiniLM's five metrics as k
# grows.

# %%
import re

from retrieval_metrics import METRICS, evaluate_retriever

from shared.assistant.retrieval import index_of

index = index_of(documents)


def words(text: str) -> set[str]:
    """The different words of a text."""
    return set(re.findall(r"\w+", text.casefold()))


def by_meaning(question: str, k: int = 5) -> list[str]:
    """MiniLM, as the assistant uses it."""
    return [hit.document.id for hit in index.search(question, k)]


def by_words(question: str) -> list[str]:
    """The documents that share most words with the question."""
    shared = {d.id: len(words(question) & words(f"{d.title} {d.text}")) for d in documents}
    return sorted(shared, key=shared.get, reverse=True)[:5]


ids = [d.id for d in documents]
found = {
    name: evaluate_retriever(retriever, golden, 3, documents=ids)
    for name, retriever in (("MiniLM", by_meaning), ("shared words", by_words))
}
depths = [1, 2, 3, 4, 5]
deeper = [evaluate_retriever(by_meaning, golden, k, documents=ids).overall for k in depths]
slices = {name: {**r.by_kind, "all": r.overall} for name, r in found.items()}
kinds = [kind for kind, part in slices["MiniLM"].items() if part.scored]

fig, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
for ax, metric, title in zip(axes[:2], ("recall", "ndcg"), ("recall", "nDCG"), strict=True):
    for (name, parts), shift, color in zip(
        slices.items(), (-0.15, 0.15), (BLUE, GREY), strict=True
    ):
        means = [parts[kind].means[metric] for kind in kinds]
        value = np.array([m.value for m in means])
        bars = [value - [m.low for m in means], [m.high for m in means] - value]
        place = np.arange(len(kinds)) + shift
        ax.errorbar(value, place, xerr=bars, fmt="o", color=color, capsize=3, label=name)
    labels = [f"{kind} ({slices['MiniLM'][kind].scored})" for kind in kinds]
    ax.set_yticks(range(len(kinds)), labels)
    ax.set(xlim=(0, 1.03), title=f"{title} at 3, by kind of question")
    ax.invert_yaxis()
    ax.grid(alpha=0.3)
axes[0].legend(loc="lower left")
for metric, mark in zip(METRICS, "osD^v", strict=True):
    axes[2].plot(depths, [d.means[metric].value for d in deeper], f"{mark}-", label=metric)
axes[2].set(xlabel="k", xticks=depths, ylim=(0, 1.03), title="MiniLM, all questions")
axes[2].grid(alpha=0.3)
axes[2].legend(loc="lower left")
plt.show()
print(f"{found['MiniLM'].overall.excluded} questions have no relevant document, and no score")

# %% [markdown]
# **Questions.** Which of the five metrics would you quote to somebody who decides how many
# documents the prompt gets? Why does precision fall as k grows, and is that the retriever's fault?
# Of one kind everything was found: why does its interval still have a width? For which kinds may
# you say that MiniLM is the better one?

# %% [markdown]
# ## 2. Grounded or not
#
# `GroundednessMetric` (task 3.2) on the held-out labelled answers, beside what needs no thought:
# the share of an answer's words that its contexts hold, and the cosine of the whole answer with its
# nearest context. The dashed line is the threshold that `choose_threshold` sets on the open answers
# at a price of two right ones in ten.

# %%
from deepeval.test_case import LLMTestCase
from groundedness import GroundednessMetric, choose_threshold, known_names
from sklearn.metrics import roc_auc_score, roc_curve

from shared.assistant.material import contexts_of, load_labelled
from shared.models.embed import embedder

metric = GroundednessMetric(names=known_names(DOMAIN))


def measured(text: str, contexts: tuple[str, ...]) -> float:
    """The metric's score of one answer."""
    return metric.measure(
        LLMTestCase(input="", actual_output=text, retrieval_context=list(contexts))
    )


def overlap(text: str, contexts: tuple[str, ...]) -> float:
    """The share of the answer's words that stand in the contexts."""
    return len(words(text) & words(" ".join(contexts))) / len(words(text))


held_out, opened = load_labelled(DOMAIN, "held_out"), load_labelled(DOMAIN, "open")
texts = sorted({t for a in held_out for t in (a.answer, *contexts_of(a, DOMAIN))})
vectors = dict(zip(texts, embedder().encode(texts), strict=True))


def cosine(text: str, contexts: tuple[str, ...]) -> float:
    """Of the whole answer with its nearest context."""
    return max(float(vectors[text] @ vectors[c]) for c in contexts)


SCORES = {"groundedness": measured, "word overlap": overlap, "cosine": cosine}
scores = {
    name: np.array([score(a.answer, contexts_of(a, DOMAIN)) for a in held_out])
    for name, score in SCORES.items()
}
grounded = np.array([a.grounded for a in held_out])
threshold = choose_threshold(
    [measured(a.answer, contexts_of(a, DOMAIN)) for a in opened], [a.grounded for a in opened]
)

fig, axes = plt.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
for ax, (name, values), color in zip(axes, scores.items(), (BLUE, AMBER, GREY), strict=False):
    bins = np.linspace(min(0.0, values.min()), 1, 26)
    ax.hist(values[grounded], bins, alpha=0.5, color=GREEN, label="grounded")
    ax.hist(values[~grounded], bins, histtype="step", lw=1.8, color=RED, label="not grounded")
    auc = roc_auc_score(grounded, values)
    ax.set(title=f"{name}\nAUC {auc:.2f}", xlabel="score", ylabel="answers")
    false_alarms, hits, _ = roc_curve(~grounded, -values)
    axes[3].plot(false_alarms, hits, color=color, label=f"{name}, {auc:.2f}")
axes[0].axvline(threshold, color="black", ls="--", lw=1)
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
axes[3].plot([0, 1], [0, 1], ":", color="black", lw=1)
axes[3].set(xlabel="right answers blocked", ylabel="invented ones found", title="ROC, held out")
axes[3].grid(alpha=0.3)
axes[3].legend(loc="lower right")
plt.show()

# %% [markdown]
# An AUC is a mean over all faults. At the threshold, by rule of labelling:

# %%
below = pd.Series(scores["groundedness"] < threshold).groupby([a.rule for a in held_out])
rules = pd.DataFrame({"share": below.mean(), "answers": below.size()})
rules["grounded"] = [all(a.grounded for a in held_out if a.rule == rule) for rule in rules.index]
rules = rules.sort_values(["grounded", "share"])

fig, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
ax.barh(
    [f"{rule.replace('_', ' ')} ({row.answers})" for rule, row in rules.iterrows()],
    rules["share"],
    color=[AMBER if g else GREEN for g in rules["grounded"]],
)
for place, share in enumerate(rules["share"]):
    ax.text(share + 0.01, place, f"{share:.0%}", va="center")
ax.set(xlim=(0, 1.08), xlabel=f"share of answers below {threshold:.2f}")
ax.set_title("found (green: more is better), and right answers blocked (yellow: less is better)")
plt.show()
worst = min((s, a.answer) for s, a in zip(scores["groundedness"], held_out, strict=True))
print(f"the lowest score, {worst[0]:.2f}: {worst[1]}")

# %% [markdown]
# **Questions.** Why do words and embeddings rank invented answers so high? Which faults does the
# metric miss, and what would have to read the answer to find them? Your desk gives one invented
# answer in fifty: of the answers that this threshold blocks, how many are right?

# %% [markdown]
# ## 3. Personal data
#
# 160 held-out texts, half of them with personal data. Three finders: the patterns alone, Presidio's
# own recognizers as they come, and yours from task 3.3, with check digits, the domain's own number
# and the contacts that the desk has published.

# %%
from pii_leak import build_analyzer, find_pii
from support.pii import mistakes, pattern_only, presidio_as_it_comes, tally

from shared.assistant.material import load_pii, published

analyzer, allowed = build_analyzer(DOMAIN), published(DOMAIN)
FINDERS = {
    "bare patterns": pattern_only(DOMAIN),
    "Presidio as it comes": presidio_as_it_comes(),
    "pii_leak": lambda text: find_pii(text, analyzer, allowed),
}
labelled = load_pii(DOMAIN, "held_out")
quality = {name: tally(labelled, find)[:2] for name, find in FINDERS.items()}
wrong = pd.DataFrame(
    {
        name: pd.Series([any(mistakes(t, find(t.text))) for t in labelled])
        .groupby([t.rule.replace("lookalike:", "no: ").replace("_", " ") for t in labelled])
        .mean()
        for name, find in FINDERS.items()
    }
).sort_index(key=lambda made_for: made_for.str.startswith("no"), kind="stable")

fig, (left, right) = plt.subplots(
    1, 2, figsize=(14, 4.4), layout="constrained", width_ratios=[1, 1.5]
)
for place, pair in enumerate(quality.values()):
    for shift, value, color in zip((-0.18, 0.18), pair, (BLUE, GREEN), strict=True):
        left.barh(place + shift, value, 0.34, color=color)
        left.text(value - 0.02, place + shift, f"{value:.2f}", va="center", ha="right", color="w")
left.set_yticks(range(len(quality)), quality)
left.set(xlim=(0, 1), title="precision (blue, above) and recall (green, below)")
left.invert_yaxis()
right.imshow(wrong, cmap="OrRd", vmin=0, vmax=1.15, aspect="auto")
right.set_xticks(range(wrong.shape[1]), wrong.columns)
right.set_yticks(range(len(wrong)), wrong.index)
right.set_title("share of texts with a mistake, by what they were made for")
for (i, j), value in np.ndenumerate(wrong.to_numpy()):
    ink = "white" if value > 0.6 else "black"
    right.text(j, i, f"{value:.0%}", ha="center", va="center", fontsize=8, color=ink)
plt.show()

# %% [markdown]
# **Questions.** The patterns miss nothing: what would become of them in a month of alarms? Which
# mistakes does a check digit prevent, and which does it leave? One order number in ten passes
# Luhn by chance: at a million orders a day, what else would you look at?

# %% [markdown]
# ## 4. Attacks, and what a defence costs
#
# Six attacks of each kind on two assistants that hold customer records, one with a defence and one
# without; answers recorded from the real model (seed 0). `run_suite` (task 3.4) judges them,
# `suite_report` puts figures, intervals and cautions together. On the right the defence's effect,
# in pairs: the same attacks, and the same golden questions.

# %%
import mlflow
from adversarial_suite import defence_cost, distinct_attacks, run_suite, suite_report

logging.getLogger("mlflow").setLevel(logging.ERROR)  # MLflow sets it itself when imported

from shared.assistant.attacks import CUSTOMERS_SHOWN
from shared.tracking import make_empty_store

scratch = TemporaryDirectory(prefix="lab-3-")
folder = Path(scratch.name)
mlflow.set_tracking_uri(make_empty_store(folder / "mlflow.db"))
mlflow.create_experiment("attacks", artifact_location=folder.as_uri())
mlflow.set_experiment("attacks")
mlflow.tracing.disable_notebook_display()

shown = load_customers(DOMAIN)[:CUSTOMERS_SHOWN]
attacks = distinct_attacks(DOMAIN, seeds=[0], per_kind=6)
attempts, answers = {}, {}
for system in ("plain", "defended"):
    defence = system == "defended"
    attempts[system] = run_suite(
        attacks,
        lambda given, d=defence: Assistant(
            DOMAIN, recorded, documents=given, customers=shown, defence=d
        ),
        documents,
        system=system,
    )
    desk = Assistant(DOMAIN, recorded, defence=defence)
    answers[system] = {q.id: desk.ask(q.question).text for q in golden}
mlflow.flush_trace_async_logging()
cost = defence_cost(golden, answers["plain"], answers["defended"])
report = suite_report(attempts["plain"], attempts["defended"], cost)

fig, (left, right) = plt.subplots(
    1, 2, figsize=(14, 4.2), layout="constrained", width_ratios=[1.4, 1]
)
for system, shift, color in (("plain", -0.14, RED), ("defended", 0.14, GREEN)):
    parts = {**report.rates[system], "all kinds, weighted alike": report.total[system]}
    value = np.array([p.value for p in parts.values()])
    bars = [value - [p.low for p in parts.values()], [p.high for p in parts.values()] - value]
    place = np.arange(len(parts)) + shift
    left.errorbar(value, place, xerr=bars, fmt="o", color=color, capsize=3, label=system)
left.set_yticks(range(len(parts)), [k.replace("_", " ") for k in parts])
left.set(xlim=(-0.03, 1), xlabel="attacks that succeeded", title=f"{DOMAIN}: by kind, 95 %")
left.invert_yaxis()
left.legend(loc="lower right")
CHANGES = {
    f"attacks that succeed\n({report.difference.pairs} pairs)": (report.difference, GREEN),
    f"right answers\n({cost.right.pairs} pairs)": (cost.right, BLUE),
    f"good questions declined\n({cost.declined.pairs} pairs)": (cost.declined, RED),
}
for place, (d, color) in enumerate(CHANGES.values()):
    bars = [[d.value - d.low], [d.high - d.value]]
    right.errorbar(d.value, place, xerr=bars, fmt="o", color=color, capsize=3)
    note = f"+{d.new}, −{d.gone}"
    right.text(
        d.value, place - 0.16, note, ha="center", bbox={"fc": "white", "ec": "none", "pad": 1}
    )
right.axvline(0, color="black", lw=1)
right.set_yticks(range(len(CHANGES)), CHANGES)
right.set(xlabel="change of the share, defended minus plain", ylim=(2.5, -0.5))
right.set_title("what the defence changes")
for ax in (left, right):
    ax.grid(alpha=0.3)
plt.show()
for caution in report.cautions:
    print("-", caution.text)

# %% [markdown]
# **Questions.** Which kind would you mend first, and may you say that it is the worst? How many
# attacks of a kind without a success would it take before the upper bound is 5 %? The defence wins
# right answers and loses others: is it the same customers who win and who lose?

# %% [markdown]
# ## 5. A judge
#
# First judges whose worth is known, made by code, on 80 held-out answers of which nine in ten
# are grounded. Then the engine's own model: 60 held-out answers of the three desks, half of
# them grounded, each judged with three seeds. That takes minutes, so its votes were recorded
# (2026-11-26, portable engine, first wording, 64 tokens) and are replayed here. The rest,
# `judge_answer`, `kappa`, `calibrate`, is task 3.5.

# %%
from judge import (
    BAR,
    WORDINGS,
    BadReply,
    EngineModel,
    Opinion,
    answer_prompt,
    calibrate,
    compare,
    examples_of,
    judge_answer,
)

from shared.assistant.records import DOMAINS

SEEDS = (1, 2, 3)
VOTES = """
FIN-L161 nnt  FIN-L163 nnn  HEA-L221 unn  HEA-L295 nut  CLI-L236 uut  CLI-L304 nnt  FIN-L271 ntt
FIN-L312 nuu  HEA-L202 nnt  HEA-L225 tns  CLI-L233 tnt  CLI-L293 nnn  FIN-L301 tut  FIN-L290 nun
HEA-L184 tnn  HEA-L269 unu  CLI-L188 utn  CLI-L261 ttt  FIN-L268 nut  FIN-L256 utn  HEA-L186 nun
HEA-L279 unt  CLI-L222 nnn  CLI-L257 nuu  FIN-L228 nnu  FIN-L258 ttt  HEA-L242 nuu  HEA-L260 nnu
CLI-L244 nnt  CLI-L287 ntu  FIN-L286 unn  FIN-L285 ttn  HEA-L166 nut  HEA-L273 utn  CLI-L268 ntn
CLI-L282 ttt  FIN-L190 tnn  FIN-L234 nnn  HEA-L191 nuu  HEA-L170 nnn  CLI-L183 uuu  CLI-L288 nnn
FIN-L206 ttt  FIN-L183 utt  HEA-L188 nun  HEA-L302 nnn  CLI-L219 ttt  CLI-L228 tnt  FIN-L170 ntn
FIN-L264 tnu  HEA-L285 ntt  HEA-L205 nut  CLI-L302 tnt  CLI-L175 unu  FIN-L238 nnt  FIN-L278 ntt
HEA-L212 utt  HEA-L306 tnn  CLI-L189 unt  CLI-L240 nnn
"""
"""An answer's id, and one letter a seed: supported, unsupported, no evidence (a quote that no
source holds), truncated, malformed."""


class Replayed(EngineModel):
    """A judge whose votes are known beforehand; no request is made."""

    def __init__(self, name: str, votes: dict[str, str]) -> None:
        super().__init__("http://127.0.0.1:9/v1", name)
        self.votes = votes

    def generate(self, prompt: str, schema=None, *, seed: int = 0):
        vote = self.votes[prompt][seed - 1]
        if vote in "tm":
            raise BadReply("truncated" if vote == "t" else "malformed", "")
        source = prompt.split("\n")[0].removeprefix("Source 1: ")
        quote = "words that nobody wrote" if vote == "n" else " ".join(source.split()[:6])
        return Opinion(quote=quote, verdict="unsupported" if vote == "u" else "supported")


def judged(name: str, examples: list, votes: list[str]):
    """What the harness finds out about a judge with these votes."""
    prompts = [answer_prompt(e.item, WORDINGS[0]) for e in examples]
    model = Replayed(name, dict(zip(prompts, votes, strict=True)))
    return calibrate(model, examples, seeds=SEEDS, wordings=WORDINGS[:1])


rng = np.random.default_rng(3)
pool = examples_of(DOMAIN, "held_out")
uneven = [e for e in pool if e.grounded][:72] + [e for e in pool if not e.grounded][:8]
truth = ["s" if e.grounded else "u" for e in uneven]
noisy = [v if rng.random() < 0.9 else "us"["us".index(v) - 1] for v in truth]
made = {
    "says yes to all": judged("yes", uneven, ["sss"] * len(uneven)),
    "tosses a coin": judged("coin", uneven, ["".join(rng.choice(["s", "u"], 3)) for _ in uneven]),
    "right nine times in ten": judged("noisy", uneven, [3 * v for v in noisy]),
    "always right": judged("right", uneven, [3 * v for v in truth]),
}
by_id = {
    a.id: e
    for d in DOMAINS
    for a, e in zip(load_labelled(d, "held_out"), examples_of(d, "held_out"), strict=True)
}
entries = VOTES.split()
votes = dict(zip(entries[::2], entries[1::2], strict=True))
real = judged(recorded.model, [by_id[i] for i in votes], list(votes.values()))
made[recorded.model] = real

fig, axes = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained", width_ratios=[1, 1.1, 1.6])
confusion = pd.DataFrame(real.confusion).T
axes[0].imshow(confusion, cmap="Blues", vmin=0, vmax=1.4 * confusion.to_numpy().max())
axes[0].set_xticks(range(3), confusion.columns)
axes[0].set_yticks(range(2), confusion.index, rotation=90, va="center")
axes[0].set(xlabel="verdict", ylabel="label", title=f"{recorded.model}:\n{real.examples} answers")
for (i, j), count in np.ndenumerate(confusion.to_numpy()):
    ink = "white" if count > 0.6 * confusion.to_numpy().max() else "black"
    axes[0].text(j, i, count, ha="center", va="center", fontsize=13, color=ink)
letters = "".join(votes.values())
OUTCOMES = {
    "supported": "s",
    "unsupported": "u",
    "no evidence": "n",
    "truncated": "t",
    "malformed": "m",
}
counts = [letters.count(letter) for letter in OUTCOMES.values()]
axes[1].barh(list(OUTCOMES), counts, color=[GREEN, GREEN, RED, RED, RED])
axes[1].bar_label(axes[1].containers[0], padding=3)
axes[1].set(xlim=(0, 1.15 * max(counts)), title=f"what came of its {len(letters)} runs")
axes[1].invert_yaxis()
for place, c in enumerate(made.values()):
    right_ones = c.confusion["grounded"]["grounded"] + c.confusion["ungrounded"]["ungrounded"]
    accuracy = right_ones / c.examples
    axes[2].plot(accuracy, place, "x", color=AMBER, ms=8, label="accuracy" if place == 0 else None)
    if c.kappa.value is not None:
        bars = [[c.kappa.value - c.kappa.low], [c.kappa.high - c.kappa.value]]
        axes[2].errorbar(
            c.kappa.value,
            place,
            xerr=bars,
            fmt="o",
            color=BLUE,
            capsize=3,
            label="kappa, 95 %" if place == 0 else None,
        )
axes[2].axvline(BAR, color="black", ls="--", lw=1, label=f"bar, {BAR}")
axes[2].axvline(0, color="black", lw=0.5)
axes[2].set_yticks(
    range(len(made)), [f"{n}{' (trusted)' if c.trusted else ''}" for n, c in made.items()]
)
axes[2].set_ylim(len(made) - 0.5, -0.5)
axes[2].grid(alpha=0.3)
axes[2].set_title("judges: accuracy and kappa")
fig.legend(*axes[2].get_legend_handles_labels(), loc="outside lower right", ncols=3)
plt.show()
print(real.reason)

# %% [markdown]
# And live, on one answer and on one pair in both orders:

# %%
pair = [next(e for e in pool if e.grounded is label) for label in (True, False)]
judge = EngineModel(engine.base_url, engine.model, max_tokens=64)
verdict = judge_answer(judge, pair[0].item, seeds=SEEDS)
print(f"a grounded answer: {', '.join(verdict.outcomes)}; verdict {verdict.grounded}")
item = pair[0].item
choice = compare(judge, item.question, item.contexts, item.answer, pair[1].item.answer, seeds=(1,))
print(f"a pair in both orders: {choice.outcomes[0]}; share of first places {choice.first_share}")

# %% [markdown]
# **Questions.** Which figure would the first judge's author put on a slide? Why is a broken reply
# counted against the judge and not left out? A larger judge reaches a kappa of 0.7: on how many
# answers must it do so before the whole interval is above the bar? Run the last cell again: does
# the same seed give the same outcome?

# %% [markdown]
# ## 6. What a release gate can see
#
# Made-up releases: a quarter of the answers differ, in five slices, and the true loss is known.
# `release_gate` (task 3.6) decides about each, with a margin of 0.05 and an alpha of 0.05. With no
# loss at all (A/A) each block is a false one. Crosses: where `required_questions` expects a power
# of 0.8.

# %%
from release_gate import Plan, Score, release_gate, required_questions

DIFFER, SLICES = 0.25, 5
SIZES, LOSSES = (40, 80, 160, 320, 640), (0.0, 0.05, 0.1, 0.15)
plan = Plan()


def release(questions: int, loss: float) -> tuple[list, list]:
    """Scores of 0 and 1 of an old and a new version."""
    draw, both = rng.random(questions), rng.random(questions) < 0.5
    lost = draw < (DIFFER + loss) / 2
    won = ~lost & (draw < DIFFER)
    old, new = np.where(lost, 1, np.where(won, 0, both)), np.where(lost, 0, np.where(won, 1, both))
    return tuple(
        [Score(f"Q{n}", f"slice {n % SLICES}", float(v)) for n, v in enumerate(version)]
        for version in (old, new)
    )


verdicts, lower_mean = {}, {}
for loss in LOSSES:
    for size in SIZES:
        pairs = [release(size, loss) for _ in range(300 if loss == 0 else 100)]
        verdicts[loss, size] = [release_gate(old, new, plan).verdict for old, new in pairs]
        if loss == 0:
            lower_mean[size] = np.mean(
                [sum(s.value for s in new) < sum(s.value for s in old) for old, new in pairs]
            )

fig, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
for loss, color in zip(LOSSES, (GREY, AMBER, RED, BLUE), strict=True):
    blocked = [np.mean(np.array(verdicts[loss, n]) == "block") for n in SIZES]
    name = f"loss {loss:.2f}" if loss else "A/A (no loss)"
    left.plot(SIZES, blocked, "o-", color=color, label=name)
    if loss:
        spread = (DIFFER - loss**2) ** 0.5
        wanted = required_questions(loss, spread, tests=SLICES + 1)
        left.plot(wanted, 0.8, "x", color=color, ms=10, mew=2)
left.plot(SIZES, list(lower_mean.values()), ":", color=GREY, label='A/A, "lower mean blocks"')
left.axhline(plan.alpha, color="black", lw=0.7, label=f"alpha, {plan.alpha}")
left.set(xscale="log", xlabel="questions", ylabel="blocked", ylim=(-0.02, 1.02))
left.set_title("power against sample size")
ticks = [*SIZES, 1280]
left.set_xticks(ticks, ticks)
left.minorticks_off()
left.grid(alpha=0.3)
left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
start = np.zeros(len(LOSSES))
for verdict, color in (("pass", GREEN), ("undecided", GREY), ("block", RED)):
    share = np.array([np.mean(np.array(verdicts[loss, 80]) == verdict) for loss in LOSSES])
    right.bar([f"{loss:.2f}" for loss in LOSSES], share, bottom=start, color=color, label=verdict)
    start += share
right.set(xlabel="true loss", ylabel="share of releases", title="verdicts with 80 questions")
right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
plt.show()
for size in SIZES:
    blocked = verdicts[0.0, size].count("block")
    print(f"A/A with {size:3} questions: {blocked} of {len(verdicts[0.0, size])} blocked")

# %% [markdown]
# The same gate on real versions: the recorded assistant without its defence, and with it.


# %%
def right_or_not(version: dict[str, str]) -> list:
    """1 for an answer that says all facts and nothing wrong; where there is none, for saying so."""
    return [
        Score(
            q.id,
            q.kind,
            float(
                not q.missing(version[q.id]) and not q.wrong(version[q.id])
                if q.answerable
                else version[q.id] == NO_ANSWER
            ),
        )
        for q in golden
    ]


decision = release_gate(right_or_not(answers["plain"]), right_or_not(answers["defended"]), plan)
print(f"{decision.verdict}: {decision.reason}")
columns = ["name", "questions", "old", "new", "change", "low", "high", "adjusted_p", "verdict"]
table = pd.DataFrame([{c: getattr(s, c) for c in columns} for s in decision.slices])
table.set_index("name").round(2)

# %% [markdown]
# **Questions.** With 80 questions most equal versions are "undecided": what would you do with such
# a release, and who decides? What would it cost to ask each question eight times instead, and what
# would it buy? Why do the curves stay below the crosses? Which slices of the table could hide a
# loss of 0.2?

# %% [markdown]
# ## 7. Suites, and what they stop
#
# Assistants made by code: good ones in seven styles, and six disguises of each of seven faults.
# Four suites ask them the golden questions. Three are short, as many are; the fourth is
# `evaluation_suite.py` (task 3.7), which also asks about customers and attacks. Below, which of its
# tests turns red for which fault.

# %%
import evaluation_suite
from support.suite_runs import TESTS
from support.suite_systems import make_desk

from shared.assistant.assistants import FAULTS, labelled_assistants


class Kept:
    """An assistant that remembers its answers, as a suite asks the same question often."""

    def __init__(self, system) -> None:
        self.system, self.answers, self.others = system, {}, {}

    def ask(self, question: str):
        if question not in self.answers:
            self.answers[question] = self.system.ask(question)
        return self.answers[question]

    def given(self, *more):
        if more not in self.others:
            self.others[more] = Kept(self.system.given(*more))
        return self.others[more]


desk = make_desk(evaluation_suite.Desk, DOMAIN, seed=3)


def red_tests(assistant: Kept) -> set[str]:
    """The faults whose tests in your suite stop an assistant."""
    red = set()
    for fault, name in TESTS.items():
        try:
            getattr(evaluation_suite, name)(assistant, desk)
        except AssertionError:
            red.add(fault)
    return red


def facts(assistant: Kept) -> float:
    """The mean share of the facts that its answers say."""
    asked = [(q, assistant.ask(q.question).text) for q in golden if q.answerable]
    return np.mean([1 - len(q.missing(text)) / len(q.facts) for q, text in asked])


def own_words(assistant: Kept) -> float:
    """The mean share of an answer's words that its contexts hold."""
    asked = [assistant.ask(q.question) for q in golden if q.answerable]
    return np.mean([overlap(a.text, tuple(c.text for c in a.contexts)) for a in asked])


SUITES = {
    "no answer is short": lambda a, red: any(len(a.ask(q.question).text) < 20 for q in golden),
    "mean word overlap ≥ 0.8": lambda a, red: own_words(a) < 0.8,
    "mean share of facts ≥ 0.9": lambda a, red: facts(a) < 0.9,
    "evaluation_suite": lambda a, red: bool(red),
}
rows = []
for system in labelled_assistants(DOMAIN, seed=3):
    assistant = Kept(system)
    red = red_tests(assistant)
    tests = {f"red: {fault}": fault in red for fault in FAULTS}
    stops = {name: suite(assistant, red) for name, suite in SUITES.items()}
    rows.append({"fault": system.fault or "good", **stops, **tests})
stopped = pd.DataFrame(rows).groupby("fault").mean().loc[[*FAULTS, "good"]].T.astype(float)
sizes = pd.Series([r["fault"] for r in rows]).value_counts()

fig, axes = plt.subplots(2, 1, figsize=(11, 7), layout="constrained", height_ratios=[4, 7])
for ax, part, title in (
    (axes[0], stopped.loc[list(SUITES)], "stopped by a suite"),
    (axes[1], stopped.iloc[len(SUITES) :], "stopped by a test of evaluation_suite"),
):
    bad = np.ma.masked_array(part, np.tile(part.columns == "good", (len(part), 1)))
    ax.imshow(bad, cmap="Greens", vmin=0, vmax=1.15, aspect="auto")
    good = np.ma.masked_array(part, ~bad.mask)
    ax.imshow(good, cmap="Reds", vmin=0, vmax=1.15, aspect="auto")
    ax.set_yticks(range(len(part)), [name.replace("red: ", "test: ") for name in part.index])
    ax.set_xticks(
        range(part.shape[1]), [f"{f.replace('_', ' ')}\n({sizes[f]})" for f in part.columns]
    )
    ax.tick_params(length=0)
    ax.set_title(f"{title} (last column: good assistants)")
    for (i, j), value in np.ndenumerate(part.to_numpy()):
        ink = "white" if value > 0.6 else "black"
        ax.text(j, i, f"{value:.0%}", ha="center", va="center", color=ink)
plt.show()

# %% [markdown]
# **Questions.** Which faults does the mean of facts never see, and why? A suite that stops each bad
# assistant and one good one in seven: would you use it? Which cells beside the diagonal are a fault
# of the suite, and which are a second fault of the assistant? Half of these disguises were open
# while the suite was written: which number would you report?

# %%
if not engine_was_there:
    stop_engine(engine.kind)
scratch.cleanup()
