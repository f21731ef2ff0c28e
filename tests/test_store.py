"""The packed store: what is written comes back, whole or not at all; damage, other stores and missing shards are noticed."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from packed import BOTH, header_of, make_store, psnr, row_of, seal_all, smooth_codes, write_entry, write_loose
from s3 import s3_bucket
from videos import spoil, truncate

from vicc_ray import storage
from vicc_ray.config import DataConfig, Decoded, Experiment, FlowConfig, make_experiment
from vicc_ray.data.decode import VideoError
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.rows import Rows
from vicc_ray.data.store import index as index_module
from vicc_ray.data.store import reading
from vicc_ray.data.store.checking import check_stored, open_stores
from vicc_ray.data.store.entry import GOP, Damaged
from vicc_ray.data.store.index import Index, Part, list_shards, part_table
from vicc_ray.data.store.reading import EntryReader, ShardFiles, Wanted
from vicc_ray.data.store.store import Header, PackedStore
from vicc_ray.data.store.writing import Key, NotWritten, list_loose, repair, seal
from vicc_ray.errors import UserError

Codes = NDArray[np.uint8]
SIZE = (48, 71)


def _textures(n: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Codes:
    """Smooth pictures that move, of colours that change more slowly than the light: uint8 RGB [n, H, W, 3]."""
    rng = np.random.default_rng(seed)

    def smooth(channels: int, sigma: float, least: float, most: float) -> NDArray[np.float32]:
        noise = rng.standard_normal((size[0] + 40, size[1] + 40, channels)).astype(np.float32)
        field = cv2.GaussianBlur(noise, (0, 0), sigma).reshape(noise.shape)
        return least + (most - least) * (field - field.min()) / (field.max() - field.min())  # type: ignore[no-any-return]

    field = smooth(1, 2.5, 0, 1) * smooth(3, 12.0, 60, 255)
    return np.stack([field[i % 37 : i % 37 + size[0], i % 23 : i % 23 + size[1]] for i in range(n)]).astype(np.uint8)


def _differences(got: Codes, want: Codes) -> NDArray[np.int16]:
    assert got.shape == want.shape and got.dtype == np.uint8
    return np.abs(got.astype(np.int16) - want)  # type: ignore[no-any-return]


def _read(store: PackedStore | str, row: VideoRow, numbers: object, stream: Decoded = "flow") -> Codes:
    """As a process that has just begun reads them."""
    folder = store if isinstance(store, str) else store.folder
    with closing(EntryReader(PackedStore.open(folder))) as reader:
        return reader.read(row, stream, np.asarray(numbers, np.int64))


def _shard(store: PackedStore, stream: Decoded = "flow") -> Path:
    (name,) = (name for name in list_shards(store.folder) if name.startswith(stream))
    return Path(store.folder, "shards", f"{name}.shard")


def _names(folder: str) -> list[str]:
    return sorted(entry.name.removeprefix(folder).lstrip("/") for entry in storage.list_files(folder))


# What is written comes back --------------------------------------------------------------------------------------------


def test_fields_come_back_within_two_steps(tmp_path: Path) -> None:
    store, row, codes = make_store(tmp_path, SIZE), row_of(101), smooth_codes(100, SIZE)
    write_entry(store, row, "flow", iter([codes[:1], codes[1:64], codes[64:]]))
    whole = _read(store, row, np.arange(100))
    assert _differences(whole, codes).max() <= 2
    assert (_differences(whole, codes) <= 1).mean() > 0.999
    # Any other field is further away, so these are the asked ones.
    for origins in ([0], [99], [15, 16, 17], [1, 40, 41, 97], [50, 3, 50, 98], list(range(0, 100, 7))):
        got = _read(store, row, origins)
        assert np.array_equal(got, whole[origins]), origins
        assert _differences(got, codes[np.array(origins) - 1]).max() > 4


@pytest.mark.parametrize("size", [(48, 71), (64, 96), (33, 40)])
def test_pictures_come_back_at_38_db(size: tuple[int, int], tmp_path: Path) -> None:
    store, row, pictures = make_store(tmp_path, size), row_of(50), _textures(50, size)
    write_entry(store, row, "rgb", np.array_split(pictures, 3))
    whole = _read(store, row, np.arange(50), "rgb")
    assert whole.dtype == np.uint8 and whole.shape == pictures.shape
    for number in range(50):
        assert psnr(whole[number], pictures[number]) >= 38
    for channel in range(3):
        assert psnr(whole[..., channel], pictures[..., channel]) >= 36
        assert abs(float(whole[..., channel].mean()) - float(pictures[..., channel].mean())) < 1
    # The edges count too: a wrong padding or a picture that is a line off shows there.
    assert psnr(whole[:, -1], pictures[:, -1]) >= 34 and psnr(whole[:, :, -1], pictures[:, :, -1]) >= 34
    assert psnr(whole[1:], pictures[:-1]) < 30
    for numbers in ([49], [31, 32], [7, 7, 40], [48, 0]):
        assert np.array_equal(_read(store, row, numbers, "rgb"), whole[numbers])


def test_colour_is_averaged_over_the_pixels_that_share_it(tmp_path: Path) -> None:
    """Fine colours lose by 4:2:0 whatever is done; taking one pixel's for all of them would give 25 dB here."""
    rng, size = np.random.default_rng(0), (96, 128)
    noise = np.stack([cv2.GaussianBlur(rng.uniform(0, 255, (*size, 3)), (0, 0), 1.5) for _ in range(4)])
    pictures = np.clip(3 * (noise - 127) + 127, 0, 255).astype(np.uint8)
    store, row = make_store(tmp_path, size), row_of(4)
    write_entry(store, row, "rgb", [pictures])
    assert psnr(_read(store, row, np.arange(4), "rgb"), pictures) > 26


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (17, 8), (8, 171), (127, 33)])
@pytest.mark.parametrize("n", [1, 2, GOP + 1])
def test_any_size_and_length(size: tuple[int, int], n: int, tmp_path: Path) -> None:
    store, row, codes = make_store(tmp_path, size), row_of(n + 1), smooth_codes(n, size)
    write_entry(store, row, "flow", iter([codes]))
    assert _differences(_read(store, row, np.arange(n)), codes).max() <= 5
    one = row_of(1, "cd")
    write_entry(store, one, "flow", iter([codes[:1]]))  # of no motion, whatever it is
    assert _differences(_read(store, one, [0]), codes[:1]).max() <= 5
    pictures = _textures(n, size)
    write_entry(store, row_of(n), "rgb", [pictures])
    assert psnr(_read(store, row_of(n), np.arange(n), "rgb"), pictures) >= 34


