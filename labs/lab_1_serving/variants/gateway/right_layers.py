"""Layers of plain ASGI, each with one duty, around one function that talks to the upstream."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

log = logging.getLogger("gateway")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

ROUTES = {"/health": "GET", "/v1/models": "GET", "/v1/chat/completions": "POST"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a gateway is set up."""

    upstream_url: str
    api_keys: Mapping[str, str] = field(repr=False)
    upstream_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 262_144
    deadline_s: float = 60.0


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        if "client" in shared:
            await shared.pop("client").aclose()

    shared: dict[str, httpx.AsyncClient] = {}
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.mount(
        "/", logged(routed(authorized(bounded(handed_over(shared, settings), settings), settings)))
    )
    return app


def logged(inner: App) -> App:
    """A line for each request."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        request_id, status = secrets.token_hex(8), 0

        async def noting(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = message | {
                    "headers": [*message["headers"], (b"x-request-id", request_id.encode())]
                }
            await send(message)

        scope["client_name"] = "nobody"
        try:
            await inner(scope, receive, noting)
        finally:
            log.info("%s %s %s", request_id, scope["client_name"], status or "client left")

    return app


def routed(inner: App) -> App:
    """Known paths only."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        method = ROUTES.get(scope["path"])
        if method is None:
            await error(404, "No such path.")(scope, receive, send)
        elif method != scope["method"]:
            await error(405, "No such method.", allow=method)(scope, receive, send)
        elif scope["path"] == "/health":
            await JSONResponse({"status": "ok"})(scope, receive, send)
        else:
            await inner(scope, receive, send)

    return app


def authorized(inner: App, settings: Settings) -> App:
    """Known clients only; keys are compared by their digests, which have one length."""
    known = {
        name: hashlib.sha256(key.encode()).digest()
        for name, key in settings.api_keys.items()
        if key
    }

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        shown = hashlib.sha256(key).digest()
        matches = [name for name, one in known.items() if secrets.compare_digest(one, shown)]
        if scheme.lower() != b"bearer" or not matches:
            response = error(401, "No valid key.", **{"www-authenticate": "Bearer"})
            await response(scope, receive, send)
            return
        scope["client_name"] = matches[0]
        await inner(scope, receive, send)

    return app


def bounded(inner: App, settings: Settings) -> App:
    """Reads a body within its bounds and puts it into the scope."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        pieces: list[bytes] = []
        more = scope["method"] == "POST"
        if int(length) > settings.max_body_bytes:
            await error(413, "Too long.", connection="close")(scope, receive, send)
            return
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
            if sum(map(len, pieces)) > settings.max_body_bytes:
                await error(413, "Too long.", connection="close")(scope, receive, send)
                return
        scope["body"] = b"".join(pieces)
        scope["wants"] = {}
        if scope["method"] == "POST":
            try:
                scope["wants"] = json.loads(scope["body"].decode())
            except (ValueError, RecursionError):
                scope["wants"] = None
            if not isinstance(scope["wants"], dict):
                await error(400, "Not a JSON object.")(scope, receive, send)
                return
        await inner(scope, receive, send)

    return app


def handed_over(shared: dict[str, httpx.AsyncClient], settings: Settings) -> App:
    """The upstream's answer, for as long as the client is there."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if "client" not in shared:
            shared["client"] = httpx.AsyncClient(
                timeout=None, trust_env=False, limits=httpx.Limits(max_keepalive_connections=50)
            )

        async def watch(group: anyio.abc.TaskGroup) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch, group)
            await relay(scope, send, shared["client"], settings)
            group.cancel_scope.cancel()

    return app


async def relay(
    scope: dict[str, Any], send: Send, client: httpx.AsyncClient, settings: Settings
) -> None:
    """Ask the upstream once and pass on what may be passed on."""
    headers = {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"content-type", b"accept")
    }
    if settings.upstream_key:
        headers["authorization"] = f"Bearer {settings.upstream_key}"
    request = client.build_request(
        scope["method"],
        settings.upstream_url + scope["path"],
        content=scope["body"] or None,
        headers=headers,
    )
    answer: httpx.Response | None = None
    started = False
    try:
        with anyio.fail_after(settings.deadline_s) as limit:
            answer = await client.send(request, stream=True)
            if answer.status_code == 200 and scope["wants"].get("stream"):
                kind = answer.headers.get("content-type", "text/event-stream")
                await send(
                    {
                        "type": "http.response.start",
                        "status": 200,
                        "headers": [(b"content-type", kind.encode())],
                    }
                )
                started = True
                async for piece in answer.aiter_bytes():
                    limit.deadline = anyio.current_time() + settings.deadline_s
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                return
            body = await answer.aread()
        await judged(answer, body)(scope, None, send)
    except (httpx.HTTPError, TimeoutError) as problem:
        status = 504 if isinstance(problem, TimeoutError) else 502
        response = error(status, "No answer from the model server.")
        if not started:
            await response(scope, None, send)
        else:
            event = b"\n\ndata: " + response.body + b"\n\n"
            await send({"type": "http.response.body", "body": event})
    finally:
        if answer is not None:
            with anyio.CancelScope(shield=True):
                await answer.aclose()


def judged(answer: httpx.Response, body: bytes) -> Response:
    """The client's answer for the upstream's."""
    kept = {k: answer.headers[k] for k in ("retry-after",) if k in answer.headers}
    match answer.status_code:
        case 200:
            return Response(body, 200, kept, answer.headers.get("content-type"))
        case 401 | 403:
            return error(502, "The model server does not know the gateway.")
        case status if 400 <= status < 500:
            return Response(body, status, kept, answer.headers.get("content-type"))
        case 503:
            return error(503, "The model server is busy.", **kept)
    return error(502, "The model server failed.")


def error(status: int, message: str, **headers: str) -> JSONResponse:
    """An error in OpenAI's form."""
    body = {"error": {"message": message, "type": "gateway_error", "code": str(status)}}
    return JSONResponse(body, status, headers)
