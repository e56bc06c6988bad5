"""The gate in front of a release: decide from a load test's records whether a server may go out.

A gate is wrong in two ways. It lets a bad server through, or it stops a good one; a team that is
stopped for nothing learns to go around the gate. And where the records show neither, the honest
answer is to ask for more of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from records import SLO, RequestRecord

Verdict = Literal["release", "block", "need_more_data"]


@dataclass(frozen=True, slots=True)
class Promise:
    """What a service promises about its requests, taken together.

    An answer is *whole* if its record is `ok`, its finish reason is one of
    `slo.finish_reasons`, and it holds at least one output token. Any other answer has *failed*.
    Each share is one of all requests that were due, failed ones included.

    The promise is kept where all of this holds:

    * at least `ttft_share` of the requests get their first token within `slo.ttft_s` of when
      they were due: in the run as a whole, and among the last quarter of the requests alone,
      because production goes on from where the run ended;
    * at least `latency_share` of the requests get a whole answer within `slo.latency_s` of when
      they were due;
    * at least `whole_share` of the requests get a whole answer, however late;
    * among any `outage_window` requests that were due one after the other, at most
      `outage_failures` fail.
    """

    slo: SLO
    ttft_share: float = 0.95
    latency_share: float = 0.99
    whole_share: float = 0.99
    outage_window: int = 20
    outage_failures: int = 5


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and what it rests on.

    Attributes:
        verdict: ``"release"``, ``"block"`` or ``"need_more_data"``.
        reasons: one sentence each, for the person who has to act on it. May be empty for
            ``"release"`` only.
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def decide(records: Sequence[RequestRecord], promise: Promise) -> Decision:
    """Decide whether the server behind these records may be released.

    ``"release"`` says that the records show the promise kept, ``"block"`` that they show it
    broken, ``"need_more_data"`` that they show neither. The rule between is yours. It is graded
    on servers that you have not seen, many good ones and many of each bad kind:

    * A good server keeps each part of the promise with room to spare: of what may be late or
      fail, at most a quarter does. But single late and failed requests are in every long run.
    * A bad server breaks at least one part plainly: two and a half times as many requests are
      late or fail as may, or more, or an outage goes beyond `outage_failures`. Often that one
      part is all that is wrong with it.
    * Let ``a`` be the smallest share that may go wrong, that is, one less the largest of the
      three shares. A run of ``10 / a`` requests or more is enough to decide. A run of fewer than
      ``1 / a`` cannot show that the promise is kept, and one late or failed request in it does
      not show that it is broken; a plain breach may be blocked even there.

    Args:
        records: one for each request that was due, in no particular order. They may be few, or
            none at all: that is ``"need_more_data"``, not an error.
        promise: what the service promises. Its shares and limits differ from server to server.
    """
    raise NotImplementedError("Task 1.7: write decide")
