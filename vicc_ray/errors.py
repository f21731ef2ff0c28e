"""The exceptions that are meant for the reader, told in one line and without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What was asked cannot be done; the message says which file or field, what came, what is allowed, what to do.

    The command line prints it as one line without a traceback and exits with status 2.
    """


class Interrupted(Exception):
    """The reader stopped a verb; the message says how to go on. The command line exits with status 130."""
