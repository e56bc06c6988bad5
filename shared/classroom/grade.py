"""`make grade`: from a folder of submissions to a gradebook."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
from shared.classroom.verdicts import AS_GIVEN, NOT_THERE, by_name, flagged_in_words, to_look_at
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

_COPIES = "submissions"
"""What was handed in, made safe: below OUT."""
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
        labs: numbers, by comma; all that somebody handed in if not given. A lab that is asked for
            together with `learner`, and never without, counts for those who have a verdict in it:
            nobody else's Max and Percent change.
        seed, domain: of all verdicts in `out`. Others than its own are refused, unless all is
            graded anew.
        learner: ids, by comma; all if not given.
        fresh: grade what `labs` and `learner` say anew, even where nothing has changed.
        sandbox: ``"off"`` to run other people's code without walls.
        cluster: ``"ray"`` to grade on the Ray cluster of `$RAY_ADDRESS`, or on one started here.

    Returns:
        The exit status: 0 when all that was handed in and can be read is graded, 1 when some could
        not be.

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
    _check_words(seed, domain, engine)
    at_once = 0 if cluster and not jobs else wanted_jobs(jobs, _MOST_AT_ONCE)
    folder, handed_in = (Path(p).expanduser().resolve() for p in (out, submissions))
    people = Path(roster).expanduser() if roster else None
    wall = None if sandbox == "off" else find_wall()
    from shared.classroom.collect import class_list, collect
    from shared.classroom.reports import write_all

    # What can be wrong is told before anything is written: a refused OUT stays as it was.
    learners = _learner_ids(learner, class_list(handed_in, folder / _COPIES, roster=people))
    if wall is None:
        console.print(
            "SANDBOX=off: the submissions' code runs as you, with your files, your network and "
            "your keys.",
            style="bold yellow",
        )
    with Journal(folder) as journal:
        before = journal.settings()
        settings = _settings(before, seed, domain)
        anew = before is not None and not _same_terms(before, settings) and not journal.is_empty()
        if before is not None and anew:
            _refuse_a_mixture(before, settings, folder, fresh and learners is None, wanted)
        with console.status("reading the submissions …"):
            # All labs, whichever are graded now: the others' verdicts stay in the gradebook.
            found = collect(handed_in, folder / _COPIES, roster=people)
        asked = [s for s in found if learners is None or s.learner.id in learners]
        numbers = wanted or sorted({number for s in asked for number in s.labs})
        if not numbers:
            whose = f"what {learner} handed in" if learner else "any submission"
            raise UserError(f"{handed_in}: no lab was found in {whose}.")
        settings = settings.with_labs(numbers, whole_class=learners is None)
        run = ClassRun(
            submissions=found,
            labs=[_graded_with(console, n, settings, engine) for n in numbers],
            wall=wall,
            jobs=at_once,
            cluster=bool(cluster),
            learners=learners,
            fresh=fresh,
            prepare=lambda lab: build_environments(lab, _wanted(lab, engine)),
        )
        if anew:
            journal.forget_all()
        journal.keep_settings(settings)
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
    again = "the same command" + (" without LEARNER=" if learner else "")
    _show(console, result, folder, again)
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
                key=piece.key,
                result=graded.result,
                flags=graded.flags,
                notes=graded.notes,
                domain=piece.graded_with.domain,
            )
            for learner in piece.learners:
                journal.keep(learner, piece.lab.number, piece.task.id, verdict)
            done(f"{piece.task.id} of {_whose(piece)}: {graded.result.status}")

        if todo and run.cluster:
            ClusterPool(todo, run.wall is not None, run.jobs, keep).run()
        elif todo:
            Pool(todo, run.wall, run.jobs, keep).run()


def class_result(run: ClassRun, journal: Journal, settings: Settings) -> ClassResult:
    """All that is known of the class, of this run and of those before."""
    labs = _known_labs(run, settings)
    for_some = {lab.number for lab in labs} & set(settings.some)
    starters = {lab.number: _starter(lab) for lab in labs}
    graded = [
        _graded_lab(
            submission, lab, journal, settings, starters[lab.number], lab.number in for_some
        )
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
        for_some=frozenset(for_some),
    )


def _graded_lab(
    submission: Submission,
    lab: Lab,
    journal: Journal,
    settings: Settings,
    starter: Mapping[str, bytes],
    for_some: bool,
) -> GradedLab:
    learner = submission.learner.id
    notes = tuple(n for n in submission.notes if n.lab in (None, lab.number))
    verdicts = journal.verdicts(learner, lab.number) if lab.number in submission.labs else {}
    if submission.problem or not verdicts:
        state, problem = _without_verdict(submission, lab, for_some)
        return GradedLab(learner=learner, lab=lab.number, state=state, notes=notes, problem=problem)
    known = [(task, verdicts[task.id]) for task in lab.tasks if task.id in verdicts]
    folder = submission.labs[lab.number]
    tasks = [
        _as_given(v.result) if not v.flags and _untouched(folder / t.file, starter) else v.result
        for t, v in known
    ]
    return GradedLab(
        learner=learner,
        lab=lab.number,
        state="graded",
        result=_lab_result(submission, lab, tasks, [v for _, v in known], settings),
        flags=tuple(flag for _, verdict in known for flag in verdict.flags),
        notes=(*notes, *(note for _, verdict in known for note in verdict.notes)),
    )


def _without_verdict(
    submission: Submission, lab: Lab, for_some: bool
) -> tuple[Literal["missing", "unusable", "not_asked", "not_graded"], str]:
    """Why there is none. Only what was handed in and can be read is still to be graded."""
    if for_some:
        return "not_asked", ""
    if submission.problem:
        return "unusable" if submission.handed_in else "missing", submission.problem
    if lab.number not in submission.labs:
        return "missing", ""
    return "not_graded", "It was not graded yet."


def _starter(lab: Lab) -> dict[str, bytes]:
    """What the lab's learners were given; nothing where that cannot be told.

    It is not read from `starter/`: an instructor may have tried the tasks there.
    """
    from shared.grading.starters import StarterError, derive

    try:
        return {name: text.encode() for name, text in derive(lab).items()}
    except (StarterError, OSError, SyntaxError, UnicodeError):
        return {}


def _untouched(path: Path, starter: Mapping[str, bytes]) -> bool:
    """Whether a file is as the starter has it, whatever line ends a checkout gave it."""
    try:
        return path.read_bytes().replace(b"\r\n", b"\n") == starter.get(path.name)
    except OSError:
        return False


def _as_given(result: TaskResult) -> TaskResult:
    """A verdict on a file that nobody has touched: what fails in it is no mistake of theirs."""
    if result.status in ("passed", "not_graded"):
        return result
    return result.model_copy(update={"status": "not_started", "message": AS_GIVEN, "hint": None})


def _lab_result(
    submission: Submission,
    lab: Lab,
    tasks: list[TaskResult],
    verdicts: list[Verdict],
    settings: Settings,
) -> LabResult:
    from shared.grading.target import Target

    # Of the verdicts, not of the settings: a page says what its verdicts were reached with.
    seed = next((t.seed for t in tasks if t.seed is not None), settings.seed)
    domain = next((v.domain for v in verdicts if v.domain), settings.domain or DOMAINS[0])
    target = Target(submission.source, submission.labs[lab.number])
    whole = len(tasks) == len(lab.tasks) and all(t.status != "not_graded" for t in tasks)
    return LabResult(
        lab=lab.number,
        title=lab.title,
        target=submission.source,
        files=target.hashes([task.file for task in lab.tasks]),
        domain=domain if lab.domains else None,
        engine=engines_of(tasks),
        not_proven=not_proven_of(tasks),
        seed=seed,
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
    asked = {*settings.labs, *settings.some}
    before = {n: load_lab(n) for n in asked if n not in now and n in there}
    return [lab for _, lab in sorted((now | before).items())]


def _check_words(seed: str, domain: str, engine: str) -> None:
    if domain and domain not in DOMAINS:
        raise UserError(f"DOMAIN={domain}: it takes {', '.join(DOMAINS)}.")
    if seed and not (seed.isascii() and seed.isdigit()):
        raise UserError(f"SEED={seed}: it takes a whole number, 0 or more.")
    if engine not in ("", "vllm"):  # that vLLM cannot be had matters only to labs that need it
        wanted_engine(engine, explicit=True)


def _same_terms(one: Settings, other: Settings) -> bool:
    return (one.seed, one.domain or DOMAINS[0]) == (other.seed, other.domain or DOMAINS[0])


def _refuse_a_mixture(
    before: Settings, now: Settings, folder: Path, all_anew: bool, wanted: Sequence[int]
) -> None:
    """One folder has one seed and one domain: whoever compares two learners in it compares like
    with like. Another one is taken only where everything is graded anew with it.
    """
    known = {*before.labs, *before.some}
    if all_anew and (not wanted or known <= set(wanted)):
        return
    raise UserError(
        f"{folder} was graded with SEED={before.seed} DOMAIN={before.domain or DOMAINS[0]}, and a "
        f"folder has one of each. For SEED={now.seed} DOMAIN={now.domain} give another OUT=, or "
        "grade everybody and every lab anew: FRESH=1 without LEARNER= and LABS=. Without SEED= and "
        "DOMAIN= it goes on as it was."
    )


def _settings(before: Settings | None, seed: str, domain: str) -> Settings:
    """What this run is graded with: what was given, else what the earlier ones had."""
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


def _learner_ids(text: str, people: Sequence[Learner]) -> frozenset[str] | None:
    words = [w.strip() for w in text.split(",") if w.strip()]
    if not words:
        return None
    known = {learner.id for learner in people}
    unknown = [w for w in words if w not in known]
    if unknown:
        raise UserError(
            f"LEARNER={text}: nobody is called {', '.join(unknown)}. There are: "
            f"{', '.join(sorted(known)[:40])}."
        )
    return frozenset(words)


def _whose(piece: Work) -> str:
    first, *others = piece.learners
    return f"{first} and {len(others)} more" if others else first


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


def _show(console: Console, result: ClassResult, folder: Path, again: str) -> None:
    """A line for each learner, and what an instructor should look at first.

    Args:
        again: what grades what is not graded.
    """
    table = Table(box=None, padding=(0, 2))
    table.add_column("learner")
    for lab in result.labs:
        table.add_column(f"lab {lab}", justify="right")
    table.add_column("")
    for learner in by_name(result):
        cells = [_score(result.of(learner.id, lab)) for lab in result.labs]
        table.add_row(escape(learner.name), *cells, _remark(result, learner))
    console.print(table)
    for kind in sorted({f.kind for g in result.graded for f in g.flags}):
        count = flagged_in_words(result.graded, kind)
        console.print(f"flagged: {escape(kind)} ({count})", style="red")
    if not result.complete:
        console.print(f"Some of it is not graded; {again} tries that again.", style="yellow")
    console.print(f"written to {folder}", markup=False)


def _score(graded: GradedLab | None) -> str:
    if graded is None or graded.state == "not_asked":
        return ""
    if graded.state in NOT_THERE:
        return "–"
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
