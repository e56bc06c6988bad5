"""Checks of task 3.1: retrieval metrics, against RAGAS's numbers, with intervals, in MLflow."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from support.evaluation_runs import (
    Stored,
    Watched,
    experiment_in,
    feedback_of,
    keep_newest,
    quiet_mlflow,
    runs_of,
    scoring_fails_at,
    some_of_each,
    stored,
)
from support.ragas_numbers import ragas_numbers

from shared.assistant.assistant import Assistant
from shared.assistant.backends import Recorded
from shared.assistant.material import load_documents, load_golden
from shared.assistant.records import GoldenQuestion
from shared.assistant.retrieval import index_of
from shared.grading.expect import (
    expect,
    expect_equal,
    expect_raises,
    fail,
    number,
    plain,
    show,
)
from shared.tracking import make_empty_store

NAMES = ("precision", "context_precision", "recall", "reciprocal_rank", "ndcg")
CORPUS = tuple(f"D{i:02}" for i in range(30))
EXPERIMENT = "lab-3-retrieval"
KINDS = ("number", "two-documents", "out-of-date", "unanswerable")


def test_the_order_of_the_ranking_decides_where_the_hits_are(learner, rng):
    why = (
        "The prompt of a small model holds the first few sentences. Whether the right document "
        "comes first or fifth decides the answer, and recall cannot see it."
    )
    for _ in range(40):
        ranking, relevant, k = _case(rng, found=int(rng.integers(4, 8)), relevant=2)
        places = [i for i, d in enumerate(ranking[:k], 1) if d in relevant]
        if len(places) != 1:  # where one is missing, the check against RAGAS decides
            expect_equal(
                _number(learner, "context_precision", ranking, relevant, k),
                sum(n / i for n, i in enumerate(places, 1)) / 2,
                what=f"context_precision_at_k with k={k} and hits at places {places}",
                abs_=1e-9,
                why=why,
                hint="order-counts",
            )
        got = _number(learner, "reciprocal_rank", ranking, relevant, k)
        last = len(places) > 1 and math.isclose(got, 1 / places[-1])
        expect_equal(
            got,
            1 / places[0] if places else 0.0,
            what=f"reciprocal_rank_at_k with k={k} and hits at places {places}",
            abs_=1e-9,
            why=why,
            hint="first-hit" if last else "order-counts",
        )


def test_precision_is_divided_by_k_and_recall_by_what_is_relevant(learner, rng):
    for _ in range(40):
        ranking, relevant, k = _case(
            rng, found=int(rng.integers(1, 9)), relevant=int(rng.integers(1, 6))
        )
        hits = len(set(ranking[:k]) & set(relevant))
        case = f"{hits} of {len(relevant)} relevant documents in the first {k} of {len(ranking)}"
        got = _number(learner, "recall", ranking, relevant, k)
        uncut = len(set(ranking) & set(relevant)) / len(relevant)
        expect_equal(
            got,
            hits / len(relevant),
            what=f"recall_at_k with {case}",
            abs_=1e-9,
            why="Recall says how much of what is needed reached the model. Divided by k it is "
            "precision under another name, and a question with one document can never be right.",
            hint="edge-cases" if got == uncut != hits / len(relevant) else "divided-by-relevant",
        )
        expect_equal(
            _number(learner, "precision", ranking, relevant, k),
            hits / k,
            what=f"precision_at_k with {case}",
            abs_=1e-9,
            why="Two retrievers are compared at the same k. Divided by what was found, the one "
            "that stops after its first document wins.",
            hint="divided-by-k",
        )


def test_ndcg_knows_grades_and_the_best_possible_ranking(learner, rng):
    expect_equal(
        _number(learner, "ndcg", ["b", "x", "a"], {"a": 2, "b": 1, "c": 1}, 3),
        (1 + 3 / 2) / (3 + 1 / math.log2(3) + 1 / 2),
        what="ndcg_at_k of [b, x, a] with grades a: 2, b: 1, c: 1 and k=3",
        abs_=1e-9,
        why="The document that holds the answer is worth three that touch it; in the wrong order "
        "the model reads the wrong one first.",
        hint=_ndcg_hint(
            [(["b", "x", "a"], {"a": 2, "b": 1, "c": 1}, 3)],
            [_number(learner, "ndcg", ["b", "x", "a"], {"a": 2, "b": 1, "c": 1}, 3)],
        ),
    )
    cases = [
        _case(rng, found=int(rng.integers(1, 9)), relevant=int(rng.integers(1, 6)))
        for _ in range(40)
    ]
    got = [_number(learner, "ndcg", *case) for case in cases]
    for case, value in zip(cases, got, strict=True):
        expect_equal(
            value,
            _ndcg(*case),
            what=f"ndcg_at_k of {show(case[0], 90)} with grades {case[1]} and k={case[2]}",
            abs_=1e-9,
            why="1 must mean that no ranking is better: not one of the documents that were "
            "found, and not one of more than k.",
            hint=_ndcg_hint(cases, got),
        )


def test_nothing_relevant_is_neither_0_nor_1(learner, rng):
    for relevant in ({}, {"D01": 0}):
        for ranking in ([], ["D01"], list(CORPUS[:8])):
            for name in NAMES:
                expect_equal(
                    _metric(learner, name)(ranking, relevant, 3),
                    None,
                    what=f"{name} of a ranking of {len(ranking)} where nothing is relevant",
                    why="A question that no document answers has no right ranking. Counted as 0 "
                    "it punishes every retriever, counted as 1 it flatters every retriever, and "
                    "the mean moves with the share of such questions.",
                    hint="nothing-relevant",
                )
    for name in NAMES:
        for k in (0, -1):
            for relevant in ({"D01": 2}, {}):
                expect_raises(
                    ValueError,
                    lambda name=name, k=k, relevant=relevant: _metric(learner, name)(
                        ["D01"], relevant, k
                    ),
                    doing=f"{name} with k={k}",
                    why="ranking[:0] is empty and ranking[:-1] is not: a wrong setting gives a "
                    "number that looks like a result.",
                    hint="edge-cases",
                )


def test_doubles_strangers_and_empty_rankings_are_no_surprise(learner):
    doubled = (["x", "x", "a", "a", "b", "b"], {"a": 2, "b": 2}, 3)
    for name, wanted in (
        ("precision", 2 / 3),
        ("recall", 1.0),
        ("context_precision", (1 / 2 + 2 / 3) / 2),
        ("reciprocal_rank", 1 / 2),
        ("ndcg", (1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3))),
    ):
        expect_equal(
            _number(learner, name, *doubled),
            wanted,
            what=f"{name} of [x, x, a, a, b, b] with a and b relevant and k=3",
            abs_=1e-9,
            why="An index of chunks finds one document many times. Counted each time, one good "
            "document fills a whole evaluation, and recall passes 1.",
            hint="same-document-twice",
        )
    for name in NAMES:
        for ranking, relevant, what in (
            ([], {"a": 2, "b": 1}, "an empty ranking"),
            (["?", "gone"], {"a": 2, "b": 1}, "a ranking of ids that nobody graded"),
            (["z"], {"a": 2, "z": 0}, "a ranking of one document with grade 0"),
        ):
            expect_equal(
                _number(learner, name, ranking, relevant, 3),
                0.0,
                what=f"{name} of {what}",
                abs_=1e-12,
                why="An index that is down finds nothing. That is the worst result there is, not "
                "a missing one.",
                hint="edge-cases",
            )


def test_an_interval_has_a_width_even_where_all_scores_are_1(learner, rng, figure):
    for right, rows in ((10, 10), (8, 8), (0, 9), (21, 22), (66, 70), (3, 10)):
        values = [float(v) for v in rng.permutation([1.0] * right + [0.0] * (rows - right))]
        got = _interval(learner.mean_interval(values))
        exact = binomtest(right, rows).proportion_ci(0.95, method="exact")
        flat = right in (0, rows) and got["high"] - got["low"] < 1e-6
        expect_equal(
            [got["low"], got["high"]],
            [float(exact.low), float(exact.high)],
            what=f"low and high of {right} questions with 1 and {rows - right} with 0",
            abs_=0.02,
            why="Ten of ten is what a retriever that fails one question in eight shows one time "
            "in four. An interval without a width says that it cannot happen."
            if flat
            else "Where scores are 0 or 1 the exact interval is known: Clopper and Pearson's. "
            "One that is narrower promises what ten questions cannot tell.",
            hint="unseen-question" if right in (0, rows) else "both-ends",
        )
    levels, shares = np.array([0.0, 0.5, 1.0]), np.array([0.02, 0.06, 0.92])
    truth, runs = float(levels @ shares), 150
    inside = 0
    for _ in range(runs):
        got = _interval(learner.mean_interval(rng.choice(levels, size=12, p=shares).tolist()))
        inside += got["low"] <= truth <= got["high"]
    figure("intervals of 12 questions that hold the true mean", inside / runs, reference=0.98)
    expect(
        inside / runs >= 0.88,
        observed=f"{inside} of {runs} intervals at 95 % hold the true mean of {truth:.3f}",
        expected="at least 88 in 100, for 12 questions of which nearly all score 1",
        why="Good retrievers fail seldom, so most small samples hold no failure at all. That is "
        "where an interval is needed.",
        hint="unseen-question",
    )
    values = rng.choice([1 / 3, 2 / 3], size=70, p=[0.85, 0.15])
    got, again = (_interval(learner.mean_interval(values.tolist(), seed=3)) for _ in range(2))
    width = got["high"] - got["low"]
    widest = 2.5 * 2 * 1.96 * float(values.std()) / math.sqrt(70)
    expect(
        width <= widest and got == again,
        observed=f"a width of {width:.3f}, and {'the same' if got == again else 'another one'} "
        "the second time",
        expected=f"at most {widest:.3f} for 70 scores of 1/3 and 2/3, the same for one seed",
        why="Precision at 3 of questions with one document varies little, whatever its mean. An "
        "interval for shares is three times too wide there, and no progress ever shows.",
        hint="both-ends",
    )
    expect(
        _interval(learner.mean_interval(values.tolist(), seed=4)) != got,
        observed=f"{got} with seed=3 and with seed=4",
        expected="other bounds, from other weightings",
        why="How much of a bound is the luck of the draw shows where another seed draws anew.",
        hint="other-seed",
    )
    for values in ([], [0.2, 1.1], [float("nan")]):
        expect_raises(
            ValueError,
            lambda values=values: learner.mean_interval(values),
            doing=f"an interval of {values}",
            why="A mean of nothing, or of scores that are none, must not look like a result.",
            hint="edge-cases",
        )


def test_a_question_weighs_the_same_whatever_its_kind(learner, rng):
    sizes = {"plain": 14, "number": 5, "negation": 2, "unanswerable": 1}
    hits = {"plain": 12, "number": 2, "negation": 0, "unanswerable": 1}
    found: dict[str, list[str]] = {}
    drawn: list[GoldenQuestion] = []
    for kind, size in sizes.items():
        for i in range(size):
            drawn.append(_question(f"Q-{kind}-{i}", kind, {"D00": 2}))
            found[drawn[-1].question] = ["D00" if i < hits[kind] else "D05"]
    drawn += [_question(f"Q-none-{i}", "unanswerable", {}) for i in range(4)]
    drawn += [_question(f"Q-late-{i}", "out-of-date", {}) for i in range(2)]
    drawn += [_question("Q-gone", "plain", {}), _question("Q-zero", "number", {"D03": 0})]
    questions = [drawn[int(i)] for i in rng.permutation(len(drawn))]
    found |= {q.question: ["D05"] for q in questions if q.question not in found}
    report = learner.evaluate_retriever(found.__getitem__, questions, 2, documents=CORPUS)
    counts = {k: [n, 0] for k, n in sizes.items()} | {"out-of-date": [0, 2]}
    counts["plain"][1] = counts["number"][1] = 1
    counts["unanswerable"][1] = 4
    expect_equal(
        {k: [plain(s.scored), plain(s.excluded)] for k, s in report.by_kind.items()},
        counts,
        what="scored and excluded questions by kind",
        why="What was left out, and that it was, is half of the result. Grades say it, the name "
        "of the kind does not: documents are withdrawn, and others are written.",
        hint="by-grades-not-kind",
    )
    expect_equal(
        [report.overall.scored, report.overall.excluded],
        [22, 8],
        what="scored and excluded questions in all",
        why="A mean without the number of questions behind it cannot be judged.",
        hint="nothing-relevant",
    )
    got = _mean(report.overall, "recall")["value"]
    right = sum(hits.values()) / 22
    of_kinds = float(np.mean([hits[k] / n for k, n in sizes.items()]))
    expect_equal(
        got,
        right,
        what=f"overall mean recall of kinds with {list(sizes.values())} questions"
        + (", which is the mean of the kinds' means" if math.isclose(got, of_kinds) else ""),
        abs_=1e-9,
        why="Two questions of a rare kind must not outweigh fourteen of a common one, and the "
        "interval belongs to a mean over questions.",
        hint="weight-of-a-question",
    )
    for kind, size in sizes.items():
        mean = _mean(report.by_kind[kind], "recall")
        expect(
            math.isclose(mean["value"], hits[kind] / size) and mean["high"] - mean["low"] > 0.1,
            observed=f"recall {mean} of the kind {kind!r}",
            expected=f"{hits[kind] / size:.3f}, with the interval of {size} questions",
            why="A kind that fails is hidden by the mean. And with few questions it may be luck, "
            "which its own interval says.",
            hint="unseen-question",
        )
    expect_equal(
        report.by_kind["out-of-date"].means,
        {},
        what="means of the kind that has no scored question",
        why="No question, no mean.",
        hint="nothing-relevant",
    )
    # All scores alike: no order of them gives other bounds, only another seed does.
    alike = [_question(f"Q{i}", KINDS[i % 2], {"D00": 2, "D01": 2}) for i in range(9)]
    for seed in (3, 4):
        report = learner.evaluate_retriever(
            lambda question: ["D00"], alike, 2, documents=CORPUS, seed=seed
        )
        parts = {"all": report.overall} | {kind: report.by_kind[kind] for kind in KINDS[:2]}
        expect_equal(
            {name: _mean(part, "recall") for name, part in parts.items()},
            {
                name: _interval(learner.mean_interval([0.5] * count, seed=seed))
                for name, count in zip(parts, (9, 5, 4), strict=True)
            },
            what=f"mean recall in all and by kind with seed={seed}, as mean_interval gives it",
            abs_=1e-9,
            why="A seed that is taken and not passed on draws the same weightings each time: who "
            "repeats the evaluation with another, to see whether a bound holds, is told that it "
            "does.",
            hint="other-seed",
        )


def test_an_evaluation_says_what_is_out_of_step_and_hides_no_error(learner, rng):
    asked: list[str] = []
    rankings = [["D09", "gone-2", "gone-1", "lost"], ["D01"], ["gone-1", "D02"], []]
    grades: list[dict[str, int]] = [{"D01": 2, "D99": 0}, {}, {"D02": 1}, {"D03": 2}]
    questions = [_question(f"Q{i}", "plain", g) for i, g in enumerate(grades)]
    answers = {q.question: r for q, r in zip(questions, rankings, strict=True)}

    def retrieve(question: str) -> list[str]:
        asked.append(question)
        return answers[question]

    report = learner.evaluate_retriever(retrieve, questions, 3, documents=CORPUS)
    expect_equal(
        [asked, report.k, [q.id for q in report.questions]],
        [[q.question for q in questions], 3, [q.id for q in questions]],
        what="texts that the retriever was asked, k, and ids of the report's questions",
        why="Each question once, those without an answer too: what is found for them is what the "
        "model will make something up from.",
        hint="errors-count",
    )
    expect_equal(
        [[list(q.ranking), q.scores is None] for q in report.questions],
        [[r[:3], not any(g.values())] for r, g in zip(rankings, grades, strict=True)],
        what="ranking, and whether there are no scores, of each question",
        why="Who wants to know why a mean fell reads the rankings that fell.",
        hint="nothing-relevant",
    )
    expect_equal(
        report.unknown,
        ["gone-1", "gone-2"],
        what="unknown ids among the first three of each ranking",
        why="An index that finds withdrawn documents is out of step. They count as misses, and "
        "somebody must be told.",
        hint="out-of-step",
    )
    broken = [*questions, _question("Q-old", "plain", {"D01": 2, "D77": 2})]
    for given, what, word in (
        (broken, "a golden question for a withdrawn document", "D77"),
        ([], "no question", "question"),
    ):
        expect_raises(
            ValueError,
            lambda given=given: learner.evaluate_retriever(
                lambda q: ["D01"], given, 3, documents=CORPUS
            ),
            doing=what,
            mentions=word,
            why="No retriever can find what is not there. Scored all the same, the golden set's "
            "own fault is charged to whoever changed the index last.",
            hint="out-of-step",
        )

    def fails(question: str) -> list[str]:
        if question == questions[2].question:
            raise TimeoutError("the index did not answer")
        return ["D01"]

    expect_raises(
        TimeoutError,
        lambda: learner.evaluate_retriever(fails, questions, 3, documents=CORPUS),
        doing="a retriever that fails at one question",
        why="Left out, the question that breaks the retriever makes its mean better.",
        hint="errors-count",
    )


@pytest.mark.limit(90)  # the first run embeds all documents
def test_metrics_agree_with_ragas_where_the_definitions_do(learner, rng, domain, figure):
    documents = load_documents(domain)
    texts = {d.id: d.text for d in documents}
    for _ in range(12):
        size, k = int(rng.integers(1, 6)), 4
        drawn = [str(i) for i in rng.permutation(list(texts))]
        wanted, rest = drawn[: int(rng.integers(1, 5))], drawn[4:20]
        ranking = [str(i) for i in rng.permutation([*wanted[:3], *rest[:2]])][:size]
        relevant = {i: int(rng.integers(1, 3)) for i in wanted}
        ours = {n: _number(learner, n, ranking, relevant, k) for n in NAMES}
        first = ranking[:k]
        theirs = ragas_numbers(first, wanted, texts)
        for name, metric, factor in (
            ("recall", "IDBasedContextRecall", 1.0),
            ("recall", "NonLLMContextRecall", 1.0),
            ("precision", "IDBasedContextPrecision", len(first) / k),
            ("context_precision", "NonLLMContextPrecisionWithReference", 1.0),
        ):
            expect_equal(
                ours[name],
                theirs[metric] * factor,
                what=f"{name} at {k} of {len(ranking)} documents found, "
                f"{len(set(first) & set(wanted))} of {len(wanted)} relevant ones among them"
                + (f" (RAGAS's {metric} times {len(first)} found / {k})" if factor < 1 else ""),
                abs_=1e-9,
                why=f"Others will read RAGAS's {metric} of the same ranking. Where two tools "
                "disagree and nobody can say why, nobody trusts either.",
                hint="ragas",
            )
    questions, k = load_golden(domain), 3
    index = index_of(documents)
    found = {q.question: [h.document.id for h in index.search(q.question, k)] for q in questions}
    report = learner.evaluate_retriever(found.__getitem__, questions, k, documents=list(texts))
    for name, metric in (("precision", "Precision"), ("recall", "Recall")):
        numbers = [
            ragas_numbers(found[q.question], list(q.relevant))[f"IDBasedContext{metric}"]
            for q in questions
            if q.relevant
        ]
        mean = _mean(report.overall, name)
        expect_equal(
            mean["value"],
            float(np.mean(numbers)),
            what=f"mean {name} at {k} of MiniLM over the answerable golden questions of {domain}",
            abs_=1e-9,
            why="This is the number on the slide. RAGAS, asked the same, must give the same.",
            hint="weight-of-a-question",
        )
    baseline = learner.evaluate_retriever(
        _by_words(texts), questions, k, documents=list(texts)
    ).overall
    for name in ("recall", "ndcg"):
        figure(f"{name} at {k} of MiniLM", _mean(report.overall, name)["value"])
        figure(f"{name} at {k} of shared words", _mean(baseline, name)["value"])
    figure(f"lower bound of recall at {k} of MiniLM", _mean(report.overall, "recall")["low"])


@pytest.mark.limit(90)
def test_every_question_is_one_trace_with_what_was_found(learner, rng, domain, tmp_path):
    assistant = Watched(Assistant(domain, Recorded.load(domain)))
    questions = some_of_each(load_golden(domain), KINDS, rng)
    uri = _scratch(tmp_path)
    run_id = _logged(learner, assistant, questions, domain, uri, "recorded")
    _expect_run(learner, stored(uri, run_id), assistant, questions, domain, "recorded")
    expect_raises(
        LookupError,
        lambda: learner.log_evaluation(
            assistant.ask,
            questions,
            3,
            documents=[d.id for d in load_documents(domain)],
            tracking_uri=uri,
            experiment="no-such-experiment",
            run_name="x",
        ),
        doing="an experiment that does not exist",
        why="A misspelt name would start a history of its own that nobody looks at.",
        hint="run-figures",
    )


@pytest.mark.limit(90)
def test_a_question_that_was_not_answered_ends_the_evaluation(learner, rng, domain, tmp_path):
    questions = some_of_each(load_golden(domain), ("plain", "number", "unanswerable"), rng)
    lost = questions[int(rng.integers(3))]
    assistant = Watched(Assistant(domain, Recorded.load(domain)), fails_at=[lost.question])
    uri = _scratch(tmp_path)
    expect_raises(
        RuntimeError,
        lambda: _logged(learner, assistant, questions, domain, uri, "broken"),
        doing=f"an assistant that raises at one of three questions, {lost.id}",
        mentions=lost.id,
        why="MLflow logs a warning, takes the mean of the others, and the run looks better than "
        "the one before. The question that breaks the assistant is the one you want to see.",
        hint="nobody-left-out",
    )
    expect_equal(
        [r.info.status for r in runs_of(uri, EXPERIMENT)],
        ["FAILED"],
        what="status of the run",
        why="A run that says FINISHED is compared with others.",
        hint="nobody-left-out",
    )


@pytest.mark.limit(90)
def test_a_question_that_was_not_scored_ends_the_evaluation(learner, rng, domain, tmp_path):
    questions = some_of_each(load_golden(domain), ("plain", "number", "unanswerable"), rng)
    lost = questions[int(rng.integers(2))]  # the third gets no feedback anyway
    assistant = Watched(Assistant(domain, Recorded.load(domain)))
    uri = _scratch(tmp_path)

    def log() -> str:
        with scoring_fails_at(lost.question):
            return _logged(learner, assistant, questions, domain, uri, "unscored")

    expect_raises(
        RuntimeError,
        log,
        doing=f"three answers of which one, {lost.id}, got no feedback, for MLflow could not "
        "call the scorers",
        mentions=lost.id,
        why="All were answered, so nothing seems to be missing. But MLflow's mean is over the "
        "others, and a busy store loses other questions each time.",
        hint="nobody-left-out",
    )
    expect_equal(
        [r.info.status for r in runs_of(uri, EXPERIMENT)],
        ["FAILED"],
        what="status of the run",
        why="A run that says FINISHED is compared with others.",
        hint="nobody-left-out",
    )


def test_the_real_assistants_answers_are_traced_and_scored(
    learner, rng, domain, engine, store, figure
):
    assistant = Watched(Assistant(domain, engine))
    questions = some_of_each(
        load_golden(domain), ("plain", "number", "two-documents", "unanswerable"), rng
    )
    name = f"assistant-{domain}"
    experiment_in(store.uri, store.artifacts, EXPERIMENT)
    run_id = _logged(learner, assistant, questions, domain, store.uri, name)
    found = stored(store.uri, run_id)
    _expect_run(learner, found, assistant, questions, domain, name)
    keep_newest(store.uri, EXPERIMENT, name)
    figure(
        "recall at 3 of the real assistant, three questions", found.run.data.metrics["recall/mean"]
    )


def _metric(learner: Any, name: str) -> Callable[..., Any]:
    return getattr(learner, f"{name}_at_k")


def _number(
    learner: Any, name: str, ranking: Sequence[str], relevant: Mapping[str, int], k: int
) -> float:
    value = _metric(learner, name)(list(ranking), dict(relevant), k)
    what = f"{name}_at_k({show(list(ranking), 80)}, {dict(relevant)}, {k})"
    return number(value, what=what, hint="edge-cases")


def _case(
    rng: np.random.Generator, *, found: int, relevant: int
) -> tuple[list[str], dict[str, int], int]:
    """A ranking of so many documents, grades of so many, and a k."""
    drawn = [str(i) for i in rng.permutation(CORPUS)]
    grades = {i: int(rng.integers(1, 3)) for i in drawn[:relevant]}
    pool = [*drawn[:relevant], *drawn[relevant : relevant + 5]]
    ranking = [str(i) for i in rng.permutation(pool)][:found]
    return ranking, grades, int(rng.integers(1, 7))


def _ndcg(
    ranking: Sequence[str],
    relevant: Mapping[str, int],
    k: int,
    gain: Callable[[int], float] = lambda grade: 2.0**grade - 1,
    ideal_of_found: bool = False,
    ideal_at: int | None = None,
) -> float:
    found = [gain(relevant.get(i, 0)) for i in ranking[:k]]
    best = sorted(found if ideal_of_found else map(gain, relevant.values()), reverse=True)
    best = best[: ideal_at or k]

    def summed(gains: Sequence[float]) -> float:
        return sum(g / math.log2(i + 1) for i, g in enumerate(gains, 1))

    return summed(found) / summed(best) if summed(best) else 0.0


def _ndcg_hint(cases: Sequence[Any], got: Sequence[float]) -> str:
    """Which mistake gives these numbers."""

    def gives(**other: Any) -> bool:
        wrong = [_ndcg(*case, **other) for case in cases]
        return bool(np.allclose(got, wrong, atol=1e-9))

    if gives(ideal_of_found=True) or gives(ideal_at=len(CORPUS)):
        return "ideal-ranking"
    if gives(gain=float) or gives(gain=lambda grade: float(grade > 0)):
        return "gain-of-a-grade"
    return "ideal-ranking" if max(got) > 1 + 1e-9 else "gain-of-a-grade"


def _question(name: str, kind: str, relevant: Mapping[str, int]) -> GoldenQuestion:
    return GoldenQuestion(
        id=name,
        question=f"What about {name}?",
        kind=kind,  # type: ignore[arg-type]
        topic="test",
        relevant=relevant,
        stale=(),
        facts=(),
        must_not=(),
        reference="",
        split="open",
    )


def _interval(mean: Any) -> dict[str, float]:
    values = plain(mean)
    if not isinstance(values, dict) or not {"value", "low", "high"} <= values.keys():
        fail(
            observed=f"mean_interval returned {show(values)}",
            expected="a Mean",
            why="A mean without bounds cannot be compared with another.",
        )
    return {k: number(values[k], what=f"{k} of a Mean") for k in ("value", "low", "high")}


def _mean(part: Any, name: str) -> dict[str, float]:
    means = plain(part.means)
    if not isinstance(means, dict) or sorted(means) != sorted(NAMES):
        fail(
            observed=f"means {show(means)}",
            expected=f"a Mean for each of {', '.join(NAMES)}",
            why="Reports are read by name.",
            hint="metrics-first",
        )
    return _interval(means[name])


def _by_words(texts: Mapping[str, str]) -> Callable[[str], list[str]]:
    """The baseline: documents by the share of the question's words that they hold."""
    words = {i: set(re.findall(r"\w+", t.casefold())) for i, t in texts.items()}

    def retrieve(question: str) -> list[str]:
        asked = set(re.findall(r"\w+", question.casefold()))
        return sorted(words, key=lambda i: -len(asked & words[i]))[:3]

    return retrieve