def test_noise_and_extremes_come_back(tmp_path: Path) -> None:
    store, row = make_store(tmp_path, SIZE), row_of(41)
    noise = np.random.default_rng(1).integers(0, 256, (40, *SIZE, 2), np.uint8)
    noise[:5], noise[5:10] = 0, 255
    write_entry(store, row, "flow", iter([noise]))
    difference = _differences(_read(store, row, np.arange(40)), noise)
    assert difference.max() <= 6 and (difference <= 2).mean() > 0.95
    pictures = np.repeat(np.random.default_rng(2).integers(0, 256, (20, *SIZE, 1), np.uint8), 3, axis=-1)
    pictures[:5], pictures[5:10] = 0, 255
    write_entry(store, row_of(20), "rgb", [pictures])
    got = _read(store, row_of(20), np.arange(20), "rgb")
    assert _differences(got[:10], pictures[:10]).max() <= 2  # black is black and white is white
    assert psnr(got, pictures) >= 34


@pytest.mark.parametrize("scheme", ["path", "uri", "elsewhere"])
def test_stores_by_path_and_uri(scheme: str, tmp_path: Path) -> None:
    # fsspec's memory:// goes the way of every object store.
    folder = {"path": str(tmp_path / "s t"), "uri": f"{tmp_path.as_uri()}/u", "elsewhere": f"memory://{tmp_path.name}"}[
        scheme
    ]
    store, codes = make_store(folder, SIZE), smooth_codes(40, SIZE)
    rows = [row_of(41, digits, f"{digits}.mp4") for digits in ("ab", "cd", "ef")]
    assert store.missing([*rows, rows[0]], "flow") == rows
    write_entry(store, rows[1], "flow", iter([codes]))
    assert store.missing(rows, "flow") == [rows[0], rows[2]] and store.missing(rows, "rgb") == rows
    assert PackedStore.open(folder) == store == make_store(folder, SIZE)
    assert _differences(_read(folder, rows[1], [33, 5]), codes[[33, 5]]).max() <= 2
    with pytest.raises(VideoError, match=r"the store has no flow for it \(content abab.*run 'vicc pack' again"):
        _read(folder, rows[0], [0])
    with pytest.raises(VideoError, match=r"the store has no pictures for it \(content cdcd"):
        _read(folder, rows[1], [0], "rgb")
    with pytest.raises(RuntimeError, match="stopped"):
        write_entry(store, rows[2], "flow", _stopping(codes))
    names = _names(store.folder)
    (shard,) = list_shards(store.folder)
    assert names == [f"index/{shard}.parquet", f"shards/{shard}.shard", "store.json"]


def test_a_store_in_a_bucket_is_read_by_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_bucket(monkeypatch) as bucket:
        store, rows = make_store(f"s3://{bucket.name}/packed", SIZE), [row_of(41, digits) for digits in ("ab", "cd")]
        codes, pictures = smooth_codes(40, SIZE), _textures(41)
        assert store.missing([rows[0]], "flow") == [rows[0]]
        write_entry(store, rows[0], "flow", iter([codes]))
        with pytest.raises(RuntimeError):
            write_entry(store, rows[1], "flow", _stopping(codes))
        assert store.missing(rows, "flow") == [rows[1]]
        write_loose(store, rows[1], "flow", [codes])
        for row in rows:
            write_loose(store, row, "rgb", [pictures])
        assert len(list_loose(store)) == 3
        seal_all(store)
        assert list_loose(store) == {}
        keys = [entry["Key"] for entry in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]]
        kinds = sorted(key.removeprefix("packed/").split("-")[0] for key in keys if not key.endswith("/"))
        assert kinds == [*["index/flow"] * 2, "index/rgb", *["shards/flow"] * 2, "shards/rgb", "store.json"]
        assert _differences(_read(store, rows[0], [33, 5]), codes[[33, 5]]).max() <= 2
        monkeypatch.setattr(reading, "WHOLE", 1000)
        monkeypatch.setattr(reading, "APART", 100)
        reader = EntryReader(PackedStore.open(store.folder))
        wanted = [Wanted(row, stream, np.array([3, 37])) for row in rows for stream in BOTH]
        wanted.append(Wanted(row_of(41, "ef"), "rgb", np.array([1])))
        fetched = reader.fetch(wanted)  # at once
        assert isinstance(fetched.pop(), VideoError)
        for one, bytes_of in zip(wanted, fetched, strict=False):
            got: dict[int, Codes] = {}
            reader.decode(one, bytes_of, lambda number, image, got=got: got.update({number: image.copy()}))  # type: ignore[misc]
            want = pictures if one.stream == "rgb" else codes
            assert sorted(got) == [3, 37] and all(psnr(got[number], want[number]) > 34 for number in got)
        reader.close()
        assert _differences(reader.read(rows[1], "flow", np.array([8])), codes[[8]]).max() <= 2  # opened again
        reader.close()
        assert repair(PackedStore.open(store.folder), BOTH, check=True) == []
        with pytest.raises(UserError, match="there is none"):
            PackedStore.open(f"s3://{bucket.name}/none")


def test_the_same_pictures_make_the_same_bytes(tmp_path: Path) -> None:
    shards = []
    for name, pieces in (("a", 1), ("b", 7)):
        store = make_store(tmp_path / name, SIZE)
        write_entry(store, row_of(41), "flow", np.array_split(smooth_codes(40, SIZE), pieces))
        write_entry(store, row_of(41), "rgb", np.array_split(_textures(41), pieces))
        shards.append([_shard(store, stream).read_bytes()[reading.SHARD_HEAD :] for stream in BOTH])
    assert shards[0] == shards[1]


