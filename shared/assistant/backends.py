"""Who writes the assistant's answers: the running engine, or a recording of it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import httpx

from shared.assistant.material import HERE, read_rows
from shared.engine import Engine

Messages = Sequence[Mapping[str, str]]
_TIMEOUT_S = 120


class AssistantError(RuntimeError):
    """The assistant cannot answer; the message says why, and what to do."""


@dataclass(frozen=True)
class Prompt:
    """What is asked of a model. The same prompt has the same key, everywhere."""

    messages: tuple[tuple[str, str], ...]
    """Pairs of role and content."""
    max_tokens: int
    temperature: float
    seed: int

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        finish: ``"stop"``, or ``"length"`` when it was cut off.
    """

    text: str
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    finish: str


class Backend(Protocol):
    """Writes answers."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def kind(self) -> str:
        """The engine: ``"portable"``, ``"vllm-cpu"``, ``"vllm-gpu"``; for recordings theirs."""

    def complete(self, prompt: Prompt) -> Completion:
        """The model's answer.

        Raises:
            AssistantError: there is none.
        """


class LiveBackend:
    """The running engine, over its OpenAI-compatible API."""

    def __init__(self, engine: Engine) -> None:
        self._url = f"{engine.base_url}/chat/completions"
        self.model = engine.model
        self.kind: str = engine.kind

    def complete(self, prompt: Prompt) -> Completion:
        """One request; nothing is tried twice."""
        started = time.monotonic()
        body = {
            "model": self.model,
            "messages": [{"role": r, "content": c} for r, c in prompt.messages],
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.temperature,
            "seed": prompt.seed,
        }
        try:
            reply = httpx.post(self._url, json=body, timeout=_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise AssistantError(
                f"The engine at {self._url} does not answer ({error}). `make engine-status` shows "
                "what runs."
            ) from error
        if reply.status_code != 200:
            raise AssistantError(f"The engine refused ({reply.status_code}): {reply.text[:300]}")
        made = reply.json()
        choice, usage = made["choices"][0], made["usage"]
        return Completion(
            text=(choice["message"]["content"] or "").strip(),
            prompt_tokens=usage["prompt_tokens"],
            answer_tokens=usage["completion_tokens"],
            seconds=time.monotonic() - started,
            finish=choice["finish_reason"],
        )


@dataclass(frozen=True)
class Recording:
    """One recorded answer.

    Attributes:
        key: of the prompt that it answers.
        item: id of the golden question or attack.
        configuration: which assistant asked, e.g. ``"plain"`` or ``"defended"``.
        question: what it was asked.
        text: what the model wrote, before any screening.
    """

    key: str
    item: str
    configuration: str
    question: str
    text: str
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    finish: str


@dataclass(frozen=True)
class Recorded:
    """Answers of a real engine, recorded by `python -m shared.assistant.record`.

    It knows only the prompts that were recorded: the recorded questions and attacks, with the
    documents in force and the configurations that README.md lists.

    Attributes:
        date: when, as YYYY-MM-DD.
    """

    domain: str
    model: str
    kind: str
    date: str
    recordings: Mapping[str, Recording]

    @classmethod
    def load(cls, domain: str, path: Path | None = None) -> Recorded:
        """The domain's recording.

        Raises:
            MaterialError: it cannot be read.
        """
        return _load(domain, path or HERE / "recorded" / f"{domain}.jsonl")

    def complete(self, prompt: Prompt) -> Completion:
        """What the engine wrote then."""
        kept = self.recordings.get(prompt.key)
        if kept is None:
            raise AssistantError(
                f"There is no recorded answer to this prompt in {self.domain} (recorded "
                f"{self.date}). Recorded are the golden questions and the attacks with the "
                "documents in force. Ask a running engine instead: Assistant(domain, engine)."
            )
        return Completion(
            kept.text, kept.prompt_tokens, kept.answer_tokens, kept.seconds, kept.finish
        )


@lru_cache(maxsize=8)
def _load(domain: str, path: Path) -> Recorded:
    head, *rows = read_rows(path)
    recordings = [Recording(**r) for r in rows]
    return Recorded(
        domain=domain,
        model=head["model"],
        kind=head["engine"],
        date=head["date"],
        recordings={r.key: r for r in recordings},
    )
