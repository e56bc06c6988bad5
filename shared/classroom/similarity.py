"""Who handed in what somebody else wrote? A list of pairs to look at, for the instructor only.

The method is winnowing: Schleimer, Wilkerson, Aiken, "Winnowing: Local Algorithms for Document
Fingerprinting", SIGMOD 2003, https://theory.stanford.edu/~aiken/publications/papers/sigmod03.pdf,
the one behind MOSS.

1. A file becomes tokens. Comments and layout go; each name that is no keyword of Python becomes
   the same token, each string and each number too. Renaming, reformatting and other comments
   change nothing.
2. Each run of `K` tokens is hashed; of each `W` hashes in a row the smallest is kept, the last one
   of equals. Any stretch of `K` + `W` - 1 = 30 tokens (about four lines) that two files share gives
   them a fingerprint in common; nothing shorter than `K` tokens does.
3. Hashes that occur in the lab's starter or its reference solution count for nobody, and neither
   do those that many learners have: they are what the task asks for.
4. A pair's similarity is the number of fingerprints they share over those of the one with fewer.

5. A second list holds who is close to the reference: each file is compared with the solution and
   the right variants of its task by the same figure, and only the starter counts for nobody there.
   Its threshold is high (`CLOSE`): of the right variants, which are other ways to solve a task or
   rewritten solutions, none reaches it against the solution.

Near matches are stretched to their full length and shown side by side. A high figure is a reason
to read both files, never a verdict: short tasks leave few ways to solve them.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from shared.classroom.gradebook import table
from shared.classroom.pages import render
from shared.classroom.records import ClassResult
from shared.classroom.text import cut, one_line, visible
from shared.classroom.verdicts import Labs

K = 20
"""Tokens in a run."""
W = 11
"""Hashes of which one is kept."""
THRESHOLD = 0.5
"""Pairs from this similarity on are listed."""
LEAST = 8
"""Shared fingerprints below which a pair is not listed: about 65 tokens."""
CLOSE = 0.9
"""Files from this similarity to a reference on are listed."""
LEAST_OF_REFERENCE = 24
"""Fingerprints shared with a reference below which a file is not listed: about 160 tokens."""
COMMON = 10
"""A fingerprint of more learners than this, and than a twentieth of them, counts for nobody."""
_LONGEST_FILE = 200_000
_LONGEST_LINE = 2_000
_PAIRS_SHOWN = 100
_FRAGMENTS = 4
_FRAGMENT_LINES = 40
_BASE, _MODULUS = 1_000_003, (1 << 61) - 1
_TOKEN = re.compile(
    r"""(?P<skip>\#[^\n]*|\s+|\\\n)
    |(?P<text>[rbfuRBFU]{0,2}(?:'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))
    |(?P<number>\d[\w.]*)
    |(?P<name>[^\W\d]\w*)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Text:
    """A file as tokens.

    Attributes:
        tokens: in their normal form.
        lines: the line, from 1, on which each token begins.
        source: the file's lines.
    """

    tokens: list[str]
    lines: list[int]
    source: list[str]


@dataclass(frozen=True)
class Fragment:
    """A stretch that two files share: line numbers, from 1, both inclusive."""

    tokens: int
    lines_a: tuple[int, int]
    lines_b: tuple[int, int]


@dataclass(frozen=True)
class Pair:
    """Two files of one task that share more than the task asks for.

    Attributes:
        a, b: whose they are, by id; `b` is a reference's path in the lab's folder where
            `of_reference`.
        similarity: shared fingerprints over those of the one with fewer, from 0 to 1.
        share_a, share_b: shared fingerprints over those of each.
        fragments: what they share, longest first.
    """

    lab: int
    file: str
    a: str
    b: str
    similarity: float
    share_a: float
    share_b: float
    shared: int
    fragments: list[Fragment]
    text_a: Text
    text_b: Text
    of_reference: bool = False


def tokens(source: str) -> Text:
    """A file's tokens in normal form. Broken code has tokens too; overlong lines are cut."""
    lines = [line[:_LONGEST_LINE] for line in source[:_LONGEST_FILE].splitlines()]
    found: list[str] = []
    places: list[int] = []
    line = 1
    for match in _TOKEN.finditer("\n".join(lines)):
        kind, text = match.lastgroup, match.group()
        if kind != "skip":
            found.append(_normal(kind or "", text))
            places.append(line)
        line += text.count("\n")
    return Text(found, places, lines)


def _normal(kind: str, text: str) -> str:
    if kind == "name":
        return text if keyword.iskeyword(text) else "name"
    return text if kind == "other" else kind


def hashes(found: list[str]) -> list[int]:
    """The hash of each run of `K` tokens (Rabin and Karp), the same in every run and process."""
    values = [int.from_bytes(t.encode("utf-8", "replace")[:7], "big") + 1 for t in found]
    if len(values) < K:
        return []
    first = pow(_BASE, K - 1, _MODULUS)
    value = 0
    for v in values[:K]:
        value = (value * _BASE + v) % _MODULUS
    result = [value]
    for gone, new in zip(values, values[K:], strict=False):
        value = ((value - gone * first) * _BASE + new) % _MODULUS
        result.append(value)
    return result


def winnow(values: list[int]) -> dict[int, list[int]]:
    """Of each `W` hashes in a row the smallest, the last of equals: hash to its positions."""
    kept: dict[int, list[int]] = {}
    last = -1
    for start in range(max(1, len(values) - W + 1) if values else 0):
        window = values[start : start + W]
        smallest = min(window)
        place = start + max(i for i, v in enumerate(window) if v == smallest)
        if place != last:
            kept.setdefault(smallest, []).append(place)
            last = place
    return kept


def similar_pairs(result: ClassResult, labs: Labs) -> list[Pair]:
    """The pairs of a class, and who is close to a reference; most similar first."""
    found: list[Pair] = []
    for lab in result.labs:
        for file, texts in sorted(_texts(result, lab, labs).items()):
            given = _given(lab, file, labs, "starter", "drafts")
            found += _close_to_reference(lab, file, texts, _references(lab, file, labs), given)
            given |= _given(lab, file, labs, "solution")
            found += _pairs(lab, file, texts, given)
    return sorted(found, key=lambda p: (-p.similarity, -p.shared, p.lab, p.file, p.a, p.b))


def _texts(result: ClassResult, lab: int, labs: Labs) -> dict[str, dict[str, Text]]:
    wanted = {task.file for task in labs[lab].tasks} if lab in labs else None
    found: dict[str, dict[str, Text]] = {}
    for learner in sorted(learner.id for learner in result.learners):
        submission = result.submissions.get(learner)
        folder = submission.labs.get(lab) if submission is not None else None
        if folder is None:
            continue
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            if (wanted is None or name in wanted) and path.is_file() and not path.is_symlink():
                found.setdefault(name, {})[learner] = tokens(_read(path))
    return found


def _given(lab: int, file: str, labs: Labs, *parts: str) -> set[int]:
    """Every hash of the file as these folders of the lab have it."""
    if lab not in labs:
        return set()
    folders = (labs[lab].folder / name for name in parts)
    return {
        value
        for path in (folder / file for folder in folders)
        if path.is_file()
        for value in hashes(tokens(_read(path)).tokens)
    }


def _references(lab: int, file: str, labs: Labs) -> dict[str, Text]:
    """The solution and the right variants, by their paths in the lab's folder."""
    if lab not in labs:
        return {}
    folder = labs[lab].folder
    variants = sorted((folder / "variants" / Path(file).stem).glob("right_*.py"))
    return {
        path.relative_to(folder).as_posix(): tokens(_read(path))
        for path in (folder / "solution" / file, *variants)
        if path.is_file()
    }


def _close_to_reference(
    lab: int, file: str, texts: dict[str, Text], references: dict[str, Text], given: set[int]
) -> Iterable[Pair]:
    """Each learner's file beside the reference that it is closest to, if it is close."""
    known = {name: _prints(text, given) for name, text in references.items()}
    for learner, text in texts.items():
        own = _prints(text, given)
        best: Pair | None = None
        for name, theirs in known.items():
            count = len(own.keys() & theirs.keys())
            if count < LEAST_OF_REFERENCE or count / min(len(own), len(theirs)) < CLOSE:
                continue
            similarity = count / min(len(own), len(theirs))
            if best is not None and (best.similarity, best.shared) >= (similarity, count):
                continue
            best = Pair(
                lab=lab,
                file=file,
                a=learner,
                b=name,
                similarity=similarity,
                share_a=count / len(own),
                share_b=count / len(theirs),
                shared=count,
                fragments=_fragments(text, references[name], own, theirs, set()),
                text_a=text,
                text_b=references[name],
                of_reference=True,
            )
        if best is not None:
            yield best


def _prints(text: Text, given: set[int]) -> dict[int, list[int]]:
    """A file's fingerprints without those that are given."""
    return {v: at for v, at in winnow(hashes(text.tokens)).items() if v not in given}


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(4 * _LONGEST_FILE).decode("utf-8", "replace")


def _pairs(lab: int, file: str, texts: dict[str, Text], given: set[int]) -> Iterable[Pair]:
    prints = {learner: _prints(text, given) for learner, text in texts.items()}
    owners: dict[int, list[str]] = {}
    for learner, own in prints.items():
        for value in own:
            owners.setdefault(value, []).append(learner)
    most = max(COMMON, len(texts) // 20)
    common = {value for value, who in owners.items() if len(who) > most}
    shared: Counter[tuple[str, str]] = Counter()
    for value, who in owners.items():
        if value not in common:
            shared.update(combinations(who, 2))
    sizes = {learner: len(own.keys() - common) for learner, own in prints.items()}
    for (a, b), count in shared.items():
        similarity = count / min(sizes[a], sizes[b])
        if count >= LEAST and similarity >= THRESHOLD:
            yield Pair(
                lab=lab,
                file=file,
                a=a,
                b=b,
                similarity=similarity,
                share_a=count / sizes[a],
                share_b=count / sizes[b],
                shared=count,
                fragments=_fragments(texts[a], texts[b], prints[a], prints[b], common),
                text_a=texts[a],
                text_b=texts[b],
            )


def _fragments(
    a: Text,
    b: Text,
    prints_a: dict[int, list[int]],
    prints_b: dict[int, list[int]],
    common: set[int],
) -> list[Fragment]:
    """Shared fingerprints, each stretched as far as the tokens agree, and none shown twice."""
    meets = sorted(
        (i, j)
        for value in prints_a.keys() & prints_b.keys() - common
        for i in prints_a[value][:3]
        for j in prints_b[value][:3]
    )
    found: list[Fragment] = []
    covered: set[int] = set()
    for i, j in meets:
        if i in covered:
            continue
        start = 0
        while min(i, j) - start > 0 and a.tokens[i - start - 1] == b.tokens[j - start - 1]:
            start += 1
        end = 0
        while max(i + end - len(a.tokens), j + end - len(b.tokens)) < 0:
            if a.tokens[i + end] != b.tokens[j + end]:
                break
            end += 1
        if end < K:
            continue  # two different runs of one hash
        covered.update(range(i - start, i + end))
        lines_a = (a.lines[i - start], a.lines[i + end - 1])
        lines_b = (b.lines[j - start], b.lines[j + end - 1])
        found.append(Fragment(start + end, lines_a, lines_b))
    return sorted(found, key=lambda f: (-f.tokens, f.lines_a, f.lines_b))


def similarity_csv(pairs: list[Pair]) -> str:
    """All of it as a spreadsheet: who is close to a reference first, then pairs of learners."""
    header = ["Lab", "File", "Learner A", "Learner B", "Similarity", "Of A", "Of B"]
    rows: list[list[object]] = [[*header, "Shared fingerprints", "Longest fragment (tokens)"]]
    for p in sorted(pairs, key=lambda p: not p.of_reference):
        longest = p.fragments[0].tokens if p.fragments else 0
        shares = [round(share, 3) for share in (p.similarity, p.share_a, p.share_b)]
        other = f"reference: {p.b}" if p.of_reference else p.b
        rows.append([p.lab, p.file, p.a, other, *shares, p.shared, longest])
    return table(rows)


@dataclass(frozen=True)
class _Shown:
    """A fragment's two sides as texts."""

    tokens: int
    place_a: str
    place_b: str
    text_a: str
    text_b: str


def similarity_page(pairs: list[Pair], result: ClassResult) -> str:
    """Both lists with what is shared, side by side."""
    names = {learner.id: one_line(learner.name, 120) for learner in result.learners}
    close = [p for p in pairs if p.of_reference]
    both = [p for p in pairs if not p.of_reference]
    shown = [
        [
            (
                p,
                names.get(p.a, p.a),
                p.b if p.of_reference else names.get(p.b, p.b),
                [_shown(f, p) for f in p.fragments][:_FRAGMENTS],
            )
            for p in found[:_PAIRS_SHOWN]
        ]
        for found in (close, both)
    ]
    return render(
        "similarity.html",
        close=shown[0],
        count_close=len(close),
        close_from=CLOSE,
        least_close=LEAST_OF_REFERENCE,
        pairs=shown[1],
        count=len(both),
        threshold=THRESHOLD,
        least=LEAST,
        shortest=K + W - 1,
    )


def _shown(fragment: Fragment, pair: Pair) -> _Shown:
    return _Shown(
        tokens=fragment.tokens,
        place_a=_place(fragment.lines_a),
        place_b=_place(fragment.lines_b),
        text_a=_excerpt(pair.text_a, fragment.lines_a),
        text_b=_excerpt(pair.text_b, fragment.lines_b),
    )


def _place(lines: tuple[int, int]) -> str:
    return f"lines {lines[0]} to {lines[1]}"


def _excerpt(text: Text, lines: tuple[int, int]) -> str:
    chosen = text.source[lines[0] - 1 : lines[1]]
    shown = [visible(cut(line, 200)) for line in chosen[:_FRAGMENT_LINES]]
    if len(chosen) > _FRAGMENT_LINES:
        shown.append(f"… {len(chosen) - _FRAGMENT_LINES} more lines")
    return "\n".join(shown)
