"""Checks of task 2.7: champion and challenger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from scipy import stats
from support.models import fit_logistic
from support.registry import (
    NAME,
    SlowClient,
    StoreDownError,
    WatchedClient,
    champion_of,
    new_store,
    register,
    versions_of,
)

from shared.domains.tabular import load_tabular
from shared.grading.expect import expect, expect_equal, expect_raises, fail, number, plain
from shared.paths import ROOT

GOOD = {"rows": 900, "gain": 0.05, "low": 0.02, "high": 0.08, "confidence": 0.95}
UNSURE = {"rows": 900, "gain": 0.03, "low": -0.01, "high": 0.07, "confidence": 0.95}
WORSE = {"rows": 900, "gain": -0.05, "low": -0.08, "high": -0.02, "confidence": 0.95}


def test_evidence_is_the_mean_difference_of_log_loss_on_the_same_rows(learner, rng):
    outcome, old, new = _scored_rows(rng, rows=700, spread=1.0)
    old[0], new[0], outcome[0] = 0.2, 1.0, 0  # certain, and wrong
    old[1], new[1], outcome[1] = 0.0, 0.6, 1
    evidence = learner.paired_evidence(outcome, old, new)
    expect_equal(evidence.rows, 700, what="rows", why="Evidence without its size is an opinion.")
    gain = number(evidence.gain, what="gain")
    clipped = _loss(outcome, old) - _loss(outcome, new)
    expect(
        not np.isclose(gain, -clipped.mean(), rtol=1e-6),
        observed=f"gain = {gain:.6f}, which is the challenger's loss minus the champion's",
        expected=f"gain = {clipped.mean():.6f}: the champion's loss minus the challenger's",
        why="With the sign turned round, every better model is refused and every worse one served.",
        hint="paired",
    )
    expect_equal(
        gain,
        float(clipped.mean()),
        rel=1e-6,
        what="gain",
        why="One row that a model was certain and wrong about has an infinite loss, or one of 30 "
        "nats, unless probabilities are clipped at EPSILON. It would decide for all the others.",
    )


def test_the_interval_is_that_of_a_paired_method(learner, rng):
    for rows in (500, 1500):
        outcome, old, new = _scored_rows(rng, rows=rows, spread=0.3)
        confidence = float(rng.choice([0.8, 0.9, 0.95]))
        evidence = learner.paired_evidence(outcome, old, new, confidence=confidence)
        differences = _loss(outcome, old) - _loss(outcome, new)
        low, high = _t_interval(differences, confidence)
        got_low, got_high = number(evidence.low, what="low"), number(evidence.high, what="high")
        half, got_half = (high - low) / 2, (got_high - got_low) / 2
        about = f"{rows} rows, {confidence:.0%} confidence"
        expect(
            got_half < 1.5 * half,
            observed=f"an interval {got_half / half:.1f} times as wide as the paired one ({about})",
            expected=f"[{low:.4f}, {high:.4f}], give or take 15 % of its half-width",
            why="Both models find the same rows hard. A method that forgets which row is which "
            "adds that difficulty to the noise twice, and real improvements wait for months.",
            hint="paired",
        )
        expect(
            got_half > 0.5 * half,
            observed=f"an interval {got_half / half:.2f} times as wide as it should be ({about})",
            expected=f"[{low:.4f}, {high:.4f}], give or take 15 % of its half-width",
            why="An interval that is too narrow promotes on luck.",
            hint="interval",
        )
        for name, got, want in (("low", got_low, low), ("high", got_high, high)):
            expect(
                abs(got - want) < 0.15 * half,
                observed=f"{name} = {got:.5f} ({about})",
                expected=f"{name} = {want:.5f}, give or take {0.15 * half:.5f}",
                why="The decision hangs on where the interval ends.",
                hint="interval",
            )


def test_the_same_rows_give_the_same_evidence(learner, rng):
    outcome, old, new = _scored_rows(rng, rows=600, spread=0.3)
    first = plain(learner.paired_evidence(outcome, old, new, seed=3))
    np.random.seed(int(rng.integers(2**31)))
    expect_equal(
        learner.paired_evidence(outcome, old, new, seed=3),
        first,
        what="evidence of a second call",
        why="A decision that cannot be computed again cannot be audited.",
        hint="interval",
    )


def test_equal_models_are_seldom_called_different(learner, rng, figure):
    runs, promoted = 200, 0
    for _ in range(runs):
        outcome, old, new = _scored_rows(rng, rows=150, spread=0.4)
        # Which of two equally good models is called the challenger is a coin toss.
        swap = rng.random(150) < 0.5
        old, new = np.where(swap, new, old), np.where(swap, old, new)
        evidence = learner.paired_evidence(outcome, old, new, resamples=400)
        promoted += number(evidence.low, what="low") > 0
    figure("promotions of an equal model", promoted / runs, reference=0.025)
    expect(
        promoted <= 0.10 * runs,
        observed=f"{promoted} of {runs} challengers with no advantage have low > 0",
        expected=f"about 1 in 40 at 95 % confidence, and at most {runs // 10} of {runs}",
        why="Every needless promotion risks an incident for nothing.",
        hint="interval",
    )


def test_evidence_needs_whole_pairs(learner, rng):
    outcome, old, new = _scored_rows(rng, rows=40, spread=0.3)
    broken = new.copy()
    broken[7] = np.nan
    for args, doing in (
        ((outcome, old, new[:-1]), "40 outcomes and 39 probabilities"),
        ((outcome, old, broken), "a missing probability"),
        ((outcome, old, new * 100), "percentages in place of probabilities"),
        ((outcome[:1], old[:1], new[:1]), "a single row"),
    ):
        expect_raises(
            ValueError,
            lambda args=args: learner.paired_evidence(*args),
            doing=doing,
            why="A gate that quietly drops or misreads rows compares two different populations.",
            hint="paired",
        )


def test_a_challenger_is_promoted_only_when_the_whole_interval_is_above_the_minimum(
    learner, tmp_path
):
    cases = (
        (UNSURE, 0.0, "keep"),
        (WORSE, 0.0, "keep"),
        ({**GOOD, "low": 0.0}, 0.0, "keep"),
        (GOOD, 0.03, "keep"),
        (GOOD, 0.0, "promote"),
        (GOOD, 0.01, "promote"),
    )
    for i, (evidence, minimum, action) in enumerate(cases):
        client, ask = _registry(learner, tmp_path, f"case{i}")
        decision = ask("2", evidence=evidence, minimum_gain=minimum)
        after = "2" if action == "promote" else "1"
        about = (
            f"gain {evidence['gain']}, interval [{evidence['low']}, {evidence['high']}], "
            f"minimum gain {minimum}"
        )
        expect(
            champion_of(client) == after and plain(decision.action) == action,
            observed=f"action {plain(decision.action)!r} and champion {champion_of(client)} "
            f"with {about}",
            expected=f"action {action!r} and champion {after}",
            why="A mean above zero is what half of all worthless challengers have. The whole "
            "interval must clear the bar.",
            hint="interval",
        )
        expect_equal(
            str(plain(decision.champion)), after, what="decision.champion", why=WHY_DECISION
        )


def test_evidence_about_another_champion_is_stale(learner, tmp_path):
    client, ask = _registry(learner, tmp_path, versions=3)
    ask("2")
    decision = ask("3", champion="1")
    expect(
        champion_of(client) == "2" and plain(decision.action) == "stale",
        observed=f"action {plain(decision.action)!r}, champion {champion_of(client)}, after "
        "promoting 3 on evidence against 1 while 2 was champion",
        expected="action 'stale', champion 2",
        why="Version 3 was never compared with version 2. It may well be worse.",
        hint="compare-and-set",
    )


def test_promoting_twice_changes_nothing_more(learner, tmp_path):
    client, ask = _registry(learner, tmp_path)
    ask("2")
    before = dict(client.get_registered_model(NAME).tags)
    watched = WatchedClient(client.tracking_uri)
    decision = ask("2", client=watched)
    expect(
        plain(decision.action) == "unchanged" and str(plain(decision.champion)) == "2",
        observed=f"{plain(decision)} from the second run of the same promotion",
        expected="action 'unchanged' and champion '2'",
        why="Jobs are retried. A retry must see that its work is done.",
        hint="twice",
    )
    after = dict(client.get_registered_model(NAME).tags)
    expect(
        not watched.writes and after == before,
        observed=f"the second run wrote {[m for m, _ in watched.writes]}",
        expected="no writes",
        why="A retry that writes again spoils the trail, or the way back.",
        hint="twice",
    )
    rolled = _rollback(learner, client, tmp_path)
    expect(
        champion_of(client) == "1",
        observed=f"{plain(rolled)} and champion {champion_of(client)} from a rollback after the "
        "same promotion had run twice",
        expected="champion 1",
        why="If the second run takes the new champion for the previous one, there is no way back.",
        hint="twice",
    )


def test_every_decision_adds_one_record_and_changes_none(learner, tmp_path):
    client, ask = _registry(learner, tmp_path, versions=4)
    began = datetime.now(UTC) - timedelta(seconds=2)
    ask("3", evidence=UNSURE, actor="nightly-job")
    ask("2", evidence=GOOD, actor="nightly-job")
    first = _trail_tags(client)
    ask("3", champion="1", actor="nightly-job")
    _rollback(learner, client, tmp_path, reason="complaints doubled")
    ask("4", actor="release-manager")
    tags = _trail_tags(client)
    expect_equal(
        list(tags),
        [f"audit.{i:04d}" for i in range(1, 6)],
        what="keys of the trail after five decisions",
        why="A refusal is a decision too, and one who looks for gaps must find none.",
        hint="trail",
    )
    expect(
        all(tags[k] == v for k, v in first.items()),
        observed="a record that was there before now says something else",
        expected="records that never change",
        why="A trail that can be rewritten proves nothing.",
        hint="trail",
    )
    records = [_record(key, text) for key, text in tags.items()]
    got = [
        {k: str(r.get(k)) for k in ("action", "before", "after", "challenger", "actor")}
        for r in records
    ]
    want = [
        ("keep", "1", "1", "3", "nightly-job"),
        ("promote", "1", "2", "2", "nightly-job"),
        ("stale", "2", "2", "3", "nightly-job"),
        ("rollback", "2", "1", "2", "on-call"),
        ("promote", "1", "4", "4", "release-manager"),
    ]
    for i, (row, wanted) in enumerate(zip(got, want, strict=True), 1):
        expect_equal(
            row,
            dict(zip(row, wanted, strict=True)),
            what=f"record {i}",
            why="After an incident these lines are what there is: who moved what, from where.",
            hint="trail",
        )
    for i, (record, evidence) in enumerate(
        zip(records, (UNSURE, GOOD, GOOD, None, GOOD), strict=True), 1
    ):
        expect_equal(
            record.get("evidence"),
            evidence,
            rel=1e-9,
            what=f"evidence in record {i}",
            why="A decision must be judged later by what was known when it was made.",
            hint="trail",
        )
        _expect_time(record.get("at"), i, began)
    expect(
        "complaints doubled" in str(records[3].get("reason")),
        observed=f"reason of the rollback = {records[3].get('reason')!r}",
        expected="the reason that rollback was given: 'complaints doubled'",
        why="The next one who wants to promote that version must know why it was taken down.",
        hint="trail",
    )
    try:
        parsed = learner.audit_trail(client, NAME)
    except Exception as error:
        fail(
            observed=f"audit_trail could not read the records ({type(error).__name__}: {error})",
            expected="records made of AuditRecord's fields",
            why="Dashboards and audits read the trail with this function.",
            hint="trail",
        )
    expect_equal(len(parsed), 5, what="records that audit_trail reads", why=WHY_DECISION)


def test_rollback_undoes_one_promotion_at_a_time(learner, tmp_path):
    client, ask = _registry(learner, tmp_path, versions=4)
    ask("2")
    ask("3", champion="2")
    _rollback(learner, client, tmp_path)
    expect_equal(
        champion_of(client),
        "2",
        what="champion after 1 -> 2 -> 3 and a rollback",
        why="Rollback is pressed in an incident. It must lead to what ran before.",
        hint="way-back",
    )
    expect_equal(
        versions_of(client),
        ["1", "2", "3", "4"],
        what="versions after a rollback",
        why="The version that failed is the evidence for finding out why, and the one you roll "
        "back to must still be there.",
        hint="way-back",
    )
    decision = _rollback(learner, client, tmp_path)
    expect(
        champion_of(client) == "1" and str(plain(decision.champion)) == "1",
        observed=f"{plain(decision)} and champion {champion_of(client)} after 1 -> 2 -> 3 and two "
        "rollbacks",
        expected="action 'rollback' and champion 1",
        why="A second rollback that returns to version 3 puts the failed model back into service.",
        hint="way-back",
    )
    ask("4")
    _rollback(learner, client, tmp_path)
    expect_equal(
        champion_of(client),
        "1",
        what="champion after two rollbacks, 1 -> 4 and a rollback",
        why="The way back must also work the second time it is needed.",
        hint="way-back",
    )


def test_rollback_without_a_promotion_is_refused(learner, tmp_path):
    client, ask = _registry(learner, tmp_path)
    ask("2", evidence=UNSURE)
    for situation in ("no promotion yet", "the only promotion is undone"):
        before = _trail_tags(client)
        expect_raises(
            learner.NothingToRollBack,
            lambda: _rollback(learner, client, tmp_path),
            doing=f"a rollback with {situation}",
            why="Guessing a version during an incident makes a second incident.",
            hint="way-back",
        )
        expect(
            champion_of(client) == "1" and _trail_tags(client) == before,
            observed=f"champion {champion_of(client)}, {len(_trail_tags(client))} records",
            expected=f"champion 1 and {len(before)} records, as before the refused rollback",
            why="What was refused must leave no mark.",
            hint="way-back",
        )
        if situation == "no promotion yet":
            ask("2")
            _rollback(learner, client, tmp_path)


def test_the_alias_moves_in_one_call_and_last(learner, tmp_path):
    for what in ("promote", "rollback"):
        client, ask = _registry(learner, tmp_path, what)
        if what == "rollback":
            ask("2")
        there: list[str | None] = []
        watched = WatchedClient(
            client.tracking_uri, on_write=lambda _m, c=client, t=there: t.append(champion_of(c))
        )
        if what == "promote":
            ask("2", client=watched)
        else:
            _rollback(learner, watched, tmp_path)
        methods = [m for m, _ in watched.writes]
        expect(
            None not in there
            and not any(m.startswith("delete") and m.endswith("alias") for m in methods),
            observed=f"{what} made the calls {methods}: between two of them there is no champion",
            expected="one call of set_registered_model_alias, which replaces the old row",
            why="Serving that asks for the champion in between gets an error, and a crash there "
            "leaves you without any champion.",
            hint="one-step",
        )
        aliases = [args for m, args in watched.writes if m == "set_registered_model_alias"]
        champions = [a for a in aliases if "champion" in [str(x) for x in a]]
        expect(
            len(champions) == 1 and methods[-1] == "set_registered_model_alias",
            observed=f"{what} made the calls {methods}",
            expected="the call that moves the champion alias once, after all other writes",
            why="What is written after the move is missing if the job dies in between: a champion "
            "that nobody can account for, and no way back.",
            hint="commit-last",
        )


def test_a_failure_at_any_write_leaves_the_old_champion(learner, tmp_path):
    for after in (False, True):
        for write in range(1, 12):
            label = f"f{write}{'a' if after else 'b'}"
            client, ask = _registry(learner, tmp_path, label, versions=3)
            ask("2")
            broken = WatchedClient(client.tracking_uri, fail_at=write, after=after)
            try:
                ask("3", champion="2", client=broken)
            except StoreDownError:
                pass
            else:
                if len(broken.writes) < write:
                    break
                fail(
                    observed=f"no error, though write {write} ({broken.writes[-1][0]}) failed",
                    expected="the registry's error to pass through",
                    why="A promotion that failed in silence is noticed by customers.",
                    hint="one-step",
                )
            moved = after and broken.writes[-1][0] == "set_registered_model_alias"
            when = f"after write {write} ({broken.writes[-1][0]}) failed"
            expect_equal(
                champion_of(client),
                "3" if moved else "2",
                what=f"champion {when}",
                why="A promotion either happens or does not. Half of one is an incident.",
                hint="commit-last",
            )
            again = ask("3", champion="2")
            expect(
                champion_of(client) == "3"
                and plain(again.action) == ("unchanged" if moved else "promote"),
                observed=f"{plain(again)} from the second try, {when}",
                expected=f"action {'unchanged' if moved else 'promote'!r} and champion '3'",
                why="The retry is what mends the failure. It must find a state it can go on from.",
                hint="commit-last",
            )
            way = [
                str(plain(_rollback(learner, client, tmp_path, label=label).champion))
                for _ in range(2)
            ]
            expect_equal(
                way,
                ["2", "1"],
                what=f"champions of two rollbacks, {when} and was repeated",
                why="The way back is needed exactly when things have gone wrong.",
                hint="way-back",
            )


def test_an_attempt_that_failed_is_no_promotion_to_undo(learner, tmp_path):
    client, ask = _registry(learner, tmp_path, versions=3)
    ask("2")
    broken = WatchedClient(client.tracking_uri)
    broken.set_registered_model_alias = _raise_store_down
    with pytest.raises(StoreDownError):
        ask("3", champion="2", client=broken)
    _rollback(learner, client, tmp_path)
    expect_equal(
        champion_of(client),
        "1",
        what="champion after 1 -> 2, a move to 3 that failed, and a rollback",
        why="The alias never was on 3, so the last promotion is the one from 1 to 2.",
        hint="way-back",
    )


def test_a_promoter_waits_for_the_lock_and_gives_it_back(learner, tmp_path):
    client, ask = _registry(learner, tmp_path)
    broken = WatchedClient(client.tracking_uri, fail_at=1)
    with pytest.raises(StoreDownError):
        ask("2", client=broken)
    lock = FileLock(tmp_path / "mlflow.lock", timeout=5)
    try:
        lock.acquire()
    except TimeoutError:
        fail(
            observed="the lock is still held after a promotion that ended in an error",
            expected="the lock to be given back in every case",
            why="One failed job would block all promotions, and the rollback that must repair it.",
            hint="lock",
        )
    try:
        for what, call in (
            ("promote", lambda: ask("2", timeout=0.2)),
            ("rollback", lambda: _rollback(learner, client, tmp_path, timeout=0.2)),
        ):
            before = _trail_tags(client)
            expect_raises(
                TimeoutError,
                call,
                doing=f"{what} while another process holds the lock",
                why="Without the lock, two jobs read the same champion and both move it.",
                hint="lock",
            )
            expect(
                champion_of(client) == "1" and _trail_tags(client) == before,
                observed=f"champion {champion_of(client)} after a {what} without the lock",
                expected="nothing written",
                why="What was not allowed to begin must not have begun.",
                hint="lock",
            )
    finally:
        lock.release()


@pytest.mark.limit(60)
def test_two_processes_at_once_promote_one_challenger(learner, target, tmp_path):
    client, ask = _registry(learner, tmp_path, versions=3)
    folder = tmp_path / "race"
    folder.mkdir()
    script = Path(__file__).parent / "support" / "promoter.py"
    lock = str(tmp_path / "mlflow.lock")
    file = str(target.path("promotion.py"))
    other = subprocess.Popen(
        [sys.executable, str(script), file, client.tracking_uri, NAME, "2", lock, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 25
        while not (folder / "ready").exists() and time.monotonic() < deadline:
            if other.poll() is not None:
                break
            time.sleep(0.02)
        (folder / "go").touch()
        try:
            here = ask("3", client=SlowClient(client.tracking_uri, client.tracking_uri))
            mine = {"action": plain(here.action), "champion": str(plain(here.champion))}
        except Exception as error:
            mine = {"action": f"{type(error).__name__}: {error}", "champion": None}
        out, err = other.communicate(timeout=25)
    finally:
        if other.poll() is None:
            other.kill()
            other.wait()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the other process ended without an answer: {err[-2000:]}")
    answers = [mine, json.loads(lines[-1])]
    expect_equal(
        sorted(a["action"] for a in answers),
        ["promote", "stale"],
        what="actions of two promotions against champion 1 at the same time",
        why="The later one replaces a champion that its evidence says nothing about.",
        hint="lock",
    )
    winner = next(a["champion"] for a in answers if a["action"] == "promote")
    expect_equal(
        (champion_of(client), len(_trail_tags(client))),
        (winner, 2),
        what="champion and number of records after the race",
        why="If both write the same record, the trail loses one of the two decisions.",
        hint="lock",
    )


def test_evidence_on_the_domain_s_own_models(learner, domain, figure):
    data = load_tabular(domain)
    train = data.reference_frame
    _label, later = next(iter(data.windows()))
    if len(later) > 3000:
        later = later.sample(3000, random_state=0)
    outcome = later[data.target].to_numpy()
    full = fit_logistic(train, data)
    few = fit_logistic(train, data, columns=data.numeric[:1])
    old, new = few.predict_proba(later)[:, 1], full.predict_proba(later)[:, 1]
    evidence = learner.paired_evidence(outcome, old, new)
    differences = _loss(outcome, old) - _loss(outcome, new)
    low, high = _t_interval(differences, 0.95)
    half = (high - low) / 2
    figure("gain of all features over one, nats a row", number(evidence.gain, what="gain"))
    expect_equal(
        number(evidence.gain, what="gain"),
        float(differences.mean()),
        rel=1e-6,
        what=f"gain on {len(later)} {domain} rows",
        why="It decides which model your users meet.",
        hint="paired",
    )
    expect(
        abs(number(evidence.low, what="low") - low) < 0.15 * half
        and abs(number(evidence.high, what="high") - high) < 0.15 * half,
        observed=f"interval [{evidence.low:.5f}, {evidence.high:.5f}] on {domain} rows",
        expected=f"[{low:.5f}, {high:.5f}], give or take {0.15 * half:.5f}",
        why="It decides which model your users meet.",
        hint="paired",
    )


WHY_DECISION = "Jobs that call this act on what it says happened."


def _registry(learner, tmp_path: Path, name: str = "mlflow", versions: int = 2):
    """A client on a store of its own, and the learner's `promote` with the usual arguments."""
    uri = new_store(tmp_path, name)
    healthy = MlflowClient(uri, uri)
    register(healthy, versions)

    def ask(challenger, *, champion="1", evidence=GOOD, client=healthy, actor="job", **more):
        return learner.promote(
            client,
            NAME,
            champion=champion,
            challenger=challenger,
            evidence=learner.Evidence(**evidence),
            actor=actor,
            lock_path=tmp_path / f"{name}.lock",
            **more,
        )

    return healthy, ask


