"""`make release-check`: the proof that a learner's edition holds nothing that it must not.

It looks at everything that a clone, a copy or a zip of the folder would carry: each object of the
git repository whether a branch leads to it or not, the names of refs and paths, the rest of
`.git`, and each file of the folder, ignored ones too. A file that is byte for byte one of those
that the release is to hold needs no look; all others are looked into (`looking`).

It cannot see what was said in other words, renamed throughout, encrypted, drawn, or cut into runs
shorter than a piece (`secrets`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rich.console import Console

from shared.edition import MARKER, Edition, learners_edition
from shared.errors import UserError
from shared.release.edition import Planned, Whole, is_secret, plan
from shared.release.looking import Finding, Looker
from shared.release.repository import git, git_bytes

ENVIRONMENTS = (".venv", ".venv-engine")
"""Built by `make setup` and ignored by git; gigabytes of other people's packages."""

_BAD_REFS = ("refs/stash", "refs/notes/*", "refs/replace/*", "refs/original/*", "refs/bisect/*")
_OBJECT = re.compile(
    r"[0-9a-f]{2}/[0-9a-f]{38,62}|info/.*|pack/.*\.(pack|idx|rev|bitmap|keep|mtimes)"
)


@dataclass
class Report:
    """What was found, and what was looked at.

    Attributes:
        foreign: files in the folder that are in no commit and not ignored: the release did not
            make them, and a copy or a zip of the folder hands them out.
    """

    findings: list[Finding] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    looked: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings and not self.foreign


def check_release(console: Console, whole: Path, out: str) -> int:
    """Check and report; 0 when nothing was found.

    Args:
        out: the folder of the learner's edition.

    Raises:
        UserError: there is no release.
    """
    if not out:
        raise UserError("OUT is missing: make release-check OUT=../mlops-labs-for-learners")
    release = Path(out).expanduser().absolute()
    if not (release / ".git").is_dir():
        raise UserError(f"{release} is not a release: it holds no git repository of its own.")
    with console.status("reading what must not be there …"):
        source = Whole.of(whole)
        planned = plan(source)
    with console.status("looking …"):
        report = find_leaks(release, source, planned)
    show(console, report, release)
    return 0 if report.clean else 1


def show(console: Console, report: Report, release: Path) -> None:
    """Print a report."""
    console.print(f"Looked at {release}:", markup=False)
    for what, count in report.looked.items():
        console.print(f"  {count:>7,} {what}", markup=False)
    for note in report.notes:
        console.print(f"  note: {note}", markup=False)
    for finding in report.findings:
        console.print(f" ✘ {finding}", markup=False, style="red")
    for name in report.foreign:
        console.print(f" ✘ {name} is not of the release", markup=False, style="red")
    if report.clean:
        console.print(" ✔ Nothing of a solution, a variant or a held-out set was found.")
    elif not report.findings:
        console.print(
            "Who gets a copy or a zip of this folder gets these files too. Move them out of it "
            "(a class list, grades and notes are nobody else's to read), and run this again."
        )
    else:
        console.print(
            f"{len(report.findings)} found. Do not hand this folder out. Make the release anew in "
            "an empty folder: what is in a history stays in it."
        )


def find_leaks(release: Path, source: Whole, planned: Planned) -> Report:
    """Everything that a release holds and must not."""
    return _Search(release.resolve(), source, planned).report()


