"""`CLUSTER=ray`: the same work, graded on the machines of a Ray cluster.

Each actor is one worker as `pool` has it, on a machine that has this checkout. The machine that
`make grade` was typed on holds the journal and hears every verdict. An actor that dies loses the
piece of work that it had; another one takes it, so the gradebook is the same.

Ray (https://docs.ray.io) brings what a scheduler of our own would lack: machines that come and go,
and a wire protocol with authentication.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from shared import offline
from shared.classroom.pool import Graded, Worker, once
from shared.classroom.records import Flag, Note
from shared.classroom.sandbox import find_wall
from shared.classroom.work import GradedWith, Work, grader_hash
from shared.errors import UserError
from shared.grading.check import Wanted, engine_starter
from shared.grading.lab import Lab
from shared.grading.results import TaskResult
from shared.paths import ROOT, STATE

_TRIES = 3
"""How many actors may die of one piece of work before it is given up."""
_JOIN_LIMIT_S = 120.0
_ANSWER_LIMIT_S = 10.0


@dataclass(frozen=True)
class Parcel:
    """A piece of work as it is sent: everything that another machine cannot know."""

    lab: str
    task: str
    key: str
    files: dict[str, bytes]
    seed: int
    domain: str | None
    engine: str
    not_proven: tuple[str, ...]

    @classmethod
    def of(cls, work: Work) -> Parcel:
        """Pack it. The lab's folder is named from the checkout's root, which may lie elsewhere."""
        with_ = work.graded_with
        return cls(
            lab=_packed(work.lab),
            task=work.task.id,
            key=work.key,
            files=work.files,
            seed=with_.seed,
            domain=with_.domain,
            engine=with_.engine,
            not_proven=with_.not_proven,
        )


class Grader:
    """One worker; Ray makes an actor of it."""

    def __init__(self, walled: bool) -> None:
        offline.apply()
        self._worker = Worker(find_wall() if walled else None, jobs=1)
        STATE.mkdir(exist_ok=True)
        # The actors of one machine share its model server.
        self._live = FileLock(STATE / "live-checks.lock")
        self._graded_with: dict[tuple[object, ...], GradedWith] = {}

    def checkout(self, labs: list[str]) -> tuple[str, list[str]]:
        """This machine's name, and what the labs' graders hash to here."""
        return os.uname().nodename, [grader_hash(_unpacked(lab)) for lab in labs]

    def grade(self, parcel: Parcel) -> tuple[str, list[str], list[str]]:
        """Grade a piece of work: the result, the flags and the notes, as JSON."""
        with_ = self._with(parcel)
        work = Work(with_, with_.lab.task(parcel.task), parcel.key, parcel.files)
        graded = self._worker.grade(work, self._live)
        flags, notes = ([r.model_dump_json() for r in rs] for rs in (graded.flags, graded.notes))
        return graded.result.model_dump_json(), flags, notes

    def _with(self, parcel: Parcel) -> GradedWith:
        key = (parcel.lab, parcel.seed, parcel.domain, parcel.engine, parcel.not_proven)
        if key not in self._graded_with:
            start = None
            if parcel.engine:
                wanted = Wanted(parcel.engine, parcel.not_proven)  # type: ignore[arg-type]
                start = once(engine_starter(Console(quiet=True), wanted, lambda _: None))
            self._graded_with[key] = GradedWith(
                lab=_unpacked(parcel.lab),
                seed=parcel.seed,
                domain=parcel.domain,
                engine=parcel.engine,
                start_engine=start,
                not_proven=parcel.not_proven,
            )
        return self._graded_with[key]


class ClusterPool:
    """Grades work on a Ray cluster, as `pool.Pool` does on this machine.

    Args:
        walled: whether submissions' code is held in a sandbox; every machine needs bubblewrap then.
        jobs: how many actors; as many as the cluster has cores, if 0.
        keep: called with each verdict, one at a time.
    """

    def __init__(
        self,
        work: list[Work],
        walled: bool,
        jobs: int,
        keep: Callable[[Graded], None],
    ) -> None:
        self._waiting: dict[str, list[Work]] = {}
        for piece in work:
            self._waiting.setdefault(piece.task.id, []).append(piece)
        self._labs = {piece.lab.number: piece.lab for piece in work}
        self._tries: dict[str, int] = {}
        self._walled = walled
        self._jobs = jobs
        self._keep = keep

    def run(self) -> None:
        """Grade everything.

        Raises:
            UserError: the cluster cannot be reached, or one of its machines has other labs.
            OSError: a verdict could not be written; what was written stays.
        """
        with cluster(self._jobs) as ray, ExitStack() as stack:
            actor = ray.remote(Grader).options(num_cpus=1)
            cores = int(ray.cluster_resources().get("CPU", 1))
            pieces = sum(map(len, self._waiting.values()))
            graders = [
                actor.remote(self._walled) for _ in range(max(1, min(self._jobs or cores, pieces)))
            ]
            stack.callback(lambda: [ray.kill(g) for g in graders])
            self._same_labs(ray, graders)
            running: dict[Any, tuple[int, Work]] = {}
            last = [""] * len(graders)
            for place in range(len(graders)):
                self._give(graders, place, last, running)
            while running:
                (ready,), _ = ray.wait(list(running), num_returns=1)
                place, piece = running.pop(ready)
                try:
                    result, flags, notes = ray.get(ready)
                except ray.exceptions.RayActorError as error:
                    graders[place] = actor.remote(self._walled)
                    self._again(piece, str(error))
                except ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                else:
                    self._keep(
                        Graded(
                            piece,
                            TaskResult.model_validate_json(result),
                            tuple(Flag.model_validate_json(flag) for flag in flags),
                            tuple(Note.model_validate_json(note) for note in notes),
                        )
                    )
                for idle in set(range(len(graders))) - {p for p, _ in running.values()}:
                    self._give(graders, idle, last, running)

    def _same_labs(self, ray: Any, graders: list[Any]) -> None:
        labs = [_packed(lab) for lab in self._labs.values()]
        ours = [grader_hash(lab) for lab in self._labs.values()]
        asked = [g.checkout.remote(labs) for g in graders]
        try:
            for machine, theirs in ray.get(asked, timeout=_JOIN_LIMIT_S):
                if theirs != ours:
                    raise UserError(
                        f"The labs on {machine} are not the ones here, so its verdicts would not "
                        "be comparable. Check the same commit out there, with nothing changed."
                    )
        except ray.exceptions.GetTimeoutError as error:
            raise UserError(
                f"After {_JOIN_LIMIT_S:.0f} s the cluster has not started {len(graders)} workers. "
                "`ray status` shows what it has; JOBS= asks for fewer."
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except ray.exceptions.RayActorError as error:
            raise UserError(f"A worker of the cluster could not begin: {error}") from error

    def _give(
        self, graders: list[Any], place: int, last: list[str], running: dict[Any, tuple[int, Work]]
    ) -> None:
        """Give a worker its next piece: of the task that it has warm, if there is one."""
        open_tasks = [t for t, pieces in self._waiting.items() if pieces]
        if not open_tasks:
            return
        busy = {piece.task.id for _, piece in running.values()}
        if last[place] not in open_tasks:
            untouched = [t for t in open_tasks if t not in busy]
            last[place] = (untouched or sorted(open_tasks, key=self._left, reverse=True))[0]
        piece = self._waiting[last[place]].pop(0)
        running[graders[place].grade.remote(Parcel.of(piece))] = place, piece

    def _left(self, task: str) -> int:
        return len(self._waiting[task])

    def _again(self, piece: Work, reason: str) -> None:
        """Another worker takes what a dead one had, unless it has cost too many already."""
        tries = self._tries[piece.key] = self._tries.get(piece.key, 0) + 1
        if tries < _TRIES:
            self._waiting[piece.task.id].insert(0, piece)
            return
        text = f"{tries} workers of the cluster ended while they graded it. The last: {reason}"
        self._keep(Graded(piece, _not_graded(piece, text), ()))


@contextmanager
def cluster(jobs: int) -> Iterator[Any]:
    """Ray, connected: to the cluster of `$RAY_ADDRESS`, or to one started here for this run.

    Raises:
        UserError: there is no Ray here, or no cluster at that address.
    """
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        # Else Ray writes a token into the home.
        environment["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
    os.environ.update(offline.OFFLINE_ENV | environment)
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "CLUSTER=ray needs Ray, which is not there: python3 shared/setup/bootstrap.py classroom"
        ) from error
    if address:
        _must_answer(address)
    scratch = Path(tempfile.mkdtemp(prefix="labs-ray-"))
    here: dict[str, Any] = {
        "num_cpus": jobs or os.cpu_count(),
        "include_dashboard": False,
        "_temp_dir": str(scratch),
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else here),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise UserError(
            f"The Ray cluster at {address or 'this machine'} cannot be had: {error}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _must_answer(address: str) -> None:
    """Ray itself would try for ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_LIMIT_S).close()
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={address} ({error}). `ray status` on its head "
            "shows whether it is up; without RAY_ADDRESS one is started on this machine."
        ) from error


def _packed(lab: Lab) -> str:
    folder = lab.folder.relative_to(ROOT) if lab.folder.is_relative_to(ROOT) else lab.folder
    return lab.model_copy(update={"folder": folder}).model_dump_json()


def _unpacked(text: str) -> Lab:
    lab = Lab.model_validate_json(text)
    return lab.model_copy(update={"folder": ROOT / lab.folder})


def _not_graded(piece: Work, text: str) -> TaskResult:
    return TaskResult(
        id=piece.task.id,
        title=piece.task.title,
        points=0,
        max_points=piece.task.points,
        status="not_graded",
        message=text,
        hint=None,
        seconds=0.0,
        sha256=None,
        checks=[],
        expected_checks=len(piece.lab.expected_checks(piece.task)),
        seed=piece.graded_with.seed,
    )
