"""Awkward files, real and made: each is decoded right (the right frames, the right way up) or refused in one line.

What is right is told by a plain PyAV loop from the start of the file, turned by the picture's own display matrix.
"""

from __future__ import annotations

import itertools
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import OPEN_GOPS, numbered_frames, read_number, shifted_texture, spoil, truncate, write_video

from vicc_ray.data import inspection
from vicc_ray.data.decode import DECODERS, Decoder, VideoError, read_frames
from vicc_ray.data.manifest import VideoRow, check, probe

REAL = Path(__file__).parents[2] / "shared" / "data"
SIZE = (48, 64)
TITLES = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}  # PyAV 19 takes any
KIB = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss

REFUSED = {
    "decord_corrupted.mp4": r"^damaged: decoding stops after frame 27 of 50",
    "moviepy_zero_bytes.webm": "^not readable as a video",
    "mp4parse_bipbop_audioinit.mp4": r"^no video stream \(only audio\)$",
    "mp4parse_chunk_out_of_range.mp4": "^not readable as a video",
    "torchcodec_audio_only.mp3": r"^no video stream \(only audio\)$",
}
# What is known of some: frames, width, height, rotation.
KNOWN = {
    "-video-with-dash-.mp4": 5,
    "torchcodec_testsrc2_mpeg4.mp4": 1,
    "wlasl_01377_editlist_25hdr_22dec.mp4": 22,
    "phone_vfr_rot-90_FanOff.mp4": 32,
    "torchcodec_av1_video.mkv": 125,
    "autoeditor_h264-plus-png-cover.mkv": 60,
}


def plain(path: Path, size: tuple[int, int] | None, most: int | None = None) -> np.ndarray:
    """All pictures (or `most` of them) uint8 [n, H, W, 3], decoded one after another, upright, without any of our code."""
    pictures = []
    with av.open(str(path), **TITLES) as container:
        for frame in islice(container.decode(container.streams.video[0]), most):
            turns = round(frame.rotation / 90) % 4
            height, width = size or (None, None)
            if turns % 2:
                height, width = width, height
            image = frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()
            pictures.append(np.rot90(image, turns))
    return np.stack(pictures)


def index_sets(frames: int, each: int = 3) -> list[np.ndarray]:
    """All of them, some scattered ones and some windows, the last one alone."""
    rng = np.random.default_rng(frames)
    spread = [rng.integers(0, frames, 6) for _ in range(each)]
    windows = [np.minimum(rng.integers(0, frames) + np.arange(5), frames - 1) for _ in range(each)]
    return [np.arange(frames), *spread, *windows, np.array([frames - 1])]


def assert_right(row: VideoRow, path: Path, wanted: np.ndarray, decoder: Decoder, each: int) -> None:
    """Every set of frames is what the plain loop shows, and no nearer to another frame."""
    for indices in index_sets(row.frames, each):
        got = read_frames(row.video, indices, SIZE, decoder)
        assert got.shape == (len(indices), *SIZE, 3)
        for picture, index in zip(got, indices, strict=True):
            distances = np.abs(wanted - picture).mean((1, 2, 3))
            assert distances[index] < 4.0, f"{path.name}, {decoder}: frame {index} of {indices}"
            assert distances[index] <= distances.min() + 0.2, f"{path.name}, {decoder}: frame {index} of {indices}"


def names(folder: str) -> list[str]:
    return sorted(path.name for path in (REAL / folder).glob("*")) if (REAL / folder).exists() else []


@pytest.mark.skipif(not names("hard"), reason="the hard files are not here")
def test_the_hard_files_are_all_here() -> None:
    assert len(names("hard")) == 23
    assert set(REFUSED) | set(KNOWN) <= set(names("hard"))


@pytest.mark.parametrize("name", names("hard"))
def test_hard_files_are_decoded_right_or_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = REAL / "hard" / name
    if name in REFUSED:
        for look in (probe, check):
            with pytest.raises(VideoError, match=REFUSED[name]) as refusal:
                look(str(path))
            assert "\n" not in str(refusal.value)
    else:
        row = probe(str(path))
        assert row.frames == KNOWN.get(name, row.frames)
        natural = plain(path, None, 1)
        assert (row.height, row.width) == natural.shape[1:3]
        assert read_frames(str(path), np.array([0]), None, row.decoder).shape == natural.shape
        wanted = plain(path, SIZE).astype(np.int16)
        assert row.frames == len(wanted)
        assert_right(row, path, wanted, row.decoder, 3)
        for decoder in ("pyav", "pyav-sequential"):
            assert_right(row, path, wanted, decoder, 1)
        every = check(str(path))
        assert every.checked
        assert (every.frames, every.decoder) == (row.frames, row.decoder)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.skipif(not names("hard"), reason="the hard files are not here")
