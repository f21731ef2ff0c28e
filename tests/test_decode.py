"""Reading frames: the right frames, the right way up, at the right size, or a reason; never something else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from videos import numbered_frames, read_number, truncate, turn, write_video

from vicc_ray.data.decode import (  # type: ignore[attr-defined]
    DECODERS,
    Decoder,
    Timeline,
    VideoError,
    decode_from,
    open_video,
    read_frames,
    read_timeline,
    to_image,
)
from vicc_ray.data.manifest import probe


def numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 50 numbered frames in several codecs and containers."""
    folder = tmp_path_factory.mktemp("films")
    frames = numbered_frames(50)
    return {
        "h264.mp4": write_video(folder / "h264.mp4", frames),
        "h264.mkv": write_video(folder / "h264.mkv", frames),
        "mpeg4.avi": write_video(folder / "mpeg4.avi", frames, "mpeg4"),
        "mpeg2.mpg": write_video(folder / "mpeg2.mpg", frames, "mpeg2video"),
        "h264.ts": write_video(folder / "h264.ts", frames),
        "open-gop.ts": write_video(folder / "open-gop.ts", frames, "mpeg2video", options={"bf": "2"}),
        "vp9.webm": write_video(folder / "vp9.webm", frames, "libvpx-vp9"),
    }


@pytest.mark.parametrize(
    "name", ["h264.mp4", "h264.mkv", "mpeg4.avi", "mpeg2.mpg", "h264.ts", "open-gop.ts", "vp9.webm"]
)
def test_chosen_reader_returns_the_asked_frames(films: dict[str, Path], name: str) -> None:
    row = probe(str(films[name]))
    assert row.frames == 50
    rng = np.random.default_rng(3)
    for wanted in ([0], [49], [25, 26, 27], [13, 11, 11, 40], [0, 49], rng.integers(0, 50, 9).tolist()):
        got = read_frames(row.video, np.array(wanted), decoder=row.decoder)
        assert numbers(got) == wanted
        assert got.shape == (len(wanted), 64, 96, 3)
        assert got.dtype == np.uint8


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_reader_agrees_on_a_sound_file(films: dict[str, Path], decoder: Decoder) -> None:
    wanted = np.array([37, 3, 3, 24])
    got = read_frames(str(films["h264.mp4"]), wanted, (32, 48), decoder)
    assert numbers(got) == wanted.tolist()
    reference = read_frames(str(films["h264.mp4"]), wanted, (32, 48), "pyav-sequential")
    assert np.abs(got.astype(int) - reference).mean() < 1.0


def test_readers_that_are_not_right_for_a_file_are_not_chosen(films: dict[str, Path]) -> None:
    assert probe(str(films["h264.mp4"])).decoder == "decord"
    assert probe(str(films["mpeg2.mpg"])).decoder != "decord"
    assert probe(str(films["h264.ts"])).decoder == "pyav"
    # Pictures that lean on the stretch before a key frame are passed over after a seek, not taken for a broken file.
    assert probe(str(films["open-gop.ts"])).decoder == "pyav"


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg4.avi", "vp9.webm"])
@pytest.mark.parametrize("start", [0, 12, 17])
def test_decoding_begins_at_the_asked_frame(films: dict[str, Path], name: str, start: int) -> None:
    with open_video(str(films[name])) as (container, stream):
        timeline = read_timeline(container, stream)
    shown = [read_number(to_image(frame, None)) for frame in decode_from(str(films[name]), timeline, start)]
    assert shown == list(range(start, 50))


@pytest.mark.parametrize("clockwise", [90, 180, 270])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [None, (40, 24)])
def test_turned_videos_come_upright(
    tmp_path: Path, clockwise: int, decoder: Decoder, size: tuple[int, int] | None
) -> None:
    lying = np.ascontiguousarray(np.rot90(numbered_frames(6), clockwise // 90, axes=(1, 2)))
    path = turn(write_video(tmp_path / "turned.mp4", lying), clockwise)
    row = probe(str(path))
    assert (row.rotation, row.height, row.width) == (clockwise, 64, 96)
    got = read_frames(str(path), np.arange(6), size, decoder)
    assert got.shape[1:3] == (size or (64, 96))
    assert numbers(got) == list(range(6))


def test_variable_frame_rate_counts_pictures_not_time(tmp_path: Path) -> None:
    gaps = np.tile([20, 20, 400, 35], 6)
    stamps = [0, *np.cumsum(gaps)[:-1].tolist()]
    path = write_video(tmp_path / "uneven.mp4", numbered_frames(24), stamps=stamps)
    row = probe(str(path))
    assert row.frames == 24
    assert numbers(read_frames(str(path), np.arange(24), decoder=row.decoder)) == list(range(24))
    assert row.fps == pytest.approx(1000 * 23 / stamps[-1], rel=0.06)


@pytest.mark.parametrize("decoder", DECODERS)
def test_one_frame(tmp_path: Path, decoder: Decoder) -> None:
    path = write_video(tmp_path / "one.mp4", numbered_frames(1, start=9))
    assert numbers(read_frames(str(path), np.zeros(3, np.int64), decoder=decoder)) == [9, 9, 9]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 57), (128, 171)])
