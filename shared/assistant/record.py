"""Records the real engine: `python -m shared.assistant.record` writes recorded/<domain>.jsonl.

It asks the golden questions with the configurations "plain" and "defended", and the open attacks
with "leaky" and "leaky_defended", whose prompts hold customer records. What a file already holds
for the same model and engine is kept, so a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.assistant.assistant import Assistant
from shared.assistant.attacks import CUSTOMERS_SHOWN, make_attacks
from shared.assistant.backends import (
    AssistantError,
    Backend,
    Completion,
    LiveBackend,
    Prompt,
    Recording,
)
from shared.assistant.material import (
    HERE,
    MaterialError,
    load_customers,
    load_documents,
    load_golden,
    read_rows,
)
from shared.assistant.records import DOMAINS, Customer, Document, Domain
from shared.engine import EngineError, ensure_engine

ATTACKS_PER_KIND = 6
SEED = 0
TEMPERATURE = 0.0
_AT_ONCE = 2


@dataclass(frozen=True)
class Job:
    """One question to one configuration of the assistant."""

    item: str
    configuration: str
    question: str
    documents: tuple[Document, ...]
    customers: tuple[Customer, ...] = ()

    @property
    def defended(self) -> bool:
        """Whether the configuration takes measures."""
        return self.configuration.endswith("defended")


@dataclass
class _Tape:
    """A backend that keeps what another one says."""

    inner: Backend
    kept: Mapping[str, Recording]
    job: Job
    made: list[Recording] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.inner.model

    @property
    def kind(self) -> str:
        return self.inner.kind

    def complete(self, prompt: Prompt) -> Completion:
        known = self.kept.get(prompt.key)
        done = known or self.inner.complete(prompt)
        recording = Recording(
            key=prompt.key,
            item=self.job.item,
            configuration=self.job.configuration,
            question=self.job.question,
            text=done.text,
            prompt_tokens=done.prompt_tokens,
            answer_tokens=done.answer_tokens,
            seconds=round(done.seconds, 2),
            finish=done.finish,
        )
        self.made.append(recording)
        return Completion(
            done.text, done.prompt_tokens, done.answer_tokens, done.seconds, done.finish
        )


def jobs(domain: Domain) -> Iterator[Job]:
    """What is recorded, golden questions first."""
    documents = load_documents(domain)
    for question in load_golden(domain):
        for configuration in ("plain", "defended"):
            yield Job(question.id, configuration, question.question, documents)
    shown = load_customers(domain)[:CUSTOMERS_SHOWN]
    for attack in make_attacks(domain, seed=SEED, per_kind=ATTACKS_PER_KIND):
        for configuration in ("leaky", "leaky_defended"):
            given = attack.documents(documents)
            yield Job(attack.id, configuration, attack.question, given, shown)


def record(domain: Domain, backend: Backend, *, until: float = float("inf")) -> tuple[int, int]:
    """Record the domain and write its file; how many answers it holds, and how many were asked.

    Args:
        until: a `time.monotonic()` after which no new question is asked.
    """
    path = HERE / "recorded" / f"{domain}.jsonl"
    head = {
        "model": backend.model,
        "engine": backend.kind,
        "seed": SEED,
        "temperature": TEMPERATURE,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    kept = _kept(path, head)

    def run(job: Job) -> list[Recording]:
        tape = _Tape(backend, kept, job)
        assistant = Assistant(
            domain,
            tape,
            documents=job.documents,
            defence=job.defended,
            customers=job.customers,
            temperature=TEMPERATURE,
            seed=SEED,
        )
        if time.monotonic() < until:
            assistant.ask(job.question)
        return tape.made

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = [r for made in pool.map(run, jobs(domain)) for r in made]
    # A new prompt has a new key, so what no job asks for any more is left out.
    rows = list({r.key: r for r in found}.values())
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in (head, *map(asdict, rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(rows), sum(r.key not in kept for r in rows)


def _kept(path: Path, head: Mapping[str, Any]) -> dict[str, Recording]:
    try:
        first, *rows = read_rows(path)
    except (MaterialError, ValueError):
        return {}
    if any(first[k] != head[k] for k in ("model", "engine", "seed", "temperature")):
        return {}
    return {r["key"]: Recording(**r) for r in rows}


def main() -> int:
    """0 when all was recorded; 1, with a sentence, when the engine could not be had."""
    parser = argparse.ArgumentParser(prog="shared.assistant.record", description=__doc__)
    parser.add_argument("--domain", choices=DOMAINS, action="append")
    parser.add_argument("--engine", choices=("portable", "vllm"), default="portable")
    parser.add_argument("--minutes", type=float, default=30.0, help="ask nothing new after that")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    try:
        backend = LiveBackend(ensure_engine(args.engine))
        for domain in args.domain or DOMAINS:
            count, asked = record(domain, backend, until=until)
            print(f"{domain}: {count} answers, {asked} of them new", flush=True)
    except (EngineError, AssistantError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