def test_which_of_them_lie_about_their_length() -> None:
    rows = {name: check(str(REAL / "hard" / name)) for name in names("hard") if name not in REFUSED}
    lies = {name: (row.declared_frames, row.frames) for name, row in rows.items()}
    assert {name: pair for name, pair in lies.items() if pair[0] not in (0, pair[1])} == {
        "wlasl_01377_editlist_25hdr_22dec.mp4": (25, 22),
        "wlasl_01586_bad_utf8_metadata.mp4": (44, 43),
    }


@pytest.mark.skipif(not (REAL / "ucf_mini").exists(), reason="the UCF101 files are not here")
def test_ucf_files_are_decoded_right() -> None:
    lying = []
    lies = [*(REAL / "ucf_mini").rglob("v_BaseballPitch_g01_c03.avi")]
    for path in {*sorted((REAL / "ucf_mini").glob("*/*"))[::5], *lies}:
        row = probe(str(path))
        wanted = plain(path, (16, 16)).astype(np.int16)
        assert row.frames == len(wanted)
        for indices in index_sets(row.frames)[1:]:
            got = read_frames(row.video, indices, (16, 16), row.decoder)
            assert np.abs(got - wanted[indices]).mean((1, 2, 3)).max() < 2.0, f"{path.name}: {row.decoder}"
        if row.declared_frames not in (0, row.frames):
            lying.append((path.name, row.declared_frames, row.frames))
    assert lying == [("v_BaseballPitch_g01_c03.avi", 104, 103)]


# Made ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
@pytest.mark.parametrize("keep", [0.35, 0.6, 0.9])
def test_truncated_uploads_are_read_as_far_as_they_go_or_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    whole = numbered_frames(40)
    path = truncate(write_video(tmp_path / f"a{suffix}", whole, "mpeg4" if suffix == ".avi" else "libx264"), keep)
    try:
        row = check(str(path))
    except VideoError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        return
    assert 0 < row.frames <= 40
    assert row.declared_frames in ((0,) if suffix == ".ts" else (40, row.frames))
    got = read_frames(str(path), np.arange(row.frames), decoder=row.decoder)
    # The last picture may be cut in the middle.
    assert [read_number(frame) for frame in got[:-1]] == list(range(row.frames - 1))


def test_check_decodes_what_probe_passes_over(tmp_path: Path) -> None:
    """Noise in the middle: the first picture and the last stretch are sound."""
    path = write_video(tmp_path / "a.mp4", numbered_frames(120), options={"x264-params": "keyint=12:scenecut=0"})
    sound = check(str(path))
    assert sound.checked
    assert not probe(str(path)).checked
    assert (sound.frames, sound.declared_frames, sound.decoder) == (120, 120, "decord")
    spoil(path, 0.5, 0.6)
    assert probe(str(path)).frames == 120
    try:
        row = check(str(path))
    except VideoError as error:
        assert "damaged" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert row.frames < 120 or row.decoder != "decord"


def quiet(n: int) -> np.ndarray:
    """Frames whose neighbours differ by two grey levels: a wrong one is within any tolerance of the right one."""
    levels = (60 + 2 * np.arange(n)).astype(np.uint8)[:, None, None, None]
    return np.ascontiguousarray(np.broadcast_to(levels, (n, 64, 96, 3)))