def _scratch(tmp_path: Path) -> str:
    uri = make_empty_store(tmp_path / "mlflow.db")
    experiment_in(uri, tmp_path / "artifacts", EXPERIMENT)
    return uri


def _logged(
    learner: Any,
    assistant: Watched,
    questions: Sequence[GoldenQuestion],
    domain: str,
    uri: str,
    run_name: str,
) -> str:
    with quiet_mlflow():
        run_id = learner.log_evaluation(
            assistant.ask,
            questions,
            3,
            documents=[d.id for d in load_documents(domain)],
            tracking_uri=uri,
            experiment=EXPERIMENT,
            run_name=run_name,
        )
    known = {r.info.run_id for r in runs_of(uri, EXPERIMENT)}
    if run_id not in known:
        fail(
            observed=f"{show(plain(run_id))} was returned; the runs are {sorted(known)}",
            expected="the id of the new run",
            why="Who called wants to find what was logged.",
            hint="run-figures",
        )
    return str(run_id)


def _expect_run(
    learner: Any,
    found: Stored,
    assistant: Watched,
    questions: Sequence[GoldenQuestion],
    domain: str,
    run_name: str,
) -> None:
    expect_equal(
        [sorted(assistant.asked), found.count, sorted(found.traces)],
        [
            sorted(q.question for q in questions),
            len(questions),
            sorted(q.question for q in questions),
        ],
        what="questions asked, number of the run's traces, questions of their root spans",
        why="Each answer costs tokens, and each must be found again from its figures.",
        hint="one-trace",
    )
    for question in questions:
        _expect_trace(found.traces[question.question], assistant, question)
    scored = [q for q in questions if q.relevant]
    run = found.run
    expect_equal(
        [run.info.status, run.info.run_name, run.data.params.get("k")],
        ["FINISHED", run_name, "3"],
        what="status, name and parameter k of the run",
        why="Without its k no figure of retrieval can be compared.",
        hint="run-figures",
    )
    rankings = {q: [c.id for c in a.contexts] for q, a in assistant.answers.items()}
    report = plain(
        learner.evaluate_retriever(
            rankings.__getitem__, questions, 3, documents=[d.id for d in load_documents(domain)]
        )
    )
    wanted: dict[str, float] = {"scored": len(scored), "excluded": len(questions) - len(scored)}
    for name, mean in report["overall"]["means"].items():
        wanted |= {f"{name}/mean": mean["value"], f"{name}/low": mean["low"]}
        wanted[f"{name}/high"] = mean["high"]
    for kind, part in report["by_kind"].items():
        wanted |= {f"{n}/mean/{kind}": mean["value"] for n, mean in part["means"].items()}
    logged = {k: v for k, v in run.data.metrics.items() if k in wanted}
    differ = [
        k for k in wanted if k not in logged or not math.isclose(wanted[k], logged[k], abs_tol=1e-6)
    ]
    expect_equal(
        {k: logged.get(k) for k in differ[:6]},
        {k: wanted[k] for k in differ[:6]},
        what="metrics of the run that are not as evaluate_retriever says",
        abs_=1e-6,
        why="The run's page is what is compared in three months: mean, bounds, kinds, and how "
        "many questions there were.",
        hint="run-figures",
    )


