"""UCF101, HMDB51 and Kinetics as they are published: folders, split files, and what does not fit together."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from test_layouts import foreign, touch

from vicc_ray.data.layouts import Found, scan
from vicc_ray.errors import UserError

REAL = Path(__file__).parents[2] / "shared" / "data" / "ucf_mini"


def splits(found: Found) -> dict[str, str]:
    """Split by file name."""
    return {Path(candidate.path).name: candidate.split for candidate in found}


def write(root: Path, **texts: str) -> Path:
    """Text files; `__` of a name stands for a slash, and the extension .txt is added."""
    for name, text in texts.items():
        path = root / (name.replace("__", "/") + ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# UCF101 --------------------------------------------------------------------------------------------------------------

UCF = ["A/v_A_g01_c01.avi", "A/v_A_g02_c01.avi", "B/v_B_g01_c01.avi", "B/v_B_g08_c01.avi"]
TRAIN, TEST = "A/v_A_g02_c01.avi 1\nB/v_B_g08_c01.avi 2\n", "A/v_A_g01_c01.avi\nB/v_B_g01_c01.avi\n"
UCF_SPLITS = {
    "v_A_g01_c01.avi": "query",
    "v_A_g02_c01.avi": "train",
    "v_B_g01_c01.avi": "query",
    "v_B_g08_c01.avi": "train",
}


@pytest.mark.parametrize("source", ["", "videos"])
@pytest.mark.parametrize("lists", ["splits_classification", "ucfTrainTestlist", "annotations", ""])
@pytest.mark.parametrize("videos", ["videos", "UCF-101", ""])
def test_ucf101_in_its_usual_places(tmp_path: Path, videos: str, lists: str, source: str) -> None:
    """From the data set's root, and from the folder of its videos with the lists next to it."""
    root = tmp_path / "data"
    touch(root, *(os.path.join(videos, name) for name in UCF))
    write(root / lists, trainlist01=TRAIN, testlist01=TEST, trainlist02=TEST, testlist02=TRAIN, classInd="1 A\n2 B\n")
    found = scan(root / videos if source else root)
    assert found.layout == "ucf101"
    assert splits(found) == UCF_SPLITS
    assert [(c.label, c.group) for c in found] == [("A", "g01"), ("A", "g02"), ("B", "g01"), ("B", "g08")]
    assert found.notes == [f"recognised as layout 'ucf101' by the split files in {_told(root, lists, videos, source)}/"]
    assert found.ignored == Counter()
    other = scan(root, "ucf101", fold=2)
    assert {name: "query" if split == "train" else "train" for name, split in splits(other).items()} == UCF_SPLITS


def _told(root: Path, lists: str, videos: str, source: str) -> str:
    return f"../{lists}".rstrip("/") if source and videos else lists or "."


def test_ucf101_counts_what_does_not_fit(tmp_path: Path) -> None:
    touch(tmp_path, *UCF, "B/v_B_g08_c02.avi", "C/n.txt")
    (tmp_path / "D").mkdir()
    train = TRAIN + "".join(f"A/v_A_g09_c0{i}.avi 1\n" for i in range(1, 5))
    write(tmp_path, trainlist01=train, testlist01=TEST.replace("B/", "A/").replace("g01", "g02").replace("_B", "_A"))
    with pytest.raises(UserError, match=r"1 videos are in two splits: A/v_A_g02_c01.avi \(train and query\)"):
        scan(tmp_path)
    write(
        tmp_path, trainlist01=train, testlist01="A/v_A_g01_c01.avi\nB/v_B_g08_c02.avi\n", classInd="1 A\n2 B\n3 Zed\n"
    )
    found = scan(tmp_path)
    assert splits(found) == {
        "v_A_g01_c01.avi": "query",
        "v_A_g02_c01.avi": "train",
        "v_B_g01_c01.avi": "unused",
        "v_B_g08_c01.avi": "train",
        "v_B_g08_c02.avi": "query",
    }
    assert found.notes[1:] == [
        "the split files name 4 videos (of 8) that are not there: A/v_A_g09_c01.avi, A/v_A_g09_c02.avi, "
        "A/v_A_g09_c03.avi, ...",
        "1 videos are in no split file (split 'unused'): B/v_B_g01_c01.avi",
        "1 of 3 groups cross splits (2 videos): g08 (query 1, train 1); clips of one source in training and query make "
        "retrieval look better than it is",
        "2 class folders without videos: C, D",
        "classInd.txt names 1 classes (of 3) without videos: Zed",
    ]
    assert found.ignored == Counter({".txt": 1})


