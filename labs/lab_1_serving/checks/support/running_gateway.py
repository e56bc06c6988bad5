"""Runs a gateway for real, on a loopback port, and notes what it takes in and what it logs."""

from __future__ import annotations

import inspect
import io
import json
import logging
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn

from shared.grading.expect import fail

from .scripted_upstream import PATIENCE_S, Script, ScriptedUpstream

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    """What a client got; `status` is 0 where it got no answer, and `problem` says why."""

    status: int
    headers: dict[str, str]
    body: bytes
    problem: str = ""

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def __str__(self) -> str:
        if not self.status:
            return self.problem
        return f"{self.status} with the body {self.text[:300]!r}"


class LogBook(logging.Handler):
    """Everything that is logged or printed outside the check's own thread."""

    _NOISY = ("httpcore", "asyncio", "httpx", "urllib3", "aiohttp")

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self.printed = io.StringIO()
        self._check_thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, unless the check's own client wrote it."""
        if record.thread == self._check_thread or record in self.records:
            return
        if record.levelno < logging.INFO and record.name.startswith(self._NOISY):
            return
        self.records.append(record)

    def lines(self) -> list[str]:
        """Each record as it would be written, exceptions included, and what was printed."""
        form = logging.Formatter("%(levelname)s %(name)s %(message)s")
        return [form.format(r) for r in list(self.records)] + self.printed.getvalue().splitlines()

    def last_exception(self, file: str) -> str:
        """The last exception that was logged, in one line, with its place in `file`."""
        for record in reversed(self.records):
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                places = [
                    f for f in traceback.extract_tb(error.__traceback__) if f.filename == file
                ]
                where = f", in line {places[-1].lineno}" if places else ""
                return f"{type(error).__name__}: {error}{where}"
        return ""

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Listen for as long as the block lasts."""
        root, own = logging.getLogger(), logging.getLogger("gateway")
        level, stdout, stderr = root.level, sys.stdout, sys.stderr
        root.addHandler(self)
        own.addHandler(self)
        root.setLevel(logging.DEBUG)
        sys.stdout, sys.stderr = _Tee(stdout, self.printed), _Tee(stderr, self.printed)
        try:
            yield self
        finally:
            sys.stdout, sys.stderr = stdout, stderr
            root.setLevel(level)
            root.removeHandler(self)
            own.removeHandler(self)


class _Tee(io.TextIOBase):
    def __init__(self, first: Any, second: Any) -> None:
        self._both = (first, second)

    def write(self, text: str) -> int:
        for out in self._both:
            out.write(text)
        return len(text)

    def flush(self) -> None:
        for out in self._both:
            out.flush()


class RunningGateway:
    """The learner's application under uvicorn, in a thread of its own.

    Attributes:
        taken: bytes of request bodies that the application took from the server.
        logs: what was logged and printed meanwhile.
    """

    def __init__(self, create_app: Callable[[Any], Any], settings: Any) -> None:
        self.taken = 0
        self.logs = LogBook()
        self._app = create_app(settings)
        self._file = inspect.unwrap(create_app).__code__.co_filename
        config = uvicorn.Config(
            self._counted,
            host="127.0.0.1",
            port=0,
            http="h11",
            loop="asyncio",
            interface="asgi3",
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        # A connection for each request: what one leaves behind does not touch the next.
        self._client = httpx.Client(
            trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    def __enter__(self) -> Self:
        self._listening = self.logs.open()
        self._listening.__enter__()
        self._thread.start()
        end = time.monotonic() + PATIENCE_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.005)
        if not self._server.started:
            why = self.logs.last_exception(self._file) or "; ".join(self.logs.lines()[-3:])
            self._stop()
            fail(
                observed=f"the application did not start: {why or 'no reason was logged'}",
                expected="an application that uvicorn can start",
                why="A gateway that does not come up takes every client down with it.",
            )
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def ask(
        self,
        method: str = "POST",
        path: str = CHAT,
        *,
        key: str | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Answer:
        """Send one request and read its whole answer.

        Args:
            key: sent as ``Authorization: Bearer <key>``; None sends none.
            body: bytes as they are; anything else as JSON.
        """
        named = dict(headers or {})
        if key is not None:
            named["authorization"] = f"Bearer {key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            named.setdefault("content-type", "application/json")
        try:
            got = self._client.request(
                method, self.url + path, content=body, headers=named, timeout=patience_s
            )
            return self._answer(got.status_code, dict(got.headers), got.content)
        except httpx.TimeoutException:
            return Answer(0, {}, b"", f"no answer while the check waited {patience_s:g} s")
        except httpx.HTTPError as error:
            return Answer(0, {}, b"", f"a connection that broke ({type(error).__name__})")

    def send_raw(self, data: bytes, patience_s: float = PATIENCE_S) -> Answer:
        """Send bytes on a fresh connection and read the head of what comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience_s) as sock:
            sender = threading.Thread(target=_send_all, args=(sock, data), daemon=True)
            sender.start()
            got = b""
            try:
                while b"\r\n\r\n" not in got:
                    piece = sock.recv(65_536)
                    if not piece:
                        break
                    got += piece
            except TimeoutError:
                return Answer(0, {}, b"", f"no answer while the check waited {patience_s:g} s")
            except OSError as error:
                return Answer(0, {}, b"", f"a connection that broke ({type(error).__name__})")
            finally:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sender.join(patience_s)
        head, _, rest = got.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        if not lines[0].startswith("HTTP/"):
            return Answer(0, {}, b"", "a connection that was closed without an answer")
        pairs = (line.partition(":") for line in lines[1:])
        return self._answer(
            int(lines[0].split()[1]), {k.strip().lower(): v.strip() for k, _, v in pairs}, rest
        )

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> Answer:
        if status == 500 and (why := self.logs.last_exception(self._file)):
            body += f" (your code raised {why})".encode()
        return Answer(status, headers, body)

    async def _counted(self, scope: Any, receive: Any, send: Any) -> None:
        async def counting() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                self.taken += len(message.get("body", b""))
            return message

        await self._app(scope, counting, send)

    def _run(self) -> None:
        # uvicorn leaves with SystemExit where an application does not start.
        with suppress(SystemExit):
            self._server.run()

    def _stop(self) -> None:
        self._client.close()
        self._server.should_exit = True
        self._thread.join(2.0)
        self._server.force_exit = True
        self._thread.join(2.0)
        self._listening.__exit__(None, None, None)


@contextmanager
def serving(
    learner: Any, script: Script, **settings: Any
) -> Iterator[tuple[RunningGateway, ScriptedUpstream]]:
    """The learner's gateway in front of an upstream that follows `script`."""
    with ScriptedUpstream(script) as upstream:
        chosen = learner.Settings(upstream_url=upstream.url, **settings)
        with RunningGateway(learner.create_app, chosen) as gateway:
            try:
                yield gateway, upstream
            finally:
                # First, so that a gateway that hangs on its upstream comes loose.
                upstream.stop_listening()


def _send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)
