"""What goes into the learner's edition, what stays out, and what is changed on the way.

`RULES` is the list. Each file of the repository falls under the first rule that fits; a file that
no rule fits stops the release, so that nothing new goes out, or is left out, unseen.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from shared.edition import MARKER, PRISTINE, Edition
from shared.errors import UserError
from shared.release import edits
from shared.release.looking import compiled_functions
from shared.release.repository import git
from shared.release.secrets import Secrets

Kind = Literal["in", "out", "secret"]
ADDED = Path(__file__).resolve().parent / "added"


@dataclass(frozen=True)
class Rule:
    """What becomes of the files whose path fits one of `paths` (``*`` stands for slashes too).

    Attributes:
        kind: ``secret`` files give answers away, and `make release-check` looks for pieces of them;
            ``out`` files are of no use to learners; ``in`` files go in.
    """

    kind: Kind
    why: str
    paths: tuple[str, ...]


RULES: tuple[Rule, ...] = (
    Rule("secret", "the reference", ("labs/*/solution/*",)),
    Rule("secret", "right and wrong ways to solve a task", ("labs/*/variants/*",)),
    Rule("secret", "names every wrong way and what catches it", ("labs/PROOF.md",)),
    Rule("secret", "the same text as the starter, in an author's place", ("labs/*/drafts/*",)),
    Rule(
        "in",
        "what a learner works with",
        (
            "labs/*/README.md",
            "labs/*/lab.toml",
            "labs/*/starter/*",
            "labs/*/images/*",
            "labs/*/bench_*",
            "notebooks/*",
        ),
    ),
    Rule("out", "measures the reference", ("labs/lab_2_drift/checks/support/measure_alerts.py",)),
    Rule("in", "learners grade themselves", ("labs/*/checks/*",)),
    Rule("out", "makes the pictures of a lab, with its solutions", ("labs/*/screenshots.py",)),
    Rule(
        "out",
        "for authors and instructors",
        (
            "shared/release/*",
            "shared/classroom/*",
            "shared/grading/proof*.py",
            "shared/bench.py",
            "CONTRIBUTING.md",
        ),
    ),
    Rule("in", "what the labs stand on", ("shared/*",)),
    Rule(
        "in",
        "tests that need no solution",
        (
            "tests/__init__.py",
            "tests/conftest.py",
            "tests/golden/*",
            "tests/test_domains_tabular.py",
            "tests/test_embed.py",
            "tests/test_engine.py",
            "tests/test_grader_keeps_results.py",
            "tests/test_grader_statuses.py",
            "tests/test_models.py",
            "tests/test_presidio.py",
            "tests/test_requirements.py",
            "tests/test_worlds.py",
        ),
    ),
    Rule("out", "tests that need solutions, or prove the whole edition", ("tests/*",)),
    Rule("out", "continuous integration of the project", (".ci/*", ".github/*")),
    Rule(
        "in",
        "the front door",
        (
            ".devcontainer/*",
            ".gitignore",
            "AGENTS.md",
            "LICENSE",
            "Makefile",
            "README.md",
            "pyproject.toml",
            "requirements/*",
        ),
    ),
)

HELD_OUT: Mapping[str, edits.Edit] = {
    "shared/assistant/golden/*.jsonl": edits.open_rows,
    "shared/assistant/labelled/pii_*.jsonl": edits.practice_texts,
    "shared/assistant/labelled/*.jsonl": edits.practice_answers,
    "shared/assistant/paraphrases/*.jsonl": edits.open_paraphrases,
    "shared/assistant/unsupported/*.txt": edits.open_claims,
    "shared/assistant/recorded/*.jsonl": edits.open_recordings,
    "shared/assistant/label_pii.py": edits.open_wordings("_SENTENCES"),
    "shared/assistant/attacks.py": edits.open_wordings(
        "_DIRECT", "_INDIRECT", "_ROLE_PLAY", "_PARAPHRASE"
    ),
    "shared/assistant/disguises.py": edits.open_disguises,
    "labs/lab_3_evaluation/checks/support/suite_systems.py": edits.without_held_out_names,
}
"""Where held-out sets are, and how they are taken out. The first that fits a file edits it, and
what it takes away is looked for by `make release-check`."""

PRACTICE: Mapping[str, tuple[str, ...]] = {
    "lab_3_evaluation": (
        "retrieval_metrics",
        "groundedness",
        "pii_leak",
        "adversarial_suite",
        "judge",
        "release_gate",
        "evaluation_suite",
    ),
}
"""Tasks whose checks use held-out data: in the learner's edition their reports say so."""

AUTHORS_COMMANDS = ("starters", "proof", "lock")
"""Commands that learners have no use for; so are those that import what stays out."""

