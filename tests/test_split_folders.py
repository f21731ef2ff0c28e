"""Splits and classes by folders, as a person reads them; a question where there are two readings."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_layouts import foreign, touch

from vicc_ray.data.layouts import Found, scan
from vicc_ray.data.layouts.split_folders import split_in_name
from vicc_ray.errors import UserError


def seen(root: Path, names: str, layout: str = "auto") -> tuple[str, Found]:
    """What is read of files (named with blanks between), as `name:class:split`, `-` where there is none."""
    found = scan(touch(root, *names.split()), layout)
    stems = {Path(candidate.path).stem: candidate for candidate in found}
    return " ".join(f"{stem}:{c.label or '-'}:{c.split}" for stem, c in sorted(stems.items())), found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, ("train", "")) for name in ("train", "Training", "trainset", "TrainSet", "train_256", "videos-train")],
        *[
            (name, ("query", ""))
            for name in ("val", "valid", "Validation", "test", "Testing", "test_set_320x240", "dev")
        ],
        ("train_data_30fps", ("train", "")),
        ("mine_test", ("query", "mine")),
        ("training dog", ("train", "dog")),
        *[(name, None) for name in ("car", "trains", "attest", "train_and_test", "contest", "", "256")],
    ],
)
def test_split_in_name(name: str, expected: tuple[str, str] | None) -> None:
    assert split_in_name(name) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("train/x/a.mp4 train/y/b.mp4 valid/x/c.mp4", "a:x:train b:y:train c:x:query"),
        ("Training/x/a.mp4 Testing/x/b.mp4", "a:x:train b:x:query"),
        ("Train/x/a.mp4 Val/x/b.mp4 Test/x/c.mp4", "a:x:train b:x:query c:x:query"),
        ("training_set/x/a.mp4 validation_set/y/b.mp4", "a:x:train b:y:query"),
        ("train_256/x/a.mp4 val_256/x/b.mp4", "a:x:train b:x:query"),
        ("data/videos/train/x/a.mp4 data/videos/test/x/b.mp4", "a:x:train b:x:query"),
        ("mine-train/x/a.mp4 mine-test/x/b.mp4", "a:x:train b:x:query"),
        ("train/x/id7/a.mp4 test/x/id8/b.mp4 test/y/id9/c.mp4", "a:x:train b:x:query c:y:query"),
        ("train/videos/x/a.mp4 test/videos/y/b.mp4", "a:x:train b:y:query"),
        ("train/train/x/a.mp4 val/val/x/b.mp4 val/val/y/c.mp4", "a:x:train b:x:query c:y:query"),
        ("training/train/x/a.mp4 training/val/x/b.mp4", "a:x:train b:x:query"),
        ("train/train/a.mp4 train/car/b.mp4 test/train/c.mp4", "a:train:train b:car:train c:train:query"),
        ("x/train/a.mp4 x/test/b.mp4 y/train/c.mp4 y/test/d.mp4", "a:x:train b:x:query c:y:train d:y:query"),
        ("x/train/1/a.mp4 x/test/2/b.mp4 y/train/3/c.mp4", "a:x:train b:x:query c:y:train"),
        ("x/train/1/a.mp4 x/test/1/b.mp4 y/train/1/c.mp4 y/test/id2/d.mp4", "a:x:train b:x:query c:y:train d:y:query"),
        ("x/a.mp4 x/test/b.mp4 y/c.mp4 y/test/d.mp4", "a:x:train b:x:query c:y:train d:y:query"),
        ("rgb/train/x/a.mp4 rgb/test/x/b.mp4 flow/train/x/c.mp4", "a:x:train b:x:query c:x:train"),
        ("x/train/p/a.mp4 x/test/q/b.mp4 y/train/p/c.mp4 y/test/q/d.mp4", "a:x:train b:x:query c:y:train d:y:query"),
        ("x/a.mp4 y/b.mp4 test/c.mp4", "a:x:train b:y:train c:-:query"),
        ("x/a.mp4 y/b.mp4 test/x/c.mp4", "a:x:train b:y:train c:x:query"),
        ("train/a.mp4 test/b.mp4", "a:-:train b:-:query"),
        ("a.mp4 test/b.mp4", "a:-:train b:-:query"),
        ("train/x/a.mp4 val/x/b.mp4 c.mp4 extra/d.mp4", "a:x:train b:x:query c:-:unused d:-:unused"),
        ("train/a.mp4 car/b.mp4", "a:train:train b:car:train"),
        ("training_dog/a.mp4 walking_dog/b.mp4", "a:training_dog:train b:walking_dog:train"),
    ],
)
def test_folders_are_read_as_a_person_reads_them(tmp_path: Path, names: str, expected: str) -> None:
    read, found = seen(tmp_path, names)
    assert read == expected
    assert found.layout == "folders"
    assert (found.notes != []) == ("dog" not in names), "what is recognised is said"


def test_what_is_recognised_and_left_out_is_said(tmp_path: Path) -> None:
    _, found = seen(tmp_path / "1", "Train/x/a.mp4 val/x/b.mp4 test/c.mp4 demo.mp4")
    assert found.notes == [
        "recognised split folders: Train/ (train), test/ (query), val/ (query)",
        "1 videos lie in no class folder of test/ and have no label; if that is a class and no split, say --layout classes",
        "folders of val and of test are both split 'query': test/, val/",
        "1 videos are in no split folder (split 'unused'): demo.mp4",
    ]
    _, found = seen(tmp_path / "2", "x/a.mp4 test/b.mp4")
    assert found.notes[1].endswith("if that is a class and no split, say --layout classes")
    assert found.notes[2] == "1 videos beside test/ are split 'train'"
    _, found = seen(tmp_path / "3", "train/a.mp4 car/b.mp4")
    assert found.notes[0].endswith("if it holds the training videos, say --layout splits")
    _, found = seen(tmp_path / "5", "x/train/a.mp4 y/test/b.mp4")
    assert found.notes == [
        "recognised split folders: test/ (query), train/ (train); the folders above them (x/, y/) are the classes",
        foreign("y", "x"),
    ]
    _, found = seen(tmp_path / "6", "x/train/run/a.mp4 y/test/run/b.mp4")
    assert found.notes[0].endswith(
        "the folders in them are the classes, as they recur in train and query (run), and not x/, y/"
    )
    _, found = seen(tmp_path / "4", "train/x/v_x_g01_c1.mp4 test/x/v_x_g01_c2.mp4")
    assert any("1 of 1 groups cross splits" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "message", "classes", "splits"),
    [
        ("train/a.mp4 test/b.mp4 car/c.mp4", "test/, train/ beside car/", "a:train b:test c:car", "train query unused"),
        ("train/x/a.mp4 car/y/b.mp4", "train/ beside car/", "a:train b:car", "train unused"),
        ("x/a.mp4 y/b.mp4 test/z/c.mp4", "test/ beside x/, y/", "a:x b:y c:test", "train train query"),
        ("test1/a.mp4 test2/b.mp4", "test1/, test2/ can be read", "a:test1 b:test2", "query query"),
        ("x/test1/a.mp4 x/test2/b.mp4 y/test1/c.mp4", "test2/ in x/, y/ can be", "a:x b:x c:y", "query query query"),
        ("x/train/a.mp4 y/test/b.mp4 y/walk/c.mp4", "in x/, y/ beside walk/", "a:x b:y c:y", "train query unused"),
    ],
)
def test_two_readings_are_a_question_with_two_answers(
    tmp_path: Path, names: str, message: str, classes: str, splits: str
) -> None:
    with pytest.raises(UserError, match=message) as question:
        seen(tmp_path, names)
    assert "--layout classes" in str(question.value) and "--layout splits" in str(question.value)
    read, _ = seen(tmp_path, names, "classes")
    assert read == " ".join(f"{one}:train" for one in classes.split())
    read, _ = seen(tmp_path, names, "splits")
    assert [one.split(":")[2] for one in read.split()] == splits.split()


def test_folds_and_data_sets_beside_a_split_folder_are_not_mixed(tmp_path: Path) -> None:
    folds = "split1/train/x/a.mp4 split1/test/x/b.mp4 split2/train/x/b.mp4 split2/test/x/a.mp4"
    with pytest.raises(UserError, match=r"folds of one data set; index one of them, such as .*1/split1"):
        seen(tmp_path / "1", folds)
    with pytest.raises(
        UserError, match=r"at several depths \(test/ and ds/train/\); index one of them, such as .*2/ds"
    ):
        seen(tmp_path / "2", "ds/train/x/a.mp4 ds/val/x/b.mp4 test/c.mp4")
    with pytest.raises(UserError, match="no folder in it is named like a split"):
        seen(tmp_path / "3", "x/a.mp4", "splits")


def test_a_source_called_test_is_split_train_and_says_so(tmp_path: Path) -> None:
    read, found = seen(tmp_path / "test", "x/a.mp4 y/b.mp4")
    assert read == "a:x:train b:y:train"
    assert found.notes == [
        "the name 'test' is not taken for a split: its videos are split 'train'; for queries say --split 'query: rest'"
    ]
    assert scan(tmp_path / "test", split_rule="query: rest").notes == []
    (tmp_path / "k400_val_list.txt").write_text("test/x/a.mp4\n")
    assert scan(tmp_path / "k400_val_list.txt").notes[0].startswith("the name 'k400_val_list.txt' is not taken")


def test_links_in_val_to_what_train_links_to_are_read(tmp_path: Path) -> None:
    """Only a link back to a folder that it lies in would have no end."""
    touch(tmp_path / "pool", "x/a.mp4", "y/b.mp4")
    for split in ("train", "val"):
        (tmp_path / "ds" / split).mkdir(parents=True)
        for label in "xy":
            (tmp_path / "ds" / split / label).symlink_to(tmp_path / "pool" / label)
    (tmp_path / "ds" / "whole").symlink_to(tmp_path / "ds")
    found = scan(tmp_path / "ds")
    assert [(c.label, c.split) for c in found] == [("x", "train"), ("y", "train"), ("x", "query"), ("y", "query")]
    assert found.notes[0] == "1 links to folders above or listed are not followed: whole"


def test_a_maze_of_links_has_an_end(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(7)]
    for name in names:
        touch(tmp_path, f"{name}/{name}.mp4")
    for name in names:
        for other in set(names) - {name}:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    assert len(names) <= len(scan(tmp_path)) <= 16 * len(names)


# Identity by name ----------------------------------------------------------------------------------------------------


def test_videos_of_one_name_are_no_group(tmp_path: Path) -> None:
    """`video.mp4` in every folder, parted at random: by its path below the data set, so that a move changes nothing."""
    names = [f"{label}/id{number}/video.mp4" for label in "xy" for number in range(8)]
    sides = []
    for root in (tmp_path / "here", tmp_path / "there"):
        found = scan(touch(root, *names), split_rule="random:0.25")
        sides.append([c.split for c in found])
        assert {c.group for c in found} == {None}
    assert sides[0] == sides[1]
    assert sides[0].count("query") == 4


def test_names_that_differ_are_drawn_as_they_always_were(tmp_path: Path) -> None:
    """By the file's name alone: the splits of a manifest made before stay."""
    found = scan(touch(tmp_path, *(f"x/{number}.mp4" for number in range(12))), split_rule="random:0.25")
    assert [Path(c.path).stem for c in found if c.split == "query"] == ["10", "11", "5"]


