"""Grading a class: walls, limits, integrity, and nothing lost."""

from __future__ import annotations

import base64
import errno
import http.server
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from rich.console import Console

from shared.classroom import grade as grade_module
from shared.classroom import journal as journal_module
from shared.classroom import sandbox
from shared.classroom.canary import draw_plan
from shared.classroom.grade import ClassRun, class_result, grade_class
from shared.classroom.journal import Journal, Settings
from shared.classroom.limits import Limits
from shared.classroom.listener import REPLACED
from shared.classroom.looking import look
from shared.classroom.pool import Graded, Worker
from shared.classroom.records import ClassResult, Learner, Submission
from shared.classroom.sandbox import NoSandbox, Wall, find_wall
from shared.classroom.work import GradedWith, Work, all_work, reachable
from shared.errors import UserError
from shared.grading import lab as lab_module
from shared.paths import ROOT
from tests.classroom_attacks import (
    ATTACKS,
    BOUNDED_CHECKS,
    BOUNDS,
    CHANGES,
    CHANGES_ITS_ARGUMENT,
    HONEST,
    READS_ITS_CALLERS,
    Attack,
    probe,
)
from tests.conftest import CHECKS, SOLUTION, SmallLab

QUIET = Console(quiet=True)
SECRET = "correct horse battery staple"
LIMIT = "import pytest\n\npytestmark = pytest.mark.limit(6)\n"
SPIN = "def double(x):\n    while True:\n        pass\n"


SMALL = Limits(memory=2**29, disk=2**26)


@pytest.fixture(scope="session")
def wall() -> Wall:
    """The best wall that this machine gives; skipped, with the reason, where there is none."""
    try:
        return find_wall(SMALL)
    except NoSandbox as error:
        pytest.skip(str(error))


@dataclass
class Room:
    """A small lab, and a warm worker that grades other people's files in it."""

    lab: SmallLab
    worker: Worker

    def grade(self, source: str, **others: str) -> Graded:
        """The verdict on a task file, which may have other files beside it."""
        files = {"double.py": source.encode()} | {n: t.encode() for n, t in others.items()}
        lab = self.lab.lab
        work = Work(GradedWith(lab, seed=1), lab.tasks[0], "key", files, ["somebody"])
        return self.worker.grade(work, nullcontext())


def small_lab_at(folder: Path) -> SmallLab:
    lab = SmallLab(folder)
    lab.write("checks/test_double.py", LIMIT + CHECKS)
    lab.write("variants/double/right_secret.py", f"# {SECRET}")
    lab.write("solution/double.py", f'"""{SECRET}"""\n')
    return lab


@pytest.fixture(scope="session")
def room(wall: Wall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    os.environ["LABS_TEST_SECRET"] = SECRET
    lab = small_lab_at(tmp_path_factory.mktemp("class") / "labs" / "lab_9_small")
    with Worker(wall, jobs=1) as worker:
        yield Room(lab, worker)
    del os.environ["LABS_TEST_SECRET"]


# What everybody's verdict is


def test_a_right_solution_passes_behind_the_wall(room: Room) -> None:
    graded = room.grade(SOLUTION)
    assert (graded.result.status, graded.result.points, graded.flags) == ("passed", 10, ())


def test_a_wrong_solution_is_told_what_it_would_be_told_at_home(room: Room) -> None:
    result = room.grade("def double(x):\n    return x\n").result
    assert result.status == "failed"
    assert result.hint == "times"
    assert result.first_failure is not None
    assert result.first_failure.call.startswith("double(")


def test_a_loop_is_told_at_which_line_it_was(room: Room) -> None:
    failure = room.grade(SPIN).result.first_failure
    assert failure is not None
    assert failure.outcome == "timed_out"
    assert failure.frames[-1].file == "double.py"
    assert failure.frames[-1].code in ("while True:", "pass")


def test_the_learners_other_files_can_be_imported(room: Room) -> None:
    source = "from helper import times\n\n\ndef double(x):\n    return times(x, 2)\n"
    helper = "def times(x, n):\n    return x * n\n"
    assert room.grade(source, **{"helper.py": helper}).result.status == "passed"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name.replace(" ", "-"))
