"""One page of a headless Chromium, driven by the DevTools protocol: real clicks, real keys."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

KEYS = {"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), "Space": ("Space", 32, " ")}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str | None:
    """The program, if this machine has one; ``CHROMIUM=`` names another."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """The page.

    Attributes:
        requested: every address that the page asked for.
        dialogs: texts of dialogs that a script opened; they are closed at once.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._calls = 0
        self.requested: list[str] = []
        self.dialogs: list[str] = []
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._calls += 1
        number = self._calls
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message.get("method") == "Page.javascriptDialogOpening":
                self.dialogs.append(message["params"]["message"])
                answer = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self._calls += 1
                self._socket.send(json.dumps({"id": self._calls} | answer))

    def visit(self, url: str, text: str) -> None:
        """Open a page and wait until it shows `text`."""
        self.call("Page.navigate", url=url)
        self.wait_for(text)

    def run(self, script: str) -> Any:
        """Evaluate a script in the page; None while the page is changing."""
        try:
            answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        except RuntimeError:
            return None
        return answer["result"].get("value")

    def text(self) -> str:
        """What a person reads."""
        return str(self.run("document.readyState === 'complete' ? document.body.innerText : ''"))

    def wait_for(self, text: str) -> None:
        """Wait until the page shows `text`."""
        for _ in range(300):
            if text in self.text():
                return
            time.sleep(0.1)
        raise AssertionError(f"the page never showed {text!r}, but: {self.text()[:2000]}")

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of an element's first line."""
        # Before a page is painted the browser drops clicks.
        painted = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.call("Runtime.evaluate", expression=f"{painted}.then(() => 1)", awaitPromise=True)
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getClientRects()[0];"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        where = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def press(self, key: str) -> None:
        """A key: one of `KEYS`."""
        code, number, text = KEYS[key]
        what = {"key": text if key == "Space" else code, "code": code}
        what |= {"windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    def tab_to(self, selector: str) -> None:
        """Press Tab until the element has the focus."""
        script = f"document.activeElement.matches({json.dumps(selector)})"
        for _ in range(60):
            self.press("Tab")
            if self.run(script):
                return
        raise AssertionError(f"Tab never came to {selector}")

    def type_over(self, selector: str, text: str) -> None:
        """Replace what a field holds, typing."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, width: int, height: int) -> None:
        """Write a picture of the page's top."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        answer = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def open_browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, which finds nothing but loopback."""
    flags = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}"]
    # Whatever the browser itself would fetch (updates, lists) must not leave this machine.
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses to sandbox for root.
    process = subprocess.Popen(
        [program, *flags, "about:blank"], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with connect(_page_of(profile, process), max_size=64 * 2**20, proxy=None) as socket:
            yield Browser(socket)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _page_of(profile: Path, process: subprocess.Popen[bytes]) -> str:
    note = profile / "DevToolsActivePort"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"Chromium ended with status {process.returncode}")
        if note.exists() and len(note.read_text().splitlines()) == 2:
            port = note.read_text().splitlines()[0]
            with opener.open(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
                pages = json.load(answer)
            found = [p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page"]
            if found:
                return str(found[0])
        time.sleep(0.1)
    raise RuntimeError("Chromium did not open a page")