@pytest.mark.parametrize("layout", ["auto", "kinetics"])
def test_eleven_letters_are_no_youtube_id(tmp_path: Path, layout: str) -> None:
    names = "train/x/video_00001.mp4 train/y/video_00002.mp4 val/x/video_00001.mp4 val/y/video_00003.mp4"
    _, found = seen(tmp_path, names, layout)
    assert [c.group for c in found] == [None] * 4
    assert not any("cross" in note for note in found.notes)


def test_classes_and_names_that_are_written_in_two_ways_are_noted(tmp_path: Path) -> None:
    found = scan(
        touch(tmp_path, "air drumming/a.mp4", "air_drumming/b.mp4", "café/c.mp4", "cafe\u0301/d.mp4", "run/e.mp4")
    )
    assert found.notes == [
        "2 classes are written in several ways, each of which counts as a class: 'air drumming' and 'air_drumming', "
        "'cafe\u0301' and 'café'; if one is meant, write them alike"
    ]
    (tmp_path / "t.csv").write_text("video,label\né.mp4,x\ne\u0301.mp4,x\n", encoding="utf-8")
    assert scan(tmp_path / "t.csv").notes[0].startswith("1 names of files are there in two forms of Unicode")


@pytest.mark.parametrize("layout", ["auto", "kinetics"])
@pytest.mark.parametrize(
    ("names", "expected", "unsure"),
    [
        ("train/test/a.mp4 train/run/b.mp4 val/test/c.mp4", "a:test:train b:run:train c:test:query", False),
        ("train/run/a.mp4 train/test/b.mp4 test/test/c.mp4", "a:run:train b:test:train c:test:query", False),
        ("train/train/a.mp4 val/train/b.mp4", "a:train:train b:train:query", False),
        ("train/train/a.mp4 train/bus/b.mp4 val/bus/c.mp4", "a:train:train b:bus:train c:bus:query", False),
        ("train/test/p1/a.mp4 train/run/p1/b.mp4 val/test/p2/c.mp4", "a:test:train b:run:train c:test:query", False),
        ("train/run/a.mp4 val/validation/b.mp4", "a:run:train b:validation:query", True),
        ("train/run/a.mp4 val/val/run/b.mp4", "a:run:train b:run:query", False),
        ("train/train/a.mp4 val/val/b.mp4", "a:-:train b:-:query", False),
    ],
)
def test_a_class_with_the_name_of_a_split_keeps_its_label(
    tmp_path: Path, names: str, expected: str, unsure: bool, layout: str
) -> None:
    read, found = seen(tmp_path, names, layout)
    assert read == expected
    assert any("is taken for a class, though it is named like the split" in note for note in found.notes) == unsure


