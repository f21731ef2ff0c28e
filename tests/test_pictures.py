"""From a decoded picture to an image: upright, scaled and coloured by one rule, whatever the file and its reader."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from videos import numbered_frames, read_number, set_matrix, shifted_texture, write_interlaced, write_video

from vicc_ray.data.decode import DECODERS, Decoder, read_frames
from vicc_ray.data.manifest import check, probe
from vicc_ray.data.pictures import Orientation, to_image

# What a matrix (a, b, c, d) of a track header does to a picture [H, W, 3].
MATRICES = {
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
    (0, -1, -1, 0): lambda image: image[::-1, ::-1].swapaxes(0, 1),
    (-1, 0, 0, -1): lambda image: image[::-1, ::-1],
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
}


def striped(n: int, height: int = 240, width: int = 320) -> np.ndarray:
    """Stripes of one to four columns and rows in saturated colours, which move: all detail is in the colour."""
    colours = np.array([(220, 30, 30), (30, 200, 40), (40, 40, 220), (200, 190, 20), (190, 30, 190)], np.uint8)
    rng = np.random.default_rng(2)
    columns = np.repeat(rng.integers(0, 5, width), rng.integers(1, 5, width))[: width + n]
    rows = np.repeat(rng.integers(0, 5, height), rng.integers(1, 5, height))[:height]
    return np.stack([colours[(rows[:, None] + columns[None, i : i + width]) % 5] for i in range(n)])


# Orientation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", list(itertools.product((False, True), repeat=3)))
def test_a_turn_after_a_mirroring_is_the_orientation(flags: tuple[bool, bool, bool]) -> None:
    orientation, image = Orientation(*flags), np.arange(6).reshape(2, 3)
    mirrored = image[:, ::-1] if orientation.mirrored else image
    assert np.array_equal(np.rot90(mirrored, -orientation.degrees // 90), orientation.upright(image))
    assert orientation.stored(orientation.upright(image).shape) == (2, 3)


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
@pytest.mark.parametrize("decoder", ["chosen", *DECODERS[1:]])
def test_mirrored_and_turned_files_are_shown_as_players_show_them(
    tmp_path: Path, matrix: tuple[int, int, int, int], decoder: Decoder
) -> None:
    stored = numbered_frames(6)
    path = write_video(tmp_path / "a.mp4", stored)
    plain = read_frames(str(path), np.arange(6))
    wanted = np.stack([MATRICES[matrix](image) for image in plain])
    row = check(str(set_matrix(path, matrix)))
    assert (row.decoder, row.height, row.width) == ("pyav", *wanted.shape[1:3])
    got = read_frames(str(path), np.arange(6), None, row.decoder if decoder == "chosen" else decoder)  # type: ignore[comparison-overlap]
    assert np.array_equal(got, wanted)


# Interlaced ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"qp": "0"}),
        ("a.mpg", "mpeg2video", {"qscale": "1"}),
        ("a.avi", "mpeg4", {"qscale": "1"}),
        ("a.ts", "libx264", {"qp": "0"}),
    ],
)
def test_progressive_pictures_marked_interlaced_look_as_without_the_mark(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    film = shifted_texture(12, 288, 384, 5.0, 3.0)
    marked = write_interlaced(tmp_path / name, np.repeat(film, 2, 0), codec, dict(options))
    plain = write_video(tmp_path / "plain.mp4", film, options={"qp": "0"})
    rows = [probe(str(path)) for path in (marked, plain)]
    assert [row.decoder for row in rows] == ["pyav", "decord"]
    # A PS begins with B-frames that cannot be decoded; the content is compared from a picture that both have.
    images = [read_frames(row.video, np.arange(3, 9), (128, 171), row.decoder).astype(int) for row in rows]
    # 7 to 12 with each field scaled for itself; the rest is what MPEG-2 and MPEG-4 lose.
    assert np.abs(images[0] - images[1]).mean() < 1.5
    assert np.array_equal(images[0], read_frames(str(marked), np.arange(3, 9), (128, 171), "pyav-sequential"))


def combs(images: np.ndarray) -> float:
    """Mean grey levels between a row and the mean of its neighbours."""
    rows = images.astype(float)
    return float(np.abs(rows[:, 1:-1] - (rows[:, :-2] + rows[:, 2:]) / 2).mean())


def test_interlaced_motion_has_no_combs_where_that_is_chosen(tmp_path: Path) -> None:
    # Upright stripes, so that rows differ by motion alone.
    moments = np.ascontiguousarray(np.broadcast_to(shifted_texture(24, 288, 384, 12.0, 0.0)[:, :1], (24, 288, 384, 3)))
    path = write_interlaced(tmp_path / "a.mp4", moments, "libx264", {"qp": "0"})
    wanted = [cv2.resize(image, (171, 128), interpolation=cv2.INTER_AREA) for image in moments[::2]]
    woven, single = (
        read_frames(str(path), np.arange(12), (128, 171), "pyav", choice) for choice in ("weave", "deinterlace")
    )
    assert combs(single) < 0.5
    assert np.abs(single.astype(int) - wanted).mean() < 4.0 < np.abs(woven.astype(int) - wanted).mean()
    full = [read_frames(str(path), np.arange(2), None, "pyav", choice) for choice in ("weave", "deinterlace")]
    assert full[0].shape == full[1].shape == (2, 288, 384, 3)
    assert combs(full[1]) < 0.5 < 10.0 < combs(full[0])


def test_pictures_without_the_mark_are_the_same_under_both(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", shifted_texture(4, 64, 96, 3.0, 0.0)))
    with av.open(path) as container:
        for frame in container.decode(video=0):
            assert np.array_equal(to_image(frame, (32, 48)), to_image(frame, (32, 48), "deinterlace"))


# Colour --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (128, 171), (64, 86), (120, 160), (100, 330), (240, 160)])
def test_both_readers_give_the_same_colours(tmp_path: Path, size: tuple[int, int] | None) -> None:
    path = str(write_video(tmp_path / "a.mp4", striped(6)))
    assert probe(path).decoder == "decord"
    images = [read_frames(path, np.arange(6), size, decoder) for decoder in DECODERS]
    assert all(np.array_equal(images[0], other) for other in images[1:])
    assert np.ptp(images[0].astype(int), axis=-1).mean() > 30, "the colours are still there"


def test_colours_stand_where_the_pixels_are(tmp_path: Path) -> None:
    """Scaled down, each edge between two colours is where scaling the RGB picture puts it."""
    frames = np.full((3, 128, 256, 3), (30, 40, 200), np.uint8)
    frames[:, :, 128:] = (200, 60, 30)
    path = str(write_video(tmp_path / "a.mp4", frames))
    wanted = cv2.resize(frames[1], (64, 32), interpolation=cv2.INTER_AREA).astype(int)
    for decoder in DECODERS:
        assert np.abs(read_frames(path, np.array([1]), (32, 64), decoder)[0] - wanted).max() < 40


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv422p", "yuv444p"])
def test_formats_that_the_readers_convert_differently_have_one_reader(tmp_path: Path, pixels: str) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        for i, image in enumerate(numbered_frames(8)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    row = probe(str(tmp_path / "a.mp4"))
    assert row.decoder == "pyav"
    assert [read_number(image) for image in read_frames(row.video, np.arange(8), None, row.decoder)] == list(range(8))


def test_flags_of_range_and_matrix_hold_for_both_readers(tmp_path: Path) -> None:
    for colorspace, colour_range, wanted in ((1, 1, (196, 106, 40)), (5, 1, (188, 100, 44)), (1, 2, (186, 107, 49))):
        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, colour_range
            for i in range(3):
                frame = av.VideoFrame(320, 240, "yuv420p")
                for plane, value in zip(frame.planes, (120, 90, 170), strict=True):
                    plane.update(bytes([value]) * plane.buffer_size)
                frame.colorspace, frame.color_range, frame.pts = colorspace, colour_range, i
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for decoder in DECODERS:
            got = read_frames(str(tmp_path / "a.mp4"), np.array([1]), (128, 171), decoder)[0, 64, 85]
            assert np.abs(got.astype(int) - wanted).max() <= 2, (colorspace, colour_range, decoder)
