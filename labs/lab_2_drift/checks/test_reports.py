"""Checks of task 2.3: drift reports."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evidently.ui.workspace import Workspace
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from scipy import stats
from scipy.spatial.distance import jensenshannon
from support.registry import (
    keep_newest_report,
    keep_newest_run,
    new_experiment,
    new_store,
    own_experiment,
)

from shared.domains.tabular import load_tabular
from shared.grading.expect import expect, expect_equal, expect_raises, fail, number, plain

NUMERIC = ("amount", "age", "children")
CATEGORICAL = ("channel", "region")
MOMENT = datetime(2026, 3, 1, 12)


def test_the_declared_type_chooses_the_method(learner, rng):
    small, large = _window(rng, 400), _window(rng, 1400)
    for frame, numeric_method, categorical_method in (
        (small, "ks", learner.TWO_SAMPLE_CHI_SQUARE),
        (large, "wasserstein", "jensenshannon"),
    ):
        methods = _methods(learner, frame, _window(rng, len(frame)))
        expect_equal(
            sorted(methods),
            sorted(NUMERIC + CATEGORICAL),
            what="columns with a method",
            why="A column without a method is one that nobody watches.",
            hint="columns",
        )
        for column in (*CATEGORICAL, *NUMERIC):
            wanted = categorical_method if column in CATEGORICAL else numeric_method
            kind = "categorical" if column in CATEGORICAL else "numeric"
            expect_equal(
                methods[column]["name"],
                wanted,
                what=f"method of {column!r}, declared {kind}, {len(frame)} rows a window",
                why="Region 7 is not larger than region 3. A method for numbers measures a "
                "distance between codes that means nothing.",
                hint="type",
            )


def test_the_smaller_window_chooses_between_test_and_distance(learner, rng):
    for rows, now, missing, wanted in (
        (3000, 300, 0, "ks"),
        (300, 3000, 0, "ks"),
        (1000, 1000, 0, "ks"),
        (1001, 1001, 0, "wasserstein"),
        (3000, 1400, 500, "ks"),
    ):
        reference, current = _window(rng, rows), _window(rng, now)
        current.loc[: missing - 1, "amount"] = rng.choice([np.nan, np.inf])
        got = _methods(learner, reference, current)["amount"]["name"]
        expect_equal(
            got,
            wanted,
            what=f"method of a numeric column with {rows} reference rows and {now} current rows, "
            f"{missing} of them without a finite value",
            why="A distance has no notion of chance: among 300 values it passes 0.1 by luck.",
            hint="size",
        )


def test_thresholds_of_tests_are_divided_by_the_number_of_columns(learner, rng):
    for columns in (4, 25):
        names = tuple(f"feature_{i}" for i in range(columns - 1))
        reference, current = (
            pd.DataFrame({**{n: rng.normal(size=120) for n in names}, "c": rng.choice(3, 120)})
            for _ in range(2)
        )
        methods = _methods(learner, reference, current, names, ("c",))
        for name in (names[0], "c"):
            expect_equal(
                methods[name]["threshold"],
                0.05 / columns,
                rel=1e-9,
                what=f"threshold of the test of one of {columns} columns",
                why="At 0.05 a column, 25 columns without any drift raise an alarm in 72 reports "
                "of 100. Nobody reads the alerts of the second week.",
                hint="correction",
            )
    large = _methods(learner, _window(rng, 1200), _window(rng, 1200))
    expect_equal(
        (large["amount"]["threshold"], large["channel"]["threshold"]),
        (0.1, 0.1),
        what="thresholds of the distances",
        why="A distance is no p-value: it does not shrink with the number of columns.",
        hint="correction",
    )


def test_reports_on_windows_without_drift_stay_silent(learner, rng, figure):
    names = tuple(f"feature_{i}" for i in range(8))
    runs, alarms = 60, 0
    for _ in range(runs):
        reference, current = (
            pd.DataFrame({n: rng.normal(size=120) for n in names}) for _ in range(2)
        )
        methods = _methods(learner, reference, current, names, ())
        alarms += any(
            stats.ks_2samp(reference[n], current[n]).pvalue < methods[n]["threshold"] for n in names
        )
    figure("reports with a false alarm, 8 columns", alarms / runs, reference=0.05)
    expect(
        alarms <= 10,
        observed=f"{alarms} of {runs} reports name a drifted column where there is no drift",
        expected="about 1 in 20",
        why="Each false alarm costs an hour of a person who will look less closely next time.",
        hint="correction",
    )


def test_a_column_without_values_is_an_error_that_names_it(learner, rng):
    for column in ("age", "channel"):
        reference, current = _window(rng, 200), _window(rng, 200)
        current[column] = None if column == "channel" else np.nan
        expect_raises(
            ValueError,
            lambda r=reference, c=current: _methods(learner, r, c),
            doing=f"a current window in which {column!r} is missing throughout",
            mentions=column,
            why="An upstream job has stopped filling it. As one drifted column of twenty it would "
            "drown in the share.",
            hint="columns",
        )


def test_the_report_measures_the_current_window_against_the_reference(learner, rng):
    for rows in (1300, 350):
        reference, current = _window(rng, rows), _window(rng, rows)
        current["amount"] *= 3.0
        current["age"] = current["age"] * 0.4 + 3
        current.loc[5:40, "age"] = np.nan
        current["channel"] = rng.choice(["app", "web", "branch", "phone"], rows)
        content = _content(_build(learner, reference, current))
        scores = _scores(content)
        for column in NUMERIC + CATEGORICAL:
            right = _score(reference[column], current[column], column in NUMERIC, rows <= 1000)
            turned = _score(current[column], reference[column], column in NUMERIC, rows <= 1000)
            got = number(scores.get(column), what=f"score of {column!r}")
            same = np.isclose(got, right, rtol=1e-6, atol=1e-12)
            swapped = np.isclose(got, turned, rtol=1e-6, atol=1e-12) and not same
            expect(
                bool(same),
                observed=f"score of {column!r} = {got:.6g}, {rows} rows a window"
                + (", which is what comes out with the windows exchanged" if swapped else ""),
                expected=f"score of {column!r} = {right:.6g}, as SciPy computes it",
                why="Scores are in units of the reference's spread. Exchanged, they compare the "
                "past with a broken present, and every plot has its labels the wrong way round.",
                hint="direction",
            )


def test_only_monitored_columns_count(learner, rng):
    reference = _window(rng, 300)
    current = _shuffled(rng, reference)
    current["time"] = current["time"] + pd.Timedelta(days=400)
    current["customer_id"] = current["customer_id"] + 10_000
    current["prediction"] = current["prediction"] / 3
    current["amount"] *= 4
    content = _content(_build(learner, reference, current))
    counted = _counted(content)
    expect_equal(
        sorted(_scores(content)),
        sorted(NUMERIC + CATEGORICAL),
        what="columns in the report",
        why="Time and identifiers always differ between two windows. With them in it, the share of "
        "drifted columns never reaches zero.",
        hint="columns",
    )
    expect_equal(
        (counted["count"], counted["share"]),
        (1, 0.2),
        rel=1e-9,
        what="drifted columns and their share, with one of five drifted",
        why="The share is compared with a limit, and with last month's.",
        hint="columns",
    )


def test_the_report_has_a_test_for_each_column_and_one_for_the_share(learner, rng):
    reference = _window(rng, 300)
    current = _shuffled(rng, reference)
    current["amount"] *= 4
    current["region"] = 1 + current["region"] % 3
    for max_share, verdict in ((0.3, "FAIL"), (0.7, "SUCCESS")):
        snapshot = _build(learner, reference, current, max_share=max_share)
        column_tests, share_tests = _tests(_content(snapshot))
        wanted = {c: "FAIL" if c in ("amount", "region") else "SUCCESS" for c in column_tests}
        expect_equal(
            column_tests,
            {c: wanted.get(c, "SUCCESS") for c in NUMERIC + CATEGORICAL},
            what="tests of the columns",
            why="A report without tests is a picture. A pipeline acts on a test.",
            hint="tests",
        )
        expect_equal(
            share_tests,
            [verdict],
            what=f"test of the share, 2 of 5 columns drifted, max_share {max_share}",
            why="This is the test that stops a pipeline or calls a person.",
            hint="tests",
        )
    model = snapshot.to_snapshot_model()
    expect_equal(
        (model.name, model.timestamp.replace(tzinfo=None).isoformat()),
        ("2026-02", MOMENT.isoformat()),
        what="name and timestamp of the snapshot",
        why="The dashboard draws reports along their timestamps. A replay of last year must not "
        "look like today.",
        hint="direction",
    )


def test_a_published_report_is_saved_as_page_and_numbers(learner, rng, tmp_path):
    snapshot, published, _client, _uri = _published(learner, rng, tmp_path)
    for name in ("html", "json"):
        path = Path(getattr(published, name))
        expect(
            path == tmp_path / "out" / "march" / f"drift_report.{name}" and path.is_file(),
            observed=f"{path.name}: {'there' if path.is_file() else 'no such file'}, in folder "
            f"{path.parent.name!r}",
            expected=f"drift_report.{name} in the folder that was given",
            why="The page is for people, the numbers are for the next job.",
            hint="log",
        )
    expect(
        "<html" in Path(published.html).read_text(encoding="utf-8")[:2000].lower(),
        observed="an HTML file without a page in it",
        expected="the page that Evidently saves",
        why="People look at the page.",
        hint="log",
    )
    saved = json.loads(Path(published.json).read_text(encoding="utf-8"))
    expect_equal(
        _scores(saved),
        _scores(_content(snapshot)),
        rel=1e-9,
        what="scores in the JSON file",
        why="Page, numbers and metrics must tell one story.",
        hint="log",
    )
    expect_equal(
        (plain(published.share), plain(published.drifted), plain(published.passed)),
        (0.4, ["amount", "region"], True),
        rel=1e-9,
        what="share, drifted columns and verdict, with 2 of 5 columns drifted and max_share 0.5",
        why="0.4 is a share; 40 would be compared with a limit of 0.5 and always be over it.",
        hint="share",
    )


def test_a_published_report_is_logged_to_mlflow(learner, rng, tmp_path):
    snapshot, published, client, _uri = _published(learner, rng, tmp_path)
    run = _run(client, published)
    experiment = client.get_experiment_by_name("monitoring")
    expect(
        run.info.experiment_id == experiment.experiment_id and run.info.status == "FINISHED",
        observed=f"a run of experiment {run.info.experiment_id} with status {run.info.status}",
        expected=f"a FINISHED run of experiment {experiment.experiment_id} ('monitoring')",
        why="A run that never ends looks like a job that hangs.",
        hint="log",
    )
    expect_equal(run.info.run_name, "2026-02", what="name of the run", why="It is what lists show.")
    artifacts = sorted(a.path for a in client.list_artifacts(run.info.run_id, "drift"))
    expect_equal(
        artifacts,
        ["drift/drift_report.html", "drift/drift_report.json"],
        what="artifacts below drift/",
        why="A report on the disk of a machine that is gone tomorrow convinces nobody.",
        hint="log",
    )
    metrics = run.data.metrics
    expect_equal(
        {k: metrics.get(k) for k in ("drift_share", "drifted_columns", "monitored_columns")},
        {"drift_share": 0.4, "drifted_columns": 2.0, "monitored_columns": 5.0},
        rel=1e-9,
        what="metrics of the run",
        why="Alerts and dashboards read the metric, and compare it with limits between 0 and 1.",
        hint="share",
    )
    scores = {
        k.removeprefix("drift_score."): v
        for k, v in metrics.items()
        if k.startswith("drift_score.")
    }
    expect_equal(
        scores,
        _scores(_content(snapshot)),
        rel=1e-9,
        what="metrics drift_score.<column>",
        why="The share says that something drifted. These say what.",
        hint="log",
    )
    expect_equal(
        run.data.tags.get("drift_report"),
        "passed",
        what="tag drift_report",
        why="It is what you search runs by.",
        hint="log",
    )


def test_reports_of_one_project_come_together_in_the_workspace(learner, rng, tmp_path):
    _snapshot, _published_report, client, uri = _published(learner, rng, tmp_path)
    reference = _window(rng, 300)
    current = _shuffled(rng, reference)
    current[["amount", "age", "children"]] += 1e4
    snapshot = _build(learner, reference, current, max_share=0.5)
    second = _publish(learner, snapshot, tmp_path, uri, folder="april")
    expect_equal(
        (plain(second.passed), _run(client, second).data.tags.get("drift_report")),
        (False, "failed"),
        what="verdict and tag with 3 of 5 columns drifted and max_share 0.5",
        why="A report that always passes is worse than none.",
        hint="tests",
    )
    space = Workspace.create(str(tmp_path / "workspace"))
    projects = space.list_projects()
    expect_equal(
        [p.name for p in projects],
        ["credit"],
        what="projects in the workspace after two reports for 'credit'",
        why="Drift is a history. One project a report is a list of single points.",
        hint="workspace",
    )
    expect_equal(
        len(space.list_runs(projects[0].id)),
        2,
        what="reports in the project",
        why="Drift is a history, and a report that is missing looks like a quiet month.",
        hint="workspace",
    )
    panels = space.get_dashboard(projects[0].id).panels
    expect_equal(
        [p.title for p in panels],
        ["Share of drifted columns"],
        what="panels on the project's dashboard",
        why="Without the panel the page of the project is empty; with one a report it fills up.",
        hint="workspace",
    )


@pytest.mark.limit(60)
def test_reports_on_the_domain_s_first_and_last_window(learner, domain, figure, store, tmp_path):
    data = load_tabular(domain)
    reference, windows = data.reference_frame, list(data.windows())
    experiment = own_experiment(store.uri, store.artifacts, "lab 2: drift reports")
    for label, current in (windows[0], windows[-1]):
        name = f"{domain} {label}"
        snapshot = learner.build_report(
            reference,
            current,
            numeric=data.numeric,
            categorical=data.categorical,
            max_share=0.5,
            name=name,
            moment=current[data.time].max().to_pydatetime(),
        )
        scores, corrected = _scores(_content(snapshot)), 0.05 / len(data.features)
        drifted = []
        for column in data.features:
            pair = [_values(f[column], column in data.numeric) for f in (reference, current)]
            small = min(map(len, pair)) <= 1000
            wanted = _score(*pair, column in data.numeric, small)
            drifted += [column] if (wanted < corrected if small else wanted >= 0.1) else []
            expect_equal(
                scores.get(column),
                wanted,
                rel=1e-6,
                abs_=1e-12,
                what=f"score of {column!r} in {label}, {domain}",
                why="These are the columns that your model really reads.",
                hint="size",
            )
        published = learner.publish_report(
            snapshot,
            folder=tmp_path / label,
            tracking_uri=store.uri,
            experiment=experiment,
            workspace=store.folder / "evidently",
            project=f"Lab 2, {domain}",
        )
        keep_newest_run(store.uri, experiment, name)
        keep_newest_report(store.folder / "evidently", f"Lab 2, {domain}", name)
        figure(f"share of drifted columns, {label}", published.share)
        expect_equal(
            (plain(published.share), plain(published.drifted)),
            (len(drifted) / len(data.features), sorted(drifted)),
            rel=1e-9,
            what=f"share and names of drifted columns in {label}, {domain}",
            why="They decide whether someone is called, and what that person looks at first.",
            hint="correction",
        )


def _window(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Rows of a credit desk: five monitored columns and four that no report should judge."""
    return pd.DataFrame(
        {
            "time": pd.date_range("2025-01-01", periods=rows, freq="h"),
            "customer_id": np.arange(rows),
            "amount": rng.lognormal(3, 0.5, rows),
            "age": rng.normal(45, 12, rows),
            "children": rng.choice(3, rows, p=[0.5, 0.3, 0.2]).astype(float),
            "channel": rng.choice(["app", "web", "branch"], rows, p=[0.5, 0.3, 0.2]),
            "region": rng.choice([1, 2, 3], rows, p=[0.6, 0.3, 0.1]),
            "prediction": rng.beta(2, 5, rows),
            "target": rng.choice(2, rows),
        }
    )