@pytest.mark.parametrize(
    "names",
    [
        "x/train/alice/a.mp4 x/test/alice/b.mp4 y/train/bob/c.mp4 y/test/bob/d.mp4",
        "x/train/alice/a.mp4 x/test/alice/b.mp4 y/train/alice/c.mp4 y/test/bob/d.mp4",
        "x/train/alice/a.mp4 x/test/alice/b.mp4 y/train/c.mp4 y/test/d.mp4",
    ],
)
def test_persons_in_split_folders_of_classes_are_a_question(tmp_path: Path, names: str) -> None:
    with pytest.raises(
        UserError, match=r"test/, train/ in x/, y/ can be read in two ways.*--layout splits.*one by one"
    ):
        seen(tmp_path, names)
    assert seen(tmp_path, names, "splits")[0] == "a:x:train b:x:query c:y:train d:y:query"
    assert seen(tmp_path / "x", "")[0] == "a:alice:train b:alice:query"


@pytest.mark.parametrize(
    ("train", "query"),
    [
        *[("tr", "te"), ("trn", "tst"), ("Trainings", "Tests"), ("A_train", "B_test"), ("trainset_a", "test_b")],
        *[("train_val", "test"), ("train", "test_seen"), ("trainset_part1", "testset"), ("train-val", "test_unseen")],
    ],
)
def test_other_names_of_splits_are_a_question_with_two_answers(tmp_path: Path, train: str, query: str) -> None:
    names = f"{train}/x/a.mp4 {train}/y/b.mp4 {query}/x/c.mp4 {query}/y/d.mp4"
    with pytest.raises(UserError, match=r"can be read in two ways.*--layout classes.*--layout splits"):
        seen(tmp_path, names)
    assert seen(tmp_path, names, "splits")[0] == "a:x:train b:y:train c:x:query d:y:query"
    assert seen(tmp_path, names, "classes")[0] == f"a:{train}:train b:{train}:train c:{query}:train d:{query}:train"


