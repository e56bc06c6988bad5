"""Drift at scale (task 2.8) against the plain pandas way: rows a second and peak memory.

    .venv/bin/python labs/lab_2_drift/bench_scale.py
    .venv/bin/python labs/lab_2_drift/bench_scale.py --rows 1000000 --workers 4

The table is synthetic (generator and seed below): a reference of 1,000,000 rows and a current
window of 1, 10 and 50 million, four numeric columns with missing values and two categorical ones,
in Parquet row groups of 500,000 rows under `.labs/bench`. It is deleted afterwards; 50 million
rows take 1.8 GB of disk meanwhile. Each way runs in a fresh process, reads the same files and
computes the same statistics; the last column says how far their answers lie apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import ks_2samp

LAB = Path(__file__).resolve().parent
FOLDER = LAB.parents[1] / ".labs" / "bench"
SEED = 20_260_101
REFERENCE_ROWS = 1_000_000
ROW_GROUP = 500_000
NUMERIC = ("amount", "age", "latency_ms", "balance")
CATEGORICAL = ("channel", "country")
# Plain pandas was measured at about 150 bytes a row; the rest is for whoever else needs memory.
NAIVE_BYTES_A_ROW = 200


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1000000,10000000,50000000", help="comma-separated")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 2, 8))
    parser.add_argument("--target", default="solution", help="solution, starter or a folder")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--measure", choices=("sketch", "pandas"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.target, options.workers)
        return
    results = [
        bench(int(rows), options.workers, options.target) for rows in options.rows.split(",")
    ]
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def bench(rows: int, workers: int, target: str) -> dict[str, Any]:
    """Write the table of `rows`, measure both ways, print a line for each, delete the table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    need = (rows + REFERENCE_ROWS) * 36
    if shutil.disk_usage(FOLDER).free < 2 * need:
        raise SystemExit(f"{rows:,} rows need {need / 1e9:.1f} GB of disk in {FOLDER}, twice free.")
    try:
        write_table(FOLDER / "reference.parquet", REFERENCE_ROWS, shift=0.0, seed=SEED)
        write_table(FOLDER / "current.parquet", rows, shift=0.2, seed=SEED + 1)
        ways = {"sketch": f"summaries, {workers} workers", "pandas": "pandas, all in memory"}
        figures: dict[str, Any] = {"rows": rows, "workers": workers}
        if rows * NAIVE_BYTES_A_ROW > psutil.virtual_memory().available:
            ways.pop("pandas")
            print(
                f"{rows:>12,}  plain pandas not run: it needs about "
                f"{rows * NAIVE_BYTES_A_ROW / 1e9:.0f} GB of free memory"
            )
        for way, name in ways.items():
            figures[way] = run(way, target, workers)
            figures[way]["rows_a_second"] = (rows + REFERENCE_ROWS) / figures[way]["seconds"]
            print(
                f"{rows:>12,}  {name:<24}"
                f"{figures[way]['rows_a_second'] / 1e6:>8.2f} M rows/s"
                f"{figures[way]['seconds']:>8.1f} s"
                f"{figures[way]['cpu_seconds']:>8.1f} s of CPU"
                f"{figures[way]['peak_mb']:>9,.0f} MB peak"
                f" ({figures[way]['idle_mb']:,.0f} before the first row)",
                flush=True,
            )
        if "pandas" in figures:
            figures["apart"] = apart(figures["sketch"]["drift"], figures["pandas"]["drift"])
            print(
                f"{'':>12}  apart: PSI {figures['apart']['psi']:.5f}, KS "
                f"{figures['apart']['ks']:.5f} (bound {figures['apart']['ks_error']:.5f})"
            )
        return figures
    finally:
        for name in ("reference.parquet", "current.parquet"):
            (FOLDER / name).unlink(missing_ok=True)


