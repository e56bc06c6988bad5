"""Strangers' texts, made fit to be shown: on a page, in a spreadsheet, in XML.

Nothing is dropped in silence: what has no shape of its own (controls, marks that turn the reading
direction, half of a surrogate pair) is written out, what is too long says how much is missing.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from shared.paths import ROOT
from shared.wheels import cache_home

LONGEST = 4000
"""Characters of one text that a page shows."""

_PLAIN = re.compile(r"[^\n\t\x20-\x7e]")
_STACKED = re.compile(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{4})"
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_JOINERS = "\u200c\u200d"  # Persian words and emoji of several people need them.
_FORMULA = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_BEGINS = re.compile(f"[{_FORMULA}]")
# Where a spreadsheet takes ";" or "|" for the separator, a new cell begins after it.
_AFTER_SEPARATOR = re.compile(rf"([;,|][\s\"]*)(?=[{_FORMULA}])")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def visible(text: str, limit: int = LONGEST) -> str:
    """`text` with everything that cannot be seen written out, and no longer than `limit`.

    Controls and format characters, the bidirectional ones among them, become ``‹U+202E›`` (fonts
    lack the pictures that Unicode has for them). Line ends and tabs stay.
    """
    return _STACKED.sub(r"\1", _PLAIN.sub(_written_out, cut(text.replace("\r\n", "\n"), limit)))


def cut(text: str, limit: int) -> str:
    """The first `limit` characters, and how many more there were."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def one_line(text: str, limit: int = 500) -> str:
    """`visible`, with every run of white space as one space."""
    return visible(" ".join(text.split()), limit)


def cell(text: str, limit: int = 2000) -> str:
    """A text as a spreadsheet's cell: one line, and never a formula.

    A text that begins like a formula (``=``, ``+``, ``-``, ``@``, their full-width forms, with or
    without tabs and line ends before them) gets an apostrophe in front, and so does what would
    begin a cell in a spreadsheet that separates by semicolons. A lone "-" stays: it means
    "none" and computes nothing. Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    if text == "-":
        return text
    line = one_line(text, limit)
    return ("'" if _BEGINS.match(line) else "") + _AFTER_SEPARATOR.sub(r"\1'", line)


def xml_text(text: str, limit: int = LONGEST) -> str:
    """A text without what XML 1.0 forbids even in escaped form.

    Source: https://www.w3.org/TR/xml/#charsets
    """
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", visible(text, limit))


def encodable(value: Any) -> Any:
    """A JSON-like value whose texts can all be written as UTF-8; lone surrogates are replaced."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {encodable(str(k)): encodable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(v) for v in value]
    return value


def number(value: Any) -> str:
    """A measured number as the terminal shows it; anything else as a short text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return one_line(str(value), 40)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _written_out(match: re.Match[str]) -> str:
    return _shape(match.group())


@lru_cache(maxsize=4096)
def _shape(character: str) -> str:
    code = ord(character)
    nothing = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if character not in _JOINERS and (
        nothing or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code < 0xFDF0
    ):
        return f"‹U+{code:04X}›"
    return character


def without_places(value: Any) -> Any:
    """A JSON-like value in whose texts nothing says where on this machine things are.

    Submissions can print their environment, which names the checkout, the models and Python.
    """
    if isinstance(value, str):
        for pattern, word in _places():
            value = pattern.sub(word, value)
        return value
    if isinstance(value, dict):
        return {key: without_places(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(v) for v in value]
    return value


@cache
def _places() -> list[tuple[re.Pattern[str], str]]:
    """The places of this machine, each with the word that stands for it; the longest first."""
    found = {
        Path.home(): "[home]",
        Path(sys.base_prefix): "[python]",
        Path(sys.prefix): "[python]",
        ROOT: "[labs]",
        cache_home(): "[models]",
    }
    found |= {path.resolve(): word for path, word in found.items()}
    usual = {Path("/"), Path("/usr"), Path("/usr/local")}
    paths = sorted(found.keys() - usual, key=lambda path: -len(str(path)))
    return [
        (re.compile(rf"(?<![\w.-]){re.escape(str(path))}(?![\w-]|\.\w)"), found[path])
        for path in paths
    ]