def test_check_compares_decord_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that swaps two like neighbours far from where `probe` looks is found out."""
    import decord

    path = write_video(tmp_path / "a.mp4", quiet(60))
    assert check(str(path)).decoder == "decord"
    honest = decord.VideoReader

    class Swapping(honest):  # type: ignore[misc, valid-type]
        def __getitem__(self, index: int) -> object:
            return super().__getitem__({30: 31, 31: 30}.get(index, index))

    monkeypatch.setattr(decord, "VideoReader", Swapping)
    assert probe(str(path)).decoder == "decord"
    assert check(str(path)).decoder == "pyav"


def test_decord_is_not_trusted_with_open_gops(tmp_path: Path) -> None:
    """It returns other frames of these without a word; in a quiet video no comparison would tell."""
    path = write_video(tmp_path / "a.mp4", numbered_frames(40), options=OPEN_GOPS)
    window = np.arange(5, 9)
    assert [read_number(frame) for frame in read_frames(str(path), window, decoder="decord")] != window.tolist()
    for pictures in (numbered_frames(40), np.full((40, 64, 96, 3), 90, np.uint8)):
        row = probe(str(write_video(path, pictures, options=OPEN_GOPS)))
        assert (row.frames, row.decoder) == (40, "pyav")
    closed = {"x264-params": OPEN_GOPS["x264-params"].replace("open-gop=1", "open-gop=0")}
    assert probe(str(write_video(path, pictures, options=closed))).decoder == "decord"


def test_a_landing_beside_the_asked_frame_is_seen_in_a_quiet_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import decord

    path = write_video(tmp_path / "a.mp4", quiet(60))
    honest = decord.VideoReader

    class Late(honest):  # type: ignore[misc, valid-type]
        def __getitem__(self, index: int) -> object:
            return super().__getitem__(min(index + 1, 59) if index > 45 else index)

    monkeypatch.setattr(decord, "VideoReader", Late)
    assert probe(str(path)).decoder == "pyav"


@pytest.mark.parametrize(
    "name", ["-dash.mp4", "a b'c\"d.mp4", "größe 視頻.mp4", "line\nbreak.mp4", "%03d.mp4", "pipe:.mp4"]
)
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_video(tmp_path / "plain.mp4", numbered_frames(5)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    row = check(name)
    assert row.frames == 5
    for decoder in DECODERS:
        assert read_number(read_frames(name, np.array([3]), decoder=decoder)[0]) == 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_title_in_a_foreign_encoding_does_not_lose_the_pictures(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a{suffix}", numbered_frames(8), title="TITLE")
    assert path.read_bytes().count(b"TITLE") == 1
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xe4\xf6\xff\xa0\xc3"))
    row = check(str(path))
    assert row.frames == 8
    for decoder in DECODERS:
        assert read_number(read_frames(str(path), np.array([5]), decoder=decoder)[0]) == 5


def four_hours(path: Path, codec: str, rate: int = 2) -> Path:
    """A few real pictures, muxed again and again: four hours in a second."""
    few = write_video(path.with_name(f"few{path.suffix}"), numbered_frames(100, 32, 48), codec, fps=rate)
    with av.open(str(few)) as source, av.open(str(path), "w") as target:
        origin = source.streams.video[0]
        packets = [packet for packet in source.demux(origin) if packet.size]
        stream = target.add_stream_from_template(origin)
        length = round(100 / rate / origin.time_base)
        stamps = [(packet.pts, packet.dts) for packet in packets]
        for turn in range(4 * 3600 * rate // 100):
            for packet, (pts, dts) in zip(packets, stamps, strict=True):
                packet.stream = stream
                packet.time_base = origin.time_base
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                target.mux(packet)
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264")])
def test_four_hours_are_not_decoded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    path = four_hours(tmp_path / name, codec)
    decoded = 0
    original = inspection.decode_from  # type: ignore[attr-defined]

    def counted(*arguments: object) -> object:
        nonlocal decoded
        for frame in original(*arguments):  # type: ignore[arg-type]
            decoded += 1
            yield frame

    monkeypatch.setattr("vicc_ray.data.inspection.decode_from", counted)
    # It holds hundreds of bytes a frame, and would not be asked for frames of a file as long as this.
    monkeypatch.setattr("vicc_ray.data.inspection.open_decord", lambda *_: pytest.fail("decord opens a long file"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    started = time.process_time()
    row = probe(str(path))
    seconds = time.process_time() - started
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row.frames == 28_800
    assert row.duration_seconds == pytest.approx(4 * 3600, rel=0.01)
    assert decoded < 1000
    assert most < 10e6
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * KIB < 100e6
    assert seconds < 10
    for start in (0, 14_390, 28_790):
        got = read_frames(str(path), np.arange(start, start + 8), (32, 48), row.decoder)
        assert [read_number(frame) for frame in got] == [(start + i) % 100 for i in range(8)]


# decord, and where it is wrong -----------------------------------------------------------------------------------------


def still(n: int) -> np.ndarray:
    """A scene in which nothing happens but that eight small spots count: neighbours differ by less than 0.1 grey levels."""
    frames = np.repeat(shifted_texture(1, 240, 320, 0, 0), n, 0)
    for i, bit in itertools.product(range(n), range(8)):
        frames[i, 200:206, 40 + 12 * bit : 46 + 12 * bit] = 150 if i >> bit & 1 else 90
    return frames


@pytest.mark.parametrize("pictures", [quiet, still, numbered_frames])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "libx264", {"bf": "0"}),
        ("a.avi", "libx264", {"bf": "2"}),
        ("a.avi", "mpeg2video", {"bf": "0"}),
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.mp4", "mpeg4", {"bf": "2"}),
        ("a.mkv", "mpeg2video", {"bf": "2"}),
        ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
        ("a.mkv", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
        ("a.mp4", "libx264", {}),
        ("a.mkv", "libx264", {"bf": "0"}),
        ("a.webm", "libvpx-vp9", {}),
    ],
)
@pytest.mark.parametrize("gop", [8, 25])
def test_every_window_has_the_requested_frames(
    tmp_path: Path, pictures: Callable[[int], np.ndarray], name: str, codec: str, options: dict[str, str], gop: int
) -> None:
    """Bit for bit those of a plain loop from the start: in a quiet scene any tolerance takes neighbours for the frame."""
    path = write_video(tmp_path / name, pictures(80), codec, gop=gop, options=options)
    row = probe(str(path))
    with av.open(str(path)) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert row.frames == len(truth)
    for start in (0, 3, 12, 31, 47, 52, row.frames - 8):
        got = read_frames(str(path), np.arange(start, start + 8), None, row.decoder)
        assert np.array_equal(got, truth[start : start + 8]), (row.decoder, start)
    assert check(str(path)).decoder == row.decoder
    if row.decoder == "decord":
        assert codec in ("libx264", "libvpx-vp9") and path.suffix != ".avi"


def test_a_second_video_stream_is_not_for_decord(tmp_path: Path) -> None:
    """It takes that with the higher bit rate, whichever is shown."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        streams = []
        for frames in (numbered_frames(20), numbered_frames(20, 192, 288, start=100)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            streams.append((stream, frames))
        for i in range(20):
            for stream, frames in streams:
                frame = av.VideoFrame.from_ndarray(frames[i], format="rgb24")
                frame.pts = i
                container.mux(stream.encode(frame))
        for stream, _ in streams:
            container.mux(stream.encode(None))
    row = probe(str(tmp_path / "a.mp4"))
    assert (row.decoder, row.height) == ("pyav", 64)


# Time stamps -----------------------------------------------------------------------------------------------------------

UNEVEN = [40 * i for i in range(15)] + [600 + 100 * i for i in range(15)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts"])
def test_the_same_pictures_have_the_same_rate_in_every_container(tmp_path: Path, suffix: str) -> None:
    row = probe(str(write_video(tmp_path / f"a{suffix}", numbered_frames(30), stamps=UNEVEN)))
    assert (row.fps, row.frames, row.constant_rate) == (pytest.approx(29 / 2.0), 30, False)  # type: ignore[comparison-overlap]
    assert row.duration_seconds == pytest.approx(30 * 2.0 / 29)
    assert row.declared_frames in (0, 30), "an honest file"


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_an_avi_with_dropped_frames_is_honest(tmp_path: Path, codec: str) -> None:
    """Its header counts the slots in which the picture before is shown on, too."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number, picture in enumerate(numbered_frames(60, 64, 96)):
            if number % 4 != 2:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60
    row = probe(str(path))
    assert (row.frames, row.declared_frames) == (45, 45)


def test_a_matroska_that_is_cut_short_promises_more_than_it_has(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", numbered_frames(60))
    assert probe(str(path)).declared_frames == 60
    row = probe(str(truncate(path, 0.5)))
    assert 0 < row.frames < 50 < row.declared_frames <= 61


@pytest.mark.parametrize("second", [20, 0, 400], ids=["on", "back", "later"])
@pytest.mark.parametrize("bf", ["0", "2"])
def test_joined_transport_streams_are_counted_as_they_are_read(tmp_path: Path, second: int, bf: str) -> None:
    """Time goes on or back at the seam, and the packet before it is flagged corrupt."""
    parts = []
    for part, start in enumerate((0, second)):
        path = tmp_path / f"{part}.ts"
        stamps = [1000 + 40 * (start + i) for i in range(20)]
        parts.append(
            write_video(path, numbered_frames(20, start=20 * part), stamps=stamps, options={"bf": bf}).read_bytes()
        )
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    row = probe(str(path))
    truth = [read_number(image) for image in plain(path, None)]
    assert row.frames == len(truth) >= 39
    assert check(str(path)).frames == row.frames
    for start in (0, 7, 16, 25, row.frames - 4):
        got = read_frames(str(path), np.arange(start, start + 4), None, row.decoder)
        assert [read_number(image) for image in got] == truth[start : start + 4]


def test_an_animated_webp_is_not_called_damaged(tmp_path: Path) -> None:
    pictures = [Image.fromarray(image) for image in numbered_frames(10)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    if av.library_versions["libavformat"][0] > 62:
        assert probe(str(tmp_path / "a.webp")).frames == 10
    else:
        with pytest.raises(VideoError, match=r"^an animated WebP, which PyAV .* cannot decode"):
            probe(str(tmp_path / "a.webp"))
    pictures[3].save(tmp_path / "still.webp", lossless=True)
    assert probe(str(tmp_path / "still.webp")).frames == 1
