"""Starters are derived from solutions, and are in step with them."""

from __future__ import annotations

import ast

import pytest

from shared.grading.lab import Hint, Lab, Task, all_labs
from shared.grading.starters import StarterError, blank, derive

TASK = Task(
    id="9.1",
    title="T",
    kind="build",
    file="t.py",
    symbols=["area", "Box"],
    points=1,
    minutes=1,
    hints=[Hint(id="h", text="?")],
)
SOURCE = '''
"""A module."""

import math

PI = math.pi
_CACHE = {}
"""What the cache's own text says."""


def given(x):
    """Stays."""
    return x


# This helper's comment goes with it.
def _helper(x):
    return x


@decorated
def area(r: float) -> float:
    """Return the area.

    Args:
        r: radius.
    """
    # the secret
    return PI * _helper(r) ** 2


class Box:
    """A box."""

    side: int = 1

    def __init__(self, side):
        self.side = side

    def volume(self):
        """Return the volume."""
        return self._power(3)

    def _power(self, n):
        return self.side**n
'''


def test_symbols_keep_signature_and_docstring_and_lose_their_body() -> None:
    text = blank(SOURCE, TASK)
    assert "the secret" not in text
    assert "def area(r: float) -> float:" in text
    assert "r: radius." in text
    assert 'raise NotImplementedError("Task 9.1: write area")' in text
    assert 'raise NotImplementedError("Task 9.1: write Box.volume")' in text
    assert 'raise NotImplementedError("Task 9.1: write Box.__init__")' in text


def test_the_solution_s_own_helpers_are_dropped_and_the_rest_is_given() -> None:
    text = blank(SOURCE, TASK)
    for gone in ("_helper", "_CACHE", "_power", "This helper's comment", "own text"):
        assert gone not in text
    for kept in ("import math", "PI = math.pi", "def given(x):", "side: int = 1", "@decorated"):
        assert kept in text
    ast.parse(text)


def test_a_symbol_that_the_solution_lacks_is_an_error() -> None:
    with pytest.raises(StarterError, match="nowhere"):
        blank(SOURCE, TASK.model_copy(update={"symbols": ["nowhere"]}))


def test_a_symbol_without_docstring_is_an_error() -> None:
    with pytest.raises(StarterError, match="docstring"):
        blank("def f():\n    return 1\n", TASK.model_copy(update={"symbols": ["f"]}))


@pytest.mark.parametrize("lab", all_labs(), ids=lambda lab: f"lab {lab.number}")
def test_the_committed_starters_are_in_step_with_the_solutions(lab: Lab) -> None:
    folder = lab.folder / "starter"
    committed = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.py")}
    differing = [
        name
        for name in sorted(committed.keys() | derive(lab).keys())
        if committed.get(name) != derive(lab).get(name)
    ]
    assert not differing, (
        f"starter/ of lab {lab.number} is out of step in {differing}. Authors: `make starters`. "
        f"Learners: this test is about the project, your edits are why it fails."
    )
