"""Names of learners: out of what a folder or an archive is called, and into what is safe to use.

Learning platforms put the learner's name and numbers of their own before the file's name. Canvas
writes ``doejane_12345_67890_lab3-1.zip`` (``_LATE_`` after the name of one who was late; ``-1``
for the first file handed in anew), Moodle ``Jane Doe_12345_assignsubmission_file_lab3.zip`` or a
folder ``Jane Doe_12345_assignsubmission_file_``.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

MAX_ID = 80
ARCHIVE_SUFFIXES = (
    *(".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
    *(".zip", ".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".gz", ".bz2", ".xz"),
    *(".7z", ".rar", ".jar", ".whl", ".egg"),
)
"""How the names of archives end, of those too that nobody here opens; the longest first."""

_CANVAS = re.compile(
    r"(?P<person>[^_]+)(?P<late>_late)?_(?P<user>\d{2,})_(?P<attachment>\d{2,})_(?P<file>.+)",
    re.IGNORECASE | re.DOTALL,
)
_MOODLE = re.compile(
    r"(?P<person>.+)_(?P<user>\d+)_assignsubmission_[a-z]+(?:_(?P<file>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_AGAIN = re.compile(r"(?P<stem>.+)-(?P<again>\d{1,3})", re.DOTALL)
# What Unicode does not take apart into a letter and a mark.
_LETTERS = str.maketrans({
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "Th",
    "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "ı": "i",
})  # fmt: skip
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{p}{n}" for p in ("com", "lpt") for n in range(10)}


@dataclass(frozen=True)
class HandInName:
    """What the name of a folder or archive says.

    Attributes:
        raw: the name itself.
        person: the part that names the learner.
        platform: ``"Canvas"``, ``"Moodle"`` or ``""``.
        external_id: the platform's number for the learner, or ``""``.
        file: the file's name as the learner gave it, without a platform's ``-1``.
        order: grows with every time that a learner hands in anew.
        late: whether the platform says that it came after the deadline.
    """

    raw: str
    person: str
    platform: str = ""
    external_id: str = ""
    file: str = ""
    order: tuple[int, int] = (0, 0)
    late: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """The same for all that one learner handed in."""
        return (self.platform, self.external_id or unicodedata.normalize("NFC", self.person))


def parse(raw: str) -> HandInName:
    """Read the name of what was handed in."""
    moodle = _MOODLE.fullmatch(raw)
    if moodle:
        return HandInName(
            raw, moodle["person"], "Moodle", moodle["user"], file=moodle["file"] or ""
        )
    canvas = _CANVAS.fullmatch(raw)
    if canvas:
        file, again = _again(canvas["file"])
        order = (again, int(canvas["attachment"][:18]))
        return HandInName(
            raw,
            canvas["person"],
            "Canvas",
            canvas["user"],
            file=file,
            order=order,
            late=canvas["late"] is not None,
        )
    stem, suffix = split_suffix(raw)
    return HandInName(raw, stem or raw, file=f"{stem}{suffix}")


def split_suffix(name: str) -> tuple[str, str]:
    """A name without and with what archives end in: ``"a.tar.gz"`` is ``("a", ".tar.gz")``."""
    folded = name.lower()
    for suffix in ARCHIVE_SUFFIXES:
        if folded.endswith(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return name, ""


def is_archive_name(name: str) -> bool:
    """Whether the name ends as an archive's does."""
    return split_suffix(name)[1] != ""


def _again(file: str) -> tuple[str, int]:
    stem, suffix = split_suffix(file)
    if not suffix and "." in stem:
        stem, _, end = stem.rpartition(".")
        suffix = f".{end}"
    found = _AGAIN.fullmatch(stem)
    return (f"{found['stem']}{suffix}", int(found["again"])) if found else (file, 0)


def shown(text: str, most: int = 100) -> str:
    """`text` fit for a message: one line, no control, direction or broken characters, not long."""
    kept = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in unicodedata.normalize("NFC", text)
    )
    return kept if len(kept) <= most else f"{kept[: most - 21]}…{kept[-20:]}"


def folded(text: str) -> str:
    """`text` for comparing: without case, accents and what is neither letter nor digit."""
    plain = unicodedata.normalize("NFKD", text.translate(_LETTERS)).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in plain if not _mark(c)).split())


def safe_id(text: str) -> str:
    """An id out of a name: ASCII letters, digits, ``.``, ``_``, ``-``; fit to name a folder.

    Two names can have the same one: see `unique_ids`.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    plain = "".join(c for c in plain if not _mark(c))
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).lstrip("-.").rstrip("-.")
    if not re.search(r"[A-Za-z0-9]", plain):
        return f"learner-{_digest(text)}"
    if plain.split(".")[0].lower() in _RESERVED:
        plain = f"learner-{plain}"
    return plain if len(plain) <= MAX_ID else _with_suffix(plain, text)


def unique_ids(wanted: Iterable[tuple[Hashable, str, bool]]) -> dict[Hashable, str]:
    """Ids that differ in more than upper and lower case.

    Who has the same id as another gets a suffix made of their full name, whatever the order, so
    that a learner who joins later takes nobody's id.

    Args:
        wanted: for each learner a key, the name to make an id of, and whether it is the roster's,
            which stays as it is unless another one of the roster's is the same.
    """
    groups: dict[str, list[tuple[Hashable, str, bool]]] = defaultdict(list)
    for key, text, given in wanted:
        groups[safe_id(text).casefold()].append((key, text, given))
    found = {}
    for group in groups.values():
        given_ones = sum(given for _, _, given in group)
        for key, text, given in group:
            alone = len(group) == 1 or (given and given_ones == 1)
            found[key] = safe_id(text) if alone else _with_suffix(safe_id(text), f"{key!r} {text}")
    taken: set[str] = set()
    for key, one in found.items():
        # A suffix could by chance, or on purpose, be another one's plain name.
        unique, tries = one, 0
        while unique.casefold() in taken:
            tries += 1
            unique = _with_suffix(one, f"{key!r} {tries}")
        taken.add(unique.casefold())
        found[key] = unique
    return found


def _with_suffix(plain: str, text: str) -> str:
    return f"{plain[: MAX_ID - 7].rstrip('-.')}-{_digest(text)}"


def _digest(text: str) -> str:
    whole = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    return hashlib.sha256(whole).hexdigest()[:6]


def _mark(character: str) -> bool:
    return unicodedata.combining(character) != 0
