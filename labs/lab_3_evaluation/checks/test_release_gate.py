"""Checks of task 3.6: the release gate.

Most releases here are made by code, so that it is known which version is worse, and by how much.
Of a gate that keeps its promises, each bound on a rate is missed less than once in a million.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.gate_record import forget, gate_experiment, keep_newest, logged_run, logged_table
from support.releases import (
    Release,
    binary,
    counted,
    golden_scores,
    graded,
    own_luck,
    scores,
)

from shared.assistant.assistant import Assistant
from shared.assistant.backends import Recorded
from shared.assistant.material import load_golden
from shared.grading.expect import expect, expect_equal, expect_raises, number, plain, show

LUCK = 1e-6
COLUMNS = (
    "name",
    "questions",
    "old",
    "new",
    "change",
    "low",
    "high",
    "p",
    "adjusted_p",
    "verdict",
)


def test_scores_are_paired_by_question_and_attempt(learner, rng):
    make = learner.Score
    old = [make("A", "x", 1.0, 0), make("A", "x", 0.5, 1), make("A", "x", 0.0, 2)]
    old += [make("B", "y", 0.25, 0), make("C", "y", 0.75, 0), make("D", "y", 1.0, 0)]
    new = [make("A", "x", 0.5, 0), make("A", "x", 0.25, 1), make("B", "y", 1.0, 0)]
    new += [make("B", "y", 0.0, 1), make("C", "y", 0.5, 0)]
    paired = plain(learner.pair_scores(_shuffled(rng, old), _shuffled(rng, new)))
    expect_equal(
        [paired["questions"], paired["slices"]],
        [["A", "B", "C"], ["x", "y", "y"]],
        what="questions that have a pair, and their slices",
        why="Scores arrive in the order in which answers came back. One question asked three times "
        "is one question.",
        hint="pairs",
    )
    expect_equal(
        [paired["old"], paired["new"]],
        [[0.75, 0.25, 0.75], [0.375, 1.0, 0.5]],
        abs_=1e-12,
        what="old and new score of A (two paired attempts), B and C",
        why="The same question is as hard for both versions. That cancels only where question and "
        "attempt meet their own counterpart.",
        hint="pairs",
    )
    expect_equal(
        [paired["unpaired"], paired["answers"]],
        [[["A", 2], ["B", 1], ["D", 0]], 7],
        what="unpaired answers, and answers in all",
        why="What is left out has to be seen: a version that gives up on hard questions has "
        "answered the easy ones only.",
        hint="missing-pairs",
    )


def test_a_crash_counts_as_an_answer_worth_nothing(learner, rng):
    make = learner.Score
    old = [make(f"Q{n:03d}", "all", 0.9) for n in range(120)]
    new = [make(f"Q{n:03d}", "all", None if n % 8 == 0 else 0.9) for n in range(120)]
    paired = plain(learner.pair_scores(old, new))
    expect_equal(
        [sum(paired["new"]), paired["crashed_old"], paired["crashed_new"]],
        [0.9 * 105, 0, 15],
        abs_=1e-9,
        what="sum of 120 new scores (15 crashed, the others 0.9), crashes of old and new",
        why="Whoever asked got nothing. Without the crashes the least stable version looks best.",
        hint="crashes",
    )
    paired = plain(learner.pair_scores(new, old))
    expect_equal(
        [sum(paired["old"]), paired["crashed_old"], paired["crashed_new"]],
        [0.9 * 105, 15, 0],
        abs_=1e-9,
        what="the same with the crashes in the old version",
        why="A new version that no longer crashes has become better, and deserves the credit.",
        hint="crashes",
    )
    twice, once = [make("A", "x", 0.8, n) for n in range(4)], [make("B", "y", 0.6)]
    for n in range(4):
        crashed = [make("A", "x", None if m == n else 0.8, m) for m in range(4)]
        crashed += [make("A", "x", None, 4), *once]
        sides = ([*twice, *once], crashed)
        for before, after in (sides, sides[::-1]):
            whose = "new" if before is sides[0] else "old"
            paired = plain(learner.pair_scores(_shuffled(rng, before), _shuffled(rng, after)))
            expect_equal(
                [paired[whose], paired["crashed_old"], paired["crashed_new"]],
                [[0.6, 0.6], 2 * (whose == "old"), 2 * (whose == "new")],
                abs_=1e-9,
                what=f"{whose} scores of A and B, crashes of old and new, where attempts {n} and 4 "
                f"at A crashed in the {whose} version (attempt 4 has no counterpart)",
                why="Each answer may crash, the fourth to a question as well as the first, and "
                "also one that has no pair: it is a customer who got nothing.",
                hint="crashes",
            )
    verdict = _verdict(learner.release_gate(old, new, learner.Plan()))
    expect_equal(
        verdict,
        "block",
        what="verdict on a version that crashes in 15 of 120 questions and is equal in the others",
        why="One customer in eight gets no answer.",
        hint="crashes",
    )


def test_scores_that_cannot_be_right_are_refused(learner):
    make = learner.Score
    fine = [make("A", "x", 1.0), make("B", "x", 0.0)]
    cases = {
        "the same question and attempt twice": [*fine, make("B", "x", 1.0)],
        "a score of NaN": [make("A", "x", 1.0), make("B", "x", math.nan)],
        "a score of 1.2": [make("A", "x", 1.0), make("B", "x", 1.2)],
        "a score of -0.1": [make("A", "x", 1.0), make("B", "x", -0.1)],
        "a question in two slices": [make("A", "x", 1.0), make("B", "y", 0.0)],
    }
    for doing, bad in cases.items():
        for old, new in ((fine, bad), (bad, fine)):
            expect_raises(
                ValueError,
                lambda old=old, new=new: learner.pair_scores(old, new),
                doing=doing,
                mentions="B",
                why="NaN is neither above nor below any limit, and of two scores one would win in "
                "silence. A gate that guesses is no gate.",
                hint="refuse",
            )
    for doing, old, new in (
        ("versions that share no question", fine, [make("C", "x", 1.0)]),
        ("no scores at all", [], []),
    ):
        expect_raises(
            ValueError,
            lambda old=old, new=new: learner.pair_scores(old, new),
            doing=doing,
            why="Nothing to compare is not the same as no difference.",
            hint="refuse",
        )


def test_the_interval_is_paired_and_never_without_width(learner, rng, seed):
    for kind in ("yes or no", "graded"):
        for alpha in (0.05, 0.1):
            old, new = _versions(kind, rng, int(rng.integers(400, 600)))
            got = plain(learner.compare("all", old, new, alpha=alpha, seed=seed % 1000))
            _expect_interval(got, new - old, alpha, f"{len(old)} {kind} scores, alpha={alpha}")
            again = plain(learner.compare("all", old, new, alpha=alpha, seed=seed % 1000))
            expect_equal(
                again,
                got,
                what="the same comparison again",
                why="A decision that cannot be computed again cannot be audited.",
                hint="interval",
            )
    for n in (8, 20, 60):
        same = np.full(n, 0.5)
        got = plain(learner.compare("all", same, same, alpha=0.05))
        low, high = number(got["low"], what="low"), number(got["high"], what="high")
        expect(
            low <= -1 / n and high >= 1 / n,
            observed=f"[{low:.4f}, {high:.4f}] for {n} questions of which none changed",
            expected=f"low <= {-1 / n:.4f} and high >= {1 / n:.4f}",
            why="Nothing happened in so many questions. In the next ones it may: an interval "
            "without width lets a version pass on a handful of easy questions.",
            hint="no-width",
        )


def test_p_values_hold_for_few_questions_and_for_many_slices(learner, rng):
    cases = [[-1.0] * 2, [-1.0] * 3, [-1.0] * 3 + [1.0], [-1.0] * 4 + [1.0], [1.0] * 3]
    cases += [list(-rng.uniform(0.1, 0.3, 3)), list(rng.permutation([-0.6, -0.3, -0.2, 0.25]))]
    for moved in cases:
        changes = rng.permutation([*moved, *[0.0] * int(rng.integers(0, 6))])
        old = np.where(changes < 0, 1.0, 0.0)
        got = plain(learner.compare("all", old, old + changes, alpha=0.05))
        p, exact = number(got["p"], what="p"), _exact_p(np.array(moved))
        slack = 4.9 * math.sqrt(exact * (1 - exact) / 2000) + 0.002
        expect(
            p >= exact - slack,
            observed=f"p = {p:.4f} for changes {show([round(c, 2) for c in moved])} and "
            f"{len(changes) - len(moved)} questions without a change",
            expected=f"p = {exact:.4f}, give or take {slack:.3f}",
            why="Slices are small. Of two questions both are lost one time in four by luck alone, "
            "and a test that calls this certain blocks good releases.",
            hint="few-questions",
        )
        expect(
            p <= exact + slack,
            observed=f"p = {p:.4f} for changes {show([round(c, 2) for c in moved])} and "
            f"{len(changes) - len(moved)} questions without a change",
            expected=f"p = {exact:.4f}, give or take {slack:.3f}",
            why="The gate asks one thing, whether the new version is worse. Evidence that also "
            "counts the other direction needs more questions, or stops improvements.",
            hint="one-sided",
        )
    lost = rng.uniform(0.1, 0.3, 30)
    got = plain(learner.compare("all", np.full(30, 0.5), 0.5 - lost, alpha=0.05))
    p = number(got["p"], what="p")
    expect(
        0 < p < 0.001,
        observed=f"p = {p:.2g} for 30 questions that all lost between 0.1 and 0.3",
        expected="p above 0, and below 0.001",
        why="What was seen is one of the outcomes that luck may have. A p of 0 says that it is "
        "none, and no correction for many slices makes it larger.",
        hint="few-questions",
    )
    for _ in range(20):
        raw = [float(p) for p in rng.choice([1e-4, 1e-3, 0.01, 0.02, 0.2, 0.7], rng.integers(1, 9))]
        got = [number(p, what="adjusted p") for p in learner.adjust_p_values(raw)]
        _expect_adjusted(got, raw)
    expect_equal(
        learner.adjust_p_values([]),
        [],
        what="adjusted p-values of none",
        why="A gate without slices must not stop the pipeline.",
        hint="many-slices",
    )


def test_the_verdict_follows_the_margin_that_was_stated(learner):
    small, none = {"lost": 12, "won": 0}, {"lost": 0, "won": 0}
    cases = (
        ("margin", "pass", 0.05, {**small, "right": 988}, "a certain loss below the margin"),
        ("margin", "pass", 0.05, {**none, "right": 60, "wrong": 340}, "no change in 400 questions"),
        ("points", "pass", 0.05, {**small, "right": 188, "wrong": 800}, "a small loss from 0.2"),
        ("evidence", "block", 0.05, {"lost": 60, "won": 10, "right": 330}, "a loss of 0.125"),
        ("evidence", "undecided", 0.05, {"lost": 6, "won": 5, "right": 40}, "51 questions"),
        ("no-width", "undecided", 0.05, {**none, "right": 35}, "35 questions without a change"),
        ("margin", "pass", 0.2, {"lost": 6, "won": 5, "right": 40}, "the same 51 questions"),
        ("one-sided", "pass", 0.05, {"lost": 10, "won": 60, "wrong": 330}, "a gain of 0.125"),
    )
    for hint, verdict, margin, counts, about in cases:
        old, new = (scores(learner.Score, v) for v in counted(**counts))
        decision = learner.release_gate(old, new, learner.Plan(margin=margin))
        expect_equal(
            _verdict(decision),
            verdict,
            what=f"verdict on {about} (margin {margin}, {_counts(counts)})",
            why=_WHY_MARGIN[hint],
            hint=hint,
        )
        _expect_blocked_by(decision, ["overall"] if verdict == "block" else [])


def test_nothing_is_decided_on_too_few_or_missing_answers(learner):
    make, plan = learner.Score, learner.Plan(min_questions=40)
    for count, verdict in ((39, "undecided"), (40, "block")):
        old, new = (scores(make, v) for v in counted(lost=20, won=0, right=count - 20))
        expect_equal(
            _verdict(learner.release_gate(old, new, plan)),
            verdict,
            what=f"verdict on {count} questions, of which 20 are lost (min_questions=40)",
            why="How many questions it takes was stated before. Whoever may change that "
            "afterwards stops asking when the answer suits.",
            hint="evidence",
        )
    old = scores(make, np.ones(400))
    for missing, verdict in ((8, "pass"), (12, "undecided")):
        given = old[missing:]
        for before, after, whose in ((old, given, "new"), (given, old, "old")):
            decision = learner.release_gate(before, after, learner.Plan())
            expect_equal(
                _verdict(decision),
                verdict,
                what=f"verdict when {missing} of 400 answers of the {whose} version are missing "
                "and all others are right (max_unpaired=0.02)",
                why="Answers seldom go missing at random: the hard questions time out. A gate that "
                "drops them in silence compares the easy ones.",
                hint="missing-pairs",
            )
            expect_equal(
                len(plain(decision.unpaired)),
                missing,
                what="unpaired answers that the decision names",
                why="Somebody has to find out where they went.",
                hint="missing-pairs",
            )


def test_each_look_spends_its_share_of_alpha(learner):
    old, new = counted(lost=22, won=10, right=200)  # p = 0.025
    old, new = scores(learner.Score, old), scores(learner.Score, new)
    for looks, verdict in ((1, "block"), (5, "undecided")):
        plan = learner.Plan(alpha=0.05, looks=looks)
        expect_equal(
            _verdict(learner.release_gate(old, new, plan)),
            verdict,
            what=f"verdict on 22 questions lost and 10 won of 232 with {looks} planned "
            f"look{'s' * (looks > 1)} (one-sided p = 0.025, alpha = 0.05)",
            why="Whoever looks five times at 5 % each sees a regression that is none in one "
            "release of eight.",
            hint="looks",
        )
    one = plain(learner.release_gate(old, new, learner.Plan(alpha=0.01)).overall)
    five = plain(learner.release_gate(old, new, learner.Plan(looks=5), look=5).overall)
    expect_equal(
        [five["low"], five["high"]],
        [one["low"], one["high"]],
        abs_=1e-9,
        what="interval at the fifth of five looks at alpha 0.05, against one look at 0.01",
        why="A pass at any look lets the version out. That error adds up over looks as well.",
        hint="looks",
    )
    for look in (0, 6):
        expect_raises(
            ValueError,
            lambda look=look: learner.release_gate(old, new, learner.Plan(looks=5), look=look),
            doing=f"look {look} of 5",
            why="One look more than planned is how a release gets through that should not.",
            hint="looks",
        )


@pytest.mark.limit(60)
def test_equal_versions_are_seldom_blocked(learner, rng, domain, figure):
    kinds = [q.kind for q in load_golden(domain)]
    plan, runs, blamed = learner.Plan(alpha=0.05), 400, Counter()
    for n in range(runs):
        versions = _versions("graded" if n % 4 else "yes or no", rng, len(kinds))
        old, new = (scores(learner.Score, v, kinds) for v in versions)
        decision = learner.release_gate(old, new, plan, seed=n)
        if _verdict(decision) == "block":
            blamed.update(plain(decision.blocked_by)[:1] or ["nothing"])
    blocked, most = blamed.total(), _most(runs, plan.alpha)
    figure("equal versions blocked", blocked / runs, reference=0.031)
    expect(
        blocked <= most,
        observed=f"{blocked} of {runs} versions blocked that are equal to the old one in every "
        f"slice (first blamed: {_counts(blamed)})",
        expected=f"at most {plan.alpha:.0%} over the whole and all {len(set(kinds))} slices; here "
        f"at most {most} of {runs}",
        why="A gate that stops good releases is overruled, and then it stops nothing.",
        hint="many-slices" if blamed["overall"] < blocked / 2 else "noise",
    )


@pytest.mark.limit(60)
def test_answers_to_one_question_are_one_observation(learner, rng, figure):
    plan, runs, blocked = learner.Plan(alpha=0.05), 200, 0
    for n in range(runs):
        old, new = (scores(learner.Score, v) for v in own_luck(rng, 40, 8))
        blocked += _verdict(learner.release_gate(old, new, plan, seed=n)) == "block"
    most = _most(runs, plan.alpha)
    figure("equal versions blocked, 8 answers a question", blocked / runs, reference=0.05)
    expect(
        blocked <= most,
        observed=f"{blocked} of {runs} equal versions blocked, 40 questions answered 8 times each",
        expected=f"at most {plan.alpha:.0%}; here at most {most} of {runs}",
        why="A version that does not know an answer does not know it eight times. That is one "
        "observation, and counted as eight it makes luck look like certainty.",
        hint="one-question",
    )


@pytest.mark.limit(60)
def test_real_losses_are_caught_with_the_power_that_was_planned(learner, rng, figure):
    for loss, share, alpha, power, tests in (
        (0.05, 0.1, 0.05, 0.8, 1),
        (0.1, 0.3, 0.05, 0.9, 7),
        (0.02, 0.06, 0.01, 0.8, 1),
        (0.2, 0.2, 0.1, 0.95, 3),
        (0.05, 0.2525, 0.05, 0.8, 1),  # 618.3
    ):
        _expect_size(learner, loss, math.sqrt(share - loss**2), alpha, power, tests)
    for bad in ({"loss": 0}, {"loss": -0.1}, {"spread": 0}, {"power": 1}, {"tests": 0}):
        expect_raises(
            ValueError,
            lambda bad=bad: learner.required_questions(**{"loss": 0.1, "spread": 0.3, **bad}),
            doing=", ".join(f"{k}={v}" for k, v in bad.items()),
            why="A budget of questions is asked for on the strength of this number.",
            hint="power",
        )
    loss, lost, won, power, runs = 0.06, 0.08, 0.02, 0.9, 120
    spread = math.sqrt(lost + won - loss**2)
    count = int(number(learner.required_questions(loss, spread, power=power), what="questions"))
    caught = 0
    for n in range(runs):
        old, new = binary(rng, count, lost=lost, won=won)
        pair = scores(learner.Score, old), scores(learner.Score, new)
        plan = learner.Plan(margin=0.02, min_questions=1)
        caught += _verdict(learner.release_gate(*pair, plan, seed=n)) == "block"
    figure(f"losses of {loss} caught, planned {power}", caught / runs, reference=0.89)
    least = _least(runs, power - 0.06)
    expect(
        caught >= least,
        observed=f"{caught} of {runs} versions blocked that lost {loss} ({count} questions)",
        expected=f"about {power:.0%}, and at least {least} of {runs}",
        why="The questions were paid for on the promise that such a loss is seen. Missed here, it "
        "is found by the customers.",
        hint="power",
    )


@pytest.mark.limit(60)
def test_a_slice_that_gets_worse_is_not_hidden_by_the_mean(learner, rng, figure):
    runs, caught, others = 80, 0, Counter()
    names = [f"slice-{n}" for n in range(6)]
    for n in range(runs):
        bad = str(rng.choice(names))
        parts = [
            binary(rng, 40, lost=0.45, won=0.03)
            if name == bad
            else binary(rng, 40, lost=0.02, won=0.2)
            for name in names
        ]
        old, new = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
        slices = [name for name in names for _ in range(40)]
        decision = learner.release_gate(
            scores(learner.Score, old, slices),
            scores(learner.Score, new, slices),
            learner.Plan(),
            seed=n,
        )
        named = plain(decision.blocked_by)
        caught += _verdict(decision) == "block" and bad in named
        others.update(name for name in named if name != bad)
    figure("worse slices caught", caught / runs, reference=0.98)
    least = _least(runs, 0.9)
    expect(
        caught >= least,
        observed=f"{caught} of {runs} versions blocked for a slice of 40 questions that loses 0.42 "
        "while the mean rises by 0.08",
        expected=f"nearly all, and at least {least} of {runs}, each naming the slice in blocked_by",
        why="For the customers behind that slice the release is an outage. The mean says it is "
        "the best version so far.",
        hint="mean-hides",
    )
    most = _most(runs, 0.05)
    expect(
        others.total() <= most,
        observed=f"{others.total()} other names in blocked_by ({_counts(others)})",
        expected=f"the slice that got worse; others at most {most} times in {runs}",
        why="Whoever mends it starts with the slice that is named.",
        hint="many-slices",
    )


@pytest.mark.limit(60)
def test_absence_of_evidence_is_no_pass(learner, rng, figure):
    rates: dict[str, Counter[str]] = {}
    for about, count, runs, lost, won in (
        ("lost 0.12, margin 0.1", 40, 200, 0.22, 0.1),
        ("equal, 500 questions", 500, 40, 0.04, 0.04),
        ("better by 0.1", 300, 40, 0.05, 0.15),
    ):
        found = Counter()
        for n in range(runs):
            old, new = binary(rng, count, lost=lost, won=won)
            pair = scores(learner.Score, old), scores(learner.Score, new)
            margin = 0.1 if "margin" in about else 0.05
            found[_verdict(learner.release_gate(*pair, learner.Plan(margin=margin), seed=n))] += 1
        rates[about] = found
    worse, equal, better = rates.values()
    figure("worse versions passed", worse["pass"] / worse.total(), reference=0.03)
    most = _most(worse.total(), 0.06)
    expect(
        worse["pass"] <= most,
        observed=f"{worse['pass']} of {worse.total()} versions passed that lost 0.12, 40 questions",
        expected=f"about 5 % or fewer, and at most {most}: the margin is 0.1",
        why="Forty questions seldom prove a loss of that size, and do not rule it out either. "
        "Not proven worse is not proven good.",
        hint="evidence",
    )
    expect(
        better["block"] == 0,
        observed=f"{better['block']} of {better.total()} versions blocked that are better by 0.1",
        expected="none",
        why="A test for any difference stops improvements with the same zeal.",
        hint="one-sided",
    )
    for about, counts in (("equal", equal), ("better by 0.1", better)):
        least = _least(counts.total(), 0.9)
        expect(
            counts["pass"] >= least,
            observed=f"{counts['pass']} of {counts.total()} versions passed that are {about}",
            expected=f"nearly all, and at least {least}: there are enough questions",
            why="A gate that never says yes is overruled as surely as one that always says no.",
            hint="margin",
        )


@pytest.mark.limit(60)
def test_the_decision_on_the_recorded_assistants_is_on_record(learner, domain, store, figure, seed):
    recorded, questions = Recorded.load(domain), load_golden(domain)
    careless, careful = (
        golden_scores(learner.Score, Assistant(domain, recorded, defence=d), questions)
        for d in (False, True)
    )
    experiment = gate_experiment(store)
    for names, pair in (
        (("assistant-plain", "assistant-defended"), (careless, careful)),
        (("assistant-defended", "assistant-plain"), (careful, careless)),
    ):
        decision = learner.release_gate(*pair, learner.Plan(), seed=seed % 1000)
        _expect_recorded(decision, pair)
        name = f"{names[0]} to {names[1]}"
        figure(f"change, {name}", decision.overall.change)
        run_id = learner.log_decision(
            decision, old=names[0], new=names[1], tracking_uri=store.uri, experiment=experiment
        )
        _expect_logged(logged_run(store, plain(run_id)), decision, names)
        keep_newest(store, name)
    old, new = counted(lost=60, won=10, right=330)
    kinds = ["even", "odd"] * 200
    pair = scores(learner.Score, old, kinds), scores(learner.Score, new, kinds)
    decision, names = learner.release_gate(*pair, learner.Plan()), ("made-up-1", "made-up-2")
    expect_equal(
        _verdict(decision),
        "block",
        what="verdict on made-up scores, 60 of 400 lost and 10 won",
        why="So many more lost than won is no luck.",
        hint="evidence",
    )
    run_id = plain(
        learner.log_decision(
            decision, old=names[0], new=names[1], tracking_uri=store.uri, experiment=experiment
        )
    )
    run = logged_run(store, run_id)
    expect_equal(
        run.info.status,
        "FINISHED",
        what="status of the run of a decision to block",
        why="The gate did what it is for. A FAILED run is looked for among the pipeline's own "
        "faults, and tried again until it passes.",
        hint="record",
    )
    _expect_logged(run, decision, names)
    forget(store, run)
    expect_raises(
        LookupError,
        lambda: learner.log_decision(
            decision, old="a", new="b", tracking_uri=store.uri, experiment="nobody made this"
        ),
        doing="an experiment that does not exist",
        why="Made on the fly, its files would go wherever the process happens to run.",
        hint="record",
    )


def test_two_live_assistants_are_judged_on_the_same_questions(learner, domain, engine, figure):
    questions = load_golden(domain, "held_out")
    kinds = ("number", "unanswerable")
    chosen = [q for kind in kinds for q in [q for q in questions if q.kind == kind][:2]]
    old, new = (
        golden_scores(learner.Score, Assistant(domain, engine, defence=d), chosen)
        for d in (False, True)
    )
    wanted = float(np.mean([n.value - o.value for o, n in zip(old, new, strict=True)]))
    decision = learner.release_gate(old, new[::-1], learner.Plan())
    figure("live change, plain to defended, 4 questions", wanted)
    expect_equal(
        decision.overall.change,
        wanted,
        abs_=1e-9,
        what="change from the plain to the defended assistant over four live answers each",
        why="The figure that the gate reports is the one that people will quote.",
        hint="pairs",
    )
    expect_equal(
        _verdict(decision),
        "undecided",
        what="verdict on four questions",
        why="Four answers decide nothing, whatever they say.",
        hint="evidence",
    )


_WHY_MARGIN = {
    "margin": "The margin is what the owner of the product agreed to lose. A gate that stops at "
    "any certain loss, however small, ends all releases once there are enough questions.",
    "points": "A margin in points means the same at every level. As a share of the old score it "
    "shrinks where the assistant is weak, and nothing gets through any more.",
    "evidence": "Not enough evidence is an answer of its own: ask more questions. To release is a "
    "decision, and so is to stop.",
    "no-width": "Nothing changed in a few questions. That does not rule out a loss in one of "
    "twenty.",
    "one-sided": "A better version differs as well. It must not be stopped for that.",
}


def _verdict(decision: Any) -> str:
    verdict = plain(decision.verdict)
    expect(
        verdict in ("pass", "block", "undecided"),
        observed=f"verdict = {show(verdict)}",
        expected="pass, block or undecided",
        why="A pipeline branches on these three words.",
        hint="evidence",
    )
    return str(verdict)


def _counts(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _shuffled(rng: np.random.Generator, items: list[Any]) -> list[Any]:
    return [items[i] for i in rng.permutation(len(items))]


def _versions(kind: str, rng: np.random.Generator, questions: int) -> Any:
    """Equal versions."""
    if kind == "graded":
        return graded(rng, questions)
    return binary(rng, questions, lost=0.06, won=0.06)


def _most(runs: int, rate: float) -> int:
    """More blocks than this have a chance of `LUCK` at the promised rate."""
    return int(stats.binom.isf(LUCK, runs, rate))


def _least(runs: int, rate: float) -> int:
    return int(stats.binom.ppf(LUCK, runs, rate))


def _exact_p(moved: np.ndarray) -> float:
    """Share of all ways to flip the signs that give a sum as low."""
    signs = np.array(list(product((-1, 1), repeat=len(moved))))
    return float(np.mean(signs @ np.abs(moved) <= moved.sum() + 1e-9))


def _expect_interval(got: Any, changes: np.ndarray, alpha: float, about: str) -> None:
    """The interval lies where Student's t puts it."""
    expect_equal(
        got["change"],
        float(changes.mean()),
        abs_=1e-9,
        what=f"change over {about}",
        why="New minus old: below 0 the new version is worse.",
        hint="pairs",
    )
    half = float(stats.t.ppf(1 - alpha, len(changes) - 1) * stats.sem(changes))
    low, high = number(got["low"], what="low"), number(got["high"], what="high")
    expect(
        (high - low) / 2 < 1.4 * half,
        observed=f"an interval {(high - low) / 2 / half:.1f} times as wide as the paired one "
        f"({about})",
        expected=f"[{changes.mean() - half:.4f}, {changes.mean() + half:.4f}]",
        why="Both versions find the same questions hard. A method that forgets which question is "
        "which counts that difficulty as noise, and real losses pass below it.",
        hint="paired",
    )
    for name, end, want in (
        ("low", low, changes.mean() - half),
        ("high", high, changes.mean() + half),
    ):
        expect(
            bool(abs(end - want) < 0.2 * half),
            observed=f"{name} = {end:.4f} ({about})",
            expected=f"{name} = {want:.4f}, give or take {0.2 * half:.4f}: beyond each end lies "
            "a probability of alpha",
            why="Whether a loss of the margin is ruled out hangs on where the interval ends.",
            hint="interval",
        )