def test_folders_that_may_be_splits_by_name_or_content_alone_are_noted(tmp_path: Path) -> None:
    names = "Anomaly-Part-1/Abuse/a.mp4 Testing_Normal_Anomaly/b.mp4 Training-Normal-Part-1/c.mp4"
    _, found = seen(tmp_path / "1", names)
    assert found.notes == [
        "all first folders are taken for classes; if some are splits (Testing_Normal_Anomaly/ (query), "
        "Training-Normal-Part-1/ (train)), say --layout splits"
    ]
    assert seen(tmp_path / "1", names, "splits")[0] == "a:-:unused b:-:query c:-:train"
    read, found = seen(tmp_path / "2", "seen/x/a.mp4 seen/y/b.mp4 unseen/x/c.mp4 unseen/y/d.mp4")
    assert read == "a:seen:train b:seen:train c:unseen:train d:unseen:train"
    assert found.notes == [
        "the first folders (seen/, unseen/) are taken for classes, though each holds the same folders (x, y); if they are "
        "splits, rename them to train/ and test/ and say --layout splits"
    ]
    assert seen(tmp_path / "2", "", "classes")[1].notes == []
    assert seen(tmp_path / "3", "x/g01/a.mp4 x/g02/b.mp4 y/g01/c.mp4 y/g02/d.mp4")[1].notes == []


def test_queries_whose_classes_are_not_in_training_are_noted(tmp_path: Path) -> None:
    """Folders of persons above those of classes."""
    read, found = seen(tmp_path / "1", "train/s1/jump/a.mp4 train/s2/jump/b.mp4 val/s3/jump/c.mp4")
    assert read == "a:s1:train b:s2:train c:s3:query"
    assert found.notes[-1] == foreign("s3", "s1, s2")
    for names in ("train/x/a.mp4 train/y/b.mp4 val/y/c.mp4", "train/a.mp4 val/x/b.mp4", "x/a.mp4 y/b.mp4"):
        _, found = seen(tmp_path / names[-7:-4].replace("/", ""), names)
        assert not any("no class of split" in note for note in found.notes)