def test_an_attack_earns_nothing_and_disturbs_nobody(room: Room, attack: Attack) -> None:
    graded = room.grade(attack.source)
    seen = {flag.kind for flag in graded.flags}
    assert graded.result.points == 0
    assert graded.result.status in attack.statuses, graded.result.message
    assert bool(seen) == bool(attack.flags), graded.flags
    assert seen & set(attack.flags) or not attack.flags, graded.flags
    assert attack.shows.lower() in graded.result.model_dump_json().lower()
    json.loads(graded.result.model_dump_json())
    assert room.grade(SOLUTION).result.status == "passed"


@pytest.fixture(scope="module")
def bounded(wall: Wall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A room whose check has bounds and cases in a module that supports it."""
    lab = small_lab_at(tmp_path_factory.mktemp("class") / "labs" / "lab_9_small")
    lab.write("checks/support/bounds.py", BOUNDS)
    lab.write("checks/test_double.py", LIMIT + BOUNDED_CHECKS)
    with Worker(wall, jobs=1) as worker:
        yield Room(lab, worker)


@pytest.mark.parametrize("attack", CHANGES, ids=lambda a: a.name.replace(" ", "-"))
def test_what_a_check_stands_on_cannot_be_changed(bounded: Room, attack: Attack) -> None:
    graded = bounded.grade(attack.source)
    assert {flag.kind for flag in graded.flags} == {REPLACED}
    assert "support.bounds." in graded.flags[0].evidence
    assert graded.result.points == 0


def test_what_honest_code_uses_is_neither_flagged_nor_looked_at(bounded: Room) -> None:
    graded = bounded.grade(HONEST)
    assert (graded.result.status, graded.flags, graded.notes) == ("passed", (), ())
    assert look({"double.py": HONEST.encode()}, 9) == ()


def test_a_list_of_the_checks_that_is_changed_in_place_is_only_looked_at(bounded: Room) -> None:
    graded = bounded.grade(CHANGES_ITS_ARGUMENT)
    assert (graded.result.status, graded.flags) == ("passed", ())
    (note,) = graded.notes
    assert note.private
    assert "support.bounds.CASES" in note.text


def test_reading_the_callers_is_for_the_instructor_to_look_at(bounded: Room) -> None:
    graded = bounded.grade(READS_ITS_CALLERS)
    assert (graded.result.status, graded.flags) == ("passed", ())
    (note,) = look({"double.py": READS_ITS_CALLERS.encode()}, 9)
    assert note.private
    assert "double.py, line 7: sys._getframe; double.py, line 8: frame.f_locals" in note.text


@pytest.mark.parametrize(
    "ask",
    [
        "vars(sys)['_get' + 'frame'](1)",
        "vars(inspect)['current' + 'frame']().f_back",
        "inspect.stack()[1][0]",
        "[vars(gc)['get_' + 'objects'](), sys._getframe(1)][1]",
    ],
)
def test_who_asks_for_its_callers_in_other_words_is_heard(bounded: Room, ask: str) -> None:
    hidden = READS_ITS_CALLERS.replace("import sys", "import gc, inspect, sys")
    graded = bounded.grade(hidden.replace("sys._getframe(1)", ask))
    assert (graded.result.status, graded.flags) == ("passed", ())
    (note,) = graded.notes
    assert note.private
    assert "double.py, line 7: " in note.text


def test_a_verdict_does_not_say_where_things_are(room: Room) -> None:
    result = room.grade("import os\n\n\ndef double(x):\n    raise ValueError(os.environ)\n").result
    assert "[labs]" in result.model_dump_json()
    assert not any(str(p) in result.model_dump_json() for p in (ROOT, sys.prefix, Path.home()))


# What the wall keeps from them


def _probes(lab: Path) -> dict[str, str]:
    """Names of what is tried, each with a body that raises where it is held."""
    checks = lab / "checks"
    libc = "import ctypes; libc = ctypes.CDLL(None)"
    nothing = "CapEff:\t0000000000000000"
    return {
        "the machine's passwords": "open('/etc/shadow').read()",
        "the solution": f"open({str(lab / 'solution' / 'double.py')!r}).read()",
        "a variant": f"open({str(lab / 'variants/double/right_secret.py')!r}).read()",
        "this checkout's labs": f"import os; os.listdir({str(ROOT / 'labs')!r})",
        "this checkout's tests": f"import os; os.listdir({str(ROOT / 'tests')!r})",
        "this checkout's history": f"import os; os.stat({str(ROOT / '.git')!r})",
        "this checkout's results": f"import os; os.stat({str(ROOT / '.labs' / 'results')!r})",
        "the other submissions": (
            "import glob; assert glob.glob('/tmp/labs-work-*') + glob.glob('/tmp/*/labs-work-*')"
        ),
        "a secret of the environment": "import os; os.environ['LABS_TEST_SECRET']",
        "a secret of the first process": "open('/proc/1/environ').read().index('LABS_TEST_SECRET')",
        "the first process's memory": "open('/proc/1/mem', 'rb').read(1)",
        "writing a check": f"open({str(checks / 'test_double.py')!r}, 'a').write('#')",
        "a file among the checks": f"open({str(checks / 'conftest.py')!r}, 'w').write('#')",
        "writing the grader": f"open({str(ROOT / 'shared' / 'paths.py')!r}, 'a').write('#')",
        "writing the environment": (
            "import sysconfig; open(sysconfig.get_paths()['purelib'] + '/sitecustomize.py', 'w')"
        ),
        "its own files": f"open({str(lab / 'starter' / 'double.py')!r}, 'w').write('#')",
        "a file at the root": "open('/new', 'w').write('#')",
        "a device": "open('/dev/new', 'w').write('#')",
        "a setting of the kernel": "open('/proc/sys/kernel/hostname', 'w').write('mine')",
        "where crashes go": "open('/proc/sys/kernel/core_pattern', 'w').write('|/x')",
        "a name on the network": "import socket; socket.create_connection(('192.0.2.1', 80), 3)",
        "looking up a name": "import socket; socket.getaddrinfo('example.org', 80)",
        "the host's loopback": "import socket; socket.create_connection(('127.0.0.1', PORT), 3)",
        "being somebody else": "import os; os.setuid(0)",
        "a namespace of its own": f"{libc}; assert libc.unshare(0x10000000) == 0",
        "a mount": f"{libc}; assert libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
        "tracing the first process": f"{libc}; assert libc.ptrace(16, 1, 0, 0) == 0",
        "more privilege": f"assert {nothing!r} not in open('/proc/self/status').read()",
        "a better priority": "import os; os.setpriority(os.PRIO_PROCESS, 0, -10)",
        "other processes": (
            "import os; assert len([n for n in os.listdir('/proc') if n.isdigit()]) > 4"
        ),
    }


@pytest.mark.parametrize("name", sorted(_probes(Path("/lab"))))
def test_the_wall_holds(room: Room, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        body = _probes(room.lab.folder)[name]
        body = body.replace("PORT", str(listener.getsockname()[1]))
        graded = room.grade(probe(body))
    assert graded.result.status == "failed", "it was not held"
    assert graded.result.first_failure is not None
    assert "held: " in graded.result.first_failure.observed
    assert SECRET not in graded.result.model_dump_json()


def test_a_probe_that_is_not_held_would_pass(room: Room) -> None:
    assert room.grade(probe("open('/proc/self/status').read()")).result.status == "passed"


def test_runs_at_the_same_time_do_not_meet(room: Room, wall: Wall) -> None:
    listens = """
        import socket
        import time

        def double(x):
            with socket.create_server(("127.0.0.1", 45999)):
                time.sleep(2.5 if x else 0)
            return 2 * x
    """
    connects = """
        import time, socket
        deadline = time.monotonic() + 2.5
        while True:
            try:
                socket.create_connection(("127.0.0.1", 45999), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
    """
    done: list[Graded] = []
    with Worker(wall, jobs=1) as other:
        neighbour = replace(room, worker=other)
        thread = threading.Thread(target=lambda: done.append(neighbour.grade(dedent(listens))))
        thread.start()
        held = [room.grade(probe(connects)) for _ in range(2)]
        thread.join()
    assert [g.result.status for g in held] == ["failed", "failed"]
    assert done[0].result.status == "passed"


def test_what_a_check_leaves_running_is_gone(room: Room) -> None:
    mark = f"labs-mark-{random.randrange(10**9)}"
    source = f"""
        import subprocess
        import sys

        def double(x):
            code = "import time, os; os.setsid() if os.fork() == 0 else None; time.sleep(999)"
            subprocess.Popen([sys.executable, "-c", code, {mark!r}])
            return 2 * x
    """
    assert room.grade(dedent(source)).result.status == "passed"
    deadline = time.monotonic() + 20
    while left := [
        p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_no_other_submission_is_left_in_memory(room: Room) -> None:
    # Patterns that do not match themselves: what looks is in the memory that it looks through.
    plain = [b"wor[d]-of-mine-[0-9]{9}"]
    coded = [base64.b64encode(b"." * n + b"word-of-mine-")[4 * (n > 0) : -4] for n in range(3)]
    patterns = plain + [b"[" + c[:1] + b"]" + re.escape(c[1:]) for c in coded]
    search = probe(
        f"""
        import re
        found = 0
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
            for line in list(maps):
                span, access = line.split()[:2]
                start, end = (int(x, 16) for x in span.split("-"))
                if "rw" in access and "[v" not in line and end - start < 2**28:
                    memory.seek(start)
                    page = memory.read(end - start)
                    found += sum(len(re.findall(p, page)) for p in {patterns!r})
        assert found
        """
    )
    mine = f'WORD = "word-of-mine-{random.randrange(10**8, 10**9)}"\n'
    assert room.grade(mine + search).result.status == "passed"  # it finds what is there
    assert room.grade(mine + dedent(SOLUTION)).result.status == "passed"
    assert room.grade(search).result.status == "failed"


def test_a_forged_stack_shows_no_file_of_the_host(room: Room) -> None:
    secret = room.lab.write("variants/double/stack.txt", f"{SECRET}\n" * 5)
    way = os.path.relpath(secret, "/tmp/x")
    starter = room.lab.folder / "starter"
    source = f"""
        import os

        def double(x):
            for fd in range(3, 1100):
                for way in ({str(secret)!r}, "{starter}/../variants/double/stack.txt", {way!r}):
                    try:
                        os.write(fd, f'  File "{{way}}", line 1 in double\n'.encode())
                    except OSError:
                        pass
            while True:
                pass
    """
    result = room.grade(dedent(source)).result
    assert result.points == 0
    assert SECRET not in result.model_dump_json()


def test_nothing_of_a_run_is_there_in_the_next(room: Room) -> None:
    write = "import os; [open(os.path.join(d, 'left'), 'w').write('x') for d in DIRS]"
    read = "import os; assert any(os.path.exists(os.path.join(d, 'left')) for d in DIRS)"
    folders = repr(["/scratch", "/scratch/tmp", "/scratch/home", "/dev/shm", str(ROOT / ".labs")])
    assert room.grade(probe(write.replace("DIRS", folders))).result.status == "passed"
    assert room.grade(probe(read.replace("DIRS", folders))).result.status == "failed"


def test_without_namespaces_inside_each_run_has_a_sandbox_of_its_own(
    room: Room, wall: Wall
) -> None:
    with Worker(replace(wall, kind="cold"), jobs=1) as worker:
        cold = replace(room, worker=worker)
        assert cold.grade(SOLUTION).result.status == "passed"
        probes = _probes(room.lab.folder)
        for name in ("the solution", "a setting of the kernel", "a name on the network", "a mount"):
            assert cold.grade(probe(probes[name])).result.status == "failed", name
        for attack in ATTACKS:
            if attack.name in (
                "fork bomb",
                "kill of the parent",
                "patches that put themselves back",
            ):
                graded = cold.grade(attack.source)
                assert graded.result.points == 0
                assert graded.result.status in attack.statuses
                assert bool(graded.flags) == bool(attack.flags)
        assert cold.grade(SOLUTION).result.status == "passed"


def test_the_model_server_is_reached_by_live_checks_only(wall: Wall, tmp_path: Path) -> None:
    lab = small_lab_at(tmp_path / "lab_9_small")
    lab.lab.engine = "portable"
    lab.write(
        "checks/test_double.py",
        """
        import json
        import os
        import urllib.request

        import pytest

        from shared.grading.expect import expect_equal


        @pytest.fixture
        def engine():
            return json.loads(os.environ["LABS_ENGINE_INFO"])["base_url"]


        def test_without(learner):
            expect_equal(learner.ask(), "nobody", what="who answers", why="None is asked for.")


        def test_live(learner, engine):
            with urllib.request.urlopen(engine + "/who", timeout=10) as answer:
                said = answer.read().decode()
            expect_equal(said, "the server", what="who answers", why="It was started.")
        """,
    )
    source = """
        import socket

        def ask():
            try:
                with socket.socket(socket.AF_UNIX) as line:
                    line.settimeout(5)
                    line.connect("/relay/engine")
                    line.sendall(b"GET /v1/who HTTP/1.0\\r\\n\\r\\n")
                    return line.recv(100).decode() or "nobody"
            except OSError:
                return "nobody"
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the server")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        class Running:
            kind = "portable"

            def alive(self) -> bool:
                return True

            def to_json(self) -> str:
                return json.dumps({"base_url": f"http://127.0.0.1:{server.server_port}/v1"})

        graded_with = GradedWith(lab.lab, seed=1, engine="portable", start_engine=Running)
        work = Work(graded_with, lab.lab.tasks[0], "key", {"double.py": dedent(source).encode()})
        with Worker(wall, jobs=1) as worker:
            graded = worker.grade(work, nullcontext())
        server.shutdown()
    assert graded.flags == ()
    assert graded.result.status == "passed", graded.result.model_dump_json(indent=1)


# Where there is no wall


def test_without_bubblewrap_grading_is_refused_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: None)
    with pytest.raises(NoSandbox, match=r"bubblewrap .*apt install bubblewrap.*SANDBOX=off"):
        find_wall()


def test_where_a_sandbox_is_forbidden_grading_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forbidden = tmp_path / "bwrap"
    forbidden.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1"
    )
    forbidden.chmod(0o755)
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: str(forbidden))
    with pytest.raises(NoSandbox, match="No permissions to create new namespace"):
        find_wall()