def _expect_adjusted(got: list[float], raw: list[float]) -> None:
    """Not below Holm's, not above Bonferroni's."""
    order = np.argsort(raw)
    holm = np.empty(len(raw))
    scaled = np.array(raw)[order] * (len(raw) - np.arange(len(raw)))
    holm[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    bonferroni = [min(1.0, p * len(raw)) for p in raw]
    between = len(got) == len(raw) and all(
        low - 1e-12 <= p <= high + 1e-12 for low, p, high in zip(holm, got, bonferroni, strict=True)
    )
    expect(
        between,
        observed=f"{show([round(p, 5) for p in got])} for p-values {show(raw)}",
        expected=f"from {show([round(float(p), 5) for p in holm])} (Holm) to "
        f"{show([round(p, 5) for p in bonferroni])} (Bonferroni)",
        why="Ten slices at 5 % each stop four equal versions in ten.",
        hint="many-slices",
    )


def _expect_blocked_by(decision: Any, wanted: list[str]) -> None:
    expect_equal(
        plain(decision.blocked_by),
        wanted,
        what=f"blocked_by of the verdict {_verdict(decision)}",
        why="It is the first thing that whoever has to mend it reads.",
        hint="margin",
    )


def _expect_size(
    learner: Any, loss: float, spread: float, alpha: float, power: float, tests: int
) -> None:
    reach = stats.norm.ppf(1 - alpha / tests) + stats.norm.ppf(power)
    wanted = (reach * spread / loss) ** 2
    got = number(
        learner.required_questions(loss, spread, alpha=alpha, power=power, tests=tests),
        what="required questions",
    )
    expect(
        bool(abs(got - wanted) <= 0.05 * wanted + 3),
        observed=f"{got:g} questions for loss={loss}, spread={spread:.3f}, alpha={alpha}, "
        f"power={power}, tests={tests}",
        expected=f"{math.ceil(wanted)}",
        why="With too few questions the gate answers undecided for ever, or passes what it could "
        "not see. With too many each release waits for nothing.",
        hint="power",
    )
    expect(
        got == math.ceil(wanted),
        observed=f"{got:g} questions for loss={loss}, spread={spread:.3f}, alpha={alpha}, "
        f"power={power}, tests={tests}",
        expected=f"{math.ceil(wanted)}: {wanted:.2f}, rounded up",
        why="It is the least number of questions that reaches the power that was promised.",
        hint="power",
    )


def _expect_recorded(decision: Any, pair: Release) -> None:
    """What the gate says about recorded answers is what counting says."""
    old, new = ({s.question: s for s in side} for side in pair)
    changes = np.array([new[q].value - old[q].value for q in old])
    expect_equal(
        [decision.overall.questions, decision.overall.change],
        [len(changes), float(changes.mean())],
        abs_=1e-9,
        what="questions and change of the recorded assistants",
        why="The figure that the gate reports is the one that people will quote.",
        hint="pairs",
    )
    kinds = sorted({s.slice for s in old.values()})
    sums = [sum(new[q].value - s.value for q, s in old.items() if s.slice == k) for k in kinds]
    got = [(c["name"], c["change"] * c["questions"]) for c in plain(decision.slices)]
    expect_equal(
        [[k, total] for k, total in got],
        [[k, total] for k, total in zip(kinds, sums, strict=True)],
        abs_=1e-9,
        what="questions gained by each kind of question",
        why="The slices are where to look.",
        hint="mean-hides",
    )
    lost, won = int((changes < 0).sum()), int((changes > 0).sum())
    p = float(stats.binom.cdf(won, lost + won, 0.5)) if lost + won else 1.0
    if p * (1 + len(kinds)) < 0.03:
        expect_equal(
            _verdict(decision),
            "block",
            what=f"verdict on {lost} questions lost and {won} won of {len(changes)}",
            why="So many more lost than won is no luck.",
            hint="mean-hides",
        )
    if changes.mean() > 0.02:
        expect(
            _verdict(decision) != "block",
            observed=f"verdict = block, by {plain(decision.blocked_by)}",
            expected=f"no block: {won} questions won, {lost} lost, and no kind clearly worse",
            why="The defended assistant is the better one of the two.",
            hint="many-slices",
        )


def _expect_logged(run: Any, decision: Any, names: tuple[str, str]) -> None:
    """The run holds all that the contract names."""
    why = "In half a year someone asks why this version went out, and who was asked."
    overall, plan = plain(decision.overall), plain(decision.plan)
    expect_equal(
        [run.info.run_name, run.info.status, run.data.tags.get("verdict")],
        [f"{names[0]} to {names[1]}", "FINISHED", plain(decision.verdict)],
        what="name, status and verdict of the run",
        why=why,
        hint="record",
    )
    wanted = {"old_version": names[0], "new_version": names[1], **plan}
    wanted |= {"seed": plain(decision.seed), "look": plain(decision.look)}
    expect_equal(
        {k: v for k, v in run.data.params.items() if k in wanted},
        {k: str(v) for k, v in wanted.items()},
        what="parameters of the run",
        why=why,
        hint="record",
    )
    ends = {f"change_{end}": overall[end] for end in ("low", "high")}
    metrics = {**ends, **{k: overall[k] for k in ("change", "p", "questions")}}
    metrics |= {k: plain(getattr(decision, k)) for k in ("crashed_old", "crashed_new")}
    metrics |= {"unpaired": len(plain(decision.unpaired))}
    metrics |= {"blocking": len(plain(decision.blocked_by))}
    expect_equal(
        {k: v for k, v in run.data.metrics.items() if k in metrics},
        {k: float(v) for k, v in metrics.items()},
        abs_=1e-9,
        what="metrics of the run",
        why=why,
        hint="record",
    )
    expect(
        bool(run.data.tags.get("reason")),
        observed="no tag `reason`, or an empty one",
        expected="the decision's reason",
        why=why,
        hint="record",
    )
    table = logged_table(run, "slices.json")
    rows = [overall, *plain(decision.slices)]
    expect_equal(
        {k: table.get(k) for k in COLUMNS},
        {k: [row[k] for row in rows] for k in COLUMNS},
        abs_=1e-9,
        what="the table slices.json, the overall change first",
        why="A mean without its slices is what hid the last incident.",
        hint="record",
    )
