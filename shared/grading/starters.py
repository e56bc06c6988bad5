"""Derive what the learner starts from out of the solution.

A task's symbols keep signature and docstring and lose their body. The solution's own helpers
(module-level names with one leading underscore) are dropped. Everything else is handed over as
it stands.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

from shared.edition import PRISTINE
from shared.errors import UserError
from shared.grading.lab import Lab, Task

NOT_STARTED = "Task "


class StarterError(UserError):
    """A starter cannot be derived; the message says what to mend in the lab."""


def derive(lab: Lab) -> dict[str, str]:
    """The starter's files: name and text.

    The learner's edition has no solutions. There the starters lie in `pristine/` as they were.

    Raises:
        StarterError: a symbol of `lab.toml` is not in the solution, or a draft is missing.
    """
    if (pristine := lab.folder / PRISTINE).is_dir():
        return {p.name: p.read_text(encoding="utf-8") for p in sorted(pristine.glob("*.py"))}
    tasks = {task.file: task for task in lab.tasks}
    files = {}
    for path in sorted((lab.folder / "solution").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        task = tasks.pop(path.name, None)
        if task is None:
            files[path.name] = text
        elif task.draft:
            draft = lab.folder / "drafts" / task.file
            if not draft.is_file():
                raise StarterError(
                    f"Task {task.id} is a review, but drafts/{task.file} is missing."
                )
            files[path.name] = draft.read_text(encoding="utf-8")
        else:
            files[path.name] = blank(text, task)
    if tasks:
        raise StarterError(f"solution/ lacks {', '.join(tasks)}, which lab.toml names.")
    return files


def write(lab: Lab) -> list[str]:
    """Bring `starter/` in step with the solution; return the names of changed files."""
    folder = lab.folder / "starter"
    folder.mkdir(exist_ok=True)
    changed = []
    wanted = derive(lab)
    for name, text in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(name)
    for path in folder.iterdir():
        if path.name == "__pycache__":
            shutil.rmtree(path)
        elif path.name not in wanted:
            path.unlink()
            changed.append(path.name)
    return changed


def blank(source: str, task: Task) -> str:
    """`source` with the bodies of the task's symbols replaced, comments elsewhere kept."""
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    cuts: list[tuple[int, int, str]] = []
    left = set(task.symbols)

    def visit(nodes: list[ast.stmt], prefix: str) -> None:
        for node, following in zip(nodes, [*nodes[1:], None], strict=True):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name = prefix + node.name
                if name in left:
                    left.discard(name)
                    cuts.append(_body_cut(node, name, task, lines))
                elif not prefix and _is_helper(node.name):
                    cuts.append((*_span(node, lines), ""))
            elif isinstance(node, ast.ClassDef):
                if not prefix and _is_helper(node.name):
                    cuts.append((*_span(node, lines), ""))
                    continue
                if node.name in left:
                    left.discard(node.name)
                    left.update(
                        f"{node.name}.{m.name}"
                        for m in node.body
                        if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef))
                        and not (m.name.startswith("_") and not m.name.startswith("__"))
                    )
                if any(s.startswith(f"{node.name}.") for s in left):
                    helpers = [
                        m
                        for m in node.body
                        if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef))
                        and _is_helper(m.name)
                        and f"{node.name}.{m.name}" not in left
                    ]
                    cuts.extend((*_span(m, lines), "") for m in helpers)
                    visit([m for m in node.body if m not in helpers], f"{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and not prefix:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [t.id for t in targets if isinstance(t, ast.Name)]
                if names and all(_is_helper(n) for n in names):
                    cuts.append((*_span(node, lines), ""))
                    if following is not None and _is_text(following):  # its docstring
                        cuts.append((*_span(following, lines), ""))

    visit(tree.body, "")
    if left:
        raise StarterError(f"{task.file} defines no {', '.join(sorted(left))} (task {task.id}).")
    for start, end, text in sorted(cuts, reverse=True):
        lines[start:end] = [text] if text else []
    return _format("".join(lines))


def _is_helper(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _span(node: ast.stmt, lines: list[str]) -> tuple[int, int]:
    """Lines of a statement, with its decorators and the comments right above it."""
    decorators = getattr(node, "decorator_list", [])
    start = min([node.lineno, *(d.lineno for d in decorators)]) - 1
    while start > 0 and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return start, node.end_lineno or node.lineno


def _body_cut(
    node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, task: Task, lines: list[str]
) -> tuple[int, int, str]:
    body = node.body
    if ast.get_docstring(node) is None and not name.split(".")[-1].startswith("_"):
        raise StarterError(f"{task.file}: {name} has no docstring, which is the task's contract.")
    first = body[1] if ast.get_docstring(node) is not None and len(body) > 1 else body[0]
    start = body[0].end_lineno if ast.get_docstring(node) is not None else first.lineno - 1
    assert start is not None
    indent = " " * body[0].col_offset
    text = f'{indent}raise NotImplementedError("{NOT_STARTED}{task.id}: write {name}")\n'
    return start, node.end_lineno or node.lineno, text


def _format(source: str) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(
        [str(ruff), "format", "-q", "-", "--stdin-filename", "starter.py", "--line-length", "100"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StarterError(f"ruff could not format a starter: {done.stderr.strip()}")
    return done.stdout
