"""A promoter in a process of its own, for the check that runs it and one of its own at once.

Called as: promoter.py FILE URI NAME CHALLENGER LOCK FOLDER. It writes FOLDER/ready when it is
set up, waits for FOLDER/go, promotes, and prints the outcome as one line of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

from registry import SlowClient


def main() -> None:
    """Load the learner's file, wait for the other process, promote."""
    file, uri, name, challenger, lock, folder = sys.argv[1:]
    # Its neighbours too, as in the grader.
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location("promotion", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["promotion"] = module
    spec.loader.exec_module(module)
    client = SlowClient(uri, uri)
    evidence = module.Evidence(rows=900, gain=0.05, low=0.02, high=0.08, confidence=0.95)
    Path(folder, "ready").touch()
    deadline = time.monotonic() + 30
    while not Path(folder, "go").exists():
        if time.monotonic() > deadline:
            sys.exit("the check never said go")
        time.sleep(0.01)
    try:
        decision = module.promote(
            client,
            name,
            champion="1",
            challenger=challenger,
            evidence=evidence,
            actor=f"job-{challenger}",
            lock_path=Path(lock),
        )
        print(json.dumps({"action": str(decision.action), "champion": str(decision.champion)}))
    except Exception as error:
        print(json.dumps({"action": f"{type(error).__name__}: {error}", "champion": None}))


if __name__ == "__main__":
    main()
