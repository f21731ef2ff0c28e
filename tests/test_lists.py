"""Lists and tables as other projects and data sets have them: read, or refused with what would be readable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_layouts import touch

from vicc_ray.data.layouts import Found, scan
from vicc_ray.errors import UserError

SOMETHING = {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]}


def read(root: Path, name: str, text: str, layout: str = "auto") -> Found:
    (root / name).write_text(text, encoding="utf-8")
    return scan(root / name, layout)


def rows(root: Path, found: Found) -> list[tuple[str, str | None]]:
    return [(c.path.replace(f"{root}/", ""), c.label) for c in found]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mmaction2.txt", "a/x.mp4 0\na/y z.mp4 12\n"),
        ("tabs.txt", "a/x.mp4\t0\r\na/y z.mp4\t12\r\n"),
        ("commas.txt", "a/x.mp4,0\na/y z.mp4, 12\n"),
        ("quoted.txt", "'a/x.mp4' 0\n\"a/y z.mp4\" 12\n"),
        ("spaced.csv", "'a/x.mp4' 0\n\"a/y z.mp4\" 12\n"),
        ("slowfast.csv", "a/x.mp4 0\na/y z.mp4 12\n"),
        ("timesformer.csv", "a/x.mp4,0\na/y z.mp4,12\n"),
        ("quoted.csv", '"a/x.mp4","0"\n"a/y z.mp4","12"\n'),
        ("turned.csv", "0,a/x.mp4\n12,a/y z.mp4\n"),
        ("semicolons.csv", "video;label\na/x.mp4;0\na/y z.mp4;12\n"),
        ("t.tsv", "path\tlabel\na/x.mp4\t0\na/y z.mp4\t12\n"),
        ("bare.tsv", "a/x.mp4\t0\na/y z.mp4\t12\n"),
        ("header.txt", "video,label\na/x.mp4,0\na/y z.mp4,12\n"),
        ("metadata.csv", "file_name,label\na/x.mp4,0\na/y z.mp4,12\n"),
        ("metadata.jsonl", '{"file_name": "a/x.mp4", "label": 0}\n\n{"label": "12", "file_name": "a/y z.mp4"}\n'),
        ("mmaction2.json", '[{"filename": "a/x.mp4", "label": [0]}, {"filename": "a/y z.mp4", "label": 12}]'),
        ("mmengine.json", '{"metainfo": {}, "data_list": [{"filename": "a/x.mp4", "label": 0}, '
         '{"filename": "a/y z.mp4", "label": 12}]}'),
        ("mapping.json", '{"a/x.mp4": 0, "a/y z.mp4": {"label": "12"}}'),
    ],
)  # fmt: skip
def test_videos_with_labels(tmp_path: Path, name: str, text: str) -> None:
    assert rows(tmp_path, read(tmp_path, name, text)) == [("a/x.mp4", "0"), ("a/y z.mp4", "12")]


def test_labels_of_several_words_and_none(tmp_path: Path) -> None:
    found = read(tmp_path, "l.txt", "# made by hand\na b.mp4 playing guitar\ns3://b/c.avi 7\nd.webm\nno_extension\n")
    assert rows(tmp_path, found) == [
        ("a b.mp4", "playing guitar"),
        ("s3://b/c.avi", "7"),
        ("d.webm", None),
        ("no_extension", None),
    ]
    assert found.notes == [
        "1 lines begin with '#', name no video and are passed over: # made by hand",
        "2 of 4 lines have no label",
    ]
    assert read(tmp_path, "n.txt", "a.mp4 0\nb.mp4 7\n").notes == [
        "classes are the numbers that the list gives (2 of them)"
    ]
    assert rows(tmp_path, read(tmp_path, "one.csv", "a.mp4\nb.mp4\n")) == [("a.mp4", None), ("b.mp4", None)]
    assert rows(tmp_path, read(tmp_path, "strings.json", '["a.mp4", "b.mp4"]')) == [("a.mp4", None), ("b.mp4", None)]
    touch(tmp_path, "a.mp4 0", "#1.mp4")
    assert rows(tmp_path, read(tmp_path, "l.txt", "a.mp4 0\n#1.mp4\n")) == [("a.mp4 0", None), ("#1.mp4", None)]


def test_something_something(tmp_path: Path) -> None:
    """Videos by their ids, wherever they lie below the list; the class is the template, `label` is a sentence."""
    touch(tmp_path, "20bn-something-something-v2/78687.webm", "20bn-something-something-v2/5.webm")
    found = read(tmp_path, "train.json", json.dumps([SOMETHING, SOMETHING | {"id": "9"}]))
    assert rows(tmp_path, found) == [("20bn-something-something-v2/78687.webm", "Holding something")]
    assert found.notes == [
        "2 columns are not used: label, placeholders",
        f"it names 1 videos (of 2) that are not below {tmp_path}: 9",
    ]
    assert rows(tmp_path, read(tmp_path, "t.csv", "id,label\n5,x\n")) == [("20bn-something-something-v2/5.webm", "x")]
    with pytest.raises(
        UserError, match=r"none of its 1 is below .* \(such as 9.webm\); put it beside the folder of its"
    ):
        read(tmp_path, "test.json", '[{"id": "9"}]')
    touch(tmp_path, "small/5.mp4")
    with pytest.raises(UserError, match=r"1 ids have several files: .*keep one of each"):
        read(tmp_path, "t.csv", "id,label\n5,x\n")


HVU = [{"filename": "a.mp4", "label": {"concept": [1, 2], "action": [3]}}]
READABLE = r'an entry is readable as {"video": "folder/a.mp4", "label": "a class"}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "b.mp4 1\na.mp4 1 2\n", "line 2 is 'a.mp4 1 2': 2 values follow the video, which has one label; write 'a"),
        ("l.txt", "a.mp4 0.0 5.2 jump\n", "3 values follow the video, which has one label; write 'a.mp4 LABEL'"),
        ("l.csv", "a.mp4 0.0 5.2 jump\n", "line 1 is .*: 3 values follow the video"),
        ("l.csv", "a.mp4 1\nb.mp4,2,3\n", "line 2 has 3 cells, the first line 1; a line without a header is 'folder/a.mp4,L"),
        ("l.txt", "a.mp4,x,train\n", "or put a line above all that names the columns, such as video,label,split"),
        ("l.txt", "a.mp4\tx\ttrain\n", "such as video<TAB>label<TAB>split"),
        ("frames.txt", "x/frames 120 3\n", "names no video file .* lists of folders of pictures are not read"),
        ("t.csv", "a.mp4,3,train\nb.mp4,4,val\n", "names its 3 columns; put one above all, such as: video,label,split"),
        ("t.csv", "a.mp4,b.avi\n", "has no line that names its 2 columns"),
        ("t.csv", "5;Pushing [something]\n", "A line above all names the columns, such as: video,label"),
        ("hvu.json", HVU, r"entry 1: 'label' has several values \(concept, action\), a video has one; " + READABLE),
        ("l.json", [{"filename": "a.mp4", "label": [1, 2]}], r"several values \(1, 2\)"),
        ("k.json", {"-3B32lodo2M": {"annotations": {"label": "x"}}}, "its keys .* are none; " + READABLE),
        ("k.json", [{"video": "a.mp4", "annotations": [{"label": "x"}]}], "'annotations' are read as ActivityNet has them"),
        ("labels.json", {"Holding something": "0"}, "holds no list of videos"),
        ("l.json", [1, 2], "entry 1 is 1; " + READABLE),
        ("l.json", [], "holds no list of videos"),
        ("l.json", "[{", "cannot be read as JSON"),
        ("l.jsonl", "{}\n{", "cannot be read as JSON"),
        ("l.json", "[" * 100_000, "cannot be read as JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_what_could(tmp_path: Path, name: str, text: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, name, text if isinstance(text, str) else json.dumps(text))


def test_rows_of_one_video_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, "t.csv", "video,label,start,end\na.mp4,x,0,5\na.mp4,x,5,9\nb.mp4,x,0,5\na.mp4,x,9,12\n")
    assert [(c.path[-5:], str(c.span)) for c in found] == [
        ("a.mp4", "0-5 s"),
        ("a.mp4", "5-9 s"),
        ("b.mp4", "0-5 s"),
        ("a.mp4", "9-12 s"),
    ]
    found = read(tmp_path, "t.csv", "video,label,start,end\na.mp4,x,0,5\na.mp4,x,0,5.0\nb.mp4,x,,\nb.mp4,x,,\n")
    assert len(found) == 2
    assert found.notes == [
        f"2 rows name a video, or a part of one, that an earlier row names, and add nothing: {tmp_path}/a.mp4, {tmp_path}/b.mp4"
    ]


@pytest.mark.parametrize(
    ("splits", "expected", "notes"),
    [
        ("train query", "train query", []),
        ("train test", "train query", ["splits of the table by their words: 'test' is query"]),
        ("TRAIN VAL", "train query", ["splits of the table by their words: 'TRAIN' is train, 'VAL' is query"]),
        ("Train Test", "train query", ["splits of the table by their words: 'Test' is query, 'Train' is train"]),
        (
            "training validation",
            "train query",
            ["splits of the table by their words: 'training' is train, 'validation' is query"],
        ),
        (
            "Train val test",
            "train val test",
            [
                "splits of the table by their words: 'Train' is train",
                "splits are called as the table calls them (test, train, val): name the query side with "
                "--set data.query_split=NAME or 'vicc evaluate --test-on NAME', others with data.train_split, data.gallery_split",
            ],
        ),
        (
            "- test",
            "train query",
            ["splits of the table by their words: 'test' is query", "1 of 2 rows have no split and are split 'train'"],
        ),
        (
            "0 1",
            "0 1",
            [
                "splits '0', '1' are no known words and stay as they are (0, 1): name the training side with "
                "--set data.train_split=NAME --set data.gallery_split=NAME, the query side with --set data.query_split=NAME"
            ],
        ),
        ("train unused", "train unused", []),
        ("Gallery query", "train query", ["splits of the table by their words: 'Gallery' is train"]),
        ("- -", "train train", []),
    ],
)
def test_splits_of_a_table_are_read_by_the_words_of_folders(
    tmp_path: Path, splits: str, expected: str, notes: list[str]
) -> None:
    lines = [f"{number}.mp4,{split.strip('-')}" for number, split in enumerate(splits.split())]
    found = read(tmp_path, "t.csv", "video,split\n" + "\n".join(lines))
    assert [c.split for c in found] == expected.split()
    assert found.notes == notes


def test_several_words_of_a_side_stay_splits(tmp_path: Path) -> None:
    found = read(tmp_path, "t.csv", "video,split\na.mp4,train\nb.mp4,gallery\nc.mp4,query\nd.mp4,train_and_test\n")
    assert [c.split for c in found] == ["train", "gallery", "query", "train_and_test"]
    assert found.notes[0].startswith("splits 'train_and_test' are no known words and stay as they are")
    found = read(tmp_path, "t.csv", "video,split\na.mp4,train\nb.mp4,gallery\nc.mp4,query\n")
    assert found.notes[0].startswith("splits are called as the table calls them (gallery, query, train)")


TOLD = (
    "it has no splits; those of the folders test/, train/ in its paths are taken (query 1, train 1); for others add a "
    "column 'split' or say --split 'train: rest'"
)


@pytest.mark.parametrize(
    ("name", "text", "expected", "notes"),
    [
        ("l.txt", "train/a.mp4 x\ntest/b.mp4 x\n", "train query", [TOLD]),
        ("l.txt", "d/train/x/a.mp4\nd/test/x/b.mp4\n", "train query", [TOLD]),
        ("t.csv", "video,label\nx/train/a.mp4,x\nx/test/b.mp4,x\n", "train query", [TOLD]),
        (
            "metadata.jsonl",
            '{"file_name": "train/a.mp4", "label": "x"}\n{"file_name": "test/b.mp4", "label": "x"}',
            "train query",
            [TOLD],
        ),
        ("t.csv", "video,split\ntrain/a.mp4,query\ntest/b.mp4,train\n", "query train", []),
        ("l.txt", "bus/a.mp4 bus\ntrain/b.mp4 train\n", "train train", []),
        ("l.txt", "train/a.mp4\ntrain/b.mp4\n", "train train", []),
        (
            "l.txt",
            "test/a.mp4 test\ntrain/b.mp4 train\n",
            "train train",
            ["test/, train/ in its paths are the labels and not taken for splits; for splits add a column 'split'"],
        ),
    ],
)
def test_split_folders_in_the_paths_of_a_table_are_splits(
    tmp_path: Path, name: str, text: str, expected: str, notes: list[str]
) -> None:
    found = read(tmp_path, name, text)
    assert [c.split for c in found] == expected.split()
    assert found.notes == notes
    assert {c.split for c in scan(tmp_path / name, split_rule="train: rest")} == {"train"}


def test_a_table_in_a_folder_is_said_to_be_unread(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.mp4,x\nc.mp4,y\n")
    (tmp_path / "other.csv").write_text("file_name,label\nz.mp4,x\n")
    found = scan(tmp_path)
    assert [c.label for c in found] == [None, None]
    assert found.notes == [
        "metadata.csv names 1 of the 2 videos; it is not read with the folder: for its labels and splits index it by itself "
        f"(vicc index {tmp_path}/metadata.csv)"
    ]


def test_nested_columns_of_parquet_are_refused(tmp_path: Path) -> None:
    """Hugging Face's tables may hold the video's bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"video": [{"bytes": b"x", "path": "a.mp4"}]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="column 'video' holds struct<bytes: binary, path: string>, not a name a row"):
        scan(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "text",
    [
        'video, label\nl/a b.mp4, "jump"\nl/c,c.mp4, "run"\n'.replace("l/c,c.mp4", '"l/c,c.mp4"'),
        '"video", "label"\n"l/a b.mp4", "jump"\n"l/c,c.mp4", "run"\n',
        '"video" , "label"\n"l/a b.mp4" , "jump" \n"l/c,c.mp4" , "run"\n',
        "'video','label'\n'l/a b.mp4', 'jump'\n\"l/c,c.mp4\", ' run '\n",
        '"l/a b.mp4", "jump"\n"l/c,c.mp4", "run"\n',
        'video; label\nl/a b.mp4; "jump"\nl/c,c.mp4; "run"\n',
        'video\tlabel\nl/a b.mp4\t "jump"\nl/c,c.mp4\t "run"\n',
        "# made by hand\n#\nvideo,label\nl/a b.mp4,jump\n\"l/c,c.mp4\",run\n",
        "# video,label\nl/a b.mp4,jump\n\"l/c,c.mp4\",run\n",
    ],
)  # fmt: skip
def test_cells_are_unquoted_by_one_rule(tmp_path: Path, text: str) -> None:
    assert rows(tmp_path, read(tmp_path, "t.csv", text)) == [("l/a b.mp4", "jump"), ("l/c,c.mp4", "run")]


