"""What watches a run from inside: a pytest plugin beside the grader's own.

It puts the canaries among the checks, seals every event line, and says at the end whether the
checks and the grader stayed what they were before the learner's code was loaded (`watching`). It
looks after each check, each time a function of the learner's returns, and each time a check
expects something: what a call replaces may put itself back before the check ends.

It cannot be trusted alone: it runs in the process of the code that it watches. The parent
compares its word with what it knows itself (`listener`).
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import _pytest.python
import _pytest.reports
import _pytest.runner
import pluggy._callers
import pluggy._hooks
import pluggy._manager
import pytest

from shared.classroom.canary import Plan, Step
from shared.classroom.hearing import Ear
from shared.classroom.watching import Watch, built_in_names, named_later, text_of
from shared.grading import events, expect, plugin
from shared.grading.plugin import REPORTER, Reporter
from shared.grading.target import target_from_environment

_FAR: tuple[object, ...] = (
    plugin,
    plugin.Reporter,
    plugin.LearnerModule,
    events.CheckOutcome,
    _pytest.python.Function,
    _pytest.reports.TestReport,
    _pytest.runner,
    _pytest.runner.CallInfo,
    _pytest.runner.SetupState,
    pluggy._callers,
    pluggy._hooks.HookCaller,
    pluggy._manager.PluginManager,
    json.JSONEncoder,
)
"""Modules and classes whose functions turn what a check found into a line for the parent."""
_NAMES: tuple[tuple[object, str], ...] = (
    *((os, name) for name in ("write", "dup2", "_exit")),
    (json, "dumps"),
    *((builtins, name) for name in built_in_names()),
)
_QUICK = 2e-4
"""Seconds that a look into containers may take to be worth it at each call."""


class Proctor:
    """The plugin. Make it before any of the learner's code is loaded."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sent = 0
        self._equal_to_all: list[str] = []
        self._changed: set[str] = set()
        self._changed_inside: set[str] = set()
        self._near, self._far, self._own = Watch(), Watch(), Watch()
        self._near.functions_of(expect.CheckFailed)
        for owner in _FAR:
            self._far.functions_of(owner)
        for owner, name in _NAMES:
            self._far.name(owner, name)
        self._inside_too = False
        self._plugins: dict[int, str] = {}
        self._config: pytest.Config | None = None
        self._reporter: Reporter | None = None
        self._ear: Ear | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Take note of the run."""
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        """Seal the reporter's lines, and be shown what the learner's functions return."""
        assert self._config is not None
        self._reporter = self._config.pluginmanager.get_plugin(REPORTER)
        assert self._reporter is not None
        self._reporter.seal = self._seal
        self._ear = Ear(lambda file: target_from_environment().owns(Path(file)))
        plugin._RETURNED.append(self._look_at)
        expect._ASKED.append(self._look)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the checks and their twins into the order of the plan."""
        found = {item.name: item for item in items}
        items[:] = [
            found[step.check] if step.twin is None else _twin_of(found[step.check], step)
            for step in self._plan.steps
            if step.check in found
        ]
        modules = _check_modules()
        for name in {name for module in modules for name in named_later(module)}:
            with suppress(Exception):
                importlib.import_module(name)
        self._near.modules([expect, *modules])
        self._far.modules(_shared_modules())
        self._own.list_of(plugin, "_RETURNED")
        self._own.list_of(expect, "_ASKED")
        before = time.perf_counter()
        list(self._near.changed_inside())
        self._inside_too = time.perf_counter() - before < _QUICK
        self._plugins = self._plugins_now()

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Look as soon as a check has ended, however it did."""
        try:
            yield
        finally:
            self._look_at_all()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Say what was replaced, before the last line is sent."""
        assert self._reporter is not None
        self._look_at_all()
        for plugin_id, name in self._plugins_now().items():
            if self._plugins and plugin_id not in self._plugins:
                self._changed.add(f"pytest's plugins, now with {name[:80]}")
        changed = sorted(self._changed)[:40]
        self._reporter.send(
            "integrity",
            changed=changed,
            inside=sorted(self._changed_inside)[:40],
            equal_to_all=self._equal_to_all[:20],
            heard=self._ear.heard if self._ear is not None else [],
        )

    def _seal(self) -> dict[str, Any]:
        self._sent += 1
        return {"seal": self._plan.seal, "number": self._sent}

    def _plugins_now(self) -> dict[int, str]:
        assert self._config is not None
        pairs = self._config.pluginmanager.list_name_plugin()
        return {id(one): str(name) for name, one in pairs if one is not None}

    def _look(self) -> None:
        self._changed.update(self._near.changed())
        if self._inside_too:
            self._changed_inside.update(self._near.changed_inside())
        if sys.gettrace() is not None or sys.getprofile() is not None:
            self._changed.add("sys.settrace")

    def _look_at_all(self) -> None:
        self._look()
        for watch in (self._near, self._far):
            self._changed.update(watch.changed())
            self._changed_inside.update(watch.changed_inside())
        self._changed.update(self._own.changed_inside())

    def _look_at(self, name: str, value: Any) -> None:
        self._look()
        values = [value]
        if type(value) in (list, tuple):
            values += list(value)[:50]
        elif type(value) is dict:
            values += list(value.values())[:50]
        for one in values:
            if _equals_anything(one):
                what = f"{name} returned a {type(one).__name__} that says it equals anything"
                if what not in self._equal_to_all:
                    self._equal_to_all.append(what)


def _check_modules() -> list[ModuleType]:
    """The lab's own modules that are loaded: its checks, and what supports them."""
    checks = os.path.join(os.environ["LABS_LAB_FOLDER"], "checks")
    return [
        module
        for module in list(sys.modules.values())
        # Not getattr: some libraries put modules there that load others when they are asked.
        if isinstance(module, ModuleType) and str(vars(module).get("__file__")).startswith(checks)
    ]


def read_ahead() -> None:
    """Read the texts of what is loaded before runs are forked, so that none reads them itself."""
    for module in _shared_modules():
        text_of(module)


def _shared_modules() -> list[ModuleType]:
    """What of `shared` is loaded."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "shared" and isinstance(module, ModuleType)
    ]


def _twin_of(item: pytest.Item, step: Step) -> pytest.Item:
    assert isinstance(item, pytest.Function)
    twin: pytest.Item = pytest.Function.from_parent(
        item.parent, name=item.name, callobj=_body(step)
    )
    return twin


def _body(step: Step) -> Callable[..., None]:
    word = step.word

    def expectation(learner: object) -> None:
        expect.expect(False, observed=word, expected="something else", why="It must not pass.")

    def assertion(learner: object) -> None:
        raise AssertionError(word)

    def comparison(learner: object) -> None:
        expect.expect_equal([word], [f"{word}-"], what=word, why="It must not pass.")

    def passes(learner: object) -> None:
        expect.expect_equal({"a": [1, word]}, {"a": [1, word]}, what="itself", why="It is.")

    bodies: dict[str, Callable[..., None]] = {
        "expectation": expectation,
        "assertion": assertion,
        "comparison": comparison,
        "passes": passes,
    }
    assert step.twin is not None
    return bodies[step.twin]


def _equals_anything(value: object) -> bool:
    """Whether a class of the learner's says that its values equal an object made just now."""
    equal = type(value).__eq__
    if not isinstance(equal, FunctionType):
        return False
    if not target_from_environment().owns(Path(equal.__code__.co_filename)):
        return False
    try:
        answer = equal(value, object())
        return answer is not NotImplemented and bool(answer)
    except Exception:
        return False
