"""Split folders and class folders: `train/jump/a.mp4`, `jump/test/b.mp4`, or an unlabelled `test/` beside class folders.

A folder is a split's by its name (`split_in_name`). What its place says is decided by `arrange`, which refuses where a
person would not know either.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from vicc_ray.data.layouts.candidates import UNUSED, Candidate, crossing_groups, examples, group_in_name, shown
from vicc_ray.data.layouts.official import VIDEO_FOLDERS
from vicc_ray.data.layouts.tree import File, Tree
from vicc_ray.errors import UserError

# The word that makes a name a split's -> the split.
WORDS = {
    **{"train": "train", "val": "query", "validate": "query", "validation": "query", "test": "query"},
    **{"training": "train", "trainval": "train", "gallery": "train"},
    **{"valid": "query", "testing": "query", "eval": "query", "evaluation": "query"},
    **{"dev": "query", "holdout": "query", "query": "query"},
}
# Words that are too short or too rare to be a split's unless --layout splits says so, or both sides hold the same folders.
_RARE = {
    **{"tr": "train", "trn": "train", "trainings": "train", "trains": "train"},
    **{"te": "query", "tst": "query", "tests": "query", "vals": "query"},
}
# Words that may stand beside it: `train_set`, `videos_val`, `Test-Data`; numbers may too: `train_256`.
_FILLERS = {
    "set",
    "split",
    "data",
    "dataset",
    "video",
    "videos",
    "clip",
    "clips",
    "folder",
    "rgb",
    "resized",
    "full",
    "fps",
}
_FUSED = re.compile(f"({'|'.join(sorted(WORDS, key=len, reverse=True))})(?:{'|'.join(sorted(_FILLERS))})")
_NUMBER = re.compile(r"\d+(?:[px]\d*)?")
_COUNTED = re.compile(r"[A-Za-z]{0,8}[ _-]?\d+")
_FOLD = re.compile(r"(?:split|fold|cv)[ _-]*\d+", re.IGNORECASE)


def split_in_name(name: str) -> tuple[str, str] | None:
    """(split, what else the name says) of a name with just one word of a split: `Train_Set` -> (train, ""), else None.

    What else it says is empty for certain names, else it wants a sibling that says the same of another split
    (`mydata-train` beside `mydata-test`; the class `training dog` has none).
    """
    words = _words(name)
    found = [word for word in words if word in WORDS]
    if len(found) != 1:
        return None
    rest = (word for word in words if word not in WORDS and word not in _FILLERS and not _NUMBER.fullmatch(word))
    return WORDS[found[0]], " ".join(rest)


def loose_split(name: str) -> str | None:
    """The split of a name that has words of one, whatever else it says: `A_train`, `test_seen`, `tr`; else None.

    Training and validation in one (`train_val`) is training; `train_test` is none.
    """
    words = [word for word in _words(name) if word in WORDS or word in _RARE]
    kinds = {(WORDS | _RARE)[word] for word in words}
    if kinds == {"train", "query"} and set(words) & {"val", "valid", "validation", "vals"} and "test" not in words:
        return "train"
    return kinds.pop() if len(kinds) == 1 else None


def _words(name: str) -> list[str]:
    """`TrainSet_256` -> train, set, 256."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W_\d]+|\d+[px]?\d*", parted.lower())
    return [parsed[1] if (parsed := _FUSED.fullmatch(word)) else word for word in words]


def split_word(name: str) -> str:
    """The first word of a name that is one of a split's (a key of `WORDS`), or an empty one."""
    return next((word for word in _words(name) if word in WORDS), "")


