"""Task 1.2: launch a server, wait for it, notice its death, stop it."""

from __future__ import annotations

import ctypes
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support.fake_process import (
    FakeServer,
    end,
    free_port,
    holds_open,
    orphans_reaped,
    settled_state,
    state_of,
)

from shared.grading.expect import expect, expect_equal, expect_raises, fail, plain, show

Launch = Callable[..., FakeServer]

_AT_SIGTERM = {"clean": "ends cleanly at SIGTERM", "ignore": "ignores SIGTERM"}


@pytest.fixture
def launchable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Makes fake servers; ends what is left of them after the check."""
    monkeypatch.setenv("NO_PROXY", "*")
    made: list[FakeServer] = []
    lock = threading.Lock()

    def make(*options: str) -> FakeServer:
        with lock:
            made.append(FakeServer(tmp_path / f"server{len(made)}", *options))
            return made[-1]

    with orphans_reaped():
        yield make
        for server in made:
            server.clean_up()


def test_a_server_is_ready_only_when_health_and_models_both_answer(learner, launchable):
    server = launchable("--refuse", "3", "--empty", "2")
    process = server.supervised_by(learner)
    try:
        process.start(deadline_s=15)
    except learner.ServerStartError as error:
        if server.requests() == 0:
            _never_asked(server)
        fail(
            observed=f"ServerStartError({error.reason!r}) after {server.requests()} requests",
            expected="start to return: the server was ready after a handful of requests",
            why="A model server needs minutes to load; start must ask until it is ready.",
            hint="ask-health",
        )
    if server.requests() == 0:
        _never_asked(server)
    expect(
        server.noted("served_models"),
        observed=f"start returned after {server.requests()} requests, with no model listed yet",
        expected="start to return once /v1/models lists a model as well",
        why="/health says that the HTTP server is up, not that a model is loaded. Traffic sent "
        "now gets errors.",
        hint="readiness",
    )
    expect(
        process.poll() is None,
        observed="poll() says that the server has ended",
        expected="None: it is running",
        why="A watcher would restart a healthy server.",
        hint="later-death",
    )


def test_the_environment_is_added_to_not_replaced(learner, launchable, monkeypatch):
    monkeypatch.setenv("LABS_INHERITED", "from the parent")
    server = launchable()
    process = server.supervised_by(learner, env={"LABS_GIVEN": "for the server"})
    _start(process, server, learner)
    seen = json.loads((server.folder / "environment.json").read_text())
    expect_equal(
        {name: seen.get(name) for name in ("LABS_INHERITED", "LABS_GIVEN")},
        {"LABS_INHERITED": "from the parent", "LABS_GIVEN": "for the server"},
        what="the server's environment",
        why="Without PATH, HOME and LD_LIBRARY_PATH real servers don't find their libraries, and "
        "the error does not say why.",
        hint="environment",
    )


def test_output_goes_to_the_log_and_never_blocks_the_server(learner, launchable):
    server = launchable("--noise", "1000000")
    process = server.supervised_by(learner)
    try:
        process.start(deadline_s=6)
    except learner.ServerStartError as error:
        fail(
            observed=f"ServerStartError({error.reason!r}) for a server that prints 1 MB and then "
            "serves",
            expected="start to return",
            why="A pipe holds 64 KB. A server that writes more to one that nobody reads stops "
            "in the middle of a print.",
            hint="unread-pipe",
        )
    log = server.log_path.read_text() if server.log_path.exists() else ""
    missing = [line for line in ("noise begins", "noise ends") if line not in log]
    expect(
        not missing,
        observed=f"a log of {len(log)} characters without {' and '.join(map(repr, missing))}",
        expected="everything the server printed to standard output and standard error",
        why="The line that explains a crash at night is the one that was not kept.",
        hint="unread-pipe",
    )


def test_an_early_death_is_reported_long_before_the_deadline(learner, launchable):
    deadline_s = 6.0
    server = launchable("--die", "3")
    began = time.monotonic()
    error = _fails_to_start(server.supervised_by(learner), learner, deadline_s, "exits at once")
    share = (time.monotonic() - began) / deadline_s
    expect(
        share < 0.5,
        observed=f"the death was reported after {share:.0%} of the deadline",
        expected="at once: less than half of the deadline",
        why="vLLM gets minutes to start. A typing error in its arguments should not cost them.",
        hint="early-death",
    )
    _expect_error(error, {"reason": "exited", "exit_code": 3, "signal": None}, "exits with code 3")


def test_a_failed_start_reports_the_last_log_lines(learner, launchable):
    server = launchable("--lines", "100", "--die", "1")
    error = _fails_to_start(
        server.supervised_by(learner), learner, 4.0, "prints 101 lines and exits with code 1"
    )
    tail = plain(getattr(error, "log_tail", None))
    count = learner.LOG_TAIL_LINES
    want = [f"line {n}" for n in range(101 - count, 100)]
    want.append("RuntimeError: weights \ufffd\ufffd not found")
    expect_equal(
        tail,
        want,
        what="log_tail",
        why="'Exit code 1' sends somebody to search a machine. The last log lines, standard "
        "error and odd bytes included, say what to mend.",
        hint="log-tail",
    )


def test_a_death_by_signal_is_named(learner, launchable):
    def ended_by(name: str) -> None:
        process = launchable("--die-by", name).supervised_by(learner)
        error = _fails_to_start(process, learner, 4.0, f"is ended by {name} at once")
        want = {"reason": "exited", "exit_code": None, "signal": name}
        _expect_error(error, want, f"is ended by {name}")

    _at_once(lambda: ended_by("SIGKILL"), lambda: ended_by("SIGILL"))


def test_a_server_that_is_never_ready_is_given_up_at_the_deadline(learner, launchable):
    deadline_s = 1.5

    def give_up(what: str, *options: str) -> None:
        process = launchable(*options).supervised_by(learner)
        began = time.monotonic()
        error = _fails_to_start(process, learner, deadline_s, what)
        share = (time.monotonic() - began) / deadline_s
        _expect_error(error, {"reason": "not_ready", "exit_code": None, "signal": None}, what)
        expect(
            0.8 < share < 3,
            observed=f"start gave up after {share:.1f} times the deadline on a server that {what}",
            expected="it to use the deadline it was given, and to keep it",
            why="A deploy that hangs on one bad server blocks all those behind it; one that "
            "gives up early never sees a slow model come up.",
            hint="probe-timeout",
        )

    _at_once(
        lambda: give_up("answers 503 for ever", "--refuse", "1000000"),
        lambda: give_up("never lists a model", "--empty", "1000000"),
        lambda: give_up("accepts connections and does not answer", "--mute", "15"),
    )


def test_an_address_in_use_is_refused_before_the_launch(learner, launchable):
    server = launchable("--die", "1")
    with _stranger_at(server.port):
        error = _fails_to_start(
            server.supervised_by(learner), learner, 6.0, "has its port taken by another server"
        )
    _expect_error(
        error,
        {"reason": "address_in_use", "exit_code": None, "signal": None},
        "has its port taken by another server",
        hint="who-answers",
    )
    expect(
        server.pid() is None,
        observed="the command was launched all the same",
        expected="nothing launched",
        why="Two servers on one port fight over memory, and you measure the old one.",
        hint="who-answers",
    )


def test_a_dead_child_is_not_ready_because_a_stranger_answers(learner, launchable):
    server = launchable("--hand-over")
    error = _fails_to_start(
        server.supervised_by(learner),
        learner,
        4.0,
        "exits while another process answers at its address",
    )
    _expect_error(
        error,
        {"reason": "exited", "exit_code": 4, "signal": None},
        "exits with code 4 while another process answers",
        hint="who-answers",
    )


def test_stop_asks_first_and_waits_for_a_clean_end(learner, launchable):
    grace_s = 12.0
    server = launchable("--term", "clean")
    process = server.supervised_by(learner)
    _start(process, server, learner)
    began = time.monotonic()
    report = process.stop(grace_s=grace_s)
    share = (time.monotonic() - began) / grace_s
    expect(
        server.noted("clean_end"),
        observed=f"the server was ended in the middle of its shutdown; report: {_show(report)}",
        expected="SIGTERM, and time to finish what is running",
        why="SIGKILL cuts off every answer that is being streamed, and leaves shared memory and "
        "half-written files.",
        hint="ask-first",
    )
    _expect_report(
        report,
        {"exit_code": 0, "signal": None, "forced": False},
        "a server that ends cleanly at SIGTERM",
        hint="ask-first",
    )
    expect(
        share < 0.5,
        observed=f"stop returned after {share:.0%} of the grace",
        expected="as soon as the server had ended, a fraction of a second",
        why="A rolling update waits for each stop. Grace is an upper bound, not a sleep.",
        hint="grace",
    )


def test_stop_forces_a_server_that_ignores_sigterm(learner, launchable):
    grace_s = 1.0
    server = launchable("--term", "ignore")
    process = server.supervised_by(learner)
    _start(process, server, learner)
    began = time.monotonic()
    report = process.stop(grace_s=grace_s)
    share = (time.monotonic() - began) / grace_s
    _expect_gone(server, "server", "a server that ignores SIGTERM", hint="then-force")
    _expect_report(
        report,
        {"exit_code": None, "signal": "SIGKILL", "forced": True},
        "a server that ignores SIGTERM",
        hint="then-force",
    )
    expect(
        share > 0.8,
        observed=f"SIGKILL came after {share:.0%} of the grace",
        expected="the whole grace before SIGKILL",
        why="The grace is what running requests need to finish.",
        hint="grace",
    )


def test_stop_leaves_no_zombie_and_no_open_log(learner, launchable):
    server = launchable()
    process = server.supervised_by(learner)
    _start(process, server, learner)
    report = process.stop(grace_s=5)
    _expect_gone(server, "server", "a server that ends at SIGTERM", hint="zombie")
    _expect_report(
        report,
        {"exit_code": None, "signal": "SIGTERM", "forced": False},
        "a server that ends at SIGTERM by default",
        hint="zombie",
    )
    expect(
        not holds_open(server.log_path),
        observed="this process still holds the log file open",
        expected="it closed",
        why="A supervisor that restarts servers for weeks runs out of file descriptors.",
        hint="open-log",
    )


def test_stop_ends_the_whole_process_group(learner, launchable):
    def stopped(term: str, worker: str, *, forced: bool, grace_s: float) -> None:
        server = launchable("--term", term, "--grandchild", worker)
        process = server.supervised_by(learner)
        _start(process, server, learner)
        report = process.stop(grace_s=grace_s)
        what = f"a server ({_AT_SIGTERM[term]}) with a worker process ({_AT_SIGTERM[worker]})"
        _expect_gone(server, "server", what, hint="process-group")
        _expect_gone(server, "worker", what, hint="process-group")
        expect(
            worker == "ignore" or server.noted("worker_clean_end"),
            observed=f"the worker process was killed in the middle of its shutdown, for {what}",
            expected="SIGTERM and the grace for every process of the group",
            why="The worker is the process that holds the model and the requests.",
            hint="process-group",
        )
        expect_equal(
            getattr(report, "forced", None),
            forced,
            what=f"forced, for {what}",
            why="A group that has to be killed at each stop is a defect somebody should look at.",
            hint="process-group",
        )

    _at_once(
        lambda: stopped("clean", "clean", forced=False, grace_s=8),
        lambda: stopped("clean", "ignore", forced=True, grace_s=1.5),
        lambda: stopped("ignore", "clean", forced=True, grace_s=1.5),
    )


def test_a_failed_start_leaves_nothing_behind(learner, launchable):
    def left_by(what: str, *options: str) -> None:
        server = launchable("--grandchild", "ignore", *options)
        _fails_to_start(server.supervised_by(learner), learner, 1.5, what)
        for who in ("server", "worker"):
            _expect_gone(
                server, who, f"a server with a worker process that {what}", hint="leave-nothing"
            )
        expect(
            not holds_open(server.log_path),
            observed=f"after a start of a server that {what}, the log file is still open here",
            expected="it closed",
            why="Retries of a failing start are many; each would keep a file descriptor.",
            hint="open-log",
        )

    _at_once(
        lambda: left_by("is never ready", "--refuse", "1000000"),
        lambda: left_by(
            "is never ready and ignores SIGTERM", "--refuse", "1000000", "--term", "ignore"
        ),
        lambda: left_by("dies early", "--die", "1"),
    )


def test_an_interrupted_start_leaves_nothing_behind(learner, launchable):
    server = launchable("--refuse", "1000000", "--grandchild", "clean")
    process = server.supervised_by(learner)
    raised: list[BaseException] = []

    def starting() -> None:
        try:
            process.start(deadline_s=8)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=starting, daemon=True)
    thread.start()
    while server.requests() == 0 and thread.is_alive():
        time.sleep(0.02)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
    )
    thread.join(15)
    if raised and not isinstance(raised[0], (KeyboardInterrupt, learner.ServerStartError)):
        raise raised[0]
    expect(
        not thread.is_alive(),
        observed="start still waits, long after KeyboardInterrupt",
        expected="KeyboardInterrupt to end it",
        why="Ctrl-C is how people leave a start that takes too long.",
        hint="interrupted",
    )
    for who in ("server", "worker"):
        _expect_gone(
            server, who, "a server whose start was ended by KeyboardInterrupt", hint="interrupted"
        )


def test_a_later_death_is_noticed_and_cleaned_up(learner, launchable):
    server = launchable("--die", "7", "--die-when-asked", "--grandchild", "clean")
    process = server.supervised_by(learner)
    _start(process, server, learner)
    _ask_to_die(server)
    expect_equal(
        process.poll(),
        7,
        what="poll() of a server that has exited with code 7",
        why="A dead server that is taken for a running one is never restarted. A child that was "
        "not waited for still answers to kill(pid, 0).",
        hint="later-death",
    )
    report = process.stop(grace_s=5)
    _expect_report(
        report,
        {"exit_code": 7, "signal": None, "forced": False},
        "a server that had exited with code 7 by itself",
        hint="later-death",
    )
    for who in ("server", "worker"):
        _expect_gone(server, who, "a server that died by itself", hint="process-group")


def test_stop_may_come_twice_or_without_a_start_and_start_again_after_it(learner, launchable):
    server = launchable("--term", "clean")
    process = server.supervised_by(learner)
    never = {"exit_code": None, "signal": None, "forced": False}
    clean = {"exit_code": 0, "signal": None, "forced": False}
    _expect_report(process.stop(grace_s=1), never, "a server that never started", hint="stop-twice")
    expect_raises(
        RuntimeError,
        process.poll,
        doing="poll() before any start",
        why="None would say that it runs.",
        hint="stop-twice",
    )
    for round_ in ("first", "second"):
        _start(process, server, learner)
        expect_raises(
            RuntimeError,
            lambda: process.start(deadline_s=5),
            doing="start() of a server that runs",
            why="A second launch would lose track of the first process.",
            hint="stop-twice",
        )
        expect(
            process.poll() is None,
            observed="the refused second start ended the running server",
            expected="it untouched",
            why="A mistaken call must not be an outage.",
            hint="stop-twice",
        )
        for _ in range(2):
            _expect_report(process.stop(grace_s=5), clean, f"the {round_} run", hint="stop-twice")


@pytest.mark.limit(300)
def test_the_real_engine_starts_and_stops_without_a_trace(
    learner, engine, tmp_path, figure, monkeypatch
):
    # On a GPU the running engine holds half of the memory; this one gets along with less.
    monkeypatch.setenv("ENGINE_GPU_MEMORY", "0.3")
    spec = engine.launch_spec(free_port())
    log_path = tmp_path / "engine.log"
    process = learner.ServerProcess(
        spec.argv,
        env=spec.env,
        health_url=spec.health_url,
        models_url=spec.models_url,
        log_path=log_path,
    )
    with orphans_reaped():
        before = {p.pid for p in psutil.Process().children(recursive=True)}
        family: list[int] = []
        try:
            process.start(deadline_s=250)
            ours = {p.pid for p in psutil.Process().children()} - before
            family = [
                p.pid for p in psutil.Process().children(recursive=True) if p.pid not in before
            ]
            models = httpx.get(spec.models_url, timeout=10, trust_env=False).json()["data"]
            report = process.stop(grace_s=20)
            # A zombie that is not our child is an orphan; reaping it is init's part.
            states = {pid: settled_state(pid) for pid in family}
            left = [p for p, s in states.items() if s == "running" or (s == "zombie" and p in ours)]
        except learner.ServerStartError as error:
            fail(
                observed=f"{error.reason}; the end of its log: {show(error.log_tail[-5:], 900)}",
                expected=f"a second {engine.kind} server to start within 250 s",
                why="This is the server that you will supervise.",
                hint="ask-health",
            )
        finally:
            for pid in reversed(family):
                end(pid)
    expect(
        len(models) > 0,
        observed="/v1/models of the started engine lists no model",
        expected="the model it serves",
        why="Ready means that requests are answered.",
        hint="readiness",
    )
    figure("processes of the engine, all ended", len(family))
    expect(
        not left,
        observed=f"{len(left)} of the engine's {len(family)} processes are left after stop; "
        f"{' and '.join(states[pid] for pid in left)}; report: {_show(report)}",
        expected="none",
        why="A worker that outlives its server keeps the accelerator's memory, and the next "
        "start fails for lack of it.",
        hint="process-group",
    )
    expect(
        not holds_open(log_path),
        observed="this process still holds the engine's log open",
        expected="it closed",
        why="A supervisor that restarts servers for weeks runs out of file descriptors.",
        hint="open-log",
    )


def _start(process: Any, server: FakeServer, learner: Any) -> None:
    """Start a server that is ready at once."""
    try:
        process.start(deadline_s=15)
    except learner.ServerStartError as error:
        fail(
            observed=f"ServerStartError({error.reason!r}), log_tail {show(error.log_tail)}",
            expected="start to return: this server is ready at once",
            why="A supervisor that does not see a healthy server come up kills it.",
            hint="ask-health",
        )
    if not server.noted("server.pid"):
        fail(
            observed="start returned, but the command has not been run",
            expected="a running server",
            why="Traffic is sent to it from here on.",
            hint="ask-health",
        )


def _fails_to_start(process: Any, learner: Any, deadline_s: float, what: str) -> Any:
    return expect_raises(
        learner.ServerStartError,
        lambda: process.start(deadline_s=deadline_s),
        doing=f"a server that {what}",
        why="Whoever called start sends traffic to the server once it returns.",
        hint="who-answers" if "another" in what else "early-death",
    )


def _expect_error(
    error: Any, want: dict[str, Any], what: str, *, hint: str = "how-it-ended"
) -> None:
    expect_equal(
        {name: getattr(error, name, None) for name in want},
        want,
        what=f"the ServerStartError for a server that {what}",
        why="Whoever is called at night needs to know whether it crashed, was killed (SIGKILL is "
        "often the kernel, out of memory), or is merely slow.",
        hint=hint,
    )


def _expect_report(report: Any, want: dict[str, Any], what: str, *, hint: str) -> None:
    expect_equal(
        {name: getattr(report, name, None) for name in want},
        want,
        what=f"the StopReport of {what}",
        why="The report goes into the deployment's log; alerts read it.",
        hint=hint,
    )


def _expect_gone(server: FakeServer, who: Any, what: str, *, hint: str) -> None:
    state = settled_state(server.pid(who))
    names = {"server": "the server process", "worker": "its worker process"}
    if who == "worker" and state == "zombie":
        return  # an orphan; reaping it is init's part
    expect(
        state == "gone",
        observed=f"{names[who]} is {'still running' if state == 'running' else 'a zombie'}, "
        f"for {what}",
        expected="it ended and reaped",
        why={
            "running": "A process left behind keeps its port and its memory; the next start "
            "fails for lack of them.",
            "zombie": "A child that nobody waits for stays in the process table. Enough of them "
            "and nothing can be started any more.",
        }.get(state, ""),
        hint="zombie" if state == "zombie" else hint,
    )


def _at_once(*calls: Callable[[], None]) -> None:
    """Make several calls that mostly wait; raise the first one's error, in their order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()


def _never_asked(server: FakeServer) -> None:
    fail(
        observed="start ended without a single request to the server",
        expected=f"requests to {server.health_url}",
        why="A fixed wait is too short on a slow day and too long on all others.",
        hint="ask-health",
    )


def _ask_to_die(server: FakeServer) -> None:
    with suppress(httpx.HTTPError):  # it dies instead of answering
        httpx.get(f"http://127.0.0.1:{server.port}/die", timeout=5, trust_env=False)
    for _ in range(500):
        if state_of(server.pid()) != "running":
            return
        time.sleep(0.01)


def _show(report: Any) -> str:
    return show({n: getattr(report, n, None) for n in ("exit_code", "signal", "forced")})


class _stranger_at:
    """Another server at that port, ready in every respect."""

    def __init__(self, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps({"data": [{"id": "somebody else's model"}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(HTTPServer):
            def server_bind(self) -> None:
                # HTTPServer's own looks its host name up: slow without a network.
                socketserver.TCPServer.server_bind(self)

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
