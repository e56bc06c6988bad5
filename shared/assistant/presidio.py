"""Presidio without a language model and without the network.

Presidio's default engine downloads a spaCy model, and its e-mail recognizer asks publicsuffix.org
for the list of top-level domains. Here texts are read by recognizers alone, and the list is the one
that tldextract carries.
"""

from __future__ import annotations

from collections.abc import Sequence

import tldextract.tldextract
from presidio_analyzer import AnalyzerEngine, EntityRecognizer, RecognizerRegistry
from presidio_analyzer.nlp_engine import NoOpNlpEngine

tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())


def pattern_analyzer(recognizers: Sequence[EntityRecognizer]) -> AnalyzerEngine:
    """An English analyzer of these recognizers and no others.

        pattern_analyzer([...]).analyze(text, language="en")

    No word is tagged, so no context word in the text raises a score.

    Raises:
        ValueError: there is no recognizer (Presidio would then load all of its own).
    """
    if not recognizers:
        raise ValueError("an analyzer needs at least one recognizer")
    engine = NoOpNlpEngine([{"lang_code": "en", "model_name": ""}])
    return AnalyzerEngine(registry=RecognizerRegistry(list(recognizers)), nlp_engine=engine)