class _Search:
    def __init__(self, release: Path, source: Whole, planned: Planned) -> None:
        self._release, self._source, self._planned = release, source, planned
        self._report = Report()
        algorithm = git(release, "rev-parse", "--show-object-format").strip()
        self._own = {_blob_id(f.data, algorithm): p for p, f in planned.files.items()}
        self._own_digests = {hashlib.sha256(f.data).hexdigest() for f in planned.files.values()}
        self._algorithm = algorithm
        self._looker = Looker(
            secrets=planned.secrets,
            same={
                hashlib.sha256(data).hexdigest(): path
                for path, data in (*planned.secret.items(), *planned.taken_out.items())
                if data.strip() and hashlib.sha256(data).hexdigest() not in self._own_digests
            },
            compiled=planned.compiled,
            checkout=_named_folder(source.root),
        )

    def report(self) -> Report:
        report, looked = self._report, self._report.looked
        for search in (self._shape, self._refs, self._objects, self._around, self._folder):
            report.findings += search()
        self._not_of_the_release()
        self._compare()
        for kind, count in self._looker.seen.items():
            looked[f"{kind} looked into"] = count
        for kind, count in self._looker.unseen.items():
            report.notes.append(f"{count} {kind}: what they show cannot be read")
        looked["pieces of secrets looked for"] = len(self._planned.secrets)
        report.findings = list(dict.fromkeys(report.findings))
        return report

    def _shape(self) -> Iterator[Finding]:
        """Ways in which a repository leads to another one."""
        git_folder = self._release / ".git"
        for name in ("objects/info/alternates", "objects/info/http-alternates", "commondir"):
            if (git_folder / name).exists():
                yield Finding(f".git/{name}", "takes objects from another repository")
        for name in ("worktrees", "modules"):
            if (git_folder / name).is_dir() and any((git_folder / name).iterdir()):
                yield Finding(f".git/{name}", "another work tree or repository hangs on this one")
        others = _urls(self._source.root) | {str(self._source.root)}
        for key, value in _settings(self._release):
            if key.startswith("include"):
                yield Finding(".git/config", f"takes settings from {value}")
            if re.fullmatch(r"(remote|url)\..*|branch\..*\.remote", key):
                if value in others or _leads_to(value, self._release, self._source.root):
                    yield Finding(".git/config", f"{key} = {value} leads to the whole edition")
                elif key.endswith("url"):
                    self._report.notes.append(f"{key} is {value}")

    def _refs(self) -> Iterator[Finding]:
        listed = git(self._release, "for-each-ref", "--format=%(refname)").split()
        self._report.looked["refs"] = len(listed)
        for ref in listed:
            if any(fnmatch.fnmatchcase(ref, p) for p in _BAD_REFS):
                yield Finding(ref, "a learner's edition has no stash, notes or replaced objects")

    def _objects(self) -> Iterator[Finding]:
        """Each object that the repository stores, reached by a ref or not."""
        listed = git(
            self._release, "cat-file", "--batch-all-objects", "--batch-check", "--unordered"
        )
        objects = [line.split() for line in listed.splitlines()]
        kinds = Counter(kind for _, kind, _ in objects)
        for kind in ("commit", "tree", "blob", "tag"):
            self._report.looked[f"{kind}s in the history, dangling ones too"] = kinds[kind]
        reached = self._reached()
        paths = self._paths_in_trees([o for o, kind, _ in objects if kind == "tree"])
        for object_id, path in paths:
            yield Finding(self._named(object_id, "tree", reached), f"holds the path {path}")
        look = [(o, kind) for o, kind, _ in objects if kind != "tree" and o not in self._own]
        known = kinds["blob"] - sum(kind == "blob" for _, kind in look)
        self._report.looked["of the blobs are files of the release, byte for byte"] = known
        for object_id, kind, data in _contents(self._release, look):
            where = self._named(object_id, kind, reached)
            yield from self._looker.look(where, data)
        for path in git(self._release, "ls-files", "-z").split("\0"):
            if path and is_secret(path):
                yield Finding(f".git/index, {path}", "is a secret path")

    def _paths_in_trees(self, trees: list[str]) -> Iterator[tuple[str, str]]:
        """Trees that hold a forbidden path, as seen from the top of a commit or from anywhere."""
        folders = {p.split("/")[2] for p in self._planned.secret if p.count("/") > 2}
        names = {PurePosixPath(p).name for p in self._planned.secret if p.count("/") == 1}
        width = 20 if self._algorithm == "sha1" else 32
        for object_id, _, data in _contents(self._release, [(t, "tree") for t in trees]):
            at = 0
            while at < len(data):
                space, end = data.index(b" ", at), data.index(b"\0", at)
                folder = data[at:space] == b"40000"
                name = data[space + 1 : end].decode("utf-8", "replace")
                if (folder and name in folders) or (not folder and name in names):
                    yield object_id, name
                at = end + 1 + width

    def _reached(self) -> dict[str, str]:
        """Objects that a ref or a reflog leads to, with a path or the name of a commit."""
        listed = git(self._release, "rev-list", "--objects", "--all", "--reflog")
        found = {}
        for line in listed.splitlines():
            object_id, _, path = line.partition(" ")
            found[object_id] = path
        return found

    def _named(self, object_id: str, kind: str, reached: Mapping[str, str]) -> str:
        short = object_id[:10]
        if object_id not in reached:
            return f"git object {short} (a dangling {kind})"
        path = reached[object_id]
        return f"git object {short} ({kind}{f' {path}' if path else ''})"

    def _around(self) -> Iterator[Finding]:
        """The files of `.git` that are no objects: settings, logs, hooks, messages, leftovers."""
        git_folder = self._release / ".git"
        for path in _files(git_folder):
            name = path.relative_to(git_folder).as_posix()
            if name.startswith("objects/"):
                inner = name.removeprefix("objects/")
                if _OBJECT.fullmatch(inner):
                    if inner.endswith(".pack") and not path.with_suffix(".idx").exists():
                        yield Finding(f".git/{name}", "a pack without an index is not looked into")
                    continue
            self._report.looked["other files in .git"] += 1
            if path.is_symlink():
                yield Finding(f".git/{name}", f"is a link to {os.readlink(path)}")
            elif name not in ("index",):
                yield from self._looker.look(f".git/{name}", path.read_bytes())

    def _folder(self) -> Iterator[Finding]:
        """The files of the folder itself, tracked or not, ignored or not."""
        left = [e for e in ENVIRONMENTS if (self._release / e).exists()]
        if left:
            self._report.notes.append(
                f"not looked into: {', '.join(left)} (built by `make setup`, never in git)"
            )
        for path in _files(self._release, skip=(".git", *ENVIRONMENTS)):
            name = path.relative_to(self._release).as_posix()
            self._report.looked["files in the folder"] += 1
            if is_secret(name):
                yield Finding(name, "is a secret path")
            if ".git" in PurePosixPath(name).parts:
                yield Finding(name, "belongs to another repository inside this one")
            if path.is_symlink():
                if not path.resolve().is_relative_to(self._release):
                    yield Finding(name, f"is a link out of the release, to {os.readlink(path)}")
                continue
            if not path.is_file():
                yield Finding(name, "is no plain file")
                continue
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() not in self._own_digests:
                yield from self._looker.look(name, data)

    def _not_of_the_release(self) -> None:
        """Files that no commit holds. Git's own lists of what to ignore could hide some."""
        listed = {}
        for kind, words in (("foreign", ()), ("ignored", ("-i",))):
            found = git(
                self._release,
                *("ls-files", "-o", *words, "--exclude-per-directory=.gitignore", "-z"),
            ).split("\0")
            listed[kind] = [f for f in found if f and f.split("/")[0] not in ENVIRONMENTS]
        self._report.foreign = sorted(listed["foreign"])
        if ignored := listed["ignored"]:
            more = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
            self._report.notes.append(
                f"ignored by git, and in a zip of the folder all the same: "
                f"{', '.join(sorted(ignored)[:3])}{more}"
            )

    def _compare(self) -> None:
        """Say whether the newest commit is what the release would be now."""
        marker = _marker(self._release)
        if marker is None:
            self._report.notes.append(f"{MARKER} is missing: `make release` did not make this")
            return
        if marker.made_from != self._source.commit:
            self._report.notes.append(
                f"made from commit {marker.made_from[:10]}; this checkout is at "
                f"{self._source.commit[:10]}, so its files were looked into, not compared"
            )
            return
        differing = differing_files(self._release, self._planned)
        same = len(self._planned.files.keys() - set(differing))
        self._report.looked["files of the newest commit are as the release makes them"] = same
        if differing:
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            self._report.notes.append(
                f"not as the release makes them: {', '.join(differing[:5])}{more}"
            )


