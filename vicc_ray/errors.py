"""The exceptions that are meant for the reader, printed as one line without a traceback, and Ctrl-C from a signal."""

from __future__ import annotations

import signal


class UserError(Exception):
    """The request cannot be carried out; the message says which file or field, what came, what is allowed, what to do.

    The command line prints it as one line without a traceback and exits with status 2.
    """


class Interrupted(Exception):
    """The reader stopped a verb; the message says how to go on. The command line exits with status 130."""


def interrupt() -> None:
    """As if Ctrl-C were pressed now; for the main thread, which signal handlers run in.

    A shell's script makes what it puts into the background deaf to SIGINT. A SIGTERM that ends in one is meant all the same.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
