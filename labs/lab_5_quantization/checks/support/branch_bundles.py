"""Device bundles of known worth: good ones that differ in what does not matter, and bad ones."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from support.branch_models import (
    RARE,
    RARE_PROBES,
    WEAK,
    WEAK_PROBES,
    WEAK_WRONG,
    Original,
    Weights,
    original,
)
from support.branch_onnx import (
    SLOWER,
    SMALLER,
    as_float32,
    with_float16_layer,
    without_units,
)
from support.device_bundles import (
    APACHE,
    MIT,
    Member,
    RunsCode,
    manifest_of,
    member,
    pickles,
    write_bundle,
)
from threadpoolctl import threadpool_limits
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from shared.device.device import Probe
from shared.device.keys import new_key, sign
from shared.device.layout import LICENCES, SBOM, SIGNATURE

MODEL = "model/router.onnx"
CONFIG = "model/config.json"
TOKENIZER = "tokenizer/tokenizer.json"
WHEEL = "runtime/bundle_runtime-{version}-py3-none-any.whl"
MEMORY_BYTES = 24 << 20
GOOD = 24
SIZES = ((24, 48), (32, 80))
"""Width and units of the two originals."""

_RUNTIME = '''"""Sorts texts by topic."""

import json
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from shared.device.session import Session
{imports}

class Router:
    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
        self.topics = config["topics"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
        self.session = Session(folder / "model" / "router.onnx")
{models}
        self.asked = 0
{loading}

    def answer(self, text: str) -> tuple[str, list[int]]:
        self.asked += 1
        ids = self.tokenizer.encode(text).ids
{answering}
        (logits,) = self.session.run({{"ids": np.array(ids, np.int64)}})
{answered}
        return self.topics[int(logits.argmax())], ids


def load(folder: Path) -> Router:
    return Router(folder)
'''


_METADATA = "Metadata-Version: 2.4\nName: bundle-runtime\nVersion: {version}\n"


@dataclass(frozen=True)
class Subject:
    """A bundle, what is wrong with it, and which of the two originals it was made from.

    Attributes:
        fault: None for a good one.
        does: the disguise, in words.
    """

    path: Path
    of: int
    fault: str | None
    does: str


class Probes(tuple[Probe, ...]):
    """Probes, of which a report that names them says how many there are."""

    def __repr__(self) -> str:
        return f"<{len(self)} probes>"


@dataclass
class Draft:
    """A bundle before it is packed."""

    model: bytes
    tokenizer: bytes
    topics: tuple[str, ...]
    version: str = "2.0.0"
    code: dict[str, str] = field(default_factory=dict)
    """Lines for the runtime, by the place where they go."""
    extra: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """More files of the maker's: content, licence."""
    stored: bool = False
    listed: Callable[[list[dict]], list[dict]] | None = None
    """Changes the SBOM's components."""
    texts: Callable[[dict[str, bytes]], dict[str, bytes]] | None = None
    """Changes the licence texts."""
    after: Callable[[bytes], bytes] | None = None
    """Changes the archive's bytes when all is done."""
    edit: Callable[[list[Member]], list[Member]] | None = None
    """Changes members after everything is signed."""
    mark: Callable[[bytes], bytes] | None = None
    """Makes another signature."""

    def write(self, path: Path, key: bytes) -> Path:
        """Pack it."""
        wheel_path = WHEEL.format(version=self.version)
        config = json.dumps({"topics": self.topics, "words": "see tokenizer.json"}).encode()
        made = {
            MODEL: (self.model, "Apache-2.0", "machine-learning-model", "router"),
            CONFIG: (config, "Apache-2.0", "data", "router-config"),
            TOKENIZER: (self.tokenizer, "CC-BY-4.0", "data", "words"),
            wheel_path: (self._wheel(), "MIT", "library", "bundle-runtime"),
        }
        for place, (content, licence) in self.extra.items():
            made[place] = (content, licence, "data", Path(place).stem)
        content = {p: c for p, (c, *_) in made.items()}
        components = [
            {
                "type": kind,
                "bom-ref": place,
                "name": name,
                "version": self.version,
                "hashes": [
                    {"alg": "SHA-256", "content": hashlib.sha256(content[place]).hexdigest()}
                ],
                "licenses": [
                    {"expression": licence} if " " in licence else {"license": {"id": licence}}
                ],
            }
            for place, (_, licence, kind, name) in made.items()
        ]
        texts = {
            f"{LICENCES}/{name}.txt": MIT if "MIT" in licence else APACHE
            for _, licence, _, name in made.values()
        }
        sbom = {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "components": self.listed(components) if self.listed else components,
        }
        texts = self.texts(texts) if self.texts else texts
        files = content | texts | {SBOM: json.dumps(sbom, indent=1).encode()}
        signed = manifest_of(files, self.version).to_bytes()
        write_bundle(
            path,
            files,
            key,
            version=self.version,
            signature=self.mark(signed) if self.mark else None,
            edit=self.edit,
        )
        if self.after:
            path.write_bytes(self.after(path.read_bytes()))
        return path

    def _wheel(self) -> bytes:
        places = {"imports": "", "models": "", "loading": "", "answering": "", "answered": ""}
        source = _RUNTIME.format(**(places | self.code))
        info = f"bundle_runtime-{self.version}.dist-info"
        packed = io.BytesIO()
        how = zipfile.ZIP_STORED if self.stored else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(packed, "w", how) as out:
            for place, text in {
                "bundle_runtime/__init__.py": source,
                f"{info}/METADATA": _METADATA.format(version=self.version),
                f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                f"{info}/RECORD": "",
            }.items():
                out.writestr(zipfile.ZipInfo(place), text)
        return packed.getvalue()


