"""A model that replies what a script says, in the shape that the engines reply.

The two templates are recorded from vLLM 0.32 and from llama.cpp's server (its timings cut
short); the content, the finish_reason and the refusal are put in. Neither engine refused
anything here: a refusal has the shape that the API reference gives it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

CALL_LIMIT = 30
"""Calls after which a runaway loop is stopped."""


class Runaway(BaseException):
    """The caller does not stop calling. No Exception, so that no broad handler swallows it."""


def vllm_completion(
    content: str | None, finish_reason: str = "stop", refusal: str | None = None
) -> dict[str, Any]:
    """A chat completion as vLLM sends it."""
    return {
        "id": "chatcmpl-8bece24857758724",
        "object": "chat.completion",
        "created": 1795455091,
        "model": "smollm2-135m-instruct",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": content,
                    "refusal": refusal,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": finish_reason,
                "stop_reason": None,
                "token_ids": None,
                "routed_experts": None,
            }
        ],
        "service_tier": None,
        "system_fingerprint": "vllm-0.32.0-2f922151",
        "usage": {
            "prompt_tokens": 108,
            "total_tokens": 114,
            "completion_tokens": 6,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def llama_completion(
    content: str | None, finish_reason: str = "stop", refusal: str | None = None
) -> dict[str, Any]:
    """A chat completion as llama.cpp's server sends it: no `refusal` unless there is one."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if refusal is not None:
        message["refusal"] = refusal
    return {
        "choices": [{"finish_reason": finish_reason, "index": 0, "message": message}],
        "created": 1795450496,
        "model": "smollm2-135m-instruct",
        "system_fingerprint": "b0-unknown",
        "object": "chat.completion",
        "usage": {
            "completion_tokens": 66,
            "prompt_tokens": 119,
            "total_tokens": 185,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
        "id": "chatcmpl-zrA3cTNP9RK8MwTG7Ulm3oE497Qto41E",
        "timings": {"prompt_n": 115, "predicted_n": 66},
    }


SHAPES: list[Callable[..., dict[str, Any]]] = [vllm_completion, llama_completion]


class ScriptedModel:
    """Replies one script entry a call, the last one for ever; keeps the requests."""

    def __init__(self, *replies: dict[str, Any]) -> None:
        self._replies = replies
        self.requests: list[dict[str, Any]] = []

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        # Kept as JSON would carry it: later changes by the caller don't reach back.
        self.requests.append(json.loads(json.dumps(request)))
        if len(self.requests) >= CALL_LIMIT:
            raise Runaway
        return copy.deepcopy(self._replies[min(len(self.requests), len(self._replies)) - 1])
