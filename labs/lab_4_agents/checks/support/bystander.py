"""A program that uses CrewAI in the plainest way: imports it, runs a flow, ends.

python bystander.py LOG: what it does to the network is in LOG afterwards. It prints whether
OpenTelemetry records spans.
"""

from __future__ import annotations

import sys

from guard import end_at_first_step

end_at_first_step(sys.argv[1])

from crewai.flow.flow import Flow, start  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from pydantic import PrivateAttr  # noqa: E402


class Bystander(Flow):  # type: ignore[type-arg]
    """A flow of one step."""

    _skip_auto_memory: bool = PrivateAttr(default=True)

    @start()
    def begin(self) -> str:
        """The step."""
        return "done"


Bystander(suppress_flow_events=True).kickoff()
recording = TracerProvider().get_tracer("lab").start_span("own").is_recording()
print("spans are recorded" if recording else "spans are lost")
