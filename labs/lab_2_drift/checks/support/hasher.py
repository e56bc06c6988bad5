"""Hash a frame in a process of its own. Called as: hasher.py FILE PARQUET; prints the hash."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pandas as pd


def main() -> None:
    """Load the learner's file, hash the frame, print the hash last."""
    file, parquet = sys.argv[1:]
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location("baseline", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["baseline"] = module
    spec.loader.exec_module(module)
    print("HASH", module.data_hash(pd.read_parquet(parquet)))


if __name__ == "__main__":
    main()