def test_the_wall_is_left_out_only_by_the_very_word() -> None:
    with pytest.raises(UserError, match="it takes off"):
        grade_module.grade(QUIET, "somewhere", "out", sandbox="0")


def test_without_a_wall_it_grades_and_says_so(tmp_path: Path) -> None:
    school = School(tmp_path, None)
    school.hand_in(anna=SOLUTION)
    result = school.grade()
    assert (result.sandbox, school.scores(result)) == ("off", {"anna": 10})


# Canaries


def test_a_plan_holds_every_check_in_order_and_a_twin_of_each() -> None:
    checks = ["test_a", "test_b", "test_c"]
    for _ in range(200):
        plan = draw_plan(checks)
        assert [s.check for s in plan.steps if s.twin is None] == checks
        assert sorted(s.check for s in plan.steps if s.twin is not None) == checks
        assert plan.steps[-1].twin not in (None, "passes")


def test_no_two_plans_are_alike() -> None:
    plans = [draw_plan([f"test_{n}" for n in range(10)]) for _ in range(20)]
    assert len({p.seal for p in plans}) == 20
    assert len({tuple((s.check, s.twin) for s in p.steps) for p in plans}) == 20


# A whole class


class School:
    """A class that hands in one file each, and an instructor."""

    def __init__(self, folder: Path, wall: Wall | None, jobs: int = 2) -> None:
        self.folder = folder
        self.lab = small_lab_at(folder / "labs" / "lab_9_small")
        self.wall = wall
        self.jobs = jobs
        self.submissions: list[Submission] = []
        self.settings = Settings(seed=5, labs=[9])

    def hand_in(self, **sources: str) -> None:
        for name, source in sources.items():
            folder = self.folder / "handed-in" / name / "lab_9"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "double.py").write_text(source, encoding="utf-8")
            self.submissions = [s for s in self.submissions if s.learner.id != name]
            learner = Learner(id=name, name=name.title())
            self.submissions.append(Submission(learner=learner, source=name, labs={9: folder}))

    def run(self, *, learners: frozenset[str] | None = None, fresh: bool = False) -> ClassRun:
        return ClassRun(
            submissions=self.submissions,
            labs=[GradedWith(self.lab.lab, seed=self.settings.seed)],
            wall=self.wall,
            jobs=self.jobs,
            learners=learners,
            fresh=fresh,
        )

    def grade(
        self, learners: frozenset[str] | None = None, fresh: bool = False, out: str = "out"
    ) -> ClassResult:
        run = self.run(learners=learners, fresh=fresh)
        with Journal(self.folder / out) as journal:
            grade_class(QUIET, run, journal)
            return class_result(run, journal, self.settings)

    def scores(self, result: ClassResult) -> dict[str, int]:
        return {g.learner: g.result.score if g.result else -1 for g in result.graded}


