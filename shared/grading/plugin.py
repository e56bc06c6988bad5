"""The pytest plugin under which a lab's checks run.

It gives checks their fixtures, turns each outcome into an event, and writes the events to the
pipe that the runner holds. It decides nothing: which checks must report, time limits, points
and the verdict belong to the runner. Without a pipe (a lab author running pytest by hand) it
only provides the fixtures.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import stat
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from shared.grading.events import CheckOutcome, Frame
from shared.grading.expect import CheckFailed, show
from shared.grading.starters import NOT_STARTED
from shared.grading.target import Target, target_from_environment
from shared.tracking import Store, make_empty_store

EVENT_FD = "LABS_EVENT_FD"
REPORTER = "labs-reporter"
_STARTED = pytest.StashKey[float]()
_REPORTED = pytest.StashKey[bool]()
_FIGURES = pytest.StashKey[list[dict[str, Any]]]()
_CALLS: list[str] = []
_RETURNED: list[Callable[[str, Any], None]] = []
"""Who is shown what the learner's functions return."""


class LearnerModule:
    """The learner's module; remembers which of its functions was called last, and how."""

    def __init__(self, module: ModuleType, file: str) -> None:
        self._module = module
        self._file = file

    def __getattr__(self, name: str) -> Any:
        try:
            value = getattr(self._module, name)
        except AttributeError:
            raise CheckFailed(
                observed=f"{self._file} defines no {name}",
                expected=f"{name}, with the name and signature the starter gives it",
                why="Other code imports it by this name.",
            ) from None
        if type(value) is not FunctionType:
            return value

        def called(*args: Any, **kwargs: Any) -> Any:
            _CALLS.append(_describe_call(name, args, kwargs))
            try:
                returned = value(*args, **kwargs)
            except TypeError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
                raise CheckFailed(
                    observed=f"TypeError: {error}",
                    expected=f"{name} to take the arguments that the starter's signature names",
                    why="Its callers pass them by these names.",
                ) from None
            for look in _RETURNED:
                look(name, returned)
            return returned

        called.__name__, called.__doc__ = name, value.__doc__
        called.__wrapped__ = value  # type: ignore[attr-defined]
        return called


@pytest.fixture(scope="session")
def target() -> Target:
    """The files under grading."""
    return target_from_environment()


@pytest.fixture
def learner(target: Target, request: pytest.FixtureRequest) -> LearnerModule:
    """The module that this task grades, imported from the target."""
    file = Path(request.node.path).stem.removeprefix("test_") + ".py"
    return LearnerModule(_load(target, file), file)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this check's own, from the run's seed and the check's name."""
    run_seed = int(os.environ.get("LABS_SEED", "0"))
    return (run_seed * 1_000_003 + zlib.crc32(request.node.name.encode())) % 2**32


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Fresh inputs each run, the same for the same `SEED=`."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def domain() -> str:
    """The run's `DOMAIN=`."""
    return os.environ.get("DOMAIN") or "finance"


@pytest.fixture(scope="session")
def engine() -> Any:
    """The running model server: the one the runner started, or (by hand) one started now."""
    from shared.engine import Engine, ensure_engine

    given = os.environ.get("LABS_ENGINE_INFO")
    if given:
        return Engine.from_json(given)
    return ensure_engine("vllm" if os.environ.get("ENGINE") == "vllm" else "portable")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An MLflow store: the learner's own, which `make ui` shows, or one that is thrown away."""
    folder = os.environ.get("LABS_STORE")
    made = Store(Path(folder) if folder else tmp_path)
    make_empty_store(made.file)
    return made


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Report a measured number: ``figure("false-alarm rate", 0.03, reference=0.02)``."""
    figures = request.node.stash.setdefault(_FIGURES, [])

    def report(name: str, value: float, *, reference: float | None = None, unit: str = "") -> None:
        figures.append(
            {
                "name": name,
                "value": float(value),
                "reference": None if reference is None else float(reference),
                "unit": unit,
            }
        )

    return report


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit(seconds): time limit of one check")
    if os.environ.get(EVENT_FD):
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            config.pluginmanager.unregister(terminal)
        # Taken out again: no child of a check should have it, nor the learner's code.
        config.pluginmanager.register(Reporter(int(os.environ.pop(EVENT_FD))), REPORTER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Live checks last: they need what the others prove."""
    items.sort(key=is_live)


def is_live(item: pytest.Item) -> bool:
    """Whether a check asks for the running model server."""
    return "engine" in getattr(item, "fixturenames", ())


