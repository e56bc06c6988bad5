"""A small HTTP server on loopback that stands between a client and a model, and misbehaves.

What it passes on comes from a real engine: live, or from bytes recorded from one. Each request
gets the next `Plan`; when the plans are used up, requests get the whole answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx

RECORDED = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Plan:
    """What happens to one request.

    Attributes:
        status: anything but 200 is answered at once, with `body`.
        headers: more headers of the answer.
        body: body of an answer that is not 200.
        events: pass on this many of the stream's events; None for all.
        inject: bytes to send after those events.
        then: how the connection ends. ``"finish"``: the response ends as it should.
            ``"drop"``: the connection goes away in the middle of the response's framing, which
            HTTP clients notice. ``"cut"``: a response without framing just ends, which they do
            not. ``"hold"``: nothing more comes until the client goes away.
        packet: cut what is sent into packets of this many bytes; None for one an event.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b'{"error": {"message": "no capacity left", "type": "overloaded"}}'
    events: int | None = None
    inject: bytes = b""
    then: Literal["finish", "drop", "cut", "hold"] = "finish"
    packet: int | None = None


@dataclass
class Exchange:
    """One request as the proxy saw it.

    Attributes:
        path: the request's path.
        payload: its JSON body.
        events: the events that were passed on, as bytes.
        started: set when all that the plan lets through has been sent.
        client_left: set when the client closed the connection before the proxy did.
    """

    path: str
    payload: Any
    plan: Plan
    events: list[bytes] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    client_left: asyncio.Event = field(default_factory=asyncio.Event)

    def content(self) -> str:
        """The text in the events that were passed on."""
        return "".join(content_of(event) for event in self.events)

    def json_events(self) -> list[dict[str, Any]]:
        """The data of the events that were passed on, but for ``[DONE]``."""
        return [json.loads(data) for event in self.events if (data := _data(event))[:1] == b"{"]


Source = Callable[[str, bytes], AsyncIterator[bytes]]
"""From a request's path and body to the bytes of a 200 answer's stream."""


def recorded(name: str) -> Source:
    """Replay what a real engine sent once."""
    return replay((RECORDED / f"{name}.sse").read_bytes())


def replay(stream: bytes) -> Source:
    """Answer every request with these bytes."""

    async def source(path: str, body: bytes) -> AsyncIterator[bytes]:
        yield stream

    return source


def upstream(root_url: str) -> Source:
    """Pass requests on to a running server."""

    async def source(path: str, body: bytes) -> AsyncIterator[bytes]:
        headers = {"content-type": "application/json"}
        async with (
            httpx.AsyncClient(trust_env=False, timeout=120) as http,
            http.stream("POST", root_url + path, content=body, headers=headers) as response,
        ):
            response.raise_for_status()
            async for chunk in response.aiter_bytes():
                yield chunk

    return source


def content_of(event: bytes) -> str:
    """The content delta that one event carries, or an empty string."""
    data = _data(event)
    choices = (json.loads(data).get("choices") if data[:1] == b"{" else None) or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def _data(event: bytes) -> bytes:
    return event.removeprefix(b"data:").strip()


async def events_of(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream of bytes after each empty line."""
    pending = b""
    async with aclosing(stream):
        async for chunk in stream:
            *events, pending = (pending + chunk).split(b"\n\n")
            for event in events:
                yield event + b"\n\n"
    if pending:
        yield pending


class FaultyProxy:
    """The proxy itself: ``async with FaultyProxy(source, plans) as proxy: ...``.

    Attributes:
        base_url: what to give to a client, ending in ``/v1``.
        exchanges: what came in, in order.
    """

    def __init__(self, source: Source, plans: Sequence[Plan] = ()) -> None:
        self._source = source
        self._plans = list(plans)
        self._handlers: set[asyncio.Task[None]] = set()
        self._defects: list[BaseException] = []
        self.exchanges: list[Exchange] = []
        self.base_url = ""

    async def __aenter__(self) -> FaultyProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()
        if self._defects:
            raise self._defects[0]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._exchange(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:
            self._defects.append(error)
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *header_lines = head.rstrip().split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, v in (h.split(":", 1) for h in header_lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        plan = self._plans.pop(0) if self._plans else Plan()
        exchange = Exchange(request_line.split()[1], json.loads(body), plan)
        self.exchanges.append(exchange)
        answer = asyncio.create_task(self._answer(exchange, body, writer))
        gone = asyncio.create_task(reader.read())
        try:
            done, _ = await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                answer.result()
            else:
                exchange.client_left.set()
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _answer(self, exchange: Exchange, body: bytes, writer: asyncio.StreamWriter) -> None:
        plan = exchange.plan
        if plan.status != 200:
            await _send_head(writer, plan, ("content-type", "application/json"), length=True)
            writer.write(plan.body)
            await _close(writer)
            return
        framed = plan.then != "cut"
        await _send_head(writer, plan, ("content-type", "text/event-stream"), chunked=framed)
        if plan.events != 0:
            async with aclosing(events_of(self._source(exchange.path, body))) as events:
                async for event in events:
                    await _send(writer, event, plan.packet, framed)
                    exchange.events.append(event)
                    if len(exchange.events) == plan.events:
                        break
        if plan.inject:
            await _send(writer, plan.inject, plan.packet, framed)
        exchange.started.set()
        if plan.then == "hold":
            await asyncio.Event().wait()
        if plan.then == "finish":
            writer.write(b"0\r\n\r\n")
        await _close(writer)


async def _send_head(
    writer: asyncio.StreamWriter,
    plan: Plan,
    *headers: tuple[str, str],
    chunked: bool = False,
    length: bool = False,
) -> None:
    lines = [f"HTTP/1.1 {plan.status} Planned", "connection: close"]
    lines += [f"{name}: {value}" for name, value in (*headers, *plan.headers)]
    if chunked:
        lines.append("transfer-encoding: chunked")
    if length:
        lines.append(f"content-length: {len(plan.body)}")
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close after all that was written has gone out."""
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _send(
    writer: asyncio.StreamWriter, data: bytes, packet: int | None, framed: bool
) -> None:
    """Send `data` in packets, giving the client the chance to see each one by itself."""
    size = packet or len(data)
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if framed else piece)
        await writer.drain()
        await asyncio.sleep(0)
