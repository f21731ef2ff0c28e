"""What names from outside can do to a terminal: nothing. They are shown as they are, and no code in them is obeyed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from vicc_ray.cluster.progress import progress_bar
from vicc_ray.console import console, errors, printable

HOSTILE = "[red]a[/x] :smile:\x1b[31m\x1b]0;t\x07\x9b2J\u202egpj"
SHOWN = "[red]a[/x] :smile:\\u001b[31m\\u001b]0;t\\u0007\\u009b2J\\u202egpj"


@pytest.mark.parametrize("target", [console, errors])
def test_names_are_shown_literally_wherever_they_stand(target: type(console)) -> None:  # type: ignore[valid-type]
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    with target.capture() as shown:
        target.print(HOSTILE)
        target.print(table)
    assert shown.get().count(SHOWN) == 4
    assert not set(shown.get()) & set("\x1b\x07\x9b\u202e")


def test_a_progress_bar_takes_no_markup() -> None:
    bar = progress_bar()
    bar.add_task("[/x]", total=3, note="[/y]")
    with console.capture() as shown:
        console.print(bar.get_renderable(), width=200)
    assert "[/x]" in shown.get() and "[/y]" in shown.get()


def test_lines_and_tabs_stay_and_json_means_the_same() -> None:
    assert printable("a\tb\nc größe 視頻") == "a\tb\nc größe 視頻"
    assert json.loads(printable(json.dumps({"name": HOSTILE}, ensure_ascii=False))) == {"name": HOSTILE}


@pytest.mark.parametrize("words", [["status", "{}"], ["preview", "{}"], ["status", "a", "{}"], ["{}"]])
def test_no_verb_prints_codes_of_a_name(words: list[str], tmp_path: Path) -> None:
    """Its own complaints and those about the command's words."""
    words = [word.format("no\x1b[31m[/x]") for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "vicc_ray.cli", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    told = done.stdout + done.stderr
    assert "\x1b" not in told
    assert "[/x]" in told  # older typer takes the code out, newer ones the escape alone


def test_what_stands_in_the_place_of_standard_output_gets_the_lines() -> None:
    """A notebook's cell, for one: its kernel puts an object of its own there, and descriptor 1 leads elsewhere."""
    code = (
        "import io, sys\nfrom vicc_ray.console import console, errors, quiet\n"
        "import pathlib, tempfile\n"
        "console.print('before')\n"
        "cell, sys.stdout = sys.stdout, io.StringIO()\n"
        "console.print('in the cell')\n"
        "with quiet(pathlib.Path(tempfile.mkdtemp()) / 'log'):\n    console.print('while it is quiet')\n"
        "text, sys.stdout = sys.stdout.getvalue(), cell\n"
        "assert text == 'in the cell\\nwhile it is quiet\\n', text\n"
        "with quiet(pathlib.Path(tempfile.mkdtemp()) / 'log'):\n    console.print('after'); print('to the log')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "before\nafter\n"), done.stderr


def test_a_live_display_of_several_lines_ends_on_a_terminal() -> None:
    """It stands in for standard output; the console's own lines came back to it, without end, as soon as it had two."""
    code = (
        "from rich.live import Live\nfrom rich.text import Text\nfrom vicc_ray.console import console\n"
        "with Live(console=console, auto_refresh=False) as live:\n"
        "    live.update(Text('first\\nsecond\\nthird'), refresh=True)\n    console.print('between')\n    print('by print')\n"
    )
    main, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=terminal, stderr=terminal)
    os.close(terminal)
    try:
        assert process.wait(60) == 0
        told = os.read(main, 65536).decode()
    finally:
        process.kill()
        os.close(main)
    assert told.count("between") == 1 == told.count("by print") and "third" in told
