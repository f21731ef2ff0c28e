"""UCF101: class folders of `v_{Class}_gNN_cNN.avi`, and `trainlist0N.txt` / `testlist0N.txt` for its three folds.

Facts: https://www.crcv.ucf.edu/data/UCF101.php. Lines are `Class/v_x.avi 1` (train, with the class's number) and
`Class/v_x.avi` (test). Clips of one group of one class are cut from one source video.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from vicc_ray.data.layouts.candidates import Found, crossing_groups, examples, group_in_name, stem
from vicc_ray.data.layouts.contract import Source
from vicc_ray.data.layouts.official import (
    Line,
    Lists,
    SplitFiles,
    class_bases,
    class_of,
    find_split_files,
    no_such_fold,
    place_videos,
)
from vicc_ray.data.layouts.tree import File, Tree, read_text
from vicc_ray.errors import UserError

FOLDERS = ("splits_classification", "ucfTrainTestlist", "splits", "annotations")
_SPLIT_FILE = re.compile(r"(?:train|test)list0[123]\.txt")
CLASSES = "classInd.txt"
_LINE = re.compile(r"(.+?)(?:\s+\d+)?")


def find(tree: Tree) -> SplitFiles | None:
    """UCF101's split files, where there are some."""
    return find_split_files(tree, _SPLIT_FILE, FOLDERS, CLASSES)


def read_lists(tree: Tree, splits: SplitFiles, fold: int) -> Lists:
    """Both lists of a fold; `UserError` where one is not there."""
    wanted = {f"trainlist0{fold}.txt": "train", f"testlist0{fold}.txt": "query"}
    missing = [name for name in wanted if name not in splits.files]
    if missing:
        raise no_such_fold(tree.root, fold, missing, sorted(splits.files))
    lists = Lists()
    for name, split in wanted.items():
        for text in read_text(splits.files[name].name).splitlines():
            parsed = _LINE.fullmatch(text.strip())
            if parsed:
                video = parsed[1].replace("\\", "/")
                label = video.split("/")[-2] if "/" in video else None
                lists.add(stem(video), Line(video, split, label))
    return lists


def names(splits: SplitFiles) -> set[str]:
    """The videos that any fold names, without folder and extension."""
    texts = [read_text(file.name) for name, file in splits.files.items() if name != CLASSES]
    lines = [_LINE.fullmatch(line.strip()) for text in texts for line in text.splitlines()]
    return {stem(line[1].replace("\\", "/")) for line in lines if line}


def read(tree: Tree, fold: int | None) -> Found:
    """The data set with its official splits of a fold; None: all `train`, for a split rule to part."""
    splits = find(tree)
    if fold is not None and splits is None:
        raise UserError(
            f"{tree.root}: no split files of UCF101 (trainlist0{fold}.txt) below it or in {', '.join(FOLDERS)} next to "
            "it; put them there, or give a split rule"
        )
    lists = read_lists(tree, splits, fold) if splits and fold is not None else None
    candidates, notes = place_videos(tree, lists, _key, lambda file: group_in_name(file.inner))
    used = [file.name for file in splits.files.values()] if splits else []
    notes += crossing_groups(candidates, lambda c: (c.label, c.group))
    notes += tree.folders_without_videos(class_bases(tree), used)
    if splits:
        notes = splits.notes + notes + _absent_classes(tree, splits)
    return Found(candidates, "ucf101", tree.ignored(used), notes)


def _key(file: File) -> str:
    return stem(file.inner)


def _absent_classes(tree: Tree, splits: SplitFiles) -> list[str]:
    """Classes that `classInd.txt` (lines `1 Class`) names and no folder holds."""
    if CLASSES not in splits.files:
        return []
    named = [line.split()[-1] for line in read_text(splits.files[CLASSES].name).splitlines() if line.strip()]
    there = {(class_of(file) or "").lower() for file in tree.videos}
    absent = [name for name in named if name.lower() not in there]
    return (
        [f"classInd.txt names {len(absent)} classes (of {len(named)}) without videos: {examples(absent)}"]
        if absent
        else []
    )


class UCF101:
    """UCF101, with its three official splits."""

    takes: ClassVar[Literal["folder", "file"]] = "folder"
    folds: ClassVar[tuple[int, ...]] = (1, 2, 3)
    dataset: ClassVar[bool] = True

    def read(self, source: Source) -> Found:
        """As `DataLayout`."""
        return read(source.files, source.fold)