def _rollback(
    learner, client, tmp_path: Path, *, reason="wrong scores", label="mlflow", timeout=5.0
):
    return learner.rollback(
        client,
        NAME,
        actor="on-call",
        reason=reason,
        lock_path=tmp_path / f"{label}.lock",
        timeout=timeout,
    )


def _raise_store_down(*_args, **_kwargs):
    raise StoreDownError("the registry went away")


def _trail_tags(client: MlflowClient) -> dict[str, str]:
    tags = client.get_registered_model(NAME).tags
    return {k: str(tags[k]) for k in sorted(tags) if k.startswith("audit.")}


def _record(key: str, text: str) -> dict:
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        fail(
            observed=f"{key} = {text[:120]!r}",
            expected="the JSON of an AuditRecord (its to_json)",
            why="Whoever reads the trail in a year has a program do it.",
            hint="trail",
        )
    return record


def _expect_time(at: object, i: int, began: datetime) -> None:
    try:
        when = datetime.fromisoformat(str(at))
        right = when.utcoffset() == timedelta(0) and began <= when <= datetime.now(UTC) + timedelta(
            seconds=2
        )
    except ValueError:
        right = False
    expect(
        right,
        observed=f"at = {at!r} in record {i}",
        expected="the time of the decision in UTC, ISO 8601 with its offset (+00:00)",
        why="Without the offset nobody can line it up with the logs of an incident.",
        hint="trail",
    )


def _scored_rows(rng: np.random.Generator, rows: int, spread: float):
    """Outcomes and two models' probabilities; both models find the same rows hard."""
    truth = rng.normal(-0.5, 1.5, rows)
    outcome = (rng.random(rows) < _sigmoid(truth)).astype(int)
    old = _sigmoid(truth + rng.normal(0, spread, rows))
    new = _sigmoid(truth + rng.normal(0, spread, rows))
    return outcome, old, new


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _loss(outcome: np.ndarray, p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return -np.where(outcome == 1, np.log(p), np.log(1 - p))


def _t_interval(differences: np.ndarray, confidence: float) -> tuple[float, float]:
    error = stats.sem(differences)
    low, high = stats.t.interval(
        confidence, len(differences) - 1, loc=differences.mean(), scale=error
    )
    return float(low), float(high)
