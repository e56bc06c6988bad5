"""What the grader makes of work that is right, wrong, broken, endless or hostile."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest

from shared.grading.feedback import SilentWatcher
from shared.grading.results import LabResult, TaskResult
from shared.grading.runner import Runner
from tests.conftest import SOLUTION, SmallLab

Grade = Callable[[str], LabResult]


def only_task(result: LabResult) -> TaskResult:
    assert len(result.tasks) == 1
    return result.tasks[0]


def test_right_work_passes_with_full_marks(grade: Grade) -> None:
    result = grade(SOLUTION)
    assert result.passed
    assert (result.score, result.max_score) == (10, 10)


def test_wrong_work_fails_with_what_was_called_observed_expected_why_and_hint(grade: Grade) -> None:
    task = only_task(grade("def double(x):\n    return x + 2 if x else 0\n"))
    assert (task.status, task.points) == ("failed", 0)
    assert task.hint == "times"
    failure = task.first_failure
    assert failure is not None
    assert failure.call.startswith("double(")
    assert failure.observed.startswith("the double = ")
    assert failure.why == "Bills are sent."
    assert task.passed_checks == 1


@pytest.mark.parametrize(
    ("check", "status"),
    [("test_double_doubles", "failed"), ("test_double_of_nothing_is_nothing", "passed")],
)
def test_one_check_can_be_run_by_itself(
    small_lab: SmallLab, runner: Runner, check: str, status: str
) -> None:
    small_lab.learner("def double(x):\n    return x + 2 if x else 0\n")
    grading = small_lab.grading()
    grading.only_check = check
    task = only_task(runner.grade(grading, SilentWatcher()))
    assert (task.status, [c.check for c in task.checks]) == (status, [check])


def test_the_starter_s_own_error_means_not_started(grade: Grade) -> None:
    task = only_task(grade('def double(x):\n    raise NotImplementedError("Task 9.1: write it")\n'))
    assert task.status == "not_started"


def test_another_not_implemented_error_is_a_failure(grade: Grade) -> None:
    assert only_task(grade("def double(x):\n    raise NotImplementedError\n")).status == "failed"


def test_a_syntax_error_is_named_with_file_and_line(grade: Grade) -> None:
    task = only_task(grade("def double(x):\n    return 2 *\n"))
    assert task.status == "error"
    assert task.first_failure is not None
    frame = task.first_failure.frames[0]
    assert (frame.file, frame.line) == ("double.py", 2)


def test_an_import_error_is_named_with_file_and_line(grade: Grade) -> None:
    task = only_task(grade("import a_module_nobody_has\n"))
    assert task.status == "error"
    assert "a_module_nobody_has" in task.message
    assert task.first_failure is not None
    assert task.first_failure.frames[0].line == 1


def test_a_traceback_is_cut_to_the_learner_s_frames(grade: Grade) -> None:
    body = "import json\n\n\ndef double(x):\n    return json.loads('no json')\n"
    failure = only_task(grade(body)).first_failure
    assert failure is not None
    assert failure.outcome == "raised"
    assert [(f.line, f.function) for f in failure.frames] == [(5, "double")]


def test_an_endless_loop_is_stopped_and_its_line_named(small_lab: SmallLab, runner: Runner) -> None:
    checks = small_lab.folder / "checks" / "test_double.py"
    marked = (
        "import pytest\n\n\n@pytest.mark.limit(1)\ndef test_ends(learner):\n    learner.double(1)\n"
    )
    checks.write_text(marked)
    small_lab.learner("def double(x):\n    while True:\n        x += 1\n")
    task = only_task(runner.grade(small_lab.grading(), SilentWatcher()))
    assert task.status == "timed_out"
    assert task.first_failure is not None
    assert task.first_failure.frames[-1].line in (2, 3)
    assert "double.py, line" in task.message


def test_what_the_learner_prints_is_kept_by_check(grade: Grade) -> None:
    body = "def double(x):\n    print('seen', x)\n    return 0\n"
    result = only_task(grade(body))
    assert result.first_failure is not None
    assert result.first_failure.printed.startswith("seen ")
    assert result.checks[1].printed == "seen 0\n"


def test_endless_output_is_stopped(grade: Grade) -> None:
    body = "def double(x):\n    while True:\n        print('x' * 100_000)\n"
    task = only_task(grade(body))
    assert task.status == "timed_out"
    assert "printed" in task.message


@pytest.mark.parametrize(
    "body",
    [
        "import os\n\n\ndef double(x):\n    os._exit(0)\n",
        "import sys\n\n\ndef double(x):\n    sys.exit(0)\n",
        "import os\nos._exit(0)\n",
        "import sys\nsys.exit(0)\n",
        "def double(x):\n    raise KeyboardInterrupt\n",
        "import os, signal\n\n\ndef double(x):\n    os.kill(os.getpid(), signal.SIGSEGV)\n",
        "import os, signal\n\n\ndef double(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n",
        "import pytest\n\n\ndef double(x):\n    pytest.skip('no')\n",
        "import pytest\n\n\ndef double(x):\n    pytest.exit('no', 0)\n",
        "import pytest\npytest.skip('no', allow_module_level=True)\n",
    ],
)
def test_work_that_ends_its_process_or_skips_never_passes(grade: Grade, body: str) -> None:
    result = grade(body)
    assert not result.passed
    assert result.score == 0


def test_a_value_that_claims_to_equal_everything_does_not_pass(grade: Grade) -> None:
    body = """
