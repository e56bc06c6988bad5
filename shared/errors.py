"""The one kind of error that is shown to a person as a sentence."""


class UserError(Exception):
    """Something a person can mend; the message says what happened and what to do."""
