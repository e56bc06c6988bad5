"""A gateway in front of a model server.

It lets known clients in, keeps their requests within bounds, and hands them to one upstream: an
OpenAI-compatible engine. What follows is its contract.

Routes:
    ``GET /health`` answers 200 and ``{"status": "ok"}``. It needs no key and never asks the
    upstream. ``GET /v1/models`` and ``POST /v1/chat/completions`` are handed to the same path of
    the upstream; the latter streams where the body says ``"stream": true``.

Who is let in:
    A request with ``Authorization: Bearer <key>``, where the key is exactly one of
    `Settings.api_keys`. The scheme's name is the same in any case. Keys are compared in constant
    time, with `hmac.compare_digest`. An empty key is never valid, not even a configured one.
    Everything else gets 401 with ``WWW-Authenticate: Bearer``, before any of the body is read.

What the upstream gets:
    The body byte for byte, at most once for each request: the gateway does not retry. Of the
    client's headers only Content-Type and Accept, and no query string. With
    `Settings.upstream_key` set, ``Authorization: Bearer <upstream_key>``. Connections to the
    upstream are kept open and used again.

What the client gets:
    * the upstream's status, body and Content-Type where the upstream answers 200; a stream is
      passed on piece by piece, as it comes;
    * the upstream's 4xx likewise, with its Retry-After; but its 401 and 403 are about the
      gateway's own key, so the client gets 502;
    * 400 where the body is no JSON object;
    * 401 where the client is not let in;
    * 413 where the body is longer than `Settings.max_body_bytes`. That is said as soon as it is
      known: from Content-Length before any of the body is read, else at the byte too many;
    * 503 where the upstream says 503, with its Retry-After;
    * 502 where the upstream fails in any other way: another 5xx, no connection, an answer that
      breaks off;
    * 504 where the upstream takes longer than `Settings.deadline_s`.

    Of the upstream's headers only Content-Type and Retry-After are passed on. Bodies of 5xx are
    the gateway's own. Each error that the gateway words itself has OpenAI's form,
    ``{"error": {"message": ..., "type": ..., "code": ...}}``, and tells nothing of the inside: no
    exception's text, no address, none of the upstream's words.

Deadline:
    Without streaming the whole answer is there within `Settings.deadline_s`, or the client gets
    504. In a stream the answer begins within `Settings.deadline_s`, and no more than that passes
    between two pieces. A stream that stalls or breaks off cannot change its status any more: it
    ends with one event ``data: {"error": {...}}`` and without ``data: [DONE]``. If half an event
    had been passed on, a blank line ends it first.

Side by side:
    A hundred requests can wait for the upstream at once, and /health still answers.

When a client leaves:
    Its request to the upstream is closed, streaming or not: an engine goes on generating for as
    long as the connection is open.

Logs:
    Every response carries ``x-request-id``, a new one each time. For each request one line goes
    to the logger ``gateway`` at level INFO, with that id, the client's name (the key's name in
    `Settings.api_keys`) and the status. No log line, at any level, holds a key (right or wrong)
    or anything out of a body or a query string, neither the client's nor the upstream's.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("gateway")

_T = TypeVar("_T")
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a gateway is set up. Keys stay out of its `repr`.

    Attributes:
        upstream_url: root of the engine, without ``/v1``, e.g. ``"http://127.0.0.1:8000"``.
        api_keys: name of a client -> its key.
        upstream_key: what the gateway itself shows to the upstream; None for nothing.
        max_body_bytes: longest request body that is let through.
        deadline_s: most seconds that the upstream may take.
    """

    upstream_url: str
    api_keys: Mapping[str, str] = field(repr=False)
    upstream_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 262_144
    deadline_s: float = 60.0


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application, to the contract at the top of this file."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(
            base_url=settings.upstream_url,
            # The deadline is ours, over the whole exchange: httpx's timeouts are for each read.
            timeout=None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        ) as app.state.upstream:
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_middleware(_RequestLog)
    app.add_exception_handler(_Refusal, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_http_exception)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _let_in(request, settings)
        return await _hand_over(request, settings, body=None, streaming=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        _let_in(request, settings)
        body = await _read_body(request, settings.max_body_bytes)
        try:
            wanted = json.loads(body)
        # Deeply nested JSON ends in a RecursionError.
        except (ValueError, RecursionError):
            wanted = None
        if not isinstance(wanted, dict):
            raise _Refusal(400, "The body must be a JSON object.")
        return await _hand_over(request, settings, body, streaming=wanted.get("stream") is True)

    return app


class _Refusal(Exception):
    """An answer that the gateway words itself."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The answer's body, in OpenAI's form."""
        return {
            "error": {
                "message": self.message,
                "type": _ERROR_TYPES.get(self.status, "upstream_error"),
                "code": self.status,
            }
        }


class _ClientLeft(Exception):
    """The client closed its connection; nobody is there to answer."""


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refusal)
    return JSONResponse(error.body(), error.status, error.headers)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = _Refusal(error.status_code, str(error.detail), error.headers)
    return await _answer_refusal(request, refusal)


