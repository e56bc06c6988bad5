"""From a file inside a wheel to the tidy frame of a domain: what is kept, renamed, derived.

Each recipe takes raw frames and returns one with a `time` column, the domain's numeric and
categorical columns and its 0/1 target, sorted by time. Nothing is imputed, balanced or shuffled.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

SERIOUS = (3, 4)
"""nassCDS injury severities: incapacitating injury, killed."""


def finance(sp500: pd.DataFrame) -> pd.DataFrame:
    """One row a trading day of 1990 to 2015, features from that day and before.

    The target looks at the next trading day: does the index move by more than one per cent?
    """
    raw = sp500.assign(time=pd.to_datetime(sp500["date"])).sort_values("time", ignore_index=True)
    log_close = np.log(raw["close"])
    daily = log_close.diff() * 100
    frame = pd.DataFrame(
        {
            "time": raw["time"],
            "return_1d": daily,
            "return_5d": log_close.diff(5) * 100,
            "volatility_5d": daily.rolling(5).std(),
            "volatility_20d": daily.rolling(20).std(),
            "range_1d": (raw["high"] - raw["low"]) / raw["close"] * 100,
            "volume_ratio": raw["volume"] / raw["volume"].rolling(20).mean(),
            "drawdown_250d": (raw["close"] / raw["close"].rolling(250).max() - 1) * 100,
            "weekday": raw["time"].dt.day_name(),
            "trend": np.where(log_close.diff(20) > 0, "up", "down"),
            "big_move": (daily.shift(-1).abs() > 1).astype("int64"),
        }
    )
    return frame[raw["time"].dt.year >= 1990].iloc[:-1]


def healthcare(crashes: pd.DataFrame) -> pd.DataFrame:
    """One row a front-seat occupant in a tow-away crash; the year is all that is known of time.

    The target is a serious injury: incapacitated or killed. Occupants of unknown severity and
    those who died before the crash are left out.
    """
    raw = crashes[crashes["injSeverity"].isin([0, 1, 2, *SERIOUS])]
    frame = pd.DataFrame(
        {
            "time": pd.to_datetime(raw["yearacc"].astype(str) + "-01-01"),
            "age": raw["ageOFocc"].astype("float64"),
            "vehicle_year": raw["yearVeh"],
            "vehicle_age": raw["yearacc"] - raw["yearVeh"],
            "impact_kmh": raw["dvcat"].str.replace("km/h", ""),
            "airbag": raw["airbag"],
            "seatbelt": raw["seatbelt"],
            "frontal": np.where(raw["frontal"] == 1, "yes", "no"),
            "sex": raw["sex"],
            "role": raw["occRole"],
            "serious_injury": raw["injSeverity"].isin(SERIOUS).astype("int64"),
        }
    )
    return frame.sort_values("time", kind="stable")


def climate(storms: pd.DataFrame) -> pd.DataFrame:
    """One row a six-hourly position of an Atlantic storm of 1979 to 2022.

    The target looks 24 hours ahead: is the sustained wind at least 10 knots stronger? Positions
    with no record 24 hours later are left out. Changes and heading over the last 12 hours are
    missing where the storm is younger than that.
    """
    time = pd.to_datetime(storms[["year", "month", "day", "hour"]])
    raw = storms.assign(time=time, storm=storms["name"] + " " + storms["year"].astype(str))
    raw = raw[raw["hour"].isin([0, 6, 12, 18]) & (raw["year"] >= 1979)]
    raw = raw.drop_duplicates(["storm", "time"])

    def at(hours: int) -> pd.DataFrame:
        shifted = raw[["storm", "time", "wind", "pressure", "lat", "long"]].copy()
        shifted["time"] = shifted["time"] - pd.Timedelta(hours=hours)
        return raw[["storm", "time"]].merge(shifted, on=["storm", "time"], how="left")

    raw = raw.reset_index(drop=True)
    later, earlier = at(24), at(-12)
    bearing = np.degrees(np.arctan2(raw["long"] - earlier["long"], raw["lat"] - earlier["lat"]))
    sector = np.array(["north", "east", "south", "west"], dtype=object)[
        (np.floor((bearing.fillna(0) + 45) / 90).astype(int) % 4).to_numpy()
    ]
    frame = pd.DataFrame(
        {
            "time": raw["time"],
            "latitude": raw["lat"],
            "longitude": raw["long"],
            "wind_kn": raw["wind"].astype("float64"),
            "pressure_mb": raw["pressure"].astype("float64"),
            "wind_change_12h": raw["wind"] - earlier["wind"],
            "pressure_change_12h": raw["pressure"] - earlier["pressure"],
            "status": raw["status"],
            "heading": pd.Series(sector, index=raw.index).where(bearing.notna()),
            "hour_utc": raw["hour"].map("{:02d}".format),
            "intensifies": (later["wind"] - raw["wind"] >= 10).astype("int64"),
        }
    )
    return frame[later["wind"].notna()].sort_values("time", kind="stable")


def control(reference: pd.DataFrame, analysis: pd.DataFrame, targets: pd.DataFrame) -> pd.DataFrame:
    """One row a resident of Massachusetts, 2015 to 2018, with a model's prediction for each."""
    raw = pd.concat([reference, analysis.merge(targets, on="id")], ignore_index=True)
    names = [c for c, kind in reference.dtypes.items() if isinstance(kind, pd.CategoricalDtype)]
    frame = pd.DataFrame({"time": pd.to_datetime(raw["year"].astype(str) + "-01-01")})
    frame["age"] = raw["AGEP"].astype("float64")
    for name in names:
        frame[name.lower()] = raw[name].astype(str)
    frame["employed"] = raw["employed"].astype("int64")
    frame["prediction"] = raw["prediction"].astype("int64")
    frame["predicted_probability"] = raw["predicted_probability"].astype("float64")
    return frame.sort_values("time", kind="stable")
