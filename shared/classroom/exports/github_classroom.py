"""GitHub Classroom: what its autograding reporter reads, one file a learner.

Format: https://github.com/classroom-resources/autograding-grading-reporter (README.md, src/main.js,
src/notify-classroom.js), with the fields that the graders write, e.g.
https://github.com/classroom-resources/autograding-python-grader/blob/main/runner/data.py.

The reporter is told the ids of runners and finds, for each, the variable `<ID>_RESULTS`: the base64
of JSON with `version`, `status`, `max_score` and `tests`, each of which has `name`, `status`
("pass", "fail" or "error"), `score`, `message` and `line_no`. It reports the sum of the tests'
scores, and prints the share of tests that passed times `max_score`. The two agree when a runner
holds one test, so each task is a runner. In a workflow:

    - uses: classroom-resources/autograding-grading-reporter@v1
      env: <what this file has under "env">
      with: {runners: <what this file has under "runners">}

The reporter's output is a workflow's log, in which a line that begins with "::" is a command, one
of which sets the reported points. So no text here has a second line or such a mark.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from shared.classroom.records import ClassResult
from shared.classroom.text import encodable, one_line
from shared.classroom.verdicts import Labs, Verdict, verdicts

_STATUS = {"passed": "pass", "error": "error", "timed_out": "error", "not_graded": "error"}
_COMMANDS = re.compile(r":(?=:)|##(?=\[)")


def github_classroom_json(result: ClassResult, learner: str, labs: Labs) -> str:
    """The file's text: `runners`, `env`, and what is encoded in it, to be read, as `results`.

    A lab without a verdict has no runner, so nothing is reported for it.
    """
    results = {}
    for lab in result.labs:
        for verdict in verdicts(result.of(learner, lab), labs.get(lab)):
            results[_runner(verdict.id)] = _results(verdict)
    whole = {
        "runners": ",".join(results),
        "env": {f"{runner.upper()}_RESULTS": _encoded(found) for runner, found in results.items()},
        "results": results,
    }
    return json.dumps(encodable(whole), indent=1, ensure_ascii=False) + "\n"


def _runner(task: str) -> str:
    lab, _, number = task.partition(".")
    return "".join(c for c in f"lab{lab}task{number}" if c.isascii() and c.isalnum())


def _results(verdict: Verdict) -> dict[str, Any]:
    status = _STATUS.get(verdict.status, "fail")
    test = {
        "name": _in_a_log(f"{verdict.id} {verdict.title}"),
        "status": status,
        "message": "" if status == "pass" else _in_a_log(f"{verdict.word}. {verdict.text}"),
        "score": float(verdict.points),
        "line_no": 0,
        "test_code": "",
    }
    return {"version": 3, "status": status, "max_score": verdict.max_points, "tests": [test]}


def _in_a_log(text: str) -> str:
    return _COMMANDS.sub(lambda m: f"{m.group()} ", one_line(text, 1000))


def _encoded(results: dict[str, Any]) -> str:
    text = json.dumps(encodable(results), ensure_ascii=False)
    return base64.b64encode(text.encode()).decode()