def gradebook(result: ClassResult) -> dict[str, object]:
    """What a gradebook says: everything but how long it took."""
    return {
        g.learner: (
            g.state,
            [
                (
                    t.id,
                    t.status,
                    t.points,
                    t.message,
                    t.hint,
                    [(c.check, c.outcome) for c in t.checks],
                )
                for t in g.result.tasks
            ]
            if g.result
            else None,
            sorted({f.kind for f in g.flags}),
        )
        for g in result.graded
    }


RIGHT = ["return 2 * x", "return x + x", "return x << 1", "return sum([x, x])"]
WRONG = ["return x", "return 2 * x + 1", "return x * x", "return None", "raise ValueError(x)"]
UNFINISHED = 'def double(x):\n    raise NotImplementedError("Task 9.1: write double")\n'


def class_of(number: int) -> dict[str, str]:
    """Learners as they come: some right, some wrong, many not started."""
    made = {}
    for n in range(number):
        bodies = (RIGHT, WRONG)[n % 2]
        body = bodies[n % len(bodies)]
        source = f"def double(x):\n    {body}  # {n}\n"
        made[f"learner{n:02}"] = UNFINISHED if n % 3 == 2 else source
    return made


def test_five_attackers_change_nothing_for_the_thirty(wall: Wall, tmp_path: Path) -> None:
    quiet, loud = School(tmp_path / "quiet", wall), School(tmp_path / "loud", wall)
    quiet.hand_in(**class_of(30))
    loud.hand_in(**class_of(30))
    names = ("fork bomb", "memory bomb", "kill of the parent", "endless output", "disk filler")
    attackers = {a.name.replace(" ", "_"): a.source for a in ATTACKS if a.name in names}
    assert len(attackers) == 5
    loud.hand_in(**attackers)
    without, with_ = gradebook(quiet.grade()), gradebook(loud.grade())
    assert {k: v for k, v in with_.items() if k not in attackers} == without
    assert all(with_[name][1][0][2] == 0 for name in attackers)  # type: ignore[index]