@dataclass(frozen=True)
class SplitFolders:
    """The folders of a tree that are splits', none in another.

    splits: folder below the root -> its split. unpacked: those that hold just a folder of their own split's name, which
    holds the classes. unsure: those that do, where it may as well be a class without further folders.
    """

    splits: dict[str, str]
    unpacked: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()

    def of(self, file: File) -> str | None:
        """The one that holds a file."""
        return next((folder for folder in _above(file.inner) if folder in self.splits), None)

    def class_of(self, file: File) -> str | None:
        """The folder between a split's and the video, if any: the class of `train/jump/a.mp4`.

        That is not `train/videos/`, nor `train/train/` where an archive was unpacked into a folder of its name
        (`_unpacked`).
        """
        folder = self.of(file)
        inner = file.inner[len(folder or "") + 1 :].split("/")[:-1]
        if folder is None or not inner:
            return None
        skipped = folder in self.unpacked or inner[0].lower() in VIDEO_FOLDERS
        classes = inner[1:] if skipped else inner
        return classes[0] if classes else None

    def notes(self) -> list[str]:
        """The other reading of a class that has a split's name."""
        if not self.unsure:
            return []
        return [
            f"the folder in {_list(self.unsure)} is taken for a class, though it is named like the split: other split folders "
            "have classes there; if its videos have no label, move them up by one folder"
        ]

    def names(self) -> str:
        """The folders by their own names, each once."""
        return _list(self.splits)

    def words(self, split: str | None = None) -> set[str]:
        """The words that make them splits' (of one split)."""
        return {split_word(posixpath.basename(f)) for f, kind in self.splits.items() if split in (None, kind)}


def split_folders(tree: Tree) -> SplitFolders:
    """Folders with videos that are a split's by their names and their siblings'; the outermost ones."""
    return _split_folders(tree.videos)


def loose_folders(tree: Tree) -> SplitFolders | None:
    """The first folders as splits where `loose_split` gives both sides; None where not."""
    firsts = {file.parts[0]: None for file in tree.videos if file.folder}
    splits = {name: split for name in firsts if (split := loose_split(name)) is not None}
    return SplitFolders(splits) if set(splits.values()) == {"train", "query"} else None


def recurring(tree: Tree) -> set[str]:
    """Folders that lie in every first folder with videos, as classes lie in splits; none below a single one."""
    inner: dict[str, set[str]] = {}
    for file in tree.videos:
        if file.folder:
            inner.setdefault(file.parts[0], set()).update(file.parts[1:-1][:1])
    shared = set.intersection(*inner.values()) if len(inner) > 1 else set[str]()
    return {name for name in shared if not _COUNTED.fullmatch(name) and name.lower() not in VIDEO_FOLDERS}


def possible_splits(tree: Tree) -> list[str]:
    """A note for first folders that are read as classes and may be splits; `UserError` where names and content say so."""
    folders, classes = loose_folders(tree), recurring(tree)
    firsts = _list({file.parts[0] for file in tree.videos if file.folder})
    if folders is not None and classes:
        raise UserError(
            f"{shown(tree.root)}: {folders.names()} can be read in two ways: as classes of these names, or as splits, as each "
            f"holds the same folders ({examples(sorted(classes))}); say which: --layout classes takes every first folder for a "
            "class, --layout splits these for splits"
        )
    if folders is not None:
        named = ", ".join(f"{shown(name)}/ ({split})" for name, split in sorted(folders.splits.items()))
        return [f"all first folders are taken for classes; if some are splits ({named}), say --layout splits"]
    if len(classes) > 1:
        return [
            f"the first folders ({firsts}) are taken for classes, though each holds the same folders "
            f"({examples(sorted(classes))}); if they are splits, rename them to train/ and test/ and say --layout splits"
        ]
    return []


def _split_folders(videos: Iterable[File]) -> SplitFolders:
    holds: dict[str, set[str]] = {}
    for file in videos:
        for depth, name in enumerate(file.parts):
            holds.setdefault("/".join(file.parts[:depth]), set()).add(name)
    found = {}
    for parent, names in holds.items():
        named = {
            name: parsed
            for name in sorted(names)
            if posixpath.join(parent, name) in holds and (parsed := split_in_name(name))
        }
        for name, (split, rest) in named.items():
            if not rest or any(other[1] == rest and other[0] != split for other in named.values()):
                found[posixpath.join(parent, name)] = split
    for folder in [folder for folder in found if _holds_splits(holds[folder])]:
        del found[folder]  # training/train/ and training/val/: the inner ones are the splits
    outermost = {folder: split for folder, split in found.items() if not any(up in found for up in _above(folder))}
    return SplitFolders(outermost, *_unpacked(outermost, holds))