# Parts of files ----------------------------------------------------------------------------------------------------------


def test_an_entry_of_a_whole_file_serves_its_parts(tmp_path: Path) -> None:
    store, pictures, codes = make_store(tmp_path, SIZE), _textures(100), smooth_codes(99, SIZE)
    write_entry(store, row_of(100), "rgb", [pictures])
    write_entry(store, row_of(100), "flow", [codes])
    parts = [row_of(first, "ab", first=100 - first, whole=100) for first in (100, 40, 2)]
    for stream in BOTH:
        assert store.missing(parts, stream) == []
    whole = _read(store, row_of(100), np.arange(100), "rgb")
    for part in parts:
        numbers = np.array([part.first_frame, part.last_frame])
        assert np.array_equal(_read(store, part, numbers, "rgb"), whole[numbers])
        assert _differences(_read(store, part, numbers[:1]), codes[numbers[:1]]).max() <= 2


def test_entries_of_parts_serve_what_lies_in_them(tmp_path: Path) -> None:
    store, pictures, codes = make_store(tmp_path, SIZE), _textures(100), smooth_codes(99, SIZE)
    first, second = row_of(40, first=0, whole=100), row_of(50, first=30, whole=100)  # they overlap
    for part in (second, first):
        own = slice(part.first_frame, part.last_frame + 1)
        write_loose(store, part, "rgb", [pictures[own]])
        write_loose(store, part, "flow", [codes[part.first_frame : part.last_frame]])
    seal_all(store)
    inside = [row_of(n, first=start, whole=100) for start, n in ((0, 40), (5, 30), (32, 8), (35, 45), (30, 50))]
    outside = [row_of(n, first=start, whole=100) for start, n in ((0, 41), (29, 20), (40, 41), (80, 5), (0, 100))]
    for stream in BOTH:
        assert store.missing([*inside, *outside], stream) == outside
    for part in inside:
        numbers = np.arange(part.first_frame, part.last_frame + 1)
        assert min(psnr(a, b) for a, b in zip(_read(store, part, numbers, "rgb"), pictures[numbers], strict=True)) > 38
        assert _differences(_read(store, part, numbers[:-1]), codes[numbers[:-1]]).max() <= 2
    for part in outside:
        with pytest.raises(VideoError, match="the store has no pictures for it"):
            _read(store, part, [part.first_frame], "rgb")


def test_the_times_of_an_uneven_file_are_those_of_its_parts(tmp_path: Path) -> None:
    store = make_store(tmp_path, SIZE)
    seconds = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 50))
    whole = replace(row_of(50), constant_rate=False)
    write_entry(store, whole, "flow", [smooth_codes(49, SIZE)], seconds)
    with closing(EntryReader(store)) as reader:
        np.testing.assert_array_equal(reader.seconds(whole), seconds - seconds[0])
        part = row_of(20, first=10, whole=50)
        np.testing.assert_array_equal(reader.seconds(part), seconds[10:30] - seconds[10])
        assert reader.seconds(row_of(9, "cd")) is None
        write_entry(store, row_of(9, "cd"), "rgb", [_textures(9)])
        assert reader.seconds(row_of(9, "cd")) is None  # at even times


@pytest.mark.parametrize("seed", range(25))
def test_the_index_finds_what_covers_a_row(seed: int) -> None:
    """Against looking at every entry, for entries that overlap, repeat, and share the first half of their content hash."""
    rng = np.random.default_rng(seed)
    hashes = ["ab" * 16, "ab" * 8 + "cd" * 8, "ab" * 8 + "00" * 8, "00" * 16, "ff" * 16, "cd" * 16][
        : rng.integers(1, 7)
    ]
    entries: list[tuple[str, int, int]] = [
        (str(rng.choice(hashes)), int(rng.integers(0, 40)), int(rng.integers(1, 30)))
        for _ in range(rng.integers(0, 40))
    ]
    cuts = sorted(rng.integers(0, len(entries) + 1, 3).tolist())
    parts = []
    for number, (start, stop) in enumerate(itertools.pairwise([0, *cuts, len(entries)])):
        own = entries[start:stop]
        columns: dict[str, list[Any]] = {
            "content_hash": [bytes.fromhex(entry[0]) for entry in own],
            "first_frame": [entry[1] for entry in own],
            "frames": [entry[2] for entry in own],
            "offset": list(range(start, stop)),
            "head": [0] * len(own),
            "bytes": [0] * len(own),
            "video": [""] * len(own),
        }
        parts.append(Part(f"flow-{number}", 0, part_table(columns)))
    index = Index(parts)
    assert len(index) == len(entries)
    rows = [
        replace(row_of(int(rng.integers(1, 20)), first=int(rng.integers(0, 50)), whole=100), content_hash=name)
        for name in (*hashes, "ee" * 16)
        for _ in range(20)
    ]
    covered = index.covers(Rows.of(rows))
    for row, known in zip(rows, covered, strict=True):
        right = {
            (number, name, first, frames)
            for number, (name, first, frames) in enumerate(entries)
            if name == row.content_hash and first <= row.first_frame and first + frames > row.last_frame
        }
        where = index.find(row)
        assert known == bool(right) == (where is not None), row
        if where is not None:
            found = (where.offset, row.content_hash, where.first_frame, where.frames)
            assert found in right
            assert where.shard == f"flow-{int(np.searchsorted(cuts, where.offset, 'right'))}"


# Interruptions -----------------------------------------------------------------------------------------------------------


def _stopping(codes: Codes) -> Iterator[Codes]:
    yield codes[:20]
    raise RuntimeError("stopped")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    store, row, codes = make_store(tmp_path, SIZE), row_of(41), smooth_codes(40, SIZE)
    for chunks, error in [
        (_stopping(codes), RuntimeError),
        (iter([codes[:39]]), VideoError),
        (iter([codes, codes[:1]]), VideoError),
        (iter([]), VideoError),
        (iter([codes[:, :40]]), ValueError),
        (iter([codes.astype(np.float32)]), ValueError),
    ]:
        with pytest.raises(error):
            write_entry(store, row, "flow", chunks)  # type: ignore[arg-type]
        assert _names(store.folder) == ["store.json"] and list_loose(store) == {}
    write_entry(store, row, "flow", iter([codes]))
    with pytest.raises(RuntimeError):
        write_entry(store, row, "flow", _stopping(codes))
    assert _differences(_read(store, row, np.arange(40)), codes).max() <= 2  # the old entry is still there


