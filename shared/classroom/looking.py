"""A look at what was handed in, without running it: words that homework has no use for.

A task file that reads its callers' stack, or the modules of the checks, can answer from what it
finds there. There are honest uses, so such words cost nobody a point: the instructor is told in
which line they are, and reads it. What is put together while the program runs is not seen here;
some of it is when it is used (`hearing`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from shared.classroom.names import shown
from shared.classroom.records import Note
from shared.grading.lab import parsed

KIND = "look at this"
_PLACES = 8

_WORDS = frozenset(
    {
        *("_getframe", "_current_frames", "currentframe", "f_back", "f_locals", "f_globals"),
        *("f_builtins", "tb_frame", "gi_frame", "cr_frame", "ag_frame", "getouterframes"),
        *("getinnerframes", "walk_stack", "settrace", "setprofile", "settrace_all_threads"),
        *("setprofile_all_threads", "addaudithook", "get_objects", "get_referrers"),
        *("get_referents", "__subclasses__", "__code__", "__globals__", "__closure__"),
        *("cell_contents", "__builtins__", "__defaults__", "__kwdefaults__"),
    }
)
"""Names and attributes that lead to other people's frames, modules and objects."""
_OF_MODULES = frozenset(
    {
        *("sys.modules", "sys.__dict__", "inspect.stack", "inspect.trace"),
        *("builtins.exec", "builtins.eval", "importlib.reload"),
    }
)
"""Names that mean it in these modules only."""
_MODULES = frozenset(
    {
        *("ctypes", "builtins", "support", "_pytest", "pluggy"),
        *("shared.grading", "shared.classroom"),
    }
)
"""Modules that a task does not need: Python's inside, the checks and the grader."""
_RUN_TEXT = frozenset({"exec", "eval", "compile"})
_IMPORT = frozenset({"__import__", "import_module"})


def look(files: Mapping[str, bytes], lab: int) -> tuple[Note, ...]:
    """One note that names the lines and words of a lab's files, or none."""
    seen = [
        f"{shown(name)}, line {line}: {word}"
        for name, source in sorted(files.items())
        for line, word in words_in(source)
    ]
    if not seen:
        return ()
    more = f"; and {len(seen) - _PLACES:,} more" if len(seen) > _PLACES else ""
    text = (
        f"{'; '.join(seen[:_PLACES])}{more}. Code can reach the checks that way. It may be "
        "honest: read it."
    )
    return (look_at(text, lab),)


def look_at(text: str, lab: int) -> Note:
    """A note for the instructor alone."""
    return Note(kind=KIND, text=text, lab=lab, private=True)


def words_in(source: bytes) -> list[tuple[int, str]]:
    """Lines of a file and the words in them that are worth a look, each once."""
    try:
        tree = parsed(source)
        return sorted(set(_words(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # It cannot be run either.


def _words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    modules, others = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if _is_inside(a.name))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in full if _is_meant(name))
        elif isinstance(node, ast.Attribute):
            yield from _attribute(node, node.value, node.attr, modules)
        elif isinstance(node, ast.Name) and node.id in _WORDS:
            yield node.lineno, node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in _WORDS or ("." in node.value and _is_inside(node.value)):
                yield node.lineno, repr(node.value)
        elif isinstance(node, ast.Call):
            yield from _call(node, modules, others)


def _attribute(
    node: ast.expr, of: ast.expr, name: str, modules: dict[str, str]
) -> Iterator[tuple[int, str]]:
    full = f"{modules.get(of.id, of.id)}.{name}" if isinstance(of, ast.Name) else f".{name}"
    if name in _WORDS or full in _OF_MODULES:
        yield node.lineno, full.removeprefix(".")


def _call(node: ast.Call, modules: dict[str, str], others: set[str]) -> Iterator[tuple[int, str]]:
    function = node.func
    name = getattr(function, "id", getattr(function, "attr", ""))
    first, second = [*node.args[:2], None, None][:2]
    if name in _RUN_TEXT and isinstance(function, ast.Name) and name not in others:
        yield node.lineno, name
    elif name in _IMPORT:
        if not isinstance(first, ast.Constant) or _is_inside(str(first.value)):
            yield node.lineno, name
    elif name == "getattr" and isinstance(first, ast.Name) and first.id in modules:
        if isinstance(second, ast.Constant):
            yield from _attribute(node, first, str(second.value), modules)
        elif modules[first.id] in ("sys", "inspect", "gc", "builtins"):
            yield node.lineno, f"getattr({modules[first.id]}, …)"


def _imported(tree: ast.AST) -> tuple[dict[str, str], set[str]]:
    """What a file calls the modules that it imports, and what else it imports."""
    modules, others = dict[str, str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                modules[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            others.update(alias.asname or alias.name for alias in node.names)
    return modules, others


def _is_meant(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in _WORDS or name in _OF_MODULES or _is_inside(name)


def _is_inside(name: str) -> bool:
    """Whether a module is Python's inside, the grader's, or one of the checks."""
    return name.startswith("test_") or any(
        name == module or name.startswith(f"{module}.") for module in _MODULES
    )
