"""What must stay as it was while a learner's code runs: the checks and all that they stand on.

A check finds its bounds, its data and its functions by name, in modules of the process that the
learner's code runs in, so that code can give any of them another value. Here every such name is
remembered with its value, every function with what makes it the one that it is, and every plain
container with what it holds.
"""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import marshal
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import cache, cached_property, partial
from pathlib import Path
from types import CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

_GONE = object()
_BUILT_INS = frozenset(vars(builtins))
_NOT_BUILT_IN_FOR_GOOD = {"_", "__import__", "input", "open", "print"}
"""Names of `builtins` that libraries may set to their own."""
_LIBRARIES = frozenset(
    {
        *("math", "statistics", "numpy", "pandas", "itertools", "operator", "functools"),
        *("collections", "json", "re", "hashlib", "random", "datetime", "dataclasses"),
    }
)
"""Modules whose functions checks reckon with, and which nobody patches."""
_CHOSEN = (
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__len__"),
    *("__hash__", "__contains__", "__iter__", "__getattribute__", "__getattr__"),
)
"""Methods that a class may lack, and that would change what its values say of themselves."""
_CHANGED_IN_PLACE = re.compile(
    r"(\w+)(?:\[[^\n]*?\])?\.(?:append|add|update|setdefault|pop|popitem|clear|extend|insert"
    r"|remove|discard|sort|reverse|appendleft|popleft)\("
    r"|\b(\w+)\[[^\n]*\]\s*(?:=(?!=)|[-+*/|&]=)|\bdel (\w+)\[|(\w+)\s*[-+|&]="
)
_REBOUND = re.compile(r"^\s+global ([\w, ]+)", re.MULTILINE)
_SET_OF_OTHERS = re.compile(r"\b(?!self\b)\w+\.(\w+)(?::[^=\n]+)?\s*(?:[-+*/|&]?=)(?!=)")
_LATER = re.compile(r"^\s+(?:from|import) (shared(?:\.\w+)+)", re.MULTILINE)
_OF_LIBRARIES = ("__", "_abc", "model_")
"""How the names begin that Python and pydantic keep in a class for themselves."""
_DEPTH, _NODES, _BYTES = 12, 20_000, 2**22


