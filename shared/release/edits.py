"""How a file of the whole edition becomes that of the learner's edition.

Each function takes the file's path in the repository and its text, and returns the new text. One
that finds nothing to change where it must raises `EditError`: a file was rewritten, and the release
must not go out with what the edit was there to take away.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from shared.assistant.disguises import OPEN
from shared.assistant.label import make_labelled, split_of
from shared.assistant.label_pii import make_pii
from shared.assistant.material import load_documents, load_golden
from shared.assistant.records import DOMAINS, Domain, LabelledAnswer, LabelledText
from shared.errors import UserError

Edit = Callable[[str, str], str]

PRACTICE_SEEDS = range(31_000, 31_040)
"""Practice rows are drawn with these, in turn, until there are as many as were held out."""


class EditError(UserError):
    """An edit of the release does not fit its file any more; the message says which."""


# -- rows of data


def open_rows(path: str, text: str) -> str:
    """Only the rows of the open split."""
    kept = [line for line in text.splitlines() if json.loads(line)["split"] == "open"]
    return _lines(kept, path)


def practice_answers(path: str, text: str) -> str:
    """Open labelled answers; in the place of held-out ones as many made from open material."""
    domain = _domain(path)
    drawn = (a for seed in PRACTICE_SEEDS for a in make_labelled(domain, seed) if a.split == "open")
    return _with_practice(path, text, drawn, "answer")


def practice_texts(path: str, text: str) -> str:
    """Open texts about personal data; for the held-out ones as many in the open sentences."""
    domain = _domain(path)
    drawn = (t for seed in PRACTICE_SEEDS for t in make_pii(domain, seed) if t.split == "open")
    return _with_practice(path, text, drawn, "text")


def open_paraphrases(path: str, text: str) -> str:
    """What was written about documents whose claims are open."""
    where = split_of(load_documents(_domain(path)))
    kept = [s for s in text.splitlines() if where[json.loads(s)["document"]] == "open"]
    return _lines(kept, path)


def open_claims(path: str, text: str) -> str:
    """Every second line is held out: the open one before it takes its place."""
    lines = text.splitlines()
    return _lines([lines[n - n % 2] for n in range(len(lines))], path)


def open_recordings(path: str, text: str) -> str:
    """Without the answers to held-out questions."""
    held_out = {q.id for q in load_golden(_domain(path), "held_out")}
    head, *rows = text.splitlines()
    return _lines([head, *(r for r in rows if json.loads(r)["item"] not in held_out)], path)


def _with_practice(
    path: str, text: str, drawn: Iterable[LabelledAnswer | LabelledText], said: str
) -> str:
    """The open rows, then as many drawn ones of each rule as there were held-out ones.

    A drawn row takes the place, the id and the split of a held-out one, and says something that no
    open row says.
    """
    rows = [json.loads(line) for line in text.splitlines()]
    taken = {r[said] for r in rows}
    missing: dict[str, list[int]] = {}
    for n, row in enumerate(rows):
        if row["split"] == "held_out":
            missing.setdefault(row["rule"], []).append(n)
    for one in drawn:
        if not any(missing.values()):
            break
        new = asdict(one)
        if new[said] in taken or not missing.get(new["rule"]):
            continue
        taken.add(new[said])
        place = missing[new["rule"]].pop(0)
        rows[place] = new | {"id": rows[place]["id"], "split": "held_out"}
    if any(missing.values()):
        raise EditError(f"{path}: no more practice rows could be drawn for {missing}.")
    return _lines([json.dumps(r, ensure_ascii=False) for r in rows], path)


# -- code


def open_wordings(*names: str) -> Edit:
    """In these constants every second text of a tuple is held out: the one before replaces it."""

    def edit(path: str, text: str) -> str:
        cuts: list[tuple[ast.expr, ast.expr]] = []
        for node in _assigned(path, text, names):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Tuple) and inner.elts:
                    cuts += zip(inner.elts[1::2], inner.elts[::2], strict=False)
        return _formatted(path, _spliced(text, [(old, _source(text, new)) for old, new in cuts]))

    return edit


def open_disguises(path: str, text: str) -> str:
    """The first `OPEN` disguises of each fault, and no function that only others use."""
    (table,) = _assigned(path, text, ("DISGUISES",))
    assert isinstance(table, ast.Dict)
    parts: list[tuple[ast.expr, str]] = []
    for inner in table.values:
        if not isinstance(inner, ast.Dict) or len(inner.keys) <= OPEN:
            raise EditError(f"{path}: DISGUISES has no held-out ones to leave out.")
        last = inner.values[OPEN - 1]
        parts.append((inner, _source(text, inner, until=last) + "}"))
    text = _spliced(text, parts)
    return _formatted(path, _without_unused(path, text))


def without_held_out_names(path: str, text: str) -> str:
    """What held-out disguises do is not described either; what the checks add themselves stays."""
    from shared.assistant.disguises import DISGUISES

    held_out = {d for names in DISGUISES.values() for d in list(names)[OPEN:]}
    (table,) = _assigned(path, text, ("DISGUISES",))
    assert isinstance(table, ast.Dict)
    drop = [
        (key, value)
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant) and key.value in held_out
    ]
    if len(drop) != len(held_out):
        raise EditError(f"{path}: DISGUISES does not describe each held-out disguise once.")
    lines = text.splitlines(keepends=True)
    for key, value in drop:
        assert key is not None
        for n in range(key.lineno - 1, value.end_lineno or value.lineno):
            lines[n] = ""
    return _formatted(path, "".join(lines))


def without_functions(missing: Iterable[str]) -> Edit:
    """A module without these functions, e.g. `shared/cli.py` without commands of authors."""

    def edit(path: str, text: str) -> str:
        gone = set(missing)
        tree = ast.parse(text)
        cuts = [_span(n) for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in gone]
        if not cuts:
            raise EditError(f"{path}: none of the functions to leave out is there.")
        lines = text.splitlines(keepends=True)
        for start, end in reversed(cuts):
            del lines[start:end]
        return _formatted(path, "".join(lines))

    return edit


def without_targets(commands: Iterable[str], variables: Iterable[str] = ()) -> Edit:
    """The Makefile without the targets that call those commands, and what only they are told."""

    def edit(path: str, text: str) -> str:
        exported = re.search(r"^export (?:.*\\\n)*.*$", text, re.MULTILINE)
        if not exported:
            raise EditError(f"{path}: no line exports the options.")
        names = [n for n in exported[0].replace("\\\n", " ").split()[1:] if n not in {*variables}]
        text = text.replace(exported[0], "export " + " ".join(names))
        gone = {c.replace("_", "-") for c in commands}
        kept, dropped = [], set()
        for block in re.split(r"\n(?=\S)", text):
            called = re.search(r"^\t\S*\$\(\w+\) ([\w-]+)", block, re.MULTILINE)
            if called and called[1] in gone:
                dropped.add(block.split(":")[0])
            else:
                kept.append(block)
        if not dropped:
            raise EditError(f"{path}: no target calls {', '.join(sorted(gone))}.")
        text = "\n".join(kept)
        # The list of .PHONY targets may be broken over lines.
        phony = re.search(r"^\.PHONY:(?:.*\\\n)*.*$", text, re.MULTILINE)
        if phony:
            names = [n for n in phony[0].replace("\\\n", " ").split()[1:] if n not in dropped]
            text = text.replace(phony[0], ".PHONY: " + " ".join(names))
        return text.rstrip("\n") + "\n"

    return edit


# -- text


def replaced(*pairs: tuple[str, str]) -> Edit:
    """Each pair's first text gives way to its second."""

    def edit(path: str, text: str) -> str:
        for old, new in pairs:
            if old not in text:
                raise EditError(f"{path}: {old!r} is to be replaced in the release and not there.")
            text = text.replace(old, new)
        return text

    return edit


