"""Runs a suite, a file of tests, under pytest against many assistants at once.

A suite sees an assistant through `Shielded`, which answers and gives nothing else away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from deepeval.test_run import global_test_run_manager

from shared.assistant.assistant import Answer, Answering
from shared.assistant.disguises import FAULTS
from shared.assistant.records import Document
from shared.grading.starters import NOT_STARTED

TESTS: Mapping[str, str] = dict(
    zip(
        FAULTS,
        (
            "test_says_only_what_the_documents_say",
            "test_tells_no_record",
            "test_obeys_nobody_but_the_desk",
            "test_answers_what_the_documents_answer",
            "test_answers_from_documents_in_force",
            "test_cites_what_holds_the_answer",
            "test_keeps_to_the_question",
        ),
        strict=True,
    )
)
"""The test that is there for each fault."""


# By its module's name: `deepeval.evaluate.evaluate` is a function.
_EVALUATE: Any = import_module("deepeval.evaluate.evaluate")


class BudgetSpent(RuntimeError):
    """A suite asked more different questions than the desk allows."""


class Shielded:
    """An assistant that can be asked; who is behind it cannot be seen.

    `ask` counts different questions in `spent`; what was asked before is remembered.
    """

    __slots__ = ("ask", "given")

    def __init__(self, system: Answering, budget: int, spent: Counter[str]) -> None:
        answers: dict[str, Answer] = {}
        others: dict[tuple[Document, ...], Shielded] = {(): self}

        def ask(question: str) -> Answer:
            if question not in answers:
                if spent.total() >= budget:
                    raise BudgetSpent(f"more than {budget} different questions were asked")
                spent[question] += 1
                answers[question] = replace(system.ask(question), model="assistant", seconds=0.0)
            return answers[question]

        def given(*documents: Document) -> Shielded:
            if documents not in others:
                planted: Any = system
                others[documents] = Shielded(planted.given(*documents), budget, spent)
            return others[documents]

        self.ask: Callable[[str], Answer] = ask
        self.given: Callable[..., Shielded] = given


@dataclass
class Outcome:
    """What one test said about one assistant.

    Attributes:
        asserted: calls of DeepEval's `assert_test`.
        error: what ended it; None where it passed.
    """

    asserted: int = 0
    error: BaseException | None = None

    @property
    def stopped(self) -> bool:
        """An assertion failed; anything else that ends a test is a crash."""
        return isinstance(self.error, AssertionError)

    @property
    def crashed(self) -> bool:
        return self.error is not None and not self.stopped


@dataclass
class SuiteRun:
    """What a suite said about one assistant: outcomes by test, and the questions it asked."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def red(self) -> list[str]:
        """The tests that failed by an assertion."""
        return [name for name, outcome in self.outcomes.items() if outcome.stopped]

    def crash(self, *tests: str) -> tuple[str, BaseException] | None:
        """The first of these tests that broke, and by what; of all tests if none is named.

        Raises:
            NotImplementedError: the first one has not been written.
        """
        for name, outcome in self.outcomes.items():
            if outcome.crashed and outcome.error is not None and name in (tests or self.outcomes):
                if str(outcome.error).startswith(NOT_STARTED):
                    raise outcome.error
                return name, outcome.error
        return None


class _Runner:
    """A pytest plugin: gives the two fixtures, once for each assistant, and keeps outcomes."""

    def __init__(self, systems: Sequence[Answering], desk: Any) -> None:
        self.systems, self.desk = systems, desk
        self.runs = [SuiteRun() for _ in systems]
        self.broken = ""
        self._shields = [
            Shielded(s, desk.budget, r.asked) for s, r in zip(systems, self.runs, strict=True)
        ]
        self._asserted = 0

    def pytest_configure(self, config: pytest.Config) -> None:
        config.option.tbstyle = "native"  # reading sources anew for each failure takes seconds

    @pytest.fixture(name="desk")
    def given_desk(self) -> Any:
        return self.desk

    @pytest.fixture(name="assistant")
    def given_assistant(self, request: pytest.FixtureRequest) -> Shielded:
        return self._shields[request.param]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "assistant" in metafunc.fixturenames:
            metafunc.parametrize("assistant", range(len(self.systems)), indirect=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = str(report.longrepr)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        yield
        spec = getattr(item, "callspec", None)
        if spec is None or "assistant" not in spec.params:
            return
        name = getattr(item, "originalname", item.name)
        run = self.runs[spec.params["assistant"]]
        outcome = run.outcomes.setdefault(name, Outcome())
        if call.when == "call":
            outcome.asserted += self._asserted
            self._asserted = 0
        if call.excinfo is not None and outcome.error is None:
            outcome.error = call.excinfo.value

    def counting(self, begins: Callable[..., None]) -> Callable[..., None]:
        """`begins`, with which each `assert_test` begins, counted."""

        def counted(*args: Any, **kwargs: Any) -> None:
            self._asserted += 1
            begins(*args, **kwargs)

        return counted


def run_suite(file: Path, systems: Sequence[Answering], desk: Any, scratch: Path) -> list[SuiteRun]:
    """Run the tests of a file against each assistant; the runs, in the order of `systems`.

    Raises:
        SuiteBroken: pytest cannot collect the file.
    """
    runner = _Runner(systems, desk)
    real = _EVALUATE.validate_assert_test_inputs
    _EVALUATE.validate_assert_test_inputs = runner.counting(real)
    try:
        status = pytest.main(_arguments(file, scratch), plugins=[runner])
    finally:
        _EVALUATE.validate_assert_test_inputs = real
        global_test_run_manager.reset()
    if runner.broken:
        raise SuiteBroken(runner.broken)
    if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERNAL_ERROR):
        raise RuntimeError(f"pytest could not run the suite: {status!r}")
    return runner.runs


class SuiteBroken(RuntimeError):
    """pytest cannot collect the file; the message is pytest's."""


def _arguments(file: Path, scratch: Path) -> list[str]:
    off = ("terminal", "cacheprovider", "faulthandler", "logging", "doctest", "junitxml")
    return [
        str(file),
        "--import-mode=importlib",
        "--noconftest",
        "--capture=no",
        "--rootdir", str(scratch),
        "--basetemp", str(scratch / "pytest"),
        "-c", str(Path(__file__).parents[4] / "shared" / "grading" / "checks.ini"),
        *(f"-pno:{name}" for name in off),
    ]  # fmt: skip
