"""Checks of task 5.8: good bundles go out, bad ones don't, and the reason is the right one.

The bundles are made afresh in each run, from two originals of different sizes: good ones that
differ in what does not matter, and for each fault one a disguise (`support/branch_bundles.py`).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.branch_bundles import DISGUISES, MEMORY_BYTES, Maker, Subject

from shared.device.device import Device, Probe, Run
from shared.grading.expect import expect, fail, plain, show

GOOD_BLOCKED_AT_MOST = 1
MISSED_AT_MOST = {"quality": 1}
"""Where chance has a say. All other faults are plain to see, and all have to be seen."""
MISBLAMED_AT_MOST = 2
BESIDES = {
    "unsigned": {"code", "unlicensed"},
    "code": {"unlicensed"},
    "broken": {"quality"},
    "tokenizer": {"broken", "quality"},
}
"""What a bundle may be blocked for besides its fault."""
HINTS = {
    "unsigned": "signed-by-whom",
    "code": "inside-the-file",
    "unlicensed": "three-papers",
    "broken": "answers-all",
    "network": "all-probes",
    "memory": "at-once",
    "slow": "same-run",
    "tokenizer": "token-by-token",
    "quality": "slice-by-slice",
}


class BusyDevice(Device):
    """The same device on a machine that is busy now: everything takes sixty times as long."""

    def run(self, bundle: Path, texts: Any) -> Run:
        done = super().run(bundle, texts)
        return replace(done, seconds=60 * done.seconds)


class Trial:
    """The learner's specification, and what it says about the bundles of this run."""

    def __init__(self, learner: Any, maker: Maker, device: Device) -> None:
        self.learner, self.maker, self.device = learner, maker, device
        self.originals = [maker.reference(of) for of in (0, 1)]
        self.references = [device.run(self.originals[of], self.texts(of)) for of in (0, 1)]
        for run in self.references:
            if run.error is not None:
                raise RuntimeError(f"the original itself breaks: {run.error}")
        self._reports: dict[str, list[tuple[Subject, Any]]] = {}

    def texts(self, of: int) -> list[str]:
        """What the probes of an original say."""
        return [p.text for p in self.maker.probes[of]]

    def report(
        self,
        path: Path,
        of: int,
        what: str,
        *,
        device: Device | None = None,
        reference: Run | None = None,
        probes: tuple[Probe, ...] | None = None,
    ) -> Any:
        """What the specification says of a bundle."""
        try:
            said = self.learner.accept(
                path,
                device or self.device,
                reference or self.references[of],
                probes or self.maker.probes[of],
            )
        except NotImplementedError:
            raise
        except Exception as error:
            fail(
                observed=f"{type(error).__name__}: {error}, for a bundle that {what}",
                expected="a report",
                why="A specification that breaks says nothing about the bundle, and somebody will "
                "send it out to be on the safe side of the deadline.",
                hint="never-raises",
            )
        expect_report(said, what)
        return said

    def of(self, fault: str | None) -> list[tuple[Subject, Any]]:
        """The bundles with a fault, or the good ones, each with its report."""
        key = fault or "good"
        if key not in self._reports:
            made = self.maker.good if fault is None else self.maker.bad(fault)
            self._reports[key] = [(s, self.report(s.path, s.of, s.does)) for s in made]
        return self._reports[key]


_trials: dict[Path, Trial] = {}


@pytest.fixture(scope="session")
def device_maker(
    domain: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Device, Maker]]:
    """The device, and who makes bundles for it."""
    seed = int(os.environ.get("LABS_SEED", "0"))
    maker = Maker(domain, seed, tmp_path_factory.mktemp("bundles"))
    with Device(maker.public, MEMORY_BYTES) as device:
        yield device, maker


@pytest.fixture
def trial(learner: Any, target: Any, device_maker: tuple[Device, Maker]) -> Trial:
    """One trial for all checks of this run."""
    file = target.path("acceptance.py")
    if file not in _trials:
        device, maker = device_maker
        _trials[file] = Trial(learner, maker, device)
    return _trials[file]


@pytest.mark.limit(60)
def test_the_original_itself_goes_out(trial):
    for of, path in enumerate(trial.originals):
        said = trial.report(path, of, "is the original itself")
        expect(
            said.accepted,
            observed=f"the original is blocked: {words(said)}",
            expected="accepted: it is as good as itself, and as fast",
            why="A rule that the original breaks can't be kept by anything made from it.",
            hint="good-go-out",
        )


@pytest.mark.limit(60)
def test_what_is_not_signed_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "unsigned",
        why="A signature that is there, and a manifest that is right about other files, are what "
        "an attacker can make.",
    )


