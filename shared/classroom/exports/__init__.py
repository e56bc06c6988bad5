"""The gradebook in the forms that other platforms read: one module a platform.

Each module's docstring names the format's documentation. A lab that is not graded as a whole is
left without points everywhere: a platform would show a half verdict as the whole one.
"""

from shared.classroom.exports.canvas import canvas_csv, canvas_unmatched
from shared.classroom.exports.github_classroom import github_classroom_json
from shared.classroom.exports.gradescope import gradescope_json
from shared.classroom.exports.junit import junit_xml
from shared.classroom.exports.moodle import moodle_csv

__all__ = [
    "canvas_csv",
    "canvas_unmatched",
    "github_classroom_json",
    "gradescope_json",
    "junit_xml",
    "moodle_csv",
]
