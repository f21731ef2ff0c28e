#!/usr/bin/env bash
# tensorboardX 2.6.5: a writer that opens a folder in the second in which another did, on the same host, empties the other's file.
#
# The name of an event file is "events.out.tfevents.", the time in whole seconds, "." and the host's name; the file is opened
# for writing from its start. (The writers of TensorBoard and of PyTorch add the process's number and a counter to the name.)
# Two writers in one folder, one after the other: 100 points, close(), then the second opened. Seen:
#
#   opened        files   points of the first   points of the second
#   in a second       1                     0                    100
#   1.3 s apart       2                   100                    100
#
# No warning, no error. It happens where a stage of training is over within a second, and to two ranks of one machine that share
# a folder; where the first is still open its later points go into the middle of the second's file, which then loses some, too.
# (flush() does not prevent that: it flushes what the writer's thread has taken from its queue, and does not wait for the rest.)
# Give each writer a folder, or a `filename_suffix` of its own.
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check tensorboardX==2.6.5 tensorboard==2.20.0 'setuptools<81'
cat > "$work/try.py" <<'PYTHON'
import sys
import time
from collections import Counter
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboardX import SummaryWriter


def write(writer, tag):
    for step in range(100):
        writer.add_scalar(tag, 0.5, step)
    writer.close()


def points(folder, apart):
    """(files, points of the first writer, points of the second)."""
    time.sleep(1.0 - time.time() % 1.0)  # begin early in a second
    write(SummaryWriter(str(folder)), "first")
    time.sleep(apart)
    write(SummaryWriter(str(folder)), "second")
    files = list(folder.iterdir())
    found = Counter()
    for file in files:
        for event in EventFileLoader(str(file)).Load():
            found.update(value.tag for value in event.summary.value)
    return len(files), found["first"], found["second"]


root = Path(sys.argv[1])
seen = {name: points(root / name, apart) for name, apart in (("same", 0.0), ("apart", 1.3))}
for name, row in seen.items():
    print(name, *row)
sys.exit(seen != {"same": (1, 0, 100), "apart": (2, 100, 100)})
PYTHON
"$work/venv/bin/python" "$work/try.py" "$work/runs" 2>/dev/null && echo "as described: the second writer of a second empties the first's file"