class Watch:
    """Remembers values, and says which are no longer what they were."""

    def __init__(self) -> None:
        self._names: list[tuple[Mapping[str, Any], str, Any, str]] = []
        self._functions: list[tuple[FunctionType, Any, Any, Any, str]] = []
        self._cells: list[tuple[CellType, object, str]] = []
        self._held: list[_Held] = []
        self._seen: set[object] = set()
        self._modules: set[str] = set()

    def changed(self) -> Iterator[str]:
        """Names of what is another thing now; quick enough for each call of the learner's."""
        for owner, name, value, label in self._names:
            if owner.get(name, _GONE) is not value:
                yield label
        for function, code, defaults, keywords, label in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
            ):
                yield label
        for cell, value, label in self._cells:
            if _content(cell) is not value:
                yield label

    def changed_inside(self) -> Iterator[str]:
        """Names of containers that hold other things now."""
        for held in self._held:
            if _print_of(held.value, held.plain) != held.print:
                yield held.label

    def functions_of(self, owner: object) -> None:
        """Watch the functions, classes and properties of a library's module or class."""
        for name, value in list(vars(owner).items()):
            if isinstance(value, (FunctionType, classmethod, staticmethod, type, property)):
                self.name(owner, name)

    def name(self, owner: object, name: str) -> None:
        """Watch what one name of a module or class stands for."""
        value, label = vars(owner)[name], f"{getattr(owner, '__name__', '?')}.{name}"
        self._names.append((vars(owner), name, value, label))
        self._function(value, label)

    def modules(self, modules: Iterable[ModuleType]) -> None:
        """Watch everything in modules of ours, but what their own text shows to be changed."""
        new = [m for m in modules if m.__name__ not in self._modules]
        self._modules.update(m.__name__ for m in new)
        for module in new:
            self._module(module)

    def list_of(self, owner: object, name: str) -> None:
        """Watch what a list holds that is changed before, but not after now."""
        value = vars(owner)[name]
        self._held.append(_Held.of(value, f"{getattr(owner, '__name__', '?')}.{name}"))

    def _module(self, module: ModuleType) -> None:
        text = text_of(module)
        self._names.append((sys.modules, module.__name__, module, module.__name__))
        for name, value in list(vars(module).items()):
            label = f"{module.__name__}.{name}"
            if (name.startswith("__") and name.endswith("__")) or name in text.rebound:
                continue
            self._names.append((vars(module), name, value, label))
            self._function(value, label)
            if isinstance(value, type):
                self._class(value, label, text)
            elif isinstance(value, ModuleType):
                self._library(value, text)
            elif _is_public_constant(name) or name not in text.changed:
                self._container(value, label)
        for name in text.words & _BUILT_INS - set(vars(module)):
            label = f"{module.__name__}.{name}"
            self._names.append((vars(module), name, _GONE, label))

    def _class(self, kind: type, label: str, text: _Text) -> None:
        if kind.__module__ not in self._modules or id(kind) in self._seen:
            return
        self._seen.add(id(kind))
        for name, value in list(vars(kind).items()):
            inner = f"{label}.{name}"
            special = name.startswith("_") and name.endswith("_")
            if _is_code(value):
                self._names.append((vars(kind), name, value, inner))
                self._function(value, inner)
            elif not (special or name.startswith(_OF_LIBRARIES) or name in text.set_of_others):
                self._names.append((vars(kind), name, value, inner))
                if name not in text.changed:
                    self._container(value, inner)
        for name in _CHOSEN:
            if name not in vars(kind):
                self._names.append((vars(kind), name, _GONE, f"{label}.{name}"))

    def _library(self, module: ModuleType, text: _Text) -> None:
        """The functions of a library that a module of ours names."""
        if module.__name__.split(".")[0] not in _LIBRARIES:
            return
        for name in text.words & set(vars(module)):
            if (module, name) not in self._seen and callable(vars(module)[name]):
                self._seen.add((module, name))
                self.name(module, name)

    def _function(self, value: object, label: str) -> None:
        """What a function is made of, and the functions that it is wrapped around."""
        if id(value) in self._seen or isinstance(value, (type, ModuleType)):
            return
        self._seen.add(id(value))
        if isinstance(value, FunctionType):
            made_of = (value.__code__, value.__defaults__, value.__kwdefaults__)
            self._functions.append((value, *made_of, label))
            self._container(value.__defaults__, label)
            self._container(value.__kwdefaults__, label)
            for cell in value.__closure__ or ():
                inner = _content(cell)
                if isinstance(inner, (FunctionType, type)):
                    self._cells.append((cell, inner, label))
                    self._function(inner, label)
        for inner in _wrapped(value):
            self._function(inner, label)

    def _container(self, value: object, label: str) -> None:
        if type(value) in (tuple, frozenset) and all(type(v) in _PLAIN for v in value):  # type: ignore[attr-defined]
            return
        if isinstance(value, _CONTAINERS) or _is_record(value):
            held = _Held.of(value, label)
            if held.print is not None:
                self._held.append(held)


class _Held(NamedTuple):
    """A container, and what it held.

    Attributes:
        plain: it holds nothing but plain values, all the way down.
    """

    label: str
    value: object
    plain: bool
    print: object

    @classmethod
    def of(cls, value: object, label: str) -> _Held:
        try:
            marshal.dumps(value, 0)  # type: ignore[arg-type]
        except (ValueError, TypeError, BufferError):
            return cls(label, value, False, _print_of(value, False))
        plain = type(value) in (list, dict, set, tuple, frozenset)
        return cls(label, value, plain, _print_of(value, plain))