def test_quotes_within_a_cell_stay(tmp_path: Path) -> None:
    found = read(
        tmp_path, "t.csv", 'video,label\na.mp4,"say ""hi"" , you"\nb.mp4,\'a\' or \'b\'\nc.mp4,it\'s 5" tall\n'
    )
    assert [label for _, label in rows(tmp_path, found)] == ['say "hi" , you', "'a' or 'b'", "it's 5\" tall"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4 0\nc,c.mp4 2\nb b.mp4 1\n", "a.mp4:0 c,c.mp4:2 b b.mp4:1"),
        ("c,c.mp4 2\na.mp4 0\n", "c,c.mp4:2 a.mp4:0"),
        ('"c,c.mp4" 0\n"b b.mp4" 1\na.mp4 2\n', "c,c.mp4:0 b b.mp4:1 a.mp4:2"),
        ('a.mp4 "jump, high"\nb.mp4 run\n', "a.mp4:jump, high b.mp4:run"),
        ("# by hand\na.mp4 0\nc,c.mp4 2\n", "a.mp4:0 c,c.mp4:2"),
    ],
)
def test_a_csv_parted_by_blanks(tmp_path: Path, text: str, expected: str) -> None:
    found = read(tmp_path, "t.csv", text)
    assert " ".join(f"{video}:{label}" for video, label in rows(tmp_path, found)) == expected
    passed_over = "1 lines above the table begin with '#' and are passed over"
    assert (passed_over in found.notes) == text.startswith("#")


