"""The make targets as a person uses them: words, messages, exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from shared.grading import hints, progress, reset
from shared.grading.check import Request, Wanted, wanted_engine
from shared.grading.feedback import ConsoleWatcher, show_result
from shared.grading.lab import load_lab
from shared.grading.process import without_bars
from shared.grading.results import LabResult
from shared.paths import ROOT
from shared.setup.bootstrap import SetupError, engine_kind
from tests.conftest import SOLUTION, SmallLab

TARGETS = (
    "setup doctor check-lab-N watch-lab-N hint-lab-N reset-lab-N progress engine-up engine-status "
    "engine-down ui review grade starters proof notebooks test bench release release-check "
    "clean"
)
OPTIONS = (
    *("TASK", "TARGET", "DOMAIN", "ENGINE", "SEED", "JSON", "LAB", "FRESH", "MODEL", "REVIEWER"),
    *("PORT", "JOBS", "SUBMISSIONS", "OUT", "LABS", "ROSTER", "LEARNER", "SANDBOX"),
)


def make(*words: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run make as a person would, without the variables of the run that tests this."""
    environment = {k: v for k, v in os.environ.items() if k not in OPTIONS}
    if home is not None:
        environment["HOME"] = str(home)
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def test_help_lists_every_target() -> None:
    text = make("help").stdout
    for target in TARGETS.split():
        assert f"  {target} " in text


def test_a_second_set_up_does_nothing() -> None:
    assert make("setup").stderr == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check-lab-99"], "There is no lab 99. The labs here: 1"),
        (["check-lab-1", "TASK=1.99"], "Lab 1 has no task 1.99. It has: 1.1"),
        (["check-lab-1", "TARGET=no/where"], "no such file or folder"),
        (["check-lab-1", "ENGINE=warp"], "it takes vllm or portable"),
        (["check-lab-1", "SEED=abc"], "it takes a whole number"),
        (["check-lab-1", "DOMAIN=sports"], "it takes finance, healthcare, climate"),
        (["hint-lab-1", "TASK=1.99"], "Lab 1 has no task 1.99"),
        (["check-lab-1", "JOBS=none"], "it takes a whole number, 1 or more"),
        (["proof", "LAB=99"], "There is no lab 99"),
        (["notebooks", "LAB=99"], "There is no notebook for lab 99"),
    ],
)
def test_unknown_words_get_one_line_that_lists_the_known(words: list[str], told: str) -> None:
    done = make(*words)
    assert done.returncode != 0
    message = " ".join(line for line in done.stderr.splitlines() if not line.startswith("make"))
    assert told in " ".join(message.split())
    assert "Traceback" not in done.stderr


def test_one_task_of_the_solution_passes_and_writes_its_json(tmp_path: Path) -> None:
    path = tmp_path / "out" / "result.json"
    done = make("check-lab-1", "TASK=1.6", "TARGET=starter", "ENGINE=portable", f"JSON={path}")
    assert done.returncode != 0
    record = json.loads(path.read_text())
    assert record["tasks"][0]["id"] == "1.6"
    assert record["score"] == 0


def test_vllm_falls_back_only_where_it_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.errors import UserError

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SetupError, match="ENGINE=portable"):
        engine_kind()
    with pytest.raises(UserError, match="no build"):
        wanted_engine("vllm", explicit=True)
    fallen = wanted_engine("vllm", explicit=False)
    assert fallen.name == "portable"
    assert "vLLM has no build" in fallen.not_proven[0]


def test_the_command_to_repeat_names_target_and_domain() -> None:
    request = Request.of("1", task="1.1", target="solution", engine="portable")
    assert request.command == "make check-lab-1 TARGET=solution"


class TestHints:
    @pytest.fixture(autouse=True)
    def _seen_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hints, "_SEEN", tmp_path / "hints.json")

    def test_each_call_gives_one_more_and_then_all_again(self) -> None:
        task = load_lab(1).tasks[0]
        texts = [_printed(lambda c: hints.next_hint(c, "1", task.id)) for _ in task.hints]
        assert len(set(texts)) == len(task.hints)
        after = _printed(lambda c: hints.next_hint(c, "1", task.id))
        assert f"all {len(task.hints)} hints" in after

    def test_the_hint_that_fits_the_last_failure_comes_first(
        self, grade: Callable[[str], LabResult], small_lab: SmallLab
    ) -> None:
        result = grade("def double(x):\n    return x + 2 if x else 0\n").tasks[0]
        task = small_lab.lab.tasks[0]
        assert hints.ordered_hints(task, result)[0].id == "times"


