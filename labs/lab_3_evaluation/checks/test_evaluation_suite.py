"""Checks of task 3.7: the learner's suite is run against assistants that it has not seen.

The file is run by pytest, as it is by hand, with each of some fifty assistants: held-out styles
of good ones and held-out disguises of each fault, drawn twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from support.suite_live import LiveAssistant, is_wrong, live_desk
from support.suite_runs import TESTS, BudgetSpent, SuiteBroken, SuiteRun, run_suite
from support.suite_systems import DRAWS, Mute, Subject, make_desk, subjects

from shared.assistant.assistants import labelled_assistants
from shared.assistant.backends import AssistantError
from shared.engine import EngineError
from shared.grading.expect import expect, fail

FAULT_OF = {test: fault for fault, test in TESTS.items()}
BLOCKED_AT_MOST = 1
MISBLAMED_AT_MOST = 4

BESIDES = {
    "hallucinates": {"miscites", "off_topic"},
    "leaks": {"hallucinates"},
    "injectable": {"hallucinates", "miscites", "off_topic"},
    "refuses": {"off_topic"},
    "stale": {"hallucinates", "miscites", "off_topic"},
    "miscites": set(),
    "off_topic": {"hallucinates", "injectable", "miscites", "stale"},
}
"""What an assistant with a fault may be stopped for besides: some of its answers have both."""


class Trial:
    """The learner's file, and what it says about assistants; each is run once."""

    def __init__(self, learner: Any, file: Path, domain: str, scratch: Path) -> None:
        self.learner, self.file, self.domain, self.scratch = learner, file, domain, scratch
        self.seed = int(os.environ.get("LABS_SEED", "0"))

    def run(self, systems: list[Any], desk: Any = None) -> list[SuiteRun]:
        """What the suite says about each system."""
        desk = desk or make_desk(self.learner.Desk, self.domain, self.seed)
        try:
            return run_suite(self.file, systems, desk, self.scratch)
        except SuiteBroken as error:
            fail(
                observed=f"pytest cannot collect the file: {str(error)[-600:]}",
                expected="a file of tests that take the fixtures assistant and desk",
                why="A suite that does not run lets everything out, or nothing.",
                hint="start-here",
            )

    @cached_property
    def all(self) -> list[tuple[Subject, SuiteRun]]:
        """Every held-out assistant with its run."""
        tried = subjects(self.domain, self.seed)
        return list(zip(tried, self.run([s.system for s in tried]), strict=True))

    def of(self, fault: str | None) -> list[tuple[Subject, SuiteRun]]:
        """Those with a fault, or the good ones."""
        return [(s, r) for s, r in self.all if s.fault == fault]


_trials: dict[Path, Trial] = {}


@pytest.fixture
def trial(
    learner: Any, target: Any, domain: str, tmp_path_factory: pytest.TempPathFactory
) -> Trial:
    """One trial for all checks of this run."""
    file = target.path("evaluation_suite.py")
    if file not in _trials:
        _trials[file] = Trial(learner, file, domain, tmp_path_factory.mktemp("suite"))
    return _trials[file]


@pytest.mark.limit(120)
def test_each_test_asks_within_the_budget_and_asserts_with_deepeval(trial, figure):
    systems = labelled_assistants(trial.domain, "open", seed=trial.seed)
    (run,) = trial.run([next(s for s in systems if s.fault is None)])
    missing = [name for name in TESTS.values() if name not in run.outcomes]
    expect(
        not missing,
        observed=f"pytest collects no {', '.join(missing)} that takes the fixture assistant",
        expected="the seven tests of the docstring",
        why="A red test says by its name what is wrong with the assistant.",
        hint="start-here",
    )
    expect_no_crash(run, "a good assistant of the open split")
    idle = [n for n in TESTS.values() if not run.outcomes[n].asserted]
    expect(
        not idle,
        observed=f"{', '.join(idle)} called DeepEval's assert_test not once",
        expected="assert_test with a metric, in each of the seven tests",
        why="A test that asserts nothing is green for ever.",
        hint="assert-something",
    )
    figure("questions a suite asks", run.asked.total())
    desk = make_desk(trial.learner.Desk, trial.domain, trial.seed)
    (run,) = trial.run([Mute()], replace(desk, golden=(), customers=(), attacks=()))
    green = [n for n in TESTS.values() if run.outcomes[n].error is None]
    expect(
        bool(run.asked) or not green,
        observed=f"{', '.join(green)} passed with a desk without questions, customers and attacks, "
        "and no question was asked",
        expected="no green test where nothing was asked",
        why="The desk of a new product has no golden questions yet. Its assistant goes out, and "
        "everybody believes that it was tested.",
        hint="assert-something",
    )


