"""A metrics sink: a CSV file of figures in the run's folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

from vicc_ray.runs.sinks import SinkRun, figures_of


class CSV:
    """A line a figure: samples, stage/figure, value. `train.sinks.csv`: `file` (default figures.csv)."""

    def __init__(self, run: SinkRun, options: Mapping[str, Any]) -> None:
        self.file = (run.folder.path / options.get("file", "figures.csv")).open("a", newline="")
        self.writer = csv.writer(self.file)

    def add(self, record: Mapping[str, Any]) -> None:
        self.writer.writerows((record["samples"], name, value) for name, value in figures_of(record).items())
        self.file.flush()

    def close(self) -> None:
        self.file.close()