def _shuffled(rng: np.random.Generator, frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows in another order: a window without any drift, not even by chance."""
    return frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)


def _methods(learner, reference, current, numeric=NUMERIC, categorical=CATEGORICAL):
    return plain(
        learner.choose_methods(reference, current, numeric=numeric, categorical=categorical)
    )


def _build(learner, reference, current, *, max_share=0.5):
    return learner.build_report(
        reference,
        current,
        numeric=NUMERIC,
        categorical=CATEGORICAL,
        max_share=max_share,
        name="2026-02",
        moment=MOMENT,
    )


def _publish(learner, snapshot, tmp_path: Path, uri: str, folder: str):
    return learner.publish_report(
        snapshot,
        folder=tmp_path / "out" / folder,
        tracking_uri=uri,
        experiment="monitoring",
        workspace=tmp_path / "workspace",
        project="credit",
    )


def _published(learner, rng, tmp_path: Path):
    """A report with two of five columns drifted, published to stores of its own."""
    reference = _window(rng, 300)
    current = _shuffled(rng, reference)
    current["amount"] *= 4
    current["region"] = 1 + current["region"] % 3
    snapshot = _build(learner, reference, current)
    uri = new_store(tmp_path)
    new_experiment(uri, tmp_path)
    published = _publish(learner, snapshot, tmp_path, uri, folder="march")
    return snapshot, published, MlflowClient(uri), uri


def _run(client: MlflowClient, published: Any):
    run_id = str(plain(published.run_id))
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        fail(
            observed=f"run_id {run_id!r}, of which the tracking store says: {str(error)[:150]}",
            expected="the id of a run in the store at tracking_uri",
            why="Whoever reads the result looks the run up by its id.",
            hint="log",
        )


def _content(snapshot: Any) -> dict:
    return json.loads(snapshot.json())


def _scores(content: dict) -> dict[str, float]:
    return {
        m["config"]["column"]: m["value"]
        for m in content["metrics"]
        if m["config"]["type"].endswith("ValueDrift")
    }


def _counted(content: dict) -> dict[str, float]:
    found = [m["value"] for m in content["metrics"] if m["config"]["type"].endswith("ColumnsCount")]
    expect_equal(
        len(found),
        1,
        what="DriftedColumnsCount metrics in the report",
        why="Its share is the report's one figure.",
        hint="columns",
    )
    return found[0]


def _tests(content: dict) -> tuple[dict[str, str], list[str]]:
    columns, share = {}, []
    for test in content["tests"]:
        column = test["metric_config"]["params"].get("column")
        if column is None:
            share.append(test["status"])
        else:
            columns[column] = test["status"]
    return columns, share


def _values(column: pd.Series, numeric: bool) -> pd.Series:
    return (column.replace([np.inf, -np.inf], np.nan) if numeric else column).dropna()


def _score(reference: pd.Series, current: pd.Series, numeric: bool, small: bool) -> float:
    """What Evidently's method of that kind should say, by SciPy alone."""
    old, new = _values(reference, numeric), _values(current, numeric)
    if numeric and small:
        return float(stats.ks_2samp(old, new).pvalue)
    if numeric:
        return float(stats.wasserstein_distance(old, new) / max(np.std(old), 0.001))
    keys = sorted(set(old) | set(new), key=str)
    counts = np.array([[(window == k).sum() for k in keys] for window in (old, new)])
    if small:
        return float(stats.chi2_contingency(counts, correction=False).pvalue)
    return float(jensenshannon(counts[0] / len(old), counts[1] / len(new)))