def _expect_trace(trace: Any, assistant: Watched, question: GoldenQuestion) -> None:
    answer = assistant.answers[question.question]
    root = next(s for s in trace.data.spans if s.parent_id is None)
    inside = [s for s in trace.data.spans if s.span_type == "RETRIEVER"]
    expect_equal(
        [
            [root.name, root.span_type, root.outputs],
            [[s.name, s.parent_id == root.span_id, s.inputs] for s in inside],
        ],
        [
            ["assistant", "CHAIN", answer.text],
            [["retrieve", True, {"question": question.question}]],
        ],
        what="name, type and outputs of the root span; name, whether it lies in the root, and "
        "inputs of each RETRIEVER span",
        why="Whoever looks into a bad answer goes from the question to what was found for it.",
        hint="one-trace",
    )
    wanted = [
        {"id": c.id, "page_content": c.text, "doc_uri": c.id, "score": round(c.score, 6)}
        for c in answer.contexts
    ]
    outputs = plain(inside[0].outputs)
    got = [_document(d) for d in outputs] if isinstance(outputs, list) else outputs
    expect_equal(
        got,
        wanted,
        what="documents of the RETRIEVER span",
        abs_=1e-5,
        why="MLflow draws documents, and its scorers read them, where the span holds them in its "
        "own form. A list of ids tells nobody what the model was shown.",
        hint="retriever-span",
    )
    expectations = {a.name: a.value for a in trace.info.assessments if a.expectation is not None}
    tags = {k: trace.info.tags.get(k) for k in ("question_id", "kind")}
    expect_equal(
        [expectations, tags],
        [
            {"relevant": dict(question.relevant)},
            {"question_id": question.id, "kind": question.kind},
        ],
        what="expectations and tags of a trace",
        why="Found beside wanted is what explains a score, and tags find all traces of a kind.",
        hint="feedback",
    )
    ranking = [c.id for c in answer.contexts]
    scores = feedback_of(trace)
    expect_equal(
        sorted(scores),
        sorted(NAMES) if question.relevant else [],
        what=f"names of the feedback on a question of the kind {question.kind!r}",
        why="Each question's score stands beside its trace; where nothing is relevant, none does.",
        hint="feedback",
    )
    if question.relevant:
        hits = set(ranking) & set(question.relevant)
        expect_equal(
            [scores["recall"], scores["precision"], scores["ndcg"]],
            [
                len(hits) / len(question.relevant),
                len(hits) / 3,
                _ndcg(ranking, question.relevant, 3),
            ],
            what="feedback recall, precision and ndcg",
            abs_=1e-6,
            why="What MLflow shows must be what your functions compute.",
            hint="feedback",
        )


def _document(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    metadata = document.get("metadata") or {}
    score = metadata.get("score")
    return {
        "id": document.get("id"),
        "page_content": document.get("page_content"),
        "doc_uri": metadata.get("doc_uri"),
        "score": round(score, 6) if isinstance(score, float) else score,
    }