@pytest.mark.limit(60)
def test_code_among_the_weights_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "code",
        why="The maker signed it, because a colleague's pipeline wrote it. The first loader that "
        "opens it runs what it says.",
    )


@pytest.mark.limit(60)
def test_what_is_not_trusted_is_not_run(trial):
    for fault in ("unsigned", "code"):
        for subject, _ in trial.of(fault):
            expect(
                subject.path not in trial.device.ran,
                observed=f"a bundle that {subject.does} was run on the device",
                expected="it to be blocked before it is run",
                why="The test bench is a device with a network and your credentials.",
                hint="not-run",
            )


@pytest.mark.limit(60)
def test_what_is_not_licensed_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "unlicensed",
        why="The licence text without its entry in the SBOM is not found by the next audit, and "
        "the entry without the text breaks most licences.",
    )


@pytest.mark.limit(60)
def test_what_breaks_off_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "broken",
        why="Nobody at the branch can start it again.",
    )


@pytest.mark.limit(60)
def test_what_reaches_for_the_network_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "network",
        why="At the branch the call fails, or waits. Where there is a network after all, it tells "
        "somebody what customers ask.",
    )


@pytest.mark.limit(60)
def test_what_needs_too_much_memory_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "memory",
        why="The device ends the process, in the middle of an answer.",
    )


@pytest.mark.limit(60)
def test_the_budget_is_the_devices(trial):
    maker, device = trial.maker, trial.device
    hungry, of = next((s.path, s.of) for s, _ in trial.of("memory"))
    frugal = trial.originals[0]
    with Device(maker.public, 400 << 20) as large, Device(maker.public, 1 << 19) as small:
        for which, path, number, fits in (
            (large, hungry, of, True),
            (small, frugal, 0, False),
        ):
            said = trial.report(path, number, "is to run on another device", device=which)
            expect(
                ("memory" in faults(said)) is not fits,
                observed=f"on a device with {which.memory_bytes / 1e6:.1f} MB a bundle is "
                f"{words(said)}, that on one with {device.memory_bytes / 1e6:.1f} MB is "
                f"{'blocked' if fits else 'accepted'}",
                expected="not blocked for memory" if fits else "blocked for memory",
                why="The next branch has another device.",
                hint="at-once",
            )


@pytest.mark.limit(60)
def test_what_is_slower_than_the_original_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "slow",
        why="Half the size and twice the time is a common end of quantization, where the "
        "processor has no instructions for it. The branch asked for a faster one.",
    )