class Reporter:
    """Writes one JSON line an event to the runner's pipe.

    Attributes:
        seal: gives what every line carries besides its event.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._process = os.getpid()
        self.seal: Callable[[], dict[str, Any]] = dict

    def send(self, event: str, **data: Any) -> None:
        """Write an event, whole. In a copy of the process that a check forked, write nothing."""
        if os.getpid() != self._process:
            return
        line = json.dumps({"event": event, **data, **self.seal()}) + "\n"
        view = memoryview(line.encode())
        while view:
            view = view[os.write(self._fd, view) :]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        sys.stdout.flush()
        marker = item.get_closest_marker("limit")
        item.stash[_STARTED] = time.perf_counter()
        _CALLS.clear()
        self.send(
            "start",
            check=item.name,
            limit=float(marker.args[0]) if marker else (120.0 if is_live(item) else 20.0),
            printed_from=_output_size(),
        )
        yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        yield
        if call.excinfo is not None:
            if not item.stash.get(_REPORTED, False):
                item.stash[_REPORTED] = True
                self._finish(item, explain(call.excinfo.value))
        elif call.when == "teardown" and not item.stash.get(_REPORTED, False):
            item.stash[_REPORTED] = True
            self._finish(item, CheckOutcome(outcome="passed"))

    def _finish(self, item: pytest.Item, outcome: CheckOutcome) -> None:
        outcome.check = item.name
        outcome.seconds = time.perf_counter() - item.stash[_STARTED]
        outcome.figures = item.stash.get(_FIGURES, [])
        sys.stdout.flush()
        sys.stderr.flush()
        if outcome.outcome != "passed" and _CALLS:
            outcome.call = _CALLS[-1]
        self.send("result", **outcome.model_dump())

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.send("broken", detail=str(report.longrepr)[-4000:])

    def pytest_sessionfinish(self) -> None:
        self.send("done")


def _output_size() -> int:
    """Bytes printed so far, where standard output is a file (as the runner has it)."""
    info = os.fstat(1)
    return info.st_size if stat.S_ISREG(info.st_mode) else 0


def explain(error: BaseException) -> CheckOutcome:
    """Say what an exception that ended a check means for the learner.

    A failed expectation and an exception from the learner's file are the learner's; anything
    else is a defect of the lab, and grades nothing.
    """
    frames = learner_frames(error)
    if isinstance(error, CheckFailed):
        return CheckOutcome(
            outcome="failed",
            observed=error.observed,
            expected=error.expected,
            why=error.why,
            hint=error.hint,
        )
    if isinstance(error, NotImplementedError) and str(error).startswith(NOT_STARTED):
        return CheckOutcome(outcome="not_started", observed=str(error))
    if isinstance(error, (SyntaxError, LearnerImportError)):
        cause = error.__cause__ if isinstance(error, LearnerImportError) else error
        assert cause is not None
        return CheckOutcome(
            outcome="error",
            observed=_one_line(cause),
            frames=_syntax_frame(cause) if isinstance(cause, SyntaxError) else frames,
        )
    if type(error).__name__ in _ENGINE_ERRORS:
        return CheckOutcome(outcome="engine", observed=_one_line(error))
    if frames:
        return CheckOutcome(outcome="raised", observed=_one_line(error), frames=frames)
    text = "".join(traceback.format_exception(error))[-4000:]
    if isinstance(error, _UNUSABLE_VALUE) and not isinstance(error, pytest.FixtureLookupError):
        return CheckOutcome(
            outcome="failed",
            observed=f"something the check could not use ({_one_line(error)})",
            expected="the names, types and shapes that the docstring gives",
            why="Whoever calls your code relies on them.",
            detail=text,
        )
    return CheckOutcome(outcome="broken", observed=_one_line(error), detail=text)


# What a check trips over when the learner's code hands it a value of another shape.
_UNUSABLE_VALUE = (TypeError, ValueError, AttributeError, LookupError)
_ENGINE_ERRORS = {"EngineError", "EngineUnavailable"}


class LearnerImportError(Exception):
    """The learner's file could not be imported; the cause says why."""


def learner_frames(error: BaseException) -> list[Frame]:
    """The traceback of `error` and its causes, cut to the learner's own frames."""
    target = target_from_environment()
    found: list[Frame] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        for entry in traceback.extract_tb(current.__traceback__):
            if target.owns(Path(entry.filename)):
                frame = Frame(
                    file=target.display(Path(entry.filename)),
                    line=entry.lineno or 0,
                    function=entry.name,
                    code=entry.line or "",
                )
                if frame not in found:
                    found.append(frame)
        if isinstance(current, BaseExceptionGroup) and current.exceptions:
            current = current.exceptions[0]
        else:
            current = current.__cause__ or current.__context__
    return found


def _load(target: Target, file: str) -> ModuleType:
    path = target.path(file)
    name = path.stem
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    if not path.is_file():
        raise CheckFailed(
            observed=f"there is no file {file} in {target.label}",
            expected=f"{file}, as the starter has it",
            why="The checks import your work from this file. `make reset-lab-N TASK=N.M`, with "
            "this task's number, brings it back and leaves your other files.",
        )
    for folder in reversed(target.import_path):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Registered first: dataclasses and pydantic look their module up by name while it loads.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except NotImplementedError:
        sys.modules.pop(name, None)
        raise
    except BaseException as error:
        sys.modules.pop(name, None)
        raise LearnerImportError(file) from error
    return module


_BYTES_SHOWN = 24


def _describe_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    parts = [_brief(a) for a in args] + [f"{k}={_brief(v)}" for k, v in kwargs.items()]
    text = f"{name}({', '.join(parts)})"
    return text if len(text) <= 400 else text[:399] + "…"


def _brief(value: Any) -> str:
    if inspect.isroutine(value) or inspect.isclass(value):
        return getattr(value, "__name__", "…")
    module = type(value).__module__
    if module.startswith(("pandas", "numpy", "torch")) and hasattr(value, "shape"):
        return f"<{type(value).__name__} {'x'.join(map(str, value.shape))}>"
    if isinstance(value, bytes | bytearray) and len(value) > _BYTES_SHOWN:
        return f"<{len(value)} bytes>"
    try:
        return re.sub(r"\n\s*", " ", show(value, 120))
    except Exception:
        return f"<{type(value).__name__}>"


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    if len(text) > 600:
        text = text[:599] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _syntax_frame(error: SyntaxError) -> list[Frame]:
    target = target_from_environment()
    return [
        Frame(
            file=target.display(Path(error.filename or "?")),
            line=error.lineno or 0,
            function="",
            code=(error.text or "").rstrip("\n"),
        )
    ]