def test_between_a_shard_and_its_index_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard without an index is nobody's: what it holds still waits, and the next writer removes it."""
    store, codes = make_store(tmp_path, SIZE), smooth_codes(20, SIZE)
    rows = [row_of(21, digits) for digits in ("ab", "cd")]
    keys = [write_loose(store, row, "flow", [codes]) for row in rows]
    other = write_entry(store, row_of(21), "rgb", [_textures(21)])

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vicc_ray.data.store.writing.write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            seal(store, keys)
    assert sorted(list_loose(store)) == sorted(keys)
    shards = list_shards(store.folder)
    assert len(shards) == 2
    again = PackedStore.open(store.folder)
    assert again.missing(rows, "flow") == rows
    again.check_shards(BOTH)  # it does not count as damaged either
    begun = Path(store.folder, "loose", "f6", ".f62b-0-8.flow.58e89dd0")  # by a packing process that was killed
    begun.parent.mkdir()
    begun.write_bytes(b"half")
    assert repair(again, ["rgb"], check=False) == [] and len(list_shards(store.folder)) == 2  # not this one's business
    assert repair(again, BOTH, check=False) == []
    assert not begun.parent.exists()
    assert [name.split("-")[0] for name in list_shards(store.folder)] == ["rgb"] and other.stream == "rgb"
    assert sorted(list_loose(again)) == sorted(keys)
    seal_all(again)
    assert again.missing(rows, "flow") == [] and list_loose(again) == {}
    assert _differences(_read(again, rows[1], np.arange(20)), codes).max() <= 2


def test_between_the_index_and_the_end_nothing_is_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, codes, row = make_store(tmp_path, SIZE), smooth_codes(20, SIZE), row_of(21)
    key = write_loose(store, row, "flow", [codes])
    removed: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", removed.append)
        assert seal(store, [key]) == 1
    assert list_loose(store) and PackedStore.open(store.folder).missing([row], "flow") == []
    assert seal(store, [key]) == 1  # an entry is there twice at most, and either one is right
    assert list_loose(store) == {} and len(list_shards(store.folder)) == 2
    assert _differences(_read(store, row, np.arange(20)), codes).max() <= 2


def test_entries_that_another_writer_has_moved_are_passed_over(tmp_path: Path) -> None:
    store, codes = make_store(tmp_path, SIZE), smooth_codes(20, SIZE)
    keys = [write_loose(store, row_of(21, digits), "flow", [codes]) for digits in ("ab", "cd", "ef")]
    assert seal(store, keys[:1]) == 1
    assert seal(store, keys[:2]) == 1
    spoilt = Path(store.folder, "loose", keys[2].name)
    truncate(spoilt, 0.5)
    assert seal(store, keys) == 0  # neither gone nor cut ones; no empty shard
    assert len(list_shards(store.folder)) == 2 and list_loose(store) == {}
    store.forget("flow")
    assert store.missing([row_of(21, "ab"), row_of(21, "cd"), row_of(21, "ef")], "flow") == [row_of(21, "ef")]


