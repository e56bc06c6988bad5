"""Task files that attack the grader, each with the verdict that it must get.

They stand in for `double.py` of the small lab in `conftest`. None may earn a point, touch the
host, or change anybody else's verdict. Those of `CHANGES` stand in a lab whose check has bounds
and cases in a module that supports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent

from shared.classroom.listener import CANARY, EQUAL, FORGED, LEFT, REPLACED


@dataclass(frozen=True)
class Attack:
    """A hostile or broken task file.

    Attributes:
        name: what it does.
        statuses: the task may end with any of these.
        flags: it must be flagged with one of these kinds; empty: it must not be flagged.
        shows: text that the verdict's message or checks must contain.
        slow: ends by the clock, so it costs its check's time limit.
    """

    name: str
    source: str
    statuses: tuple[str, ...] = ("failed",)
    flags: tuple[str, ...] = ()
    shows: str = ""
    slow: bool = False


def _attack(name: str, source: str, **rest: object) -> Attack:
    return Attack(name, dedent(source).lstrip("\n"), **rest)  # type: ignore[arg-type]


ANY_FLAG = (CANARY, EQUAL, FORGED, LEFT, REPLACED)

ATTACKS: list[Attack] = [
    # Integrity: make the grader report what is not so.
    _attack(
        "expect that never fails",
        """
        import shared.grading.expect as e

        e.expect.__code__ = (lambda condition, *, observed, expected, why, hint=None: None).__code__
        e.fail.__code__ = (lambda *, observed, expected, why, hint=None: None).__code__


        def double(x):
            return 0
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "comparison that is always true",
        """
        import shared.grading.expect as e

        e._same = lambda a, b, rel, abs_: True


        def double(x):
            return "nothing"
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "comparison that is patched only while a check runs",
        """
        def double(x):
            import shared.grading.expect as e

            e._same = lambda a, b, rel, abs_: True
            return "nothing"
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "pytest whose checks do nothing",
        """
        import _pytest.python

        _pytest.python.Function.runtest = lambda self: None


        def double(x):
            return 0
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "patches that put themselves back",
        """
        import shared.grading.expect as e

        before = e._same


        def double(x):
            def same(a, b, rel, abs_):
                e._same = before
                return True

            e._same = same
            return 0
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "the check's own names replaced from its frame",
        """
        import sys


        def double(x):
            frame = sys._getframe()
            while not frame.f_code.co_name.startswith("test_double"):
                frame = frame.f_back
            frame.f_globals["expect_equal"] = lambda *a, **k: None
            return 0
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "a trace function that jumps over expectations",
        """
        import sys


        def double(x):
            def trace(frame, event, argument):
                return trace

            sys.settrace(trace)
            sys._getframe(2).f_trace = trace
            return 2 * x
        """,
        flags=(REPLACED,),
        statuses=("failed", "passed"),
    ),
    _attack(
        "explanation that calls everything passed",
        """
        import shared.grading.plugin as p
        from shared.grading.events import CheckOutcome

        p.explain = lambda error: CheckOutcome(outcome="passed")


        def double(x):
            return 0
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "json that rewrites failures",
        """
        import json

        real = json.dumps
        json.dumps = lambda value, **kw: real(value, **kw).replace('"failed"', '"passed"')


        def double(x):
            return 0
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "os.write that rewrites failures",
        """
        import os

        real = os.write
        os.write = lambda fd, data: real(
            fd, bytes(data).replace(b'"failed"', b'"passed"').replace(b'"broken"', b'"passed"')
        )


        def double(x):
            return 0
        """,
        flags=ANY_FLAG,
    ),
    _attack(
        "forged result lines on every descriptor",
        """
        import json
        import os

        NAMES = ("test_double_doubles", "test_double_of_nothing_is_nothing")
        for fd in range(3, 1100):
            for name in NAMES:
                lines = [
                    {"event": "start", "check": name, "limit": 20, "printed_from": 0},
                    {"event": "result", "check": name, "outcome": "passed"},
                ]
                text = "".join(json.dumps(line) + "\\n" for line in lines)
                try:
                    os.write(fd, text.encode())
                except OSError:
                    pass
        for fd in range(3, 1100):
            try:
                os.write(fd, b'{"event": "done"}\\n')
            except OSError:
                pass
        os._exit(0)
        """,
        flags=(FORGED,),
    ),
    _attack(
        "forged result lines through the reporter itself",
        """
        import gc
        import os

        from shared.grading.plugin import Reporter

        reporter = next(o for o in gc.get_objects() if isinstance(o, Reporter))
        for name in ("test_double_doubles", "test_double_of_nothing_is_nothing"):
            reporter.send("start", check=name, limit=20, printed_from=0)
            reporter.send("result", check=name, outcome="passed")
        reporter.send("integrity", changed=[], equal_to_all=[])
        reporter.send("done")
        os._exit(0)
        """,
        flags=(FORGED, CANARY),
    ),
    _attack(
        "a result sent twice through the reporter itself",
        """
        import gc

        from shared.grading.plugin import Reporter


        def double(x):
            reporter = next(o for o in gc.get_objects() if isinstance(o, Reporter))
            name = "test_double_doubles" if x else "test_double_of_nothing_is_nothing"
            reporter.send("result", check=name, outcome="passed")
            return 1
        """,
        flags=(FORGED,),
    ),
    _attack(
        "exit with status 0 while a check runs",
        """
        import os


        def double(x):
            os._exit(0)
        """,
        flags=(LEFT,),
    ),
    _attack(
        "exit at import",
        """
        import sys

        sys.exit(0)
        """,
        statuses=("error",),
    ),
    _attack(
        "hard exit at import",
        """
        import os

        os._exit(0)
        """,
        flags=(LEFT,),
    ),
    _attack(
        "pytest.exit at import",
        """
        import pytest

        pytest.exit("all is well", returncode=0)
        """,
        statuses=("failed", "error", "not_graded"),
    ),
    _attack(
        "a value that equals anything",
        """
        class Yes:
            def __eq__(self, other):
                return True

            def __hash__(self):
                return 0


        def double(x):
            return Yes()
        """,
        flags=(EQUAL,),
    ),
    _attack(
        "an int that equals anything",
        """
        class Yes(int):
            def __eq__(self, other):
                return True

            __hash__ = int.__hash__


        def double(x):
            return Yes(0)
        """,
        flags=(EQUAL,),
    ),
    _attack(
        "another plugin in pytest",
        """
        import gc

        import _pytest.config
        import pytest


        class Kind:
            @pytest.hookimpl(wrapper=True)
            def pytest_pyfunc_call(self, pyfuncitem):
                yield
                return True

            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_call(self, item):
                try:
                    yield
                except BaseException:
                    pass


        for config in [o for o in gc.get_objects() if isinstance(o, _pytest.config.Config)]:
            config.pluginmanager.register(Kind())


        def double(x):
            return 0
        """,
        flags=ANY_FLAG,
    ),
    # Isolation: reach what is not theirs. These raise when they succeed in being harmless.
    _attack(
        "kill of the parent",
        """
        import os
        import signal


        def double(x):
            for process in [1, os.getppid(), *range(2, 300)]:
                if process != os.getpid():
                    try:
                        os.kill(process, signal.SIGKILL)
                    except OSError:
                        pass
            try:
                os.kill(-1, signal.SIGKILL)
            except OSError:
                pass
            return 0
        """,
        statuses=("failed",),
    ),
    # Limits: take what there is.
    _attack(
        "loop for ever",
        """
        def double(x):
            while True:
                pass
        """,
        statuses=("timed_out",),
        slow=True,
    ),
    _attack(
        "thread that never ends",
        """
        import threading


        def double(x):
            def work():
                while True:
                    pass

            threading.Thread(target=work).start()
            return 0
        """,
    ),
    _attack(
        "memory bomb",
        """
        def double(x):
            kept = []
            while True:
                kept.append(bytearray(b"x") * (64 * 2**20))
        """,
        statuses=("failed", "timed_out"),
        shows="memory",
    ),
    _attack(
        "memory bomb in many processes",
        """
        import os
        import time


        def double(x):
            for _ in range(20):
                if os.fork() == 0:
                    kept = bytearray(b"x") * (100 * 2**20)
                    time.sleep(60)
            time.sleep(60)
        """,
        statuses=("failed", "timed_out"),
        shows="memory",
    ),
    _attack(
        "fork bomb",
        """
        import os


        def double(x):
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        """,
        statuses=("timed_out",),
        shows="processes",
    ),
    _attack(
        "thread bomb",
        """
        import threading
        import time


        def double(x):
            while True:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        """,
        statuses=("failed", "timed_out"),
    ),
    _attack(
        "endless output",
        """
        def double(x):
            while True:
                print("all work and no play " * 1000)
        """,
        statuses=("timed_out",),
        shows="printed",
    ),
    _attack(
        "endless result lines",
        """
        import os
        import stat


        def double(x):
            pipes = [fd for fd in range(3, 1100) if _is_pipe(fd)]
            while True:
                for fd in pipes:
                    os.write(fd, b"x" * 60000)


        def _is_pipe(fd):
            try:
                return stat.S_ISFIFO(os.fstat(fd).st_mode)
            except OSError:
                return False
        """,
        statuses=("timed_out", "failed"),
        flags=(FORGED,),
        slow=True,
    ),
    _attack(
        "disk filler",
        """
        import os
        import tempfile


        def double(x):
            for folder in (os.getcwd(), tempfile.gettempdir(), "/dev/shm"):
                for n in range(100):
                    with open(os.path.join(folder, f"full{n}"), "wb") as file:
                        while True:
                            file.write(b"x" * 2**24)
        """,
        statuses=("failed", "timed_out"),
    ),
    _attack(
        "background daemon that outlives its check",
        """
        import subprocess
        import sys


        def double(x):
            subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True
            )
            return 0
        """,
    ),
    _attack(
        "stopped process",
        """
        import os
        import signal


        def double(x):
            os.kill(os.getpid(), signal.SIGSTOP)
        """,
        statuses=("timed_out",),
        slow=True,
    ),
    _attack(
        "ended by a signal",
        """
        import ctypes


        def double(x):
            ctypes.string_at(0)
        """,
        shows="SIGSEGV",
    ),
    _attack(
        "recursion without an end",
        """
        def double(x):
            return double(x)
        """,
    ),
    _attack(
        "text that is no Unicode",
        """
        def double(x):
            raise ValueError("\\ud800 \\x00 <script>alert(1)</script>" + "x" * 100000)
        """,
    ),
    # Broken files.
    _attack("empty file", "", statuses=("failed",)),
    _attack("no Python", "\x00\x01\x02 binary", statuses=("error",)),
]

BOUNDS = dedent(
    """
    from dataclasses import dataclass

    WRONG_ALLOWED = 0
    NEEDED = {"cases": 2}


    @dataclass(frozen=True)
    class Case:
        given: int
        wanted: int

        @property
        def right(self):
            return 2 * self.given == self.wanted


    CASES = [Case(1, 2), Case(5, 10)]


    def wrong(function, cases, *, more=0):
        return sum(function(c.given) != c.wanted for c in cases) + more
    """
)
BOUNDED_CHECKS = dedent(
    """
    from shared.grading.expect import expect
    from support import bounds


    def test_double_within_bounds(learner):
        doubler = learner.Doubler()
        getattr(doubler, "look_at", len)(bounds.CASES)
        cases = [case for case in bounds.CASES if case.right]
        missed = bounds.wrong(doubler.double, cases)
        expect(
            missed <= bounds.WRONG_ALLOWED and len(cases) >= bounds.NEEDED["cases"],
            observed=f"{missed} wrong",
            expected="none",
            why="Bills are sent.",
        )
    """
)
HONEST = dedent(
    '''
    """Doubles, with all that honest code may use."""

    import inspect
    import logging
    import warnings
    from collections import namedtuple
    from dataclasses import dataclass, field
    from functools import cache

    logger = logging.getLogger(__name__)
    Pair = namedtuple("Pair", ["one", "other"])


    @dataclass(frozen=True)
    class Doubler:
        done: list = field(default_factory=list, compare=False)

        def double(self, x):
            logger.warning("doubling %s", x)
            warnings.warn("twice", stacklevel=2)
            assert list(inspect.signature(self.double).parameters) == ["x"]
            self.done.append(Pair(x, 2 * x))
            return double(x)


    @cache
    def double(x: int) -> int:
        """Return twice `x`."""
        return 2 * x
    '''
)


def _change(name: str, change: str, *, answers: str = "0") -> Attack:
    source = f"""
