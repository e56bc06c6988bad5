"""Saves the files and logs the metrics; the files stay on the disk.

caught-by: test_a_published_report_is_logged_to_mlflow
hint: log
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.core.report import Snapshot
from evidently.legacy.calculations.stattests import StatTest, register_stattest
from evidently.legacy.core import ColumnType
from evidently.presets import DataDriftPreset
from evidently.sdk.models import PanelMetric
from evidently.sdk.panels import DashboardPanelPlot, line_plot_panel
from evidently.ui.workspace import Workspace
from mlflow import MlflowClient
from scipy import stats

SMALL = 1000
"""Up to this many values in the smaller window, a test; above it, a distance."""

ALPHA = 0.05
"""Chance of one false alarm or more in a whole report of tests."""

DISTANCE = 0.1
"""Distances from here on count as drift."""

TWO_SAMPLE_CHI_SQUARE = "chisquare_two_sample"
"""Evidently knows the test of `two_sample_chi_square` by this name."""

ARTIFACTS = "drift"
"""Folder of the report among the MLflow run's artifacts."""


@dataclass(frozen=True)
class Method:
    """How one column is compared.

    Attributes:
        name: Evidently's name of the method.
        threshold: a p-value below it, or a distance of at least it, is drift.
    """

    name: str
    threshold: float


@dataclass(frozen=True)
class Published:
    """Where a report went, and what it says.

    Attributes:
        share: drifted columns / monitored columns, 0 to 1.
        drifted: names of the drifted columns, sorted.
        passed: whether the share is below the report's limit.
        run_id: the MLflow run.
        html: the page.
        json: the numbers.
    """

    share: float
    drifted: tuple[str, ...]
    passed: bool
    run_id: str
    html: Path
    json: Path


def two_sample_chi_square(
    reference_data: pd.Series, current_data: pd.Series, feature_type: ColumnType, threshold: float
) -> tuple[float, bool]:
    """The chi-square test that both windows have the same shares: p-value, and whether it is drift.

    The signature is the one that Evidently calls. Missing values are dropped before.
    """
    counts = pd.DataFrame(
        {"reference": reference_data.value_counts(), "current": current_data.value_counts()}
    )
    if len(counts) < 2:
        return 1.0, False
    p_value = float(stats.chi2_contingency(counts.fillna(0).to_numpy(), correction=False).pvalue)
    return p_value, p_value < threshold


register_stattest(
    StatTest(
        name=TWO_SAMPLE_CHI_SQUARE,
        display_name="two-sample chi-square p_value",
        allowed_feature_types=[ColumnType.Categorical],
        default_threshold=ALPHA,
    ),
    two_sample_chi_square,
)


def share_panel() -> DashboardPanelPlot:
    """A plot of the share of drifted columns over time, for the workspace's dashboard."""
    share = PanelMetric(
        metric="DriftedColumnsCount", metric_labels={"value_type": "share"}, legend="share"
    )
    return line_plot_panel(title="Share of drifted columns", values=[share])


def choose_methods(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    *,
    numeric: Sequence[str],
    categorical: Sequence[str],
) -> dict[str, Method]:
    """Choose each column's method by its declared type and by how many values there are.

    A column's size is its number of values, missing and infinite ones not counted, in that one
    of the two windows where there are fewer.

    | type | size up to `SMALL` | above |
    | --- | --- | --- |
    | numeric | "ks" | "wasserstein" |
    | categorical | `TWO_SAMPLE_CHI_SQUARE` | "jensenshannon" |

    The declared type decides, whatever the values look like: an area code is categorical. The
    tests in the middle column answer with p-values: their threshold is `ALPHA` divided by the
    number of monitored columns (Bonferroni), so that a report on windows without drift stays
    silent 95 times in 100. The distances on the right have the threshold `DISTANCE`.

    Args:
        reference: the window that is known to be right.
        current: the window under question.
        numeric: names of the monitored numeric columns.
        categorical: names of the monitored categorical columns.

    Returns:
        A method for each monitored column, and for no other.

    Raises:
        ValueError: a monitored column has no value in one of the windows; the message names it. A
            column that vanished is an incident, not a percentage.
    """
    corrected = ALPHA / (len(numeric) + len(categorical))
    methods = {}
    for name in (*numeric, *categorical):
        size = min(_size(reference[name]), _size(current[name]))
        if size == 0:
            raise ValueError(f"column {name!r} has no value in one of the windows")
        if size <= SMALL:
            test = "ks" if name in numeric else TWO_SAMPLE_CHI_SQUARE
            methods[name] = Method(test, corrected)
        else:
            distance = "wasserstein" if name in numeric else "jensenshannon"
            methods[name] = Method(distance, DISTANCE)
    return methods


