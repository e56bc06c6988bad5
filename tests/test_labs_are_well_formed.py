"""The author's gate: what every lab must have before anybody is graded by it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from shared.grading.lab import Lab, Task, all_labs
from shared.grading.proof import plans

LABS = all_labs()
TASKS = [(lab, task) for lab in LABS for task in lab.tasks]
each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: f"lab {lab.number}")
each_task = pytest.mark.parametrize(("lab", "task"), TASKS, ids=[t.id for _, t in TASKS])


def check_tree(lab: Lab, task: Task) -> ast.Module:
    return ast.parse(lab.check_file(task).read_text(encoding="utf-8"))


@each_lab
def test_task_ids_belong_to_the_lab_and_are_in_order(lab: Lab) -> None:
    assert [t.id for t in lab.tasks] == [f"{lab.number}.{n + 1}" for n in range(len(lab.tasks))]


@each_lab
def test_every_kind_of_task_is_there(lab: Lab) -> None:
    assert {t.kind for t in lab.tasks} == {"build", "review", "specify"}


@each_lab
def test_the_readme_has_every_task_with_its_file_and_command(lab: Lab) -> None:
    readme = (lab.folder / "README.md").read_text(encoding="utf-8")
    for task in lab.tasks:
        assert f"Task {task.id}: {task.title}" in readme
        assert task.file in readme
        assert f"make check-lab-{lab.number} TASK={task.id}" in readme


@each_task
def test_hints_have_unique_ids_and_are_more_than_two(lab: Lab, task: Task) -> None:
    ids = [h.id for h in task.hints]
    assert len(ids) == len(set(ids))
    assert len(ids) >= 3


@each_task
def test_hints_that_checks_name_exist(lab: Lab, task: Task) -> None:
    named = {
        node.value.value
        for node in ast.walk(check_tree(lab, task))
        if isinstance(node, ast.keyword)
        and node.arg == "hint"
        and isinstance(node.value, ast.Constant)
        and node.value.value is not None
    }
    assert named <= {h.id for h in task.hints}


@each_task
def test_checks_are_plain_functions_that_cannot_be_skipped_or_multiplied(
    lab: Lab, task: Task
) -> None:
    assert lab.expected_checks(task)
    names = {
        node.attr for node in ast.walk(check_tree(lab, task)) if isinstance(node, ast.Attribute)
    }
    assert not names & {"parametrize", "skip", "skipif", "xfail", "importorskip"}
    classes = [n for n in ast.walk(check_tree(lab, task)) if isinstance(n, ast.ClassDef)]
    assert not [c.name for c in classes if c.name.startswith("Test")]


@each_task
def test_a_check_s_name_is_a_sentence(lab: Lab, task: Task) -> None:
    short = [name for name in lab.expected_checks(task) if name.count("_") < 3]
    assert not short


@each_task
def test_there_is_a_right_variant_and_four_wrong_ones(lab: Lab, task: Task, tmp_path: Path) -> None:
    kinds = [p.kind for p in plans(lab, task, tmp_path)]
    assert kinds.count("right") >= 1
    assert kinds.count("wrong") >= 4


@each_task
def test_wrong_variants_name_checks_and_hints_that_exist(
    lab: Lab, task: Task, tmp_path: Path
) -> None:
    checks = lab.expected_checks(task)
    hints = {h.id for h in task.hints}
    for plan in plans(lab, task, tmp_path):
        if plan.kind == "wrong":
            assert plan.caught_by in checks, plan.name
            assert plan.hint in hints, plan.name


@each_lab
def test_no_file_is_left_that_no_task_uses(lab: Lab) -> None:
    stems = {t.stem for t in lab.tasks}
    assert {p.name for p in (lab.folder / "variants").iterdir() if p.is_dir()} <= stems
    assert {p.stem.removeprefix("test_") for p in lab.folder.glob("checks/test_*.py")} == stems
    drafts = {t.file for t in lab.tasks if t.draft}
    assert {p.name for p in lab.folder.glob("drafts/*.py")} == drafts
