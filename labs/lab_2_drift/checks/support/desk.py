"""A credit desk: made-up rows in time, in the shape of a domain's data.

Score and trouble hang together, later less so: whoever judges a model on early rows, or on rows
of all years mixed, gets another figure than whoever judges it on the later ones.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shared.domains.tabular import Provenance, TabularData

YEARS = (2018, 2022, 2024)
"""Reference from the first to the second; two later windows of a year each."""


def desk(rng: np.random.Generator, rows: int = 2400) -> TabularData:
    """Rows of 2018 to 2023. `customer_id` and `dunning_letters` are columns but no features.

    The letters are written after the outcome: who learns from them has learned the answer.
    """
    start, end = (pd.Timestamp(year=y, month=1, day=1) for y in (YEARS[0], YEARS[2]))
    seconds = np.sort(rng.integers(0, int((end - start).total_seconds()), rows))
    time = start + pd.to_timedelta(seconds, unit="s")
    late = np.asarray(time >= pd.Timestamp(year=YEARS[1], month=1, day=1))
    income = rng.lognormal(1.0, 0.5, rows) * np.where(late, 1.4, 1.0)
    debt = rng.normal(0, 1, rows) + 0.8 * late
    channel = np.where(
        late & (rng.random(rows) < 0.3), "app", rng.choice(["branch", "phone"], rows)
    )
    strength = np.where(late, 0.9, 2.5)
    logit = -0.3 + strength * debt - 0.5 * np.log(income) + 0.6 * (channel == "phone")
    trouble = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype("int64")
    frame = pd.DataFrame(
        {
            "time": time,
            "customer_id": rng.permutation(rows),
            "income": income,
            "debt": np.where(rng.random(rows) < 0.08, np.nan, debt),
            "channel": pd.Series(channel, dtype="str"),
            "dunning_letters": trouble * rng.integers(1, 4, rows),
            "default": trouble,
        }
    )
    return TabularData(
        domain="finance",
        name="a made-up credit desk",
        question="Does the customer default?",
        frame=frame,
        time="time",
        target="default",
        numeric=("income", "debt"),
        categorical=("channel",),
        reference=(_january(YEARS[0]), _january(YEARS[1])),
        current=tuple((str(y), _january(y), _january(y + 1)) for y in range(YEARS[1], YEARS[2])),
        provenance=Provenance("none", "0", "", {}, "none", "none", "", "drawn by this check"),
        drift="from 2022 on debt says less about default, and a third channel appears",
    )


def _january(year: int) -> pd.Timestamp:
    return pd.Timestamp(year=year, month=1, day=1)
