"""The classroom's pages in a real browser: nothing runs, nothing is fetched, all can be read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shared.classroom.pages import class_page, learner_page
from shared.classroom.records import ClassResult
from shared.classroom.similarity import similarity_page
from shared.classroom.verdicts import known_labs
from shared.grading.results import write_atomically
from tests import made_class as made
from tests.browser import Browser, chromium, open_browser

WITHOUT = (
    "no Chromium on this machine: the classroom's pages were NOT proven in a browser "
    "(apt-get install chromium, or CHROMIUM=/path/to/it)"
)


@dataclass
class Site:
    """Pages that are served on loopback, and every path that was asked for."""

    origin: str
    asked: list[str] = field(default_factory=list)


class Files(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def __init__(self, *args: object, asked: list[str], **kwargs: object) -> None:
        self._asked = asked
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Not in the tests' output."""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClassResult]:
    """A usual class and a hostile one, written below `folder`."""
    return {
        "usual": made.usual_class()[0],
        "hostile": made.hostile_class(tmp_path_factory.mktemp("no-such-lab"))[0],
    }


@pytest.fixture(scope="module")
def site(
    classes: dict[str, ClassResult], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    for name, result in classes.items():
        labs = known_labs(result)
        links = {learner.id: f"feedback/{learner.id}.html" for learner in result.learners}
        write_atomically(folder / name / "class.html", class_page(result, labs, links))
        write_atomically(folder / name / "similarity.html", similarity_page([], result))
        for learner in result.learners:
            page = learner_page(result, learner, labs)
            write_atomically(folder / name / links[learner.id], page)
    asked: list[str] = []
    handler = partial(Files, directory=str(folder), asked=asked)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Site(f"http://127.0.0.1:{server.server_address[1]}", asked)
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip(WITHOUT)
    with open_browser(program, Path(tmp_path_factory.mktemp("profile"))) as opened:
        yield opened


def resize(browser: Browser, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)


@pytest.mark.parametrize(
    ("name", "some"), [("hostile", [0, 1, 2, 3, 4, 7, -1]), ("usual", [4, 9, 12])]
)
def test_pages_ask_for_nothing_run_nothing_and_fit_a_phone(
    name: str, some: list[int], classes: dict[str, ClassResult], site: Site, browser: Browser
) -> None:
    resize(browser, 400)
    learners = [classes[name].learners[n].id for n in some]
    pages = ["class.html", "similarity.html", *(f"feedback/{id_}.html" for id_ in learners)]
    for page in pages:
        url = f"{site.origin}/{name}/{page}"
        browser.requested.clear()
        site.asked.clear()
        browser.visit(url, "MLOps Labs")
        assert browser.requested == [url]
        assert site.asked == [f"/{name}/{page}"]
        assert browser.dialogs == []
        assert browser.run("document.scripts.length + document.images.length") == 0
        assert browser.run("document.querySelectorAll('svg, iframe, object, form').length") == 0
        assert browser.run("document.documentElement.scrollWidth") <= 400, page
        assert browser.run("getComputedStyle(document.body).display") == "block"


def test_the_policy_holds_and_lets_the_style_through(site: Site, browser: Browser) -> None:
    browser.visit(f"{site.origin}/hostile/class.html", "The class")
    site.asked.clear()
    injected = (
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "const i = new Image(); i.src = '/picture.png'; const b = document.createElement('p');"
        "b.setAttribute('onclick', 'window.ran = 1'); document.body.append(s, i, b); b.click();"
        "return window.ran === undefined; })()"
    )
    assert browser.run(injected) is True
    browser.wait_for("The class")
    assert site.asked == []
    assert browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "auto"


def test_the_heat_map_can_be_read_by_colour_by_symbol_and_by_ear(
    site: Site, browser: Browser
) -> None:
    resize(browser, 1280)
    browser.visit(f"{site.origin}/usual/class.html", "Tasks and learners")
    table = "document.querySelector('.map')"
    cells = browser.run(
        f"[...{table}.querySelectorAll('tbody td:not(.n)')].map(c => [c.className.split(' ')[0],"
        "getComputedStyle(c).backgroundColor, c.firstElementChild.innerText,"
        "c.lastElementChild.textContent, c.firstElementChild.getAttribute('aria-hidden')])"
    )
    assert len(cells) == 30 * 15
    kinds = {kind: (colour, symbol) for kind, colour, symbol, _, _ in cells}
    shown = {"passed", "failed-0", "failed-3", "not_started", "missing", "unusable", "tampered"}
    assert shown <= kinds.keys()
    others = ("missing", "unusable", "open")
    assert len({colour for colour, _ in kinds.values()}) == len(kinds) - 1  # not graded: two kinds
    assert "rgba(0, 0, 0, 0)" not in {colour for colour, _ in kinds.values()}
    assert kinds["passed"][1] != kinds["failed-0"][1] != kinds["tampered"][1]
    for kind, _, _, words, hidden in cells:
        assert words.startswith(kind.split("-")[0].replace("_", " ")) or kind in others
        assert hidden == "true"
    assert browser.run(f"{table}.querySelectorAll('tbody th[scope=row]').length") == 30
    assert browser.run(f"{table}.querySelectorAll('thead th[scope=col]').length") == 15 + 3
    assert browser.run("[...document.querySelectorAll('.map')].every(t => t.caption)") is True


def test_a_name_leads_to_the_learner_s_page_and_a_task_to_its_failure(
    site: Site, browser: Browser
) -> None:
    resize(browser, 1280)
    browser.visit(f"{site.origin}/usual/class.html", "Tasks and learners")
    browser.click(".map tbody tr:nth-child(13) a")
    browser.wait_for("What was graded, and with what")
    assert browser.run("location.pathname") == "/usual/feedback/learner-13.html"
    assert "Learner 13" in browser.text()
    browser.click(".tasks a")
    assert browser.run("document.querySelector(':target').innerText").startswith("1.")


def test_a_long_name_takes_two_lines_of_the_map(site: Site, browser: Browser) -> None:
    resize(browser, 400)
    browser.visit(f"{site.origin}/hostile/class.html", "The class")
    sizes = browser.run(
        "[...document.querySelectorAll('.map tbody th')].map(h => h.getBoundingClientRect())"
        ".map(r => [r.width, r.height])"
    )
    assert max(width for width, _ in sizes) <= 200
    assert max(height for _, height in sizes) <= 70


def test_pages_can_be_printed(site: Site, browser: Browser) -> None:
    resize(browser, 1280)
    browser.visit(f"{site.origin}/usual/class.html", "The class")
    paper = browser.call("Page.printToPDF", landscape=True, preferCSSPageSize=True)
    assert paper["data"].startswith("JVBERi0")  # %PDF-
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert browser.run(
        "getComputedStyle(document.querySelector('.map td.passed')).printColorAdjust"
    )
    browser.call("Emulation.setEmulatedMedia", media="")