def test_a_group_of_ucf101_is_one_of_its_class(tmp_path: Path) -> None:
    """v_A_g01 and v_B_g01 were cut from different videos."""
    touch(tmp_path, "A/v_A_g01_c01.avi", "B/v_B_g01_c01.avi")
    write(tmp_path, trainlist01="A/v_A_g01_c01.avi 1\n", testlist01="B/v_B_g01_c01.avi\n")
    assert scan(tmp_path).notes[1:] == [foreign("B", "A")]


def test_ucf101_copes_with_variants_of_names(tmp_path: Path) -> None:
    """Re-encoded files, another spelling of the class folder, Windows' slashes and line ends."""
    touch(tmp_path, "HandStandPushups/v_HandStandPushups_g01_c01.mp4", "X y/v_X_g02_c01.avi")
    train = "HandstandPushups\\v_HandStandPushups_g01_c01.avi 37\r\n\r\nX y/v_X_g02_c01.avi  5  \r\n"
    write(tmp_path, trainlist01=train, testlist01="")
    found = scan(tmp_path)
    assert [(c.label, c.split) for c in found] == [("HandStandPushups", "train"), ("X y", "train")]
    assert len(found.notes) == 1


def test_ucf101_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    touch(tmp_path, *UCF)
    with pytest.raises(UserError, match=r"no split files of UCF101 \(trainlist01.txt\) below it or in splits_class"):
        scan(tmp_path, "ucf101")
    assert scan(tmp_path).layout == "folders"
    rule = scan(tmp_path, "ucf101", "train: group 2-9; query: rest")
    assert (splits(rule), rule.notes) == (UCF_SPLITS, [])
    write(tmp_path, trainlist01=TRAIN, testlist01=TEST, trainlist02=TEST)
    with pytest.raises(UserError, match=r"fold 2 needs testlist02.txt; there is: testlist01.txt, trainlist01.txt, tr"):
        scan(tmp_path, fold=2)
    with pytest.raises(UserError, match=r"fold 2 and the split rule 'random:0.5' both give the splits"):
        scan(tmp_path, split_rule="random:0.5", fold=2)
    with pytest.raises(UserError, match="fold 4 is not known; ucf101 and hmdb51 have folds 1 to 3"):
        scan(tmp_path, fold=4)
    with pytest.raises(UserError, match="layout 'folders' has no fold 2"):
        scan(tmp_path, "folders", fold=2)
    touch(tmp_path, "small/A/v_A_g01_c01.mp4")
    with pytest.raises(UserError, match=r"1 videos are there twice under one name: A/v_A_g01_c01.avi and small/A/v_A_"):
        scan(tmp_path)
    assert len(scan(tmp_path / "**" / "*.avi")) == 4


def test_lists_of_another_data_set_are_not_used(tmp_path: Path) -> None:
    touch(tmp_path, "mine/A/a.mp4", "mine/B/b.mp4")
    write(tmp_path / "ucfTrainTestlist", trainlist01=TRAIN, testlist01=TEST)
    found = scan(tmp_path / "mine")
    assert (found.layout, found.notes) == ("folders", [])
    write(tmp_path / "mine", trainlist01=TRAIN, testlist01=TEST)
    assert scan(tmp_path / "mine").notes == ["the split files of ucf101 in ./ name none of the videos; not used"]


def test_of_two_folders_of_lists_the_usual_one_is_used(tmp_path: Path) -> None:
    touch(tmp_path, *UCF)
    write(tmp_path / "ucfTrainTestlist", trainlist01=TRAIN, testlist01=TEST)
    write(tmp_path / "another", trainlist01=TEST, testlist01=TRAIN)
    found = scan(tmp_path)
    assert splits(found) == UCF_SPLITS
    assert found.notes[1] == "split files are in 2 folders: ucfTrainTestlist/ is used, not another/"
    write(tmp_path, classInd="1 A\n2 B\n3 C\n")
    assert splits(scan(tmp_path)) == UCF_SPLITS, "that file alone tells no splits"


