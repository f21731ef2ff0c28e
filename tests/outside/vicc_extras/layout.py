"""A data layout: files named SPLIT-CLASS-NUMBER.mp4 in one folder."""

from __future__ import annotations

from typing import ClassVar, Literal

from vicc_ray.data.layouts import Found, Source
from vicc_ray.errors import UserError


class Named:
    """train-jump-07.mp4 is a training video of class jump."""

    takes: ClassVar[Literal["folder", "file"]] = "folder"
    folds: ClassVar[tuple[int, ...]] = ()
    dataset: ClassVar[bool] = True

    def read(self, source: Source) -> Found:
        candidates = []
        for file in source.files.videos:
            words = file.inner.split("-")
            if len(words) != 3:
                raise UserError(f"{file.name}: is not named SPLIT-CLASS-NUMBER.mp4")
            candidates.append(file.candidate(words[1], words[0], None))
        return Found(candidates, "named", source.files.ignored())
