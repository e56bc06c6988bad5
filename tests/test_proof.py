"""The grader is right: starters fail, solutions and right variants pass, wrong ones are caught.

Of the proof that `make proof` is, on the portable engine, one test a planned file: every starter,
every right variant, and for each check one wrong variant that it must catch by itself (`make
proof` tries them all, against all checks); and every solution in the other domains (in the default
one, test_whole_labs grades it). All cores work ahead in the background; each test waits for its
own file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shared.grading.jobs import usable_cores
from shared.grading.lab import Lab, all_labs
from shared.grading.proof import Plan, Verdict, plans, pristine_starter
from shared.grading.proof_page import listed, write_page
from shared.grading.proof_pool import ProofPool, Trial
from shared.grading.runner import DOMAINS
from tests.conftest import SmallLab

LABS = all_labs()
PLACEHOLDER = Path("starter")
PLANNED = [
    (lab, plan) for lab in LABS for task in lab.tasks for plan in plans(lab, task, PLACEHOLDER)
]


def trial(lab: Lab, plan: Plan, domain: str = "") -> Trial:
    """Two attempts: inputs are drawn afresh in each, and some checks are statistical.

    One miss in hundreds of runs is chance, or a busy machine; it must not be hidden either.
    """
    engine = "portable" if lab.engine != "none" else ""
    return Trial(lab, plan, domain, engine, attempts=2, alone=plan.kind == "wrong")


def one_for_each_check(planned: list[tuple[Lab, Plan]]) -> list[tuple[Lab, Plan]]:
    """Without solutions, and without wrong variants whose check has caught one before them."""
    kept, caught = [], set[tuple[str, str]]()
    for lab, plan in planned:
        check = (plan.task.id, plan.caught_by)
        if plan.kind == "solution" or (plan.kind == "wrong" and check in caught):
            continue
        if plan.kind == "wrong":
            caught.add(check)
        kept.append((lab, plan))
    return kept


TRIALS = {
    f"{plan.task.id}-{plan.kind}-{plan.name}": trial(lab, plan)
    for lab, plan in one_for_each_check(PLANNED)
}
# A task whose checks do not know of domains is the same in all of them.
TRIALS_ELSEWHERE = {
    f"{p.task.id}-{domain}": trial(lab, p, domain)
    for lab, p in PLANNED
    if lab.domains and p.kind == "solution" and "domain" in lab.check_file(p.task).read_text()
    for domain in DOMAINS[1:]
}


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[ProofPool]:
    """Works on what the selected tests will ask for, in their order."""
    named = [item.callspec.id for item in request.session.items if hasattr(item, "callspec")]
    wanted = [t for name, t in (TRIALS | TRIALS_ELSEWHERE).items() if name in set(named)]
    with ExitStack() as stack:
        starters = {lab.number: stack.enter_context(pristine_starter(lab)) for lab in LABS}
        placed = [place(t, starters[t.lab.number]) for t in wanted]
        yield stack.enter_context(ProofPool(placed, usable_cores()))


def place(trial: Trial, starter: Path) -> Trial:
    """The trial as the pool knows it; a starter is graded as derived, wherever that is."""
    return trial if trial.plan.kind != "starter" else trial.at(str(starter))


def lasting_fault(pool: ProofPool, trial: Trial) -> str:
    """What is not as planned at every attempt; a fault at one of two is a warning."""
    outcomes = pool.attempts(trial)
    faults = [f"{trial.plan.task.id} {trial.plan.name} {o.detail}" for o in outcomes if o.detail]
    if faults and outcomes[-1].verdict is Verdict.AS_PLANNED:
        warnings.warn(f"under one seed of two: {faults[0]}", stacklevel=1)
        return ""
    return "\n".join(faults)


@pytest.mark.parametrize("name", TRIALS)
def test_the_outcome_is_as_planned(pool: ProofPool, name: str) -> None:
    assert not lasting_fault(pool, TRIALS[name])


@pytest.mark.parametrize("name", TRIALS_ELSEWHERE)
def test_the_solution_passes_in_every_domain(pool: ProofPool, name: str) -> None:
    assert not lasting_fault(pool, TRIALS_ELSEWHERE[name])


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: f"lab {lab.number}")
def test_the_page_lists_every_variant_and_no_other(lab: Lab) -> None:
    variants = {
        (plan.task.id, plan.name)
        for task in lab.tasks
        for plan in plans(lab, task, PLACEHOLDER)
        if plan.kind in ("right", "wrong")
    }
    assert listed(lab) == variants, "run `make proof`, which writes labs/PROOF.md"


WRONG = '''
"""Forgets to double.

