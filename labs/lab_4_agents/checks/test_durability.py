"""Task 4.3: real processes are killed at each step, and others go on: nothing lost or doubled."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from support.processes import Case, End, Machine, Script, machines

from shared.domains.worlds import Step, open_world
from shared.grading.expect import expect, expect_equal, fail, show
from shared.grading.target import Target

# Dozens of processes each: seconds on an idle machine, many on a busy one.
pytestmark = pytest.mark.limit(120)

WRITES = ("act_small", "act_risky", "act_final")

NewCase = Callable[[], Case]
NewStep = Callable[..., Step]


@pytest.fixture(scope="module")
def workshop(target: Target) -> Iterator[Callable[[], Sequence[Machine]]]:
    """Two machines, started when a check first needs them."""
    with ExitStack() as stack:
        made: list[Machine] = []

        def get() -> list[Machine]:
            if not made:
                made.extend(stack.enter_context(machines(target.path("durability.py"), 2)))
            return made

        yield get


@pytest.fixture
def pick(seed: int) -> random.Random:
    """A generator of the kind that the worlds take."""
    return random.Random(seed)


@pytest.fixture
def new(learner: Any, workshop: Any, tmp_path: Path, domain: str, seed: int) -> NewCase:
    """Makes cases: the same world anew, each with a checkpoint file of its own."""
    # A name that is missing is said here, before any process needs it.
    assert callable(learner.run_durably)
    made: list[Case] = []

    def case() -> Case:
        folder = tmp_path / f"case-{len(made)}"
        folder.mkdir()
        made.append(Case(workshop(), folder, domain, seed))
        return made[-1]

    return case


@pytest.fixture
def step(domain: str, tmp_path: Path, seed: int, pick: random.Random) -> NewStep:
    """Makes tool calls with fresh arguments, for one customer."""
    world = open_world(domain, tmp_path / "example.sqlite", seed=seed)
    customer = pick.choice(world.customers()).id

    def made(role: str, customer_id: str = customer) -> Step:
        return Step(world.roles[role], world.good_arguments(role, pick, customer_id))  # type: ignore[index]

    return made


def test_a_request_is_done_once_and_its_reply_is_kept(new, pick):
    for name in ("too_much", pick.choice(["risky_and_tell", "small", "question"])):
        case = new()
        job = case.world.scenario(name)
        script = Script(job.request, [[s] for s in job.steps], job.answer)
        names = {"thread_id": f"thread-{name}", "request_id": f"request-{pick.randint(0, 999)}"}
        end = case.run(script, doing=f"the job {name!r}", **names)
        _answered(end, script)
        expect_equal(
            [(s.tool, s.arguments) for s in case.world.effects()],
            [(s.tool, s.arguments) for s in job.expected_effects],
            what=f"effects of the job {name!r}",
            why="This is what the customer asked for.",
            hint="three-moments",
        )
        _history_is_sound(case, [script.request], script)
        statuses = [m["status"] for m in case.asked()[-1]["messages"] if m["answers"]]
        expect_equal(
            statuses,
            ["success"] * (len(script.calls) - 1) + ["error" if name == "too_much" else "success"],
            what=f"statuses of the tool messages of the job {name!r}",
            why="A model that takes a refusal for a success tells the customer that it is done.",
            hint="told-once",
        )
        asked = len(case.asked())
        again = case.run(script, doing=f"the finished job {name!r} once more", **names)
        expect(
            again.said.get("reply") == end.said["reply"],
            observed=f"{again}, when another process called with the finished request",
            expected=f"{end}, as the first time",
            why="A caller whose connection broke asks again. It wants the reply, not another job.",
            hint="which-saver",
        )
        expect(
            len(case.asked()) == asked and case.world.effects() == list(job.expected_effects),
            observed=f"{len(case.asked()) - asked} model calls and "
            f"{len(case.world.effects()) - len(job.expected_effects)} effects when a finished "
            "request was sent again, to another process",
            expected="none: its reply is in the file",
            why="A finished request that is sent again must cost nothing and do nothing.",
            hint="reply-kept" if case.file.exists() else "which-saver",
        )


def test_what_the_model_decided_is_in_the_file_before_any_of_it_is_begun(new, step):
    case = new()
    script = Script("Please do this.", [[step("act_small")], [step("act_risky")]], "Done.")
    # A slow disk: what is written in the background is written late.
    end = case.run(script, doing="two acts, on a slow disk", look=True, slow_s=0.04)
    _answered(end, script)
    for look in end.said["looks"]:
        expect(
            look["now"],
            observed=f"{look['tool']} was called when the reply that asked for it was not in the "
            "checkpoint file" + (" (it was a moment later)" if look["later"] else ""),
            expected="the reply in the file before the call is begun",
            why="Killed now, the next process asks the model again, gets other calls with other "
            "ids, and makes them as well.",
            hint="when-is-it-written" if look["later"] else "decide-first",
        )


def test_killed_at_each_model_call_and_each_tool_call_it_goes_on_there(new, step, pick, figure):
    script = Script(
        f"Please see to case {pick.randint(100, 999)}.",
        [[step("lookup")], [step("items"), step("act_small")], [step("act_risky")]],
        "All done.",
    )
    kills: list[tuple[str, dict[str, Any], tuple[str, str] | None]] = []
    for n in range(1, len(script.replies) + 2):
        kills.append((f"model call {n}", {"die_at_model": n}, None))
    roles = ("lookup", "items", "act_small", "act_risky")
    for role in roles:
        kills.append((f"{role}, before its effect", {}, (role, "kill_before")))
        kills.append((f"{role}, after its effect", {}, (role, "kill_after")))
    kills.append(("the end, before the caller had the reply", {"die_at_end": True}, None))
    for where, how, fault in kills:
        case = new()
        if fault is not None:
            case.world.faults.add(*fault)
        _killed(case.run(script, doing=f"a process to be killed at {where}", **how), where)
        end = case.run(script, doing=f"going on after a kill at {where}")
        _answered(end, script, where)
        _nothing_unknown(end, where)
        _exactly_once(case, script, where)
        repeats = 2 if how.get("die_at_model") else 1
        _asked_at_most(case, script, where, repeats - 1)
        reads = Counter(c.tool for c in case.world.calls() if c.result == "ok")
        for role in ("lookup", "items"):
            tool = case.world.roles[role]
            allowed = 2 if fault == (role, "kill_after") else 1
            expect(
                reads[tool] <= allowed,
                observed=f"{reads[tool]} answers of {tool}, killed at {where}",
                expected=f"at most {allowed}: what it answered is in the file",
                why="Going on means going on, not from the top. Long work would never end.",
                hint="one-at-a-time"
                if fault is not None and (role, fault[0]) == ("items", "act_small")
                else "go-on-or-begin",
            )
        _history_is_sound(case, [script.request], script, where=where)
    figure("places of a kill: model and tool calls", len(kills))


def test_killed_at_every_write_to_the_file_it_loses_and_doubles_nothing(new, step, pick, figure):
    script = Script(
        f"Please see to case {pick.randint(100, 999)}.",
        [[step("act_small"), step("notify")]],
        "All done.",
    )
    whole = new().run(script, doing="a run without a kill, to count the writes")
    _answered(whole, script)
    writes = whole.said["written"]
    expect(
        writes > 0,
        observed="no write to the checkpoint file",
        expected="checkpoints in the file at `path`",
        why="What is only in memory is gone with the process.",
        hint="which-saver",
    )
    unknown = 0
    places = list(range(1, writes + 1))
    for two in zip(places[::2], [*places[1::2], None], strict=False):
        cases = [(new(), at) for at in two if at is not None]
        # Before it dies it waits a moment, as a disk would let it.
        killed = [
            c.start(script, doing="to be killed", die_at_statement=at, pause_s=0.03)
            for c, at in cases
        ]
        ends = [process.end() for process in killed]
        at_kill = [len(case.asked()) for case, _ in cases]
        following = [c.start(script, doing="going on after a kill") for c, _ in cases]
        for (case, at), end, asked, process in zip(cases, ends, at_kill, following, strict=True):
            where = f"write {at} of {writes} to the checkpoint file"
            if end.killed:
                end = process.end()
            else:
                process.end()
            _answered(end, script, where)
            _history_is_sound(case, [script.request], script, where=where, hint="half-written")
            _asked_at_most(case, script, where, 1)
            _at_most_once(case, script, end, where)
            if end.said["reply"]["unknown"]:
                unknown += 1
                expect(
                    asked == 1,
                    observed=f"{_unknown(end)} unknown, killed at {where}, when the model had been "
                    f"asked {asked} times",
                    expected="nothing unknown: the call was not begun yet, or its outcome was in "
                    "the file before the model was asked again",
                    why="A person who is sent to look for nothing stops looking.",
                    hint="only-in-doubt",
                )
    figure("writes to the checkpoint file, killed at each", writes)
    figure("of these, a message reported unknown", unknown)


def test_a_message_that_may_have_been_sent_is_not_sent_again_but_reported(new, step, pick):
    first, act, second, last = step("notify"), step("act_risky"), step("notify"), step("act_small")
    script = Script("Please do this, and tell me.", [[first, act, second], [last]], "All is done.")
    for role, fault, in_doubt, lost in (
        ("notify", "kill_before", [first], [first]),
        ("notify", "kill_after", [first], []),
        ("act_risky", "kill_before", [], []),
        ("act_risky", "kill_after", [], []),
        ("act_small", "kill_after", [], []),
    ):
        case = new()
        case.world.faults.add(role, fault)
        where = f"{case.world.roles[role]}, {fault.replace('kill_', '')} its effect"
        _killed(case.run(script, doing=f"a process to be killed at {where}"), where)
        end = case.run(script, doing=f"going on after a kill at {where}")
        _answered(end, script, where)
        effects = case.world.effects()
        for message in (first, second):
            expected = 0 if message in lost else 1
            sent = effects.count(message)
            expect(
                sent <= 1,
                observed=f"{sent} messages {show(message.arguments['text'])}, killed at {where}",
                expected=f"{expected}",
                why="A message takes no idempotency key. Sent again, the customer has it twice.",
                hint="begun-first" if message in in_doubt else "one-at-a-time",
            )
            expect(
                sent == expected,
                observed=f"{sent} messages {show(message.arguments['text'])}, killed at {where}",
                expected=f"{expected}: its turn came later, or it had been sent"
                if expected
                else "none: it may have been sent, and nobody knows",
                why="Only a call that was begun is in doubt. The others are still to be made."
                if expected
                else "The next process cannot tell a kill before the effect from one after it.",
                hint="only-in-doubt" if expected else "begun-first",
            )
        _exactly_once(case, script, where, but=[first, second])
        expect_equal(
            end.said["reply"]["unknown"],
            [[s.tool, s.arguments] for s in in_doubt],
            what=f"Reply.unknown (tool, arguments), killed at {where}",
            why="Unsaid, the customer waits for a message that never comes. Said without cause, "
            "nobody believes it.",
            hint=_doubt_hint(end, in_doubt),
        )
        text = end.said["reply"]["text"]
        expect(
            not in_doubt or (first.tool in text and "unknown" in text.lower()),
            observed=f"text = {show(text)} when {first.tool} is unknown",
            expected="the tool's name and 'unknown' in it",
            why="The model says 'All is done'. The customer must not be left with that alone.",
            hint="say-unknown",
        )
        _history_is_sound(case, [script.request], script, unknown=len(in_doubt))


def test_killed_again_and_again_it_comes_to_an_end(new, step, pick, figure):
    kills = 0
    for _ in range(3):
        case = new()
        script = Script(
            f"Please see to case {pick.randint(100, 999)}.",
            [[step("lookup")], [step("act_small"), step("notify"), step("act_risky")]],
            "All done.",
        )
        end = case.run(script, doing="the first process", die_at_statement=pick.randint(3, 12))
        for n in range(1, 13):
            if not end.killed:
                break
            kills += 1
            at = pick.randint(1, 9) if n < 8 else 0
            end = case.run(script, doing=f"the process after kill {n}", die_at_statement=at)
        where = "several places, one after the other"
        _answered(end, script, where)
        _at_most_once(case, script, end, where)
        _history_is_sound(case, [script.request], script, unknown=len(end.said["reply"]["unknown"]))
    figure("kills before three requests were finished", kills)


def test_an_exception_counts_like_a_kill(new, step, pick):
    act, message = step(pick.choice(["act_small", "act_risky"])), step("notify")
    script = Script("Please do this, and tell me.", [[act], [message]], "Done.")
    role = next(r for r, tool in new().world.roles.items() if tool == act.tool)
    for broken, fault, error in (
        (role, "transient", "TransientError"),
        (role, "after_effect", "TransientError"),
        ("notify", "after_effect", "TransientError"),
        ("items", None, "OperationalError"),
    ):
        case = new()
        job: dict[str, Any] = {}
        plan = script
        if fault is not None:
            case.world.faults.add(broken, fault)
        else:
            plan = Script(script.request, [[step("items")], *script.replies], script.answer)
            job = {"breaks_in": broken}
        where = f"{error} of {case.world.roles[broken]}"
        doing = f"a run in which {case.world.roles[broken]} raises {error}, and another after it"
        # The same process tries again, as a worker would.
        end = case.run(plan, doing=doing, again=fault is not None, **job)
        expect(
            end.error == error,
            observed=f"{end}, where {case.world.roles[broken]} raised {error}"
            + (f" ({fault})" if fault else " (of a database of its own)"),
            expected=f"{error} to go through as it is",
            why="Told to the model as an answer, it makes it ask for the call again, with another "
            "id. Called something else, it sends people to the wrong place.",
            hint="not-your-error" if fault is None else "exceptions-are-kills",
        )
        said = end.said["again"] if fault else case.run(plan, doing="another run after it").said
        end = End(0, said)
        _answered(end, plan, where)
        in_doubt = [message] if broken == "notify" else []
        sent = case.world.effects().count(message)
        expect(
            sent <= 1,
            observed=f"{sent} messages, the first one ended in a TransientError after it was sent",
            expected="1",
            why="The same process, or another: begun is begun.",
            hint="this-run",
        )
        _exactly_once(case, plan, where, but=[message] if in_doubt else [])
        expect_equal(
            end.said["reply"]["unknown"],
            [[s.tool, s.arguments] for s in in_doubt],
            what=f"Reply.unknown (tool, arguments) after a {where}",
            why="A broken connection leaves as much doubt as a kill.",
            hint=_doubt_hint(end, in_doubt),
        )


def test_only_one_worker_at_a_time_is_at_a_thread(new, step):
    case = new()
    act = step("act_small")
    script = Script("Please do this.", [[act]], "Done.")
    hold = case.hold("act_small")
    owner = case.start(script, doing="a worker that is slow in a tool", hold=hold.job)
    _began(hold, owner)
    second = case.run(script, doing="a second worker at the same thread")
    _busy(second, "another process", "one-worker")
    other = Script("Please do that.", [[step("act_risky")]], "Done, too.")
    end = case.run(other, doing="a worker at another thread meanwhile", thread_id="thread-2")
    expect(
        end.error is None,
        observed=f"{end} for another thread, while a tool of the first one was slow",
        expected="its reply: other threads don't wait",
        why="One slow call for one customer would stop all customers.",
        hint="other-threads",
    )
    hold.release()
    _answered(owner.end(), script)
    _exactly_once(case, script, "no place", but=[*other.calls])

    case = new()
    said = case.run(
        script,
        doing="two Python threads of one process at the same thread",
        hold=case.hold("act_small").job,
        twice=True,
    ).said
    _busy(End(0, said["second"]), "another Python thread of the process", "any-thread")
    _answered(End(0, said["first"]), script)
    _exactly_once(case, script, "no place")


def test_a_dead_worker_is_replaced_at_once_and_a_slow_one_is_not(new, step):
    script = Script("Please do this.", [[step("act_risky")], [step("act_small")]], "Done.")
    for place in ("model", "act_risky"):
        case = new()
        hold = case.hold(place)
        owner = case.start(script, doing="a worker that is slow", hold=hold.job)
        _began(hold, owner)
        if place == "model":
            owner.pause()
            time.sleep(2)
        second = case.run(script, doing="a second worker, some time later")
        _busy(second, "a paused one", "paused")
        owner.kill()
        _killed(owner.end(), place)
        end = case.run(script, doing="the next worker, right after the first one's death")
        expect(
            end.error != "ThreadBusy",
            observed=f"{end}, right after the thread's worker was killed in {place}",
            expected="the work to go on",
            why="A lock that outlives its owner keeps the customer waiting until somebody removes "
            "it by hand.",
            hint="dead-owner",
        )
        _answered(end, script, place)
        _exactly_once(case, script, place)


def test_workers_that_start_together_do_each_job_once(new, step):
    for _ in range(2):
        case = new()
        scripts = [
            Script(
                f"Please do this, {n}.",
                [[step("act_small", c.id), step("act_risky", c.id)]],
                f"Done {n}.",
            )
            for n, c in enumerate(case.world.customers()[:3])
        ]
        racing = [
            case.start(
                script,
                doing="one of six workers that start at once",
                slow_s=0.02,
                thread_id=script.request,
            )
            for script in scripts
            for _ in range(2)
        ]
        ends = [process.end() for process in racing]
        for n, script in enumerate(scripts):
            pair = ends[2 * n : 2 * n + 2]
            for end in pair:
                expect(
                    end.error in (None, "ThreadBusy"),
                    observed=f"{end}, as six workers began with a file that was not there yet",
                    expected="its reply, or ThreadBusy for the second of two at one thread",
                    why="After a deployment all workers start in the same second.",
                    hint="start-together",
                )
            expect(
                any(end.error is None for end in pair),
                observed="ThreadBusy for both of two workers at a new thread",
                expected="one of them to do the work",
                why="If each gives way to the other, nobody works.",
                hint="one-worker",
            )
            _answered(next(e for e in pair if e.error is None), script)
        wanted = [c for s in scripts for c in s.calls]
        _exactly_once(case, Script("", [wanted], ""), "no place", ordered=False)


def test_threads_share_nothing_whatever_their_names(new, step, pick):
    case = new()
    # The same calls with the same ids, in threads of alike names: all are meant.
    script = Script("Please do this.", [[step("act_small")]], "Done.")
    names = ["a/b", "a_b", "../a", "A/B", "a" * 300, 'ü "x"; --', " "]
    for name in pick.sample(names, len(names)):
        before = len(case.world.effects())
        end = case.run(script, doing=f"thread {show(name, 40)}", thread_id=name, fixed_ids=True)
        _answered(end, script, hint="any-name")
        expect(
            len(case.world.effects()) == before + 1,
            observed=f"no effect in thread {show(name, 40)}, whose call has the same id as one of "
            "another thread",
            expected="one: it is another customer's call",
            why="Ids of calls are unique in their thread only. With one key for both, the second "
            "customer is told 'done' and gets nothing.",
            hint="thread-in-key",
        )
        _history_is_sound(case, [script.request], script, last=2)
    stray = sorted(str(p) for p in case.folder.parent.glob("*") if p.name.startswith("a"))
    expect(
        not stray,
        observed=f"files outside the checkpoint file's folder: {stray}",
        expected="no file whose name a customer chose",
        why="A thread's name comes from outside. As a path it writes anywhere.",
        hint="any-name",
    )


def test_a_threads_requests_are_done_one_after_the_other(new, step):
    one = Script("First request.", [[step("act_small")], [step("act_risky")]], "First done.")
    two = Script("Second request.", [[step("act_risky")]], "Second done.")
    for place in ("act_small", "act_risky"):
        case = new()
        case.world.faults.add(place, "kill_after")
        _killed(case.run(one, doing="the first request, to be killed"), place)
        end = case.run([one, two], doing="a second request, the first unfinished", request_id="2")
        _answered(end, two, place)
        both = Script("", [*one.replies, *two.replies], "")
        _exactly_once(case, both, f"{place} of the first of two requests", hint="unfinished-first")
        first = case.run(one, doing="the first request, asked for again")
        _answered(first, one)
        _exactly_once(case, both, f"{place} of the first of two requests", hint="reply-kept")
        _history_is_sound(case, [one.request, two.request], both)


def test_a_locked_checkpoint_file_is_said_and_loses_nothing(new, step):
    act, later = step("act_risky"), step("act_small")
    script = Script("Please do this.", [[act, later]], "Done.")
    case = new()
    _answered(case.run(script, doing="a first thread", thread_id="before"), script)
    with closing(sqlite3.connect(case.file, isolation_level=None)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        end = case.run(script, doing="a run while the file is locked", wait_s=0.2)
        backup.execute("ROLLBACK")
    _unusable(end, "locked", "somebody else keeps the file locked", case.file.name)
    _answered(case.run(script, doing="a run when the file is free again"), script)
    twice = Script("", [script.calls * 2], "")
    _exactly_once(case, twice, "no place", hint="locked")

    case = new()
    end = case.run(
        script,
        doing="a run in which the file is locked after a call",
        wait_s=0.2,
        lock_in="act_risky",
    )
    _unusable(end, "locked", "the file was locked after a call's effect", case.file.name)
    _answered(case.run(script, doing="a run when the file is free again"), script)
    _exactly_once(case, script, "no place", hint="locked")


def test_a_damaged_checkpoint_file_is_said_and_left_alone(new, step, pick):
    script = Script("Please do this.", [[step("act_small")]], "Done.")
    for what in ("its head overwritten", "its pages overwritten", "its second half missing"):
        case = new()
        case.world.faults.add("act_small", "kill_after")
        _killed(case.run(script, doing="a run to be killed"), "act_small")
        with closing(sqlite3.connect(case.file)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        whole = case.file.read_bytes()
        broken = {
            "its head overwritten": pick.randbytes(100) + whole[100:],
            "its pages overwritten": whole[:4096] + b"\xff" * (len(whole) - 4096),
            "its second half missing": whole[: len(whole) // 8192 * 4096],
        }[what]
        case.file.write_bytes(broken)
        asked, effects = len(case.asked()), len(case.world.effects())
        end = case.run(script, doing=f"a run with the file, {what}")
        expect(
            len(case.asked()) == asked and len(case.world.effects()) == effects,
            observed=f"{len(case.asked()) - asked} model calls and "
            f"{len(case.world.effects()) - effects} effects with the file, {what}",
            expected="none",
            why="Whoever begins anew on a broken memory does everything again.",
            hint="damaged",
        )
        _unusable(end, "damaged", f"of the file, {what}", case.file.name)
        expect(
            case.file.exists() and case.file.read_bytes() == broken,
            observed="the damaged file has changed" if case.file.exists() else "the file is gone",
            expected="the file as it was",
            why="Most of a damaged file can be rescued, if nobody writes into it.",
            hint="damaged",
        )
        case.file.write_bytes(whole)
        _answered(case.run(script, doing="a run with the file brought back from a backup"), script)
        _exactly_once(case, script, "act_small")


def test_an_unfinished_request_of_another_version_waits_for_it(new, step, pick):
    old, newer = pick.sample(["1", "2", "2026-11", "1.10"], 2)
    script = Script("Please do this.", [[step("act_risky")], [step("act_small")]], "Done.")
    case = new()
    how: dict[str, Any] = pick.choice([{"die_at_model": 1}, {"die_at_model": 2}])
    _killed(case.run(script, doing="a run to be killed", version=old, **how), "the model")
    asked = len(case.asked())
    more = Script("And this.", [[step("act_risky")]], "Done as well.")
    for scripts, name in (([script], "the same request"), ([script, more], "a new request")):
        end = case.run(
            scripts,
            doing=f"{name} in version {newer!r}",
            version=newer,
            request_id=f"request-{len(scripts)}",
        )
        _unusable(end, "version", f"{name} in version {newer!r}, one of {old!r} unfinished", "")
        expect(
            len(case.asked()) == asked,
            observed=f"the model asked {len(case.asked()) - asked} times more",
            expected="nothing done",
            why="Another graph reads another meaning out of the same checkpoint.",
            hint="version",
        )
    end = case.run(script, doing=f"the same request in version {old!r}", version=old)
    _answered(end, script)
    _exactly_once(case, script, "the model", hint="version")
    kept = case.run(script, doing=f"the finished request in version {newer!r}", version=newer)
    _answered(kept, script)
    end = case.run(
        [script, more], doing="a new request in a new version", version=newer, request_id="next"
    )
    _answered(end, more)


def test_a_live_models_calls_survive_kills_as_well(new, engine, figure):
    case = new()
    job = case.world.scenario("risky_and_tell")
    # Only the number of replies is the script's; what they ask for is the live model's.
    request = f"I am customer {job.customer_id}. {job.request}"
    script = Script(request, [[], []], "That is all.")
    for spec in case.world.tools():
        case.world.faults.add(spec.name, "kill_after")
    how = {"engine": engine.to_json()}
    kills, end = 0, case.start(script, doing="a live run", **how).end(60)
    while end.killed and kills < 8:
        kills += 1
        end = case.start(script, doing="going on with a live run", **how).end(60)
    _answered(end, script, "each tool, once")
    _history_is_sound(case, [request], None)
    told = Counter(m["name"] for m in case.asked()[-1]["messages"] if m["answers"])
    for spec in case.world.tools():
        if spec.reads:
            continue
        attempts = [c for c in case.world.calls() if c.tool == spec.name]
        different = len({c.idempotency_key for c in attempts}) if spec.idempotent else len(attempts)
        effects = sum(entry.action == spec.name for entry in case.world.ledger())
        expect(
            effects <= told[spec.name] and different <= told[spec.name],
            observed=f"{effects} effects and {different} "
            + ("keys" if spec.idempotent else "attempts")
            + f" for {told[spec.name]} calls of {spec.name} by the live model",
            expected="at most one for each call",
            why="A real model asks for what no test foresaw.",
            hint="same-key" if spec.idempotent else "begun-first",
        )
    figure("kills of a live run", kills)
    figure("tool calls of the live model", sum(told.values()), unit="calls")


# What must hold of a run.


def _answered(end: End, script: Script, where: str = "", hint: str = "") -> None:
    at = f", killed at {where}" if where else ""
    if not hint:
        hint = "go-on-or-begin" if where else "three-moments"
    expect(
        not end.killed and end.error is None,
        observed=f"{end}{at}",
        expected="a Reply",
        why="A request that was taken must come to an end, whatever happened on the way.",
        hint="dead-owner" if where and end.error == "ThreadBusy" else hint,
    )
    text = end.said["reply"]["text"]
    expect(
        isinstance(text, str) and script.answer in text,
        observed=f"text = {show(text)}{at}",
        expected=f"the model's answer {script.answer!r} in it",
        why="It is what the customer reads.",
        hint=hint,
    )


def _killed(end: End, where: str) -> None:
    if not end.killed:
        fail(
            observed=f"{end}, where the process should have been killed at {where}",
            expected="the model and the tools to be called as the request needs them",
            why="The check ends the process there, and your code never came to it.",
            hint="three-moments",
        )


def _writes(case: Case, script: Script) -> list[Step]:
    reads = {case.world.roles[r] for r in ("lookup", "items", "search")}
    return [c for c in script.calls if c.tool not in reads]


def _exactly_once(
    case: Case,
    script: Script,
    where: str,
    *,
    but: Sequence[Step] = (),
    hint: str = "",
    ordered: bool = True,
) -> None:
    """Every write of the script is in the ledger once, in order (leaving out `but`)."""
    wanted = [c for c in _writes(case, script) if c not in but]
    found = [e for e in case.world.effects() if e not in but]
    at = f"killed at {where}" if where != "no place" else "nobody was killed"
    for call in wanted:
        times, expected = found.count(call), wanted.count(call)
        expect(
            times == expected,
            observed=f"{times} effects of {call.tool}({show(call.arguments, 120)}); {at}",
            expected=f"{expected}",
            why="The customer has it twice, and somebody has to get it back."
            if times > expected
            else "The customer was told that it is done.",
            hint=hint or (_doubled_hint(case, call) if times > expected else "go-on-or-begin"),
        )
    if ordered:
        expect(
            found == wanted,
            observed=f"effects {[s.tool for s in found]}; {at}",
            expected=f"{[s.tool for s in wanted]}, in this order and nothing else",
            why="A call may build on the one before it.",
            hint=hint or "one-at-a-time",
        )


def _at_most_once(case: Case, script: Script, end: End, where: str) -> None:
    """Keyed writes once; messages once, or at most once and unknown."""
    unknown = _unknown(end)
    messages = [c for c in script.calls if c.tool == case.world.roles["notify"]]
    _exactly_once(case, script, where, but=messages)
    for message in messages:
        sent = case.world.effects().count(message)
        in_doubt = [message.tool, message.arguments] in unknown
        expect(
            sent <= 1,
            observed=f"{sent} messages {show(message.arguments['text'])}, killed at {where}",
            expected="1, or at most 1 and reported unknown",
            why="A message takes no idempotency key. Sent again, the customer has it twice.",
            hint="begun-first",
        )
        expect(
            sent == 1 or in_doubt,
            observed=f"no message {show(message.arguments['text'])}, and nothing unknown, killed "
            f"at {where}",
            expected="the message, or that it is unknown",
            why="Everybody believes that the customer knows.",
            hint="say-unknown",
        )
    expect(
        all(u in [[m.tool, m.arguments] for m in messages] for u in unknown)
        and len(unknown) <= len(messages),
        observed=f"unknown = {show(unknown)}, killed at {where}",
        expected="only messages, each once",
        why="What takes a key can be made again, and then it is known.",
        hint="only-in-doubt",
    )


def _unknown(end: End) -> list[Any]:
    found: list[Any] = end.said["reply"]["unknown"]
    return found


def _nothing_unknown(end: End, where: str) -> None:
    expect(
        not _unknown(end),
        observed=f"unknown = {show(_unknown(end))}, killed at {where}",
        expected="nothing unknown: reads and keyed writes can be made again",
        why="A person who is sent to look for nothing stops looking.",
        hint="only-in-doubt",
    )


def _asked_at_most(case: Case, script: Script, where: str, repeats: int) -> None:
    times, allowed = len(case.asked()), len(script.replies) + 1 + repeats
    expect(
        times <= allowed,
        observed=f"{times} model calls, killed at {where}",
        expected=f"at most {allowed}",
        why="A reply that is there is not asked for again: another one costs again, and decides "
        "otherwise.",
        hint="decide-first",
    )


def _doubled_hint(case: Case, call: Step) -> str:
    keys = {c.idempotency_key for c in case.world.calls() if c.tool == call.tool}
    if None in keys:
        return "takes-a-key"
    replies = Counter(a["reply"] for a in case.asked())
    return "decide-first" if max(replies.values()) > 1 else "same-key"


def _doubt_hint(end: End, in_doubt: Sequence[Step]) -> str:
    return "say-unknown" if len(_unknown(end)) < len(in_doubt) else "only-in-doubt"


def _history_is_sound(
    case: Case,
    requests: list[str],
    script: Script | None,
    *,
    unknown: int | None = None,
    last: int = 0,
    where: str = "",
    hint: str = "go-on-or-begin",
) -> None:
    """Each time the model was asked, the messages were complete and nothing was there twice."""
    for asked in case.asked()[-last:]:
        messages = asked["messages"]
        humans = [m["text"] for m in messages if m["kind"] == "human"]
        expect(
            humans == requests[: len(humans)] and bool(humans),
            observed=f"the model was asked with the requests {show(humans)}"
            + (f", killed at {where}" if where else ""),
            expected=f"{show(requests)}, each once, in order",
            why="A request that is added once more on each new try is a request for more.",
            hint=hint,
        )
        calls = [c for m in messages for c in m["calls"]]
        answers = [m["answers"] for m in messages if m["answers"] is not None]
        expect(
            answers == calls,
            observed=f"{len(answers)} tool messages for {len(calls)} calls when the model was "
            f"asked (calls {show(calls, 100)}, answers to {show(answers, 100)})",
            expected="one for each call, in order",
            why="A chat API refuses a history in which a call has no answer, or two.",
            hint="told-once",
        )
        for m in messages:
            if m["status"] == "success":
                _is_json(m["text"])
    if script is None:
        return
    told = [m for m in case.asked()[-1]["messages"] if m["answers"] is not None]
    expect_equal(
        [m["name"] for m in told],
        [c.tool for c in script.calls],
        what="tools named in the tool messages",
        why="The model must know which tool said what.",
        hint="told-once",
    )
    if unknown is not None:
        said = [m for m in told if m["status"] == "error" and "unknown" in m["text"].lower()]
        expect(
            len(said) == unknown,
            observed=f"{len(said)} tool messages of status 'error' that say unknown: "
            f"{show([(m['name'], m['status'], m['text'][:60]) for m in told])}",
            expected=f"{unknown}",
            why="A model that is told nothing of the doubt tells the customer that it is done.",
            hint="say-unknown",
        )


def _is_json(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        fail(
            observed=f"a tool message of status 'success' with the text {show(text, 120)}",
            expected="the tool's answer as JSON",
            why="Models read JSON. The repr of a Python dict is none.",
            hint="told-once",
        )


def _began(hold: Any, process: Any) -> None:
    if not hold.wait():
        end = process.end()
        fail(
            observed=f"{end}, before the place where it should have been slow",
            expected="the model and the tools to be called as the request needs them",
            why="The check stops the worker there, and your code never came to it.",
            hint="three-moments",
        )


def _busy(end: End, who: str, hint: str) -> None:
    expect(
        end.error == "ThreadBusy",
        observed=f"{end} for a second worker at a thread, while {who} was at it",
        expected="ThreadBusy at once",
        why="Two workers at one thread each do what the other one is doing.",
        hint=hint,
    )


def _unusable(end: End, reason: str, what: str, name: str) -> None:
    expect(
        end.error == "CheckpointError"
        and end.said["reason"] == reason
        and name in end.said["text"],
        observed=f"{end}" + (f", reason {end.said['reason']!r}" if end.error else "") + f": {what}",
        expected=f"CheckpointError of the reason {reason!r}"
        + (f", with {name!r} in its text" if name else ""),
        why="At three in the morning the error must tell what is wrong, and with which file.",
        hint=reason,
    )