def test_any_size_can_be_asked(films: dict[str, Path], decoder: Decoder, size: tuple[int, int]) -> None:
    got = read_frames(str(films["h264.mp4"]), np.array([5, 30]), size, decoder)
    assert got.shape == (2, *size, 3)
    assert got.flags.c_contiguous


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_the_file_cannot_deliver_is_an_error(films: dict[str, Path], tmp_path: Path, decoder: Decoder) -> None:
    whole = films["h264.mp4"]
    with pytest.raises(VideoError, match="frame 50 was requested, but the file holds 50"):
        read_frames(str(whole), np.array([3, 50]), decoder=decoder)
    with pytest.raises(VideoError, match="no such file"):
        read_frames(str(tmp_path / "gone.mp4"), np.array([0]), decoder=decoder)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes())
    truncate(cut, 0.6)
    with pytest.raises(VideoError, match=r"the file holds|cut short|damaged"):
        read_frames(str(cut), np.array([0, 49]), decoder=decoder)
    text = tmp_path / "text.mp4"
    text.write_text("no video at all")
    with pytest.raises(VideoError, match="not readable as a video"):
        read_frames(str(text), np.array([0]), decoder=decoder)
    with pytest.raises(ValueError, match="negative"):
        read_frames(str(whole), np.array([-1]), decoder=decoder)


def test_odd_names_and_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-dash.mp4", "a b'c\"d.mp4", "größe 視頻.mp4", "s3:x.mp4", "100%25.mp4"):
        write_video(tmp_path / name, numbered_frames(3))
        assert numbers(read_frames(name, np.array([2]))) == [2]
    assert numbers(read_frames((tmp_path / "a b'c\"d.mp4").as_uri(), np.array([1]), decoder="pyav")) == [1]


def test_what_lies_elsewhere_is_fetched_once(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().pipe_file("/bucket/a b.mpg", films["mpeg2.mpg"].read_bytes())
    opened: list[str] = []
    original = MemoryFileSystem._open

    def opening(self: MemoryFileSystem, path: str, *arguments: object, **options: object) -> object:
        opened.append(path)
        return original(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", opening)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # PyAV opens this one anew for each seek and for its timeline.
    assert numbers(read_frames("memory://bucket/a%20b.mpg", np.array([40, 3, 49]), decoder="pyav")) == [40, 3, 49]
    assert opened == ["/bucket/a b.mpg"]
    row = probe("memory://bucket/a%20b.mpg")
    local = probe(str(films["mpeg2.mpg"]))
    assert (row.video, row.frames, row.bytes) == ("memory://bucket/a%20b.mpg", 50, local.bytes)
    assert row.content_hash == local.content_hash
    assert len(opened) == 2
    assert not list(tmp_path.iterdir()), "the copy ends with the call"
    with pytest.raises(VideoError, match="no such file"):
        read_frames("memory://bucket/none.mp4", np.array([0]))
    with pytest.raises(VideoError, match="cannot be fetched: magic://: nothing that is installed opens it"):
        read_frames("magic://bucket/x.mp4", np.array([0]))


def test_containers_without_an_index_are_not_read_from_their_start(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []

    def counted(path: str, timeline: Timeline, start: int) -> Iterator[VideoFrame]:
        starts.append(start)
        return decode_from(path, timeline, start)

    monkeypatch.setattr("vicc_ray.data.decode.decode_from", counted)
    for name in ("h264.ts", "open-gop.ts", "mpeg2.mpg", "h264.mkv"):
        starts.clear()
        assert numbers(read_frames(str(films[name]), np.array([47, 49]), decoder="pyav")) == [47, 49]
        assert starts[-1] > 0, f"{name}: {starts}"


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(20))
    assert numbers(read_frames(str(path), np.array([19]), decoder="pyav")) == [19]
    write_video(path, numbered_frames(30, start=50), gop=7)
    assert numbers(read_frames(str(path), np.array([29, 19]), decoder="pyav")) == [79, 69]


def test_a_bound_beyond_ffmpegs_own_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicc_ray.data.decode._bound", 10**12)
    path = write_video(tmp_path / "a.mp4", numbered_frames(12))
    assert len(read_frames(str(path), np.arange(12), (64, 96))) == 12
