"""Loads the material that lies beside this module."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from shared.assistant.records import (
    DOMAINS,
    Claim,
    Customer,
    Document,
    Domain,
    GoldenQuestion,
    LabelledAnswer,
    LabelledText,
    Span,
    Split,
)

HERE = Path(__file__).resolve().parent
_MARK = "+++\n"
_Item = TypeVar("_Item", GoldenQuestion, LabelledAnswer, LabelledText)


class MaterialError(RuntimeError):
    """A file of the material is missing or malformed; the message names it."""


def load_documents(domain: str, *, superseded: bool = False) -> tuple[Document, ...]:
    """The domain's documents by id: those in force, or all of them.

    Raises:
        ValueError: no such domain.
        MaterialError: a file cannot be read.
    """
    every = _documents(_checked(domain))
    return every if superseded else in_force(every)


def in_force(documents: Iterable[Document]) -> tuple[Document, ...]:
    """The documents that no other one of them has replaced."""
    given = tuple(documents)
    replaced = {d.supersedes for d in given}
    return tuple(d for d in given if d.id not in replaced)


def load_golden(domain: str, split: Split | None = None) -> tuple[GoldenQuestion, ...]:
    """The domain's questions, all or those of one split.

    The learner's edition holds open ones only. They stand in for those that are held out.
    """
    every = _golden(_checked(domain))
    if split == "held_out" and not _of(split, every):
        return tuple(replace(q, split=split) for q in every)
    return _of(split, every)


def load_labelled(domain: str, split: Split | None = None) -> tuple[LabelledAnswer, ...]:
    """Answers that are grounded in their contexts, and answers that are not."""
    return _of(split, _labelled(_checked(domain)))


def load_pii(domain: str, split: Split | None = None) -> tuple[LabelledText, ...]:
    """Texts with and without personal data."""
    return _of(split, _pii(_checked(domain)))


def load_customers(domain: str) -> tuple[Customer, ...]:
    """The domain's customer records."""
    return _customers(_checked(domain))


def published(domain: str) -> frozenset[str]:
    """Telephone numbers and e-mail addresses that the desk itself gives in its documents.

    Numbers have no blanks. To tell them is no leak.
    """
    text = " ".join(d.text for d in load_documents(domain, superseded=True))
    phones = re.findall(r"\b0\d{2} \d{4} \d{4}\b", text)
    return frozenset({p.replace(" ", "") for p in phones} | set(re.findall(r"\S+@[\w.]+\w", text)))


def contexts_of(answer: LabelledAnswer, domain: str) -> tuple[str, ...]:
    """The texts that a labelled answer may rest on."""
    texts = {d.id: d.text for d in load_documents(domain, superseded=True)}
    return tuple(texts[i] for i in answer.contexts)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file.

    Raises:
        MaterialError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MaterialError(f"{path.name} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise MaterialError(f"{path.name}, line {number}: {error}") from error


def parse_document(text: str, name: str) -> Document:
    """A Markdown text with TOML front matter between lines of ``+++``.

    Raises:
        MaterialError: the front matter is missing or wrong; the message starts with `name`.
    """
    try:
        empty, front, body = text.split(_MARK, 2)
        if empty:
            raise ValueError("it does not begin with +++")
        fields = tomllib.loads(front)
        return Document(
            id=fields["id"],
            title=fields["title"],
            topic=fields["topic"],
            effective=fields["effective"],
            version=fields["version"],
            supersedes=fields.get("supersedes"),
            text=" ".join(body.split()),
        )
    except (ValueError, KeyError) as error:
        raise MaterialError(f"{name}: front matter is wrong: {error}") from error


def _checked(domain: str) -> Domain:
    for known in DOMAINS:
        if known == domain:
            return known
    raise ValueError(f"no domain {domain!r}; there are {', '.join(DOMAINS)}")


def _of(split: Split | None, items: Sequence[_Item]) -> tuple[_Item, ...]:
    return tuple(i for i in items if split is None or i.split == split)


@lru_cache
def _documents(domain: Domain) -> tuple[Document, ...]:
    files = sorted((HERE / "documents" / domain).glob("*.md"))
    if not files:
        raise MaterialError(f"There are no documents in shared/assistant/documents/{domain}")
    return tuple(parse_document(f.read_text(encoding="utf-8"), f.name) for f in files)


@lru_cache
def _golden(domain: Domain) -> tuple[GoldenQuestion, ...]:
    rows = read_rows(HERE / "golden" / f"{domain}.jsonl")
    lists = ("stale", "facts", "must_not")
    return tuple(GoldenQuestion(**{**r, **{k: tuple(r[k]) for k in lists}}) for r in rows)


@lru_cache
def _labelled(domain: Domain) -> tuple[LabelledAnswer, ...]:
    rows = read_rows(HERE / "labelled" / f"{domain}.jsonl")
    return tuple(
        LabelledAnswer(
            **{
                **r,
                "contexts": tuple(r["contexts"]),
                "claims": tuple(Claim(**c) for c in r["claims"]),
            }
        )
        for r in rows
    )


@lru_cache
def _pii(domain: Domain) -> tuple[LabelledText, ...]:
    rows = read_rows(HERE / "labelled" / f"pii_{domain}.jsonl")
    return tuple(LabelledText(**{**r, "spans": tuple(Span(**s) for s in r["spans"])}) for r in rows)


@lru_cache
def _customers(domain: Domain) -> tuple[Customer, ...]:
    return tuple(Customer(**r) for r in read_rows(HERE / "customers" / f"{domain}.jsonl"))
