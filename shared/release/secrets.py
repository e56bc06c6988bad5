"""Pieces by which secret files and held-out data are known wherever they turn up.

A text is read as its words: letters and digits, in lower case, whatever stands between them. So
indentation, line breaks, quotes and comment signs do not matter. A piece is a run of words:
`CODE_WORDS` of a solution, a variant or a part of code that is held out, `PHRASE_WORDS` of a
held-out text, or all of it where it is shorter, down to `SHORTEST`. What a file of the learner's
edition says as well (a docstring is in the starter too) is no piece.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.release.edition import File

CODE_WORDS = 12
PHRASE_WORDS = 8
SHORTEST = 4

_WORD = re.compile(r"[^\W_]+")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([nrtbf\"'/\\]))")
_PLACEHOLDER = re.compile(r"\{\w*\}")

Words = tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """Where a piece of a secret was found.

    Attributes:
        secret: whose piece it is.
        line: of the text that was read, from 1.
        words: the piece.
    """

    secret: str
    line: int
    words: str


@dataclass
class Secrets:
    """All pieces, by length.

    Attributes:
        given: how many pieces of a secret a file of the learner's edition holds as well, other
            than as a starter; by secret and file. They are no pieces any more.
    """

    given: Counter[tuple[str, str]] = field(default_factory=Counter)
    _pieces: dict[int, dict[Words, str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        secret: Mapping[str, bytes],
        taken_out: Mapping[str, bytes],
        files: Mapping[str, File],
    ) -> Secrets:
        """The pieces of what an edition must not hold. Call `forget` for each file that it holds.

        Args:
            secret: files that give answers away.
            taken_out: files before what is held out was taken out of them.
            files: among others, the same files after that.
        """
        found = cls()
        for path, data in secret.items():
            found._add_windows(data.decode("utf-8", "replace"), path)
        for path, data in taken_out.items():
            before, after = data.decode("utf-8"), files[path].data.decode("utf-8")
            if path.endswith(".py"):
                found._add_windows(before, f"held out of {path}")
                kept = set(_strings(after))
                told = [s for s in _strings(before) if s not in kept]
            else:
                left = set(after.splitlines())
                told = [t for s in before.splitlines() if s not in left for t in _texts(s)]
            for text in told:
                found._add_phrase(text, f"held out of {path}")
            found._forget(path, after)
        return found

    def forget(self, path: str, data: bytes) -> None:
        """A learner may see this file: what it says is no piece."""
        text = data.decode("utf-8", "replace")
        for secret, count in self._forget(path, text).items():
            if "/starter/" not in path and "/pristine/" not in path:
                self.given[secret, path] += count

    def __len__(self) -> int:
        return sum(map(len, self._pieces.values()))

    def pieces(self, text: str) -> Iterator[Piece]:
        """The pieces that a text holds, as it stands and with its escapes undone."""
        for shown in readings(text):
            words = _words(shown)
            places: list[int] | None = None
            for length, known in self._pieces.items():
                for at, piece in enumerate(_windows(words, length)):
                    if piece in known:
                        places = places or [m.start() for m in _WORD.finditer(shown)]
                        line = shown.count("\n", 0, places[at]) + 1
                        yield Piece(known[piece], line, " ".join(piece))

    def _add_windows(self, text: str, secret: str, length: int = CODE_WORDS) -> None:
        known = self._pieces.setdefault(length, {})
        for piece in _windows(_words(text), length):
            known.setdefault(piece, secret)

    def _add_phrase(self, text: str, secret: str) -> None:
        for part in _PLACEHOLDER.split(text):
            count = len(_words(part))
            if count >= SHORTEST:
                self._add_windows(part, secret, min(count, PHRASE_WORDS))

    def _forget(self, path: str, text: str) -> Counter[str]:
        count: Counter[str] = Counter()
        for shown in readings(text):
            words = _words(shown)
            for length, known in self._pieces.items():
                for piece in [w for w in _windows(words, length) if w in known]:
                    if secret := known.pop(piece, ""):  # a text may say it twice
                        count[secret] += 1
        return count


def readings(text: str) -> Iterator[str]:
    """The ways to read a text: as it stands; without escapes of strings; without HTML's."""
    yield text
    if "\\" in text:
        plain = _ESCAPE.sub(_unescaped, text)
        yield plain
        if "\\" in plain and "\\\\" in text:  # a string within a string
            yield _ESCAPE.sub(_unescaped, plain)
    if "&" in text:
        shown = html.unescape(text)
        if shown != text:
            yield shown


def _unescaped(match: re.Match[str]) -> str:
    if match[1]:
        return chr(int(match[1], 16))
    return match[2] if match[2] in "\"'/\\" else "\n"


def _words(text: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(text)]


def _windows(words: list[str], length: int) -> Iterator[Words]:
    """All runs of so many words."""
    return zip(*(words[n:] for n in range(length)), strict=False)


def _strings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _texts(line: str) -> Iterator[str]:
    """The texts of a row: the strings of a JSON line, or the line."""
    try:
        row = json.loads(line)
    except ValueError:
        yield line
        return
    yield from _strings_of(row)


def _strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings_of(inner)