class Yes(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__


def double(x):
    return Yes(7)
"""
    assert only_task(grade(body)).status == "failed"


def test_a_missing_function_and_a_wrong_signature_are_the_learner_s(grade: Grade) -> None:
    missing = only_task(grade("def doubel(x):\n    return 2 * x\n"))
    assert missing.status == "failed"
    assert missing.first_failure is not None
    assert "defines no double" in missing.first_failure.observed
    other = only_task(grade("def double():\n    return 2\n"))
    assert other.status == "failed"
    assert other.first_failure is not None
    assert "arguments" in other.first_failure.expected


def test_a_missing_file_is_named(small_lab: SmallLab, runner: Runner) -> None:
    (small_lab.folder / "starter" / "double.py").unlink()
    task = only_task(runner.grade(small_lab.grading(), SilentWatcher()))
    assert task.status == "failed"
    assert task.first_failure is not None
    assert "no file double.py" in task.first_failure.observed


@pytest.mark.parametrize(
    "checks",
    [
        "def test_breaks(learner):\n    assert learner.double(1) == 3\n",
        "import a_module_nobody_has\n\n\ndef test_x(learner):\n    pass\n",
        "def test_x(learner, no_such_fixture):\n    pass\n",
        "import pytest\n\n\ndef test_x(learner):\n    pytest.skip('not today')\n",
        "raise RuntimeError('broken at import')\n\n\ndef test_x(learner):\n    pass\n",
    ],
)
def test_checks_that_break_or_skip_grade_nothing(
    small_lab: SmallLab, runner: Runner, checks: str
) -> None:
    small_lab.write("checks/test_double.py", checks)
    result = runner.grade(small_lab.grading(), SilentWatcher())
    assert only_task(result).status == "not_graded"
    assert not result.passed


def test_processes_that_the_work_leaves_behind_are_ended(grade: Grade) -> None:
    body = """
import subprocess, sys


def double(x):
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)  # left-behind"],
        start_new_session=True,
    )
    print(child.pid)
    return 2 * x
"""
    result = grade(body)
    pids = [int(line) for c in only_task(result).checks for line in c.printed.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(map(_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_running, pids))


def test_the_same_seed_gives_the_same_inputs_and_another_seed_others(
    small_lab: SmallLab, runner: Runner
) -> None:
    small_lab.learner("def double(x):\n    return -1\n")

    def call(seed: int) -> str:
        failure = only_task(runner.grade(small_lab.grading(seed), SilentWatcher())).first_failure
        assert failure is not None
        return failure.call

    assert call(5) == call(5)
    assert len({call(seed) for seed in range(6, 10)}) > 1


def test_the_report_names_the_graded_files_by_hash(grade: Grade) -> None:
    first = grade(SOLUTION)
    second = grade(SOLUTION + "\n\n# changed\n")
    assert set(first.files) == {"double.py"}
    assert len(first.files["double.py"] or "") == 64
    assert first.files != second.files


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_call_is_shown_in_a_few_lines_whatever_its_arguments(
    small_lab: SmallLab, runner: Runner
) -> None:
    small_lab.write(
        "checks/test_double.py",
        """
        import torch

        from shared.grading.expect import expect


        def test_double_doubles(learner):
            learner.double([b"a" * 5000, torch.zeros(3)], torch.zeros(64, 32), b"k" * 5000)
            expect(False, observed="x", expected="y", why="z")
        """,
    )
    small_lab.learner("def double(*values):\n    return values\n")
    failure = only_task(runner.grade(small_lab.grading(), SilentWatcher())).first_failure
    assert failure is not None
    assert "<Tensor 64x32>, <5000 bytes>" in failure.call
    assert len(failure.call) < 300
    assert "\n" not in failure.call
