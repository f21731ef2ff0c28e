"""Pictures larger than a bound: refused by name before they are decoded, and read where the bound is raised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from videos import numbered_frames, read_number, write_video

from vicc_ray.commands.index import IndexOptions, index_videos
from vicc_ray.config import MAX_PIXELS, ClipConfig, DataConfig, FlowConfig
from vicc_ray.data import decode
from vicc_ray.data.decode import VideoError, bound_pixels, read_frames
from vicc_ray.data.manifest import probe
from vicc_ray.data.reader import ClipReader


@pytest.fixture(autouse=True)
def _bound() -> Iterator[None]:
    yield
    bound_pixels(MAX_PIXELS)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """One flat picture of 37 million pixels in some KB."""
    picture = np.full((1, 6080, 6080, 3), 128, np.uint8)
    return write_video(tmp_path / "large.mp4", picture, options={"preset": "ultrafast", "crf": "40"})


def test_a_giant_picture_is_refused_before_it_is_decoded(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert large.stat().st_size < 300_000
    monkeypatch.setattr(decode, "read_timeline", lambda *_: pytest.fail("the file was gone through"))
    with pytest.raises(
        VideoError, match=r"6080 x 6080 pixels, at most 35,651,584 are decoded \(data.max_pixels, index --max-pixels\)"
    ):
        probe(str(large))


@pytest.mark.parametrize("decoder", ["pyav", "pyav-sequential"])
def test_the_bound_may_be_lowered_and_raised(tmp_path: Path, decoder: decode.Decoder) -> None:
    path = str(write_video(tmp_path / "a.mp4", numbered_frames(6)))
    bound_pixels(64 * 96)
    assert read_number(read_frames(path, np.array([4]), decoder=decoder)[0]) == 4
    bound_pixels(64 * 96 - 1)
    with pytest.raises(VideoError, match="96 x 64 pixels, at most 6,143"):
        read_frames(path, np.array([4]), decoder=decoder)


def test_indexing_and_training_name_the_bound(tmp_path: Path) -> None:
    write_video(tmp_path / "v" / "a.mp4", numbered_frames(6))
    write_video(tmp_path / "v" / "b.mp4", numbered_frames(6, 32, 48))
    manifest = index_videos(str(tmp_path / "v"), tmp_path / "m.parquet")
    assert len(manifest) == 2
    again = index_videos(str(tmp_path / "v"), tmp_path / "m.parquet", IndexOptions(max_pixels=2000))
    assert [Path(row.video).name for row in again.videos] == ["b.mp4"]
    assert "96 x 64 pixels, at most 2,000" in (again.refused[0].refused or "")
    clip = ClipConfig(frames=4, decode_size=(32, 48), size=32)
    reader = ClipReader(clip, FlowConfig(), DataConfig(max_pixels=2000))
    try:
        assert reader.read(manifest.videos[1], [0], ("rgb",))["rgb"].shape == (1, 4, 32, 48, 3)
        with pytest.raises(VideoError, match=r"96 x 64 pixels, more than data\.max_pixels = 2000"):
            reader.read(manifest.videos[0], [0], ("rgb",))
    finally:
        reader.close()
