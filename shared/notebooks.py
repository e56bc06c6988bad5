"""`make notebooks`: run the guided notebooks offline and keep their plots.

A notebook is written as a Python file (jupytext's percent format, so that a diff can be read);
the `.ipynb` beside it holds the same cells with their outputs.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from shared.errors import UserError
from shared.grading.check import build_environments
from shared.grading.lab import load_lab
from shared.paths import ROOT

FOLDER = ROOT / "notebooks"
_CELL_LIMIT = 300


def run_notebooks(console: Console, only: str = "") -> int:
    """Run every notebook, or one lab's; 0 when all ran through.

    Raises:
        UserError: there is none of that lab, or what it needs could not be installed.
    """
    sources = sorted(FOLDER.glob(f"lab_{only or '*'}_*.py"))
    if not sources:
        known = ", ".join(p.stem for p in sorted(FOLDER.glob("lab_*.py")))
        raise UserError(f"There is no notebook for lab {only}. There are: {known}.")
    failed = 0
    for source in sources:
        build_environments(load_lab(source.stem.split("_")[1]), None)
        started = time.perf_counter()
        with console.status(f"running {source.name} …"):
            trouble = run_notebook(source, source.with_suffix(".ipynb"))
        seconds = time.perf_counter() - started
        if trouble:
            failed += 1
            console.print(f" [red]✘[/] {source.stem}  {seconds:.0f} s")
            console.print(trouble, markup=False)
        else:
            console.print(f" [green]✔[/] {source.stem}  {seconds:.0f} s")
    return 1 if failed else 0


def run_notebook(source: Path, keep_in: Path) -> str:
    """Run one notebook and write it with its outputs; the error's text, empty if it ran through.

    The outputs are kept only when all cells ran.
    """
    import jupytext
    import nbclient
    import nbformat

    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    client = nbclient.NotebookClient(
        notebook,
        timeout=_CELL_LIMIT,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        return str(error)
    for cell in notebook.cells:
        # Run times differ at every run; without them a diff shows what changed.
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, keep_in)
    return ""
