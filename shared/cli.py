"""The `labs` command: what the Makefile's targets call.

Options are environment variables, because `make check-lab-1 TASK=1.2` passes them so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from shared import offline

offline.apply()

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
engine_app = typer.Typer(no_args_is_help=True, help="Start, show and stop the model server.")
app.add_typer(engine_app, name="engine")
console = Console(highlight=False)

LabNumber = Annotated[str, typer.Argument(help="The lab's number.")]
TaskId = Annotated[str, typer.Option(envvar="TASK", help="One task, e.g. 1.2.")]
TargetOption = Annotated[str, typer.Option(envvar="TARGET", help="starter, solution, or a path.")]
Domain = Annotated[str, typer.Option(envvar="DOMAIN", help="finance, healthcare or climate.")]
EngineOption = Annotated[str, typer.Option(envvar="ENGINE", help="vllm or portable.")]
Seed = Annotated[str, typer.Option(envvar="SEED", help="Repeat a run's inputs.")]
OnlyLab = Annotated[str, typer.Option(envvar="LAB", help="One lab's number; all if not given.")]


@app.command()
def check(
    lab: LabNumber,
    task: TaskId = "",
    target: TargetOption = "",
    domain: Domain = "",
    engine: EngineOption = "",
    seed: Seed = "",
    json_path: Annotated[str, typer.Option("--json", envvar="JSON")] = "",
    fresh: Annotated[str, typer.Option(envvar="FRESH", help="1: keep nothing cut off.")] = "",
    jobs: Annotated[str, typer.Option(envvar="JOBS", help="How many tasks at once.")] = "",
) -> None:
    """Grade a lab, or one task of it. Exit status 0 only when every task passes."""
    from shared.grading.check import Request, check_lab

    asked = Request.of(lab, task=task, target=target, domain=domain, engine=engine, seed=seed)
    raise typer.Exit(
        check_lab(console, asked, Path(json_path) if json_path else None, fresh == "1", jobs)
    )


@app.command()
def watch(
    lab: LabNumber,
    task: TaskId = "",
    target: TargetOption = "",
    domain: Domain = "",
    engine: EngineOption = "",
    seed: Seed = "",
) -> None:
    """Grade again at each save, until Ctrl-C."""
    from shared.grading.check import Request
    from shared.grading.watch import watch_lab

    watch_lab(
        console, Request.of(lab, task=task, target=target, domain=domain, engine=engine, seed=seed)
    )


@app.command()
def hint(lab: LabNumber, task: TaskId = "") -> None:
    """Show one more hint."""
    from shared.grading.hints import next_hint

    next_hint(console, lab, task)


@app.command()
def reset(lab: LabNumber, task: TaskId = "") -> None:
    """Put the starter back, keeping a dated copy of what it replaces."""
    from shared.grading.reset import reset_lab

    reset_lab(console, lab, task)


@app.command()
def progress() -> None:
    """Show how far you are."""
    from shared.grading.progress import show_progress

    show_progress(console)


@engine_app.command("up")
def engine_up(engine: EngineOption = "") -> None:
    """Start the model server, or find it running."""
    from shared.grading.check import engine_starter, wanted_engine

    start = engine_starter(console, wanted_engine(engine or "portable", explicit=bool(engine)))
    running = start()
    console.print(f"{running.kind} is up at {running.base_url} (model {running.model})")


@engine_app.command("status")
def engine_status_() -> None:
    """Show which model servers run."""
    from shared.engine import engine_status, last_log

    records = engine_status()
    if not records:
        console.print("No model server runs. `make engine-up` starts one; checks do so too.")
        if last := last_log():
            console.print(f"The end of the last one's log, {last.path}:", markup=False)
            console.print("\n".join(f"  {line}" for line in last.lines), markup=False)
    for record in records:
        console.print(str(record), markup=False)


@engine_app.command("down")
def engine_down() -> None:
    """Stop the model servers of this checkout."""
    from shared.engine import stop_engine

    stop_engine()
    console.print("No model server runs now.")


@app.command()
def ui() -> None:
    """Serve the MLflow pages on your own runs, until Ctrl-C."""
    from shared.ui import serve_ui

    serve_ui(console)


@app.command()
def review(
    target: TargetOption = "",
    domain: Domain = "",
    reviewer: Annotated[str, typer.Option(envvar="REVIEWER", help="Who decides.")] = "",
) -> None:
    """Serve the reviewer's page of Lab 4 on a demo world, until Ctrl-C."""
    from shared.review import serve_review

    serve_review(console, target, domain, reviewer)