def test_the_same_work_is_graded_once_and_shared(wall: Wall, tmp_path: Path) -> None:
    school = School(tmp_path, wall)
    cheat = next(a for a in ATTACKS if a.name == "comparison that is always true")
    school.hand_in(a=UNFINISHED, b=UNFINISHED, c=cheat.source, d=cheat.source, e=SOLUTION)
    work = all_work(school.submissions, school.run().labs, walled=True)
    assert [w.learners for w in work] == [["a", "b"], ["c", "d"], ["e"]]
    result = school.grade()
    assert school.scores(result) == {"a": 0, "b": 0, "c": 0, "d": 0, "e": 10}
    assert {g.learner for g in result.graded if g.flags} == {"c", "d"}


def test_work_is_the_same_only_if_all_it_can_reach_is(tmp_path: Path) -> None:
    school = School(tmp_path, None)
    source = "from helper import two\n\n\ndef double(x):\n    return two * x\n"
    school.hand_in(a=source, b=source, c=source)
    for name, helper in (("a", "two = 2\n"), ("b", "two = 2\n"), ("c", "two = 3\n")):
        (tmp_path / "handed-in" / name / "lab_9" / "helper.py").write_text(helper)
    work = all_work(school.submissions, school.run().labs, walled=False)
    assert [w.learners for w in work] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("source", "reached"),
    [
        ("import math", {"helper.py"}),
        ("from importlib.metadata import version", {"helper.py"}),
        ("import triple", {"helper.py", "triple.py"}),
        ("from . import triple", {"helper.py", "triple.py"}),
        ("import helper", {"helper.py"}),
        ("import importlib", {"helper.py", "triple.py", "fourfold.py"}),
        ("open(__file__)", {"helper.py", "triple.py", "fourfold.py"}),
        ("not Python (", {"helper.py"}),
    ],
)
def test_another_tasks_file_is_there_only_if_this_one_can_reach_it(
    tmp_path: Path, source: str, reached: set[str]
) -> None:
    lab = SmallLab(tmp_path).lab
    first = lab.tasks[0]
    others = [
        first.model_copy(update={"id": f"9.{n}", "file": file})
        for n, file in ((2, "triple.py"), (3, "fourfold.py"))
    ]
    lab = lab.model_copy(update={"tasks": [first, *others]})
    folder = dict.fromkeys(("helper.py", "triple.py", "fourfold.py"), b"x = 1")
    files = reachable(lab, first, folder | {"double.py": source.encode()})
    assert set(files) == {"double.py"} | reached