@pytest.mark.skipif(not REAL.exists(), reason="the UCF101 clips are not here")
def test_real_ucf101_clips(tmp_path: Path) -> None:
    names = sorted(path.relative_to(REAL) for path in REAL.glob("*/v_*.avi"))
    for name in names:
        (tmp_path / "UCF-101" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "UCF-101" / name).symlink_to(REAL / name)
    train = "".join(f"{name} 1\n" for name in names[::2]) + "Archery/v_Archery_g25_c07.avi 3\n"
    write(tmp_path / "ucfTrainTestlist", trainlist01=train, testlist01="".join(f"{name}\n" for name in names[1::2]))
    found = scan(tmp_path)
    assert found.layout == "ucf101"
    assert [c.split for c in found] == ["train" if i % 2 == 0 else "query" for i in range(len(names))]
    assert {c.label for c in found} == {name.parts[0] for name in names}
    assert all(c.bytes == (REAL / name).stat().st_size for c, name in zip(found, names, strict=True))
    assert any("names 1 videos" in note or "name 1 videos" in note for note in found.notes)
    assert any("groups cross splits" in note for note in found.notes)


# HMDB51 --------------------------------------------------------------------------------------------------------------

HMDB = {
    "brush_hair": {"April_09_brush_hair_u_nm_np1_ba_goo_0.avi": 1, "Silky_#1_brush_hair_h_nm_np1_fr_med_2.avi": 2},
    "walk": {
        "A_walk_in_x_walk_f_cm_np1_fr_bad_1.avi": 1,
        "Silky_#1_walk_f_nm_np2_le_goo_11.avi": 2,
        "T_run_f_cm_np1_ri_med_0.avi": 0,
    },
}


def hmdb(root: Path, videos: str, lists: str) -> Path:
    """The data set with fold 1 as above, and fold 3 with training and test exchanged."""
    for label, clips in HMDB.items():
        touch(root, *(os.path.join(videos, label, name) for name in clips))
        (root / lists).mkdir(parents=True, exist_ok=True)
        for fold, numbers in ((1, (0, 1, 2)), (3, (0, 2, 1))):
            text = "".join(f"{name} {numbers[number]} \n" for name, number in clips.items())
            (root / lists / f"{label}_test_split{fold}.txt").write_text(text)
    return root


@pytest.mark.parametrize("lists", ["split/testTrainMulti_7030_splits", "testTrainMulti_7030_splits", "splits"])
@pytest.mark.parametrize("videos", ["videos", "", "hmdb51_org"])
def test_hmdb51_in_its_usual_places(tmp_path: Path, videos: str, lists: str) -> None:
    root = hmdb(tmp_path / "data", videos, lists)
    names = {0: "unused", 1: "train", 2: "query"}
    expected = {name: names[number] for clips in HMDB.values() for name, number in clips.items()}
    for source in {root, root / videos}:
        found = scan(source)
        assert found.layout == "hmdb51"
        assert splits(found) == expected
        assert {c.label for c in found} == {"brush_hair", "walk"}
        assert {c.group for c in found} == {"April_09", "Silky_#1", "A_walk_in_x", "T_run"}
        assert len(found.notes) == 1 and found.ignored == Counter()
    turned = {"train": "query", "query": "train", "unused": "unused"}
    assert splits(scan(root, "hmdb51", fold=3)) == {name: turned[split] for name, split in expected.items()}
    with pytest.raises(UserError, match=r"fold 2 needs CLASS_test_split2.txt; there is: brush_hair_test_split1.txt"):
        scan(root, fold=2)


