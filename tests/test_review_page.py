"""The reviewer's page: by HTTP on every machine, and in a real browser where there is one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from fastapi import FastAPI

from shared.domains.worlds import DOMAINS, World
from shared.errors import UserError
from shared.paths import ROOT
from shared.review import NOTE, Guard, load_approval, make_page, open_demo
from tests.browser import Browser, chromium, open_browser

TTL_S = 3600.0
WITHOUT = (
    "no Chromium on this machine: the reviewer's page was NOT proven in a browser "
    "(apt-get install chromium, or CHROMIUM=/path/to/it)"
)


class Clock:
    """Time that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Served:
    """A page that listens, and what stands behind it."""

    desk: Any
    world: World
    guard: Guard
    clock: Clock

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.guard.port}"

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """A client that was let in."""
        with httpx.Client(
            base_url=self.origin, follow_redirects=True, trust_env=False, timeout=60
        ) as client:
            client.get(self.guard.address)
            yield client

    def waiting(self, thread: str) -> Any:
        """The approval that waits in a thread."""
        return next(a for a in self.desk.pending() if a.thread_id == thread)

    def done(self) -> list[tuple[str, dict[str, Any]]]:
        """The world's effects."""
        return [(step.tool, step.arguments) for step in self.world.effects()]


class Inputs(HTMLParser):
    """A page's named inputs and their values."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        if tag == "input" and about.get("name"):
            self.values[str(about["name"])] = about.get("value") or ""


@pytest.fixture(scope="module")
def approval() -> ModuleType:
    """The reference's approval.py."""
    return load_approval("solution")


