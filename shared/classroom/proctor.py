"""What watches a run from inside: a pytest plugin beside the grader's own.

It puts the canaries among the checks, seals every event line, and says at the end whether the
grader's own functions stayed what they were before the learner's code was loaded. It looks after
each check, and each time a function of the learner's returns: what a call replaces may put itself
back before the check ends.

It cannot be trusted alone: it runs in the process of the code that it watches. The parent
compares its word with what it knows itself (`listener`).
"""

from __future__ import annotations

import builtins
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import _pytest.python
import _pytest.reports
import _pytest.runner
import pluggy._callers
import pluggy._hooks
import pluggy._manager
import pytest

from shared.classroom.canary import Plan, Step
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
_NEAR: tuple[object, ...] = (expect, expect.CheckFailed)
"""Those that a check calls itself."""
_BUILT_IN = (
    *("all", "any", "bool", "dict", "float", "getattr", "int", "isinstance", "issubclass"),
    *("len", "list", "repr", "set", "sorted", "str", "type", "vars", "zip"),
)
_NAMES: tuple[tuple[object, str], ...] = (
    *((os, name) for name in ("write", "dup2", "_exit")),
    (json, "dumps"),
    (math, "isclose"),
    *((builtins, name) for name in _BUILT_IN),
)


class Proctor:
    """The plugin. Make it before any of the learner's code is loaded."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sent = 0
        self._equal_to_all: list[str] = []
        self._changed: set[str] = set()
        self._near = [o for owner in _NEAR for o in _originals(owner)]
        self._far = [o for owner in _FAR for o in _originals(owner)]
        self._far += [_original(owner, name) for owner, name in _NAMES]
        self._plugins: dict[int, str] = {}
        self._config: pytest.Config | None = None
        self._reporter: Reporter | None = None

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
        plugin._RETURNED.append(self._look_at)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the checks and their twins into the order of the plan."""
        found = {item.name: item for item in items}
        items[:] = [
            found[step.check] if step.twin is None else _twin_of(found[step.check], step)
            for step in self._plan.steps
            if step.check in found
        ]
        self._near += [o for module in _check_modules() for o in _originals(module)]
        self._plugins = self._plugins_now()

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Look as soon as a check has ended, however it did."""
        try:
            yield
        finally:
            self._compare(self._near)
            self._compare(self._far)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Say what was replaced, before the last line is sent."""
        assert self._reporter is not None
        self._compare(self._near)
        self._compare(self._far)
        for plugin_id, name in self._plugins_now().items():
            if self._plugins and plugin_id not in self._plugins:
                self._changed.add(f"pytest's plugins, now with {name[:80]}")
        changed = sorted(self._changed)[:40]
        self._reporter.send("integrity", changed=changed, equal_to_all=self._equal_to_all[:20])

    def _seal(self) -> dict[str, Any]:
        self._sent += 1
        return {"seal": self._plan.seal, "number": self._sent}

    def _plugins_now(self) -> dict[int, str]:
        assert self._config is not None
        pairs = self._config.pluginmanager.list_name_plugin()
        return {id(one): str(name) for name, one in pairs if one is not None}

    def _compare(self, originals: list[_Original]) -> None:
        self._changed.update(original.label for original in originals if not original.kept())
        if sys.gettrace() is not None or sys.getprofile() is not None:
            self._changed.add("sys.settrace")

    def _look_at(self, name: str, value: Any) -> None:
        self._compare(self._near)
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


class _Original(NamedTuple):
    """A function where it belongs, and what makes it the one that it is."""

    label: str
    owner: Mapping[str, Any]
    name: str
    value: Any
    function: FunctionType | None
    code: CodeType | None

    def kept(self) -> bool:
        """Whether it is still what it was."""
        if self.owner.get(self.name) is not self.value:
            return False
        return self.function is None or self.function.__code__ is self.code


def _originals(owner: object) -> Iterator[_Original]:
    """The functions, classes and properties that a module or class holds."""
    for name, value in list(vars(owner).items()):
        if isinstance(value, (FunctionType, classmethod, staticmethod, type, property)):
            yield _original(owner, name)


def _original(owner: object, name: str) -> _Original:
    value = vars(owner)[name]
    function = getattr(value, "__func__", value)
    if not isinstance(function, FunctionType):
        function = None
    code = function.__code__ if function is not None else None
    label = f"{getattr(owner, '__name__', '?')}.{name}"
    return _Original(label, vars(owner), name, value, function, code)


def _check_modules() -> list[ModuleType]:
    """The lab's own modules that are loaded: its checks, and what supports them."""
    checks = os.path.join(os.environ["LABS_LAB_FOLDER"], "checks")
    return [
        module
        for module in list(sys.modules.values())
        # Not getattr: some libraries put modules there that load others when they are asked.
        if isinstance(module, ModuleType) and str(vars(module).get("__file__")).startswith(checks)
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