def test_hmdb51_counts_what_does_not_fit(tmp_path: Path) -> None:
    hmdb(tmp_path, "videos", "splits")
    touch(tmp_path, "videos/walk/odd name.avi", "videos/run/Silky_#1_run_f_nm_np1_fr_med_0.avi")
    file = tmp_path / "splits" / "walk_test_split1.txt"
    good = file.read_text().replace("goo_11.avi 2", "goo_11.avi 1")
    file.write_text(good + "gone.avi 1\n")
    (tmp_path / "videos" / "empty").mkdir()
    found = scan(tmp_path)
    assert found.notes[1:] == [
        "the split files name 1 videos (of 6) that are not there: walk/gone.avi",
        "2 videos are in no split file (split 'unused'): videos/run/Silky_#1_run_f_nm_np1_fr_med_0.avi, "
        "videos/walk/odd name.avi",
        "1 videos whose name does not give their film have no group: videos/walk/odd name.avi",
        "1 of 3 groups cross splits (2 videos): Silky_#1 (query 1, train 1); clips of one source in training and query "
        "make retrieval look better than it is",
        "1 class folders without videos: videos/empty",
    ]
    file.write_text(good + "A_walk_in_x_walk_f_cm_np1_fr_bad_1.avi 2\n")
    with pytest.raises(UserError, match=r"two splits: walk/A_walk_in_x_walk_f_cm_np1_fr_bad_1.avi \(train and query\)"):
        scan(tmp_path)
    assert len(scan(tmp_path, split_rule="random:0.5")) == 7
    file.write_text(good + "a.avi 3\n")
    with pytest.raises(UserError, match=r"walk_test_split1.txt: line 4 is 'a.avi 3'; a line is 'NAME.avi 0\|1\|2'"):
        scan(tmp_path)
    with pytest.raises(UserError, match="no split files of HMDB51"):
        scan(tmp_path / "videos" / "walk", "hmdb51")


# Kinetics ------------------------------------------------------------------------------------------------------------

IDS = ["-aBcDeFgH_0", "0123456789a", "zzzzzzzzzz_", "_-_-_-_-_-_"]


@pytest.mark.parametrize(
    ("train", "val"), [("train_split", "val_split"), ("train", "val"), ("train_256", "val_256"), ("train", "test")]
)
@pytest.mark.parametrize("videos", ["", "videos"])
def test_kinetics_folders(tmp_path: Path, videos: str, train: str, val: str) -> None:
    root = tmp_path / videos
    touch(root, f"{train}/playing guitar/{IDS[0]}_000010_000020.mp4", f"{train}/playing guitar/{IDS[1]}.mp4")
    touch(root, f"{val}/abseiling/{IDS[2]}_000001_000011.mp4")
    (root / train / "yoga").mkdir()
    found = scan(tmp_path)
    assert found.layout == "kinetics"
    rows = sorted((c.label, c.split, c.group) for c in found)
    assert rows == [("abseiling", "query", IDS[2]), *(("playing guitar", "train", group) for group in IDS[:2])]
    top = f"{videos}/".lstrip("/")
    assert found.notes == [
        f"recognised as layout 'kinetics' by the folders {min(train, val)}/, {max(train, val)}/",
        f"1 class folders without videos: {top}{train}/yoga",
        foreign("abseiling", "playing guitar"),
    ]


def test_kinetics_tables(tmp_path: Path) -> None:
    """Flat folders and none: class and split come from the tables; the header and the file's name tell the split."""
    touch(
        tmp_path,
        f"train/{IDS[0]}_000010_000020.mp4",
        f"elsewhere/{IDS[1]}.mp4",
        f"elsewhere/{IDS[3]}_000000_000010.mp4",
    )
    head = "label,youtube_id,time_start,time_end"
    rows = f"playing guitar,{IDS[0]},10,20,train,0\nyoga,{IDS[1]},3.0,13.0,validate,0\nyoga,{IDS[2]},0,10,train,0\n"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.csv").write_text(f"{head},split,is_cc\n{rows}")
    found = scan(tmp_path, "kinetics")
    assert {c.group: (c.label, c.split) for c in found} == {
        IDS[0]: ("playing guitar", "train"),
        IDS[1]: ("elsewhere", "query"),
        IDS[3]: ("elsewhere", "unused"),
    }
    assert found.ignored == Counter()
    assert found.notes == [
        f"the tables name 1 videos (of 3) that are not there: {IDS[2]}_000000_000010",
        f"1 videos are in no split folder or table (split 'unused'): elsewhere/{IDS[3]}_000000_000010.mp4",
        f"1 videos lie in a folder of another class than the tables say; the folder's is taken: elsewhere/{IDS[1]}.mp4",
        foreign("elsewhere", "playing guitar"),
    ]
    (tmp_path / "annotations" / "all.csv").unlink()
    (tmp_path / "annotations" / "k400_val.csv").write_text(f"{head}\nyoga,{IDS[1]},3,13\n")
    assert {c.group: c.split for c in scan(tmp_path, "kinetics")}[IDS[1]] == "query"


