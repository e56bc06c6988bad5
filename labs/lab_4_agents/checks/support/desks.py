"""Desks of a learner's on one world, a clock that is set by hand, and processes that meet there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.checkpoint.sqlite import SqliteSaver

from shared.agents.scripted import Reply, Script, ScriptedChatModel
from shared.domains.worlds import Step, World
from shared.grading.expect import expect, expect_equal, fail, plain, show
from support.agent_runs import unanswered

REVIEWERS = ("rita", "omar")
TTL_S = 3600.0


class HandClock:
    """Time that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Office:
    """One world, one folder, and the desks that are opened on them."""

    def __init__(self, learner: Any, world: World, folder: Path) -> None:
        self.learner = learner
        self.world = world
        self.folder = folder
        self.clock = HandClock()
        self._opened: list[Any] = []

    def desk(
        self,
        replies: Sequence[Reply] | Script,
        *,
        reviewers: Sequence[str] = REVIEWERS,
        ttl_s: float = TTL_S,
    ) -> Any:
        """A new desk on the folder, as another process would open it; `desk.model` is scripted."""
        model = ScriptedChatModel(replies=replies)
        made = self.desk_of(model, reviewers=reviewers, ttl_s=ttl_s)
        made.model = model
        return made

    def desk_of(
        self, model: Any, *, reviewers: Sequence[str] = REVIEWERS, ttl_s: float = TTL_S
    ) -> Any:
        """A new desk on the folder with any model."""
        made = self.learner.Desk(
            model,
            self.world.tools(),
            self.folder,
            reviewers=reviewers,
            ttl_s=ttl_s,
            clock=self.clock,
        )
        self._opened.append(made)
        return made

    def close(self) -> None:
        """Close all desks."""
        for desk in self._opened:
            desk.close()

    def done(self) -> list[dict[str, Any]]:
        """The world's effects, as plain values."""
        return steps(self.world.effects())


def steps(made: Sequence[Step]) -> list[dict[str, Any]]:
    """Tool names and arguments, as plain values."""
    return [{"tool": step.tool, "arguments": in_order(step.arguments)} for step in made]


def in_order(value: Any) -> Any:
    """The value made plain, all keys in order: who reads a message compares by eye."""
    value = plain(value)
    if isinstance(value, dict):
        return {k: in_order(v) for k, v in sorted(value.items())}
    return [in_order(v) for v in value] if isinstance(value, list) else value


def only(desk: Any, thread_id: str, *, doing: str, hint: str = "stop-first") -> Any:
    """The one approval that waits in a thread."""
    waiting = [a for a in desk.pending() if a.thread_id == thread_id]
    if len(waiting) != 1:
        fail(
            observed=f"{len(waiting)} approvals waiting after {doing}: "
            f"{show([plain(a.tool) for a in waiting])}",
            expected="one",
            why="What a reviewer doesn't see is never done, what they see twice is done twice.",
            hint=hint,
        )
    return waiting[0]


def approve(desk: Any, approval: Any, reviewer: str = "rita") -> Any:
    """A reviewer approves what is shown."""
    return desk.decide(
        approval.id, reviewer=reviewer, verdict="approved", shown=approval.fingerprint
    )


def reject(desk: Any, approval: Any, reviewer: str = "rita") -> Any:
    """A reviewer rejects what is shown."""
    return desk.decide(
        approval.id, reviewer=reviewer, verdict="rejected", shown=approval.fingerprint
    )


def history(desk: Any, thread_id: str) -> list[BaseMessage]:
    """A thread's messages, from its checkpoint."""
    return list(desk.graph.get_state(desk.config(thread_id)).values.get("messages", []))


def told(desk: Any, thread_id: str, tool: str) -> ToolMessage:
    """The last tool message of that tool; every call must be answered exactly once."""
    messages = history(desk, thread_id)
    left = unanswered(messages)
    found = [m for m in messages if isinstance(m, ToolMessage) and m.name == tool]
    expect(
        not left and bool(found),
        observed=f"tool messages of {tool}: {len(found)}; calls that are not answered exactly "
        f"once: {left}",
        expected="one tool message for each call, with its id",
        why="Chat APIs refuse a history with open calls, and a model that isn't told makes it up.",
        hint="answer-every-call",
    )
    return found[-1]


def in_processes(*works: Callable[[], Any]) -> list[Any]:
    """Do each work in a process of its own, all at the same moment.

    Returns:
        for each what it returned, ``"killed"``, or ``"error: ..."``; all as plain values.
    """
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(len(works))
    pipes = [fork.Pipe(duplex=False) for _ in works]

    def work_in_child(n: int) -> None:
        ready.wait(60)
        try:
            result = plain(works[n]())
        except Exception as error:
            result = f"error: {type(error).__name__}: {error}"
        pipes[n][1].send(result)

    processes = [fork.Process(target=work_in_child, args=(n,)) for n in range(len(works))]
    for process in processes:
        process.start()
    results: list[Any] = []
    for process, (reader, _) in zip(processes, pipes, strict=True):
        process.join(60)
        if process.is_alive():
            process.kill()
            process.join()
            results.append("error: not done after 60 s")
        else:
            results.append(reader.recv() if reader.poll() else "killed")
    return results


class Died(Exception):
    """What a process dies of before a checkpoint."""


@contextmanager
def dying_before_checkpoint(n: int) -> Iterator[list[int]]:
    """What is done within dies before its `n`-th checkpoint is written, and writes none after it.

    Nodes' results are written before, and stay. Gives a list that is empty as long as it lives.
    """
    put, puts = SqliteSaver.put, [0]
    dead: list[int] = []

    def put_or_die(*args: Any, **kwargs: Any) -> Any:
        puts[0] += 1
        if puts[0] >= n:
            dead.append(n)
            raise Died(f"before checkpoint {n}")
        return put(*args, **kwargs)

    SqliteSaver.put = put_or_die  # type: ignore[method-assign]
    try:
        yield dead
    except Exception:
        if not dead:
            raise
    finally:
        SqliteSaver.put = put  # type: ignore[method-assign]


def recorded_about(office: Office, approval: Any) -> Any:
    """What the trail's file holds about an approval, read by a trail of its own."""
    trail = office.learner.Trail(office.folder / "trail.sqlite")
    return trail.find(approval.id)


def is_recorded(
    office: Office, approval: Any, decision: dict[str, Any], outcome: str | None
) -> Any:
    """The trail holds the approval as it was shown, this decision and (unless None) outcome."""
    entry = recorded_about(office, approval)
    made: Any = plain(entry.decision) or {}
    expect_equal(
        in_order({"decision": {k: made.get(k) for k in decision}, "shown": entry.approval}),
        in_order({"decision": decision, "shown": approval}),
        what=f"the trail's entry about {approval.tool}",
        why="Who decided what, when, on which facts: the first questions of every audit.",
        hint="write-it-down",
    )
    if outcome is not None:
        expect_equal(
            entry.outcome,
            outcome,
            what=f"the outcome of {approval.tool} in the trail",
            why="A decision says what should happen. An audit also asks what did.",
            hint="write-it-down",
        )
    return entry