def test_a_full_disk_is_told_and_leaves_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, codes = make_store(tmp_path, SIZE), smooth_codes(20, SIZE)
    keys = [write_loose(store, row_of(21, digits), "flow", [codes]) for digits in ("ab", "cd")]
    before = _names(store.folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("vicc_ray.data.store.entry.EntryWriter.add", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(NotWritten, match=r"^No space left on device$"):
                write_loose(store, row_of(21, "ef"), "flow", [codes])
        assert _names(store.folder) == before
    for place in ("os.fsync", "vicc_ray.data.store.writing.write_part", "shutil.copyfileobj"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(NotWritten, match=r"^No space left on device$"):
                seal(store, keys)
        repair(store, BOTH, check=False)
        assert _names(store.folder) == before and sorted(list_loose(store)) == sorted(keys)
    assert seal(store, keys) == 2
    assert not [path for path in Path(store.folder).rglob(".*") if path.is_file()]


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    folder = str(tmp_path / "s")
    with storage.only_writer(folder, "'vicc pack'"):
        told = pytest.raises(UserError, match=r"another 'vicc pack' is at work on it; wait for its end")
        with told, storage.only_writer(folder, "'vicc pack'"):
            pytest.fail("two at once")
        make_store(folder, SIZE)
    with storage.only_writer(folder, "'vicc pack'"):
        assert make_store(folder, SIZE).missing([], "flow") == []  # the lock is no entry
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), storage.only_writer(str(tmp_path / "file" / "s"), "x"):
        pytest.fail("no folder")


# Damage ------------------------------------------------------------------------------------------------------------------


def test_damage_is_noticed(tmp_path: Path) -> None:
    store, row, codes = make_store(tmp_path, SIZE), row_of(201), smooth_codes(200, SIZE)
    write_entry(store, row, "flow", iter([codes]))
    path = _shard(store)
    whole = path.read_bytes()

    def refused(match: str, numbers: object) -> None:
        with pytest.raises(VideoError, match=match):
            _read(store, row, numbers)
        path.write_bytes(whole)

    truncate(path, 0.5)
    refused(r"its flow in shard flow-\w+ are damaged \(content abab.*cut short; run 'vicc pack --check'", [190])
    path.write_bytes(b"not a shard")
    refused("it is another store's", [0])
    path.write_bytes(b"")
    refused("another store's", [0])
    path.unlink()
    refused("it is missing", [0])
    for place in (0.2, 0.35, 0.5, 0.65, 0.8):
        spoil(path, place, place + 64 / len(whole))
        refused("damaged", np.arange(200))
    # What lies elsewhere in the entry does not keep the rest from being read.
    monkey = bytearray(whole)
    monkey[-1] ^= 1
    path.write_bytes(monkey)
    assert _differences(_read(store, row, [3, 100]), codes[[3, 100]]).max() <= 2
    refused("its bytes at picture 192 are not those that were written", [199])


@pytest.mark.parametrize("stream", BOTH)
@pytest.mark.parametrize("long", [False, True])
def test_no_damaged_byte_is_believed(
    stream: Decoded, long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a byte is changed, reading any stretch gives what was written or says that the entry is damaged."""
    if long:
        monkeypatch.setattr(reading, "WHOLE", 100)
        monkeypatch.setattr(reading, "APART", 100)
    store, size = make_store(tmp_path, (24, 32)), (24, 32)
    rows = [row_of(101, "ab", "first.mp4"), row_of(61, "cd", "second.mp4")]
    for row in rows:
        count = row.frames if stream == "rgb" else row.frames - 1
        made = _textures(count, size) if stream == "rgb" else smooth_codes(count, size)
        write_loose(store, row, stream, [made], np.arange(row.frames) / 7)
    seal_all(store)
    path = _shard(store, stream)
    whole = path.read_bytes()
    asked = [(rows[0], np.arange(100)), (rows[0], np.array([37, 38])), (rows[1], np.array([5, 59]))]
    right = [_read(store, row, numbers, stream) for row, numbers in asked]
    draw, reasons = random.Random(4), list[str]()
    places = [*range(0, 96, 5), *range(96, 700, 9), *range(700, len(whole), len(whole) // 90), len(whole) - 1]
    opened = PackedStore.open(store.folder)
    opened.index(stream)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with closing(EntryReader(opened)) as reader:
            for (row, numbers), want in zip(asked, right, strict=True):
                try:
                    got = reader.read(row, stream, numbers)
                except VideoError as error:
                    reasons.append(str(error))
                else:
                    assert np.array_equal(got, want), place
    assert len(reasons) > len(places) and all("damaged" in reason for reason in reasons)


def test_no_damaged_byte_of_an_index_is_believed(tmp_path: Path) -> None:
    """Nor of an index: an entry says itself what it is of, and a table's pages have checksums."""
    store, codes = make_store(tmp_path, (24, 32)), smooth_codes(40, (24, 32))
    rows = [row_of(41, digits) for digits in ("ab", "cd")]
    for number, row in enumerate(rows):
        write_loose(store, row, "flow", [codes[number : number + 40]] if not number else [codes[::-1]])
    seal_all(store)
    right = [_read(store, row, np.arange(40)) for row in rows]
    (path,) = Path(store.folder, "index").iterdir()
    whole, draw, told = path.read_bytes(), random.Random(5), 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        for row, want in zip(rows, right, strict=True):
            try:
                got = _read(store, row, np.arange(40))
            except (VideoError, UserError):
                told += 1
            else:
                assert np.array_equal(got, want), place
    assert told > len(whole) // 10
    path.write_bytes(b"no table")
    with pytest.raises(
        UserError, match=r"cannot be read as the index of a shard .*remove this file and run 'vicc pack' again"
    ):
        _read(store, rows[0], [0])


def test_shards_that_are_not_whole_are_named_and_packed_again(tmp_path: Path) -> None:
    store, codes = make_store(tmp_path, SIZE), smooth_codes(20, SIZE)
    rows = [row_of(21, digits) for digits in ("ab", "cd", "ef", "01")]
    shards: list[str] = []
    for row in rows:
        write_entry(store, row, "flow", [codes])
        shards += [name for name in list_shards(store.folder) if name not in shards]
    paths = [Path(store.folder, "shards", f"{name}.shard") for name in shards]
    store.check_shards(["flow"])
    paths[0].unlink()
    truncate(paths[1], 0.9)
    size = len(paths[1].read_bytes())
    with pytest.raises(
        UserError, match=r"its shard flow-\w+ .* \(and 1 others are not whole\); run 'vicc pack MANIFEST"
    ):
        PackedStore.open(store.folder).check_shards(BOTH)
    data = bytearray(paths[2].read_bytes())
    data[-7] ^= 4
    paths[2].write_bytes(data)
    found = repair(PackedStore.open(store.folder), ["rgb"], check=True)
    assert found == []
    again = PackedStore.open(store.folder)
    lines = sorted(repair(again, BOTH, check=False))
    assert len(lines) == 2 and any("is missing: its 1 entries are packed again" in line for line in lines)
    assert any(f"shard {shards[1]} has {size:,} bytes instead of " in line for line in lines)
    assert again.missing(rows, "flow") == rows[:2]
    (line,) = repair(again, BOTH, check=True)  # found only by reading it
    assert f"shard {shards[2]} is damaged (picture 16 is not what was written)" in line
    assert again.missing(rows, "flow") == rows[:3]
    assert repair(again, BOTH, check=True) == [] and list(list_shards(store.folder)) == [shards[3]]
    again.check_shards(BOTH)
    assert _differences(_read(again, rows[3], np.arange(20)), codes).max() <= 2


def test_a_shard_of_another_store_is_not_read(tmp_path: Path) -> None:
    """Of the same name, the same size and the same videos, but made with other settings."""
    one, other = make_store(tmp_path / "a", SIZE), make_store(tmp_path / "b", SIZE)
    row = row_of(21)
    write_entry(one, row, "flow", [smooth_codes(20, SIZE)])
    write_entry(other, row, "flow", [smooth_codes(20, SIZE)])
    shard, theirs = _shard(one), _shard(other)
    shard.write_bytes(theirs.read_bytes())
    with pytest.raises(VideoError, match="it is another store's"):
        _read(one, row, [0])
    assert len(repair(PackedStore.open(one.folder), BOTH, check=True)) == 1
    index = Path(other.folder, "index", f"{theirs.stem}.parquet")
    shutil.copy(index, Path(one.folder, "index"))
    with pytest.raises(UserError, match="is the index of another store's shard; remove it"):
        _read(one, row, [0])


def test_an_index_that_speaks_of_another_entry_is_not_believed(tmp_path: Path) -> None:
    store, codes = make_store(tmp_path, SIZE), smooth_codes(20, SIZE)
    rows = [row_of(21, digits) for digits in ("ab", "cd")]
    for row in rows:
        write_loose(store, row, "flow", [codes])
    seal_all(store)
    (part,) = index_module.read_parts(store.folder, "flow", store.header.id, names=True)
    columns = part.table.to_pydict()
    columns["content_hash"].reverse()
    index_module.write_part(store.folder, Part(part.shard, part.shard_bytes, part_table(columns)), store.header.id)
    for row in rows:
        with pytest.raises(VideoError, match="its index speaks of another entry"):
            _read(store, row, [0])


# Long entries, many shards -----------------------------------------------------------------------------------------------


def test_of_a_long_entry_only_what_is_wanted_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (96, 128)
    store, row, pictures = make_store(tmp_path, size), row_of(400), _textures(400, size)
    write_entry(store, row, "rgb", [pictures])
    whole = _read(store, row, np.arange(400), "rgb")
    entry = store.find(row, "rgb")
    assert entry is not None
    monkeypatch.setattr(reading, "WHOLE", entry.bytes - 1)
    monkeypatch.setattr(reading, "APART", 4 << 10)
    spans: list[int] = []
    read = ShardFiles.read

    def counted(self: ShardFiles, shard: str, start: int, stop: int) -> bytes:
        spans.append(stop - start)
        return read(self, shard, start, stop)

    monkeypatch.setattr(ShardFiles, "read", counted)
    with closing(EntryReader(store)) as reader:
        for numbers in ([5], [399], [30, 35, 380], [15, 16, 17], list(range(0, 400, 3)), [383, 384]):
            spans.clear()
            assert np.array_equal(reader.read(row, "rgb", np.array(numbers)), whole[numbers]), numbers
            if len(numbers) <= 3:
                assert sum(spans) < entry.bytes / 6
        spans.clear()
        reader.read(row, "rgb", np.array([30, 380]))
        assert len(spans) == 2  # two stretches, and the head is kept
        spans.clear()
        reader.read(row, "rgb", np.array([30, 40]))
        assert len(spans) == 1  # neighbours come together
        assert len(reader._heads) == 1
    monkeypatch.setattr(reading, "HEADS", 1)
    write_entry(store, row_of(300, "cd"), "rgb", [pictures[:300]])
    monkeypatch.setattr(reading, "WHOLE", 1000)
    with closing(EntryReader(store)) as reader:
        for one in (row, row_of(300, "cd"), row):
            assert psnr(reader.read(one, "rgb", np.array([7])), pictures[[7]]) > 38
            assert len(reader._heads) == 1


def test_only_so_many_shards_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "OPEN_SHARDS", 3)
    size = (8, 8)
    store = make_store(tmp_path, size)
    rows = [replace(row_of(2), content_hash=f"{number:032x}") for number in range(6)]
    for number, row in enumerate(rows):
        write_entry(store, row, "flow", [np.full((1, *size, 2), 40 * number, np.uint8)])
    descriptors = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    reader = EntryReader(store)
    for number in (*range(6), 5, 0, 5, 3):
        got = reader.read(rows[number], "flow", np.array([0]))
        assert abs(int(got.mean()) - 40 * number) <= 2
        assert len(reader.files._open) <= 3
        if descriptors:
            assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 3
    reader.close()
    assert not reader.files._open
    if descriptors:
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


# Stores and experiments --------------------------------------------------------------------------------------------------


def test_another_kind_of_store_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, SIZE)
    with pytest.raises(
        UserError, match=r"holds other clips than these settings give: width is 71 there, 72 here; name another"
    ):
        make_store(tmp_path, (48, 72))
    with pytest.raises(UserError, match=r"bound is 20.0 there, 4.0 here"):
        make_store(tmp_path, SIZE, flow=FlowConfig(bound=4))
    with pytest.raises(UserError, match="algorithm is dis there, tvl1 here"):
        make_store(tmp_path, SIZE, flow=FlowConfig(algorithm="tvl1"))
    with pytest.raises(UserError, match="interlaced is weave there, deinterlace here"):
        make_store(tmp_path, SIZE, interlaced="deinterlace")
    wanted = header_of(SIZE)
    assert wanted.flow is not None and wanted.pictures is not None
    with pytest.raises(UserError, match="these settings give: PatchSize is 8 there, 12 here; "):
        PackedStore.create(str(tmp_path), replace(wanted, flow={**wanted.flow, "PatchSize": 12}))
    with pytest.raises(UserError, match=r"its pictures were made by rules \d+, this version's are 99; name another"):
        PackedStore.create(str(tmp_path), replace(wanted, pictures={**wanted.pictures, "rules": 99}))
    with pytest.raises(UserError, match=r"there is none \(no store.json\); make it with 'vicc pack MANIFEST'"):
        PackedStore.open(str(tmp_path / "none"))
    for text, match in [
        ('{"format": 9}', "format 9; this version reads 1, 2 and 3"),
        ("[1]", "format None"),
        ("{", "not JSON"),
    ]:
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(UserError, match=match):
            PackedStore.open(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be read: .*Not a directory"):
        make_store(tmp_path / "file" / "store", SIZE)


def test_a_store_takes_the_other_stream_later(tmp_path: Path) -> None:
    store = make_store(tmp_path, SIZE, ["flow"])
    write_entry(store, row_of(21), "flow", [smooth_codes(20, SIZE)])
    assert store.header.pictures is None
    both = make_store(tmp_path, SIZE)
    assert both.header.pictures is not None and both.header.flow == store.header.flow
    assert both.header.id == store.header.id and PackedStore.open(str(tmp_path)) == both
    assert make_store(tmp_path, SIZE, ["rgb"]) == both  # nothing is taken away
    write_entry(both, row_of(21), "rgb", [_textures(21)])
    assert both.missing([row_of(21)], "rgb") == both.missing([row_of(21)], "flow") == []


def test_a_header_of_any_json_is_told(tmp_path: Path) -> None:
    make_store(tmp_path, SIZE)
    header = tmp_path / "store.json"
    whole = json.loads(header.read_text())
    changes: tuple[dict[str, object], ...] = (
        {"flow": 7}, {"flow": {}}, {"bound": "x"}, {"bound": None}, {"size": None}, {"size": [1]}, {"size": [1, "x"]},
        {"size": "ab"}, {"size": {"a": 1, "b": 2}}, {"format": [1]}, {"id": 3}, {"pictures": [1]}, {"interlaced": "x"},
        {"interlaced": ["weave"]}, {"earlier": 5}, {"earlier": [2]}, {"more": 1},
    )  # fmt: skip
    for change in changes:
        header.write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match="make it again"):
            PackedStore.open(str(tmp_path))
    for name in whole:
        header.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(UserError, match="make it again"):
            PackedStore.open(str(tmp_path))
    for text in ("[" * 100_000, "\xff", "null", '"format"', "3"):
        header.write_text(text, "latin-1")
        with pytest.raises(UserError, match=r"make it again"):
            PackedStore.open(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["", "aa", "/elsewhere/evil", "../../evil/aaaaaaaaaaaaaaaaaaaaaaaa", "A" * 32, "a" * 31 + "\n"]
)
def test_a_content_hash_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    """It comes from a manifest, which anybody may have made."""
    store = make_store(tmp_path / "store", (16, 24))
    row = VideoRow("a.mp4", frames=3, content_hash=name)
    attempts: list[Callable[[], object]] = [
        lambda: write_loose(store, row, "flow", []),
        lambda: store.missing([row], "flow"),
        lambda: store.find(row, "rgb"),
        lambda: Key.of(row, "rgb"),
        lambda: EntryReader(store).read(row, "flow", np.array([0])),
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match=r"a\.mp4: its row has no content hash of 32 hex digits"):
            attempt()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["store", "store.json"]


def _experiment(**changes: object) -> Experiment:
    tree = {"clip": {"frames": 4, "decode_size": [16, 24], "size": 16}}
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values  # type: ignore[operator]
    return make_experiment(tree, "test")


def test_an_experiment_that_does_not_fit_its_flow_store_is_told_before_it_begins(tmp_path: Path) -> None:
    folder = str(tmp_path / "store")
    rows = [VideoRow("a.mp4", frames=3, content_hash="a" * 32), VideoRow("b.mp4", frames=3, content_hash="b" * 32)]
    asked = {"source": "store", "store": folder}
    assert check_stored(_experiment(), rows) == []  # streams
    with pytest.raises(UserError, match="there is none"):
        check_stored(_experiment(flow=asked), rows)
    store = make_store(folder, (16, 24), ["flow"])
    write_entry(store, rows[0], "flow", [np.full((2, 16, 24, 2), 128, np.uint8)])
    assert check_stored(_experiment(flow=asked), rows[:1]) == []
    assert check_stored(_experiment(flow=asked), rows, ["rgb"]) == []  # no flow is wanted
    with pytest.raises(
        UserError,
        match=r"flow\.store: .* lacks the flow of 1 of 2 videos \(the first: b.mp4\); fill it with 'vicc flow MANIFEST "
        r"--store \S+ --size 16x24 --algorithm dis', index again",
    ):
        check_stored(_experiment(flow=asked), rows)
    with pytest.raises(UserError, match=r"clip.decode_size: is \[16, 25\], the store .* holds \[16, 24\]; set what"):
        check_stored(_experiment(flow=asked, clip={"decode_size": [16, 25]}), rows[:1])
    with pytest.raises(UserError, match=r"data.interlaced: is deinterlace, .* holds weave"):
        check_stored(_experiment(flow=asked, data={"interlaced": "deinterlace"}), rows[:1])
    with pytest.raises(UserError, match=r"flow.algorithm: is tvl1, .* holds dis"):
        check_stored(_experiment(flow=asked | {"algorithm": "tvl1"}), rows[:1])
    with pytest.raises(UserError, match=r"flow.bound: is 4.0, .* holds 20.0"):
        check_stored(_experiment(flow=asked | {"bound": 4}), rows[:1])
    with pytest.raises(
        UserError, match=r"clip.store: .* holds no pictures; add them with 'vicc pack MANIFEST .*--size 16x24'"
    ):
        check_stored(_experiment(clip=asked), rows[:1])
    _shard(store).unlink()
    with pytest.raises(UserError, match=r"its shard flow-\w+ is missing; run 'vicc pack MANIFEST"):
        check_stored(_experiment(flow=asked), rows[:1])


def test_an_experiment_that_does_not_fit_its_packed_store_is_told_before_it_begins(tmp_path: Path) -> None:
    folder = str(tmp_path / "store")
    rows = [VideoRow("a.mp4", frames=3, content_hash="a" * 32), VideoRow("b.mp4", frames=3, content_hash="b" * 32)]
    asked = {"source": "store", "store": folder}
    store = make_store(folder, (16, 24), ["rgb"])
    write_entry(store, rows[0], "rgb", [_textures(3, (16, 24))])
    assert check_stored(_experiment(clip=asked), rows[:1], ["rgb"]) == []
    with pytest.raises(UserError, match=r"clip.store: .* holds no flow; add them with .*--flow dis"):
        check_stored(_experiment(clip=asked), rows[:1])
    assert list(open_stores(_experiment(clip=asked), ["rgb"])) == [folder] and open_stores(_experiment()) == {}
    with pytest.raises(
        UserError, match=r"lacks the pictures of 1 of 2 videos .* fill it with 'vicc pack MANIFEST --store"
    ):
        check_stored(_experiment(clip=asked), rows, ["rgb"])
    with pytest.raises(UserError, match=r"data.interlaced: is deinterlace, .* holds weave"):
        check_stored(_experiment(clip=asked, data={"interlaced": "deinterlace"}), rows[:1], ["rgb"])
    # Another place for flow, another reason to name it.
    other = make_store(tmp_path / "other", (16, 24), ["flow"])
    write_entry(other, rows[0], "flow", [np.full((2, 16, 24, 2), 128, np.uint8)])
    both = _experiment(clip=asked, flow={"source": "store", "store": other.folder})
    assert check_stored(both, rows[:1]) == []
    assert sorted(open_stores(both)) == sorted([folder, other.folder])
    header = tmp_path / "store" / "store.json"
    tree = json.loads(header.read_text())
    tree["pictures"]["rules"] = 0
    header.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="were made by rules of another version; pack them into another store"):
        check_stored(_experiment(clip=asked), rows[:1], ["rgb"])


