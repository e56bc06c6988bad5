"""Where things are in this checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LABS = ROOT / "labs"
STATE = ROOT / ".labs"
"""What the learner's own runs write: results, backups, engine logs, the MLflow store."""
