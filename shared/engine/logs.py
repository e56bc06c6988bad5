"""Read an engine's log for the lines that tell why it failed."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 256 * 1024
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ERROR = re.compile(
    r"^\s*[\w.]*(Error|Exception|Failure)\b.*:"  # the last line of a traceback
    r"|\bERROR\b|\bCRITICAL\b|^E\s|^\S+ E \S|\berror:|[Ff]ailed to|[Cc]annot allocate|out of memory"
)
_NOISE = re.compile(r'^\s*File "|^\s*\^+\s*$|Traceback \(most recent|The above exception|~~\^')
_VLLM_PREFIX = re.compile(
    r"^(\(\w+[^)]*pid=\d+\)\s*)?((?P<level>ERROR|INFO|WARNING) [\d: -]+ \[[^\]]+\]\s*)?"
)


def read_tail(path: Path, limit: int = _TAIL_BYTES) -> str:
    """The last `limit` bytes of a file as text, or nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - limit))
            return _ANSI.sub("", file.read().decode("utf-8", errors="replace"))
    except OSError:
        return ""


def telling_lines(path: Path, limit: int = 8) -> list[str]:
    """The lines that most likely say what went wrong, oldest first; else the last ones."""
    lines = [line.rstrip() for line in read_tail(path).splitlines() if line.strip()]
    lines = [line for line in lines if not _NOISE.search(line)]
    errors = [_plain(line) for line in lines if _tells(line)]
    chosen = list(dict.fromkeys(errors))[-limit:] or [_plain(line) for line in lines[-limit:]]
    return [line[:300] for line in chosen]


def _tells(line: str) -> bool:
    prefix = _VLLM_PREFIX.match(line)
    if prefix is not None and prefix["level"] not in (None, "ERROR"):
        return False
    return _ERROR.search(_plain(line)) is not None


def _plain(line: str) -> str:
    """The line without vLLM's prefix of process, time and source."""
    return _VLLM_PREFIX.sub("", line).strip()
