"""Run a lab's checks, shape the feedback, keep the results."""
