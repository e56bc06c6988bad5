"""The learner's edition: nothing is missing that a learner needs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.assistant.assistants import labelled_assistants
from shared.assistant.material import load_golden, load_labelled, load_pii
from shared.assistant.records import DOMAINS
from shared.edition import NOT_PROVEN, PRISTINE, edition_not_proven, learners_edition
from shared.grading.feedback import SilentWatcher
from shared.grading.lab import Lab, Task, all_labs
from shared.grading.runner import Grading, Runner
from shared.grading.starters import derive
from shared.grading.target import Target, TargetError, resolve_target
from shared.paths import ROOT

LABS = all_labs()
TASKS = [(lab, task) for lab in LABS for task in lab.tasks]
each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: f"lab {lab.number}")
each_task = pytest.mark.parametrize(("lab", "task"), TASKS, ids=[t.id for _, t in TASKS])
each_domain = pytest.mark.parametrize("domain", DOMAINS)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as warm:
        yield warm


@each_task
def test_an_untouched_starter_is_graded_and_earns_nothing(
    lab: Lab, task: Task, runner: Runner
) -> None:
    grading = Grading(
        lab=lab,
        tasks=[task],
        target=Target(PRISTINE, lab.folder / PRISTINE),
        seed=1,
        domain=DOMAINS[0] if lab.domains else None,
        stop_at_first_failure=True,
    )
    result = runner.grade(grading, SilentWatcher()).tasks[0]
    assert result.status in ("not_started", "failed"), result.message
    assert result.points == 0
    if task.kind != "review":
        assert result.status == "not_started"


@each_lab
def test_every_task_has_its_starter_its_checks_and_its_page(lab: Lab) -> None:
    readme = (lab.folder / "README.md").read_text(encoding="utf-8")
    for task in lab.tasks:
        assert (lab.folder / "starter" / task.file).is_file()
        assert task.file in derive(lab)
        assert lab.expected_checks(task)
        assert f"Task {task.id}: {task.title}" in readme


@each_lab
def test_there_is_no_solution_and_that_is_said(lab: Lab) -> None:
    assert not any((lab.folder / name).exists() for name in ("solution", "variants", "drafts"))
    with pytest.raises(TargetError, match="no solutions"):
        resolve_target("solution", lab.folder)


@each_lab
def test_one_file_can_be_graded_by_its_path(lab: Lab) -> None:
    file = lab.folder / "starter" / lab.tasks[0].file
    target = resolve_target(str(file), lab.folder)
    assert target.path(file.name) == file


def test_reports_of_tasks_on_practice_data_say_so() -> None:
    edition = learners_edition()
    assert edition is not None
    told = {lab.folder.name: [t.stem for t in lab.tasks] for lab in LABS}
    for folder, tasks in edition.practice.items():
        assert set(tasks) <= set(told[folder])
    said = {t.id for lab, t in TASKS if edition_not_proven(lab, t) == [NOT_PROVEN]}
    assert len(said) == sum(map(len, edition.practice.values()))


@each_domain
def test_practice_data_are_as_many_as_open_ones_and_others(domain: str) -> None:
    for load, said in ((load_labelled, "answer"), (load_pii, "text")):
        opened, practice = (
            [getattr(row, said) for row in load(domain, split)] for split in ("open", "held_out")
        )
        assert len(opened) == len(practice) > 100
        assert not set(opened) & set(practice)
    assert {q.question for q in load_golden(domain, "held_out")} == {
        q.question for q in load_golden(domain)
    }
    assert {s.fault for s in labelled_assistants(domain, "held_out")} == {
        s.fault for s in labelled_assistants(domain, "open")
    }


def test_what_is_imported_is_there() -> None:
    missing = []
    for path in ROOT.glob("shared/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name and name.startswith("shared."):
                    base = ROOT / name.replace(".", "/")
                    if not base.with_suffix(".py").is_file() and not base.is_dir():
                        missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert not missing


def test_links_of_the_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("labs/*/*.md"), *ROOT.glob("shared/**/*.md")]
    broken = []
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            outside = "://" in link or link.startswith("mailto:")
            if not outside and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_pages_name_no_command_and_no_file_that_is_not_there() -> None:
    targets = set(re.findall(r"^([a-z-]+)[%a-z-]*:", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *ROOT.glob("labs/*/README.md"), *ROOT.glob("labs/*/lab.toml")]
    for page in (*pages, *ROOT.glob("notebooks/*.py")):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"`make ([a-z-]+?)(?:-?(?:\d|N)\b)?[ `]", text):
            assert target in targets or f"{target}-" in targets, f"{page.name}: make {target}"
        assert "TARGET=solution" not in text, page
        for script in re.findall(r"(labs/\w+/\w+\.py)", text):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"
    for page in (*ROOT.glob("*.md"), *ROOT.glob("labs/**/*.md"), *ROOT.glob("shared/**/*.md")):
        named = r"(?<![\w./-])(?:labs|shared|tests|notebooks|requirements)/[\w./*-]+"
        for path in re.findall(named, page.read_text(encoding="utf-8")):
            assert next(ROOT.glob(path.rstrip("./")), None), f"{page.name}: {path}"


@pytest.mark.parametrize("source", sorted(ROOT.glob("notebooks/*.py")), ids=lambda p: p.stem)
def test_a_notebook_runs_the_learner_s_files_and_keeps_its_plots(source: Path) -> None:
    import jupytext

    kept = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(c["cell_type"], "".join(c["source"])) for c in kept["cells"]]
    assert cells == [(c.cell_type, c.source) for c in jupytext.read(source).cells]
    assert 'WORK = "starter"' in source.read_text(encoding="utf-8")
    outputs = [o for c in kept["cells"] for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
