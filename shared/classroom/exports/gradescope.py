"""Gradescope: one `results.json` a learner, as an autograder would have written it.

Format: https://gradescope-autograders.readthedocs.io/en/latest/specs/#output-format. Each task is
a test case; all texts are of format "text", for Gradescope would render "html", "md" and "ansi",
and takes "simple_format", which is HTML, for the output at the top unless told otherwise.
"""

from __future__ import annotations

import json
from typing import Any

from shared.classroom.records import ClassResult
from shared.classroom.text import encodable, visible
from shared.classroom.verdicts import Labs, Verdict, lab_problems, score, verdicts


def gradescope_json(result: ClassResult, learner: str, labs: Labs) -> str:
    """The file's text for one learner.

    A task that is not graded is a test without a score or a status: a mere remark.
    """
    tests: list[dict[str, Any]] = []
    submission = result.submissions.get(learner)
    remarks = [visible(submission.problem, 600)] if submission and submission.problem else []
    points = 0
    for lab in result.labs:
        graded = result.of(learner, lab)
        points += score(graded) or 0
        remarks += [f"Lab {lab}: {text}" for text in lab_problems(result, learner, lab)]
        tests += [_test(lab, verdict) for verdict in verdicts(graded, labs.get(lab))]
    whole = {
        "score": float(points),
        "output": "\n".join(remarks),
        "output_format": "text",
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
        "extra_data": {"learner": learner, "domain": result.domain, "seed": result.seed},
    }
    return json.dumps(encodable(whole), indent=1, ensure_ascii=False) + "\n"


def _test(lab: int, verdict: Verdict) -> dict[str, Any]:
    test: dict[str, Any] = {
        "name": f"{verdict.id} {verdict.title}",
        "number": verdict.id,
        "output": verdict.text or verdict.word,
        "tags": [f"lab {lab}"],
        "visibility": "visible",
        "extra_data": {"status": verdict.status},
    }
    if verdict.status == "not_graded":
        return test | {"output": f"NOT GRADED. That is neither pass nor fail.\n{verdict.text}"}
    test["status"] = "passed" if verdict.status == "passed" else "failed"
    return test | {"score": float(verdict.points), "max_score": float(verdict.max_points)}