def test_names_with_commas_that_are_there_are_whole_lines(tmp_path: Path) -> None:
    touch(tmp_path, "c,c.mp4", "d,d.mp4")
    assert rows(tmp_path, read(tmp_path, "t.csv", "c,c.mp4\nd,d.mp4\n")) == [("c,c.mp4", None), ("d,d.mp4", None)]


@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_a_split_at_the_end_of_every_line(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, "a.mp4 0 train\nb.mp4 high jump test\nc.mp4 1 TRAIN\n")
    assert [(c.label, c.split) for c in found] == [("0", "train"), ("high jump", "query"), ("1", "train")]
    assert any(
        "the last word of every line is taken for its split (TRAIN, test, train)" in note for note in found.notes
    )
    found = read(tmp_path, name, "a.mp4 train\nb.mp4 test\n")
    assert [(c.label, c.split) for c in found] == [(None, "train"), (None, "query")]
    found = read(tmp_path, "c.csv", "a.mp4,train\nb.mp4,test\n")
    assert [(c.label, c.split) for c in found] == [(None, "train"), (None, "query")]
    assert found.notes[0].startswith(
        "the column of splits' words is taken for splits; if these are classes, put a line"
    )
    found = read(tmp_path, name, "a.mp4 crash test\nb.mp4 run\n")
    assert [(c.label, c.split) for c in found] == [("crash test", "train"), ("run", "train")]
    assert any("1 of 2 labels end with a split's word, which stays in the label (crash test)" in n for n in found.notes)


