"""`vicc bench formats`: both layouts give the frames that went in, each decoded once, and what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import benchmarks
from benchmarks import formats, formats_layouts
from benchmarks.formats import Reader
from benchmarks.formats_layouts import CODECS, Codec, Files, Shards, pack, peak_signal_noise

SIZE = (34, 45)
LENGTHS = (70, 48, 33)
WANTED = CODECS[:1] + tuple(codec for codec in CODECS if codec.name == "MJPEG")


def grays(video: int, length: int) -> NDArray[np.uint8]:
    """Frame i is of one gray that no other frame of its video has, 3 apart; videos begin at other ones."""
    levels = 20 + 3 * np.arange(length) + video
    return np.broadcast_to(levels[:, None, None, None], (length, *SIZE, 3)).astype(np.uint8)


VIDEOS = [grays(video, length) for video, length in enumerate(LENGTHS)]


@pytest.fixture(params=WANTED, ids=lambda codec: codec.folder)
def codec(request: pytest.FixtureRequest) -> Codec:
    codec: Codec = request.param
    if lacking := codec.lacks():
        pytest.skip(f"this PyAV has no {lacking}")
    return codec


@pytest.fixture(params=[Files, Shards])
def reader(request: pytest.FixtureRequest, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Of the three videos, the first two of which fill a shard."""
    first = sum(len(packet) for packet in formats_layouts.encode(codec, VIDEOS[0], tmp_path / "first.mkv").packets)
    monkeypatch.setattr(formats_layouts, "SHARD_BYTES", first + 1)
    assert pack(codec, VIDEOS, tmp_path) > 0
    assert len(list((tmp_path / "shards").glob("*.packets"))) == 2
    made: Reader = request.param(codec, str(tmp_path), SIZE)
    return made


def assert_right(reader: Reader, video: int, frames: NDArray[np.int64]) -> None:
    images = reader.read(video, frames)
    assert images.shape == (len(frames), *SIZE, 3) and images.dtype == np.uint8
    assert peak_signal_noise(images, VIDEOS[video][frames]) > 30
    levels = images.mean((1, 2, 3))
    assert np.array_equal(np.rint((levels - 20 - video) / 3), frames)


def test_frames_are_those_that_were_asked_for(reader: Reader) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        for video, length in enumerate(LENGTHS):
            starts = rng.integers(0, length - 12 + 1, 2)
            assert_right(reader, video, np.arange(starts[0], starts[0] + 12))
            assert_right(reader, video, np.unique(starts[:, None] + np.arange(12)))
    # The end of one video, then the start of another; single frames far and near; all.
    for video, frames in ((0, [69]), (2, [0]), (0, [3, 40, 41, 69]), (1, [15, 16, 32]), (0, range(70)), (2, range(33))):
        assert_right(reader, video, np.array(frames))


def test_a_frame_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    pack(WANTED[0], VIDEOS[2:], tmp_path)
    with pytest.raises(RuntimeError, match="frame 33 did not come"):
        Files(WANTED[0], str(tmp_path), SIZE).read(0, np.array([32, 33]))


@pytest.mark.parametrize(
    ("frames", "packets", "reads"),
    [
        ([20, 21, 30], range(16, 31), 1),  # from the key before
        ([5, 40], [*range(6), *range(32, 41)], 2),  # what lies between them is passed over
        ([5, 20], [*range(6), *range(16, 21)], 2),
        ([15, 16], range(17), 1),  # one ends where the next key is
        ([*range(10, 42), *range(38, 70)], range(70), 1),  # two clips that overlap
    ],
)
def test_nothing_is_read_or_decoded_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: list[int], packets: list[int], reads: int
) -> None:
    pack(WANTED[0], VIDEOS, tmp_path)
    decoded: list[int] = []
    ranges: list[int] = []
    take, read = formats_layouts._Wanted.take, Shards.bytes

    def note_picture(self: Any, number: int, picture: Any) -> None:
        decoded.append(number)
        take(self, number, picture)

    def note_range(self: Shards, shard: int, offset: int, size: int) -> bytes:
        ranges.append(size)
        return read(self, shard, offset, size)

    monkeypatch.setattr(formats_layouts._Wanted, "take", note_picture)
    monkeypatch.setattr(Shards, "bytes", note_range)
    shards = Shards(WANTED[0], str(tmp_path), SIZE)
    assert_right(shards, 0, np.unique(frames))
    assert decoded == list(packets)
    assert len(ranges) == reads and sum(ranges) == np.diff(shards.entries[0].starts)[decoded].sum()
    decoded.clear()
    assert_right(Files(WANTED[0], str(tmp_path), SIZE), 0, np.unique(frames))
    assert set(packets) <= set(decoded) and len(set(decoded)) == len(decoded) <= len(packets) + WANTED[0].key_every


def test_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    absent = Codec("Nothing", "no-such-encoder", "h264", "yuv420p", 1, {})
    monkeypatch.setattr(formats, "CODECS", (*WANTED, absent))
    monkeypatch.setattr(formats, "_synthetic", lambda folder: None)
    monkeypatch.setattr(formats, "_videos", lambda manifest: VIDEOS)
    monkeypatch.setattr("benchmarks.object_store.find_spec", lambda name: None)
    outcome = formats.measure(2)
    names = [f"{codec.name}, {layout}, disk" for codec in WANTED for layout in ("files", "shards")]
    assert list(outcome.figures) == list(outcome.details) == names
    for name in names:
        assert len(outcome.figures[name]) == 2 and min(outcome.figures[name]) > 0
        details = outcome.details[name]
        assert details["PSNR, dB"] >= details["worst clip, dB"] > 30
        assert 0.01 < details["bytes / JPEG"] < 5 and details["2 clips, ms"] > 0 and details["encode, ms a frame"] > 0
    assert outcome.facts["skipped"] == "Nothing (no encoder no-such-encoder)"
    assert "not measured" in outcome.facts["S3"]


def test_many_contenders_are_rows_of_the_details() -> None:
    for count in (benchmarks.MOST_COLUMNS, benchmarks.MOST_COLUMNS + 1):
        table = benchmarks._details({f"contender {i}": {"a": 1.0, "b": 2.0} for i in range(count)})
        assert table.row_count == (2 if count == benchmarks.MOST_COLUMNS else count)
        assert len(table.columns) == (count + 1 if count == benchmarks.MOST_COLUMNS else 3)