@pytest.fixture
def serve(approval: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Serves the page of a fresh demo, on loopback, in a thread."""
    stops: list[Callable[[], None]] = []

    def served(domain: str = "finance") -> Served:
        clock = Clock()
        desk, world = open_demo(
            approval, tmp_path / domain, domain, reviewers=("rita",), ttl_s=TTL_S, clock=clock
        )
        listener = socket.create_server(("127.0.0.1", 0))
        guard = Guard(port=listener.getsockname()[1])
        app = make_page(approval, desk, world, reviewer="rita", guard=guard)
        stops.append(in_a_thread(app, listener))
        stops.append(desk.close)
        return Served(desk, world, guard, clock)

    yield served
    for stop in stops:
        stop()


def in_a_thread(app: FastAPI, listener: socket.socket) -> Callable[[], None]:
    """Serve; returns what ends it."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join(30)
        listener.close()

    return stop


def post(client: httpx.Client, case: Any, verdict: str, **typed: str) -> httpx.Response:
    """What the browser sends when a button of the case's page is pressed."""
    path = f"/cases/{case.id}"
    form = Inputs(client.get(path).text).values | {"verdict": verdict} | typed
    return client.post(path, data=form)


# By HTTP, on every machine.


def test_nobody_gets_in_without_the_address_of_this_start(serve: Callable[..., Served]) -> None:
    served = serve()
    case = served.waiting("case-risky")
    paths = ("/", f"/cases/{case.id}", "/style.css", "/docs", "/openapi.json")
    with httpx.Client(base_url=served.origin, follow_redirects=True, trust_env=False) as stranger:
        for given in ("", "?token=", "?token=guess", f"?token={served.guard.session}"):
            for path in paths:
                answer = stranger.get(path + given)
                assert answer.status_code == 403, path + given
                assert case.tool not in answer.text
        assert not stranger.cookies
    with served.client() as client:
        assert client.get("/").status_code == 200
        for host in ("evil.example", "127.0.0.1", f"evil.example:{served.guard.port}"):
            assert client.get("/", headers={"Host": host}).status_code == 403, host
        cookie = client.cookies.jar._cookies["127.0.0.1"]["/"][served.guard.cookie]  # type: ignore[attr-defined]
        assert {k.lower(): v for k, v in cookie._rest.items()} == {
            "httponly": None,
            "samesite": "strict",
        }
    assert served.guard.token not in repr(served.guard)


def test_a_page_of_somebody_else_cannot_decide(serve: Callable[..., Served]) -> None:
    served = serve()
    case = served.waiting("case-risky")
    with served.client() as client:
        page = client.get(f"/cases/{case.id}")
        good = Inputs(page.text).values | {"verdict": "approved"}
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": f"http://127.0.0.1:{served.guard.port + 1}"},
            {"Origin": f"https://127.0.0.1:{served.guard.port}"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
        ):
            answer = client.post(f"/cases/{case.id}", data=good, headers=headers)
            assert answer.status_code == 403, headers
        for form in ({}, {**good, "form": ""}, {**good, "form": "guess"}):
            assert client.post(f"/cases/{case.id}", data=form).status_code == 403
        assert client.get(f"/cases/{case.id}", params=good).status_code == 200
        assert served.done() == []
        assert served.waiting("case-risky") == case
        assert client.post(f"/cases/{case.id}", data=good).status_code == 200
    assert [tool for tool, _ in served.done()] == [case.tool]


@pytest.mark.parametrize("domain", DOMAINS)
def test_texts_of_strangers_are_shown_as_texts(serve: Callable[..., Served], domain: str) -> None:
    served = serve(domain)
    case = served.waiting("case-risky")
    assert case.facts["item"]["note"] == NOTE
    with served.client() as client:
        answer = client.get(f"/cases/{case.id}")
    assert "<script" not in answer.text
    assert "<img" not in answer.text
    assert "&lt;script&gt;window.injected = true&lt;/script&gt;" in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; form-action 'self'")
    assert "script-src" not in policy
    assert not re.findall(r"(?:src|href|action)=\"(?!/)", answer.text)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_reviewer_approves_edits_and_rejects(serve: Callable[..., Served], domain: str) -> None:
    served = serve(domain)
    with served.client() as client:
        home = client.get("/").text
        assert f"Waiting for a decision ({len(served.desk.pending())})" in home

        approved = served.waiting("case-risky_and_tell")
        answer = post(client, approved, "approved", note="seen the receipt")
        assert "Decided: approved" in answer.text
        assert "seen the receipt" in answer.text
        assert served.done()[0] == (approved.tool, approved.arguments)

        edited = served.waiting("case-too_much")
        limit = served.world.limit(edited.arguments["item_id"])
        answer = post(client, edited, "edited", **{"argument-amount": str(limit)})
        assert "Decided: edited" in answer.text
        assert f"changed to <bdi>{limit}</bdi>" in answer.text
        assert served.done()[-1][1] == {**edited.arguments, "amount": limit}

        rejected = served.waiting("case-final")
        done = served.done()
        answer = post(client, rejected, "rejected")
        assert "Decided: rejected" in answer.text
        assert f"Not done: {rejected.tool} was rejected." in answer.text
        assert served.done() == done

        for case, again in ((approved, "approved"), (edited, "approved"), (rejected, "approved")):
            stale = {"form": served.guard.form, "shown": case.fingerprint, "verdict": again}
            assert client.post(f"/cases/{case.id}", data=stale).status_code == 200
        assert served.done() == done
        home = client.get("/").text
        assert home.count("<bdi>rita</bdi></td>") == 3
    verdicts = [e.decision.verdict for e in served.desk.trail.entries() if e.decision]
    assert sorted(verdicts) == ["approved", "edited", "rejected"]


def test_what_may_not_be_taken_is_shown_again_with_the_problem(
    serve: Callable[..., Served],
) -> None:
    served = serve()
    case = served.waiting("case-risky")
    more = str(case.arguments["amount"] + 1)
    with served.client() as client:
        for verdict, name, text, problem in (
            ("edited", "amount", more, "must be at most"),
            ("edited", "amount", "12.50", "Input should be a valid integer"),
            ("edited", "amount", "<b>9</b>", "Input should be a valid integer"),
            ("edited", "reason", "no", "at least 5 characters"),
            ("approved", "amount", "1", "You changed this."),
        ):
            answer = post(client, case, verdict, **{f"argument-{name}": text, "note": "mine"})
            assert answer.status_code == 422, text
            assert "Nothing was decided." in answer.text
            assert f'id="problem-{name}"' in answer.text
            assert problem in answer.text
            values = Inputs(answer.text).values
            assert values[f"argument-{name}"] == text
            assert values["note"] == "mine"
        for wrong, status in (
            ({"verdict": "expired"}, 400),
            ({"verdict": ""}, 400),
            ({"verdict": "approved", "shown": "0" * 64}, 409),
        ):
            form = {"form": served.guard.form, "shown": case.fingerprint} | wrong
            assert client.post(f"/cases/{case.id}", data=form).status_code == status
        fixed = post(client, case, "rejected", **{"argument-customer_id": "C-1001"})
        assert fixed.status_code == 200
        assert client.get("/cases/none").status_code == 404
        assert client.post("/cases/none", data={"form": served.guard.form}).status_code == 404
    assert served.done() == []


def test_changed_facts_and_passed_time_are_told(serve: Callable[..., Served]) -> None:
    served = serve()
    stale, late = served.waiting("case-risky"), served.waiting("case-final")
    with served.client() as client:
        served.world.set_note(stale.arguments["item_id"], "disputed since")
        answer = post(client, stale, "approved")
        assert "Not done: the facts had changed since they were shown." in answer.text
        anew = served.waiting("case-risky")
        assert f'href="/cases/{anew.id}"' in answer.text
        assert "disputed since" in client.get(f"/cases/{anew.id}").text

        form = Inputs(client.get(f"/cases/{late.id}").text).values
        served.clock.now += TTL_S
        answer = client.post(f"/cases/{late.id}", data=form | {"verdict": "approved"})
        assert "Decided: expired" in answer.text
        assert f"Not done: {late.tool} has expired." in answer.text
        assert "Waiting for a decision (0)" in client.get("/").text
    assert served.world.roles["act_final"] not in [tool for tool, _ in served.done()]
    assert served.world.roles["act_risky"] not in [tool for tool, _ in served.done()]


def test_an_approval_py_that_is_not_written_is_told_in_a_sentence(
    approval: ModuleType, tmp_path: Path
) -> None:
    source = Path(str(approval.__file__)).read_text(encoding="utf-8")
    file = tmp_path / "approval.py"
    begun = source.replace(
        "        with alone(self.folder, thread_id):\n            if self.graph",
        '        raise NotImplementedError("Task 4.4: write Desk.ask")\n'
        "        with alone(self.folder, thread_id):\n            if self.graph",
    )
    assert begun != source
    file.write_text(begun, encoding="utf-8")
    with pytest.raises(UserError, match=r"Task 4\.4: write Desk\.ask"):
        open_demo(load_approval(str(file)), tmp_path / "world", "finance", reviewers=("rita",))
    file.write_text("import nothing_of_the_kind", encoding="utf-8")
    with pytest.raises(UserError, match="can't be imported: ModuleNotFoundError"):
        load_approval(str(file))


def test_make_review_listens_on_loopback_only_and_tells_its_address() -> None:
    quiet = {k: v for k, v in os.environ.items() if k not in ("PORT", "DOMAIN", "REVIEWER")}
    command = [sys.executable, "-m", "shared.cli", "review"]
    wrong = subprocess.run(
        command,
        cwd=ROOT,
        env=quiet | {"TARGET": "solution", "DOMAIN": "sports"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert wrong.returncode == 2
    assert "it takes finance, healthcare, climate" in wrong.stderr
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=quiet | {"TARGET": "solution", "DOMAIN": "climate", "PORT": str(port)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            address = re.search(rf"http://127\.0\.0\.1:{port}/\?token=\S+", told)
            assert address, told
            assert "reviewer" in told
            assert "Waiting for a decision" in _page_at(address[0])
            held = psutil.Process(process.pid).net_connections("inet")
            listening = [c.laddr for c in held if c.status == psutil.CONN_LISTEN]
            assert [(a.ip, a.port) for a in listening] == [("127.0.0.1", port)]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _page_at(address: str) -> str:
    with httpx.Client(follow_redirects=True, trust_env=False) as client:
        for _ in range(300):
            try:
                return client.get(address).text
            except httpx.ConnectError:
                time.sleep(0.1)
    return ""


# In a browser, where there is one.


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A page of a headless Chromium."""
    program = chromium()
    if program is None:
        pytest.skip(WITHOUT)
    with open_browser(program, tmp_path / "profile") as opened:
        yield opened


def test_a_browser_shows_an_injected_script_as_text(
    serve: Callable[..., Served], browser: Browser
) -> None:
    served = serve()
    case = served.waiting("case-risky")
    browser.visit(served.guard.address, "Waiting for a decision")
    assert "token" not in str(browser.run("location.href"))
    browser.visit(f"{served.origin}/cases/{case.id}", NOTE)
    counted = "document.scripts.length + document.images.length"
    assert browser.run(f"[{counted}, typeof window.injected, document.cookie]") == [
        0,
        "undefined",
        "",
    ]
    # Even what gets into the page is not run.
    script = "const s = document.createElement('script'); s.textContent = 'window.injected = 1';"
    browser.run(f"{script} document.body.append(s)")
    assert browser.run("typeof window.injected") == "undefined"
    assert browser.dialogs == []
    assert {url.split("/")[2] for url in browser.requested} == {f"127.0.0.1:{served.guard.port}"}
    assert "rgb(245, 247, 249)" in str(browser.run("getComputedStyle(document.body).background"))


def test_a_reviewer_works_with_the_keyboard_alone(
    serve: Callable[..., Served], browser: Browser
) -> None:
    served = serve()
    case = served.waiting("case-risky_and_tell")
    browser.visit(served.guard.address, "Waiting for a decision")
    browser.tab_to(f"a[href='/cases/{case.id}']")
    browser.press("Enter")
    browser.wait_for("What the agent wants to do")
    browser.tab_to("#note")
    browser.call("Input.insertText", text="called back")
    browser.press("Enter")  # In a field it must not press a button.
    browser.tab_to("button[value=approved]")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert served.done() == []
    browser.press("Enter")
    browser.wait_for("Decided: approved")
    assert "Note: called back" in browser.text()
    risky, message = served.done()
    assert risky == (case.tool, case.arguments)
    assert message[0] == served.world.roles["notify"]
    browser.run("history.back()")
    browser.wait_for("What the agent wants to do")
    if browser.run("document.querySelector('button[value=approved]') !== null"):
        browser.click("button[value=approved]")
        browser.wait_for("Decided: approved")
    assert len(served.done()) == 2


def test_a_reviewer_edits_and_rejects_with_the_mouse(
    serve: Callable[..., Served], browser: Browser
) -> None:
    served = serve()
    edited, rejected = served.waiting("case-too_much"), served.waiting("case-final")
    limit = served.world.limit(edited.arguments["item_id"])
    browser.visit(served.guard.address, "Waiting for a decision")
    browser.click(f"a[href='/cases/{edited.id}']")
    browser.wait_for("What the agent wants to do")
    browser.type_over("#argument-amount", "999999")
    browser.click("button[value=edited]")
    browser.wait_for("must be at most 900000")
    marked = "document.querySelector('#argument-amount').getAttribute('aria-invalid')"
    assert browser.run(marked) == "true"
    browser.type_over("#argument-amount", str(limit))
    browser.click("button[value=approved]")
    browser.wait_for("You changed this.")
    assert served.done() == []
    browser.click("button[value=edited]")
    browser.wait_for("Decided: edited")
    assert served.done() == [(edited.tool, {**edited.arguments, "amount": limit})]
    browser.click("header a")
    browser.wait_for("Waiting for a decision")
    browser.click(f"a[href='/cases/{rejected.id}']")
    browser.wait_for("What the agent wants to do")
    browser.click("button[value=rejected]")
    browser.wait_for("Decided: rejected")
    assert "was rejected" in browser.text()
    assert len(served.done()) == 1


def test_another_site_cannot_decide_from_the_reviewer_s_browser(
    serve: Callable[..., Served], browser: Browser
) -> None:
    served = serve()
    case = served.waiting("case-risky")
    browser.visit(served.guard.address, "Waiting for a decision")
    target = f"{served.origin}/cases/{case.id}"
    fields = {"verdict": "approved", "shown": case.fingerprint, "form": served.guard.form}
    inputs = "".join(f"<input name='{k}' value='{v}'>" for k, v in fields.items())
    page = (
        f"<p>Win a prize</p><form id=f method=post action='{target}'>{inputs}</form>"
        f"<iframe src='{target}'></iframe>"
    )
    with _another_site(page) as site:
        browser.visit(site, "Win a prize")
        sent = f"fetch('{target}', {{credentials: 'include'}}).then(r => r.text())"
        script = f"{sent}.then(() => window.got = 'read', () => window.got = 'nothing')"
        browser.run(script)
        for _ in range(100):
            if browser.run("window.got"):
                break
            time.sleep(0.1)
        assert browser.run("window.got") == "nothing"
        # It even knows the form's secret: where it comes from gives it away.
        browser.run("document.getElementById('f').submit()")
        browser.wait_for("The form was not sent by this page.")
    assert served.done() == []
    assert served.waiting("case-risky") == case


class _another_site:
    """A web page on another port of loopback."""

    def __init__(self, page: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
