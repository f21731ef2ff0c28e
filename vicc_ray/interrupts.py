"""SIGTERM as Ctrl-C: one polite end, wherever it comes from."""

from __future__ import annotations

import signal


def interrupt() -> None:
    """As if Ctrl-C were pressed now; for the main thread, which signal handlers run in.

    A shell's script makes what it puts into the background deaf to SIGINT. A SIGTERM that ends in one is meant all the same.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