def test_what_vicc_pack_was_content_with_training_is_too(tmp_path: Path) -> None:
    rows = [VideoRow(f"{n}.mp4", frames=3, content_hash=f"{n:032x}") for n in range(10)]
    store = make_store(tmp_path / "store", (16, 24))
    for row in rows[:9]:
        write_loose(store, row, "flow", [np.full((2, 16, 24, 2), 128, np.uint8)])
    for row in rows[1:]:
        write_loose(store, row, "rgb", [np.full((3, 16, 24, 3), 128, np.uint8)])
    seal_all(store)
    flow = {"source": "store", "store": store.folder}
    assert check_stored(_experiment(flow=flow, data={"max_refused": 0.1}), rows) == rows[9:]
    assert check_stored(_experiment(clip=flow, data={"max_refused": 0.1}), rows) == [rows[0], rows[9]]
    with pytest.raises(UserError, match=r"lacks the flow of 1 of 10 videos .* or raise data.max_refused \(now 0.05\)"):
        check_stored(_experiment(flow=flow, data={"max_refused": 0.05}), rows)
    assert DataConfig().max_refused < 0.05


# Stores of earlier versions ----------------------------------------------------------------------------------------------

EARLIER = Path(__file__).parent / "data" / "flow_stores"
FRAMES = {"ab": 12, "cd": 40}


