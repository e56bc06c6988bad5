"""Task 2.5: performance without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline

from shared.domains.tabular import load_tabular
from shared.grading.expect import expect, expect_equal, expect_raises, fail, number, plain

Floats = NDArray[np.float64]

# Each says which probability really stands behind a raw score: no model's scores are
# probabilities until someone has looked.
_TRUTHS: dict[str, Callable[[Floats], Floats]] = {
    "over-confident at both ends": lambda s: 0.2 + 0.5 * s,
    "too high throughout": lambda s: s**2,
    "too low throughout": lambda s: np.sqrt(s),
    "well calibrated": lambda s: s,
}
_BAD_SCORES = ([0.2, 1.2], [0.2, -0.1], [0.2, np.nan])


def _stream(
    rng: np.random.Generator, rows: int, truth: Callable[[Floats], Floats], tilt: float = 1.0
) -> tuple[Floats, Floats]:
    """Raw scores and labels; `tilt` shifts which scores are served, never what they mean."""
    scores = rng.beta(1.2 * tilt, 1.6, rows)
    return scores, (rng.random(rows) < truth(scores)).astype(float)


def _identity(scores: Any) -> Floats:
    return np.asarray(scores, dtype=float)


def _squared(scores: Any) -> Floats:
    return np.asarray(scores, dtype=float) ** 2


def _no_rows_seen(scores: Floats) -> NDArray[np.bool_]:
    return np.zeros(len(scores), dtype=bool)


def _auc_bounds(auc: float, positives: int, negatives: int, confidence: float) -> list[float]:
    """Lowest and highest value on a fine grid that the measured AUC does not contradict."""
    t = np.linspace(0.0, 1.0, 400_001)
    variance = t * (1 - t)
    variance += (positives - 1) * (t / (2 - t) - t * t)
    variance += (negatives - 1) * (2 * t * t / (1 + t) - t * t)
    z = norm.ppf(0.5 + confidence / 2)
    kept = t[(auc - t) ** 2 <= z**2 * variance / (positives * negatives)]
    return [float(kept.min()), float(kept.max())]


def _probabilities(calibrate: Callable[[Any], Any], scores: Floats) -> Floats:
    got = np.asarray(plain(calibrate(scores)), dtype=float)
    expect_equal(
        list(got.shape),
        [len(scores)],
        what=f"shape of what the calibrator returns for {len(scores)} scores",
        why="Every score that was served needs its probability.",
    )
    return got


def test_calibrator_turns_scores_into_probabilities(learner, rng):
    for name, truth in _TRUTHS.items():
        scores, labels = _stream(rng, 30_000, truth)
        calibrate = learner.fit_calibrator(scores, labels, _no_rows_seen(scores))
        fresh, _ = _stream(rng, 5_000, truth)
        got = _probabilities(calibrate, fresh)
        error = float(np.mean(np.abs(got - truth(fresh))))
        expect(
            bool(np.all((got >= 0) & (got <= 1))),
            observed=f"probabilities from {got.min():.3f} to {got.max():.3f}",
            expected="probabilities in [0, 1]",
            why="A share of 1.1 right decisions has no meaning.",
            hint="calibrate",
        )
        expect(
            error < 0.03,
            observed=f"scores that are {name}: mean absolute error {error:.3f} against the true "
            "probabilities",
            expected="below 0.03 with 30,000 reference rows",
            why="Most models are over-confident. Taken at their word they promise an accuracy "
            "that they do not have.",
            hint="calibrate",
        )
        order = np.diff(_probabilities(calibrate, np.linspace(0.0, 1.0, 501)))
        expect(
            bool(np.all(order >= -1e-9)),
            observed=f"a probability that falls by {-order.min():.3f} while the score rises",
            expected="probabilities that never decrease in the score",
            why="A calibrator that reorders rows has learned noise of the reference.",
            hint="calibrate",
        )
    expect_equal(
        calibrate(np.array([])),
        [],
        what="the calibrator's answer for no scores",
        why="A quiet night is a window without rows. It must not stop the monitoring.",
        hint="empty",
    )


def test_calibrator_leaves_out_rows_the_model_was_trained_on(learner, rng):
    scores, labels = _stream(rng, 40_000, _TRUTHS["over-confident at both ends"])
    trained_on = np.arange(len(scores)) < 20_000
    # A model that has memorised its training rows is right about nearly all of them.
    labels[trained_on] = (scores[trained_on] >= 0.5).astype(float)
    calibrate = learner.fit_calibrator(scores, labels, trained_on)
    high = float(np.mean(_probabilities(calibrate, np.linspace(0.8, 0.95, 50))))
    expect(
        abs(high - 0.6375) < 0.08,
        observed=f"probability {high:.2f} for scores from 0.80 to 0.95",
        expected="about 0.64, as in the rows that the model had not seen",
        why="On its training rows a model looks better than it will ever be again. The estimate "
        "then promises that for every window to come.",
        hint="training-rows",
    )


def test_calibrator_leaves_out_rows_without_a_label(learner, rng):
    scores, labels = _stream(rng, 40_000, _TRUTHS["well calibrated"])
    labels[rng.random(len(labels)) < 0.5] = np.nan
    calibrate = learner.fit_calibrator(scores, labels, _no_rows_seen(scores))
    got = _probabilities(calibrate, scores[:2_000])
    error = float(np.mean(got - scores[:2_000])) if np.all(np.isfinite(got)) else np.nan
    expect(
        bool(abs(error) < 0.05),
        observed=f"half of the labels missing: probabilities off by {error:+.2f} on average",
        expected="off by less than 0.05: the labels that are there say enough",
        why="A loan without an outcome is not a loan repaid. Counting it so halves the base rate.",
        hint="missing-labels",
    )


def test_calibrator_refuses_a_reference_it_cannot_learn_from(learner):
    scores = np.array([0.1, 0.4, 0.6, 0.9])
    none, some = np.zeros(4, dtype=bool), np.array([True, False, False, False])
    cases = (
        ("labels of one class only", scores, [0.0, 0.0, 0.0, np.nan], none),
        ("the second class in training rows only", scores, [1.0, 0.0, 0.0, 0.0], some),
        ("no labels at all", scores, [np.nan] * 4, none),
        ("fewer labels than scores", scores, [0.0, 1.0, 1.0], none),
        ("a label of -1 for 'not known'", scores, [0.0, 1.0, 1.0, -1.0], none),
    )
    for doing, s, labels, trained_on in cases:
        expect_raises(
            ValueError,
            lambda s=s, labels=labels, trained_on=trained_on: learner.fit_calibrator(
                s, np.array(labels), trained_on
            ),
            doing=f"fit_calibrator with {doing}",
            why="A calibrator made of nothing answers with full confidence. It must not exist.",
            hint="refuse",
        )


def test_estimated_accuracy_follows_the_decisions_of_the_threshold(learner, rng):
    scores = np.append(np.round(rng.random(30), 2), [0.2, 0.5, 0.8])
    for threshold in (0.5, 0.2, 0.8):
        for calibrate in (_identity, _squared):
            p = calibrate(scores)
            correct = np.where(scores >= threshold, p, 1 - p)
            got = learner.estimate_performance(calibrate, scores, threshold)
            setting = f"at threshold {threshold}, " + (
                "calibrated = raw score" if calibrate is _identity else "calibrated = score squared"
            )
            expect_equal(
                got.positive_rate,
                float(p.mean()),
                what=f"estimated positive rate {setting}",
                abs_=1e-9,
                why="The share of positives to come is planned with: claims, beds, megawatts.",
                hint="calibrate",
            )
            expect_equal(
                got.accuracy,
                float(correct.mean()),
                what=f"estimated accuracy {setting}",
                abs_=1e-9,
                why="The model decides on raw scores at its threshold. Another threshold is "
                "another model, and the calibration has no say in the decision.",
                hint="threshold",
            )
            expect_equal(
                got.accuracy_se,
                float(np.sqrt(np.sum(correct * (1 - correct))) / len(scores)),
                what=f"standard error {setting}",
                abs_=1e-9,
                why="Without it nobody knows whether two points of difference are news.",
                hint="standard-error",
            )
            expect_equal(got.rows, len(scores), what="rows", why="Small windows are noisy windows.")


def test_estimated_auc_counts_every_row_in_both_classes(learner, rng):
    for rows in (2, 3, 60):
        # Rounded, so that some scores are equal.
        scores = np.round(rng.uniform(0.05, 0.95, rows), 1 if rows > 10 else 2)
        p = _squared(scores)
        weights = np.outer(p, 1 - p)
        np.fill_diagonal(weights, 0.0)
        above = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
        expect_equal(
            learner.estimate_performance(_squared, scores, 0.5).roc_auc,
            float((weights * above).sum() / weights.sum()),
            what=f"estimated ROC AUC of {rows} rows",
            abs_=1e-9,
            why="Without labels a row is a bit of both classes. Declaring it the likelier one "
            "gives a ranking that looks perfect.",
            hint="auc-weights",
        )
    rows = 200_000
    wide = learner.estimate_performance(_identity, rng.random(rows), 0.5)
    # Scores spread evenly over [0, 1] and taken at their word: exactly 5/6.
    expect_equal(
        number(wide.roc_auc, what=f"estimated ROC AUC of {rows} rows"),
        5 / 6,
        what=f"estimated ROC AUC of {rows} rows",
        abs_=0.01,
        why="A day's window has this many rows; a table of all pairs would need 300 GB.",
        hint="auc-weights",
    )


def test_estimate_meets_the_truth_where_calibration_holds(learner, rng, figure):
    worst = 0.0
    for name, truth in _TRUTHS.items():
        scores, labels = _stream(rng, 60_000, truth)
        calibrate = learner.fit_calibrator(scores, labels, _no_rows_seen(scores))
        for tilt in (1.0, 0.6, 1.6):
            scores, labels = _stream(rng, 3_000, truth, tilt)
            got = learner.estimate_performance(calibrate, scores, 0.5)
            estimated = number(got.accuracy, what="estimated accuracy")
            error = number(got.accuracy_se, what="standard error")
            realized = float(np.mean((scores >= 0.5) == (labels == 1)))
            off = abs(estimated - realized) / error
            worst = max(worst, off)
            expect(
                off < 5.5,
                observed=f"scores {name}, population tilted by {tilt}: estimated {estimated:.3f}, "
                f"realized {realized:.3f}, {off:.1f} standard errors apart",
                expected="less than 5.5 standard errors apart",
                why="Other rows than before are no reason to be wrong: only a changed meaning of "
                "the score is.",
                hint="calibrate",
            )
            measured = float(roc_auc_score(labels, scores))
            guessed = number(got.roc_auc, what="estimated ROC AUC")
            expect(
                abs(guessed - measured) < 0.06,
                observed=f"scores {name}: estimated AUC {guessed:.3f}, realized {measured:.3f}",
                expected="less than 0.06 apart",
                why="The ranking is what a fixed threshold does not show.",
                hint="auc-weights",
            )
    figure("worst error of estimated accuracy, in standard errors", worst)


def test_realized_figures_count_only_labels_that_arrived(learner, rng):
    scores, truth = _stream(rng, 2_000, _TRUTHS["over-confident at both ends"])
    for share in (1.0, 0.3, 0.02):
        labels = np.where(rng.random(len(truth)) < share, truth, np.nan)
        labels[:2], labels[2:4] = 0.0, 1.0
        here = ~np.isnan(labels)
        for threshold in (0.5, 0.7):
            got = learner.realized_performance(scores, labels, threshold)
            if None in (got.positive_rate, got.accuracy, got.roc_auc):
                fail(
                    observed=f"positive rate {plain(got.positive_rate)}, accuracy "
                    f"{plain(got.accuracy)}, ROC AUC {plain(got.roc_auc)} with {here.sum()} labels "
                    "of both classes",
                    expected="all three figures",
                    why="The labels that are there can be used today.",
                    hint="missing-labels",
                )
            expect_equal(
                [
                    got.rows,
                    got.labelled,
                    got.positive_rate.value,
                    got.accuracy.value,
                    got.roc_auc.value,
                ],
                [
                    len(scores),
                    int(here.sum()),
                    float(labels[here].mean()),
                    float(np.mean((scores[here] >= threshold) == (labels[here] == 1))),
                    float(roc_auc_score(labels[here], scores[here])),
                ],
                what="rows, labelled, positive rate, accuracy, ROC AUC at threshold "
                f"{threshold}, with {here.sum()} of {len(scores)} labels",
                abs_=1e-9,
                why="A label that has not arrived is not a negative. Counted as one it turns a "
                "late delivery into a fall of accuracy.",
                hint="missing-labels",
            )


def test_interval_of_a_share_is_wilsons_and_stays_within_0_and_1(learner, rng):
    cases = [(0, 1), (1, 1), (10, 10), (0, 10), (3, 4), (480, 500)]
    cases += [(int(rng.integers(0, n + 1)), n) for n in (7, 29, 1_000)]
    for correct, labelled in cases:
        for confidence in (0.95, 0.8):
            got = learner.share_interval(correct, labelled, confidence)
            truth = binomtest(correct, labelled).proportion_ci(confidence, method="wilson")
            expect_equal(
                [got.low, got.value, got.high],
                [float(truth.low), correct / labelled, float(truth.high)],
                what=f"low, value, high for {correct} of {labelled} right at {confidence:.0%}",
                abs_=1e-6,
                why="Ten of ten right is no proof of 100 %. The plain normal interval says so, "
                "and elsewhere reaches beyond 1.",
                hint="wilson",
            )
            expect(
                0.0 <= plain(got.low) <= plain(got.value) <= plain(got.high) <= 1.0,
                observed=f"{plain(got)} for {correct} of {labelled}",
                expected="0 <= low <= value <= high <= 1",
                why="A chart with an accuracy of 104 % ends the trust in all the others.",
                hint="wilson",
            )
    expect_raises(
        ValueError,
        lambda: learner.share_interval(0, 0),
        doing="an interval of no labels",
        why="Nothing measured is not the same as anything possible.",
        hint="empty",
    )


def test_auc_interval_has_a_width_even_for_a_perfect_ranking(learner, rng):
    cases = [(1.0, 5, 5), (0.0, 3, 8), (1.0, 1, 1), (0.7, 40, 10), (0.9, 5, 3)]
    cases += [(float(rng.uniform(0.3, 0.99)), int(rng.integers(2, 2_000)), 300) for _ in range(3)]
    for auc, positives, negatives in cases:
        got = learner.auc_interval(auc, positives, negatives, 0.9)
        low, high = _auc_bounds(auc, positives, negatives, 0.9)
        expect_equal(
            [got.low, got.value, got.high],
            [low, auc, high],
            what=f"low, value, high for AUC {auc:.3f} on {positives} positives and {negatives} "
            "negatives at 90%",
            abs_=2e-5,
            why="Five against five ranked without a fault happens by luck. An interval without "
            "width, or beyond 1, hides how little was seen.",
            hint="auc-interval",
        )
    for positives, negatives in ((0, 5), (5, 0)):
        expect_raises(
            ValueError,
            lambda p=positives, n=negatives: learner.auc_interval(0.5, p, n),
            doing=f"an AUC of {positives} positives and {negatives} negatives",
            why="A ranking of one class against nothing does not exist.",
            hint="empty",
        )


def test_window_without_rows_labels_or_a_second_class_gives_none_not_a_number(learner):
    nothing = np.array([])
    scores = np.array([0.3, 0.6, 0.8])
    for what, got, want in (
        (
            "estimate of an empty window",
            learner.estimate_performance(_identity, nothing),
            [0, None, None, None, None],
        ),
        (
            "estimate of one row with score 0.8",
            learner.estimate_performance(_identity, np.array([0.8])),
            [1, 0.8, 0.8, 0.4, None],
        ),
    ):
        expect_equal(
            [got.rows, got.positive_rate, got.accuracy, got.accuracy_se, got.roc_auc],
            want,
            what=f"{what}: rows, positive rate, accuracy, standard error, ROC AUC",
            abs_=1e-9,
            why="A figure out of nothing goes straight onto the dashboard.",
            hint="empty",
        )
    for what, s, labels, want in (
        ("an empty window", nothing, nothing, [0, 0, None, None]),
        ("three rows without labels", scores, np.full(3, np.nan), [3, 0, None, None]),
        ("three rows, two labels, both 1", scores, np.array([1.0, 1.0, np.nan]), [3, 2, 0.5, None]),
    ):
        got = learner.realized_performance(s, labels)
        expect_equal(
            [
                got.rows,
                got.labelled,
                None if got.accuracy is None else got.accuracy.value,
                None if got.roc_auc is None else got.roc_auc.value,
            ],
            want,
            what=f"realized figures of {what}: rows, labelled, accuracy, ROC AUC",
            abs_=1e-9,
            why="NaN passes every threshold in silence; None cannot be compared by mistake.",
            hint="empty",
        )
        verdict = plain(learner.report_window(_identity, s, labels).verdict)
        expect(
            (verdict == "pending") is (want[1] == 0),
            observed=f"verdict {verdict!r} for {what}",
            expected='"pending" without a label, and only then',
            why="An estimate that no label has tested has not been confirmed.",
            hint="empty",
        )
    for bad in _BAD_SCORES:
        expect_raises(
            ValueError,
            lambda bad=bad: learner.estimate_performance(_identity, np.array(bad)),
            doing=f"scores {bad}",
            why="A NaN or a logit among the scores is a broken model server, not a low score.",
            hint="refuse",
        )


def test_changed_relation_is_flagged_once_labels_arrive(learner, rng):
    scores, labels = _stream(rng, 30_000, _TRUTHS["over-confident at both ends"])
    calibrate = learner.fit_calibrator(scores, labels, _no_rows_seen(scores))
    changes: dict[str, Callable[[Floats], Floats]] = {
        "positives became half as frequent at every score": lambda s: 0.1 + 0.25 * s,
        "the score means the opposite": lambda s: 0.7 - 0.5 * s,
        "same base rate, no relation left": lambda s: np.full_like(s, 0.41),
    }
    for name, truth in changes.items():
        scores, labels = _stream(rng, 4_000, truth)
        labels[rng.random(len(labels)) < 0.25] = np.nan
        got = learner.report_window(calibrate, scores, labels, confidence=0.999)
        expect_equal(
            got.verdict,
            "outside",
            what=f"verdict on 3,000 labels where {name}",
            why="Scores alone cannot show concept drift: the estimate sails on. The labels are the "
            "only witness, and the comparison must let them speak.",
            hint="frozen",
        )
    scores, labels = _stream(rng, 4_000, _TRUTHS["over-confident at both ends"])
    expect_equal(
        learner.report_window(calibrate, scores, labels, confidence=0.99999).verdict,
        "agrees",
        what="verdict where nothing changed",
        why="A comparison that always flags says nothing.",
        hint="frozen",
    )


def test_late_labels_are_compared_with_the_estimate_for_the_same_rows(learner, rng):
    # The score is right; but the labels of clear cases arrive first, as refusals, returns and
    # quick defaults do.
    for clear_first in (True, False):
        scores, truth = _stream(rng, 8_000, _TRUTHS["well calibrated"])
        clear = np.abs(scores - 0.5) > 0.25
        labels = np.where(clear == clear_first, truth, np.nan)
        got = learner.report_window(_identity, scores, labels, confidence=0.99999)
        which = "clear" if clear_first else "doubtful"
        here = scores[clear == clear_first]
        expect_equal(
            [got.on_labelled.rows, got.on_labelled.accuracy],
            [len(here), float(np.mean(np.maximum(here, 1 - here)))],
            what=f"rows and estimated accuracy of the labelled rows, labels of {which} cases first",
            abs_=1e-9,
            why="The first labels are no fair sample. Compared with the estimate for all rows, "
            "a sound model looks broken or a broken one sound.",
            hint="same-rows",
        )
        expect_equal(
            got.estimate.rows,
            len(scores),
            what="rows behind the dashboard's estimate",
            why="The dashboard's figure is for all rows: that is why it is estimated.",
            hint="same-rows",
        )
        expect_equal(
            got.verdict,
            "agrees",
            what=f"verdict where calibration holds, labels of {which} cases first",
            why="A false alarm each time labels come in batches teaches people to look away.",
            hint="same-rows",
        )


def test_estimate_holds_on_the_domains_reference_and_is_judged_by_its_own_figures(
    learner, rng, domain, figure
):
    data = load_tabular(domain)
    reference = data.reference_frame
    part = rng.permutation(len(reference)) % 3
    features, labels = reference[list(data.numeric)], reference[data.target].to_numpy(float)
    # Naive Bayes counts related columns twice: a classic of over-confidence.
    model = make_pipeline(SimpleImputer(strategy="median"), GaussianNB())
    model.fit(features[part == 0], labels[part == 0])
    scores = np.clip(model.predict_proba(features)[:, 1], 0.0, 1.0)
    usable, held_out = part != 2, part == 2
    calibrate = learner.fit_calibrator(scores[usable], labels[usable], part[usable] == 0)
    got = learner.report_window(calibrate, scores[held_out], labels[held_out], confidence=0.95)
    estimated = number(got.estimate.accuracy, what="estimated accuracy")
    error = number(got.estimate.accuracy_se, what="standard error")
    realized = float(np.mean((scores[held_out] >= 0.5) == (labels[held_out] == 1)))
    claimed = float(np.mean(np.maximum(scores[held_out], 1 - scores[held_out])))
    # The calibrator saw as few rows as are estimated: its own error is as large as the noise.
    expect(
        abs(estimated - realized) < 8 * error,
        observed=f"{domain}, held-out reference rows: estimated {estimated:.3f}, realized "
        f"{realized:.3f} (raw scores claim {claimed:.3f})",
        expected=f"less than 8 standard errors ({8 * error:.3f}) apart",
        why="Before an estimate is trusted on new data it must hold on held-out old data.",
        hint="calibrate",
    )
    figure("held-out rows: estimated accuracy, realized beside it", estimated, reference=realized)
    off: list[float] = []
    for label, window in data.windows():
        s = np.clip(model.predict_proba(window[list(data.numeric)])[:, 1], 0.0, 1.0)
        y = window[data.target].to_numpy(float)
        got = learner.report_window(calibrate, s, y)
        pairs = [
            (plain(getattr(got.on_labelled, name)), getattr(got.realized, name))
            for name in ("accuracy", "roc_auc", "positive_rate")
        ]
        outside = any(not plain(i.low) <= value <= plain(i.high) for value, i in pairs)
        expect_equal(
            got.verdict,
            "outside" if outside else "agrees",
            what=f"verdict for {label}, where estimated is {pairs[0][0]:.3f} and the interval of "
            f"the realized accuracy [{plain(pairs[0][1].low):.3f}, {plain(pairs[0][1].high):.3f}]",
            why="The verdict is read by people who do not see the figures.",
            hint="frozen",
        )
        off.append(abs(pairs[0][0] - plain(pairs[0][1].value)))
    figure("later windows: mean error of estimated accuracy", float(np.mean(off)))