@pytest.mark.limit(60)
def test_a_busy_machine_changes_no_verdict(trial):
    subject = trial.maker.good[2]  # hardly faster than the original
    slow, _ = trial.of("slow")[2]
    reference = trial.references[subject.of]
    with BusyDevice(trial.maker.public, MEMORY_BYTES) as busy:
        said = trial.report(subject.path, subject.of, subject.does, device=busy)
        expect(
            "slow" not in faults(said),
            observed=f"{words(said)}: a good bundle ({subject.does}) whose run took longer by the "
            "clock, with as many cycles as before",
            expected="not to be blocked as slow",
            why="The machine of the test bench has other things to do. Next time it has none, and "
            "the verdict is another one.",
            hint="same-run",
        )
    late = replace(trial.references[slow.of], seconds=1000.0)
    said = trial.report(slow.path, slow.of, slow.does, reference=late)
    expect(
        "slow" in faults(said),
        observed=f"{words(said)}: a bundle that {slow.does}, where the original's run took long by "
        "the clock",
        expected="blocked as slow: its cycles are more than the original's",
        why="A busy hour on the test bench lets a slow bundle out.",
        hint="same-run",
    )
    halved = replace(reference, cycles=tuple(c // 2 for c in reference.cycles))
    said = trial.report(subject.path, subject.of, subject.does, reference=halved)
    expect(
        "slow" in faults(said),
        observed=f"{words(said)}: a bundle that takes twice the cycles of the run that was given "
        "as the original's",
        expected="blocked as slow",
        why="What is slow depends on what it replaces.",
        hint="same-run",
    )


@pytest.mark.limit(60)
def test_another_tokenizer_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "tokenizer",
        why="The model gets other words than were said. Often it answers as well as before, as "
        "long as nobody says one of them that counts.",
    )


@pytest.mark.limit(90)
def test_what_lost_a_slice_is_stopped(trial, figure):
    expect_stopped(
        trial,
        figure,
        "quality",
        why="The mean is better than before. All customers who ask about one topic are sent to "
        "the wrong desk.",
    )


@pytest.mark.limit(120)
def test_good_bundles_go_out(trial, figure):
    good = trial.of(None)
    blocked = [(s, r) for s, r in good if not r.accepted]
    figure("good bundles blocked", len(blocked) / len(good), reference=0.0)
    if len(blocked) <= GOOD_BLOCKED_AT_MOST:
        return
    subject, said = blocked[0]
    named = faults(said)
    fail(
        observed=f"{len(blocked)} of {len(good)} good bundles are blocked. The first one, where "
        f"{subject.does}: {words(said)}",
        expected=f"at most {GOOD_BLOCKED_AT_MOST}",
        why="A gate that stops good bundles is taken out of the way, and then stops none.",
        hint="by-chance" if named == {"quality"} else "good-go-out",
    )


@pytest.mark.limit(60)
def test_reasons_name_the_fault_the_slice_and_the_file(trial):
    bad = [(s, r) for fault in DISGUISES for s, r in trial.of(fault)]
    wrong = [(s, r) for s, r in bad if faults(r) - {s.fault} - BESIDES.get(str(s.fault), set())]
    if len(wrong) > MISBLAMED_AT_MOST:
        subject, said = wrong[0]
        fail(
            observed=f"{len(wrong)} of {len(bad)} bad bundles are blocked for a fault that they "
            f"don't have. One that {subject.does} ({subject.fault}): {words(said)}",
            expected=f"at most {MISBLAMED_AT_MOST}",
            why="Somebody has to mend it, and is sent to the wrong place.",
            hint="the-right-reason",
        )
    for subject, said in trial.of("quality"):
        slices = {p.slice for p in trial.maker.probes[subject.of]}
        details = [r.detail for r in said.reasons if r.fault == "quality"]
        expect(
            not details or any(name in text for text in details for name in slices),
            observed=f"{show(details)} for a bundle that {subject.does}",
            expected="the name of a slice",
            why="'Worse' is no report. Worse about loans is one.",
            hint="the-right-reason",
        )
    for fault, names in (("code", subject_files), ("unlicensed", subject_files)):
        for subject, said in trial.of(fault):
            details = [r.detail for r in said.reasons if r.fault == fault]
            expect(
                any(name in text for text in details for name in names(subject.path)),
                observed=f"{show(details)} for a bundle that {subject.does}",
                expected="the name of a file in it",
                why="Whoever mends it has forty files to choose from.",
                hint="the-right-reason",
            )


def subject_files(path: Path) -> list[str]:
    """The names in a bundle."""

    with tarfile.open(path) as archive:
        return archive.getnames()


def expect_report(said: Any, what: str) -> None:
    """Fail unless it is a report that agrees with itself."""
    read = plain(said)
    reasons = read.get("reasons") if isinstance(read, dict) else None
    well_formed = (
        isinstance(read, dict)
        and type(read.get("accepted")) is bool
        and isinstance(reasons, list)
        and all(
            isinstance(r, dict)
            and r.get("fault") in HINTS
            and isinstance(r.get("detail"), str)
            and r["detail"].strip()
            for r in reasons
        )
    )
    expect(
        bool(well_formed),
        observed=f"{show(read)} for a bundle that {what}",
        expected="a Report, with Reasons that have one of FAULTS and a detail each",
        why="The release job reads it.",
        hint="start-here",
    )
    expect(
        read["accepted"] == (not reasons),
        observed=f"{show(read)} for a bundle that {what}",
        expected="accepted without a reason, or blocked for one",
        why="Whoever reads only the verdict, and whoever reads only the reasons, must do the same.",
        hint="start-here",
    )


def expect_stopped(trial: Trial, figure: Callable[..., None], fault: str, *, why: str) -> None:
    """Fail unless the bundles with a fault are blocked for it."""
    bad = trial.of(fault)
    through = [(s, r) for s, r in bad if fault not in faults(r)]
    figure(f"stopped: {fault}", 1 - len(through) / len(bad), reference=1.0)
    allowed = MISSED_AT_MOST.get(fault, 0)
    if len(through) <= allowed:
        return
    subject, said = through[0]
    fail(
        observed=f"{len(bad) - len(through)} of {len(bad)} stopped as {fault}. One that "
        f"{subject.does}: {words(said)}",
        expected=f"at least {len(bad) - allowed} of {len(bad)}",
        why=why,
        hint=HINTS[fault],
    )


def faults(said: Any) -> set[str]:
    """The faults that a report names."""
    return {r.fault for r in said.reasons}


def words(said: Any) -> str:
    """A report in words."""
    if said.accepted:
        return "accepted"
    return "blocked, " + "; ".join(f"{r.fault}: {r.detail}" for r in said.reasons)[:300]