def earlier_store(format_: int, folder: Path) -> PackedStore:
    """A copy of a store that version 1 or 2 of the format made, with 12 and 40 frames of 16 x 24."""
    shutil.copytree(EARLIER / f"format_{format_}", folder)
    return PackedStore.open(str(folder))


@pytest.mark.parametrize("format_", [1, 2])
def test_a_flow_store_of_an_earlier_version_is_read(format_: int, tmp_path: Path) -> None:
    store, given = earlier_store(format_, tmp_path / "s"), np.load(EARLIER / "codes.npz")
    assert store.header == Header((16, 24), "weave", None, store.header.flow, 20.0, "", format_)
    rows = [row_of(frames, digits) for digits, frames in FRAMES.items()]
    assert store.missing([*rows, row_of(9, "ef")], "flow") == [row_of(9, "ef")]
    for digits, row in zip(FRAMES, rows, strict=True):
        count = row.frames - 1
        for origins in (np.arange(count), [0], [count - 1], [3, 9, 3], [0, count - 1]):
            assert np.array_equal(_read(store, row, origins), given[digits][np.asarray(origins)])
    part = row_of(10, "cd", first=20, whole=40)
    assert store.missing([part], "flow") == []
    assert np.array_equal(_read(store, part, [20, 28]), given["cd"][[20, 28]])
    with pytest.raises(VideoError, match="the store has no flow for it"):
        _read(store, row_of(9, "ef"), [0])
    with pytest.raises(VideoError, match="the store has no pictures for it"):
        _read(store, rows[0], [0], "rgb")
    with pytest.raises(VideoError, match=r"it holds 11 fields, the video has 12"):
        _read(store, row_of(13, "ab"), [0])
    asked = _experiment(flow={"source": "store", "store": store.folder})
    assert check_stored(asked, rows) == []
    with pytest.raises(UserError, match=r"flow.algorithm: is tvl1, .* holds dis"):
        check_stored(_experiment(flow={"source": "store", "store": store.folder, "algorithm": "tvl1"}), rows)


