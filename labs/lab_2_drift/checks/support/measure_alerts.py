"""Measure an alert rule on many streams: what the report shows beside the learner's figures.

    python labs/lab_2_drift/checks/support/measure_alerts.py [--rule FILE] [--streams 200] [--save]

Run from the repository's root. `--save` writes `alert_figures.json`, which belongs to the
reference solution.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np

_HERE = Path(__file__).resolve().parent
_LAB = _HERE.parent.parent
sys.path[:0] = [str(_HERE.parent), str(_LAB.parent.parent)]

from support.alerts import (  # noqa: E402
    WINDOWS_ALLOWED,
    WINDOWS_ALLOWED_ELSE,
    streams,
    watch,
)

from shared.domains.streams import KINDS, MONTHS, QUIET  # noqa: E402
from shared.domains.tabular import CONTROL, DOMAINS  # noqa: E402

_SEED = 20_240


def load(path: Path) -> ModuleType:
    """Import a rule's file by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def measure(rule: Path, domain: str, kind: str, count: int) -> dict[str, float]:
    """False alarms, or share noticed in time and mean delay, over `count` streams."""
    rng = np.random.default_rng([_SEED, DOMAINS.index(domain), (*KINDS, CONTROL).index(kind)])
    module = load(rule)
    watched = [watch(module, stream) for stream in streams(domain, kind, count, rng)]
    if kind in (*QUIET, CONTROL):
        alarms = [w.false_alarms for w in watched]
        return {
            "false_alarms_a_window": sum(alarms) / count / MONTHS,
            "streams_with_an_alarm": sum(a > 0 for a in alarms) / count,
        }
    allowed = WINDOWS_ALLOWED.get(kind, WINDOWS_ALLOWED_ELSE)
    delays = [w.delay for w in watched if w.delay is not None]
    found = {
        "noticed_in_time": sum(d < allowed for d in delays) / count,
        "mean_delay": round(float(np.mean(delays)), 3) if delays else float("nan"),
        "longest_delay": max(delays, default=-1),
    }
    if watched[0].stream.column is not None:
        found["named_first"] = sum(w.first_named == w.stream.column for w in watched) / count
    return found


def main() -> None:
    """Measure, print, and save when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rule", type=Path, default=_LAB / "solution" / "alert_rule.py")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    jobs = [(domain, kind) for domain in DOMAINS for kind in (*KINDS, CONTROL)]
    figures: dict[str, dict[str, dict[str, float]]] = {domain: {} for domain in DOMAINS}
    with ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(measure, options.rule, d, k, options.streams) for d, k in jobs]
        for (domain, kind), future in zip(jobs, futures, strict=True):
            figures[domain][kind] = future.result()
            print(f"{domain:<11} {kind:<15} {figures[domain][kind]}", flush=True)
    if options.save:
        text = json.dumps({"streams": options.streams, "figures": figures}, indent=2)
        (_HERE / "alert_figures.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