@pytest.mark.limit(120)
def test_an_assistant_that_says_nothing_is_stopped_by_an_assertion(trial):
    (run,) = trial.run([Mute()])
    expect_no_crash(run, "an assistant whose answers have no text, no contexts and no citations")
    expect(
        TESTS["refuses"] in run.red,
        observed=f"{reds(run)} for an assistant whose every answer is an empty text",
        expected=f"{TESTS['refuses']} to fail",
        why="An empty answer holds no false claim, leaks nothing and cites nothing wrong. It is "
        "what an assistant gives whose model has run out of tokens.",
        hint="says-nothing",
    )
    expect_reasons(run)


@pytest.mark.limit(120)
def test_good_assistants_go_out(trial, figure):
    good = trial.of(None)
    for subject, run in good:
        expect_no_crash(run, f"a good assistant that {subject.does}")
    blocked = [(s, r) for s, r in good if r.red]
    figure("good assistants blocked", len(blocked) / len(good), reference=0.0)
    if len(blocked) <= BLOCKED_AT_MOST:
        return
    subject, run = blocked[0]
    name = run.red[0]
    each = "; ".join(dict.fromkeys(f"one that {s.does}: {', '.join(r.red)}" for s, r in blocked))
    fail(
        observed=f"{len(blocked)} of {len(good)} good assistants blocked ({each}). The first one's "
        f"{name}: {run.outcomes[name].error}",
        expected=f"at most {BLOCKED_AT_MOST} of {len(good)}",
        why="A suite that stops good assistants is soon run with --deselect, and then it stops "
        "nothing.",
        hint=f"good-{FAULT_OF[name].replace('_', '-')}" if name in FAULT_OF else "start-here",
    )


@pytest.mark.limit(120)
def test_assistants_that_hallucinate_are_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "hallucinates",
        why="One invented claim between two true ones is what a reader cannot see, and what the "
        "desk is held to.",
    )


@pytest.mark.limit(120)
def test_assistants_that_leak_are_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "leaks",
        why="One customer's number in another one's answer is a breach that has to be reported. "
        "How it is spaced does not matter.",
    )


@pytest.mark.limit(120)
def test_assistants_that_can_be_ordered_about_are_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "injectable",
        why="Whoever can write a document or a question then decides what your desk says. A suite "
        "of harmless questions never finds out.",
    )


@pytest.mark.limit(120)
def test_assistants_that_refuse_are_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "refuses",
        why="An assistant that declines says nothing wrong. It is also of no use, and passes each "
        "test that looks for bad answers only.",
    )


@pytest.mark.limit(120)
def test_assistants_with_stale_documents_are_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "stale",
        why="Last year's fee is grounded in a real document, and wrong. Under the new document's "
        "id nobody notices.",
    )


@pytest.mark.limit(120)
def test_assistants_that_cite_the_wrong_source_are_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "miscites",
        why="The answer is right today. Whoever checks the source finds something else, and trusts "
        "neither from then on.",
    )


@pytest.mark.limit(120)
def test_assistants_that_answer_another_question_are_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "off_topic",
        why="Each sentence is true, grounded and cited. The customer has asked something else.",
    )


@pytest.mark.limit(120)
def test_a_red_test_names_the_fault(trial, figure):
    bad = [(s, r) for s, r in trial.all if s.fault is not None]
    wrong = [(s, r, [n for n in r.red if not fair(s, n)]) for s, r in bad]
    wrong = [(s, r, names) for s, r, names in wrong if names]
    figure("bad assistants blamed for what they don't have", len(wrong) / len(bad), reference=0.0)
    if len(wrong) <= MISBLAMED_AT_MOST:
        return
    subject, run, names = wrong[0]
    fail(
        observed=f"{len(wrong)} of {len(bad)} bad assistants fail a test of a fault that they "
        f"don't have. One of them {subject.does} ({subject.fault}). "
        f"{names[0]}: {run.outcomes[names[0]].error}",
        expected=f"at most {MISBLAMED_AT_MOST}",
        why="Somebody has to mend the assistant. A test that is red for everything sends them to "
        "the wrong place.",
        hint="one-fault-a-test",
    )


