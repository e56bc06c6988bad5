"""The draft, mended where it stands: its functions and its order of things, FastAPI throughout."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

log = logging.getLogger("gateway")


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

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.http = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.deadline_s, pool=None),
            limits=httpx.Limits(max_connections=500, max_keepalive_connections=20),
        )
        yield
        await app.state.http.aclose()

    app = FastAPI(title="Gateway", lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return await serve(request, settings)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await serve(request, settings)

    return app


async def serve(request: Request, settings: Settings) -> Response:
    """Answer a request, number the answer and write its line."""
    request_id = str(uuid.uuid4())
    client = authenticate(request, settings)
    if client is None:
        response: Response = _error(401, "Invalid API key", {"WWW-Authenticate": "Bearer"})
    else:
        response = await answer(request, settings)
    response.headers["x-request-id"] = request_id
    log.info("request=%s client=%s status=%d", request_id, client, response.status_code)
    return response


def authenticate(request: Request, settings: Settings) -> str | None:
    """Return the name of the client whose key the request carries, or None."""
    header = request.headers.get("authorization", "").encode("latin-1")
    if header[:7].lower() != b"bearer ":
        return None
    for name, key in settings.api_keys.items():
        if hmac.compare_digest(header[7:].strip(), key.encode()) and key != "":
            return name
    return None


async def answer(request: Request, settings: Settings) -> Response:
    """Read the body, check it, and hand it on."""
    body, payload = b"", {}
    if request.method == "POST":
        if int(request.headers.get("content-length", 0)) > settings.max_body_bytes:
            return _error(413, "Request body too large")
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.max_body_bytes:
                    return _error(413, "Request body too large")
        except ClientDisconnect:
            return _error(400, "The request broke off")
        try:
            payload = json.loads(body)
        except Exception:
            return _error(400, "Invalid JSON")
        if not isinstance(payload, dict):
            return _error(400, "The body must be an object")

    headers = {"accept": request.headers.get("accept", "*/*")}
    if "content-type" in request.headers:
        headers["content-type"] = request.headers["content-type"]
    if settings.upstream_key:
        headers["authorization"] = f"Bearer {settings.upstream_key}"
    http: httpx.AsyncClient = request.app.state.http
    outgoing = http.build_request(
        request.method, settings.upstream_url + request.url.path, content=body, headers=headers
    )
    asking = asyncio.create_task(ask(http, outgoing, bool(payload.get("stream")), settings))
    while not asking.done():
        await asyncio.wait({asking}, timeout=0.1)
        if not asking.done() and await request.is_disconnected():
            asking.cancel()
            return _error(499, "The client has left")
    return asking.result()


async def ask(
    http: httpx.AsyncClient, outgoing: httpx.Request, streaming: bool, settings: Settings
) -> Response:
    """Hand a request to the upstream and return its answer."""
    try:
        return await asyncio.wait_for(
            _ask(http, outgoing, streaming, settings), settings.deadline_s
        )
    except (TimeoutError, httpx.TimeoutException):
        return _error(504, "The engine took too long")
    except httpx.HTTPError:
        return _error(502, "The engine did not answer")


async def _ask(
    http: httpx.AsyncClient, outgoing: httpx.Request, streaming: bool, settings: Settings
) -> Response:
    upstream = await http.send(outgoing, stream=True)
    status = upstream.status_code
    if streaming and status == 200:
        return StreamingResponse(
            events(upstream, settings), media_type=upstream.headers.get("content-type")
        )
    try:
        content = await upstream.aread()
    finally:
        await upstream.aclose()
    headers = {}
    if "retry-after" in upstream.headers:
        headers["Retry-After"] = upstream.headers["retry-after"]
    if status == 503:
        return _error(503, "The engine is busy", headers)
    if status != 200 and (not 400 <= status < 500 or status in (401, 403)):
        return _error(502, "The engine failed")
    headers["Content-Type"] = upstream.headers.get("content-type", "application/json")
    return Response(content, status, headers)


async def events(upstream: httpx.Response, settings: Settings) -> AsyncIterator[bytes]:
    """The upstream's bytes as they come; an error event if they end too soon."""
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        problem = {"message": "The engine's answer broke off", "type": "upstream", "code": 502}
        yield f"\n\ndata: {json.dumps({'error': problem})}\n\n".encode()
    finally:
        await upstream.aclose()


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "code": None}}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))
