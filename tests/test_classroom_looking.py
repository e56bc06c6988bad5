"""The look at what was handed in: which words are named, and who is told."""

from __future__ import annotations

import pytest

from shared.classroom.collect import collect
from shared.classroom.looking import look, words_in
from shared.grading.lab import all_labs
from tests.classroom_attacks import HONEST

MEANT = {
    "import sys\nf = sys._getframe(1)": "sys._getframe",
    "from sys import _getframe as g": "sys._getframe",
    "import inspect\ninspect.currentframe().f_back": "inspect.currentframe",
    "import inspect\ninspect.stack()": "inspect.stack",
    "import sys as s\ns.modules['x']": "sys.modules",
    "from sys import modules": "sys.modules",
    "import sys\ngetattr(sys, 'modules')": "sys.modules",
    "import sys\ngetattr(sys, chr(109))": "getattr(sys, …)",
    "import sys\ngetattr(sys, '_getframe')": "sys._getframe",
    "import sys\nsys.__dict__": "sys.__dict__",
    "e.__traceback__.tb_frame": "tb_frame",
    "import gc\ngc.get_objects()": "gc.get_objects",
    "from gc import get_referrers": "gc.get_referrers",
    "f.__kwdefaults__['more'] = 1": "f.__kwdefaults__",
    "import ctypes": "ctypes",
    "object.__subclasses__()": "object.__subclasses__",
    "f.__code__ = g.__code__": "f.__code__",
    "import threading\nthreading.settrace(f)": "threading.settrace",
    "import support.alerts as a": "support.alerts",
    "from support import alerts": "support.alerts",
    "import test_drift_statistics": "test_drift_statistics",
    "from importlib import import_module\nimport_module(name)": "import_module",
    "__import__('support.alerts')": "__import__",
    "exec(text)": "exec",
}


@pytest.mark.parametrize("source", MEANT)
def test_a_word_that_leads_to_the_checks_is_named(source: str) -> None:
    assert MEANT[source] in [word for _, word in words_in(source.encode())]


@pytest.mark.parametrize(
    "source",
    [
        HONEST,
        "import re\nre.compile('x')",
        "from re import compile\ncompile('x')",
        "model.eval()",
        "import gc\ngc.collect()",
        "import sys\nsys.path, sys.exit, sys.stderr",
        "import importlib.util\nimportlib.util.find_spec('torch')",
        "from importlib import import_module\nimport_module('torch')",
        "kind = 'support'",
        "support = modules = stack = 1",
        "# sys._getframe and sys.modules",
        "self.stack.append(1)",
        "not python (",
        "\0",
    ],
)
def test_what_honest_code_says_is_not_named(source: str) -> None:
    assert words_in(source.encode()) == []


def test_nothing_that_the_labs_hand_out_or_expect_is_named() -> None:
    for lab in all_labs():
        for folder in ("starter", "solution", "variants", "drafts"):
            for path in (lab.folder / folder).rglob("*.py"):
                assert words_in(path.read_bytes()) == [], path


def test_one_note_names_the_first_places_and_counts_the_rest() -> None:
    (note,) = look({"a.py": b"import ctypes\n" * 30}, 2)
    assert (note.lab, note.private) == (2, True)
    assert note.text.startswith("a.py, line 1: ctypes; a.py, line 2: ctypes;")
    assert "; and 22 more." in note.text


def test_a_hand_in_is_looked_at_when_it_is_collected(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("submissions")
    lab = next(lab for lab in all_labs() if lab.number == 2)
    starter = folder / "ada" / "labs" / lab.folder.name / "starter"
    starter.mkdir(parents=True)
    (starter / lab.tasks[0].file).write_text("import sys\n\nsys.modules\n", encoding="utf-8")
    (one,) = collect(folder, tmp_path_factory.mktemp("into") / "into")
    assert [(n.kind, n.lab, n.private) for n in one.notes] == [("look at this", 2, True)]
    assert f"{lab.tasks[0].file}, line 3: sys.modules" in one.notes[0].text
