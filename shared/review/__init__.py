"""`make review`: the reviewer's page on the learner's own approval.py (Lab 4, task 4.4)."""

from shared.review.demo import NOTE, load_approval, open_demo
from shared.review.page import Guard, make_page
from shared.review.serve import serve_review

__all__ = ["NOTE", "Guard", "load_approval", "make_page", "open_demo", "serve_review"]
