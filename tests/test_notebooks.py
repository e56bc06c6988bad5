"""Every lab has a guided notebook; it runs offline, and its kept outputs hold plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.grading.lab import all_labs
from shared.notebooks import FOLDER, run_notebook

SOURCES = sorted(FOLDER.glob("lab_*.py"))


def test_every_lab_has_a_notebook() -> None:
    assert [p.stem for p in SOURCES] == [lab.folder.name for lab in all_labs()]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_notebook_runs(source: Path, tmp_path: Path) -> None:
    assert run_notebook(source, tmp_path / "run.ipynb") == ""


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_kept_notebook_has_the_same_cells_and_its_plots(source: Path) -> None:
    import jupytext

    kept = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(c["cell_type"], "".join(c["source"])) for c in kept["cells"]]
    assert cells == [(c.cell_type, c.source) for c in jupytext.read(source).cells]
    outputs = [o for c in kept["cells"] for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o["output_type"] == "error" for o in outputs)
