"""A build of the project as a user has it: a checkout with its own virtual environment, driven by its command line only."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vicc_ray.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Product:
    """A checkout's folder and the folder of its commands. No module of it is ever imported by who measures it."""

    folder: Path
    commands: Path

    @classmethod
    def at(cls, folder: Path) -> Product:
        """The product of a checkout that is set up; UserError where it is not."""
        product = cls(folder, folder / ".venv" / "bin")
        if not product.vicc.exists():
            raise UserError(f"{folder}: is not set up; run 'make setup' there")
        return product

    @property
    def vicc(self) -> Path:
        """Its `vicc`."""
        return self.commands / "vicc"

    @property
    def ray(self) -> Path:
        """Its `ray`."""
        return self.commands / "ray"

    def environment(self) -> dict[str, str]:
        """For its processes: its own commands come first and no cluster is named; another checkout gets none of our modules."""
        ours = () if self.folder == CHECKOUT else ("PYTHONPATH", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", *ours)}
        return kept | {"PATH": os.pathsep.join([str(self.commands), *filter(None, [kept.get("PATH")])])}

    def run(self, *arguments: str) -> str:
        """What `vicc` prints on standard output; RuntimeError with its words where it fails."""
        done = subprocess.run([str(self.vicc), *arguments], env=self.environment(), capture_output=True, text=True)
        if done.returncode:
            words = f"{done.stdout}{done.stderr}"[-3000:]
            raise RuntimeError(f"{self.folder}: vicc {' '.join(arguments)}: status {done.returncode}\n{words}")
        return done.stdout


def this_checkout() -> Product:
    """The checkout that this file is part of, with the commands beside the Python that runs."""
    return Product(CHECKOUT, Path(sys.executable).parent)