def test_a_second_run_grades_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    school = School(tmp_path, None)
    school.hand_in(anna=SOLUTION, ben=UNFINISHED)
    first = school.grade()
    monkeypatch.setattr(grade_module, "Pool", None)
    assert school.grade() == first


def test_regrading_one_leaves_the_others(tmp_path: Path) -> None:
    school = School(tmp_path, None)
    school.hand_in(anna=SOLUTION, ben=UNFINISHED, cleo=SOLUTION + "\n")
    school.grade()
    pages = {n: tmp_path / "out" / "journal" / n / "lab_9.json" for n in ("anna", "ben", "cleo")}
    before = {name: path.stat().st_mtime_ns for name, path in pages.items()}
    school.hand_in(ben=SOLUTION + "# mended\n", cleo="def double(x):\n    return 0\n")
    result = school.grade(learners=frozenset({"ben"}), fresh=True)
    after = {name: path.stat().st_mtime_ns for name, path in pages.items()}
    assert {n for n in pages if before[n] != after[n]} == {"ben"}
    assert school.scores(result) == {"anna": 10, "ben": 10, "cleo": 10}
    assert school.scores(school.grade()) == {"anna": 10, "ben": 10, "cleo": 0}


def test_another_seed_or_another_check_is_another_verdict(tmp_path: Path) -> None:
    school = School(tmp_path, None)
    school.hand_in(anna=SOLUTION)
    keys = set[str]()
    for seed in (1, 2):
        labs = [GradedWith(school.lab.lab, seed=seed)]
        keys.update(w.key for w in all_work(school.submissions, labs, walled=False))
        keys.update(w.key for w in all_work(school.submissions, labs, walled=True))
    school.lab.write("checks/support/new.py", "x = 1\n")
    labs = [GradedWith(school.lab.lab, seed=1)]
    keys.update(w.key for w in all_work(school.submissions, labs, walled=False))
    assert len(keys) == 5


