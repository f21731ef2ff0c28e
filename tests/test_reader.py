"""Clips through a process of its own: the same clips, by frames and by time, and no file ends, hangs or fills it."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from packed import make_store, pack
from videos import OPEN_GOPS, numbered_frames, read_number, shifted_texture, write_interlaced, write_video

from vicc_ray.config import ClipConfig, DataConfig, Decoded, Experiment, FlowConfig
from vicc_ray.data.decode import read_frames
from vicc_ray.data.flow.algorithms import dequantise, flow_between, quantise
from vicc_ray.data.identity import flow_identity
from vicc_ray.data.manifest import VideoError, VideoRow, probe
from vicc_ray.data.reader import ClipReader
from vicc_ray.data.samples import Clips, positions, read_clips
from vicc_ray.data.store.checking import check_stored
from vicc_ray.errors import UserError

BOTH: tuple[Decoded, Decoded] = ("rgb", "flow")
SIZE = (32, 48)


def clip_config(frames: int = 4, stride: int = 1, fps: float | None = None) -> ClipConfig:
    return ClipConfig(frames=frames, stride=stride, fps=fps, decode_size=SIZE, size=32)


def numbers(clips: Clips) -> list[list[int]]:
    return [[read_number(frame) for frame in clip] for clip in clips["rgb"]]


def row_of(path: Path) -> VideoRow:
    return probe(str(path))


@pytest.fixture
def reader() -> Iterator[ClipReader]:
    made = ClipReader(clip_config(), FlowConfig(), DataConfig(decode_timeout=20))
    yield made
    made.close()


# Frames by time ------------------------------------------------------------------------------------------------------


def test_two_rates_of_one_motion_give_the_same_clip(tmp_path: Path) -> None:
    motion = numbered_frames(100)
    fast = row_of(write_video(tmp_path / "50.mp4", motion, fps=50))
    slow = row_of(write_video(tmp_path / "25.mkv", motion[::2], fps=25))
    clip = clip_config(frames=6, fps=12.5)
    assert positions(fast, clip) == positions(slow, clip) == 25
    for starts in ([0, 19], [7], [-3]):
        got = [numbers(read_clips(video, starts, ("rgb",), clip, FlowConfig())) for video in (fast, slow)]
        assert got[0] == [[max(start + i, 0) * 4 for i in range(6)] for start in starts]
        assert got[0] == got[1]


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv"])
def test_uneven_frames_are_taken_by_their_time_stamps(tmp_path: Path, name: str) -> None:
    gaps = np.random.default_rng(5).choice([10, 20, 35, 180, 400], 40)
    stamps = [0, *np.cumsum(gaps).tolist()]
    video = row_of(write_video(tmp_path / name, numbered_frames(41), stamps=stamps))
    assert not video.constant_rate
    clip = clip_config(frames=8, fps=10.0)
    places = positions(video, clip)
    assert places == pytest.approx(stamps[-1] / 100, abs=4)
    starts = list(range(0, places - 8, 5))
    on_show = [[max(k for k in range(41) if stamps[k] <= 100 * (start + i) + 1) for i in range(8)] for start in starts]
    assert numbers(read_clips(video, starts, ("rgb",), clip, FlowConfig())) == on_show
    assert len({number for row in on_show for number in row}) < 41 <= len(stamps)


def test_more_frames_a_second_than_there_are_repeat_them(tmp_path: Path) -> None:
    video = row_of(write_video(tmp_path / "a.mp4", numbered_frames(10), fps=10))
    clip = clip_config(frames=10, fps=30.0)
    clips = read_clips(video, [3, 20], BOTH, clip, FlowConfig())
    assert numbers(clips)[0] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    assert numbers(clips)[1][-1] == 9
    assert (clips["flow"][0, 0] == clips["flow"][0, 2]).all()


def test_flow_by_time_stays_between_a_frame_and_the_next(tmp_path: Path) -> None:
    """Pictures are taken every fourth frame; the flow is the motion of one frame, not of four."""
    frames = shifted_texture(40, 64, 96, 2.0, 0.0)
    video = row_of(write_video(tmp_path / "a.mp4", frames, fps=40))
    config = ClipConfig(frames=4, fps=10.0, decode_size=(64, 96), size=32)
    flow = read_clips(video, [1], ("flow",), config, FlowConfig())["flow"][0].astype(float)
    u = (flow[:, 16:-16, 16:-16, 0] / 255 * 2 - 1) * 20
    assert np.median(u) == pytest.approx(2.0, abs=0.3)


def test_positions_of_a_stride_are_frames() -> None:
    video = VideoRow("x", frames=70, fps=25.0, duration_seconds=2.8)
    assert positions(video, clip_config(stride=3)) == 70
    assert positions(video, clip_config(fps=5.0)) == 14
    assert positions(replace(video, frames=1, duration_seconds=0.04), clip_config(fps=5.0)) == 1


# A process of its own ------------------------------------------------------------------------------------------------


def test_a_reader_gives_what_reading_here_gives(tmp_path: Path, reader: ClipReader) -> None:
    video = row_of(write_video(tmp_path / "a.mp4", numbered_frames(20)))
    reader = pickle.loads(pickle.dumps(reader))
    kept = [reader.read(video, starts, BOTH) for starts in ([0, 16], [5], [-2, 3])]
    for starts, got in zip(([0, 16], [5], [-2, 3]), kept, strict=True):
        wanted = read_clips(video, starts, BOTH, reader.clip, reader.flow)
        assert got.keys() == wanted.keys()
        assert all((got[stream] == wanted[stream]).all() and got[stream].dtype == np.uint8 for stream in BOTH)
    first = reader.pid
    with pytest.raises(VideoError, match="no such file"):
        reader.read(replace(video, video=str(tmp_path / "gone.mp4")), [0], BOTH)
    with pytest.raises(VideoError, match=r"frame \d+ was requested, but the file holds 20"):
        reader.read(replace(video, frames=90), [80], BOTH)
    assert reader.pid == first, "a reason is no crash"
    reader.close()
    assert numbers(reader.read(video, [2], ("rgb",))) == [[2, 3, 4, 5]]
    assert reader.pid != first
    reader.close()


def test_a_hang_and_a_crash_cost_one_video(tmp_path: Path) -> None:
    sound = row_of(write_video(tmp_path / "a.mp4", numbered_frames(8)))
    os.mkfifo(tmp_path / "endless.mp4")  # opening it waits for a writer, deep in native code
    endless = replace(sound, video=str(tmp_path / "endless.mp4"), decoder="pyav")
    reader = ClipReader(clip_config(), FlowConfig(), DataConfig(decode_timeout=3))
    assert numbers(reader.read(sound, [1], ("rgb",))) == [[1, 2, 3, 4]]
    with pytest.raises(VideoError, match=r"^the decoder gave no answer within 3 s$"):
        reader.read(endless, [0], ("rgb",))
    assert numbers(reader.read(sound, [2], ("rgb",))) == [[2, 3, 4, 5]]
    assert reader.pid is not None
    threading.Timer(0.1, os.kill, (reader.pid, signal.SIGSEGV)).start()
    with pytest.raises(VideoError, match=r"^it crashed the decoder \(SIGSEGV\)$"):
        reader.read(endless, [0], ("rgb",))
    assert numbers(reader.read(sound, [3], ("rgb",))) == [[3, 4, 5, 6]]
    reader.close()


def test_pyav_can_be_asked_for(tmp_path: Path) -> None:
    """decord misses frames of open GOPs without a word, so that the frames tell who read them."""
    path = write_video(tmp_path / "a.mp4", numbered_frames(40), options=OPEN_GOPS)
    video = replace(row_of(path), decoder="decord")
    for decoder, right in (("auto", False), ("pyav", True)):
        clip = ClipConfig(frames=4, decode_size=(48, 64), size=32)
        reader = ClipReader(clip, FlowConfig(), DataConfig(decoder=decoder))
        assert (numbers(reader.read(video, [5], ("rgb",))) == [[5, 6, 7, 8]]) == right
        reader.close()


def test_interlaced_pictures_are_read_as_the_experiment_says(tmp_path: Path) -> None:
    path = write_interlaced(tmp_path / "a.mp4", shifted_texture(16, 96, 128, 6.0, 0.0), "libx264", {"qp": "0"})
    video, seen = row_of(path), []
    for choice in ("weave", "deinterlace"):
        reader = ClipReader(clip_config(), FlowConfig(), DataConfig(interlaced=choice))
        seen.append(reader.read(video, [2], ("rgb",))["rgb"][0])
        assert np.array_equal(seen[-1], read_frames(str(path), np.arange(2, 6), SIZE, "pyav", choice))
        reader.close()
    assert not np.array_equal(*seen)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system tells no process's memory")
def test_a_reader_does_not_grow(tmp_path: Path, reader: ClipReader) -> None:
    """300 clips here; the soak of 10,000 is `python tests/soak.py`."""
    from soak import resident, soak

    videos = [row_of(write_video(tmp_path / f"{i}.mp4", numbered_frames(30))) for i in range(4)]
    soak(reader, videos, 20)
    first, pid = resident(reader.pid), reader.pid
    soak(reader, videos, 280)
    assert reader.pid == pid
    assert resident(reader.pid) - first < 50e6


def test_a_reader_reads_from_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    from vicc_ray import storage

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    storage._remote_filesystem.cache_clear()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="films")
        local = row_of(write_video(tmp_path / "a.mp4", numbered_frames(20)))
        storage.write_bytes("s3://films/deep/a%20b.mp4", Path(local.video).read_bytes())
        row = probe("s3://films/deep/a%20b.mp4")
        assert (row.frames, row.bytes, row.content_hash, row.decoder) == (20, local.bytes, local.content_hash, "decord")
        assert abs(row.modified - time.time()) < 600
        reader = ClipReader(clip_config(), FlowConfig(), DataConfig())
        for decoder in ("decord", "pyav"):
            clips = reader.read(replace(row, decoder=decoder), [3, 15], ("rgb",))
            assert numbers(clips) == [[3, 4, 5, 6], [15, 16, 17, 18]]
        with pytest.raises(VideoError, match="no such file"):
            reader.read(replace(row, video="s3://films/deep/gone.mp4"), [0], ("rgb",))
        reader.close()
    finally:
        storage._remote_filesystem.cache_clear()
        server.stop()


# Flow ----------------------------------------------------------------------------------------------------------------


class Brightness:
    """A flow algorithm of another package: u is the change of the mean brightness times `options.scale`, v is 1."""

    uses_torch = False

    def __init__(self, weights: str | None, device: str, options: Mapping[str, Any]) -> None:
        self.scale = float(options.get("scale", 1.0))

    def fields(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        means = frames.mean(axis=(1, 2, 3))
        fields = np.ones((len(frames) - 1, *frames.shape[1:3], 2), np.float32)
        fields[..., 0] = (self.scale * np.diff(means))[:, None, None]
        return fields

    def identity(self) -> dict[str, Any]:
        return {"version": 1}


OTHER = f"{__name__}:Brightness"


def test_an_algorithm_of_another_package_is_streamed_stored_and_identified(tmp_path: Path) -> None:
    row = row_of(write_video(tmp_path / "v.mp4", numbered_frames(20)))
    clip = clip_config(frames=6)
    flow = FlowConfig(algorithm=OTHER, options={"scale": 0.5})
    made = ClipReader(clip, flow, DataConfig())
    try:
        streamed = made.read(row, [3], ("flow",))["flow"]
    finally:
        made.close()
    frames = read_frames(row.video, np.arange(3, 10), clip.decode_size, row.decoder)
    expected = quantise(Brightness(None, "cpu", {"scale": 0.5}).fields(frames))
    assert np.array_equal(streamed[0], expected)
    pack(make_store(tmp_path / "store", clip.decode_size, ["flow"], flow), [row], ["flow"], flow)
    stored = flow.model_copy(update={"source": "store", "store": str(tmp_path / "store")})

    def asked(flow: FlowConfig) -> Experiment:
        return Experiment(clip=clip, flow=flow)

    assert check_stored(asked(stored), [row]) == []
    with pytest.raises(UserError, match=r"flow.options: is \{'scale': 2\}, the store .* holds \{'scale': 0.5\}"):
        check_stored(asked(stored.model_copy(update={"options": {"scale": 2}})), [row])
    again = read_clips(row, [3], ("flow",), clip, stored)["flow"]
    # Frames that are decoded in one go and those that are sought may differ by a value here and there.
    assert np.abs(again.astype(int) - streamed).max() <= 1
    assert flow_identity(asked(flow)) != flow_identity(asked(flow.model_copy(update={"options": {}})))


def test_what_an_algorithm_of_another_package_gives_is_checked() -> None:
    frames = np.zeros((3, 16, 20, 3), np.uint8)
    with pytest.raises(UserError, match=r"has no fields\(frames\)"):
        flow_between(frames, f"{__name__}:NoFlow")
    with pytest.raises(ValueError, match=r"HalfPrecision gave float16 \[2, 16, 20, 2\], not float32 \[2, 16, 20, 2\]"):
        flow_between(frames, f"{__name__}:HalfPrecision")


class NoFlow(Brightness):
    fields = None  # type: ignore[assignment]


class HalfPrecision(Brightness):
    def fields(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return super().fields(frames).astype(np.float16)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("source", ["stream", "store"])
def test_the_last_frame_repeats_the_field_before_it_at_any_stride(tmp_path: Path, stride: int, source: str) -> None:
    """Also where the frame that this field leads from is none of the clip's."""
    frames = np.concatenate(
        [shifted_texture(2, 48, 64, 3.0, 0.0)[:1]] * 18 + [shifted_texture(3, 48, 64, 3.0, 0.0)[1:]]
    )
    row = row_of(write_video(tmp_path / "v.mp4", frames, fps=25))
    clip = ClipConfig(frames=4, stride=stride, decode_size=(48, 64), size=32)
    flow = FlowConfig(bound=8)
    if source == "store":
        pack(make_store(tmp_path / "store", (48, 64), ["flow"], flow), [row], ["flow"], flow)
        flow = FlowConfig(bound=8, source="store", store=str(tmp_path / "store"))
    start = row.frames - 1 - 3 * stride
    last = dequantise(read_clips(row, [start], ("rgb", "flow"), clip, flow)["flow"][0, -1], 8)
    whole = flow_between(read_frames(row.video, np.arange(row.frames), (48, 64), row.decoder), "dis")
    assert np.abs(whole[-1]).mean() > 1  # the last frames move
    assert np.abs(last - np.clip(whole[-1], -8, 8)).max() < 0.2