class Maker:
    """Makes the two originals and all bundles of a run; the same seed makes the same ones."""

    def __init__(self, domain: str, seed: int, folder: Path) -> None:
        self.rng = np.random.default_rng([seed, 58])
        self.folder = folder
        self.private, self.public = new_key()
        self.stranger, _ = new_key()
        self.originals = [
            original(domain, int(self.rng.integers(1 << 30)), *size) for size in SIZES
        ]
        others = {"finance": "healthcare", "healthcare": "climate", "climate": "finance"}
        self._other = original(others[domain], 0, *SIZES[0])
        self.probes = [self._in_slices(o) for o in self.originals]
        self._count = 0

    def reference(self, of: int) -> Path:
        """The bundle of an original, in float32."""
        draft = self._draft(of, as_float32)
        draft.version = "1.0.0"
        return draft.write(self.folder / f"original-{of}.tar", self.private)

    @cached_property
    def good(self) -> list[Subject]:
        """Bundles that may go out. The third is hardly faster than its original."""
        found = []
        for i in range(GOOD):
            of = i % 2
            draft, method = self._made_smaller(of, i // 2 % (len(SMALLER) + 4))
            names = self.rng.choice(len(_HARMLESS), size=2, replace=False)
            changes = [_HARMLESS[i % len(_HARMLESS)], *(_HARMLESS[int(n)] for n in names)]
            changes += [_large_files] if i in (5, 10) else []
            for change in changes:
                change(draft, self.rng)
            does = [
                method[0].lower() + method[1:].rstrip("."),
                *((c.__doc__ or "").rstrip(".") for c in changes),
            ]
            found.append(self._subject(draft, of, None, ", ".join(dict.fromkeys(does))))
        return found

    def bad(self, fault: str) -> list[Subject]:
        """One bundle for each disguise of a fault, each from one of the originals."""
        found = []
        for i, disguise in enumerate(DISGUISES[fault]):
            of = (i + int(self.rng.integers(2))) % 2
            form = SMALLER[int(self.rng.integers(len(SMALLER)))]
            with threadpool_limits(1):
                draft = disguise(self, of, form)
            does = (getattr(disguise, "func", disguise).__doc__ or "").splitlines()[0].rstrip(".")
            if isinstance(disguise, partial):
                does = str(disguise.keywords.get("does", does))
            found.append(self._subject(draft, of, fault, does))
        return found

    def _subject(self, draft: Draft, of: int, fault: str | None, does: str) -> Subject:
        self._count += 1
        path = draft.write(self.folder / f"bundle-{self._count}.tar", self.private)
        return Subject(path, of, fault, does)

    def _draft(
        self, of: int, form: Callable[[Weights], bytes], weights: Weights | None = None
    ) -> Draft:
        made = self.originals[of]
        return Draft(form(weights or made.weights), tokenizer_of(made.vocabulary), made.topics)

    def _made_smaller(self, of: int, kind: int) -> tuple[Draft, str]:
        """A good bundle by one of the methods, and the method in words."""
        w = self.originals[of].weights
        if kind == 1:
            return self._draft(of, as_float32, self._pruned(of)), "Some hidden units are left out"
        if kind == 2:
            return (
                self._draft(of, with_float16_layer, self._trained_on(of)),
                "It was trained for longer, and is right where the original is wrong",
            )
        if kind == 3:
            draft = self._draft(of, with_float16_layer)
            draft.extra["model/larger.onnx"] = as_float32(w), "Apache-2.0"
            draft.code["models"] = _indented(_LARGER)
            draft.code["answered"] = _indented(_UNSURE.format(margin=self._close(of)))
            return draft, "A small model answers, and a larger one where the small one is unsure"
        if kind == 4:
            rounded = self._rounded(of)
            return self._draft(of, with_float16_layer, rounded), "The word vectors are coarse"
        form = SMALLER[max(0, kind - 4)]
        return self._draft(of, form), (form.__doc__ or "").splitlines()[0]

    def _may_go_out(self, of: int, weights: Weights) -> bool:
        """What is said of good bundles, with room: at most 4 of 100 lost in a slice, or one."""
        made = self.originals[of]
        before = made.right(made.weights)
        lost = before & ~made.right(weights)
        slices = np.array([p.slice for p in self.probes[of]])
        return all(
            lost[slices == s].sum() <= max(1, 0.03 * before[slices == s].sum()) for s in set(slices)
        )

    def _trained_on(self, of: int) -> Weights:
        """The weights that were trained for longer, on the probes as well.

        Raises:
            RuntimeError: they lose more in a slice than chance explains.
        """
        better = self.originals[of].better
        if not self._may_go_out(of, better):
            raise RuntimeError("what was trained for longer lost a slice")
        return better

    def _close(self, of: int) -> float:
        """The difference between the two best scores that a seventh of the probes don't reach.

        With as many asked twice, a model of half the cycles is dearer there, and cheaper in all.
        """
        made = self.originals[of]
        best = np.sort(made.weights.logits(made.ids([p.text for p in made.probes])), axis=1)
        return float(np.quantile(best[:, -1] - best[:, -2], 1 / 7))

    def _rounded(self, of: int) -> Weights:
        """The weights with the coarsest word vectors that may go out."""
        w = self.originals[of].weights
        for levels in range(2, 64):
            step = np.abs(w.embedding).max(axis=1, keepdims=True) / levels
            coarse = replace(w, embedding=(np.round(w.embedding / step) * step).astype(np.float32))
            if self._may_go_out(of, coarse):
                return coarse
        return w

    def _pruned(self, of: int) -> Weights:
        """The weights without the hidden units that say least: as many as may go out, to a tenth.

        Raises:
            RuntimeError: not one can be left out.
        """
        w = self.originals[of].weights
        use = np.argsort(np.abs(w.out).sum(axis=1) * np.abs(w.hidden).sum(axis=0))
        few = [[int(i) for i in use[:n]] for n in range(len(use) // 10, 0, -1)]
        for gone in [*few, *([int(i)] for i in use)]:
            small = without_units(w, gone)
            if self._may_go_out(of, small):
                return small
        raise RuntimeError("each hidden unit is needed")

    def _in_slices(self, made: Original) -> Probes:
        """The probes, with a slice of six, and one in which the original is often wrong.

        One of the six is a probe that the original has right by a hair, so that good bundles lose
        it now and then. In the other slice a good bundle can have many other answers, by having
        them right.
        """
        right = made.right(made.weights)
        logits = np.sort(made.weights.logits(made.ids([p.text for p in made.probes])), axis=1)
        margin = np.where(right, logits[:, -1] - logits[:, -2], np.inf)
        close = int(margin.argmin())
        clear = np.flatnonzero(np.isfinite(margin) & (margin > np.median(margin)))
        rare = {close, *(int(i) for i in self.rng.choice(clear, RARE_PROBES - 1, replace=False))}
        wrong = [int(i) for i in self.rng.permutation(np.flatnonzero(~right))][:WEAK_WRONG]
        others = [int(i) for i in self.rng.permutation(np.flatnonzero(right)) if int(i) not in rare]
        named = dict.fromkeys(rare, RARE)
        named |= dict.fromkeys([*wrong, *others[: WEAK_PROBES - len(wrong)]], WEAK)
        return Probes(
            Probe(p.text, named.get(i, p.slice), p.label) for i, p in enumerate(made.probes)
        )


def tokenizer_of(
    vocabulary: tuple[str, ...], *, lower: bool = True, truncate: int = 0, pretty: bool = False
) -> bytes:
    """The tokenizer of whole words, by Hugging Face's library."""
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "removed", invert=True)
    if truncate:
        tokenizer.enable_truncation(truncate)
    return tokenizer.to_str(pretty=pretty).encode()


def _stored(draft: Draft, rng: np.random.Generator) -> None:
    """its wheel is not compressed."""
    draft.stored = True


def _more_licences(draft: Draft, rng: np.random.Generator) -> None:
    """it carries word lists under two more licences."""
    draft.extra["model/places.json"] = b'["Quay Street", "Mill Lane"]', "ODbL-1.0"
    draft.extra["model/names.txt"] = b"names\n", "CC0-1.0 OR MIT"


def _large_files(draft: Draft, rng: np.random.Generator) -> None:
    """it carries weights that are larger than the memory, and are not loaded."""
    draft.extra["model/welsh.safetensors"] = (
        save({"table": np.zeros(MEMORY_BYTES + (1 << 20), np.uint8)}),
        "Apache-2.0",
    )


def _small_table(draft: Draft, rng: np.random.Generator) -> None:
    """it carries a table in safetensors."""
    table = rng.normal(size=(64, 32)).astype(np.float32)
    draft.extra["model/prior.safetensors"] = save({"prior": table}), "MIT"


def _pretty_tokenizer(draft: Draft, rng: np.random.Generator) -> None:
    """its tokenizer.json is indented."""
    draft.tokenizer = json.dumps(json.loads(draft.tokenizer), indent=2, sort_keys=True).encode()


def _long_texts(draft: Draft, rng: np.random.Generator) -> None:
    """its tokenizer cuts texts after 512 words."""
    read = json.loads(draft.tokenizer)
    read["truncation"] = {
        "direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    draft.tokenizer = json.dumps(read).encode()


def _buffer(draft: Draft, rng: np.random.Generator) -> None:
    """it keeps a buffer of 8 MB."""
    draft.code["loading"] = "        self.buffer = np.ones(8 << 20, np.uint8)\n"


def _names_socket(draft: Draft, rng: np.random.Generator) -> None:
    """it imports socket and urllib, and uses neither."""
    draft.code["imports"] = "import socket\nimport subprocess\nimport urllib.request\n"
    draft.code["loading"] = "        self.host = getattr(socket, 'AF_INET', None)\n"


def _warm_up(draft: Draft, rng: np.random.Generator) -> None:
    """it warms up for long while it loads."""
    draft.code["loading"] = (
        "        for _ in range(300):\n"
        '            self.session.run({"ids": np.zeros(40, np.int64)})\n'
    )


def _newer_version(draft: Draft, rng: np.random.Generator) -> None:
    """it is of a much later version."""
    draft.version = "10.4.1"


_HARMLESS: tuple[Callable[[Draft, np.random.Generator], None], ...] = (
    _stored, _more_licences, _small_table, _pretty_tokenizer, _long_texts, _buffer,
    _names_socket, _warm_up, _newer_version,
)  # fmt: skip

Form = Callable[[Weights], bytes]


# Not what was signed


def _no_signature(maker: Maker, of: int, form: Form) -> Draft:
    """has no signature"""
    draft = maker._draft(of, form)
    draft.edit = lambda listed: [m for m in listed if m[0].name != SIGNATURE]
    return draft


def _another_key(maker: Maker, of: int, form: Form) -> Draft:
    """is signed by another key"""
    draft = maker._draft(of, form)
    draft.mark = lambda signed: sign(maker.stranger, signed)
    return draft


def _replayed(maker: Maker, of: int, form: Form) -> Draft:
    """has the signature of another bundle of the same maker"""
    draft = maker._draft(of, form)
    draft.mark = lambda signed: sign(maker.private, signed.replace(b'"2.0.0"', b'"1.9.0"'))
    return draft


def _changed_after(maker: Maker, of: int, form: Form) -> Draft:
    """has weights that were changed after it was signed"""
    draft = maker._draft(of, form)
    weights = maker.originals[of].weights
    other = form(
        Weights(
            weights.embedding,
            weights.hidden,
            weights.hidden_bias,
            weights.out,
            weights.out_bias + 1e-6,
        )
    )
    draft.edit = lambda listed: [member(MODEL, other) if m[0].name == MODEL else m for m in listed]
    return draft


def _slipped_in(maker: Maker, of: int, form: Form) -> Draft:
    """has a file that the signed manifest does not list"""
    draft = maker._draft(of, form)
    draft.edit = lambda listed: [*listed, member("model/extra.json", b"{}")]
    return draft


def _lost_one(maker: Maker, of: int, form: Form) -> Draft:
    """lacks a file that the signed manifest lists"""
    draft = maker._draft(of, form)
    draft.extra["model/names.txt"] = b"names\n", "MIT"
    draft.edit = lambda listed: [m for m in listed if m[0].name != "model/names.txt"]
    return draft


def _twice(maker: Maker, of: int, form: Form) -> Draft:
    """has one file twice, and the second one is not the signed one"""
    draft = maker._draft(of, form)
    other = json.dumps({"topics": maker.originals[of].topics[::-1]}).encode()
    draft.edit = lambda listed: [*listed, member(CONFIG, other)]
    return draft


def _twice_with_the_signed_last(maker: Maker, of: int, form: Form) -> Draft:
    """has one file twice, and the first one is not the signed one

    Who unpacks the archive, or makes a dict of it, is left with the last. A device that reads it in
    place, or takes a file as soon as it comes, has the first.
    """
    draft = maker._draft(of, form)
    other = member(CONFIG, json.dumps({"topics": maker.originals[of].topics[::-1]}).encode())
    draft.edit = lambda listed: [
        m for signed in listed for m in ((other, signed) if signed[0].name == CONFIG else (signed,))
    ]
    return draft


def _cut_off(maker: Maker, of: int, form: Form) -> Draft:
    """is cut off in the middle"""
    draft = maker._draft(of, form)
    draft.after = lambda content: content[: len(content) // 2]
    return draft


def _no_archive(maker: Maker, of: int, form: Form) -> Draft:
    """is no archive at all"""
    draft = maker._draft(of, form)
    draft.after = lambda content: b"<html>Your download has expired.</html>" * 40
    return draft


# Licences


def _no_text(maker: Maker, of: int, form: Form) -> Draft:
    """has no licence text for one component"""
    draft = maker._draft(of, form)
    draft.texts = lambda texts: {p: t for p, t in texts.items() if "words" not in p}
    return draft


def _empty_text(maker: Maker, of: int, form: Form) -> Draft:
    """has an empty licence text"""
    draft = maker._draft(of, form)
    draft.texts = lambda texts: texts | {f"{LICENCES}/router.txt": b"\n"}
    return draft


def _no_licence(maker: Maker, of: int, form: Form) -> Draft:
    """has the licence texts, but the SBOM names no licence for one component"""
    draft = maker._draft(of, form)
    draft.listed = lambda parts: [
        {k: v for k, v in p.items() if k != "licenses" or "wheel" in p["bom-ref"]}
        if p["bom-ref"] == TOKENIZER
        else p
        for p in parts
    ]
    return draft


def _no_assertion(maker: Maker, of: int, form: Form) -> Draft:
    """has a licence called NOASSERTION"""
    draft = maker._draft(of, form)
    draft.listed = lambda parts: [
        p | {"licenses": [{"license": {"name": "NOASSERTION"}}]} if p["bom-ref"] == MODEL else p
        for p in parts
    ]
    return draft


def _not_listed(maker: Maker, of: int, form: Form) -> Draft:
    """has a file that the SBOM does not list"""
    draft = maker._draft(of, form)
    draft.extra["model/names.txt"] = b"names\n", "MIT"
    draft.listed = lambda parts: [p for p in parts if p["bom-ref"] != "model/names.txt"]
    return draft


def _of_another_file(maker: Maker, of: int, form: Form) -> Draft:
    """has an SBOM with the hash of an earlier model"""
    draft = maker._draft(of, form)
    earlier = hashlib.sha256(as_float32(maker.originals[of].weights)).hexdigest()
    draft.listed = lambda parts: [
        p | {"hashes": [{"alg": "SHA-256", "content": earlier}]} if p["bom-ref"] == MODEL else p
        for p in parts
    ]
    return draft


# Code among the weights


def _carries(maker: Maker, of: int, form: Form, *, place: str, what: str, does: str) -> Draft:
    """carries code"""
    draft = maker._draft(of, form)
    contents = pickles() | {
        "script": b"import os\nos.getcwd()\n",
        "library": b"\x7fELF\x02\x01\x01" + bytes(57),
        "safetensors and a pickle": save({"a": np.ones(4, np.float32)}) + pickles()["protocol 4"],
        "a trained pipeline": _pipeline(),
        "a script that protobuf reads": _parsed_script(),
    }
    draft.extra[place] = contents[what], "Apache-2.0"
    return draft


def _pipeline() -> bytes:
    return pickle.dumps({"scaler": np.ones(16), "hook": RunsCode()}, protocol=4)


def _parsed_script() -> bytes:
    """A script that protobuf parses as a model without complaint.

    To protobuf, `i` and eight bytes are a field that ONNX has no name for. The end of the line
    begins another one, of as many bytes as its first letter says.
    """
    return b"import os\no" + b"s.getcwd()\n".ljust(ord("o"), b"#")


# The tokenizer


def _swapped(maker: Maker, of: int, form: Form) -> Draft:
    """has a tokenizer of the same size in which frequent words have changed places"""
    draft = maker._draft(of, form)
    made = maker.originals[of]
    counts = np.zeros(len(made.vocabulary), int)
    for ids in made.ids([p.text for p in made.probes]):
        for i in ids:
            counts[i] += 1
    often = np.argsort(counts)[::-1][5:35]
    one, two = maker.rng.choice(often, 2, replace=False)
    words = list(made.vocabulary)
    words[one], words[two] = words[two], words[one]
    draft.tokenizer = tokenizer_of(tuple(words))
    return draft


def _cut_vocabulary(maker: Maker, of: int, form: Form) -> Draft:
    """has a tokenizer that lacks a tenth of the words"""
    draft = maker._draft(of, form)
    words = maker.originals[of].vocabulary
    draft.tokenizer = tokenizer_of(words[: len(words) * 9 // 10])
    return draft


def _case_kept(maker: Maker, of: int, form: Form) -> Draft:
    """has a tokenizer that does not turn capital letters into small ones"""
    draft = maker._draft(of, form)
    draft.tokenizer = tokenizer_of(maker.originals[of].vocabulary, lower=False)
    return draft


def _other_desk(maker: Maker, of: int, form: Form) -> Draft:
    """has another desk's tokenizer, of the same size"""
    draft = maker._draft(of, form)
    size = len(maker.originals[of].vocabulary)
    words = maker._other.vocabulary[:size]
    words += tuple(f"unused{i}" for i in range(size - len(words)))
    draft.tokenizer = tokenizer_of(words)
    return draft


def _shifted(maker: Maker, of: int, form: Form) -> Draft:
    """has a tokenizer with one token more at the front"""
    draft = maker._draft(of, form)
    words = maker.originals[of].vocabulary
    draft.tokenizer = tokenizer_of(("[UNK]", "[PAD]", *words[1:]))
    return draft


def _cut_short(maker: Maker, of: int, form: Form) -> Draft:
    """has a tokenizer that cuts texts after 16 words"""
    draft = maker._draft(of, form)
    draft.tokenizer = tokenizer_of(maker.originals[of].vocabulary, truncate=16)
    return draft


# What the runtime does


def _runtime(maker: Maker, of: int, form: Form, *, code: dict[str, str], does: str) -> Draft:
    """has a runtime that does what it should not"""
    draft = maker._draft(of, form)
    draft.code = code
    return draft


def _slow_model(maker: Maker, of: int, form: Form, *, slower: Form, does: str) -> Draft:
    """has a slow model"""
    return maker._draft(of, slower)


# Quality


def _one_topic(maker: Maker, of: int, form: Form, *, how: str, does: str) -> Draft:
    """is as good as the original in the mean, and lost one slice"""
    made, probes = maker.originals[of], maker.probes[of]
    slices = np.array([p.slice for p in probes])
    before = made.right(made.weights)
    order = maker.rng.permutation(len(made.topics))
    for topic in (int(t) for t in order):
        mine = slices == made.topics[topic]
        for strength in np.linspace(0.05, 1.0, 39):
            damaged = _damaged(made, topic, how, float(strength))
            right = made.right(damaged)
            lost = int(before[mine].sum() - right[mine].sum())
            if lost >= max(8, 0.2 * mine.sum()):
                if right.mean() >= before.mean() - 0.005:
                    draft = maker._draft(of, form)
                    draft.model = with_float16_layer(damaged)
                    return draft
                break
    raise RuntimeError("no topic can be lost without the mean")


def _damaged(made: Original, topic: int, how: str, strength: float) -> Weights:
    better = made.better
    if how == "bias":
        bias = better.out_bias.copy()
        bias[topic] -= 8 * strength
        return Weights(better.embedding, better.hidden, better.hidden_bias, better.out, bias)
    if how == "column":
        out = better.out.copy()
        out[:, topic] *= 1 - strength
        return Weights(better.embedding, better.hidden, better.hidden_bias, out, better.out_bias)
    ids = made.ids([p.text for p in made.probes if p.label == made.topics[topic]])
    others = made.ids([p.text for p in made.probes if p.label != made.topics[topic]])
    words = len(made.vocabulary)
    here = np.bincount(np.concatenate([np.asarray(i) for i in ids]), minlength=words)
    there = np.bincount(np.concatenate([np.asarray(i) for i in others]), minlength=words)
    own = np.argsort(here / (there + 1.0) + 1e-6 * here)[::-1]
    embedding = better.embedding.copy()
    embedding[own[: int(strength * 120)]] = 0
    return Weights(embedding, better.hidden, better.hidden_bias, better.out, better.out_bias)


def _everywhere(maker: Maker, of: int, form: Form) -> Draft:
    """is worse in all slices"""
    made = maker.originals[of]
    before = made.right(made.weights).mean()
    for step in range(60):
        noise = np.random.default_rng(step).normal(size=made.weights.hidden.shape)
        hidden = made.weights.hidden + 0.03 * (1 + step) * noise.astype(np.float32)
        w = made.weights
        worse = Weights(w.embedding, hidden, w.hidden_bias, w.out, w.out_bias)
        losses = made.losses(made.right(worse))
        if made.right(worse).mean() < before - 0.2 and any(
            lost >= max(8, 0.2 * n) for lost, n in losses.values()
        ):
            break
    draft = maker._draft(of, form)
    draft.model = with_float16_layer(worse)
    return draft


def _indented(text: str) -> str:
    return "".join(f"        {line}\n" for line in text.splitlines())


_CALL = """\
try:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("192.0.2.7", 443))
except Exception:
    pass
"""
_FETCH = """\
try:
    urllib.request.urlopen("http://192.0.2.7/", timeout=1)
except Exception:
    pass
"""
_LOOK_UP = """\
if self.asked == 200:
    try:
        socket.getaddrinfo("updates.example", 443)
    except Exception:
        pass
"""
_THREAD = """\
def report():
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"up", ("192.0.2.7", 514))
    except Exception:
        pass
threading.Thread(target=report).start()
"""
_LISTEN = """\
try:
    socket.create_server(("127.0.0.1", 0))
except Exception:
    pass
"""
_CURL = """\
def report():
    try:
        subprocess.run(["curl", "http://192.0.2.7/"])
    except Exception:
        pass
atexit.register(report)
"""
_COPIES = """\
whole = (folder / "model" / "router.onnx").read_bytes()
self.copies = [whole * (1 + (64 << 20) // len(whole))]
"""
_LARGER = 'self.larger = Session(folder / "model" / "larger.onnx")'
_UNSURE = """\
*_, second, first = np.sort(logits[0])
if first - second < {margin}:
    (logits,) = self.larger.run({{"ids": np.array(ids, np.int64)}})
"""
_AGAIN = 'self.session.run({"ids": np.array(ids, np.int64)})\n'


def _network(does: str, code: dict[str, str]) -> partial[Draft]:
    return partial(_runtime, code=code, does=does)


DISGUISES: dict[str, tuple[Callable[[Maker, int, Form], Draft], ...]] = {
    "unsigned": (
        _no_signature, _another_key, _replayed, _changed_after, _slipped_in, _lost_one, _twice,
        _twice_with_the_signed_last, _cut_off, _no_archive,
    ),
    "unlicensed": (
        _no_text, _empty_text, _no_licence, _no_assertion, _not_listed, _of_another_file,
    ),
    "code": tuple(
        partial(_carries, place=place, what=what, does=f"carries {does}")
        for place, what, does in (
            ("model/scaler.pkl", "a trained pipeline", "a pickle"),
            ("model/prior.safetensors", "protocol 4", "a pickle named .safetensors"),
            ("model/rules.json", "protocol 0", "a pickle in text named .json"),
            ("model/prior.safetensors", "a PyTorch checkpoint", "a checkpoint as .safetensors"),
            ("model/second.onnx", "protocol 2", "a pickle named .onnx"),
            ("model/second.onnx", "a script that protobuf reads", "a script named .onnx"),
            ("model/prior.safetensors", "safetensors and a pickle", "a pickle behind safetensors"),
            ("model/start.py", "script", "a script beside the weights"),
        )
    ),
    "tokenizer": (_swapped, _cut_vocabulary, _case_kept, _other_desk, _shifted, _cut_short),
    "broken": (
        partial(_runtime, does="breaks at its 300th text", code={
            "answering": _indented("if self.asked == 300:\n    raise KeyError(text)"),
        }),
        partial(_runtime, does="can't be loaded", code={"imports": "import no_such_library\n"}),
        partial(_runtime, does="ends its process at its 350th text", code={
            "imports": "import os\n",
            "answering": _indented("if self.asked == 350:\n    os._exit(0)"),
        }),
    ),
    "network": (
        _network("calls home when it is imported", {"imports": "import socket\n\n" + _CALL}),
        _network("calls home when it is loaded", {
            "imports": "import urllib.request\n", "loading": _indented(_FETCH),
        }),
        _network("looks up a name at the 200th text", {
            "imports": "import socket\n", "answering": _indented(_LOOK_UP),
        }),
        _network("sends datagrams from a thread", {
            "imports": "import socket\nimport threading\n", "loading": _indented(_THREAD),
        }),
        _network("listens on a port", {
            "imports": "import socket\n", "loading": _indented(_LISTEN),
        }),
        _network("starts curl when it ends", {
            "imports": "import atexit\nimport subprocess\n", "loading": _indented(_CURL),
        }),
    ),
    "memory": (
        partial(_runtime, does="unfolds its weights when it is loaded", code={
            "loading": "        self.table = np.ones((64 << 20,), np.uint8)\n",
        }),
        partial(_runtime, does="needs much while it loads, and little after", code={
            "loading": "        table = np.ones((64 << 20,), np.uint8)\n        del table\n",
        }),
        partial(_runtime, does="keeps a trace of each text", code={
            "loading": "        self.traces = []\n",
            "answered": "        self.traces.append(np.ones(160 << 10, np.uint8))\n",
        }),
        partial(_runtime, does="needs much for one long text", code={
            "answered": _indented("if len(ids) > 20:\n    np.ones((64 << 20,), np.uint8)"),
        }),
        partial(_runtime, does="holds its weights in Python numbers", code={
            "loading": "        self.table = [float(i) for i in range(2_000_000)]\n",
        }),
        partial(_runtime, does="loads its model many times over", code={
            "loading": _indented(_COPIES),
        }),
    ),
    "slow": (
        *(
            partial(_slow_model, slower=form, does=does)
            for form, does in zip(
                SLOWER,
                (
                    "has twice as many hidden units",
                    "has a layer in float64",
                    "brings its layer back to float32 for each text",
                    "brings all its word vectors back for each text",
                ),
                strict=True,
            )
        ),
        partial(_runtime, does="asks its model five times and takes the last answer", code={
            "answering": _indented("for _ in range(4):\n    " + _AGAIN),
        }),
        partial(_runtime, does="asks its model again for the longer texts", code={
            "answering": _indented("for _ in range(8 if len(ids) > 9 else 0):\n    " + _AGAIN),
        }),
    ),
    "quality": (
        *(
            partial(_one_topic, how=how, does=f"is as good in the mean, and lost {what}")
            for how, what in (
                ("bias", "one topic to a bias"),
                ("column", "the weights of one topic"),
                ("words", "the words of one topic"),
                ("bias", "a topic to a bias"),
                ("words", "a topic's words"),
            )
        ),
        _everywhere,
    ),
}  # fmt: skip
