"""What a person sees: rich on a terminal, plain lines elsewhere; everything else that a process prints goes to a log file."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

# Copies of the process's own output streams, so that they still reach the reader while `quiet` points the originals
# at a log file.
_OUT = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")
_ERR = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
_TERMINAL = _OUT.isatty()

# Tables in a log are not squeezed into a terminal that is not there.
console = Console(file=_OUT, highlight=False, emoji=False, soft_wrap=not _TERMINAL, width=None if _TERMINAL else 160)
errors = Console(file=_ERR, highlight=False, soft_wrap=True, emoji=False)


def scratch_log(verb: str) -> Path:
    """A log file of a verb that has no folder of its own to keep one in."""
    return Path(tempfile.gettempdir()) / f"vicc-{verb}-{os.getpid()}.log"


@contextmanager
def told_aside(aside: bool = True) -> Iterator[None]:
    """What is told on the way goes to standard error, so that standard output holds the result alone; not unless `aside`."""
    before = console.file
    console.file = errors.file if aside else before
    try:
        yield
    finally:
        console.file = before


@contextmanager
def quiet(log: Path, verbose: bool = False) -> Iterator[None]:
    """Send standard output and error of this process, native code included, to the end of a log file.

    `console` and `errors` keep reaching the reader. With `verbose` nothing is redirected.
    """
    if verbose:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in zip((1, 2), saved, strict=True):
            os.dup2(original, number)
            os.close(original)
        os.close(target)
