"""Jobs of a learner's crew in processes of their own: functions for a `Nursery`."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

from langchain_core.messages import ToolMessage

from shared.agents.scripted import ScriptedChatModel, follow
from shared.domains.worlds import open_world
from support.guard import end_at_first_step
from support.nursery import load

JOB = "job-1"


def work(
    file: str, domain: str, folder: str, scenario: str, decisions: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Start the job of a scenario, or resume it with decisions, and tell where it stands.

    Args:
        decisions: the kind of decision by call id; None starts the job.
    """
    crew = load(file)
    world = open_world(domain, Path(folder) / "world.sqlite")
    model = ScriptedChatModel(replies=follow(world.scenario(scenario)))
    how = {
        "job_id": JOB,
        "model": model,
        "tools": world.tools(),
        "store": Path(folder) / "flows.sqlite",
    }
    if decisions is None:
        turn = crew.start_job(world.scenario(scenario).request, **how)
    else:
        made = {call_id: crew.Decision(kind=kind) for call_id, kind in decisions.items()}
        turn = crew.resume_job(made, **how)
    read = [str(m.content) for ms in model.asked[-1:] for m in ms if isinstance(m, ToolMessage)]
    return {
        "answer": str(turn.answer),
        "waiting": {str(w.call_id): str(w.tool) for w in turn.waiting},
        "read": read,
    }


def work_guarded(log: str, home: str, **arguments: Any) -> dict[str, Any]:
    """A whole job, with every risky call approved, in a process that may not leave the machine."""
    os.environ["HOME"] = home
    os.chdir(home)
    end_at_first_step(log)
    state = work(**arguments)
    while state["waiting"]:
        state = work(**arguments, decisions=dict.fromkeys(state["waiting"], "approve"))
    # What reports at a process's end does it here: children of a fork end without.
    atexit._run_exitfuncs()
    return state
