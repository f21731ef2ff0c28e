"""What a person sees: rich on a terminal, plain lines elsewhere; everything else that a process prints goes to a log file."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text


class _Stream:
    """Where the console writes: the process's own output, or what stands in its place now (a notebook's cell, a test's buffer).

    Of the process's own output it is a copy, made with the first line, so that it still reaches the reader while `quiet` points
    the original at a log file.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self.descriptor = name, descriptor
        self._copy: TextIO | None = None

    @property
    def file(self) -> TextIO:
        """The file to write to."""
        now: TextIO = getattr(sys, self.name)
        # A live display puts a stand-in there that prints what others write: what the console writes must not come back to it.
        now = getattr(now, "rich_proxied_file", now)
        if now is not getattr(sys, f"__{self.name}__") or now is None:
            return now or sys.__stderr__ or open(os.devnull, "w", encoding="utf-8")
        if self._copy is None:
            self._copy = os.fdopen(os.dup(self.descriptor), "w", buffering=1, encoding="utf-8", errors="replace")
        return self._copy

    def write(self, text: str) -> int:
        """As of a file."""
        return self.file.write(text)

    def flush(self) -> None:
        """As of a file."""
        self.file.flush()

    def isatty(self) -> bool:
        """As of a file."""
        return self.file.isatty()

    def fileno(self) -> int:
        """As of a file."""
        return self.file.fileno()


_OUT, _ERR = _Stream("stdout", 1), _Stream("stderr", 2)
_TERMINAL = os.isatty(1)

# What a terminal obeys instead of showing: control characters but tab and line feed, and marks that turn the order of writing.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with `\\u001b` in place of an escape character, and so on: a name from outside moves no cursor and hides nothing.

    Inside JSON the result means the same as the text.
    """
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def json_text(value: Any) -> str:
    """A value of plain Python as indented JSON. What JSON has no number for (NaN, infinities) is null."""
    return json.dumps(_without_nan(value), indent=2, allow_nan=False, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Literal(Console):
    """Shows every text, of tables too, as it is: names of files, runs and classes are not this program's to interpret."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Of text that is not this program's own."""
        return super().render_str(printable(text), **settings)


# Tables in a log are not squeezed into a terminal that is not there.
console = _Literal(file=cast(TextIO, _OUT), soft_wrap=not _TERMINAL, width=None if _TERMINAL else 160)
errors = _Literal(file=cast(TextIO, _ERR), soft_wrap=True)


def scratch_log(verb: str) -> Path:
    """A log file of a verb that has no folder of its own to keep one in."""
    return Path(tempfile.gettempdir()) / f"vicc-{verb}-{os.getpid()}.log"


@contextmanager
def console_on_stderr(aside: bool = True) -> Iterator[None]:
    """Send the console's lines to standard error, so that standard output holds the result alone; only where `aside`."""
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
    _ = _OUT.file, _ERR.file  # copies of the originals, while these are still there
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
