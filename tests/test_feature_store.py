"""feature_store.py: what is written is read again, whole or in blocks; stale, foreign and broken files are refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vicc_ray.errors import UserError
from vicc_ray.evaluation import feature_store
from vicc_ray.evaluation.feature_store import (
    Source,
    VideoFeatures,
    feature_rows,
    matches,
    read_columns,
    read_features,
    read_source,
    stream_blocks,
    write_features,
)
from vicc_ray.metrics.search import top_k
from vicc_ray.runs.encoders import file_hash

SOURCE = Source("RGB-2", "ab12", "cd34", {"frames": 16, "stride": 7, "size": 112, "windows": "all", "style": "paper"})


def table(rows: int = 50, width: int = 6, first: int = 0) -> VideoFeatures:
    numbers = range(first, first + rows)
    return VideoFeatures(
        ids=[f"v/{number}.mp4" for number in numbers],
        labels=[None if number == 3 else f"class {number % 4}" for number in numbers],
        groups=[None if number % 5 else f"g{number % 3}" for number in numbers],
        splits=["test" if number % 3 == 0 else "train" for number in numbers],
        windows=[1 + number % 9 for number in numbers],
        vectors=np.random.default_rng(first).normal(size=(rows, width)).astype(np.float32),
    )


def equal(a: VideoFeatures, b: VideoFeatures) -> bool:
    names = ("ids", "labels", "groups", "splits", "windows")
    return all(list(getattr(a, name)) == list(getattr(b, name)) for name in names) and np.array_equal(
        a.vectors, b.vectors
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "deep" / "RGB-2.parquet")


def test_what_is_written_is_read_again(path: str) -> None:
    assert write_features(path, SOURCE, table()) == 50
    assert equal(read_features(path), table())
    assert read_source(path) == SOURCE
    assert equal(read_features(f"file://{path}"), table())


def test_features_are_kept_in_another_store() -> None:
    name = "memory://features/deep/RGB-2.parquet"
    assert not matches(name, SOURCE.key)
    write_features(name, SOURCE, iter([table(20), table(30, first=20)]))
    assert matches(name, SOURCE.key) and read_features(name, "test").ids[-1] == "v/48.mp4"
    assert np.array_equal(feature_rows(name).whole()[:20], table(20).vectors)


def test_parts_in_row_groups_and_any_block_size_give_one_table(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "GROUP_BYTES", 7 * 6 * 4)
    parts = [table(20), table(1, first=20), table(0), table(29, first=21)]
    assert write_features(path, SOURCE, iter(parts)) == 50
    assert pq.ParquetFile(path).metadata.row_group(0).num_rows == 7
    want = np.concatenate([part.vectors for part in parts])
    assert np.array_equal(read_features(path).vectors, want)
    for size in (1, 7, 16, 50, 99):
        blocks = list(feature_rows(path).blocks(size))
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert np.array_equal(np.concatenate(blocks), want)
    streamed = list(stream_blocks(path, 16))
    assert max(map(len, streamed)) <= 16 and np.array_equal(np.concatenate(streamed), want)


def test_a_split_is_selected_the_same_way_everywhere(path: str) -> None:
    write_features(path, SOURCE, table())
    want = table().select("test")
    assert want.ids[:2] == ["v/0.mp4", "v/3.mp4"] and len(want) == 17
    assert equal(read_features(path, "test"), want)
    assert np.array_equal(feature_rows(path, "test").whole(), want.vectors)
    assert read_columns(path, "test")["labels"] == want.labels
    for call in (read_features, read_columns, feature_rows):
        with pytest.raises(UserError, match=r"split 'val' has no videos; splits there: test, train"):
            call(path, "val")
    with pytest.raises(UserError, match=r"split 'val' has no videos"):
        table().select("val")


def test_a_streamed_gallery_is_searched_as_one_in_memory(path: str) -> None:
    write_features(path, SOURCE, table(500))
    query = table(20, first=500).vectors
    streamed, held = top_k(feature_rows(path), query, 9), top_k(table(500).vectors, query, 9)
    assert np.array_equal(streamed[0], held[0]) and np.array_equal(streamed[1], held[1])


def test_features_are_used_again_only_while_nothing_changed(path: str) -> None:
    assert not matches(path, SOURCE.key)
    write_features(path, SOURCE, table())
    assert matches(path, SOURCE.key)
    reordered = replace(SOURCE, protocol=dict(reversed(list(SOURCE.protocol.items()))))
    assert matches(path, reordered.key)
    for other in (
        replace(SOURCE, encoder="RGB-1"),
        replace(SOURCE, encoder_hash="ff"),
        replace(SOURCE, manifest="ff"),
        replace(SOURCE, protocol=dict(SOURCE.protocol) | {"stride": 8}),
    ):
        assert not matches(path, other.key)


def test_a_failed_write_leaves_the_earlier_file(path: str) -> None:
    write_features(path, SOURCE, table())
    before = Path(path).read_bytes()
    broken = table(5, first=60)
    broken.vectors[2, 1] = np.nan
    with pytest.raises(UserError, match=r"1 videos hold NaN .*first: v/62.mp4"):
        write_features(path, SOURCE, iter([table(10), broken]))
    with pytest.raises(UserError, match=r"v/0.mp4 comes twice"):
        write_features(path, SOURCE, iter([table(10), table(1)]))
    with pytest.raises(ValueError, match="vectors of 4 values after some of 6"):
        write_features(path, SOURCE, iter([table(10), table(1, 4, first=10)]))
    with pytest.raises(UserError, match=r"no features to write"):
        write_features(path, SOURCE, table(0))
    assert Path(path).read_bytes() == before and [file.name for file in Path(path).parent.iterdir()] == [
        "RGB-2.parquet"
    ]


def test_missing_foreign_and_cut_files_are_refused_in_one_line(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RGB-2.parquet: no such file of features"):
        read_features(path)
    foreign = str(tmp_path / "foreign.parquet")
    pq.write_table(pa.table({"id": ["a"]}), foreign)
    with pytest.raises(UserError, match=r"not one of features"):
        feature_rows(foreign)
    write_features(path, SOURCE, table())
    Path(path).write_bytes(Path(path).read_bytes()[:-20])
    with pytest.raises(UserError, match=r"is no whole file of features"):
        read_columns(path)
    assert not matches(path, SOURCE.key) and not matches(foreign, SOURCE.key)


def test_no_single_bit_that_flips_is_believed(path: str) -> None:
    with feature_store.writing_features(path, SOURCE) as writer:
        writer.add(table(40, 16))
        writer.refuse("v/gone.mp4", "no such file")
    whole = Path(path).read_bytes()
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        chunks = [group.column(number) for number in range(group.num_columns)]
    # The ends of each column's pages, and the texts in the footer.
    ends = [
        min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) + c.total_compressed_size
        for c in chunks
    ]
    places = [place for end in ends for place in range(end - 8, end)]
    for text in (b"v/gone.mp4", b"no such file", b"RGB-2", b'"stride": 7'):
        places += range(whole.index(text), whole.index(text) + len(text))
    draw = random.Random(0)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        Path(path).write_bytes(damaged)
        assert not matches(path, SOURCE.key), place
    Path(path).write_bytes(whole)
    assert matches(path, SOURCE.key)


def test_what_is_damaged_after_it_was_checked_is_refused_in_one_line(path: str) -> None:
    write_features(path, SOURCE, table())
    whole = Path(path).read_bytes()
    where = whole.index(table().vectors[10:12].tobytes())
    Path(path).write_bytes(whole[:where] + bytes(20) + whole[where + 20 :])
    for read in (read_features, lambda name: list(stream_blocks(name, 16))):
        with pytest.raises(UserError, match=r"RGB-2.parquet: is no whole file of features"):
            read(path)


def test_a_file_without_checksums_is_not_used(path: str) -> None:
    write_features(path, SOURCE, table())
    whole = pq.read_table(path)
    pq.write_table(whole, path)
    assert not matches(path, SOURCE.key)
    with pytest.raises(UserError, match=r"written by an earlier version, without checksums"):
        read_source(path)


def test_rows_that_were_missing_come_into_their_places(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "PART_ROWS", 7)
    late = [0, 1, 13, 14, 30, 48, 49]
    early = [row for row in range(50) if row not in late]
    with feature_store.writing_features(path, SOURCE) as writer:
        writer.add(table().take(early))
        for row in late:
            writer.refuse(f"v/{row}.mp4", "lost")
    with feature_store.completing_features(path, SOURCE, table().ids) as patch:
        patch.refuse("v/0.mp4", "still lost")
    assert equal(read_features(path), table().take(early)) and len(feature_store.read_refused(path)) == 7
    with feature_store.completing_features(path, SOURCE, table().ids) as patch:
        patch.add(table().take(late[1:3]))
        patch.add(table().take(late[3:]))
        patch.refuse("v/0.mp4", "still lost")
    assert equal(read_features(path), table().take(range(1, 50)))
    assert feature_store.read_refused(path) == (("v/0.mp4", "still lost"),) and matches(path, SOURCE.key)


def test_columns_that_do_not_fit_are_a_bug() -> None:
    with pytest.raises(ValueError, match="beside 50 vectors"):
        replace(table(), ids=["a"])
    with pytest.raises(ValueError, match="float32"):
        replace(table(), vectors=np.zeros((50, 3)))  # type: ignore[arg-type]


def test_the_hash_is_of_all_bytes(tmp_path: Path) -> None:
    file = tmp_path / "encoder"
    file.write_bytes(bytes(9_000_000))
    first = file_hash(str(file))
    file.write_bytes(bytes(5_000_000) + b"\1" + bytes(3_999_999))
    assert file_hash(str(file)) != first