def rewritten(*pairs: tuple[str, str]) -> Edit:
    """The same with patterns (`re`, with ``.`` for every character)."""

    def edit(path: str, text: str) -> str:
        for pattern, new in pairs:
            text, count = re.subn(pattern, new, text, flags=re.MULTILINE | re.DOTALL)
            if not count:
                raise EditError(f"{path}: {pattern!r} is to be replaced and matches nothing.")
        return text

    return edit


def dropped(*patterns: str) -> Edit:
    """Without what these patterns match, if they do; the edition's own tests see what stayed."""

    def edit(path: str, text: str) -> str:
        for pattern in patterns:
            text = re.sub(pattern, "", text)
        return text

    return edit


def without_sections(*headings: str, then: str = "") -> Edit:
    """Markdown without the sections of these headings (of those that are there); `then` is put in
    before the last section that stays."""

    def edit(path: str, text: str) -> str:
        parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
        kept = [p for p in parts if p.split("\n", 1)[0].removeprefix("## ").strip() not in headings]
        if len(kept) == len(parts):
            raise EditError(f"{path}: no section is called {' or '.join(headings)}.")
        return "".join([*kept[:-1], then, kept[-1]])

    return edit


def in_turn(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(path: str, text: str) -> str:
        for one in edits:
            text = one(path, text)
        return text

    return edit


_WORK_LINE = 'WORK = "solution"  # or "starter": your own files'
_WORK_TOLD = re.compile(
    r"(# )?The code comes from the lab's tasks\. `WORK = \"solution\"` runs the reference; set it "
    r"to `\"starter\"`\n(# )?to run what you wrote yourself \("
)


def learners_notebook(path: str, text: str) -> str:
    """A notebook that runs the learner's own files; the outputs of the `.ipynb` are kept."""
    if path.endswith(".py"):
        return _own_work(path, text)
    notebook = json.loads(text)
    found = False
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if _WORK_LINE in source or _WORK_TOLD.search(source):
            found = True
            cell["source"] = _own_work(path, source, whole=False).splitlines(keepends=True)
    if not found:
        raise EditError(f"{path}: no cell says whose work it runs.")
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _own_work(path: str, text: str, whole: bool = True) -> str:
    new, told = _WORK_TOLD.subn(
        lambda m: (
            f"{m[1] or ''}The code comes from the lab's tasks and is your own. The outputs that "
            f"came with it were made\n{m[2] or ''}with the reference ("
        ),
        text,
    )
    new, lines = re.subn(re.escape(_WORK_LINE), 'WORK = "starter"  # your own files', new)
    if whole and (told, lines) != (1, 1):
        raise EditError(f"{path}: it does not say whose work it runs as the release expects.")
    return new


# -- helpers


def expect_python(path: str, text: str) -> None:
    """Refuse what an edit has broken."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise EditError(f"{path} is no Python any more after the edit: {error}") from error


def commands_to_leave_out(cli: str, named: Iterable[str], present: set[str]) -> set[str]:
    """The functions of `shared/cli.py` that authors and instructors call.

    Args:
        named: those to leave out whatever they import.
        present: the paths of the edition.
    """
    gone = set(named)
    for node in ast.parse(cli).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("shared."):
                base = (inner.module or "").replace(".", "/")
                if not {f"{base}.py", f"{base}/__init__.py"} & present:
                    gone.add(node.name)
    return gone


def options_of(cli: str, commands: Iterable[str]) -> set[str]:
    """The environment variables that only these commands of `shared/cli.py` read."""
    left = without_functions(commands)("shared/cli.py", cli)
    read = [set(re.findall(r'envvar="(\w+)"', text)) for text in (cli, left)]
    return read[0] - read[1]


def _domain(path: str) -> Domain:
    name = PurePosixPath(path).stem.removeprefix("pii_")
    return next(d for d in DOMAINS if d == name)


def _lines(kept: list[str], path: str) -> str:
    if not kept:
        raise EditError(f"{path}: nothing of it would be left.")
    return "\n".join(kept) + "\n"


def _assigned(path: str, text: str, names: Iterable[str]) -> list[ast.expr]:
    """The values of module-level constants."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:  # type: ignore[attr-defined]
                found[target.id] = node.value  # type: ignore[attr-defined]
    missing = [n for n in names if n not in found]
    if missing:
        raise EditError(f"{path}: {', '.join(missing)} is not there any more.")
    return [found[n] for n in names]


def _offset(text: str, line: int, column: int) -> int:
    """The place in the text of an ast position, whose columns count bytes."""
    lines = text.splitlines(keepends=True)
    before = sum(map(len, lines[: line - 1]))
    return before + len(lines[line - 1].encode()[:column].decode())


def _source(text: str, node: ast.expr, until: ast.expr | None = None) -> str:
    end = until or node
    assert end.end_lineno is not None
    assert end.end_col_offset is not None
    start = _offset(text, node.lineno, node.col_offset)
    return text[start : _offset(text, end.end_lineno, end.end_col_offset)]


def _spliced(text: str, parts: list[tuple[ast.expr, str]]) -> str:
    """`text` with the source of each node replaced."""
    places = []
    for node, new in parts:
        start = _offset(text, node.lineno, node.col_offset)
        places.append((start, start + len(_source(text, node)), new))
    for start, end, new in sorted(places, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _span(node: ast.stmt) -> tuple[int, int]:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(d.lineno for d in decorators)])
    return first - 1, node.end_lineno or node.lineno


def _without_unused(path: str, text: str) -> str:
    """Without private functions and constants that nothing refers to, again and again."""
    while True:
        tree = ast.parse(text)
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and _loads(n)}
        lines = text.splitlines(keepends=True)
        gone = []
        for node in tree.body:
            name = node.name if isinstance(node, ast.FunctionDef) else ""
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
            if name.startswith("_") and name not in used:
                gone.append(_span(node))
        if not gone:
            return text
        for start, end in reversed(gone):
            del lines[start:end]
        text = "".join(lines)


def _loads(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _formatted(path: str, text: str) -> str:
    """As `ruff` would have it, without the imports that nothing needs any more."""
    ruff = str(Path(sys.executable).with_name("ruff"))
    settings = ["--stdin-filename", path, "--line-length", "100"]
    for command in (
        [ruff, "check", "-q", "--isolated", "--fix", "--exit-zero", "--select", "F401", *settings],
        [ruff, "format", "-q", "--isolated", *settings],
    ):
        done = subprocess.run(
            [*command, "-"], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise EditError(f"{path}: ruff cannot read it after the edit: {done.stderr.strip()}")
        text = done.stdout
    return text