def _named_folder(root: Path) -> re.Pattern[bytes] | None:
    """How a text names a folder, and not one beside it; None where that would say little."""
    if len(root.parts) < 3:
        return None
    return re.compile(re.escape(str(root).encode()) + rb"(?![\w.-])")


def differing_files(release: Path, planned: Planned) -> list[str]:
    """Paths at which the newest commit of a release is not as planned."""
    algorithm = git(release, "rev-parse", "--show-object-format").strip()
    tree = git(release, "ls-tree", "-r", "-z", "HEAD")
    there = dict(_entry(e) for e in tree.split("\0") if e)
    wanted = {
        path: ("100755" if file.executable else "100644", _blob_id(file.data, algorithm))
        for path, file in planned.files.items()
    }
    return sorted(p for p in there.keys() | wanted.keys() if there.get(p) != wanted.get(p))


def _contents(root: Path, objects: list[tuple[str, str]]) -> Iterator[tuple[str, str, bytes]]:
    """Id, kind and content of objects, in batches that fit into memory."""
    by_id = dict(objects)
    ids = list(by_id)
    for start in range(0, len(ids), 500):
        batch = ids[start : start + 500]
        data = git_bytes(root, "cat-file", "--batch", data="\n".join(batch).encode() + b"\n")
        at = 0
        for object_id in batch:
            end = data.index(b"\n", at)
            size = int(data[at:end].split()[2])
            yield object_id, by_id[object_id], data[end + 1 : end + 1 + size]
            at = end + 1 + size + 1


def _files(folder: Path, skip: tuple[str, ...] = ()) -> Iterator[Path]:
    """All that is no folder, links to folders too; `skip` names entries at the top."""
    for root, folders, names in os.walk(folder, followlinks=False):
        here = Path(root)
        if here == folder:
            folders[:] = [f for f in folders if f not in skip]
            names = [n for n in names if n not in skip]
        for name in (*names, *(f for f in folders if (here / f).is_symlink())):
            yield here / name


def _settings(root: Path) -> Iterator[tuple[str, str]]:
    listed = git(root, "config", "--local", "--list", "-z", "--no-includes")
    for entry in filter(None, listed.split("\0")):
        key, _, value = entry.partition("\n")
        yield key, value


def _urls(root: Path) -> set[str]:
    """Where the whole edition is fetched from."""
    return {v for k, v in _settings(root) if re.fullmatch(r"remote\..*\.(push)?url", k) and v}


def _leads_to(value: str, release: Path, source: Path) -> bool:
    """Whether a remote's address is a folder, and that folder the whole edition's."""
    path = Path(value.removeprefix("file://"))
    path = path if path.is_absolute() else release / path
    try:
        return path.exists() and path.resolve() in (source, source / ".git")
    except OSError:
        return False


def _marker(release: Path) -> Edition | None:
    return learners_edition(release)


def _entry(entry: str) -> tuple[str, tuple[str, str]]:
    """Path, mode and id of a line of `git ls-tree`."""
    about, path = entry.split("\t", 1)
    mode, _, object_id = about.split()
    return path, (mode, object_id)


def _blob_id(data: bytes, algorithm: str) -> str:
    return hashlib.new(algorithm, b"blob %d\0" % len(data) + data).hexdigest()
