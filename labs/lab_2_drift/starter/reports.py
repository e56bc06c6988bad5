"""Drift reports: Evidently compares two windows; MLflow and a local workspace keep the result.

Evidently would choose a method for each column by itself. It looks at the reference's size only,
corrects nothing for many columns, and its chi-square takes the reference's shares for exact: with
two windows of 500 rows and five categories it alarms 33 times in 100 where 5 are meant. So the
methods are chosen here, and the chi-square below is the two-sample one.
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
    raise NotImplementedError("Task 2.3: write choose_methods")


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
    raise NotImplementedError("Task 2.3: write build_report")


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
    raise NotImplementedError("Task 2.3: write publish_report")