def _unpacked(splits: dict[str, str], holds: dict[str, set[str]]) -> tuple[frozenset[str], frozenset[str]]:
    """Split folders such as `train/train/` whose inner folder is no class, and those where it may be none.

    It is a class where another split folder has it beside others, or where only the other ones have class folders.
    """
    inner = {folder: {name for name in holds[folder] if posixpath.join(folder, name) in holds} for folder in splits}
    again = {
        f for f, split in splits.items() if len(holds[f]) == 1 and {split_in_name(n) for n in inner[f]} == {(split, "")}
    }
    classes = set[str]().union(*(names for folder, names in inner.items() if folder not in again))
    unpacked, unsure = set(), set()
    for folder in again:
        (name,) = inner[folder]
        below = holds[posixpath.join(folder, name)]
        deeper = {one for one in below if posixpath.join(folder, name, one) in holds}
        if name in classes:
            continue
        if classes and not deeper:
            unsure.add(folder)
        else:
            unpacked.add(folder)
    return frozenset(unpacked), frozenset(unsure)


def _holds_splits(names: set[str]) -> bool:
    """Whether the folders in a split folder are splits themselves, on both sides."""
    parsed = [split_in_name(name) for name in names]
    return {one[0] for one in parsed if one is not None and not one[1]} == {"train", "query"} and None not in parsed


def _above(folder: str) -> list[str]:
    parts = folder.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


@dataclass
class Arrangement:
    """What the folders say: (split, label) of each video by its name below the root, and lines for the reader."""

    places: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def candidates(self, tree: Tree) -> list[Candidate]:
        """The videos in the tree's order."""
        made = []
        for file in tree.videos:
            split, label = self.places[file.inner]
            made.append(file.candidate(label, split, group_in_name(file.inner)))
        return made


def arrange(tree: Tree, forced: bool = False) -> tuple[list[Candidate], list[str]] | None:
    """The videos with splits and classes by the folders, and notes; None where no folder is a split's.

    `forced`: split folders are meant, so nothing is refused as ambiguous. `UserError` for what can be read in two ways,
    with both and what decides, and for the folds of one data set beside each other.
    """
    folders = split_folders(tree)
    certain = set(folders.splits.values()) == {"train", "query"}
    loose = loose_folders(tree) if forced and not certain else None
    folders = folders if loose is None else loose
    if not folders.splits:
        return None
    level = _Level(tree, folders)
    arranged = level.in_classes(forced) if len(level.bases) > 1 else level.above_classes(forced)
    candidates = arranged.candidates(tree)
    lost = [file.inner for file in tree.videos if arranged.places[file.inner][0] == UNUSED]
    if lost:
        arranged.notes.append(f"{len(lost)} videos are in no split folder (split '{UNUSED}'): {examples(lost)}")
    return candidates, arranged.notes + crossing_groups(candidates, lambda c: (c.label, c.group))


