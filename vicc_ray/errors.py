"""The one exception that is meant for the reader: a mistake in what was asked, told in one line."""

from __future__ import annotations


class UserError(Exception):
    """What was asked cannot be done; the message says which file or field, what came, what is allowed, what to do.

    The command line prints it as one line without a traceback and exits with status 2.
    """
