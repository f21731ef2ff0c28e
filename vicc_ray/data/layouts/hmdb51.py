"""HMDB51: class folders of `{film}_{class}_{attributes}_{n}.avi`, and one split file a class and fold.

Facts: the README of `test_train_splits.rar`. `{class}_test_splitN.txt` has lines `name.avi 0|1|2`: 1 is training, 2 is
test, 0 is not used. Clips of one film belong together.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from vicc_ray.data.layouts.candidates import UNUSED, Found, crossing_groups, examples, stem
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

FOLDERS = ("split/testTrainMulti_7030_splits", "testTrainMulti_7030_splits", "splits", "split", "test_train_splits")
_SPLIT_FILE = re.compile(r"(.+)_test_split([123])\.txt")
_LINE = re.compile(r"(.+?)\s+([012])")
_SPLITS = {"0": UNUSED, "1": "train", "2": "query"}
# Visible body part, camera motion, people, viewpoint, quality, number: what follows the class in a name.
_ATTRIBUTES = re.compile(r"(.+)_[fhlu]_(?:cm|nm)_np\d_(?:ba|fr|le|ri)_(?:bad|med|goo)_\d+")


def find(tree: Tree) -> SplitFiles | None:
    """HMDB51's split files, where there are some."""
    return find_split_files(tree, _SPLIT_FILE, FOLDERS)


def read_lists(tree: Tree, splits: SplitFiles, fold: int) -> Lists:
    """The lists of all classes of a fold; `UserError` where there is none, or for a line that cannot be read."""
    lists = Lists()
    for name, file in sorted(splits.files.items()):
        parsed = _SPLIT_FILE.fullmatch(name)
        if parsed and parsed[2] == str(fold):
            _read_class(lists, parsed[1], file)
    if not lists.lines:
        raise no_such_fold(tree.root, fold, [f"CLASS_test_split{fold}.txt"], sorted(splits.files))
    return lists


def _read_class(lists: Lists, label: str, file: File) -> None:
    for number, text in enumerate(read_text(file.name).splitlines(), 1):
        if not text.strip():
            continue
        parsed = _LINE.fullmatch(text.strip())
        if not parsed:
            raise UserError(f"{file.name}: line {number} is '{text.strip()[:80]}'; a line is 'NAME.avi 0|1|2'")
        lists.add(f"{label}/{stem(parsed[1])}", Line(f"{label}/{parsed[1]}", _SPLITS[parsed[2]], label))


def names(splits: SplitFiles) -> set[str]:
    """The videos that any fold names, without extension."""
    texts = [read_text(file.name) for file in splits.files.values()]
    lines = [_LINE.fullmatch(line.strip()) for text in texts for line in text.splitlines()]
    return {stem(line[1]) for line in lines if line}


def read(tree: Tree, fold: int | None) -> Found:
    """The data set with its official splits of a fold; None: all `train`, for a split rule to part."""
    splits = find(tree)
    if fold is not None and splits is None:
        raise UserError(
            f"{tree.root}: no split files of HMDB51 (CLASS_test_split{fold}.txt) below it or in {', '.join(FOLDERS)} "
            "next to it; put them there, or give a split rule"
        )
    lists = read_lists(tree, splits, fold) if splits and fold is not None else None
    candidates, notes = place_videos(tree, lists, _key, _film)
    used = [file.name for file in splits.files.values()] if splits else []
    nameless = [file.inner for file in tree.videos if _film(file) is None]
    if nameless:
        notes.append(f"{len(nameless)} videos whose name does not give their film have no group: {examples(nameless)}")
    notes += crossing_groups(candidates, lambda c: c.group)
    notes += tree.folders_without_videos(class_bases(tree), used)
    return Found(candidates, "hmdb51", tree.ignored(used), [*(splits.notes if splits else []), *notes])


def _key(file: File) -> str:
    return f"{class_of(file)}/{stem(file.inner)}"


def _film(file: File) -> str | None:
    """The film of a clip: its name up to the class, or up to the attributes where it names another class."""
    name = stem(file.inner)
    film = name.rpartition(f"_{class_of(file)}_")[0]
    other = _ATTRIBUTES.fullmatch(name)
    return film or (other[1] if other else None)


class HMDB51:
    """HMDB51, with its three official splits."""

    takes: ClassVar[Literal["folder", "file"]] = "folder"
    folds: ClassVar[tuple[int, ...]] = (1, 2, 3)
    dataset: ClassVar[bool] = True

    def read(self, source: Source) -> Found:
        """As `DataLayout`."""
        return read(source.files, source.fold)