class _Level:
    """The split folders nearest to the root, and the videos in and beside them.

    `bases` are the folders that hold them: one for `train/jump/a.mp4`, one a class for `jump/train/a.mp4`.
    """

    def __init__(self, tree: Tree, folders: SplitFolders) -> None:
        depth = min(folder.count("/") for folder in folders.splits)
        near = {folder: split for folder, split in folders.splits.items() if folder.count("/") == depth}
        self.tree = tree
        self.folders = replace(folders, splits=near, unsure=folders.unsure & set(near))
        self.bases = sorted({posixpath.dirname(folder) for folder in near})
        self.kinds = set(near.values())
        self.deeper = sorted(set(folders.splits) - set(near))
        self.inside = [(file, folder) for file in tree.videos if (folder := self.folders.of(file)) is not None]
        known = {file.inner for file, _ in self.inside}
        self.beside = [file for file in tree.videos if file.inner not in known]

    def class_beside(self, file: File) -> str | None:
        """The class of a video beside the split folders: the first folder below their base."""
        base = self.bases[0]
        inner = file.inner[len(base) + 1 :] if base and file.inner.startswith(f"{base}/") else file.inner
        return inner.split("/")[0] if "/" in inner else None

    def above_classes(self, forced: bool) -> Arrangement:
        """`train/jump/a.mp4`: all split folders lie in one folder."""
        deep = {name for file, folder in self.inside if (name := self.folders.class_of(file)) is not None}
        others = {name for file in self.beside if (name := self.class_beside(file)) is not None}
        if self.deeper and others and self.kinds != {"train", "query"}:
            raise self.several_depths()
        if self.kinds == {"train"} and others and not deep and not forced:
            return self.only_classes()
        if self.unsure(deep, others) and not forced:
            raise self.question(others)
        rest = UNUSED if "train" in self.kinds else "train"
        made = Arrangement(notes=[self.recognised()])
        for file, folder in self.inside:
            made.places[file.inner] = self.folders.splits[folder], self.folders.class_of(file)
        for file in self.beside:
            made.places[file.inner] = rest, self.class_beside(file) if rest == "train" else None
        made.notes += self.notes(deep)
        if rest == "train" and self.beside:
            made.notes.append(f"{len(self.beside)} videos beside {self.folders.names()} are split 'train'")
        return made

    def unsure(self, deep: set[str], others: set[str]) -> bool:
        """Whether a person could not say what is meant; `deep`: folders in the split folders, `others`: beside them."""
        if self.kinds == {"train", "query"}:
            return bool(others) and not deep
        if self.kinds == {"train"}:
            return bool(others)
        if deep:  # classes beside a test/ that holds the same classes are its training videos
            return bool(others) and not deep & others
        return len(self.folders.splits) > 1 and not self.beside and len(self.folders.words()) == 1

    def only_classes(self) -> Arrangement:
        """A class called train among others (vehicles)."""
        made = Arrangement()
        for file in self.tree.videos:
            made.places[file.inner] = "train", file.parts[0] if file.folder else None
        made.notes.append(
            f"{self.folders.names()} is taken for a class like the folders beside it; if it holds the training videos, say "
            "--layout splits"
        )
        return made

    def in_classes(self, forced: bool) -> Arrangement:
        """`jump/train/a.mp4`: split folders lie in several folders, which are the classes, or data sets with classes."""
        named = [f"{posixpath.basename(base)}/" for base in self.bases]
        inner, unsure = self.inner_classes()
        if (inner or unsure) and all(_FOLD.fullmatch(name.rstrip("/")) for name in named):
            raise UserError(
                f"{shown(self.tree.root)}: {examples(named)} each hold split folders: these are folds of one data set; "
                f"index one of them, such as {shown(posixpath.join(self.tree.root, self.bases[0]))}"
            )
        others = [file for file in self.beside if file.folder not in self.bases and self.in_base(file)]
        training = self.kinds == {"query"} and set(self.bases) <= {file.folder for file in self.beside}
        if ((self.kinds != {"train", "query"} and not training) or others) and not forced:
            raise self.question({posixpath.basename(file.folder) for file in others}, within=named)
        if unsure and not forced:
            raise self.two_levels(named, unsure)
        above, recurring = examples(named), examples(sorted(inner))
        meant = (
            f"the folders in them are the classes, as they recur in train and query ({recurring}), and not {above}"
            if inner
            else f"the folders above them ({above}) are the classes"
        )
        made = Arrangement(notes=[f"{self.recognised()}; {meant}"])
        rest = UNUSED if "train" in self.kinds else "train"
        for file, folder in self.inside:
            label = self.folders.class_of(file) if inner else posixpath.basename(posixpath.dirname(folder))
            made.places[file.inner] = self.folders.splits[folder], label
        for file in self.beside:
            made.places[file.inner] = rest, None if inner else posixpath.basename(file.folder) or None
        return made

    def inner_classes(self) -> tuple[set[str], set[str]]:
        """Folders in the split folders that are the classes, and those that may be classes or persons, cameras, takes.

        Classes recur in train and query (as numbers of takes do) and below every base (`rgb/`, `flow/`); names that recur
        below some of them only may as well be persons of these classes.
        """
        deep: dict[str, set[str]] = {"train": set(), "query": set()}
        below: dict[str, set[str]] = {base: set() for base in self.bases}
        for file, folder in self.inside:
            name = self.folders.class_of(file)
            if name is not None and not _COUNTED.fullmatch(name):
                deep[self.folders.splits[folder]].add(name)
                below[posixpath.dirname(folder)].add(name)
        recurring = deep["train"] & deep["query"]
        everywhere = recurring.intersection(*below.values())
        if recurring and 2 * len(everywhere) > len(set().union(*below.values())):
            return recurring, set()
        return set(), recurring

    def two_levels(self, above: Sequence[str], inner: set[str]) -> UserError:
        """The error where the classes may be the folders above the split folders or those in them."""
        one = shown(posixpath.join(self.tree.root, self.bases[0]))
        return UserError(
            f"{shown(self.tree.root)}: {self.folders.names()} in {examples(above)} can be read in two ways: the classes are "
            f"{examples(above)}, or the folders in the split folders ({examples(sorted(inner))}), which do not recur in each of "
            "them; say which: --layout splits takes the folders above for the classes; for those in them index the folders "
            f"above one by one, such as {one}"
        )

    def in_base(self, file: File) -> bool:
        return any(file.inner.startswith(f"{base}/") for base in self.bases if base)

    def recognised(self) -> str:
        named = sorted({(posixpath.basename(folder), split) for folder, split in self.folders.splits.items()})
        return "recognised split folders: " + ", ".join(f"{shown(name)}/ ({split})" for name, split in named)

    def notes(self, deep: set[str]) -> list[str]:
        """Notes on what the split folders hold: videos without a class and the other reading of that, one class only."""
        flat = sorted({folder for file, folder in self.inside if self.folders.class_of(file) is None})
        notes = self.folders.notes()
        if flat:
            count = sum(self.folders.class_of(file) is None for file, folder in self.inside)
            notes.append(
                f"{count} videos lie in no class folder of {_list(flat)} and have no label; if "
                f"{'these are classes' if len(flat) > 1 else 'that is a class'} and no split, say --layout classes"
            )
        deeper = {file.folder for file, folder in self.inside}
        if len(deep) == 1 and len(deeper) > len(self.folders.splits):
            notes.append(f"all videos of the split folders lie below '{shown(min(deep))}', so that is the one class")
        if len(self.folders.words("query")) > 1:
            queries = _list(folder for folder, split in self.folders.splits.items() if split == "query")
            notes.append(f"folders of val and of test are both split 'query': {queries}")
        return notes

    def question(self, others: Iterable[str], within: Sequence[str] = ()) -> UserError:
        """The error for folders that can be read in two ways: those `beside` others, or `within` class folders."""
        beside = [f"{name}/" for name in sorted(others)]
        where = (f" in {examples(within)}" if within else "") + (f" beside {examples(beside)}" if beside else "")
        names = "without a meaning in those classes" if within else "classes of these names"
        return UserError(
            f"{shown(self.tree.root)}: {self.folders.names()}{where} can be read in two ways: as {names}, or as splits; say which: "
            "--layout classes takes every first folder for a class, --layout splits these for splits"
        )

    def several_depths(self) -> UserError:
        """The error where one test/ lies beside a whole data set."""
        one = self.deeper[0]
        inner = shown(posixpath.join(self.tree.root, posixpath.dirname(one)))
        return UserError(
            f"{shown(self.tree.root)}: split folders lie at several depths ({self.folders.names()} and {shown(one)}/); index one "
            f"of them, such as {inner}, or say --layout classes"
        )


