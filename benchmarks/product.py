"""A build of the project as a user has it: a checkout with its own virtual environment, driven by its command line only."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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

    def start(self, command: Sequence[str], log: IO[bytes], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a command of it, from its own folder: Ray lets workers import from the folder that their driver was started in."""
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=self.folder)

    def run(self, *arguments: str) -> str:
        """What `vicc` prints, run to its end; RuntimeError with its words where it fails."""
        with tempfile.TemporaryFile() as log:
            status = self.start([str(self.vicc), *arguments], log, self.environment()).wait()
            log.seek(0)
            words = log.read().decode(errors="replace")
        if status:
            raise RuntimeError(f"{self.folder}: vicc {' '.join(arguments)}: status {status}\n{words[-3000:]}")
        return words


def this_checkout() -> Product:
    """The checkout that this file is part of, with the commands beside the Python that runs."""
    return Product(CHECKOUT, Path(sys.executable).parent)
