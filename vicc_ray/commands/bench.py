"""`vicc bench`: the project's benchmarks, which live beside the package in a checkout and are not installed with it."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from vicc_ray.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]


def load_benchmarks(checkout: Path = CHECKOUT) -> ModuleType:
    """The package `benchmarks` of a checkout, which Ray's processes on this machine find too; UserError where there is none."""
    if not (checkout / "benchmarks" / "__init__.py").is_file():
        raise UserError(
            "vicc bench: needs a checkout of the project, as benchmarks are not installed with the package; clone the "
            "repository, run 'make setup' there, then .venv/bin/vicc bench"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])])
    return import_module("benchmarks")
