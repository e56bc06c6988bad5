"""The device at the branch, as a test sees it: a budget, a trusted key, a way to run a bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from shared.offline import OFFLINE_ENV
from shared.paths import ROOT


@dataclass(frozen=True)
class Probe:
    """A text that somebody sent to the desk, with the right answer.

    Attributes:
        slice: the group of probes that it is reported with.
        label: the topic that it is about.
    """

    text: str
    slice: str
    label: str


@dataclass(frozen=True)
class Run:
    """What happened when a bundle answered some texts on the device.

    Attributes:
        answers: one a text; fewer where it broke off.
        tokens: the token ids that the model was given, for each answer.
        cycles: processor cycles, for each answer, by count: the same bundle and texts give the
            same numbers.
        peak_bytes: the most memory that the bundle had at once, from its loading to its end,
            beyond what the device's own libraries take.
        sockets: each try to open a socket or to look up a name. It did not succeed.
        processes: each try to start another program. It did not succeed.
        seconds: by the clock of the machine that stands for the device, loading included.
        error: what it broke off with; None where it answered all.
    """

    answers: tuple[str, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    cycles: tuple[int, ...] = ()
    peak_bytes: int = 0
    sockets: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str | None = None

    def __repr__(self) -> str:
        """All fields; of those with more than three entries, how many there are."""
        shown = (f"{f.name}={_counted(getattr(self, f.name))}" for f in fields(self))
        return f"Run({', '.join(shown)})"


@dataclass
class Device:
    """Runs bundles, one at a time, each in a process of its own. Use it in a `with` statement.

    Attributes:
        public_key: of the maker whose bundles it trusts; 32 bytes.
        memory_bytes: what a bundle may have at once.
        ran: the bundles that it has run so far.
    """

    public_key: bytes
    memory_bytes: int
    ran: list[Path] = field(default_factory=list)
    _worker: subprocess.Popen[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """What tells one device from another in a report: no key, and of what it ran the number."""
        return f"{type(self).__name__}(memory_bytes={self.memory_bytes}, runs={len(self.ran)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, bundle: Path, texts: Sequence[str]) -> Run:
        """Unpack a bundle, load its runtime and have it answer. Nothing is verified here.

        What the bundle does wrong is in the result, not raised.
        """
        self.ran.append(bundle)
        with tempfile.TemporaryDirectory(prefix="device-") as folder:
            try:
                with tarfile.open(bundle, "r:") as archive:
                    archive.extractall(folder, filter="data")
            except (tarfile.TarError, OSError) as error:
                return Run(error=f"it cannot be unpacked: {error}")
            said = self._ask({"folder": folder, "texts": list(texts)})
        return _run_of(said)

    def close(self) -> None:
        """End the process that runs bundles."""
        if self._worker is not None:
            assert self._worker.stdin is not None
            assert self._worker.stdout is not None
            self._worker.stdin.close()
            try:
                self._worker.wait(5)
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()
            self._worker.stdout.close()
            self._worker = None

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        worker = self._started()
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(job) + "\n")
        worker.stdin.flush()
        reply = worker.stdout.readline()
        if not hasattr(os, "fork"):
            self.close()
        if not reply:
            self.close()
            raise RuntimeError("The device's own process ended, so the run says nothing.")
        return json.loads(reply)

    def _started(self) -> subprocess.Popen[str]:
        if self._worker is None:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "shared.device.worker"],
                cwd=ROOT,
                env=os.environ | OFFLINE_ENV | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._worker


def _counted(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    long = isinstance(value, tuple) and len(value) > 3
    return f"<{len(value)}>" if long else repr(value)


def _run_of(said: dict[str, Any]) -> Run:
    return Run(
        answers=tuple(said.get("answers", ())),
        tokens=tuple(tuple(ids) for ids in said.get("tokens", ())),
        cycles=tuple(said.get("cycles", ())),
        peak_bytes=said.get("peak_bytes", 0),
        sockets=tuple(said.get("sockets", ())),
        processes=tuple(said.get("processes", ())),
        seconds=said.get("seconds", 0.0),
        error=said["error"],
    )