def test_kinetics_recognises_flat_folders_by_a_table(tmp_path: Path) -> None:
    touch(tmp_path, f"k/train/{IDS[0]}.mp4", f"k/val/{IDS[1]}.mp4")
    assert scan(tmp_path / "k").layout == "folders"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "t.csv").write_text(f"youtube_id,label\n{IDS[0]},a b\n{IDS[1]},c\n")
    found = scan(tmp_path / "k")
    assert (found.layout, [(c.label, c.split) for c in found]) == ("kinetics", [("a b", "train"), ("c", "query")])


def test_kinetics_refuses_and_counts(tmp_path: Path) -> None:
    touch(tmp_path, f"train/a/{IDS[0]}_000000_000010.mp4", f"val/a/{IDS[0]}_000020_000030.mp4", f"test/a/{IDS[1]}.mp4")
    notes = scan(tmp_path).notes
    assert notes[1] == "folders of val and of test are both split 'query'"
    assert notes[2].startswith(f"1 of 2 groups cross splits (2 videos): {IDS[0]} (query 1, train 1)")
    table = tmp_path / "kinetics.csv"
    table.write_text(f"label,youtube_id,time_start,time_end,split\nA,{IDS[0]},0,10,val\n")
    with pytest.raises(
        UserError, match=r"1 videos are in two splits: train/a/-aBcDeFgH_0_000000_000010.mp4 \(query and"
    ):
        scan(tmp_path)
    table.write_text(f"label,youtube_id,time_start,time_end,split\na,{IDS[1]},0,10,val\na,{IDS[1]},0,10,train\n")
    with pytest.raises(UserError, match=r"1 videos are in two splits: test/a/0123456789a.mp4"):
        scan(tmp_path)
    table.write_text(f"label,youtube_id,split\na,{IDS[1]},trian\n")
    with pytest.raises(UserError, match=r"kinetics.csv: row 1: split 'trian'; known: train, val"):
        scan(tmp_path)
    table.write_text(f"label,youtube_id,time_start\na,{IDS[1]},soon\n")
    with pytest.raises(UserError, match=r"kinetics.csv: row 1: a time is no number"):
        scan(tmp_path)
    table.unlink()
    touch(tmp_path, f"val/a/{IDS[0]}_000000_000010.mp4")
    with pytest.raises(UserError, match="1 videos are there twice under one name"):
        scan(tmp_path)
    with pytest.raises(UserError, match="neither folders train_split/ and val_split/"):
        scan(tmp_path / "train", "kinetics")
    assert len(scan(tmp_path, split_rule="random:0.1")) == 4


def test_what_only_looks_like_kinetics(tmp_path: Path) -> None:
    """A class called `train`, and names that every folder has."""
    touch(tmp_path / "vehicles", "train/a.mp4", "car/b.mp4")
    assert scan(tmp_path / "vehicles").layout == "folders"
    touch(tmp_path / "own", "train/x/001.mp4", "train/y/001.mp4", "test/x/v_x_g02_c01.mp4")
    found = scan(tmp_path / "own")
    assert [(c.split, c.label, c.group) for c in found] == [
        ("query", "x", "g02"),
        ("train", "x", None),
        ("train", "y", None),
    ]