_TESTS = """## Tests

```
make test
```

proves this edition on your machine: the grader, the engines, the models, the data, and that each
task can be graded. It says nothing about your own work: that is what `make check-lab-1` is for.
This is the learner's edition. It holds no solutions, and no held-out data: reports of tasks that
would be graded on those say that it is not proven, and your instructor's checkout grades on them.

"""

EDITED: Mapping[str, edits.Edit] = {
    "notebooks/*": edits.learners_notebook,
    "README.md": edits.in_turn(
        edits.without_sections(
            "In a classroom", "For those who work on the labs", "For instructors", then=_TESTS
        ),
        edits.dropped(r" \(`make bench` measures\s+yours\)"),
        edits.rewritten(
            (r"(`starter` \(yours, the default\)), `solution`, or a", r"\1 or a"),
            (r"git clone <this repository> && cd", "git clone <your repository> mlops-labs && cd"),
        ),
    ),
    "AGENTS.md": edits.in_turn(
        edits.without_sections("When you work on the project itself"),
        edits.rewritten(
            (
                r"`solution/` is there to be read by\s+them, after",
                "the instructor shows solutions, after",
            ),
            (
                r"`labs/\*/solution`, `labs/\*/variants`, the hints in\s+`labs/\*/lab\.toml` or "
                r"`labs/PROOF\.md` to a learner\. They hold the answers\.",
                "the hints in `labs/*/lab.toml`, or a solution from anywhere, to a\n"
                "  learner. They hold the answers.",
            ),
        ),
    ),
    "pyproject.toml": edits.replaced(
        ('extend-exclude = ["', f'extend-exclude = ["labs/*/{PRISTINE}", "')
    ),
    "labs/*/README.md": edits.dropped(
        r"\n`make bench LAB=\d` measures\s+yours\.",
        r"`TARGET=solution` shows it with the reference, ",
        r" \(`\.venv/bin/python labs/lab_2_drift/screenshots\.py` takes them again[^)]*\)",
    ),
    "shared/review/demo.py": edits.rewritten(
        (r'(\{error\}\.) "\s*"TARGET=solution shows it with the reference\."', r'\1"')
    ),
    "labs/*/bench_*.py": edits.replaced(
        ('default="solution", help="solution, starter or', 'default="starter", help="starter or')
    ),
    "shared/assistant/README.md": edits.rewritten(
        (
            r"\. Both the leaker on request and\s+the one that obeys planted .*? held out",
            "",
        ),
        (r"\s+\(`tests/test_assistant\.py`\)", ""),
    ),
    "tests/conftest.py": edits.in_turn(
        edits.without_functions(("pytest_sessionstart", "pytest_sessionfinish")),
        edits.rewritten((r"^STARTED = .*?\n", "")),
    ),
}
"""Files that are changed for learners without anything to hide."""

ADDED_FILES: Mapping[str, str] = {
    "tests/test_edition.py": "test_edition.py",
    ".github/workflows/classroom.yml": "classroom.yml",
}
"""Files that only the learner's edition has, and where in `added/` they lie."""


@dataclass(frozen=True)
class File:
    """A file's content and whether it may be executed."""

    data: bytes
    executable: bool = False


@dataclass(frozen=True)
class Whole:
    """The whole edition: the files of a checkout as they lie there, tracked ones and new ones."""

    root: Path
    files: Mapping[str, File]
    commit: str

    @classmethod
    def of(cls, root: Path) -> Whole:
        """Read a checkout.

        Raises:
            UserError: it is none, or holds a symbolic link.
        """
        words = ("ls-files", "-co", "--exclude-standard", "-z")
        listed = git(root, *words, users_settings=True).split("\0")
        files = {}
        for name in sorted(filter(None, listed)):
            path = root / name
            if path.is_symlink():
                if name.startswith(".venv"):
                    continue
                raise UserError(f"{name} is a symbolic link; the release takes plain files only.")
            if path.is_file():
                files[name] = File(path.read_bytes(), bool(path.stat().st_mode & 0o100))
        return cls(root, files, git(root, "rev-parse", "HEAD").strip())


@dataclass(frozen=True)
class Planned:
    """The learner's edition before it is written.

    Attributes:
        files: by path.
        changed: paths of files that are not as in the whole edition.
        taken_out: for each edited file with held-out data, what it was.
        secret: files that give answers away.
        out: other files that stay out.
        blanked: how many outputs of a notebook are left out because they show what is held out.
        secrets: the pieces by which all that is known elsewhere.
    """

    files: Mapping[str, File]
    changed: frozenset[str]
    taken_out: Mapping[str, bytes]
    secret: Mapping[str, bytes]
    out: frozenset[str]
    blanked: Mapping[str, int]
    secrets: Secrets

    @cached_property
    def compiled(self) -> Mapping[str, str]:
        """Fingerprints of compiled functions that only secret files have, with their names."""
        known = {}
        for path, data in (*self.secret.items(), *self.taken_out.items()):
            if path.endswith(".py"):
                for name, mark in compiled_functions(path, data):
                    known[mark] = f"{path} ({name})"
        for path, file in self.files.items():
            if path.endswith(".py"):
                for _, mark in compiled_functions(path, file.data):
                    known.pop(mark, None)
        return known