def test_reset_keeps_a_dated_copy_and_leaves_other_files(
    small_lab: SmallLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reset, "load_lab", lambda _: small_lab.lab)
    monkeypatch.setattr(reset, "STATE", small_lab.folder / ".labs")
    monkeypatch.setattr(reset, "ROOT", small_lab.folder)
    small_lab.learner("my work\n")
    small_lab.write("starter/notes.txt", "mine\n")
    text = _printed(lambda c: reset.reset_lab(c, "9", ""))
    assert "Reset double.py" in text
    starter = small_lab.folder / "starter"
    assert "NotImplementedError" in (starter / "double.py").read_text()
    assert (starter / "notes.txt").read_text() == "mine\n"
    copies = list((small_lab.folder / ".labs" / "backups").rglob("double.py"))
    assert [c.read_text() for c in copies] == ["my work\n"]
    assert "Nothing to reset" in _printed(lambda c: reset.reset_lab(c, "9", ""))


def test_progress_draws_every_lab() -> None:
    text = _printed(progress.show_progress)
    assert "Lab 1" in text
    assert "1.1" in text


def test_a_failure_reads_observed_expected_why_hint_and_what_to_type(
    grade: Callable[[str], LabResult], small_lab: SmallLab
) -> None:
    result = grade("def double(x):\n    print('debug')\n    return x + 2 if x else 0\n")
    text = _printed(lambda c: show_result(c, small_lab.lab, result, "make check-lab-9"))
    order = [
        "Double doubles",
        "called",
        "observed",
        "expected",
        "why",
        "your code printed",
        "debug",
        "How many times is twice?",
        "make check-lab-9 TASK=9.1",
        "make hint-lab-9 TASK=9.1",
        "0 of 10 points",
        "SEED=1",
        "double.py " + (result.files["double.py"] or "")[:12],
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_what_a_learner_s_text_holds_cannot_break_the_page(
    grade: Callable[[str], LabResult], small_lab: SmallLab
) -> None:
    result = grade("def double(x):\n    raise ValueError('[/] [bold]{x} \\x1b[2J')\n")
    text = _printed(lambda c: show_result(c, small_lab.lab, result, "make check-lab-9"))
    assert "[/] [bold]{x}" in text
    assert "\x1b[2J" not in text


def test_progress_bars_of_libraries_do_not_hide_what_a_learner_printed(
    grade: Callable[[str], LabResult], small_lab: SmallLab
) -> None:
    bar = "Loading: {0:3}%|████      | {0}/100 [00:01<00:02, 53.1it/s]"
    result = grade(
        "def double(x):\n"
        "    for i in range(0, 101):\n"
        f"        print('\\r' + {bar!r}.format(i), end='')\n"
        "    print()\n"
        "    print('mine', 40)\n"
        "    print('step 1\\rstep 2\\r\\n3it [00:00, 99.1it/s]')\n"
        "    return x + 2 if x else 0\n"
    )
    failure = result.tasks[0].first_failure
    assert failure is not None
    assert failure.printed.split("\n")[:2] == ["mine 40", "step 2"]
    text = _printed(lambda c: show_result(c, small_lab.lab, result, "make check-lab-9"))
    assert "it/s" not in text
    assert "\N{REPLACEMENT CHARACTER}" not in text


def test_text_that_only_looks_like_a_bar_is_left_alone() -> None:
    for text in ("a | b 40% | 2/5", "rows: 12 [1, 2]", "\n\nx: 1\n", "50%|", ""):
        assert without_bars(text) == text


def test_taking_bars_out_takes_no_time_whatever_is_printed() -> None:
    started = time.process_time()
    for text in ("a:" * 2**15, "1" * 2**16, "1%|" * 2**14, "\r" * 2**16, "it [" * 2**14):
        without_bars(text)
    assert time.process_time() - started < 10


def test_vllm_is_installed_only_for_tasks_that_ask_a_model_server() -> None:
    for task, engine in (("5.1", None), ("5.4", "vllm"), ("5.1,5.4", "vllm")):
        request = replace(Request.of("5", task=task, engine="portable"), engine=Wanted("vllm"))
        needed = request.environment_engine
        assert (needed.name if needed else None) == engine


def test_watching_grades_again_after_a_save_with_a_warm_process(
    small_lab: SmallLab, runner: object
) -> None:
    from shared.grading.runner import Runner

    assert isinstance(runner, Runner)
    console = Console(quiet=True)
    small_lab.learner("def double(x):\n    return 3 * x\n")
    first = runner.grade(small_lab.grading(), ConsoleWatcher(console, small_lab.lab))
    worker = runner._processes[0]._worker
    small_lab.learner(SOLUTION)
    time.sleep(0.01)
    second = runner.grade(small_lab.grading(), ConsoleWatcher(console, small_lab.lab))
    assert (first.passed, second.passed) == (False, True)
    if sys.platform == "linux":
        assert runner._processes[0]._worker is worker


def _printed(work: Callable[[Console], object]) -> str:
    console = Console(record=True, width=100, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
    work(console)
    return console.export_text()