def test_kinetics_as_it_is_downloaded(tmp_path: Path) -> None:
    """With `replacement/`, whose files are the sound ones of broken clips, and tables whose columns come in any order."""
    broken, alone = f"{IDS[0]}_000000_000010.mp4", f"{IDS[3]}_000000_000010.mp4"
    touch(tmp_path, f"train/zumba/{broken}", f"val/yoga/{IDS[1]}_000000_000010.mp4", "demo.mp4")
    touch(tmp_path, f"replacement/replacement_for_corrupted_k400/{broken}", f"replacement/r/{alone}")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.csv").write_text(
        f"youtube_id,time_end,time_start,label\n{IDS[0]},10,0,zumba\n{IDS[3]},10,0,playing chess\n"
    )
    found = scan(tmp_path)
    assert [(os.path.relpath(c.path, tmp_path), c.label, c.split, c.group) for c in found] == [
        ("demo.mp4", None, "unused", None),
        (f"replacement/r/{alone}", "playing chess", "train", IDS[3]),
        (f"replacement/replacement_for_corrupted_k400/{broken}", "zumba", "train", IDS[0]),
        (f"val/yoga/{IDS[1]}_000000_000010.mp4", "yoga", "query", IDS[1]),
    ]
    assert found.notes[0].startswith("recognised as layout 'kinetics' by the folders train/, val/ and the table")
    assert found.notes[1].startswith("1 videos are taken from replacement folders instead of the split folders: repl")
    assert found.ignored == Counter()


def test_kinetics_unpacked_into_folders_of_its_names(tmp_path: Path) -> None:
    touch(tmp_path, f"train/train/zumba/{IDS[0]}_000000_000010.mp4", f"val/val/yoga/{IDS[1]}_000000_000010.mp4")
    found = scan(tmp_path)
    assert found.layout == "kinetics"
    assert [(c.label, c.split) for c in found] == [("zumba", "train"), ("yoga", "query")]


@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_flat_folder_with_a_table_of_kinetics(tmp_path: Path, mark: str) -> None:
    touch(tmp_path, f"{IDS[0]}_000000_000010.mp4", f"{IDS[1]}.mp4")
    table = f"split,youtube_id,time_start,time_end,label\nval,{IDS[0]},0,10,zumba\ntrain,{IDS[1]},0,10,yoga\n"
    (tmp_path / "clips.csv").write_text(table.replace(",", mark))
    found = scan(tmp_path)
    assert found.layout == "kinetics"
    assert [(c.label, c.split) for c in found] == [("zumba", "query"), ("yoga", "train")]
    (tmp_path / "clips.csv").write_text("youtube_id,label\nnothing_her,x\n")
    found = scan(tmp_path)
    assert (found.layout, found.notes) == (
        "flat",
        ["the tables of kinetics (clips.csv) name none of the videos; not used"],
    )


def test_videos_in_no_list_may_share_a_name(tmp_path: Path) -> None:
    touch(tmp_path, *UCF, "mine/1/video.mp4", "mine/2/video.mp4")
    write(tmp_path, trainlist01=TRAIN, testlist01=TEST)
    assert sum(c.split == "unused" for c in scan(tmp_path)) == 2


@pytest.mark.parametrize(
    "text",
    [
        'label, youtube_id, time_start, time_end, split\n"head, neck", "abcdefghijk", 0, 10, "val"\n',
        '"label", "youtube_id", "time_start", "time_end", "split"\n"head, neck", "abcdefghijk", "0", "10", "val"\n',
        "# clips\n'Label';'YouTube_ID' ;time_start;time_end;split\n'head, neck';abcdefghijk;0;10;val\n",
    ],
)
def test_a_table_of_kinetics_with_blanks_and_quotes(tmp_path: Path, text: str) -> None:
    """What recognises the table and what reads it see the same columns."""
    touch(tmp_path, "abcdefghijk_000000_000010.mp4")
    (tmp_path / "clips.csv").write_text(text)
    found = scan(tmp_path)
    assert [(found.layout, c.label, c.split) for c in found] == [("kinetics", "head, neck", "query")]


@pytest.mark.parametrize("time", ["inf", "-inf", "nan", "1e999", "soon"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, time: str) -> None:
    touch(tmp_path, "abcdefghijk_000000_000010.mp4")
    (tmp_path / "clips.csv").write_text(f"label,youtube_id,time_start,time_end\nx,abcdefghijk,{time},10\n")
    with pytest.raises(UserError, match=r"clips.csv: row 1: a time is no number"):
        scan(tmp_path)