def write_table(path: Path, rows: int, shift: float, seed: int) -> None:
    """Write the synthetic table, one row group at a time."""
    rng = np.random.default_rng(seed)
    writer: pq.ParquetWriter | None = None
    for start in range(0, rows, ROW_GROUP):
        size = min(ROW_GROUP, rows - start)
        latency = rng.gamma(2.0 + shift, 30.0, size)
        latency[rng.random(size) < 0.02] = np.nan
        columns = {
            "amount": rng.lognormal(3.0 + shift, 1.0, size),
            "age": np.floor(rng.normal(45.0 + 5 * shift, 14.0, size).clip(18, 95)),
            "latency_ms": latency,
            "balance": np.where(rng.random(size) < 0.4, 0.0, rng.normal(2_000, 900, size)),
            "channel": pa.array(rng.choice(np.array(["app", "branch", "web"]), size)),
            "country": pa.array(rng.choice(np.array([f"c{i:02d}" for i in range(40)]), size)),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none")
        writer.write_table(table, row_group_size=ROW_GROUP)
    if writer:
        writer.close()


def run(way: str, target: str, workers: int) -> dict[str, Any]:
    """Measure one way in a fresh process."""
    command = [sys.executable, __file__, "--measure", way, "--target", target]
    done = subprocess.run(
        [*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{way} ended with exit status {done.returncode} (-9: out of memory).")
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: str, target: str, workers: int) -> None:
    """In the fresh process: compute, and print figures as JSON."""
    reference, current = FOLDER / "reference.parquet", FOLDER / "current.parquet"
    if way == "sketch":
        folder = LAB / target if (LAB / target).is_dir() else Path(target)
        sys.path.insert(0, str(folder))
        import scale

        idle, start, busy = peak_mb(), time.perf_counter(), time.process_time()
        found = scale.drift_at_scale(
            scale.parquet_partitions(reference),
            scale.parquet_partitions(current),
            NUMERIC,
            CATEGORICAL,
            workers=workers,
        )
        drift = {name: vars(column) for name, column in found.items()}
    else:
        idle, start, busy = peak_mb(), time.perf_counter(), time.process_time()
        drift = in_memory(pd.read_parquet(reference), pd.read_parquet(current))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    figures = {"seconds": seconds, "cpu_seconds": busy, "peak_mb": peak_mb(), "idle_mb": idle}
    print(json.dumps({**figures, "drift": drift}))


def in_memory(reference: pd.DataFrame, current: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The same statistics, as one writes them for a table that fits."""
    drift = {}
    for name in NUMERIC:
        old, new = reference[name].dropna(), current[name].dropna()
        edges = np.unique(old.quantile(np.arange(1, 10) / 10))
        shares = []
        for there, side in ((old, reference[name]), (new, current[name])):
            bins = np.searchsorted(edges, there, side="right")
            counts = np.bincount(bins, minlength=len(edges) + 1)
            shares.append(np.append(counts, len(side) - len(there)) / len(side))
        drift[name] = {
            "psi": psi(*shares),
            "ks": float(ks_2samp(old, new, method="asymp").statistic),
            "reference_missing": float(reference[name].isna().mean()),
            "current_missing": float(current[name].isna().mean()),
            "current_mean": float(new.mean()),
            "current_std": float(new.std(ddof=0)),
        }
    for name in CATEGORICAL:
        old, new = (side[name].value_counts(normalize=True) for side in (reference, current))
        old, new = old.align(new, fill_value=0.0)
        drift[name] = {"psi": psi(old.to_numpy(), new.to_numpy())}
    return drift


def psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Population stability index of two sets of shares."""
    r, c = (np.where(shares == 0, 1e-4, shares) for shares in (reference, current))
    return float(np.sum((c - r) * np.log(c / r)))


def apart(sketch: dict[str, Any], pandas: dict[str, Any]) -> dict[str, float]:
    """Largest differences between the two answers."""
    return {
        "psi": max(abs(sketch[name]["psi"] - pandas[name]["psi"]) for name in pandas),
        "ks": max(abs(sketch[name]["ks"] - pandas[name]["ks"]) for name in NUMERIC),
        "ks_error": max(sketch[name]["ks_error"] for name in NUMERIC),
    }


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB of a million bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would report the parent's peak where that was larger when this one was started.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return memory.peak_wset / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
