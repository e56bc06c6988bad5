"""`make grade`: from a folder of submissions to a gradebook."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from shared.classroom.cluster import ClusterPool
from shared.classroom.journal import Journal, Settings, Verdict
from shared.classroom.pool import Graded, Pool, once
from shared.classroom.records import ClassResult, GradedLab, Learner, Submission
from shared.classroom.sandbox import Wall, find_wall
from shared.classroom.verdicts import to_look_at
from shared.classroom.work import GradedWith, Work, all_work
from shared.errors import UserError
from shared.grading.check import (
    Request,
    Wanted,
    build_environments,
    engine_starter,
    installed,
    wanted_engine,
)
from shared.grading.jobs import wanted_jobs
from shared.grading.lab import Lab, lab_folders
from shared.grading.results import LabResult, TaskResult, engines_of, not_proven_of
from shared.grading.runner import DOMAINS, draw_seed

_MOST_AT_ONCE = 16
_PLAIN_EVERY = 10.0
"""Seconds between lines of progress where the output is no terminal."""


@dataclass(frozen=True)
class ClassRun:
    """A class and what to do with it.

    Attributes:
        labs: the labs to grade now, each with what it is graded with.
        learners: whom to grade now; None for all.
        fresh: grade those anew, whatever is known of them.
        wall: None for no sandbox, which the instructor has to ask for.
        jobs: how many workers; 0 for one on each of the cluster's cores.
        cluster: grade on a Ray cluster, not on this machine alone.
        prepare: told which labs are about to be graded, before the first of them is.
    """

    submissions: Sequence[Submission]
    labs: Sequence[GradedWith]
    wall: Wall | None
    jobs: int
    cluster: bool = False
    learners: frozenset[str] | None = None
    fresh: bool = False
    prepare: Callable[[Lab], None] = field(default=lambda _: None)

    def chosen(self) -> list[Submission]:
        """The submissions to grade now."""
        return [
            s for s in self.submissions if self.learners is None or s.learner.id in self.learners
        ]


def grade(
    console: Console,
    submissions: str,
    out: str,
    *,
    labs: str = "",
    domain: str = "",
    engine: str = "",
    seed: str = "",
    roster: str = "",
    learner: str = "",
    fresh: bool = False,
    sandbox: str = "",
    jobs: str = "",
    cluster: str = "",
) -> int:
    """Grade a class and write all that an instructor needs.

    Args:
        labs: numbers, by comma; all that somebody handed in if not given.
        learner: ids, by comma; all if not given.
        fresh: grade what `labs` and `learner` say anew, even where nothing has changed.
        sandbox: ``"off"`` to run other people's code without walls.
        cluster: ``"ray"`` to grade on the Ray cluster of `$RAY_ADDRESS`, or on one started here.

    Returns:
        The exit status: 0 when everybody's labs are graded, 1 when some could not be.

    Raises:
        UserError: something is missing or unknown; the message says what to do.
    """
    if not submissions or not out:
        raise UserError("make grade needs SUBMISSIONS=<folder> and OUT=<folder>.")
    if sandbox not in ("", "off"):
        raise UserError(f"SANDBOX={sandbox}: it takes off, or nothing.")
    if cluster not in ("", "ray"):
        raise UserError(f"CLUSTER={cluster}: it takes ray, or nothing.")
    if cluster and not installed("classroom"):
        raise UserError("Ray could not be installed (the reason is above). Run this again.")
    wanted = _lab_numbers(labs)
    at_once = 0 if cluster and not jobs else wanted_jobs(jobs, _MOST_AT_ONCE)
    folder = Path(out).expanduser().absolute()
    wall = None if sandbox == "off" else find_wall()
    from shared.classroom.collect import collect
    from shared.classroom.reports import write_all

    if wall is None:
        console.print(
            "SANDBOX=off: the submissions' code runs as you, with your files, your network and "
            "your keys.",
            style="bold yellow",
        )
    with Journal(folder) as journal:
        settings = _settings(journal, seed, domain)
        people = Path(roster).expanduser() if roster else None
        with console.status("reading the submissions …"):
            # All labs, whichever are graded now: the others' verdicts stay in the gradebook.
            found = collect(Path(submissions).expanduser(), folder / "submissions", roster=people)
        numbers = wanted or sorted({number for s in found for number in s.labs})
        if not numbers:
            raise UserError(f"{submissions}: no lab was found in any submission.")
        settings.labs = sorted({*settings.labs, *numbers})
        journal.keep_settings(settings)
        run = ClassRun(
            submissions=found,
            labs=[_graded_with(console, n, settings, engine) for n in numbers],
            wall=wall,
            jobs=at_once,
            cluster=bool(cluster),
            learners=_learner_ids(learner, found),
            fresh=fresh,
            prepare=lambda lab: build_environments(lab, _wanted(lab, engine)),
        )
        console.print(
            f"{len(found)} submissions, {_labs_in_words(numbers)}, seed {settings.seed}, "
            f"sandbox: {wall.label if wall else 'off'}"
        )
        try:
            grade_class(console, run, journal)
        except KeyboardInterrupt:
            console.print(
                "Stopped. Every verdict so far is kept: the same command goes on from there"
                + (" (without FRESH=1)." if fresh else ".")
            )
            raise
        except OSError as error:
            raise UserError(
                f"A verdict could not be written ({error}). Those before it are kept: free some "
                f"space in {folder} and run the same command again."
            ) from error
        result = class_result(run, journal, settings)
        try:
            write_all(result, folder)
        except OSError as error:
            raise UserError(
                f"The gradebook could not be written ({error}). All verdicts are kept: free some "
                f"space in {folder} and run the same command again; it grades nothing twice."
            ) from error
    _show(console, result, folder)
    return 0 if result.complete else 1


def grade_class(console: Console, run: ClassRun, journal: Journal) -> None:
    """Grade what is not graded yet, each verdict on disk before the next is counted.

    Raises:
        OSError: a verdict could not be written.
    """
    chosen = run.chosen()
    if run.fresh:
        for submission in chosen:
            for graded_with in run.labs:
                journal.forget(submission.learner.id, graded_with.lab.number)
    work = all_work(chosen, run.labs, walled=run.wall is not None)
    todo = list[Work]()
    for piece in work:
        known = _known(piece, journal)
        if known is None:
            todo.append(piece)
            continue
        for learner in piece.learners:
            if journal.verdicts(learner, piece.lab.number).get(piece.task.id) != known:
                journal.keep(learner, piece.lab.number, piece.task.id, known)
    handed_in = sum(len(piece.learners) for piece in work)
    console.print(
        f"{handed_in} tasks handed in, {len(work)} of them different; "
        f"{len(todo)} to grade, {len(work) - len(todo)} known from before"
    )
    for lab in {piece.lab.number: piece.lab for piece in todo}.values():
        run.prepare(lab)
        _prepare_stores(lab)
    with _progress(console, len(todo)) as done:

        def keep(graded: Graded) -> None:
            piece = graded.work
            verdict = Verdict(
                key=piece.key, result=graded.result, flags=graded.flags, notes=graded.notes
            )
            for learner in piece.learners:
                journal.keep(learner, piece.lab.number, piece.task.id, verdict)
            done(f"{piece.task.id} {graded.result.status}")

        if todo and run.cluster:
            ClusterPool(todo, run.wall is not None, run.jobs, keep).run()
        elif todo:
            Pool(todo, run.wall, run.jobs, keep).run()


def class_result(run: ClassRun, journal: Journal, settings: Settings) -> ClassResult:
    """All that is known of the class, of this run and of those before."""
    labs = _known_labs(run, settings)
    graded = [
        _graded_lab(submission, lab, journal, settings)
        for submission in run.submissions
        for lab in labs
    ]
    return ClassResult(
        learners=tuple(s.learner for s in run.submissions),
        labs=tuple(lab.number for lab in labs),
        max_scores={lab.number: lab.max_score for lab in labs},
        graded=tuple(graded),
        submissions={s.learner.id: s for s in run.submissions},
        domain=settings.domain or DOMAINS[0],
        seed=settings.seed,
        sandbox=run.wall.label if run.wall is not None else "off",
        complete=all(
            g.state != "not_graded" and (g.result is None or g.result.complete) for g in graded
        ),
    )


def _graded_lab(
    submission: Submission, lab: Lab, journal: Journal, settings: Settings
) -> GradedLab:
    learner = submission.learner.id
    notes = tuple(n for n in submission.notes if n.lab in (None, lab.number))
    verdicts = journal.verdicts(learner, lab.number) if lab.number in submission.labs else {}
    if submission.problem or not verdicts:
        absent = lab.number not in submission.labs and not submission.problem
        return GradedLab(
            learner=learner,
            lab=lab.number,
            state="missing" if absent else "not_graded",
            notes=notes,
            problem=submission.problem or ("" if absent else "It was not graded yet."),
        )
    tasks = [verdicts[task.id].result for task in lab.tasks if task.id in verdicts]
    flags = [f for task in lab.tasks if task.id in verdicts for f in verdicts[task.id].flags]
    heard = [n for task in lab.tasks if task.id in verdicts for n in verdicts[task.id].notes]
    return GradedLab(
        learner=learner,
        lab=lab.number,
        state="graded",
        result=_lab_result(submission, lab, tasks, settings),
        flags=tuple(flags),
        notes=(*notes, *heard),
    )


def _lab_result(
    submission: Submission, lab: Lab, tasks: list[TaskResult], settings: Settings
) -> LabResult:
    from shared.grading.target import Target

    target = Target(submission.source, submission.labs[lab.number])
    whole = len(tasks) == len(lab.tasks) and all(t.status != "not_graded" for t in tasks)
    return LabResult(
        lab=lab.number,
        title=lab.title,
        target=submission.source,
        files=target.hashes([task.file for task in lab.tasks]),
        domain=(settings.domain or DOMAINS[0]) if lab.domains else None,
        engine=engines_of(tasks),
        not_proven=not_proven_of(tasks),
        seed=settings.seed,
        score=sum(t.points for t in tasks),
        max_score=lab.max_score,
        tasks=tasks,
        started_at="",
        seconds=sum(t.seconds for t in tasks),
        complete=whole,
    )


def _known(piece: Work, journal: Journal) -> Verdict | None:
    """A verdict that somebody who handed in this work has already, if it says something."""
    for learner in piece.learners:
        verdict = journal.verdicts(learner, piece.lab.number).get(piece.task.id)
        if (
            verdict is not None
            and verdict.key == piece.key
            and verdict.result.status != "not_graded"
        ):
            return verdict
    return None


def _known_labs(run: ClassRun, settings: Settings) -> list[Lab]:
    from shared.grading.lab import load_lab

    now = {graded_with.lab.number: graded_with.lab for graded_with in run.labs}
    there = lab_folders()
    before = {n: load_lab(n) for n in settings.labs if n not in now and n in there}
    return [lab for _, lab in sorted((now | before).items())]


def _settings(journal: Journal, seed: str, domain: str) -> Settings:
    """What this run is graded with: what was given, else what the earlier ones had."""
    if domain and domain not in DOMAINS:
        raise UserError(f"DOMAIN={domain}: it takes {', '.join(DOMAINS)}.")
    if seed and not seed.isdigit():
        raise UserError(f"SEED={seed}: it takes a whole number, 0 or more.")
    before = journal.settings()
    if before is None:
        before = Settings(seed=int(seed) if seed else draw_seed())
    return before.model_copy(
        update={
            "seed": int(seed) if seed else before.seed,
            "domain": domain or before.domain or DOMAINS[0],
        }
    )


def _graded_with(console: Console, number: int, settings: Settings, engine: str) -> GradedWith:
    request = Request.of(
        str(number), domain=settings.domain, engine=engine, seed=str(settings.seed)
    )
    start = None
    if request.engine is not None:
        start = once(engine_starter(console, request.engine, lambda _: None))
    return GradedWith(
        lab=request.lab,
        seed=settings.seed,
        domain=request.domain,
        engine=request.engine.name if request.engine is not None else "",
        start_engine=start,
        not_proven=request.engine.not_proven if request.engine is not None else (),
    )


def _wanted(lab: Lab, engine: str) -> Wanted | None:
    if lab.engine == "none":
        return None
    return wanted_engine(engine or lab.engine, explicit=bool(engine))


def _lab_numbers(text: str) -> list[int]:
    known = lab_folders()
    numbers = []
    for word in (w.strip() for w in text.split(",") if w.strip()):
        if not word.isdigit() or int(word) not in known:
            raise UserError(f"LABS={text}: the labs here are {', '.join(map(str, known))}.")
        numbers.append(int(word))
    return sorted(set(numbers))


def _learner_ids(text: str, found: Sequence[Submission]) -> frozenset[str] | None:
    words = [w.strip() for w in text.split(",") if w.strip()]
    if not words:
        return None
    known = {s.learner.id for s in found}
    unknown = [w for w in words if w not in known]
    if unknown:
        raise UserError(
            f"LEARNER={text}: nobody is called {', '.join(unknown)}. There are: "
            f"{', '.join(sorted(known)[:40])}."
        )
    return frozenset(words)


def _labs_in_words(numbers: Sequence[int]) -> str:
    return f"lab{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _prepare_stores(lab: Lab) -> None:
    """Have the empty MLflow store made once, outside: in the sandbox it would be made each time."""
    import tempfile

    from shared.tracking import make_empty_store

    if any("mlflow" in module for task in lab.tasks for module in task.preload):
        with tempfile.TemporaryDirectory() as name, suppress(ImportError):
            make_empty_store(Path(name) / "mlflow.db")


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Show how far it is, with the time left; yields what to call after each verdict."""
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("grading"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total, last="")
            yield lambda last: bar.update(task, advance=1, last=last)
        return
    started = said = time.monotonic()
    done = 0

    def line(last: str) -> None:
        nonlocal done, said
        done += 1
        now = time.monotonic()
        if now - said >= _PLAIN_EVERY or done == total:
            said = now
            left = (now - started) / done * (total - done)
            console.print(f"{done} of {total} graded, about {_duration(left)} left ({last})")

    yield line


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _show(console: Console, result: ClassResult, folder: Path) -> None:
    """A line for each learner, and what an instructor should look at first."""
    table = Table(box=None, padding=(0, 2))
    table.add_column("learner")
    for lab in result.labs:
        table.add_column(f"lab {lab}", justify="right")
    table.add_column("")
    for learner in result.learners:
        cells = [_score(result.of(learner.id, lab)) for lab in result.labs]
        table.add_row(escape(learner.name), *cells, _remark(result, learner))
    console.print(table)
    flagged = Counter(f.kind for g in result.graded for f in g.flags)
    for kind, count in flagged.most_common():
        console.print(f"flagged: {escape(kind)} ({count})", style="red")
    if not result.complete:
        console.print(
            "Some of it is not graded; the same command tries that again.", style="yellow"
        )
    console.print(f"written to {folder}", markup=False)


def _score(graded: GradedLab | None) -> str:
    if graded is None or graded.state == "missing":
        return "-"
    if graded.result is None:
        return "NOT GRADED"
    unsure = "" if graded.result.complete else " (?)"
    return f"{graded.result.score}/{graded.result.max_score}{unsure}"


def _remark(result: ClassResult, learner: Learner) -> str:
    flags = sum(len(g.flags) for g in result.graded if g.learner == learner.id)
    if flags:
        return "[red]flagged[/]"
    if to_look_at(result, learner.id):
        return "[yellow]look at it[/]"
    return escape(result.submissions[learner.id].problem)
