"""What a tool may answer instead of a result."""

from __future__ import annotations


class ToolError(Exception):
    """A tool call gave no result."""


class TransientError(ToolError):
    """The connection broke. Whether the call had its effect is unknown."""


class CallTimeout(TransientError):
    """No answer came within `timeout_s`. Whether the call had its effect is unknown."""


class PermanentError(ToolError):
    """Nothing was done, and the same call will never work."""


class NotFound(PermanentError):
    """There is no such customer or item, or the item is somebody else's."""


class Refused(PermanentError):
    """A rule of the business forbids it; the message says which."""


class KeyReused(PermanentError):
    """The idempotency key was used before, for another call."""
