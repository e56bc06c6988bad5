"""Take the pictures of the MLflow and Evidently pages that the lab's README shows.

    sudo apt-get install chromium        # or any Chromium or Chrome; CHROMIUM=/path/to/it
    .venv/bin/python labs/lab_2_drift/screenshots.py

The runs on the pages are made by the lab's solutions, on the finance domain, in a temporary
folder. The servers listen on loopback and are stopped at the end. The browser is driven through
its DevTools protocol over a WebSocket, so nothing has to be installed beside it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

LAB = Path(__file__).resolve().parent
IMAGES = LAB / "images"
sys.path[:0] = [str(LAB.parents[1]), str(LAB / "solution")]

from shared import offline  # noqa: E402

WIDTH, HEIGHT = 1400, 800
EXPERIMENT = "lab 2 drift"
MODEL = "big-move"
PROJECT = "Lab 2, finance: S&P 500"
LARGEST = 400_000

# The columns of the runs' table, and the assistant's panel shut.
MLFLOW_SETTINGS = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem('MLflowLocalStorage-1.1-ExperimentPage-["%s"]-ReactComponentState',
  JSON.stringify({searchFilter: "", orderByKey: "attributes.start_time", orderByAsc: false,
    startTime: "ALL", lifecycleFilter: "Active", datasetsFilter: [],
    modelVersionFilter: "All Runs", selectedColumns: ["metrics.`drift_share`",
      "metrics.`drifted_columns`", "metrics.`monitored_columns`", "tags.`drift_report`"],
    columnOrder: [], columnWidths: {}, runsExpanded: {}, runsPinned: [], runsHidden: [],
    runsVisibilityMap: {}, runsHiddenMode: "FIRST_10_RUNS", viewMaximized: false,
    runListHidden: false, isAccordionReordered: false, useGroupedValuesInCharts: true,
    hideEmptyCharts: true, groupBy: null, groupsExpanded: {}, autoRefreshEnabled: false,
    globalLineChartConfig: {xAxisKey: "step", lineSmoothness: 0, selectedXAxisMetricKey: ""}}));
"""
MODEL_TRAINING = """
[...document.querySelectorAll("*")].filter(e => e.children.length === 0
  && e.textContent.trim() === "Model training").forEach(e => e.click());
"""


@dataclass(frozen=True)
class Made:
    """What the pages are to show."""

    store: str
    workspace: Path
    drift_experiment: str
    baseline_experiment: str
    baseline_run: str


def main() -> None:
    """Make the runs, serve them, take the pictures."""
    offline.apply()
    # MLflow notes who made a run: nobody's name belongs in the pictures.
    os.environ["LOGNAME"] = "learner"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labs-screens-")))
        made = make_runs(folder)
        mlflow = stack.enter_context(
            serve(
                ["-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", made.store],
                "/health",
                folder / "mlflow.log",
            )
        )
        evidently = stack.enter_context(
            serve(
                ["-m", "evidently.cli", "ui", "--workspace", str(made.workspace)],
                "/api/projects",
                folder / "evidently.log",
            )
        )
        asyncio.run(take_pictures(made, mlflow, evidently, folder))


def make_runs(folder: Path) -> Made:
    """A baseline with its registered model, and a drift report for each window."""
    import mlflow
    from baseline import train_baseline
    from reports import build_report, publish_report

    from shared.domains.tabular import load_tabular

    data = load_tabular("finance")
    store, artifacts = f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts"
    client = mlflow.MlflowClient(store)
    baseline, drift = (
        client.create_experiment(name, artifact_location=artifacts.as_uri())
        for name in ("lab 2 baseline", EXPERIMENT)
    )
    result = train_baseline(
        data,
        tracking_uri=store,
        experiment="lab 2 baseline",
        model_name=MODEL,
        wandb_dir=folder / "wandb",
    )
    for label, window in data.windows():
        report = build_report(
            data.reference_frame,
            window,
            numeric=data.numeric,
            categorical=data.categorical,
            max_share=0.5,
            name=label,
            moment=window[data.time].max().to_pydatetime(),
        )
        publish_report(
            report,
            folder=folder / "reports" / label,
            tracking_uri=store,
            experiment=EXPERIMENT,
            workspace=folder / "workspace",
            project=PROJECT,
        )
    return Made(store, folder / "workspace", drift, baseline, result.run_id)


