"""What a data layout is: how the names of videos, folders and tables say which video has which label, group and split.

One of your own is a class with this interface, named on the command line (`vicc index SOURCE --layout package.module:Name`) or
given by an installed package (entry points `vicc_ray.layouts`). See docs/extending.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from vicc_ray.data.layouts.candidates import Found
from vicc_ray.data.layouts.tree import Tree


@dataclass(frozen=True)
class Source:
    """What is being indexed.

    Attributes:
        name: absolute path or URI of the folder or file.
        tree: all files below a folder, listed once; None for a file.
        fold: the official split to read; None where a split rule replaces all splits.
    """

    name: str
    tree: Tree | None
    fold: int | None

    @property
    def files(self) -> Tree:
        """The files of a folder."""
        assert self.tree is not None  # a layout that takes folders is given one
        return self.tree


class DataLayout(Protocol):
    """One layout.

    Attributes:
        takes: whether it reads a folder or a single file (a table, a list).
        folds: numbers of the official splits that it has; () for none.
        dataset: whether it is one data set's own, whose results are named after it.
    """

    takes: ClassVar[Literal["folder", "file"]]
    folds: ClassVar[tuple[int, ...]]
    dataset: ClassVar[bool]

    def read(self, source: Source) -> Found:
        """The videos of a source, unopened; UserError where it is of another layout or contradicts itself."""
        ...