def test_only_one_run_may_be_at_work_in_a_folder(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(UserError, match="Another make grade"), Journal(tmp_path):
        pass


def test_a_full_disk_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    school = School(tmp_path, None, jobs=1)
    school.hand_in(**class_of(6))
    whole = gradebook(school.grade(out="unbroken"))
    real, left = journal_module.write_atomically, [2]

    def write(path: Path, text: str) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        real(path, text)

    monkeypatch.setattr(journal_module, "write_atomically", write)
    with pytest.raises(OSError, match="No space left"):
        school.grade()
    assert len(list((tmp_path / "out" / "journal").rglob("lab_9.json"))) == 2
    monkeypatch.setattr(journal_module, "write_atomically", real)
    assert gradebook(school.grade()) == whole


def test_the_command_from_a_folder_of_submissions_to_a_gradebook(
    wall: Wall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = small_lab_at(tmp_path / "labs" / "lab_9_small")
    lab.write(
        "lab.toml",
        """
        [lab]
        number = 9
        title = "Small"
        engine = "none"
        domains = false

        [[task]]
        id = "9.1"
        title = "Double"
        kind = "build"
        file = "double.py"
        symbols = ["double"]
        points = 10
        minutes = 1
        hints = [{ id = "times", text = "How many times is twice?" }]
        """,
    )
    monkeypatch.setattr(lab_module, "LABS", tmp_path / "labs")
    handed_in, out = tmp_path / "handed-in", tmp_path / "out"
    for name, source in (("anna", SOLUTION), ("ben", "def double(x):\n    return x\n")):
        folder = handed_in / name / "labs" / "lab_9_small" / "starter"
        folder.mkdir(parents=True)
        (folder / "double.py").write_text(dedent(source).lstrip("\n"))
    said = StringIO()
    console = Console(file=said, width=200)
    assert grade_module.grade(console, str(handed_in), str(out), seed="7") == 0
    first = (out / "gradebook.csv").read_text()
    assert "anna" in first
    assert "2 tasks handed in" in said.getvalue()
    assert grade_module.grade(console, str(handed_in), str(out), labs="9", learner="ben") == 0
    assert (out / "gradebook.csv").read_text() == first
    assert "0 to grade, 1 known from before" in said.getvalue()
    with pytest.raises(UserError, match="nobody is called cleo"):
        grade_module.grade(console, str(handed_in), str(out), learner="cleo")


DRIVER = """
import sys
from pathlib import Path

from shared.classroom.sandbox import find_wall
from tests.test_classroom_grading import SMALL, School, class_of

school = School(Path(sys.argv[1]), find_wall(SMALL))
school.hand_in(**class_of(12))
school.grade()
print("whole", flush=True)
"""


def test_killed_at_ten_random_moments_the_gradebook_is_the_same(wall: Wall, tmp_path: Path) -> None:
    school = School(tmp_path, wall)
    school.hand_in(**class_of(12))
    unbroken = gradebook(school.grade(out="unbroken"))
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    whole = time.monotonic() - started
    shutil.rmtree(tmp_path / "out")
    kills = 0
    while kills < 10:
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        try:
            run.wait(timeout=random.uniform(0.1, 1.0) * whole)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
        else:
            shutil.rmtree(tmp_path / "out")  # it was through before it was killed: once more
    assert gradebook(school.grade()) == unbroken
    assert not list((tmp_path / "out").rglob("*.tmp"))