caught-by: test_double_doubles
hint: {hint}
"""


def double(x: int) -> int:
    return {returned}
'''


def test_the_matrix_tells_every_way_in_which_a_plan_can_fail(
    small_lab: SmallLab, runner: object, tmp_path: Path
) -> None:
    from shared.grading.feedback import SilentWatcher
    from shared.grading.runner import Runner

    assert isinstance(runner, Runner)

    def verdict(returned: str, hint: str = "times", kind: str = "wrong") -> Verdict:
        path = small_lab.write(
            "variants/double/wrong_one.py", WRONG.format(hint=hint, returned=returned)
        )
        planned = next(
            p for p in plans(small_lab.lab, small_lab.lab.tasks[0], tmp_path) if p.kind == "wrong"
        )
        if kind == "right":
            planned = Plan(planned.task, "right", planned.target)
        result = runner.grade(small_lab.grading(target=str(path)), SilentWatcher())
        return planned.outcome(result.tasks[0]).verdict

    assert verdict("x") is Verdict.AS_PLANNED
    assert verdict("x", hint="another") is Verdict.OTHER_HINT
    assert verdict("2 * x if x else 1") is Verdict.OTHER_CHECK
    assert verdict("2 * x") is Verdict.MISSED
    assert verdict("x", kind="right") is Verdict.REFUSED


def test_a_lab_s_part_of_the_page_is_replaced_and_the_others_stay(
    small_lab: SmallLab, tmp_path: Path
) -> None:
    from shared.grading.proof import Outcome

    page, lab = tmp_path / "PROOF.md", small_lab.lab
    small_lab.write("variants/double/wrong_one.py", WRONG.format(hint="times", returned="x"))
    tried = [(p, Outcome(Verdict.AS_PLANNED)) for p in plans(lab, lab.tasks[0], tmp_path)]
    other = lab.model_copy(update={"number": 8})
    write_page(lab, tried, page)
    write_page(other, tried, page)
    first = page.read_text()
    write_page(lab, [(p, Outcome(Verdict.MISSED, "should fail")) for p, _ in tried], page)
    assert listed(lab, page) == {("9.1", "wrong_one")}
    assert page.read_text().startswith(first[: first.index("## Lab 9")])
    assert "missed" in page.read_text()


def test_a_task_s_part_of_the_page_is_replaced_and_all_are_counted(
    small_lab: SmallLab, tmp_path: Path
) -> None:
    from shared.grading.proof import Outcome

    page = tmp_path / "PROOF.md"
    small_lab.write("variants/double/wrong_one.py", WRONG.format(hint="times", returned="x"))
    first = small_lab.lab.tasks[0]
    small_lab.lab.tasks.append(first.model_copy(update={"id": "9.2", "title": "Double again"}))

    def tried(task_id: str, verdict: Verdict) -> list[tuple[Plan, Outcome]]:
        task = small_lab.lab.task(task_id)
        return [(p, Outcome(verdict)) for p in plans(small_lab.lab, task, tmp_path)]

    both = tried("9.1", Verdict.AS_PLANNED) + tried("9.2", Verdict.AS_PLANNED)
    write_page(small_lab.lab, both, page)
    whole = page.read_text()
    assert "6 of 6 as planned: 2 of 2 wrong variants" in whole
    write_page(small_lab.lab, tried("9.2", Verdict.MISSED), page)
    text = page.read_text()
    assert "3 of 6 as planned: 1 of 2 wrong variants" in text
    assert text[text.index("### 9.1") : text.index("### 9.2")] in whole
    write_page(small_lab.lab, tried("9.2", Verdict.AS_PLANNED), page)
    assert page.read_text() == whole