@dataclasses.dataclass(frozen=True)
class _Text:
    """What a module's text says of its own names.

    Attributes:
        rebound: names that its functions give other values.
        changed: names whose values it changes in place.
        set_of_others: attributes that it sets on something else than `self`.
        words: all words in it.
    """

    rebound: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    set_of_others: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


def text_of(module: ModuleType) -> _Text:
    """What a module's text says of its names."""
    return _read(str(vars(module).get("__file__") or ""))


@cache
def _read(file: str) -> _Text:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return _Text()
    changed = {next(filter(None, match)) for match in _CHANGED_IN_PLACE.findall(text)}
    rebound = {name.strip() for names in _REBOUND.findall(text) for name in names.split(",")}
    return _Text(
        frozenset(rebound),
        frozenset(changed),
        frozenset(_SET_OF_OTHERS.findall(text)),
        frozenset(re.findall(r"\w+", text)),
    )


def named_later(module: ModuleType) -> list[str]:
    """Modules of ours that a module's functions import when they are called."""
    try:
        text = Path(str(vars(module).get("__file__"))).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return sorted(set(_LATER.findall(text)))


def built_in_names() -> list[str]:
    """The functions and types of `builtins` that nobody has a reason to replace."""
    return [
        name
        for name, value in vars(builtins).items()
        if callable(value) and name not in _NOT_BUILT_IN_FOR_GOOD
    ]


_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_CONTAINERS = (list, dict, set, tuple, frozenset, np.ndarray)


def _is_public_constant(name: str) -> bool:
    return name.isupper() and not name.startswith("_")


def _is_code(value: object) -> bool:
    kinds = (FunctionType, classmethod, staticmethod, property, cached_property)
    return isinstance(value, kinds)


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _wrapped(value: object) -> list[object]:
    """The functions inside of what is no plain function."""
    if isinstance(value, property):
        return [f for f in (value.fget, value.fset, value.fdel) if f is not None]
    if isinstance(value, (classmethod, staticmethod)):
        return [value.__func__]
    if isinstance(value, (cached_property, partial)):
        return [value.func]
    inner = getattr(value, "__dict__", {}).get("__wrapped__")
    return [inner] if isinstance(inner, FunctionType) else []


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return _GONE


def _print_of(value: object, plain: bool) -> object:
    """Something that differs when what a container holds differs; None if that is too much."""
    if plain:
        try:
            data = marshal.dumps(value, 0)  # type: ignore[arg-type]
        except ValueError:
            return _GONE  # It holds something else now.
        return hashlib.blake2b(data).digest() if len(data) > 64 else data
    left = [_NODES]
    found = _walked(value, left, 0)
    return found if left[0] > 0 else None


def _walked(value: object, left: list[int], depth: int) -> object:
    kind = type(value)
    left[0] -= 1
    if kind in _PLAIN:
        return (kind, repr(value) if kind in (float, complex) else value)
    if left[0] < 0 or depth > _DEPTH:
        return id(value)
    if kind is np.ndarray:
        assert isinstance(value, np.ndarray)
        if value.dtype == object or value.nbytes > _BYTES:
            return id(value)
        return (value.shape, str(value.dtype), hashlib.blake2b(value.tobytes()).digest())
    if isinstance(value, list):
        return (kind, [_walked(v, left, depth + 1) for v in list.__iter__(value)])
    if isinstance(value, tuple):
        return (kind, [_walked(v, left, depth + 1) for v in tuple.__iter__(value)])
    if isinstance(value, dict):
        pairs = dict.items(value)
        return (kind, [(_key(k), _walked(v, left, depth + 1)) for k, v in pairs])
    if isinstance(value, (set, frozenset)):
        return (kind, frozenset(_key(v) for v in value))
    if _is_record(value) and not isinstance(value, Enum):
        names = [field.name for field in dataclasses.fields(value)]  # type: ignore[arg-type]
        return (kind, [_walked(_field(value, n), left, depth + 1) for n in names])
    return id(value)


def _field(value: object, name: str) -> object:
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return _GONE


def _key(value: object) -> object:
    return (type(value), value) if type(value) in _PLAIN else id(value)