@contextmanager
def serve(arguments: list[str], ready: str, log: Path) -> Iterator[str]:
    """Run a server of this environment on a free port of loopback; yield its root URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    root = f"http://127.0.0.1:{port}"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        ) as server,
    ):
        try:
            for _ in range(240):
                try:
                    fetch(root + ready)
                    break
                except OSError:
                    if server.poll() is not None:
                        break
                    time.sleep(0.5)
            else:
                raise SystemExit(f"{command[1:4]} did not come up:\n{log.read_text()[-2000:]}")
            yield root
        finally:
            # The server's own children belong to its session.
            if server.poll() is None:
                os.killpg(server.pid, 15)
            server.wait(30)


async def take_pictures(made: Made, mlflow: str, evidently: str, folder: Path) -> None:
    """Visit each page, wait until it shows what it is there for, keep the picture."""
    project = json.loads(fetch(f"{evidently}/api/projects"))[0]["id"]
    reports = json.loads(fetch(f"{evidently}/api/projects/{project}/reports"))
    worst = next(r["id"] for r in reports if r.get("name") == "2001-02")
    IMAGES.mkdir(exist_ok=True)
    browser = Browser(folder / "profile")
    await browser.start()
    try:
        await browser.before_each_page(MLFLOW_SETTINGS % made.drift_experiment)
        await browser.visit(f"{mlflow}/#/experiments/{made.drift_experiment}/runs", "2013-15")
        await browser.run(MODEL_TRAINING)
        await browser.picture("mlflow_drift_runs", "drift_share")
        run = f"experiments/{made.baseline_experiment}/runs/{made.baseline_run}"
        await browser.visit(f"{mlflow}/#/{run}", "calibration_error")
        await browser.picture("mlflow_baseline_run", "train_window")
        await browser.visit(f"{mlflow}/#/models/{MODEL}", "champion")
        await browser.picture("mlflow_registry", "champion")
        await browser.visit(f"{evidently}/projects/{project}", "Share of drifted columns")
        await browser.picture("evidently_dashboard", "share")
        await browser.visit(f"{evidently}/projects/{project}/reports/{worst}", "volatility_20d")
        await browser.picture("evidently_report", "volatility_20d", height=1100)
    finally:
        await browser.stop()


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._calls = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: WebSocketClientConnection | None = None

    async def start(self) -> None:
        """Start the browser and connect to its page."""
        names = ("chromium", "chromium-browser", "google-chrome")
        program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
        if program is None:
            raise SystemExit("No Chromium found. Install one, or set CHROMIUM to its path.")
        flags = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={self._profile}"]
        # Whatever the browser itself would fetch (updates, lists) must not leave this machine.
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to sandbox for root.
        self._launch([program, *flags, "about:blank"])
        note = self._profile / "DevToolsActivePort"
        for _ in range(300):
            if note.exists() and len(note.read_text().splitlines()) == 2:
                break
            await asyncio.sleep(0.2)
        port = note.read_text().splitlines()[0]
        pages = json.loads(fetch(f"http://127.0.0.1:{port}/json"))
        url = next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
        self._socket = await websocket_connect(url, max_message_size=64 * 2**20)
        await self._call("Page.enable")
        await self._size(HEIGHT)

    def _launch(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)

    async def stop(self) -> None:
        """Close the browser."""
        if self._socket:
            self._socket.close()
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, 15)
            self._process.wait(30)

    async def before_each_page(self, script: str) -> None:
        """Run a script in each page before its own."""
        await self._call("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def visit(self, url: str, text: str) -> None:
        """Open a page and wait until it shows `text`."""
        # By way of nothing: a changed fragment alone would not load the page again.
        await self._call("Page.navigate", url="about:blank")
        await self._call("Page.navigate", url=url)
        await self._shows(text)

    async def run(self, script: str) -> Any:
        """Evaluate a script in the page."""
        answer = await self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    async def picture(self, name: str, text: str, height: int = HEIGHT) -> None:
        """Wait for `text` and for the page to come to rest; write `images/<name>.png`."""
        await self._size(height)
        await self._shows(text)
        await asyncio.sleep(4)
        answer = await self._call("Page.captureScreenshot", format="png")
        image = base64.b64decode(answer["data"])
        if len(image) > LARGEST:
            raise SystemExit(f"{name}.png has {len(image):,} bytes; {LARGEST:,} are allowed.")
        (IMAGES / f"{name}.png").write_bytes(image)
        print(f"{name}.png  {len(image) / 1000:.0f} kB")

    async def _size(self, height: int) -> None:
        await self._call(
            "Emulation.setDeviceMetricsOverride",
            width=WIDTH,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def _shows(self, text: str) -> None:
        for _ in range(240):
            if text in str(await self.run("document.body ? document.body.innerText : ''")):
                return
            await asyncio.sleep(0.25)
        raise SystemExit(f"The page never showed {text!r}.")

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        assert self._socket is not None
        self._calls += 1
        await self._socket.write_message(
            json.dumps({"id": self._calls, "method": method, "params": params})
        )
        while True:
            message = await self._socket.read_message()
            if message is None:
                raise SystemExit("The browser has gone.")
            answer = json.loads(message)
            if answer.get("id") == self._calls:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]


def fetch(url: str) -> bytes:
    """GET from loopback, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return answer.read()


if __name__ == "__main__":
    main()