def _let_in(request: Request, settings: Settings) -> None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    client = _client_of(key.strip(), settings.api_keys) if scheme.lower() == "bearer" else None
    if client is None:
        raise _Refusal(401, "A valid API key is needed.", {"WWW-Authenticate": "Bearer"})
    request.scope["gateway_client"] = client


def _client_of(key: str, api_keys: Mapping[str, str]) -> str | None:
    # As bytes: on text, compare_digest raises for anything but ASCII.
    shown = key.encode("utf-8", "surrogateescape")
    found = None
    # No early exit, so that the time does not tell which key matched.
    for name, known in api_keys.items():
        if hmac.compare_digest(shown, known.encode("utf-8")) and known:
            found = name
    return found


async def _read_body(request: Request, limit: int) -> bytes:
    too_long = _Refusal(413, f"The body is longer than {limit} bytes.", {"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_long
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise too_long
    except ClientDisconnect:
        raise _ClientLeft from None
    return bytes(body)


async def _hand_over(
    request: Request, settings: Settings, body: bytes | None, streaming: bool
) -> Response:
    client: httpx.AsyncClient = request.app.state.upstream
    headers = {k: request.headers[k] for k in ("content-type", "accept") if k in request.headers}
    headers["accept-encoding"] = "identity"
    if settings.upstream_key:
        headers["authorization"] = f"Bearer {settings.upstream_key}"
    outgoing = client.build_request(request.method, request.url.path, content=body, headers=headers)
    try:
        async with asyncio.timeout(settings.deadline_s):
            return await _while_client_waits(request, _ask(client, outgoing, settings, streaming))
    except TimeoutError:
        raise _Refusal(504, "The model server took too long.") from None
    except httpx.HTTPError:
        raise _Refusal(502, "The model server could not be reached.") from None


async def _ask(
    client: httpx.AsyncClient, outgoing: httpx.Request, settings: Settings, streaming: bool
) -> Response:
    answer = await client.send(outgoing, stream=True)
    if streaming and answer.status_code == 200:
        return _Relay(answer, settings.deadline_s)
    try:
        return _judge(answer, await answer.aread())
    finally:
        await answer.aclose()


def _judge(answer: httpx.Response, body: bytes) -> Response:
    """What the client is told of the upstream's whole answer."""
    status = answer.status_code
    retry_after = {k: v for k, v in answer.headers.items() if k == "retry-after"}
    if status == 200 or (400 <= status < 500 and status not in (401, 403)):
        passed_on = retry_after | {k: v for k, v in answer.headers.items() if k == "content-type"}
        return Response(body, status, passed_on)
    if status == 503:
        raise _Refusal(503, "The model server is not ready for this request.", retry_after)
    raise _Refusal(502, "The model server failed.")


async def _while_client_waits(request: Request, work: Awaitable[_T]) -> _T:
    """The result of `work`, which is cancelled as soon as the client leaves.

    Raises:
        _ClientLeft: it did.
    """
    asking = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        raise _ClientLeft
    finally:
        for task in (asking, leaving):
            task.cancel()
        await asyncio.gather(asking, leaving, return_exceptions=True)


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Relay(StreamingResponse):
    """A stream passed on as it comes, which lets go of the upstream however it ends."""

    def __init__(self, answer: httpx.Response, deadline_s: float) -> None:
        super().__init__(
            self._pieces(answer, deadline_s),
            headers={"content-type": answer.headers.get("content-type", "text/event-stream")},
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._answer.aclose()

    @staticmethod
    async def _pieces(answer: httpx.Response, deadline_s: float) -> AsyncIterator[bytes]:
        pieces = answer.aiter_bytes()
        try:
            while True:
                async with asyncio.timeout(deadline_s):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield piece
        except (httpx.HTTPError, TimeoutError):
            # The status is out already. The blank line ends a half-sent event.
            broken = _Refusal(502, "The model server broke off its answer.")
            yield b"\n\ndata: " + json.dumps(broken.body()).encode() + b"\n\n"


class _RequestLog:
    """Gives each request an id and writes one line about it, and nothing out of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        started = time.perf_counter()
        status = 499  # what nginx writes for a client that left before its answer

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            with suppress(_ClientLeft):
                await self.app(scope, receive, send_with_id)
        finally:
            log.info(
                "request=%s client=%s method=%s status=%d seconds=%.3f",
                request_id,
                scope.get("gateway_client", "-"),
                scope["method"],
                status,
                time.perf_counter() - started,
            )
