"""RAGAS's own metrics that need no model, for one ranking."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Mapping, Sequence
from unittest.mock import MagicMock, patch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ragas import SingleTurnSample
    from ragas.metrics import (
        IDBasedContextPrecision,
        IDBasedContextRecall,
        NonLLMContextPrecisionWithReference,
        NonLLMContextRecall,
        base,
    )

SAME_TEXT = 0.99
"""Above it only a text itself: the most alike of two documents are 0.988 alike."""


def ragas_numbers(
    ranking: Sequence[str], relevant: Sequence[str], texts: Mapping[str, str] | None = None
) -> dict[str, float]:
    """RAGAS's numbers by the name of its metric; those that compare texts only with `texts`."""
    logging.getLogger("ragas").setLevel(logging.ERROR)
    by_id = SingleTurnSample(
        retrieved_context_ids=list(ranking), reference_context_ids=list(relevant)
    )
    jobs = [(IDBasedContextPrecision(), by_id), (IDBasedContextRecall(), by_id)]
    if texts is not None:
        by_text = SingleTurnSample(
            retrieved_contexts=[texts[i] for i in ranking],
            reference_contexts=[texts[i] for i in relevant],
        )
        jobs += [
            (NonLLMContextPrecisionWithReference(threshold=SAME_TEXT), by_text),
            (NonLLMContextRecall(threshold=SAME_TEXT), by_text),
        ]

    async def scored() -> dict[str, float]:
        return {type(m).__name__: float(await m.single_turn_ascore(sample)) for m, sample in jobs}

    # Told not to track, RAGAS still counts, and writes an id of this machine below the home.
    with patch.multiple(base, EvaluationEvent=MagicMock(), _analytics_batcher=MagicMock()):
        return asyncio.run(scored())
