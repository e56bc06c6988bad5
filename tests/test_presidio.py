"""Presidio reads texts without a language model, and asks nobody on the network."""

from __future__ import annotations

import socket

import pytest
from presidio_analyzer.predefined_recognizers import EmailRecognizer

from shared.assistant.presidio import pattern_analyzer


def test_an_address_is_found_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something asked the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    text = "Write to desk@bank.example.com, not to desk@bank.nowhere-at-all."
    found = pattern_analyzer([EmailRecognizer()]).analyze(text, language="en")
    assert [text[f.start : f.end] for f in found] == ["desk@bank.example.com"]


def test_without_a_recognizer_there_is_no_analyzer() -> None:
    with pytest.raises(ValueError, match="at least one recognizer"):
        pattern_analyzer([])