@app.command()
def grade(
    submissions: Annotated[str, typer.Option(envvar="SUBMISSIONS", help="The class's work.")] = "",
    out: Annotated[str, typer.Option(envvar="OUT", help="Where the gradebook goes.")] = "",
    labs: Annotated[str, typer.Option(envvar="LABS", help="Labs' numbers, e.g. 1,3.")] = "",
    domain: Domain = "",
    engine: EngineOption = "",
    seed: Seed = "",
    roster: Annotated[str, typer.Option(envvar="ROSTER", help="A CSV of the class.")] = "",
    learner: Annotated[str, typer.Option(envvar="LEARNER", help="Only these ids, by comma.")] = "",
    fresh: Annotated[str, typer.Option(envvar="FRESH", help="1: grade anew.")] = "",
    sandbox: Annotated[str, typer.Option(envvar="SANDBOX", help="off: without any wall.")] = "",
    jobs: Annotated[str, typer.Option(envvar="JOBS", help="How many tasks at once.")] = "",
    cluster: Annotated[str, typer.Option(envvar="CLUSTER", help="ray: on many machines.")] = "",
) -> None:
    """Grade a class's submissions in a sandbox. Exit status 0 when all of it is graded."""
    from shared.classroom.grade import grade as grade_the_class

    raise typer.Exit(
        grade_the_class(
            console,
            submissions,
            out,
            labs=labs,
            domain=domain,
            engine=engine,
            seed=seed,
            roster=roster,
            learner=learner,
            fresh=fresh == "1",
            sandbox=sandbox,
            jobs=jobs,
            cluster=cluster,
        )
    )


@app.command()
def starters() -> None:
    """Derive the starters from the solutions."""
    from shared.grading import starters as derived
    from shared.grading.lab import all_labs

    for lab in all_labs():
        changed = derived.write(lab)
        console.print(f"lab {lab.number}: {', '.join(changed) or 'in step'}", markup=False)


@app.command()
def proof(
    only: OnlyLab = "",
    task: TaskId = "",
    domain: Domain = "",
    engine: EngineOption = "",
    seed: Seed = "",
    jobs: Annotated[str, typer.Option(envvar="JOBS", help="How many at once; all cores.")] = "",
) -> None:
    """Prove the graders: starters, solutions, right and wrong variants."""
    from shared.grading.proof import prove

    raise typer.Exit(prove(console, only, task, domain, engine or "portable", seed, jobs))


@app.command()
def notebooks(only: OnlyLab = "") -> None:
    """Run the notebooks offline and keep their plots."""
    from shared.notebooks import run_notebooks

    raise typer.Exit(run_notebooks(console, only))


@app.command()
def lock() -> None:
    """Resolve requirements/*.in anew."""
    from shared.setup.lock import lock_all

    lock_all(console)


@app.command()
def release(
    out: Annotated[str, typer.Option(envvar="OUT", help="Where the edition goes.")] = "",
    author: Annotated[str, typer.Option(envvar="AUTHOR", help="Name <mail>, of the commit.")] = "",
    allow_dirty: Annotated[
        str, typer.Option(envvar="ALLOW_DIRTY", help="1: take what is not committed too.")
    ] = "",
) -> None:
    """Make the learner's edition, and prove that it gives nothing away."""
    from shared.paths import ROOT
    from shared.release.build import make_release

    raise typer.Exit(make_release(console, ROOT, out, author, allow_dirty == "1"))


@app.command()
def release_check(
    out: Annotated[str, typer.Option(envvar="OUT", help="The edition's folder.")] = "",
) -> None:
    """Prove that a learner's edition gives nothing away."""
    from shared.paths import ROOT
    from shared.release.leaks import check_release

    raise typer.Exit(check_release(console, ROOT, out))


@app.command()
def bench(only: OnlyLab = "") -> None:
    """Measure what the project promises."""
    from shared.bench import run_bench

    run_bench(console, only)


def main() -> None:
    """Run the command; an error that has a sentence is shown as one line, not a traceback."""
    from shared.errors import UserError

    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"[red]✘[/] {escape(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
