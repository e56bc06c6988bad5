"""A chat API on loopback that a function answers: judges whose worth is known."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


@dataclass(frozen=True)
class Reply:
    """What the API answers.

    Attributes:
        text: the message's content; None as some servers send it when nothing was written.
        finish: the finish reason.
        status: of HTTP; with any but 200 there is no message.
    """

    text: str | None
    finish: str = "stop"
    status: int = 200


Answerer = Callable[[str, Mapping[str, Any]], Reply]
"""Takes the prompt (all message contents, joined by line ends) and the body of the request.

It raises `LookupError` where it is asked what it does not know.
"""


class ChatApi:
    """Serves ``POST /v1/chat/completions`` until it is closed.

    Attributes:
        asked: bodies of all requests so far.
        error: what the answerer raised, if it did.
        model: whatever its user keeps with it; making a client takes longer than a request.
    """

    def __init__(self, answer: Answerer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.model: Any = None
        self._answer = answer
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def now(self, answer: Answerer) -> None:
        """Answer by another function from now on, and forget what was asked."""
        self._answer = answer
        self.asked.clear()

    def close(self) -> None:
        """Stop serving; nothing listens any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def seeds(self) -> list[Any]:
        """The seeds of all requests, in order."""
        return [body.get("seed") for body in self.asked]

    def _respond(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append(body)
        prompt = "\n".join(str(m.get("content")) for m in body.get("messages", []))
        try:
            reply = self._answer(prompt, body)
        except LookupError as error:  # told to the check, which runs in another thread
            self.error = self.error or error
            reply = Reply(None)
        except Exception as error:
            self.error = self.error or error
            return 500, {"error": {"message": "the scripted judge failed"}}
        if reply.status != 200:
            return reply.status, {"error": {"message": "the engine is restarting"}}
        message = {"role": "assistant", "content": reply.text}
        return 200, {
            "id": f"chatcmpl-{len(self.asked)}",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model", ""),
            "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                status, made = api._respond(json.loads(self.rfile.read(length)))
                if self.path != "/v1/chat/completions":
                    status, made = 404, {"error": {"message": f"no {self.path}"}}
                payload = json.dumps(made).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class Forward:
    """An answerer that asks a real engine, and keeps what it said.

    Attributes:
        heard: for each request its body and the engine's reply.
    """

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url}/chat/completions"
        self.heard: list[tuple[Mapping[str, Any], Reply]] = []

    def __call__(self, prompt: str, body: Mapping[str, Any]) -> Reply:
        made = httpx.post(self._url, json=dict(body), timeout=120)
        made.raise_for_status()
        choice = made.json()["choices"][0]
        reply = Reply(choice["message"]["content"], choice["finish_reason"])
        self.heard.append((body, reply))
        return reply