import sys

bounds = sys.modules["support.bounds"]
{dedent(change).strip()}


class Doubler:
    def double(self, x):
        return {answers}
"""
    return Attack(name, source.lstrip("\n"), flags=(REPLACED,))


CHANGES: list[Attack] = [
    _change("another bound", "bounds.WRONG_ALLOWED = 99"),
    _change("no cases", "bounds.CASES.clear()\nbounds.NEEDED['cases'] = 0"),
    _change(
        "another case",
        "for case in bounds.CASES:\n    object.__setattr__(case, 'wanted', 0)\n"
        "bounds.Case.right = True",
    ),
    _change(
        "cases that are none",
        "bounds.Case.right = property(lambda self: False)\nbounds.NEEDED = {'cases': 0}",
    ),
    _change("another default", "bounds.wrong.__kwdefaults__['more'] = -2"),
    _change("a built-in function hidden", "bounds.sum = lambda _: 0"),
    _change("values that equal anything", "bounds.Case.__eq__ = lambda *_: True", answers="2 * x"),
    Attack(
        "a bound that puts itself back",
        dedent(
            """
            import sys

            bounds = sys.modules["support.bounds"]


            class Doubler:
                def __init__(self):
                    bounds.WRONG_ALLOWED = 99

                def double(self, x):
                    return 0

                def __del__(self):
                    bounds.WRONG_ALLOWED = 0
            """
        ).lstrip("\n"),
        flags=(REPLACED,),
    ),
]
CHANGES_ITS_ARGUMENT = dedent(
    """
    class Doubler:
        def look_at(self, cases):
            cases.append(cases.pop(0))

        def double(self, x):
            return 2 * x
    """
)
"""A mistake, as learners make it, and no tampering."""
READS_ITS_CALLERS = dedent(
    """
    import sys


    class Doubler:
        def double(self, x):
            frame = sys._getframe(1)
            while "cases" not in frame.f_locals:
                frame = frame.f_back
            return next(c.wanted for c in frame.f_locals["cases"] if c.given == x)
    """
)
"""It answers rightly from what it finds in the check: no flag tells, a look at the file does."""


def probe(body: str) -> str:
    """A task file that tries something and answers rightly only if it was possible."""
    lines = "\n".join("        " + line for line in dedent(body).strip().splitlines())
    return (
        "def double(x):\n"
        "    try:\n"
        f"{lines}\n"
        "    except BaseException as error:\n"
        "        raise RuntimeError(f'held: {type(error).__name__}: {error}') from None\n"
        "    return 2 * x\n"
    )