def _list(folders: Iterable[str]) -> str:
    """Folders by their own names, each once."""
    return ", ".join(sorted({f"{shown(posixpath.basename(folder))}/" for folder in folders}))


def by_paths(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Candidates of a table or list without splits of its own, with those of split folders in their paths, and a note.

    Both sides have to be there, and labels that are the folders' own names make them classes. A video outside of the split
    folders is `unused`. The folders that all paths share say nothing.
    """
    shared = len(posixpath.commonprefix([posixpath.dirname(candidate.path).split("/") for candidate in candidates]))
    inner = ["/".join(candidate.path.split("/")[shared:]) for candidate in candidates]
    files = [File(name, name) for name in inner]
    folders = _split_folders(files)
    if set(folders.splits.values()) != {"train", "query"}:
        return list(candidates), []
    places = [folders.of(file) for file in files]
    if all(c.label == posixpath.basename(folder) for c, folder in zip(candidates, places, strict=True) if folder):
        note = (
            f"{folders.names()} in its paths are the labels and not taken for splits; for splits add a column 'split'"
        )
        return list(candidates), [note]
    splits = [folders.splits[folder] if folder is not None else UNUSED for folder in places]
    named = ", ".join(f"{split} {count}" for split, count in sorted(Counter(splits).items()))
    notes = [
        f"it has no splits; those of the folders {folders.names()} in its paths are taken ({named}); for others add a column "
        "'split' or say --split 'train: rest'"
    ]
    return [replace(c, split=split) for c, split in zip(candidates, splits, strict=True)], notes


def by_words(candidates: list[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Candidates of a table or list with their splits by the words of folders, or else by their paths; and notes.

    The one training word is `train`, the one query word `query`; several of a kind (val and test) stay splits each.
    """
    words = sorted({candidate.split for candidate in candidates} - {""})
    if not words:
        return by_paths([replace(candidate, split="train") for candidate in candidates])
    parsed = {word: split_in_name(word) for word in words}
    kinds = {word: one[0] if one and not one[1] else "" for word, one in parsed.items()}
    names = {"": "train"}
    for word, kind in kinds.items():
        same = {split_word(other) for other in words if kinds[other] == kind}
        names[word] = word if not kind else kind if len(same) == 1 else split_word(word)
    return [replace(c, split=names[c.split]) for c in candidates], _told_splits(candidates, names, kinds)


def _told_splits(candidates: list[Candidate], names: dict[str, str], kinds: dict[str, str]) -> list[str]:
    """Notes on splits that have another name than in the table, that have to be named in an experiment, or are none."""
    notes = []
    renamed = [f"'{shown(word)}' is {name}" for word, name in names.items() if word not in ("", name)]
    if renamed:
        notes.append(f"splits of the table by their words: {', '.join(renamed)}")
    empty = sum(not candidate.split for candidate in candidates)
    if empty:
        notes.append(f"{empty} of {len(candidates)} rows have no split and are split 'train'")
    unknown = [f"'{shown(word)}'" for word, kind in kinds.items() if not kind and word != UNUSED]
    splits = ", ".join(shown(split) for split in sorted({names[c.split] for c in candidates}))
    if unknown:
        notes.append(
            f"splits {', '.join(unknown)} are no known words and stay as they are ({splits}): name the training side with "
            "--set data.train_split=NAME --set data.gallery_split=NAME, the query side with --set data.query_split=NAME"
        )
    elif len(set(names.values())) > len(set(kinds.values()) | {"train"}):
        notes.append(
            f"splits are called as the table calls them ({splits}): name the query side with "
            "--set data.query_split=NAME or 'vicc evaluate --test-on NAME', others with data.train_split, data.gallery_split"
        )
    return notes


def notes_on_name(name: str, candidates: Iterable[Candidate], is_folder: bool) -> list[str]:
    """A note where a source's own name says test or val while all of its videos are split `train` for want of a word."""
    base = posixpath.basename(name.rstrip("/"))
    parsed = split_in_name(base if is_folder else posixpath.splitext(base)[0])
    if parsed is None or parsed[0] == "train" or {candidate.split for candidate in candidates} != {"train"}:
        return []
    if is_folder and parsed[1]:
        return []
    return [
        f"the name '{shown(base)}' is not taken for a split: its videos are split 'train'; for queries say "
        "--split 'query: rest'"
    ]
