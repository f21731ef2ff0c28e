"""Records tests/data/tiny_curve.json anew: python tests/record_curve.py. For a change that is meant to change what is learnt."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from test_run import CURVES, RECORDED, recorded_curve
from tiny import tiny_manifest


def main() -> None:
    """Write the losses of the tiny run under each optimiser."""
    with tempfile.TemporaryDirectory() as folder:
        videos = tiny_manifest(Path(folder) / "videos")
        curves = {
            name: {
                step: round(loss, 6)
                for step, loss in recorded_curve(name, videos, Path(folder) / name).items()
                if step <= steps
            }
            for name, steps in CURVES.items()
        }
    RECORDED.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