@pytest.mark.parametrize("title", ["labels", "target", "tag", "label_name", "class_id", "Class"])
def test_columns_of_labels_by_other_names(tmp_path: Path, title: str) -> None:
    assert rows(tmp_path, read(tmp_path, "t.csv", f"video,{title}\na.mp4,x\n")) == [("a.mp4", "x")]
    assert rows(tmp_path, read(tmp_path, "u.csv", f"video,label,{title}2\na.mp4,x,y\n")) == [("a.mp4", "x")]


def test_a_table_whose_labels_are_not_known_says_so(tmp_path: Path) -> None:
    found = read(tmp_path, "t.csv", "video,verb,length\na.mp4,x,3\n")
    assert found.notes == [
        "2 columns are not used: verb, length",
        "no column is known as the labels': label, class, class_name, ...",
    ]
    assert read(tmp_path, "t.csv", "video,split\na.mp4,train\n").notes == []


def test_a_missing_number_is_no_class(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = read(tmp_path, "l.jsonl", '{"video": "a.mp4", "label": NaN}\n{"video": "b.mp4", "label": 2}\n')
    assert rows(tmp_path, found) == [("a.mp4", None), ("b.mp4", "2")]
    pq.write_table(pa.table({"video": ["a.mp4"], "label": [float("nan")]}), tmp_path / "t.parquet")
    assert rows(tmp_path, scan(tmp_path / "t.parquet")) == [("a.mp4", None)]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("video_id,start,end,class,split\nabcdefghijk,0,10,jump,val\n", "its labels and splits index it by itself"),
        (
            "abcdefghijk,0,10,jump,val\n",
            "call its columns label,youtube_id,time_start,time_end,split, as Kinetics does",
        ),
        (
            "clip;what\nabcdefghijk_000000_000010;jump\n",
            "it cannot be read as it is (.*no column 'video'; it has: clip;what",
        ),
    ],
)
def test_a_table_in_a_folder_that_cannot_be_read_is_said(tmp_path: Path, text: str, note: str) -> None:
    touch(tmp_path, "abcdefghijk_000000_000010.mp4", "b.mp4")
    (tmp_path / "k.csv").write_text(text)
    (tmp_path / "other.csv").write_text("one,two\n1,2\n")
    (told,) = scan(tmp_path).notes
    assert told.startswith("k.csv names 1 of the 2 videos; it is not read with the folder: for its labels and splits ")
    assert re.search(note.replace("(.*", r"\(.*"), told)