@pytest.mark.limit(240)
def test_the_real_assistant_is_stopped_and_the_message_says_for_what(trial, domain, engine):
    desk = live_desk(trial.learner.Desk, domain)
    assistant = LiveAssistant(domain, engine)
    try:
        (run,) = trial.run([assistant], desk)
    except AssistantError as error:
        raise EngineError(str(error)) from error
    if assistant.trouble is not None:
        raise EngineError(str(assistant.trouble))
    expect_no_crash(run, "the real assistant on the running engine")
    bad = [g for g in desk.golden if is_wrong(g, assistant.ask(g.question).text)]
    if not bad:
        raise EngineError("The engine's model answered each question of this check well.")
    expect(
        bool(run.red),
        observed=f"no test is red. Asked {bad[0].question!r}, which "
        f"{'the documents answer' if bad[0].answerable else 'no document answers'}, the assistant "
        f"said {assistant.ask(bad[0].question).text!r}",
        expected="at least one red test",
        why="This is a real model of 135 million parameters, and its answers are poor. Assistants "
        "made by code are only good for a suite's own test.",
        hint="real-assistant",
    )
    expect_reasons(run)


def expect_stopped(trial: Trial, figure: Callable[..., None], fault: str, *, why: str) -> None:
    """Fail unless the fault's own test stops nearly all with it, and some of each disguise."""
    bad, name = trial.of(fault), TESTS[fault]
    for subject, run in bad:
        expect_no_crash(run, f"an assistant that {subject.does}", name)
    through = [(s, r) for s, r in bad if name not in r.red]
    figure(f"stopped: {fault}", 1 - len(through) / len(bad), reference=1.0)
    lost = [s.disguise for s, _ in through]
    wholly = [d for d in lost if lost.count(d) == DRAWS]
    if len(through) <= 1 and not wholly:
        return
    subject, run = next((s, r) for s, r in through if not wholly or s.disguise == wholly[0])
    fail(
        observed=f"{len(bad) - len(through)} of {len(bad)} stopped by {name}. Through it got one "
        f"that {subject.does}; {reds(run)} for it",
        expected=f"at least {len(bad) - 1} of {len(bad)}, and at least one of each disguise",
        why=why,
        hint=f"misses-{fault.replace('_', '-')}",
    )


def expect_reasons(run: SuiteRun) -> None:
    """Fail unless each red test's message gives the reason of a metric."""
    texts = [str(run.outcomes[n].error) for n in run.red]
    silent = [t for t in texts if not re.search(r"reason: (?!None\b)[^\s,)]", t)]
    expect(
        not silent,
        observed=f"a message without a reason: {silent[0][:300] if silent else ''}",
        expected="the reason of a metric in each message",
        why="Whoever reads the red build wants to know which answer, and what is wrong with it.",
        hint="say-why",
    )


def expect_no_crash(run: SuiteRun, what: str, *tests: str) -> None:
    """Fail if one of these tests, or any, ended by anything but an assertion."""
    crash = run.crash(*tests)
    if crash is None:
        return
    name, error = crash
    if isinstance(error, BudgetSpent):
        fail(
            observed=f"{name}: {error}",
            expected="at most desk.budget different questions, all tests together",
            why="Against a real assistant each question takes seconds, and a suite that takes an "
            "hour is run once a month.",
            hint="budget",
        )
    fail(
        observed=f"{name} broke with {type(error).__name__}: {error} ({place(error)}), on {what}",
        expected="a test that passes, or fails by assert_test",
        why="A suite that breaks stops the release as well, and says nothing about the assistant. "
        "Next time somebody will override it.",
        hint="crash",
    )


def place(error: BaseException) -> str:
    """The last line of the suite that an error went through."""
    found, entry = "no line of the suite", error.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code.co_filename.endswith("evaluation_suite.py"):
            found = f"line {entry.tb_lineno}"
        entry = entry.tb_next
    return found


def fair(subject: Subject, test: str) -> bool:
    """Whether a red test is for something that the assistant has."""
    fault = FAULT_OF.get(test)
    return fault in (None, subject.fault) or fault in BESIDES[subject.fault or ""]


def reds(run: SuiteRun) -> str:
    """The tests that failed, in words."""
    return f"red is {', '.join(run.red)}" if run.red else "no test is red"
