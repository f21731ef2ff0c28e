"""Motion vectors: the codec's own, as a dense field; against known shifts, through a slow twin and the file's oddities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import set_matrix, shifted_texture, turn, write_interlaced, write_video

from vicc_ray.data.decode import VideoError, open_video
from vicc_ray.data.flow import motion_vectors
from vicc_ray.data.flow.motion_vectors import CELL, iterate_motion_vectors, motion_vector_fields
from vicc_ray.data.nal import is_reference
from vicc_ray.data.pictures import Orientation

SIZE = (144, 192)
SHIFT = (3.0, -1.5)
N = 20

# One reference in each direction: with several, FFmpeg does not tell which one a vector means.
FILES: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "a.mp4", {}),
    "h264, no B-frames": ("libx264", "b.mp4", {"bf": "0"}),
    "h264, B-frames as references": (
        "libx264",
        "c.mkv",
        {"bf": "3", "x264-params": "b-pyramid=normal:b-adapt=0:ref=1:direct=none"},
    ),
    "h264 in TS": ("libx264", "d.ts", {}),
    "mpeg4": ("mpeg4", "e.avi", {}),
    "mpeg4 with B-frames": ("mpeg4", "f.mp4", {"bf": "2"}),
    "mpeg2 with B-frames": ("mpeg2video", "g.mkv", {"bf": "2"}),
    "snow": ("snow", "h.avi", {"strict": "experimental"}),
    "snow, two references": ("snow", "i.nut", {"strict": "experimental", "refs": "2"}),
    "rv20": ("rv20", "j.rm", {}),
    "interlaced h264": ("libx264", "k.mp4", {"x264-params": "tff=1"}),
}


def _file(folder: Path, name: str, height: int = SIZE[0], width: int = SIZE[1], n: int = N) -> Path:
    codec, file, options = FILES[name]
    return write_video(folder / file, shifted_texture(n, height, width, *SHIFT), codec, options=options)


@pytest.mark.parametrize("name", sorted(FILES))
def test_shifts_are_found(name: str, tmp_path: Path) -> None:
    fields = motion_vector_fields(str(_file(tmp_path, name)), np.arange(N - 1), SIZE)
    assert fields.shape == (N - 1, *SIZE, 2)
    assert fields.dtype == np.float32
    assert np.abs(fields.mean((0, 1, 2)) - SHIFT).max() < 0.4
    # In every single field, into I-frames (12) too; at the rim codecs refer to anything.
    inner = fields[:, 16:-16, 16:-16]
    error = np.abs(inner.mean((1, 2)) - SHIFT).max(1)
    assert error.max() < 0.5, error


def test_all_intra_marks_are_not_believed(tmp_path: Path) -> None:
    """AVI marks every picture of H.261 and H.263 as a key; both have vectors."""
    for codec, size in (("h261", (288, 352)), ("h263", (144, 176))):
        path = write_video(tmp_path / f"{codec}.avi", shifted_texture(N, *size, *SHIFT), codec)
        fields = motion_vector_fields(str(path), np.arange(N - 1), size)
        assert np.abs(fields.mean((0, 1, 2)) - SHIFT).max() < 0.3


INTERLACED: dict[str, tuple[str, str, dict[str, str], bool]] = {
    "h264": ("libx264", "a.mp4", {"x264-params": "ref=1:bframes=0"}, True),
    "h264, bottom field first": ("libx264", "a.mp4", {"x264-params": "ref=1:bframes=0"}, False),
    "h264 with B-frames": ("libx264", "a.ts", {"x264-params": "ref=1:bframes=2"}, True),
    "h264 of several references": ("libx264", "a.mkv", {}, True),
    "mpeg4": ("mpeg4", "a.avi", {"qscale": "2"}, True),
}


@pytest.mark.parametrize("name", sorted(INTERLACED))
@pytest.mark.parametrize("motion", [(4.0, 6.0), (0.0, 5.0), (-6.0, 1.0)])
def test_vectors_of_fields_count_in_frame_lines(name: str, motion: tuple[float, float], tmp_path: Path) -> None:
    """FFmpeg exports them in field lines (half as much), or doubled twice; half a picture nearer where fields alternate."""
    codec, file, options, top_first = INTERLACED[name]
    moments = shifted_texture(2 * N, 192, 256, motion[0] / 2, motion[1] / 2)
    path = write_interlaced(tmp_path / file, moments, codec, dict(options), top_first)
    fields = motion_vector_fields(str(path), np.arange(N - 1), (192, 256))
    assert np.abs(np.median(fields, (0, 1, 2)) - motion).max() < 0.3
    assert np.abs(fields.mean((0, 1, 2)) - motion).max() < 0.3
    if codec == "libx264":
        assert (np.abs(fields - np.array(motion)).max(-1) < 0.75).mean() > 0.9
        assert np.array_equal(motion_vector_fields(str(path), np.array([13, 7]), (192, 256)), fields[[13, 7]])


@pytest.mark.parametrize(
    ("matrix", "moved"),
    [
        ((-1, 0, 0, 1), (-3.0, -1.5)),
        ((1, 0, 0, -1), (3.0, 1.5)),
        ((0, 1, 1, 0), (-1.5, 3.0)),
        ((0, -1, -1, 0), (1.5, -3.0)),
    ],
)
def test_vectors_are_mirrored_with_the_picture(
    matrix: tuple[int, int, int, int], moved: tuple[float, float], tmp_path: Path
) -> None:
    path = set_matrix(_file(tmp_path, "h264"), matrix)
    size = SIZE if matrix[0] else SIZE[::-1]
    fields = motion_vector_fields(str(path), np.arange(N - 1), size)
    assert fields.shape[1:3] == size
    assert np.abs(fields.mean((0, 1, 2)) - moved).max() < 0.3


@pytest.mark.parametrize("name", ["h264", "mpeg4"])
def test_vectors_scale_with_the_picture(name: str, tmp_path: Path) -> None:
    fields = motion_vector_fields(str(_file(tmp_path, name)), np.arange(N - 1), (SIZE[0] // 2, SIZE[1] // 4))
    assert np.abs(fields.mean((0, 1, 2)) - (SHIFT[0] / 4, SHIFT[1] / 2)).max() < 0.2


@pytest.mark.parametrize(("clockwise", "turned"), [(90, (1.5, 3.0)), (180, (-3.0, 1.5)), (270, (-1.5, -3.0))])
def test_vectors_turn_with_the_picture(clockwise: int, turned: tuple[float, float], tmp_path: Path) -> None:
    path = turn(_file(tmp_path, "h264"), clockwise)
    size = SIZE if clockwise == 180 else SIZE[::-1]
    fields = motion_vector_fields(str(path), np.arange(N - 1), size)
    assert fields.shape[1:3] == size
    assert np.abs(fields.mean((0, 1, 2)) - turned).max() < 0.3


def test_a_turned_field_is_the_field_turned(tmp_path: Path) -> None:
    path = _file(tmp_path, "h264")
    plain = motion_vector_fields(str(path), np.arange(4), SIZE)
    turned = motion_vector_fields(str(turn(path, 90)), np.arange(4), SIZE[::-1])
    for y in (0, 17, 143):
        for x in (0, 60, 191):
            u, v = plain[2, y, x]
            assert turned[2, x, SIZE[0] - 1 - y].tolist() == [-v, u]


@pytest.mark.parametrize("name", ["h264", "h264, B-frames as references", "h264 in TS", "mpeg4 with B-frames"])
def test_a_field_does_not_depend_on_what_was_asked_with_it(name: str, tmp_path: Path) -> None:
    path = str(_file(tmp_path, name, n=44))
    whole = np.stack(list(iterate_motion_vectors(path, (48, 71))))
    assert len(whole) == 43
    for origins in ([0], [11], [12, 13], [35, 11, 23, 11], [36], [37], [42]):
        assert np.array_equal(motion_vector_fields(path, np.array(origins), (48, 71)), whole[origins]), origins


def test_counted_frames_agree_where_there_are_no_b_frames(tmp_path: Path) -> None:
    path = str(_file(tmp_path, "mpeg4"))
    whole = motion_vector_fields(path, np.arange(N - 1), SIZE)
    assert np.array_equal(motion_vector_fields(path, np.arange(N - 1), SIZE, "pyav-sequential"), whole)
    with_b = motion_vector_fields(str(_file(tmp_path, "h264")), np.arange(N - 1), SIZE, "pyav-sequential")
    assert np.abs(with_b.mean((1, 2)) - SHIFT).max() < 0.5


def test_a_still_part_stays_still(tmp_path: Path) -> None:
    frames = shifted_texture(8, 96, 128, 2.0, 0.0)
    frames[:, :, :64] = frames[:1, :, :64]
    field = motion_vector_fields(str(write_video(tmp_path / "half.mp4", frames)), np.arange(7), (96, 128)).mean(0)
    assert np.abs(field[:, :48]).max() < 0.3
    assert np.abs(field[:, 80:, 0].mean() - 2.0) < 0.3


def test_cells_are_painted_and_filled_as_a_slow_loop_does() -> None:
    rng = np.random.default_rng(3)
    names = ["source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale"]
    vectors = np.zeros(30, [(name, np.int32) for name in names])
    vectors["source"] = rng.choice([-1, 1], 30)
    vectors["w"], vectors["h"] = rng.choice([4, 8, 16], (2, 30))
    vectors["dst_x"] = rng.integers(-1, 20, 30) * 4 + vectors["w"] // 2
    vectors["dst_y"] = rng.integers(-1, 14, 30) * 4 + vectors["h"] // 2
    vectors["motion_x"], vectors["motion_y"] = rng.integers(-40, 40, (2, 30))
    vectors["motion_scale"] = 4
    picture = motion_vectors._Picture(1, vectors, past=2, future=3, height=50, width=70, orientation=Orientation())
    seen: dict[tuple[int, int], list[Any]] = {}
    for v in vectors:
        per_frame = -1 / 2 if v["source"] < 0 else 1 / 3
        for y in range(v["dst_y"] - v["h"] // 2, v["dst_y"] + v["h"] // 2, CELL):
            for x in range(v["dst_x"] - v["w"] // 2, v["dst_x"] + v["w"] // 2, CELL):
                if 0 <= y // 4 < 13 and 0 <= x // 4 < 18:
                    velocity = np.array([v["motion_x"], v["motion_y"]]) / 4 * per_frame
                    seen.setdefault((y // 4, x // 4), []).append(velocity)
    cells = motion_vectors._cells(picture)
    assert cells is not None and cells.shape == (13, 18, 2)
    assert 20 < len(seen) < 13 * 18
    for (row, column), velocities in seen.items():
        assert cells[row, column] == pytest.approx(np.mean(velocities, 0), abs=1e-4)
    for row in range(13):
        for column in range(18):
            steps = sorted((np.hypot(r - row, c - column), r, c) for r, c in seen)
            # The distances of OpenCV's 5 x 5 mask are off by a few percent.
            near = [cells[r, c] for distance, r, c in steps if distance <= steps[0][0] * 1.1 + 0.01]
            assert any(np.array_equal(cells[row, column], value) for value in near)


def test_distances_are_to_what_was_decoded_before(tmp_path: Path) -> None:
    with open_video(str(_file(tmp_path, "h264"))) as (_, stream):
        order = motion_vectors._DecodingOrder(stream)
    kept, dropped = b"\0\0\0\2\x41x", b"\0\0\0\2\x01x"
    for index, unit in [
        (0, kept),
        (8, kept),
        (4, kept),
        (2, kept),
        (1, dropped),
        (3, dropped),
        (6, dropped),
        (7, dropped),
    ]:
        order.add(unit, index)
    assert [order.distances(i) for i in (8, 4, 2, 1, 3, 6, 7)] == [
        (8, 1),
        (4, 4),
        (2, 2),
        (1, 1),
        (1, 1),
        (2, 2),
        (3, 1),
    ]


def test_h264_headers_tell_references() -> None:
    assert is_reference(b"\0\0\0\1\x09\xf0\0\0\1\x65abc", 0)  # delimiter, then IDR with nal_ref_idc 3
    assert not is_reference(b"\0\0\1\x06zz\0\0\1\x01abc", 0)  # SEI, then a slice with nal_ref_idc 0
    assert is_reference(b"\0\0\0\3\x06zz\0\0\0\4\x41abc", 4)
    assert not is_reference(b"\0\3\x06zz\0\4\x01abc", 2)
    assert not is_reference(b"", 4)


def test_what_has_no_vectors_is_refused(tmp_path: Path) -> None:
    frames = shifted_texture(6, 64, 64, 1, 0)
    with pytest.raises(VideoError, match=r"no motion vectors of vp9; use flow.algorithm dis"):
        motion_vector_fields(str(write_video(tmp_path / "a.webm", frames, "libvpx-vp9")), np.arange(2), (64, 64))
    intra = write_video(tmp_path / "b.mp4", frames, gop=1, options={"bf": "0"})
    with pytest.raises(VideoError, match="every picture is a key frame"):
        list(iterate_motion_vectors(str(intra), (64, 64)))
    path = str(write_video(tmp_path / "c.mp4", frames))
    with pytest.raises(VideoError, match="no frame after frame 5"):
        motion_vector_fields(path, np.array([4, 5]), (64, 64))
    with pytest.raises(ValueError, match="none below 0"):
        motion_vector_fields(path, np.array([-1]), (64, 64))
    with pytest.raises(VideoError, match="no such file"):
        motion_vector_fields(str(tmp_path / "d.mp4"), np.array([0]), (64, 64))
    assert list(iterate_motion_vectors(str(write_video(tmp_path / "e.mp4", frames[:1])), (64, 64))) == []
