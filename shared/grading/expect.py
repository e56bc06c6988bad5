"""The small vocabulary that checks are written in.

A check calls the learner's code and states what must hold. When it does not hold, the
failure carries three parts, kept apart so that each can be shown where it helps: what was
observed, what was expected, and why it matters in production. A fourth, optional part
names the hint (an id from `lab.toml`) that fits this very mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, NoReturn

Plain = None | bool | int | float | str | bytes | list[Any] | dict[Any, Any]

_MAX_DEPTH = 32
_ASKED: list[Callable[[], None]] = []
"""Who is called whenever something is about to be expected."""


class CheckFailed(AssertionError):
    """The learner's code did not do what the task's contract says.

    Args:
        observed: what came back, in words and values, e.g. ``"46080 bytes a token"``.
        expected: what the contract asks for, e.g. ``"23040 bytes a token"``.
        why: why it matters in production, one or two sentences.
        hint: id of the hint in `lab.toml` that addresses this mistake.
    """

    def __init__(self, *, observed: str, expected: str, why: str, hint: str | None = None) -> None:
        super().__init__(f"observed {observed}; expected {expected}")
        self.observed = observed
        self.expected = expected
        self.why = why
        self.hint = hint


def fail(*, observed: str, expected: str, why: str, hint: str | None = None) -> NoReturn:
    """Fail the running check."""
    raise CheckFailed(observed=observed, expected=expected, why=why, hint=hint)


def expect(
    condition: bool, *, observed: str, expected: str, why: str, hint: str | None = None
) -> None:
    """Fail the running check unless `condition` is the plain value ``True``.

    Raises:
        TypeError: `condition` is no bool (a learner's object must be made plain first).
    """
    for look in _ASKED:
        look()
    if type(condition) is not bool:
        raise TypeError(f"expect() takes a plain bool, got {type(condition).__name__}")
    if not condition:
        fail(observed=observed, expected=expected, why=why, hint=hint)


def expect_equal(
    observed: Any,
    expected: Any,
    *,
    what: str,
    why: str,
    hint: str | None = None,
    rel: float = 0.0,
    abs_: float = 0.0,
) -> None:
    """Fail unless `observed`, made plain, equals `expected`.

    Args:
        what: names the value in the message, e.g. ``"bytes a token of Mistral-7B"``.
        rel: relative tolerance for numbers, also inside lists and dicts.
        abs_: absolute tolerance for numbers.
    """
    for look in _ASKED:
        look()
    got, want = plain(observed), plain(expected)
    if not _same(got, want, rel, abs_):
        fail(
            observed=f"{what} = {show(got)}",
            expected=f"{what} = {show(want)}"
            + (f" (within {rel:.2g} relative)" if rel else "")
            + (f" (within {abs_:.2g})" if abs_ else ""),
            why=why,
            hint=hint,
        )


def expect_raises(
    kinds: type[BaseException] | tuple[type[BaseException], ...],
    call: Callable[[], Any],
    *,
    doing: str,
    why: str,
    hint: str | None = None,
    mentions: str | None = None,
) -> BaseException:
    """Fail unless ``call()`` raises one of `kinds`; return what it raised.

    Args:
        doing: what `call` does, for the message, e.g. ``"a config without num_hidden_layers"``.
        mentions: text that the error's message must contain (case does not matter).

    A `NotImplementedError` is let through: it means that the task has not been started.
    """
    names = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
    expected = f"{names} for {doing}" + (f", naming {mentions!r}" if mentions else "")
    try:
        returned = call()
    except NotImplementedError:
        raise
    except kinds as error:
        if mentions and mentions.lower() not in str(error).lower():
            fail(observed=f"{type(error).__name__}: {error}", expected=expected, why=why, hint=hint)
        return error
    except Exception as error:
        fail(observed=f"{type(error).__name__}: {error}", expected=expected, why=why, hint=hint)
    fail(observed=f"no error, but {show(returned)}", expected=expected, why=why, hint=hint)


def plain(value: Any, _depth: int = 0) -> Plain:
    """Turn a learner's value into plain types, so that its class has no say in comparisons.

    Exact built-in types, enums, dataclasses, pydantic models and numpy or pandas values are
    accepted. Tuples, sets and arrays become lists (sets sorted by `repr`), models dicts.

    Raises:
        CheckFailed: the value is something else; the message names its type.
    """
    if _depth > _MAX_DEPTH:
        _not_plain(value, "nested too deeply")
    kind = type(value)
    if kind in (type(None), bool, int, float, str, bytes):
        return value
    if kind in (list, tuple):
        return [plain(v, _depth + 1) for v in value]
    if kind in (set, frozenset):
        return sorted((plain(v, _depth + 1) for v in value), key=repr)
    if issubclass(kind, dict) and kind.__module__ in ("builtins", "collections"):
        return {plain(k, _depth + 1): plain(v, _depth + 1) for k, v in dict.items(value)}
    if issubclass(kind, Enum):
        return plain(value.value, _depth + 1)
    if is_dataclass(kind):
        return {f.name: plain(getattr(value, f.name), _depth + 1) for f in fields(kind)}
    if any(b.__module__ == "pydantic.main" and b.__name__ == "BaseModel" for b in kind.__mro__):
        return {k: plain(v, _depth + 1) for k, v in vars(value).items()}
    if kind.__module__ == "numpy" or kind.__module__.startswith("numpy."):
        return plain(value.tolist(), _depth + 1)
    if kind.__module__.startswith("pandas."):
        return plain(value.to_dict() if hasattr(value, "to_dict") else str(value), _depth + 1)
    if isinstance(value, Mapping) and kind.__module__ == "types":
        return plain(dict(value), _depth + 1)
    _not_plain(value, f"a {kind.__module__}.{kind.__qualname__}")
    return None


def number(value: Any, *, what: str, why: str = "", hint: str | None = None) -> float:
    """Return `value` as a float, failing the check when it is no finite number."""
    got = plain(value)
    if isinstance(got, bool) or not isinstance(got, (int, float)) or not math.isfinite(got):
        fail(
            observed=f"{what} = {show(got)}",
            expected=f"{what} to be a finite number",
            why=why or "Dashboards, alerts and gates do arithmetic on it.",
            hint=hint,
        )
    return float(got)


def show(value: Any, limit: int = 300) -> str:
    """`repr` of a plain value, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _not_plain(value: Any, what: str) -> NoReturn:
    fail(
        observed=what,
        expected="plain values: numbers, strings, lists, dicts, dataclasses",
        why="Values cross process and network borders as JSON; an exotic class does not survive.",
    )


def _same(a: Plain, b: Plain, rel: float, abs_: float) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        if rel or abs_:
            return math.isclose(a, b, rel_tol=rel, abs_tol=abs_)
        return a == b or (a != a and b != b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y, rel, abs_) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k], rel, abs_) for k in a)
    return type(a) is type(b) and a == b