def test_damage_in_a_store_of_an_earlier_version_is_noticed(tmp_path: Path) -> None:
    store, given = earlier_store(2, tmp_path / "s"), np.load(EARLIER / "codes.npz")["cd"]
    path, row = tmp_path / "s" / "cd" / f"{'cd' * 16}.mkv", row_of(40, "cd")
    whole, draw, reasons = path.read_bytes(), random.Random(3), list[str]()
    for place in range(whole.index(b"CHECKSUMS") + 20, len(whole) - 150, 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        for origins in (np.arange(39), np.array([25, 26])):
            try:
                got = _read(store, row, origins)
            except VideoError as error:
                reasons.append(str(error))
            else:
                assert np.array_equal(got, given[origins]), place
    assert len(reasons) > 50
    assert all("its flow entry is damaged (content cdcd" in reason for reason in reasons)
    for content, match in (
        (whole[: len(whole) // 2], "damaged"),
        (b"", "damaged"),
        (b"not a video", "damaged"),
        (whole.replace(b"CHECKSUMS", b"CHECKSUMX"), "it holds checksums of 0 of its 39 fields"),
    ):
        path.write_bytes(content)
        with pytest.raises(VideoError, match=match):
            _read(store, row, np.arange(39))


@pytest.mark.parametrize("format_", [1, 2])
def test_a_store_of_an_earlier_version_is_filled_further(format_: int, tmp_path: Path) -> None:
    """TV-L1 of a data set takes days; what it gave is not thrown away."""
    folder, given = tmp_path / "s", np.load(EARLIER / "codes.npz")
    before = earlier_store(format_, folder)
    made = replace(header_of((16, 24)), flow=before.header.flow)  # by the library that was there then
    store = PackedStore.create(str(folder), made)
    assert (store.header.earlier, store.header.flow) == (format_, before.header.flow) and store.header.id
    assert json.loads((folder / "store.json").read_text())["format"] == 3
    new, codes = row_of(31, "ef"), smooth_codes(30, (16, 24))
    write_entry(store, new, "flow", [codes])
    again = PackedStore.open(str(folder))
    rows = [*(row_of(frames, digits) for digits, frames in FRAMES.items()), new]
    assert again.missing(rows, "flow") == [] and again.missing(rows, "rgb") == rows
    assert np.array_equal(_read(again, rows[1], np.arange(39)), given["cd"])
    assert _differences(_read(again, new, np.arange(30)), codes).max() <= 2
    assert repair(again, BOTH, check=True) == []
    assert sorted(path.name for path in folder.rglob("*.mkv")) == [f"{digits * 16}.mkv" for digits in FRAMES]
    with pytest.raises(Damaged, match="it is missing"):
        ShardFiles(again).read("flow-none", 0, 1)
