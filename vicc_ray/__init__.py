"""vicc_ray: self-supervised video representation learning by cross-stream prototypes (ViCC), distributed with Ray.

>>> import vicc_ray
>>> run = vicc_ray.load("runs/mine")  # or a .safetensors file, or a published .pth.tar   # doctest: +SKIP
>>> run.encoder("RGB-2").embed("cat.mp4").shape  # doctest: +SKIP
(1024,)
>>> vicc_ray.search("archive", "cat.mp4@12.5-15", k=5)  # doctest: +SKIP

`load`, `index`, `train`, `embed`, `search` and `evaluate` are the verbs of the command line as functions; see `vicc_ray.api`.
Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vicc_ray.api import Encoder, Run, embed, evaluate, index, load, train
    from vicc_ray.archive.search import search

try:
    __version__ = version("vicc-ray")
except PackageNotFoundError:  # used from a folder on PYTHONPATH
    __version__ = "0+unknown"

__all__ = ["Encoder", "Run", "__version__", "embed", "evaluate", "index", "load", "search", "train"]


def __getattr__(name: str) -> Any:
    if name == "search":  # needs no torch where an id is searched for
        return import_module("vicc_ray.archive.search").search
    if name in __all__:
        return getattr(import_module("vicc_ray.api"), name)
    raise AttributeError(f"module 'vicc_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
