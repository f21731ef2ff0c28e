"""vicc_ray: self-supervised video representation learning by cross-stream prototypes (ViCC), distributed with Ray.

>>> import vicc_ray
>>> run = vicc_ray.load("runs/mine")  # or a .safetensors file, or a published .pth.tar   # doctest: +SKIP
>>> run.encoder("RGB-2").embed("cat.mp4").shape  # doctest: +SKIP
(1024,)

`load`, `index`, `train` and `evaluate` are the verbs of the command line as functions; see `vicc_ray.api`. Nothing heavy is
imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vicc_ray.api import Encoder, Run, evaluate, index, load, train

try:
    __version__ = version("vicc-ray")
except PackageNotFoundError:  # used from a folder on PYTHONPATH
    __version__ = "0+unknown"

__all__ = ["Encoder", "Run", "__version__", "evaluate", "index", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("vicc_ray.api"), name)
    raise AttributeError(f"module 'vicc_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