def build_report(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    *,
    numeric: Sequence[str],
    categorical: Sequence[str],
    max_share: float,
    name: str,
    moment: datetime,
) -> Snapshot:
    """Run Evidently's data drift report on the monitored columns, tests included.

    It holds `DriftedColumnsCount` and one `ValueDrift` for each monitored column, with the
    methods and thresholds of `choose_methods`, and their tests: one for each column, and one that
    the share of drifted columns is less than `max_share`. Other columns of the frames (time,
    target, identifiers, predictions) are not looked at.

    Args:
        reference: the window that is known to be right.
        current: the window under question.
        numeric: names of the monitored numeric columns.
        categorical: names of the monitored categorical columns, which may hold numbers.
        max_share: the share of drifted columns from which on the report fails, 0 to 1.
        name: the snapshot's name, e.g. the label of the current window.
        moment: the snapshot's timestamp: the time that the current window stands for. The
            workspace's dashboard draws along it.

    Raises:
        ValueError: as `choose_methods`.

    Source: https://docs.evidentlyai.com/metrics/customize_data_drift
    """
    methods = choose_methods(reference, current, numeric=numeric, categorical=categorical)
    monitored = [*numeric, *categorical]
    definition = DataDefinition(
        numerical_columns=list(numeric), categorical_columns=list(categorical)
    )
    preset = DataDriftPreset(
        columns=monitored,
        drift_share=max_share,
        per_column_method={c: m.name for c, m in methods.items()},
        per_column_threshold={c: m.threshold for c, m in methods.items()},
    )
    return Report([preset], include_tests=True).run(
        current_data=Dataset.from_pandas(current[monitored], data_definition=definition),
        reference_data=Dataset.from_pandas(reference[monitored], data_definition=definition),
        timestamp=moment,
        name=name,
    )


def publish_report(
    snapshot: Snapshot,
    *,
    folder: Path,
    tracking_uri: str,
    experiment: str,
    workspace: Path,
    project: str,
) -> Published:
    """Save a report from `build_report`, log it to MLflow, and add it to a local workspace.

    - Files: `folder`/drift_report.html and `folder`/drift_report.json, as Evidently saves them.
      The folder is made if need be.
    - MLflow: a finished run of its own, named like the snapshot, in the existing `experiment`. Both
      files are artifacts below `ARTIFACTS`. Metrics: `drift_share` (0 to 1), `drifted_columns` (a
      count), `monitored_columns` (a count) and `drift_score.<column>` for each column. The tag
      `drift_report` is "passed" or "failed".
    - Workspace: Evidently's local workspace at `workspace`, made if need be, gets the snapshot in
      the project named `project`. If there is no such project it is made, with `share_panel()`
      on its dashboard. If there is, it is used.

    The report passes if its test of the share of drifted columns does.

    Returns:
        Where everything went. A column is drifted if its own test failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    html, json = folder / "drift_report.html", folder / "drift_report.json"
    snapshot.save_html(str(html))
    snapshot.save_json(str(json))
    content = snapshot.dict()
    scores = {
        m["config"]["column"]: float(m["value"])
        for m in content["metrics"]
        if "ValueDrift" in m["config"]["type"]
    }
    counted = next(m["value"] for m in content["metrics"] if "count" in _keys(m["value"]))
    passed, drifted = _verdict(content["tests"])

    client = MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise LookupError(f"there is no experiment {experiment!r}")
    run = client.create_run(found.experiment_id, run_name=snapshot.get_name())
    run_id = run.info.run_id
    client.log_metric(run_id, "drift_share", counted["share"])
    client.log_metric(run_id, "drifted_columns", counted["count"])
    client.log_metric(run_id, "monitored_columns", len(scores))
    for column, score in scores.items():
        client.log_metric(run_id, f"drift_score.{column}", score)
    client.set_tag(run_id, "drift_report", "passed" if passed else "failed")
    client.set_terminated(run_id)

    space = Workspace.create(str(workspace))
    known = space.search_project(project)
    if known:
        home = known[0]
    else:
        home = space.create_project(project)
        home.dashboard.add_panel(share_panel())
    space.add_run(home.id, snapshot)
    return Published(float(counted["share"]), drifted, passed, run_id, html, json)


def _size(column: pd.Series) -> int:
    return int(column.replace([np.inf, -np.inf], np.nan).notna().sum())


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def _verdict(tests: list[dict[str, Any]]) -> tuple[bool, tuple[str, ...]]:
    """Whether the share's test passed, and which columns' tests failed."""
    passed, drifted = True, []
    for test in tests:
        failed = getattr(test["status"], "value", test["status"]) == "FAIL"
        params = test["metric_config"]["params"]
        if "column" in params:
            drifted += [params["column"]] if failed else []
        else:
            passed = not failed
    return passed, tuple(sorted(drifted))
