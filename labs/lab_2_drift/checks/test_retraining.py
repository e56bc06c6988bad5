"""Checks of task 2.6: the retraining job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.registry import (
    NAME,
    WatchedClient,
    champion_of,
    new_experiment,
    new_store,
    versions_of,
)
from support.world import BEGIN, CATEGORICAL, FEATURES, NUMERIC, crown, fit, load, world

from shared.domains.tabular import load_tabular
from shared.grading.expect import expect, expect_equal, expect_raises, fail, number, plain

DELAY, HOLDOUT = pd.Timedelta(days=30), pd.Timedelta(days=90)
TURNED = ((500, "old", "old"), (500, "new", "new"))
RETURNED = ((500, "old", "old"), (200, "new", "new"), (300, "new", "old"))
STEADY = ((1000, "old", "old"),)
NOW = BEGIN + pd.Timedelta(days=900)
"""The last hundred days of a world are still to come."""


def test_windows_hold_what_was_known_when_it_counts(learner, rng):
    rows = world(rng, TURNED, rows_a_day=2)
    delay = pd.Timedelta(days=int(rng.integers(20, 60)))
    span = pd.Timedelta(days=int(rng.integers(60, 120)))
    windows = learner.split_windows(
        rows, _schema(learner), now=NOW, label_delay=delay, holdout=span
    )
    start = NOW - delay - span
    about = f"now {_day(NOW)}, label delay {delay.days} days, holdout {span.days} days"
    train, holdout, recent = (windows.train, windows.holdout, windows.recent)
    expect(
        len(holdout) > 0 and bool((holdout["time"] + delay <= NOW).all()),
        observed=f"a holdout that ends on {_day(holdout['time'].max())} ({about})",
        expected=f"no row later than {_day(NOW - delay)}: after it no label is known",
        why="A label that is not known yet stands there as 0. The model looks wrong on the very "
        "customers who have not had the time to fail.",
        hint="label-delay",
    )
    expect(
        len(train) > 0 and bool((train["time"] + delay <= NOW).all()),
        observed=f"training rows up to {_day(train['time'].max())} ({about})",
        expected=f"no row later than {_day(start - delay)}",
        why="A label that is not known yet stands there as 0, and teaches that new customers "
        "never fail.",
        hint="label-delay",
    )
    expect(
        bool((train["time"] + delay <= start).all()),
        observed=f"training rows up to {_day(train['time'].max())}, for a holdout that begins on "
        f"{_day(start)} ({about})",
        expected=f"training rows up to {_day(start - delay)}: later labels were not known then",
        why="On the day the holdout began, a model could not have learned from these rows. With "
        "them the judgement is better than life will be.",
        hint="embargo",
    )
    wanted = {
        "train": (rows["time"] + delay <= start),
        "holdout": (rows["time"] >= start) & (rows["time"] + delay <= NOW),
        "recent": (rows["time"] >= NOW - span) & (rows["time"] <= NOW),
    }
    for name, got in (("train", train), ("holdout", holdout), ("recent", recent)):
        expect_equal(
            sorted(got["time"].astype(str)),
            sorted(rows.loc[wanted[name], "time"].astype(str)),
            what=f"times of the rows in {name} ({about})",
            why="One row too many is a leak, one too few is data thrown away.",
            hint="label-delay" if name == "holdout" else "windows",
        )


@pytest.mark.limit(60)
def test_drift_is_measured_against_what_the_champion_was_trained_on(learner, rng, tmp_path):
    # The change is three years old: among the newest rows, nothing drifts any more.
    rows = world(rng, ((80, "old", "old"), (1120, "new", "new")))
    now = BEGIN + pd.Timedelta(days=1150)
    old = rows[rows["time"] < BEGIN + pd.Timedelta(days=80)]
    result, _client, _model, _uri = _retrain(learner, tmp_path, rows, trained_on=old, now=now)
    recent = rows[(rows["time"] >= now - HOLDOUT) & (rows["time"] <= now)]
    want = _share(old, recent)
    expect(
        abs(number(result["drift_share"], what="drift_share") - want) < 1e-9
        and result["action"] != "no_drift",
        observed=f"drift_share {result['drift_share']} and action {result['action']!r}",
        expected=f"drift_share {want}: the last {HOLDOUT.days} days against the rows that the "
        "champion was trained on, by its tags",
        why="A reference that moves along with the data never sees slow drift. The champion does "
        "not move along: it knows the world of its training rows.",
        hint="reference-window",
    )


@pytest.mark.limit(60)
def test_nothing_that_was_not_known_then_matters(learner, rng, tmp_path):
    rows = world(rng, TURNED)
    old = _old(rows)
    known, _c, _m, uri = _retrain(learner, tmp_path, rows, trained_on=old, label="known")
    future = rows["time"] > NOW
    unlabelled = rows["time"] + DELAY > NOW
    changes = {
        "labels that nobody knew yet": rows.assign(
            default=np.where(unlabelled, 1 - rows["default"], rows["default"])
        ),
        "rows later than now": rows.assign(
            debt=np.where(future, rows["debt"] * 30 + 100, rows["debt"]),
            age=np.where(future, 120.0, rows["age"]),
            income=np.where(future, rows["income"] + 50, rows["income"]),
        ),
    }
    for i, (change, other) in enumerate(changes.items()):
        result, _c, _m, uri_two = _retrain(
            learner, tmp_path, other, trained_on=old, label=f"changed{i}"
        )
        figures = ("action", "drift_share", "champion_loss", "challenger_loss")
        same = all(_close(known[f], result[f]) for f in figures)
        moved = 0.0
        if same and known["challenger"] is not None:
            probe = old.head(150)
            one = load(uri, NAME, known["challenger"]).predict_proba(probe[FEATURES])
            two = load(uri_two, NAME, result["challenger"]).predict_proba(probe[FEATURES])
            moved = float(np.abs(one - two).max())
        expect(
            same and moved < 1e-6,
            observed=f"{ {f: known[f] for f in figures} } becomes "
            f"{ {f: result[f] for f in figures} } when only {change} change"
            if not same
            else f"another challenger (answers differ by up to {moved:.3f}) when only {change} "
            "change",
            expected="the same result to the last digit",
            why="What a replay learns from the future, the job at night will not have. Offline the "
            "pipeline is a success; in production it is not.",
            hint="future",
        )


@pytest.mark.limit(60)
def test_the_challenger_has_not_seen_the_holdout(learner, rng, tmp_path):
    rows = world(rng, TURNED)
    old = _old(rows)
    start = NOW - DELAY - HOLDOUT
    later = rows["time"] >= start
    other = rows.assign(
        default=np.where(later, 1 - rows["default"], rows["default"]),
        debt=np.where(later, rows["debt"] + 3, rows["debt"]),
    )
    answers = []
    for label, table in (("one", rows), ("two", other)):
        result, _c, _m, uri = _retrain(learner, tmp_path, table, trained_on=old, label=label)
        model = load(uri, NAME, _challenger(result))
        answers.append(model.predict_proba(old.head(150)[FEATURES])[:, 1])
    moved = float(np.abs(answers[0] - answers[1]).max())
    expect(
        moved < 1e-6,
        observed=f"a challenger that answers differently (by up to {moved:.3f}) when only rows "
        f"from {_day(start)} on change, which are holdout or later",
        expected="the same challenger: it was fitted to earlier rows",
        why="A model judged on rows that it has learned from, be it only their mean, always looks "
        "good, and most of all when it has learned them by heart.",
        hint="holdout",
    )


@pytest.mark.limit(60)
def test_both_models_are_judged_on_the_same_holdout_rows(learner, rng, tmp_path):
    for label, eras, action in (
        ("turned", TURNED, "promoted"),
        ("returned", RETURNED, "rejected"),
    ):
        rows = world(rng, eras)
        result, client, champion, uri = _retrain(
            learner, tmp_path, rows, trained_on=_old(rows), label=label
        )
        holdout = _holdout(rows)
        challenger = load(uri, NAME, _challenger(result))
        for who, model in (("champion", champion), ("challenger", challenger)):
            want = _loss(model, holdout)
            got = number(result[f"{who}_loss"], what=f"{who}_loss")
            from_record = who == "champion" and abs(got - 0.15) < 1e-9
            expect(
                abs(got - want) < 1e-6,
                observed=f"{who}_loss = {got:.4f}"
                + (", which is what its own run once logged" if from_record else ""),
                expected=f"{who}_loss = {want:.4f}: the registered {who} on the {len(holdout)} "
                "holdout rows",
                why="Last year's figure comes from last year's customers, and a figure from "
                "training rows from memory. Only the same fresh rows tell two models apart.",
                hint="same-rows",
            )
        expect_equal(
            (result["action"], champion_of(client)),
            (action, result["challenger"] if action == "promoted" else "1"),
            what=f"action and champion, with losses {result['champion_loss']:.4f} (champion) and "
            f"{result['challenger_loss']:.4f} (challenger)",
            why="The better model on fresh rows serves.",
            hint="same-rows",
        )


@pytest.mark.limit(60)
def test_the_alias_moves_after_the_judgement_or_not_at_all(learner, rng, tmp_path):
    for label, eras, wanted in (("returned", RETURNED, 0), ("turned", TURNED, 1)):
        rows = world(rng, eras)
        result, client, _m, _uri = _retrain(
            learner, tmp_path, rows, trained_on=_old(rows), label=label
        )
        methods = [m for m, _ in client.writes]
        moves = [
            [str(a) for a in args[1:]]
            for m, args in client.writes
            if m in ("set_registered_model_alias", "delete_registered_model_alias")
        ]
        expect(
            len(moves) == wanted,
            observed=f"alias calls {moves} in a run that ended {result['action']!r}",
            expected="none" if wanted == 0 else "one, to the challenger",
            why="Serving reads the alias at any moment. A challenger that was put back after a "
            "minute has answered customers for a minute, and if the job dies, it stays.",
            hint="alias-last",
        )
        expect(
            not any(m.startswith("delete_") for m in methods),
            observed=f"registry calls {methods}",
            expected="no deletion",
            why="A version that is gone can't be rolled back to, or looked into.",
            hint="way-back",
        )
        if wanted:
            expect(
                methods[-1] == "set_registered_model_alias",
                observed=f"registry calls {methods}",
                expected="the alias to move last",
                why="What comes after the move is missing if the job dies in between.",
                hint="alias-last",
            )


def test_a_new_version_says_what_it_was_trained_on(learner, rng, tmp_path):
    rows = world(rng, TURNED)
    result, client, _m, _uri = _retrain(learner, tmp_path, rows, trained_on=_old(rows))
    train = rows[rows["time"] + DELAY <= NOW - DELAY - HOLDOUT]
    version = client.get_model_version(NAME, _challenger(result))
    tags = {k: version.tags.get(k) for k in ("train_start", "train_end", "previous_champion")}
    want = {
        "train_start": train["time"].min().isoformat(),
        "train_end": train["time"].max().isoformat(),
        "previous_champion": "1",
    }
    expect_equal(
        tags,
        want,
        what="tags of the new version",
        why="The next run measures drift against these rows, and rollback needs the way back.",
        hint="record",
    )
    metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
    names = ("drift_share", "holdout_log_loss", "champion_log_loss")
    expect_equal(
        {n: metrics.get(n) for n in names},
        dict(
            zip(
                names,
                (result["drift_share"], result["challenger_loss"], result["champion_loss"]),
                strict=True,
            )
        ),
        rel=1e-9,
        what="metrics of the version's run",
        why="Without them nobody can say later why it was promoted.",
        hint="record",
    )


def test_without_drift_nothing_is_fitted(learner, rng, tmp_path):
    rows = world(rng, STEADY)
    result, client, _m, _uri = _retrain(learner, tmp_path, rows, trained_on=_old(rows))
    expect(
        result["action"] == "no_drift"
        and result["challenger"] is None
        and versions_of(client) == ["1"]
        and not client.writes,
        observed=f"{result}, versions {versions_of(client)}, registry calls "
        f"{[m for m, _ in client.writes]}",
        expected="action 'no_drift' and an untouched registry",
        why="Every new model is a risk. It is taken for a reason.",
        hint="reference-window",
    )


@pytest.mark.limit(60)
def test_rollback_returns_to_the_version_that_was_replaced(learner, rng, tmp_path):
    rows = world(rng, TURNED)
    # Versions 2 and 3 lost; the challenger becomes 4.
    result, client, _m, uri = _retrain(learner, tmp_path, rows, trained_on=_old(rows), others=2)
    expect_equal(
        champion_of(client),
        _challenger(result),
        what="champion",
        why="It was better.",
        hint="same-rows",
    )
    there: list[str | None] = []
    watched = WatchedClient(uri, on_write=lambda _m: there.append(champion_of(client)))
    back = plain(learner.rollback(watched, NAME))
    expect_equal(
        (champion_of(client), str(back)),
        ("1", "1"),
        what="champion, and what rollback returned, after version 4 replaced version 1",
        why="Versions 2 and 3 were rejected. A rollback to the number below serves a model that "
        "had already failed.",
        hint="way-back",
    )
    expect(
        versions_of(client) == ["1", "2", "3", "4"] and None not in there,
        observed=f"versions {versions_of(client)}, champion before each write {there}",
        expected="all four versions, and a champion at any moment",
        why="The failed version is what the post-mortem needs, and serving needs a champion even "
        "while you roll back.",
        hint="way-back",
    )
    expect_raises(
        LookupError,
        lambda: learner.rollback(watched, NAME),
        doing="a rollback from version 1, which replaced no other",
        why="Guessing a version during an incident makes a second incident.",
        hint="way-back",
    )
    expect_equal(champion_of(client), "1", what="champion after it", why="Nothing was to be done.")


@pytest.mark.limit(60)
def test_the_job_on_the_domain_s_own_rows(learner, domain, figure, tmp_path):
    data = load_tabular(domain)
    now, delay, span = {
        "finance": ("2003-01-01", 5, 365),
        "healthcare": ("2002-06-01", 200, 365),
        "climate": ("2008-01-01", 2, 4 * 365),
    }[domain]
    now, delay, span = pd.Timestamp(now), pd.Timedelta(days=delay), pd.Timedelta(days=span)
    rows, old = data.frame, data.reference_frame
    schema = learner.Schema(data.time, data.target, data.numeric, data.categorical)
    champion = fit(old, data.target, data.numeric, data.categorical)
    result, client, _m, uri = _retrain(
        learner,
        tmp_path,
        rows,
        trained_on=old,
        now=now,
        delay=delay,
        span=span,
        schema=schema,
        champion=champion,
        max_share=0.05,
    )
    time, start = rows[data.time], now - delay - span
    recent = rows[(time >= now - span) & (time <= now)]
    share = _share(old, recent, data.numeric, data.categorical)
    expect_equal(
        result["drift_share"],
        share,
        rel=1e-9,
        what=f"drift_share on {domain} rows, now = {_day(now)}",
        why="These are the rows that your monitoring will see.",
        hint="reference-window",
    )
    holdout = rows[(time >= start) & (time + delay <= now)]
    challenger = load(uri, NAME, _challenger(result))
    features = list(data.features)
    losses = {
        "champion_loss": _loss(champion, holdout, data.target, features),
        "challenger_loss": _loss(challenger, holdout, data.target, features),
    }
    for name, want in losses.items():
        figure(f"{name} on {domain} rows", want)
        expect_equal(
            result[name],
            want,
            abs_=1e-6,
            what=f"{name} on the {len(holdout)} holdout rows",
            why="The better model on fresh rows serves.",
            hint="same-rows",
        )
    better = losses["challenger_loss"] < losses["champion_loss"]
    expect_equal(
        (result["action"], champion_of(client)),
        ("promoted", result["challenger"]) if better else ("rejected", "1"),
        what="action and champion",
        why="The better model on fresh rows serves.",
        hint="same-rows",
    )


def _schema(learner):
    return learner.Schema(time="time", target="default", numeric=NUMERIC, categorical=CATEGORICAL)


def _retrain(
    learner,
    tmp_path: Path,
    rows: pd.DataFrame,
    *,
    trained_on: pd.DataFrame,
    label: str = "job",
    now: pd.Timestamp = NOW,
    delay: pd.Timedelta = DELAY,
    span: pd.Timedelta = HOLDOUT,
    schema: Any = None,
    champion: Any = None,
    others: int = 0,
    max_share: float = 0.5,
):
    """Crown a champion in a store of its own, run the job; result, client, champion and URI."""
    folder = tmp_path / label
    folder.mkdir()
    uri = new_store(tmp_path, label)
    new_experiment(uri, folder, "retraining")
    model = champion if champion is not None else fit(trained_on)
    crown(uri, NAME, "retraining", model, trained_on, others)
    client = WatchedClient(uri)
    result = plain(
        learner.retrain(
            client,
            rows.copy(),
            schema if schema is not None else _schema(learner),
            name=NAME,
            experiment="retraining",
            now=now,
            label_delay=delay,
            holdout=span,
            max_share=max_share,
        )
    )
    for key in ("champion", "challenger"):
        if result[key] is not None:
            result[key] = str(result[key])
    return result, client, model, uri


def _challenger(result: dict[str, Any]) -> str:
    if result["challenger"] is None:
        fail(
            observed=f"{result}: no challenger",
            expected="a challenger, since the features have drifted from those of the champion's "
            "training rows",
            why="A champion that knows another world than today's must be challenged.",
            hint="reference-window",
        )
    return str(result["challenger"])


def _old(rows: pd.DataFrame) -> pd.DataFrame:
    """What a champion of the first 400 days was trained on."""
    return rows[rows["time"] < BEGIN + pd.Timedelta(days=400)].reset_index(drop=True)


def _holdout(rows: pd.DataFrame) -> pd.DataFrame:
    time = rows["time"]
    return rows[(time >= NOW - DELAY - HOLDOUT) & (time + DELAY <= NOW)]


def _loss(
    model: Any, rows: pd.DataFrame, target: str = "default", features=tuple(FEATURES)
) -> float:
    p = np.clip(model.predict_proba(rows[list(features)])[:, 1], 1e-15, 1 - 1e-15)
    return float(-np.mean(np.where(rows[target] == 1, np.log(p), np.log(1 - p))))


def _share(old: pd.DataFrame, new: pd.DataFrame, numeric=NUMERIC, categorical=CATEGORICAL) -> float:
    drifted, features = 0, [*numeric, *categorical]
    for name in features:
        a, b = old[name].dropna(), new[name].dropna()
        if name in numeric:
            p = stats.ks_2samp(a, b).pvalue
        else:
            keys = sorted(set(a) | set(b))
            p = stats.chi2_contingency(
                [[int((w == k).sum()) for k in keys] for w in (a, b)], correction=False
            ).pvalue
        drifted += bool(p < 0.05 / len(features))
    return drifted / len(features)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 1e-9
    return a == b


def _day(time: pd.Timestamp) -> str:
    return str(time.date())
