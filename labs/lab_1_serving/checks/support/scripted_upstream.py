"""A model server whose every answer is written out by the check, its failures included.

It speaks just enough HTTP/1.1 and counts what it is sent. It runs in a thread and an event loop
of its own, so that a gateway that blocks cannot stop it too.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

PATIENCE_S = 8.0
"""How long a check waits for something that ought to come at once."""

STREAM_HEADERS = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}


@dataclass(frozen=True)
class Received:
    """A request as it came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Gate:
    """Holds answers back until the check opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        """Let all through."""
        self._open.set()

    async def passed(self) -> None:
        """Wait until it is open."""
        # The check opens it from another thread, for which asyncio's own events are not made.
        while not self._open.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Exchange:
    """One request and the means to answer it."""

    def __init__(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._writer = writer

    async def head(self, status: int, headers: dict[str, str]) -> None:
        """Send status line and headers."""
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{k}: {v}" for k, v in headers.items())]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def chunk(self, data: bytes) -> None:
        """Send one chunk of a chunked body; an empty one ends it."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def whole(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer. Header names are given with ``_`` for ``-``."""
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        named = {"content-type": "application/json", "content-length": str(len(body))} | named
        await self.head(status, named)
        await self.raw(body)

    async def drop(self) -> None:
        """Close the connection where it stands."""
        self._writer.transport.abort()
        await asyncio.sleep(3600)


Script = Callable[[Exchange], Awaitable[None]]


class ScriptedUpstream:
    """Answers each request with `script`, which may be replaced between requests.

    Attributes:
        received: every request, in order.
        connections: how many were opened.
        in_flight: requests that wait for the end of their answer.
        most_in_flight: the most of them at one time.
        abandoned: requests whose connection was closed before their answer had ended.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.received: list[Received] = []
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.abandoned = 0
        self.port = 0
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="scripted-upstream", daemon=True)

    @property
    def url(self) -> str:
        """Its root, as `Settings.upstream_url` wants it."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the upstream's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def stop_listening(self) -> None:
        """From now on connections are refused."""
        self.run(self._close())

    def wait_until(self, holds: Callable[[], bool], limit_s: float = PATIENCE_S) -> bool:
        """Whether `holds` came true within `limit_s`."""
        end = time.monotonic() + limit_s
        with self._changed:
            while not holds():
                if not self._changed.wait(max(0.0, min(0.1, end - time.monotonic()))) and (
                    time.monotonic() >= end
                ):
                    return holds()
        return True

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _count(self, **by: int) -> None:
        with self._changed:
            for name, step in by.items():
                setattr(self, name, getattr(self, name) + step)
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._changed.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._count(connections=1)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while (request := await _read_request(reader)) is not None:
                    self.received.append(request)
                    if not await self._answer(Exchange(request, writer), reader):
                        break
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, exchange: Exchange, reader: asyncio.StreamReader) -> bool:
        """Play the script; whether the connection is still good afterwards."""
        self._count(in_flight=1)
        playing = asyncio.ensure_future(self.script(exchange))
        # Between two requests a client has nothing to say: what is read here is its leaving.
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                with suppress(ConnectionError):
                    playing.result()
                    return not leaving.done()
            self._count(abandoned=1)
            return False
        finally:
            for task in (playing, leaving):
                task.cancel()
            await asyncio.gather(playing, leaving, return_exceptions=True)
            self._count(in_flight=-1)


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    start = (await reader.readline()).decode("latin-1").split()
    if len(start) != 3:
        return None
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = b""
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    return Received(start[0], start[1], headers, body)


COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "scripted",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}


def sse(text: str) -> bytes:
    """One event of a streamed chat."""
    piece = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": text}}]}
    return f"data: {json.dumps(piece)}\n\n".encode()


async def complete(exchange: Exchange) -> None:
    """A good answer, streamed if the request asks for that."""
    if b'"stream": true' in exchange.request.body or b'"stream":true' in exchange.request.body:
        await exchange.head(200, STREAM_HEADERS)
        for text in ("Par", "is", "."):
            await exchange.chunk(sse(text))
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.chunk(b"")
    elif exchange.request.method == "GET":
        await exchange.whole(200, b'{"object": "list", "data": [{"id": "scripted"}]}')
    else:
        await exchange.whole(200, json.dumps(COMPLETION).encode())


def answer(status: int, body: str, **headers: str) -> Script:
    """A script that answers so."""

    async def play(exchange: Exchange) -> None:
        await exchange.whole(status, body.encode(), **headers)

    return play


async def hang(exchange: Exchange) -> None:
    """Take the request and say nothing, ever."""
    await asyncio.sleep(3600)


async def drop(exchange: Exchange) -> None:
    """Take the request and close the connection."""
    await exchange.drop()


async def break_off(exchange: Exchange) -> None:
    """Begin a good answer, and close the connection half-way."""
    body = json.dumps(COMPLETION).encode()
    await exchange.head(200, {"content-type": "application/json", "content-length": str(len(body))})
    await exchange.raw(body[: len(body) // 2])
    await asyncio.sleep(0.05)
    await exchange.drop()


async def trickle(exchange: Exchange) -> None:
    """Send a byte now and then, for ever: never silent, never done."""
    await exchange.head(200, {"content-type": "application/json", "content-length": "1000000"})
    while True:
        await exchange.raw(b" ")
        await asyncio.sleep(0.05)


def half_an_event(then: Script) -> Script:
    """Begin an event, then do something else."""

    async def play(exchange: Exchange) -> None:
        await exchange.chunk(sse("never read")[:20])
        await asyncio.sleep(0.05)
        await then(exchange)

    return play


def stream_then(*texts: str, then: Script) -> Script:
    """Stream events for `texts`, then do something else."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, STREAM_HEADERS)
        for text in texts:
            await exchange.chunk(sse(text))
        await asyncio.sleep(0.05)
        await then(exchange)

    return play