def rule_of(path: str) -> Rule | None:
    """The first rule that fits a path."""
    return next((r for r in RULES if any(fnmatch.fnmatchcase(path, p) for p in r.paths)), None)


def is_secret(path: str) -> bool:
    """Whether a path is one that must never be in the learner's edition."""
    rule = rule_of(path)
    return rule is not None and rule.kind == "secret"


def plan(whole: Whole) -> Planned:
    """The learner's edition of a checkout.

    Raises:
        UserError: a file fits no rule, or an edit does not fit its file any more.
    """
    by_kind: dict[Kind, list[str]] = {"in": [], "out": [], "secret": []}
    unknown = []
    for path in whole.files:
        rule = rule_of(path)
        if rule is None:
            unknown.append(path)
        else:
            by_kind[rule.kind].append(path)
    if unknown:
        raise UserError(
            "RULES in shared/release/edition.py says of no rule whether these go to learners: "
            f"{', '.join(unknown[:8])}."
        )
    files = {path: whole.files[path] for path in by_kind["in"]}
    added = {path: File((ADDED / name).read_bytes()) for path, name in ADDED_FILES.items()}
    pristine = {
        path.replace("/starter/", f"/{PRISTINE}/"): file
        for path, file in files.items()
        if fnmatch.fnmatchcase(path, "labs/*/starter/*.py")
    }
    marker = Edition(
        edition="learner",
        made_from=whole.commit,
        practice={lab: list(tasks) for lab, tasks in PRACTICE.items()},
    )
    present = set(files)
    files |= added | pristine
    files[MARKER] = File((marker.model_dump_json(indent=1) + "\n").encode())
    taken_out, changed = {}, set()
    for path, edit, hides in _edits(present, whole):
        before = whole.files[path]
        text = edit(path, before.data.decode("utf-8"))
        if path.endswith(".py"):
            edits.expect_python(path, text)
        files[path] = File(text.encode("utf-8"), before.executable)
        changed.add(path)
        if hides:
            taken_out[path] = before.data
    secret = {p: whole.files[p].data for p in by_kind["secret"]}
    secrets, blanked = Secrets.of(secret, taken_out, files), {}
    for path in [p for p in files if p.endswith(".ipynb")]:
        files[path], blanked[path] = _without_telling_outputs(files[path], secrets)
    for path, file in files.items():
        secrets.forget(path, file.data)
    return Planned(
        files=files,
        changed=frozenset(changed),
        taken_out=taken_out,
        secret=secret,
        out=frozenset(by_kind["out"]),
        blanked=blanked,
        secrets=secrets,
    )


def _edits(present: set[str], whole: Whole) -> Iterable[tuple[str, edits.Edit, bool]]:
    """Path, edit, and whether what it takes away is to be hidden."""
    cli = whole.files["shared/cli.py"].data.decode("utf-8")
    commands = edits.commands_to_leave_out(cli, AUTHORS_COMMANDS, present)
    more = {
        "shared/cli.py": edits.without_functions(commands),
        "Makefile": edits.in_turn(
            edits.without_targets(commands, edits.options_of(cli, commands)),
            edits.replaced((" TARGET=solution", ""), ("starter|solution|PATH", "starter|PATH")),
        ),
    }
    used = set()
    for path in sorted(present):
        for table, hides in ((HELD_OUT, True), ({**EDITED, **more}, False)):
            fitting = [p for p in table if fnmatch.fnmatchcase(path, p)]
            if fitting:
                used.update(fitting)
                yield path, table[fitting[0]], hides
    unused = (HELD_OUT.keys() | EDITED.keys()) - used
    if unused:
        raise UserError(
            f"shared/release/edition.py edits files that are gone: {', '.join(sorted(unused))}."
        )


def _without_telling_outputs(file: File, secrets: Secrets) -> tuple[File, int]:
    """A notebook without the outputs that show a piece of what is secret; how many those are."""
    notebook, count = json.loads(file.data), 0
    for cell in notebook["cells"]:
        for n, output in enumerate(cell.get("outputs", [])):
            if next(secrets.pieces(json.dumps(output, ensure_ascii=False)), None):
                cell["outputs"][n] = _LEFT_OUT
                count += 1
    if not count:
        return file, 0
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return File(text.encode("utf-8")), count


_LEFT_OUT = {
    "name": "stdout",
    "output_type": "stream",
    "text": [
        "(This output is left out of the learner's edition: it shows what is held out. Run the "
        "cell.)\n"
    ],
}
