"""Classes made by hand for the tests of what comes out of grading: a usual one, a hostile one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

from shared.classroom.records import ClassResult, Flag, GradedLab, Learner, Note, Submission
from shared.grading.events import CheckOutcome, Frame
from shared.grading.lab import Hint, Lab, Task, load_lab
from shared.grading.results import LabResult, TaskResult

SCRIPT = "<script>alert('run')</script>"
ATTRIBUTE = "\" onmouseover=\"alert('run')\" x='"
IMAGE = "<img src=http://127.0.0.1:9/x.png onerror=alert('run')>"
STYLE = "</style><style>body{display:none}</style></title><svg onload=alert('run')>"
TEMPLATE = "{{ 7 * 7 }}{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}"
FORMULA = '=HYPERLINK("http://127.0.0.1:9/","see")'
ANSI = "\x1b]0;owned\x07\x1b[2J\x1b[31mred"
BIDI = "safe\u202etxt.exe\u2066 \u200f"
NUL = "zero\x00zero"
SURROGATE = "half \ud83d pair"
EMOJI = "👩\u200d🔬 🏳️\u200d🌈 é e\u0301"
ZALGO = "z" + "\u0301\u0302\u0303" * 40
XML = "]]> <!-- &unknown; \ufffe \x0b"
WORKFLOW = 'fine\n::notice title=Autograding report::{"totalPoints":999}\n##[set-output name=x]1'
LONG = "W" * 3000
HOSTILE = [
    *(SCRIPT, ATTRIBUTE, IMAGE, STYLE, TEMPLATE, FORMULA, ANSI, BIDI, NUL, SURROGATE, EMOJI, ZALGO),
    *(XML, WORKFLOW, LONG, "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "a;=1+1", ""),
]
EVERYTHING = " ".join(HOSTILE)


def small_lab(number: int, folder: Path, tasks: int = 2) -> Lab:
    """A lab that exists in memory, with a starter and a reference where `folder` has them."""
    return Lab(
        number=number,
        title=f"Made {number}",
        engine="none",
        domains=False,
        folder=folder,
        tasks=[
            Task(
                id=f"{number}.{n}",
                title=f"Task {n} <of> {number}",
                kind="build",
                file=f"task_{n}.py",
                symbols=["double"],
                points=10 * n,
                minutes=1,
                hints=[
                    Hint(id="times", text="How many times is twice?"),
                    Hint(id="zero", text="And of nothing?"),
                ],
            )
            for n in range(1, tasks + 1)
        ],
    )


def task_result(task: Task, status: str, **more: Any) -> TaskResult:
    """A verdict on a task, with three checks of which the failing one comes second."""
    checks = [CheckOutcome(check="test_double_doubles", outcome="passed")]
    if status in ("failed", "timed_out"):
        failed = more.pop("failed", {"observed": "3", "expected": "4", "hint": "times"})
        outcome = "failed" if status == "failed" else "timed_out"
        checks.append(CheckOutcome(**{"check": "test_two", "outcome": outcome} | failed))
        checks.append(CheckOutcome(check="test_three", outcome="failed", hint="zero"))
    if status == "error":
        failed = more.pop("failed", {"observed": "SyntaxError: invalid syntax"})
        checks = [CheckOutcome(**{"check": "", "outcome": "error"} | failed)]
    fields: dict[str, Any] = {
        "id": task.id,
        "title": task.title,
        "points": task.points if status == "passed" else 0,
        "max_points": task.points,
        "status": status,
        "message": "",
        "hint": "times" if status == "failed" else None,
        "seconds": 1.5,
        "sha256": "0" * 64,
        "checks": checks if status not in ("not_started", "not_graded") else [],
        "expected_checks": 3,
    }
    return TaskResult(**fields | more)


def lab_result(lab: Lab, tasks: list[TaskResult], **more: Any) -> LabResult:
    """A graded lab."""
    fields: dict[str, Any] = {
        "lab": lab.number,
        "title": lab.title,
        "target": "submission",
        "files": {task.file: hashlib.sha256(task.file.encode()).hexdigest() for task in lab.tasks},
        "domain": "finance",
        "engine": None,
        "not_proven": [],
        "seed": 7,
        "score": sum(t.points for t in tasks),
        "max_score": lab.max_score,
        "tasks": tasks,
        "started_at": "2026-01-01T00:00:00+00:00",
        "seconds": 3.0,
        "complete": True,
    }
    return LabResult(**fields | more)


def class_of(
    labs: list[Lab],
    graded: list[GradedLab],
    learners: list[Learner],
    submissions: dict[str, Submission] | None = None,
    **more: Any,
) -> ClassResult:
    """A class."""
    fields: dict[str, Any] = {
        "learners": tuple(learners),
        "labs": tuple(lab.number for lab in labs),
        "max_scores": {lab.number: lab.max_score for lab in labs},
        "graded": tuple(graded),
        "submissions": submissions or {},
        "domain": "finance",
        "seed": 7,
        "sandbox": "bubblewrap, warm",
        "complete": True,
    }
    return ClassResult(**fields | more)


def hostile_class(folder: Path) -> tuple[ClassResult, dict[int, Lab]]:
    """Every text that a submission or a roster can bring is hostile, one kind a learner."""
    labs = [small_lab(8, folder), small_lab(9, folder)]
    learners, graded, submissions = [], [], {}
    for n, text in enumerate([*HOSTILE, EVERYTHING]):
        who = Learner(
            id=f"learner-{n:02}",
            name=text,
            email=text,
            section=text,
            external_id=text,
            canvas=dict.fromkeys(("Student", "ID", "SIS User ID", "SIS Login ID", "Section"), text),
            moodle={"ID number": text, "Username": text},
        )
        learners.append(who)
        note = Note(kind=text, text=text, lab=8)
        failed = {
            **dict.fromkeys(("observed", "expected", "why", "call", "printed", "detail"), text),
            "hint": text,
            "check": f"test_{text}",
            "frames": [Frame(file=text, line=1, function=text, code=text)],
            "figures": [
                {"name": text, "value": 1.5, "reference": 2.0, "unit": text},
                {"name": text, "value": text, "reference": text, "unit": text},
                {"value": float("nan")},
            ],
        }
        first, second = labs[0].tasks
        tasks = [
            task_result(first, "failed", failed=failed, message=text, hint=text, sha256=text),
            task_result(second, "timed_out" if n % 2 else "error", failed=failed, message=text),
        ]
        result = lab_result(labs[0], tasks, files={text: text}, not_proven=[text], engine=text)
        graded.append(
            GradedLab(learner=who.id, lab=8, state="graded", result=result, notes=(note,))
        )
        spoilt = lab_result(labs[1], [task_result(t, "passed", points=0) for t in labs[1].tasks])
        flag = Flag(task="9.1", kind=text, evidence=f"secret evidence {text}")
        graded.append(
            GradedLab(
                learner=who.id, lab=9, state="graded", result=spoilt, flags=(flag,), problem=text
            )
        )
        submissions[who.id] = Submission(
            learner=who, source=text, labs={}, notes=(note,), problem=text
        )
    return class_of(labs, graded, learners, submissions), {lab.number: lab for lab in labs}


def usual_class(people: int = 30, seed: int = 3) -> tuple[ClassResult, dict[int, Lab]]:
    """A class as it may be, on two real labs: most pass most, some did not come, one cheats."""
    random = Random(seed)
    labs = [load_lab(1), load_lab(2)]
    hard = {task.id: random.uniform(0.35, 0.95) for lab in labs for task in lab.tasks}
    checks = {task.id: list(lab.expected_checks(task)) for lab in labs for task in lab.tasks}
    learners, graded, submissions = [], [], {}
    for n in range(1, people + 1):
        who = Learner(
            id=f"learner-{n:02}",
            name=f"Learner {n:02}",
            email=f"learner{n:02}@example.org",
            section="AB"[n % 2],
            external_id=str(4000 + n),
        )
        learners.append(who)
        skill = random.gauss(0, 0.25)
        found = [Note(kind="conftest.py", text="conftest.py was left out.")] if n % 9 == 0 else []
        for lab in labs:
            if n in (11, 23) and lab.number == 2:
                graded.append(GradedLab(learner=who.id, lab=2, state="missing"))
                continue
            if n == 17:
                why = "task files are not UTF-8 text"
                graded.append(
                    GradedLab(learner=who.id, lab=lab.number, state="not_graded", problem=why)
                )
                continue
            if n == 29:
                graded.append(
                    GradedLab(
                        learner=who.id, lab=lab.number, state="unusable", problem="a RAR archive"
                    )
                )
                continue
            tasks = [
                _usual(random, checks[task.id], task, hard[task.id] + skill) for task in lab.tasks
            ]
            flags: tuple[Flag, ...] = ()
            if n == 5 and lab.number == 1:
                tasks[1] = tasks[1].model_copy(update={"points": 0, "status": "failed"})
                flags = (
                    Flag(
                        task=tasks[1].id,
                        kind="a check that must fail passed",
                        evidence="The canary passed: pytest's assertions were replaced.",
                    ),
                )
            result = lab_result(lab, tasks, engine="portable" if lab.number == 1 else None)
            graded.append(
                GradedLab(
                    learner=who.id, lab=lab.number, state="graded", result=result, flags=flags
                )
            )
        submissions[who.id] = Submission(
            learner=who, source=f"{who.id}.zip", labs={}, notes=tuple(found)
        )
    return class_of(labs, graded, learners, submissions), {lab.number: lab for lab in labs}


def _usual(random: Random, expected: list[str], task: Task, chance: float) -> TaskResult:
    draw = random.random()
    if draw < chance:
        status, bad = "passed", 0
    elif draw < chance + 0.08:
        status, bad = "not_started", 0
    elif random.random() < 0.06:
        status, bad = "timed_out", 1
    else:
        status, bad = "failed", random.randint(1, max(1, len(expected) - 1))
    wrong = set(random.sample(expected, bad))
    checks = []
    for check in expected if status not in ("not_started", "timed_out") else expected[:1]:
        if check not in wrong and status != "timed_out":
            checks.append(
                CheckOutcome(
                    check=check,
                    outcome="passed",
                    figures=[{"name": "share", "value": 0.9, "reference": 0.92, "unit": ""}]
                    if random.random() < 0.05
                    else [],
                )
            )
            continue
        index = min(int(random.expovariate(0.5)), len(task.hints) - 1)
        checks.append(
            CheckOutcome(
                check=check,
                outcome="failed" if status == "failed" else "timed_out",
                call=f"{task.symbols[0]}(…)",
                observed="46,080 bytes",
                expected="23,040 bytes",
                why="The cache looks twice as large as it is, and you buy twice the memory.",
                hint=task.hints[index].id,
                frames=[Frame(file=task.file, line=42, function=task.symbols[0], code="return x")],
                printed="step 1\nstep 2\n" if random.random() < 0.2 else "",
            )
        )
    first = next((c for c in checks if c.outcome == "failed"), None)
    return task_result(
        task,
        status,
        checks=checks,
        expected_checks=len(expected),
        hint=first.hint if first is not None else None,
        message="" if status != "timed_out" else "A check ran into its time limit.",
    )
