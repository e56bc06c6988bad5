"""A domain's texts in two parts that share no document: to calibrate on, and to measure on."""

from __future__ import annotations

from shared.assistant.material import in_force, load_documents

_EVERY = 4
"""One document in so many is held out."""


def calibration_texts(domain: str) -> tuple[str, ...]:
    """The documents that calibration and training may see, each with its title."""
    return tuple(t for i, t in enumerate(_texts(domain)) if i % _EVERY)


def held_out_texts(domain: str) -> tuple[str, ...]:
    """The documents that only measuring may see."""
    return _texts(domain)[::_EVERY]


def _texts(domain: str) -> tuple[str, ...]:
    return tuple(f"{d.title}\n\n{d.text}" for d in in_force(load_documents(domain)))
