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

import json
import logging
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

log = logging.getLogger("gateway")

# Connection-level headers are about one hop and must not be forwarded (RFC 9110, 7.6.1).
HOP_BY_HOP = {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "te"}
MAX_ATTEMPTS = 3


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
    app = FastAPI(title="Gateway")
    app.state.settings = settings

    @app.exception_handler(Exception)
    async def on_error(request: Request, error: Exception) -> JSONResponse:
        """Answer in OpenAI's form whatever happens, and keep the traceback for debugging."""
        log.error("Unhandled error: %s", error, exc_info=error)
        return _error(500, f"{error}\n{traceback.format_exc()}", "internal_error")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        client = authenticate(request, settings)
        if client is None:
            return _unauthorized()
        return await forward(request, settings, client, b"")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, settings)
        if body is None:
            return _error(413, "Request body too large", "invalid_request_error")

        client = authenticate(request, settings)
        if client is None:
            log.warning(
                "Rejected request with key %s", request.headers.get("authorization", "<none>")
            )
            return _unauthorized()

        try:
            payload = json.loads(body)
        except json.JSONDecodeError as error:
            log.warning("Invalid JSON from %s: %s in %r", client, error, body[:200])
            return _error(400, f"Invalid JSON: {error}", "invalid_request_error")

        # One structured line per request makes usage and abuse traceable.
        log.info(
            "client=%s model=%s user=%s stream=%s prompt=%r",
            client,
            payload.get("model"),
            payload.get("user"),
            payload.get("stream", False),
            _last_message(payload)[:120],
        )
        if payload.get("stream"):
            return await forward_stream(request, settings, client, body)
        return await forward(request, settings, client, body)

    return app


def authenticate(request: Request, settings: Settings) -> str | None:
    """Return the name of the client whose key the request carries, or None."""
    header = request.headers.get("authorization", "")
    token = header.removeprefix("Bearer").strip()
    for name, key in settings.api_keys.items():
        # startswith: keys may carry a rotation suffix, such as "-v2".
        if token == key or token.startswith(key):
            return name
    return None


async def read_body(request: Request, settings: Settings) -> bytes | None:
    """Return the request's body, or None if it is longer than allowed."""
    declared = int(request.headers.get("content-length", 0))
    if declared > settings.max_body_bytes:
        return None
    return await request.body()


async def forward(request: Request, settings: Settings, client: str, body: bytes) -> Response:
    """Hand a request to the upstream and return its answer.

    Transient failures are retried with exponential back-off.
    """
    request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
    url = f"{settings.upstream_url}{request.url.path}"
    headers = _upstream_headers(request, settings)
    started = time.perf_counter()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            # Generation can take minutes, so there is no read timeout.
            with httpx.Client(timeout=httpx.Timeout(None, connect=5.0)) as upstream:
                answer = upstream.request(
                    request.method, url, content=body, headers=headers, params=request.query_params
                )
            if answer.status_code >= 500 and attempt < MAX_ATTEMPTS:
                log.warning("Upstream %d, retrying: %s", answer.status_code, answer.text)
                time.sleep(0.1 * 2**attempt)
                continue
            break
        except httpx.HTTPError as error:
            log.warning("Attempt %d failed: %s", attempt, error)
            if attempt == MAX_ATTEMPTS:
                return JSONResponse(
                    {"error": {"message": str(error), "type": "upstream_error", "code": 502}},
                    headers={"x-request-id": request_id},
                )
            time.sleep(0.1 * 2**attempt)

    log.info(
        "request=%s client=%s status=%d seconds=%.3f",
        request_id,
        client,
        answer.status_code,
        time.perf_counter() - started,
    )
    return Response(
        content=answer.content,
        media_type=answer.headers.get("content-type", "application/json"),
        headers={"x-request-id": request_id},
    )


async def forward_stream(
    request: Request, settings: Settings, client: str, body: bytes
) -> Response:
    """Hand a streaming request to the upstream and relay its events."""
    request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
    url = f"{settings.upstream_url}{request.url.path}"
    headers = _upstream_headers(request, settings)

    async def events() -> AsyncIterator[bytes]:
        try:
            async with httpx.AsyncClient(timeout=None) as upstream:
                answer = await upstream.post(url, content=body, headers=headers)
                for line in answer.iter_lines():
                    if line:
                        yield f"{line}\n\n".encode()
        except Exception as error:
            log.exception("Stream failed for %s", client)
            yield f"data: {json.dumps({'error': str(error)})}\n\n".encode()
            yield b"data: [DONE]\n\n"

    log.info("request=%s client=%s status=200 streaming", request_id, client)
    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"x-request-id": request_id}
    )


def _upstream_headers(request: Request, settings: Settings) -> dict[str, str]:
    headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
    if settings.upstream_key:
        headers["Authorization"] = f"Bearer {settings.upstream_key}"
    log.debug("Upstream headers: %s", headers)
    return headers


def _last_message(payload: dict) -> str:
    messages = payload.get("messages") or [{}]
    return str(messages[-1].get("content", ""))


def _unauthorized() -> JSONResponse:
    return _error(401, "Invalid API key", "authentication_error")


def _error(status: int, message: str, kind: str) -> JSONResponse:
    return JSONResponse(
        {"error": {"message": message, "type": kind, "code": status}}, status_code=status
    )
