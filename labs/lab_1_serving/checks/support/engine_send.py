"""Send one chat request to the running engine and tell how it went."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

SUBJECTS = ("the sea", "a bridge", "the moon", "a train", "the forest", "an island", "a clock")


def sender(
    http: httpx.AsyncClient, engine: Any, outcome: Callable[..., Any], *, max_tokens: int
) -> Callable[[int], Awaitable[Any]]:
    """A `send` for `run_open_loop`. All answers have `max_tokens` tokens."""

    async def send(index: int) -> Any:
        subject = SUBJECTS[index % len(SUBJECTS)]
        payload = {
            "model": engine.model,
            "messages": [{"role": "user", "content": f"Story {index}: write about {subject}."}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent = time.perf_counter()
        ttft, reason, usage = None, None, {}
        url = f"{engine.base_url}/chat/completions"
        async with http.stream("POST", url, json=payload) as response:
            if response.status_code != 200:
                words = (await response.aread()).decode(errors="replace")
                return outcome(status=response.status_code, error=words[:200])
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not data.startswith("{"):
                    continue
                event = json.loads(data)
                usage = event.get("usage") or usage
                for choice in event.get("choices") or []:
                    if choice["delta"].get("content") and ttft is None:
                        ttft = time.perf_counter() - sent
                    reason = choice.get("finish_reason") or reason
        return outcome(
            status=200,
            ttft_s=ttft,
            prompt_tokens=usage.get("prompt_tokens", 0),
            output_tokens=usage.get("completion_tokens", 0),
            finish_reason=reason,
        )

    return send
