"""`make reset-lab-N`: the starter as it was, with a dated copy of what it replaces."""

from __future__ import annotations

import shutil
from datetime import datetime

from rich.console import Console

from shared.errors import UserError
from shared.grading.lab import load_lab
from shared.grading.results import write_atomically
from shared.grading.starters import derive
from shared.paths import ROOT, STATE


def reset_lab(console: Console, lab_number: str, task_id: str) -> None:
    """Put the lab's starter files back, or only one task's.

    Files that the starter does not have are left alone. Nothing is overwritten before its copy
    is on disk.
    """
    lab = load_lab(lab_number)
    pristine = derive(lab)
    if task_id:
        file = lab.task(task_id).file
        pristine = {file: pristine[file]}
    folder = lab.folder / "starter"
    folder.mkdir(exist_ok=True)
    changed = [
        name
        for name, text in pristine.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]
    if not changed:
        console.print(f"Nothing to reset: lab {lab.number}'s starter is as it was.")
        return
    stamp = datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S")
    backup = STATE / "backups" / lab.folder.name / stamp
    try:
        backup.mkdir(parents=True)
        for name in changed:
            if (folder / name).is_file():
                shutil.copy2(folder / name, backup / name)
    except OSError as error:
        raise UserError(
            f"Your files could not be copied ({error}), so nothing was reset."
        ) from error
    for name in changed:
        write_atomically(folder / name, pristine[name])
    console.print(f"Reset {', '.join(changed)}.", markup=False)
    console.print(f"What was there is in {backup.relative_to(ROOT)}.", markup=False)
