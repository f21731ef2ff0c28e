"""`vicc pack` and `vicc unpack`: what is missing is packed, once; what stops it costs nothing that is whole; files come out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from packed import BOTH, make_store, pack, psnr, row_of, seal_all, smooth_codes, write_entry, write_loose
from videos import numbered_frames, read_number, shifted_texture, truncate, write_interlaced, write_video

from vicc_ray import storage
from vicc_ray.commands import pack as command
from vicc_ray.commands.pack import PackOptions, PackRequest, pack_request, pack_videos
from vicc_ray.commands.unpack import as_mp4, entries_of, list_entries, unpack_videos
from vicc_ray.config import Decoded, FlowConfig
from vicc_ray.console import console
from vicc_ray.data import packing
from vicc_ray.data.decode import read_frames
from vicc_ray.data.flow import codes as codes_module
from vicc_ray.data.flow.algorithms import dequantise, flow_between, quantise
from vicc_ray.data.flow.codes import compute_codes
from vicc_ray.data.guarded import Failure
from vicc_ray.data.manifest import Manifest, VideoError, VideoRow, probe
from vicc_ray.data.packing import Packer, PackWork, split_work
from vicc_ray.data.rows import Rows
from vicc_ray.data.segments import cut_evenly, part_of_frames
from vicc_ray.data.store.entry import GOP, EntryWriter
from vicc_ray.data.store.index import list_shards
from vicc_ray.data.store.reading import EntryReader, ShardFiles
from vicc_ray.data.store.store import PackedStore
from vicc_ray.data.store.writing import Key, list_loose
from vicc_ray.errors import UserError

SIZE = (32, 48)
Codes = NDArray[np.uint8]


def _read(folder: str, row: VideoRow, numbers: object, stream: Decoded) -> Codes:
    with closing(EntryReader(PackedStore.open(folder))) as reader:
        return reader.read(row, stream, np.asarray(numbers, np.int64))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRow]:
    """Four short videos of 20, 30, 40 and 50 numbered frames."""
    folder = tmp_path_factory.mktemp("films")
    return [
        probe(str(write_video(folder / f"{n}.mp4", numbered_frames(n, start=n), title=str(n))))
        for n in (20, 30, 40, 50)
    ]


class Here:
    """The job's part of `vicc pack` in this process; what is packed is written down, `stop_after` pieces it is interrupted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.packed: list[tuple[str, tuple[Decoded, ...]]] = []
        self.stop_after: int | None = None
        patch.setattr(command, "run_on_cluster", self.run)
        patch.setattr(command, "job_session", lambda *_: nullcontext(2))
        patch.setattr(command, "quiet", lambda *_: nullcontext())

    def run(self, packer: Packer, work: Sequence[PackWork], *_: Any) -> Iterator[tuple[int, Any]]:
        for place, piece in reversed(list(enumerate(work))):  # in any order
            if self.stop_after is not None and len(self.packed) >= self.stop_after:
                raise KeyboardInterrupt
            self.packed += [(row.id, streams) for row, streams in zip(piece.rows, piece.streams, strict=True)]
            yield place, packer(piece)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch)


def run(rows: Sequence[VideoRow], folder: Path | str, flow: FlowConfig | None = None, **options: Any) -> str:
    """Pack; what the reader is told."""
    with console.capture() as told:
        pack_videos(Manifest(list(rows)), str(folder), flow or FlowConfig(), SIZE, PackOptions(**options))
    return " ".join(told.get().split())


def right(folder: Path | str, rows: Sequence[VideoRow]) -> None:
    """Each row's pictures and flow are its own."""
    for row in rows:
        numbers = np.arange(row.first_frame, row.last_frame + 1)
        original = read_frames(row.video, numbers, SIZE, row.decoder)
        pictures = _read(str(folder), row, numbers, "rgb")
        assert [read_number(one) for one in pictures] == [read_number(one) for one in original]
        fields = _read(str(folder), row, numbers[:-1], "flow").astype(int)
        assert np.abs(fields - quantise(flow_between(original, "dis"))).mean() < 1


# The job -----------------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_packed(films: list[VideoRow], tmp_path: Path, here: Here) -> None:
    folder = tmp_path / "s"
    told = run(films[:2], folder)
    assert told.endswith("pictures and flow of 2 videos stored, 0 refused")
    assert sorted(here.packed) == sorted((row.id, BOTH) for row in films[:2])
    before = {path: path.read_bytes() for path in folder.rglob("*-*") if path.is_file()}
    assert sorted(path.suffix for path in before) == [".parquet", ".parquet", ".shard", ".shard"]
    here.packed.clear()
    told = run(films, folder)
    assert "2 of 4 videos are there already" in told and "of 4 videos stored, 0 refused" in told
    assert sorted(here.packed) == sorted((row.id, BOTH) for row in films[2:])
    assert all(path.read_bytes() == data for path, data in before.items())
    here.packed.clear()
    run(films, folder)
    assert here.packed == [] and list_loose(PackedStore.open(str(folder))) == {}
    right(folder, films)
    # A copy under another name has the same content.
    run([*films, replace(films[0], video=str(tmp_path / "copy.mp4"))], folder)
    assert here.packed == []


def test_the_other_stream_is_added_later(films: list[VideoRow], tmp_path: Path, here: Here) -> None:
    told = run(films[:2], tmp_path / "s", streams=("flow",))
    assert "flow of 2 videos stored" in told and here.packed == [(row.id, ("flow",)) for row in reversed(films[:2])]
    here.packed.clear()
    run(films[:3], tmp_path / "s")
    assert dict(here.packed) == {films[0].id: ("rgb",), films[1].id: ("rgb",), films[2].id: BOTH}
    right(tmp_path / "s", films[:3])
    with pytest.raises(UserError, match=r"holds other clips than these settings give: bound is 20.0 there, 9.0 here"):
        run(films, tmp_path / "s", FlowConfig(bound=9))


def test_an_interrupted_job_goes_on_where_it_was(films: list[VideoRow], tmp_path: Path, here: Here) -> None:
    folder = tmp_path / "s"
    here.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run(films, folder)
    store = PackedStore.open(str(folder))
    assert len(list_loose(store)) == 6 and list_shards(store.folder) == {}  # whole, and not yet in a shard
    here.stop_after, done = None, {name for name, _ in here.packed}
    here.packed.clear()
    run(films, folder)
    assert [name for name, _ in here.packed] == [row.id for row in films if row.id not in done]
    assert list_loose(store) == {} and len(list_shards(store.folder)) == 2
    right(folder, films)


def test_shards_have_the_size_that_is_wished_and_the_manifests_order(
    films: list[VideoRow], tmp_path: Path, here: Here
) -> None:
    run(films, tmp_path / "one")
    store = PackedStore.open(str(tmp_path / "one"))
    assert [entry.video for entry in entries_of(store) if entry.stream == "rgb"] == [row.id for row in films]
    assert len(list_shards(store.folder)) == 2
    run(films, tmp_path / "many", shard_bytes=1)
    many = PackedStore.open(str(tmp_path / "many"))
    assert len(list_shards(many.folder)) == 8
    right(many.folder, films)


def test_what_cannot_be_read_is_named(films: list[VideoRow], tmp_path: Path, here: Here) -> None:
    cut = truncate(Path(shutil.copy(films[3].video, tmp_path / "cut.mp4")), 0.6)
    rows = [
        *films[:2],
        replace(films[3], video=str(cut), content_hash="c" * 32),
        replace(films[2], video=str(tmp_path / "gone.mp4"), content_hash="d" * 32),
    ]
    with (
        console.capture() as captured,
        pytest.raises(UserError, match=r"2 of 4 videos could not be packed, more than data.max"),
    ):
        pack_videos(Manifest(rows), str(tmp_path / "s"), FlowConfig(), SIZE, PackOptions())
    told = " ".join(captured.get().split())
    assert f"refused: {tmp_path}/gone.mp4: no such file" in told
    assert "cut.mp4:" in told and "of 2 videos stored, 2 refused" in told
    right(tmp_path / "s", films[:2])
    told = run(rows, tmp_path / "s", max_refused=0.5)
    assert "2 refused" in told
    assert PackedStore.open(str(tmp_path / "s")).missing(rows, "rgb") == rows[2:]


def test_a_crash_costs_its_videos(
    films: list[VideoRow], tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashing(packer: Packer, work: Sequence[PackWork], *_: Any) -> Iterator[tuple[int, Any]]:
        for place, piece in enumerate(work):
            yield place, Failure("it crashed the decoder (SIGSEGV)") if place == 1 else packer(piece)

    monkeypatch.setattr(command, "run_on_cluster", crashing)
    told = run(films, tmp_path / "s", max_refused=0.5)
    assert told.count("refused: ") == 1 and "it crashed the decoder (SIGSEGV)" in told
    right(tmp_path / "s", [films[0], *films[2:]])


def test_a_full_disk_ends_the_job_with_one_line_and_what_is_packed_stays(
    films: list[VideoRow], tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole, done = tmp_path / "s", EntryWriter.finish, [0]

    def full(self: EntryWriter, path: Path) -> int:
        if done[0] == 3:
            raise OSError(28, "No space left on device")
        done[0] += 1
        return whole(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(EntryWriter, "finish", full)
        with pytest.raises(
            UserError,
            match=r"^store \S+: cannot be written: No space left on device; what is packed stays: make room, then run the same",
        ):
            run(films, folder)
    store = PackedStore.open(str(folder))
    assert len(list_loose(store)) + sum(len(store.index(stream)) for stream in BOTH) == 3
    here.packed.clear()
    run(films, folder)
    assert sum(len(streams) for _, streams in here.packed) == 5  # of 8
    right(folder, films)
    # A shard that finds no room.
    with monkeypatch.context() as patch:
        patch.setattr(
            "vicc_ray.data.store.writing.write_part", lambda *_: (_ for _ in ()).throw(OSError(28, "No space"))
        )
        with pytest.raises(UserError, match="cannot be written: No space; what is packed stays"):
            run(films, tmp_path / "t")
    assert len(list_loose(PackedStore.open(str(tmp_path / "t")))) == 8
    here.packed.clear()
    run(films, tmp_path / "t")
    assert here.packed == [] and len(list_shards(str(tmp_path / "t"))) == 2
    right(tmp_path / "t", films)


def test_damage_is_packed_again(films: list[VideoRow], tmp_path: Path, here: Here) -> None:
    folder = tmp_path / "s"
    run(films, folder, shard_bytes=1)
    (name,) = (
        entry.where.shard
        for entry in entries_of(PackedStore.open(str(folder)))
        if entry.video == films[1].id and entry.stream == "rgb"
    )
    path = folder / "shards" / f"{name}.shard"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    here.packed.clear()
    run(films, folder)
    assert here.packed == []  # what has its length is not read
    told = run(films, folder, check=True)
    assert f"shard {name} is damaged" in told and here.packed == [(films[1].id, ("rgb",))]
    path.write_bytes(b"")  # of no index, and so of nobody
    here.packed.clear()
    assert "shard" not in run(films, folder, check=True) and here.packed == [] and not path.exists()
    right(folder, films)


def test_two_writers_at_once_are_told(films: list[VideoRow], tmp_path: Path, here: Here) -> None:
    folder = str(tmp_path / "s")
    with (
        storage.only_writer(folder, "x"),
        pytest.raises(UserError, match="another 'vicc pack' or 'vicc flow' is at work"),
    ):
        run(films, folder)
    run(films[:1], folder)


@pytest.mark.parametrize("format_", [1, 2])
def test_of_an_earlier_flow_store_only_what_is_missing_is_packed(
    format_: int, films: list[VideoRow], tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(__file__).parent / "data" / "flow_stores"
    folder = tmp_path / "s"
    shutil.copytree(data / f"format_{format_}", folder)
    made = PackedStore.open(str(folder)).header.flow
    monkeypatch.setattr(command, "fingerprint", lambda *_: json.dumps(made))  # of the library of that day
    there = [row_of(12, "ab"), row_of(40, "cd")]
    rows = [*there, *films[:2]]
    with console.capture() as told:
        pack_videos(Manifest(rows), str(folder), FlowConfig(), (16, 24), PackOptions(("flow",)))
    assert "2 of 4 videos are there already" in " ".join(told.get().split())
    assert sorted(here.packed) == sorted((row.id, ("flow",)) for row in films[:2])
    store, given = PackedStore.open(str(folder)), np.load(data / "codes.npz")
    assert store.missing(rows, "flow") == [] and store.header.earlier == format_
    assert np.array_equal(_read(str(folder), there[1], np.arange(39), "flow"), given["cd"])
    for row in films[:2]:
        wanted = np.concatenate(list(compute_codes(row, "dis", (16, 24)))).astype(int)
        assert np.abs(_read(str(folder), row, np.arange(row.frames - 1), "flow") - wanted).mean() < 1
    here.packed.clear()
    with console.capture():
        pack_videos(Manifest(rows), str(folder), FlowConfig(), (16, 24), PackOptions(("flow",), check=True))
    assert here.packed == []


def test_the_command_line_says_what_is_packed(films: list[VideoRow], tmp_path: Path, here: Here) -> None:
    manifest = tmp_path / "m.parquet"
    Manifest(films[:1]).write(manifest)
    where = str(tmp_path / "s")
    asked = PackRequest(where, None, ("flow.bound=8",), size="32x48", algorithm="farneback")
    with console.capture():
        found = pack_request(str(manifest), asked, PackOptions())
    assert found == {"store": where, "streams": ["rgb", "flow"], "videos": 1, "refused": []}
    header = PackedStore.open(where).header
    assert (header.size, header.bound, header.interlaced) == ((32, 48), 8.0, "weave")
    assert header.flow is not None and header.flow["algorithm"] == "farneback" and header.pictures is not None
    with pytest.raises(UserError, match="--size large: is neither auto nor height x width, such as 128x171"):
        pack_request(str(manifest), replace(asked, size="large"), PackOptions())
    with pytest.raises(UserError, match="--store: is not set; name a folder"):
        pack_request(str(manifest), replace(asked, store=None), PackOptions())
    with console.capture():
        other = pack_request(
            str(manifest),
            replace(
                asked, store=None, overrides=(f"clip.store={tmp_path}/t", "data.interlaced=deinterlace"), size="auto"
            ),
            PackOptions(("rgb",)),
        )["store"]
    header = PackedStore.open(other).header
    assert other == f"{tmp_path}/t" and header.size == (128, 171) and header.interlaced == "deinterlace"
    assert header.flow is None
    with pytest.raises(UserError, match="credentials"):
        pack_request(str(manifest), replace(asked, store="s3://key:secret@bucket/x"), PackOptions())


# The packer --------------------------------------------------------------------------------------------------------------


def test_work_is_divided_by_files_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_FRAMES", 100)
    parts = [row_of(40, "ab", first=first, whole=200) for first in (80, 0, 40, 120, 160)]
    other, long = row_of(30, "cd"), row_of(500, "ef")
    copy = replace(other, video="copy.mp4")
    rows = [parts[0], other, *parts[1:], long, copy]
    lacking = np.ones((len(rows), 2), bool)
    lacking[3] = False
    work = split_work(Rows.of(rows), BOTH, lacking)
    found = [[(row.content_hash[:2], row.first_frame) for row in piece.rows] for piece in work]
    assert found == [[("ab", 0), ("ab", 80)], [("ab", 120), ("ab", 160)], [("cd", 0)], [("ef", 0)]]
    assert [piece.frames for piece in work] == work.frames.tolist() == [80, 80, 30, 500]
    assert work[1:3] == [work[1], work[2]] and work[-1].rows == (long,)
    assert all(streams == BOTH for piece in work for streams in piece.streams)
    copies = split_work(Rows.of([other, copy]), BOTH, np.array([[True, False], [True, True]]))
    assert [piece.streams for piece in copies] == [(("rgb",), ("flow",))]
    assert not split_work(Rows.of(rows), BOTH, np.zeros((len(rows), 2), bool))
    assert not split_work(Rows.of(()), BOTH, np.zeros((0, 2), bool))


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_those_of_a_walk_over_the_rows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against going through the rows one by one: files in the order of their first rows, copies once, pieces filled up."""
    monkeypatch.setattr(packing, "MOST_FRAMES", 60)
    rng = np.random.default_rng(seed)
    rows = [
        row_of(
            int(rng.integers(5, 40)),
            str(rng.choice(["ab", "cd", "ef"])),
            f"{number}.mp4",
            int(rng.integers(0, 4)) * 10,
            200,
        )
        for number in range(int(rng.integers(1, 40)))
    ]
    known: dict[Key, bool] = {}
    lacking = np.array([[known.setdefault(Key.of(row, s), bool(rng.random() < 0.7)) for s in BOTH] for row in rows])
    files: dict[str, list[tuple[VideoRow, tuple[Decoded, ...]]]] = {}
    done = set[Key]()
    for row, flags in zip(rows, lacking, strict=True):
        new = tuple(s for s, flag in zip(BOTH, flags, strict=True) if flag and Key.of(row, s) not in done)
        done |= {Key.of(row, s) for s in new}
        if new:
            files.setdefault(row.content_hash, []).append((row, new))
    expected: list[list[tuple[VideoRow, tuple[Decoded, ...]]]] = []
    for pairs in files.values():
        pairs.sort(key=lambda pair: (pair[0].first_frame, pair[0].frames))
        begin = len(expected)
        for pair in pairs:
            if len(expected) == begin or sum(row.frames for row, _ in [*expected[-1], pair]) > 60:
                expected.append([])
            expected[-1].append(pair)
    found = split_work(Rows.of(rows), BOTH, lacking)
    assert [list(zip(piece.rows, piece.streams, strict=True)) for piece in found] == expected


@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-sequential"])
def test_parts_of_a_file_are_decoded_in_one_go(decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codes_module.CHUNK, "cpu", 7)
    row = replace(probe(str(write_video(tmp_path / "a.mp4", numbered_frames(100)))), decoder=decoder)  # type: ignore[arg-type]
    parts = [part for part in cut_evenly(row, 0.8) if part.start != 1.6]  # a gap, too
    assert [part.frames for part in parts] == [20, 20, 20, 20]
    calls: list[tuple[int, int]] = []
    real = codes_module.row_pictures

    def counted(whole: VideoRow, *arguments: Any) -> Any:
        calls.append((whole.first_frame, whole.frames))
        return real(whole, *arguments)

    monkeypatch.setattr(packing, "row_pictures", counted)
    store = make_store(tmp_path / "s", SIZE)
    (packed,) = pack(store, parts)
    assert calls == [(0, 40), (60, 40)]
    assert sorted(packed.entries) == sorted(Key.of(part, stream) for part in parts for stream in BOTH)
    right(store.folder, parts)
    for part in parts:  # nothing of a field looks past its part
        fields = _read(store.folder, part, np.arange(part.first_frame, part.last_frame), "flow").astype(int)
        wanted = np.concatenate(list(compute_codes(part, "dis", SIZE)))
        assert (
            fields.shape == wanted.shape and np.abs(fields - wanted).max() <= 12 and np.abs(fields - wanted).mean() < 1
        )


def test_a_row_that_cannot_be_read_costs_no_other_of_its_file(tmp_path: Path) -> None:
    row = probe(str(write_video(tmp_path / "a.mp4", numbered_frames(60))))
    long = replace(row, frames=90)
    rows = [part_of_frames(long, 0, 20), part_of_frames(long, 30, 50), part_of_frames(long, 50, 80)]
    store = make_store(tmp_path / "s", SIZE)
    (packed,) = pack(store, rows)
    assert list(packed.refused) == [rows[2].id] and "cut short or damaged" in packed.refused[rows[2].id]
    assert len(packed.entries) == 4 and packed.not_written is None
    assert list_loose(store) == {} and store.missing(rows, "rgb") == rows[2:]


@pytest.mark.parametrize("algorithm", ["dis", "farneback", "tvl1", "tvl1_torch", "motion_vectors"])
@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-sequential"])
def test_stored_and_streamed_flow_agree(algorithm: str, decoder: str, tmp_path: Path) -> None:
    n = 12 if algorithm.startswith("tvl1") else 40
    path, size = write_video(tmp_path / "v.mp4", shifted_texture(n, 64, 96, 1.5, -0.5)), (48, 71)
    row = replace(row_of(n, video=str(path)), decoder=decoder)  # type: ignore[arg-type]
    flow = FlowConfig(algorithm=algorithm)
    store = make_store(tmp_path / "store", size, flow=flow)
    (packed,) = pack(store, [row], flow=flow)
    assert len(packed.entries) == 2
    chunks = list(compute_codes(row, algorithm, size, chunk=7))
    assert all(len(chunk) <= 7 for chunk in chunks)
    codes = np.concatenate(chunks)
    stored = _read(store.folder, row, np.arange(n - 1), "flow")
    difference = np.abs(stored.astype(int) - codes)
    # TV-L1's fields have edges and single pixels that stand out, vectors of blocks have edges.
    sharp = algorithm in ("tvl1", "tvl1_torch", "motion_vectors")
    assert (difference <= 1).mean() > (0.99 if sharp else 0.999)
    assert difference.max() <= (7 if sharp else 2)
    if algorithm != "motion_vectors":
        images = read_frames(str(path), np.arange(n), size, row.decoder)
        flow_field = flow_between(images, algorithm)
        assert np.array_equal(codes, quantise(flow_field))
        assert np.abs(dequantise(stored) - flow_field).mean() < 0.1
        assert psnr(_read(store.folder, row, np.arange(n), "rgb"), images) >= 38


def test_what_is_packed_of_interlaced_videos_is_of_the_chosen_pictures(tmp_path: Path) -> None:
    moments = shifted_texture(24, 96, 128, 4.0, 0.0)
    path = str(write_interlaced(tmp_path / "v.mp4", moments, "libx264", {"qp": "0"}))
    row, size = row_of(12, video=path), (48, 71)
    seen = {}
    for choice in ("weave", "deinterlace"):
        store = make_store(tmp_path / choice, size, interlaced=choice)
        pack(store, [row], interlaced=choice)
        images = read_frames(path, np.arange(12), size, "pyav", choice)
        seen[choice] = _read(store.folder, row, np.arange(12), "rgb")
        assert psnr(seen[choice], images) >= 36
        codes = np.concatenate(list(compute_codes(row, "dis", size, interlaced=choice)))
        assert np.array_equal(codes, quantise(flow_between(images, "dis")))
        assert np.abs(_read(store.folder, row, np.arange(11), "flow").astype(int) - codes).max() <= 3
    assert psnr(seen["weave"], seen["deinterlace"]) < 34


@pytest.mark.parametrize("algorithm", ["dis", "motion_vectors"])
def test_one_frame_has_no_motion_and_a_short_file_is_refused(algorithm: str, tmp_path: Path) -> None:
    path, size, flow = (
        write_video(tmp_path / "one.mp4", shifted_texture(1, 64, 96, 0, 0)),
        (48, 71),
        FlowConfig(algorithm=algorithm),
    )
    one = row_of(1, video=str(path))
    (codes,) = compute_codes(one, algorithm, size)
    assert codes.shape == (1, *size, 2) and (codes == quantise(np.zeros(1, np.float32))).all()
    store = make_store(tmp_path / "s", size, flow=flow)
    pack(store, [one], flow=flow)
    assert (_read(store.folder, one, [0], "flow") == codes).all()
    for decoder in ("decord", "pyav"):
        row = replace(row_of(31, "cd", str(path)), decoder=decoder)
        for streams in (("rgb",), ("flow",)):
            (packed,) = pack(store, [row], streams, flow)
            assert packed.entries == {} and list(packed.refused) == [row.id]
    (packed,) = pack(store, [row_of(5, "ef", str(tmp_path / "none.mp4"))], flow=flow)
    assert packed.refused == {str(tmp_path / "none.mp4"): "no such file"}
    with pytest.raises(VideoError, match="no such file"):
        list(compute_codes(row_of(5, video=str(tmp_path / "none.mp4")), algorithm, size))
    assert [path for path in Path(store.folder).rglob(".*") if path.is_file()] == []


# `vicc unpack` -----------------------------------------------------------------------------------------------------------


def _played(data: bytes) -> tuple[list[Any], list[float], Any]:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return frames, [float(frame.pts * stream.time_base) for frame in frames], stream.frames


@pytest.mark.parametrize("even", [True, False])
def test_an_entry_as_an_mp4_has_the_pictures_and_their_times(even: bool, tmp_path: Path) -> None:
    size, n = (48, 72), 45
    store = make_store(tmp_path, size)
    gaps = np.random.default_rng(2).choice([0.02, 0.04, 0.5], n - 1)
    seconds = None if even else 3.0 + np.concatenate([[0], np.cumsum(gaps)])
    row = replace(row_of(n), fps=10.0, constant_rate=even)
    pictures, codes = shifted_texture(n, *size, 1.5, 0.5), smooth_codes(n - 1, size)
    write_entry(store, row, "rgb", [pictures], seconds)
    write_entry(store, row, "flow", [codes], seconds)
    times = np.arange(n) / 10 if seconds is None else seconds - seconds[0]
    files = ShardFiles(store)
    with closing(EntryReader(store)) as reader:
        for entry in entries_of(store):
            where = entry.where
            head = reader.head(where)
            data = as_mp4(head, files.read(where.shard, where.offset + where.head, where.offset + where.bytes))
            frames, shown, promised = _played(data)
            count = n if entry.stream == "rgb" else n - 1
            assert len(frames) == promised == count
            np.testing.assert_allclose(shown, times[:count], atol=2e-5)
            stored = reader.read(row, entry.stream, np.arange(count))
            for number, frame in enumerate(frames):
                if entry.stream == "rgb":
                    assert psnr(frame.to_ndarray(format="rgb24"), stored[number]) > 36
                else:
                    plane = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)[
                        :, : size[1]
                    ]
                    assert (frame.height, frame.width) == (2 * size[0], size[1])
                    for half in range(2):
                        own = plane[half * size[0] : (half + 1) * size[0]].astype(int)
                        assert np.array_equal(own, stored[number, ..., half])  # u stands above v
    files.close()
    data = as_mp4(head, b"".join(_packets(store, entry)))
    with av.open(io.BytesIO(data)) as container:  # seeking finds the key pictures
        stream = container.streams.video[0]
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
        assert keys == [number % GOP == 0 for number in range(count)]
        assert Fraction(stream.time_base) == Fraction(1, 90_000)


def _packets(store: PackedStore, entry: Any) -> Iterator[bytes]:
    files = ShardFiles(store)
    where = entry.where
    yield files.read(where.shard, where.offset + where.head, where.offset + where.bytes)
    files.close()


def test_videos_are_taken_out_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "s", SIZE)
    rows = [
        row_of(20, "ab", "/films/a/one.mp4"),
        row_of(20, "cd", "/films/b/one.mp4"),
        row_of(20, "ef", "/films/b/two.avi"),
        row_of(20, "01", "/films/long.mp4", first=10, whole=90),
    ]
    for number, row in enumerate(rows):
        write_loose(store, row, "rgb", [numbered_frames(20, *SIZE, start=10 * number)])
    write_loose(store, rows[0], "flow", [smooth_codes(19, SIZE)])
    seal_all(store)
    out = tmp_path / "out"

    def taken(*names: str) -> list[str]:
        with console.capture() as told:
            files = unpack_videos(store.folder, names, str(out))
        assert "".join(told.get().split()) == "".join(files).replace(" ", "")
        return [Path(file).name for file in files]

    assert taken("/films/a/one.mp4") == ["one.mp4", "one.flow.mp4"]
    assert taken("two.avi") == ["two.mp4"] and taken("/elsewhere/two.avi") == ["two.mp4"]
    assert taken(rows[3].id) == ["long@0.4-1.2.mp4"] == taken("long.mp4@0.4-1.2")
    assert taken("two.avi", rows[3].id) == ["two.mp4", "long@0.4-1.2.mp4"]
    for name, start in (("one.mp4", 0), ("two.mp4", 20), ("long@0.4-1.2.mp4", 30)):
        frames, times, _ = _played((out / name).read_bytes())
        assert [read_number(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(start, start + 20))
        np.testing.assert_allclose(times, np.arange(20) / 25, atol=2e-5)
    with pytest.raises(UserError, match=r"/films/b/one.mp4: \S+one.mp4 is another video's already"):
        unpack_videos(store.folder, ["/films/a/one.mp4", "/films/b/one.mp4"], str(out))
    with pytest.raises(
        UserError, match=r"one.mp4: 2 videos have this name \(/films/a/one.mp4, /films/b/one.mp4, ...\); write"
    ):
        unpack_videos(store.folder, ["one.mp4"], str(out))
    for name in ("three.mp4", "long.mp4", ""):
        with pytest.raises(UserError, match=r"does not hold it; 'vicc unpack \S+' lists what it holds"):
            unpack_videos(store.folder, [name], str(out))
    with console.capture() as told:
        entries = list_entries(store.folder)
    assert sorted(one["video"] for one in entries) == sorted([rows[0].id, *(row.id for row in rows)])
    assert {one["stream"] for one in entries if one["video"] == rows[0].id} == {"rgb", "flow"}
    lines = told.get().splitlines()
    assert len(lines) == 5 and sum("/films/a/one.mp4" in line for line in lines) == 2
    monkeypatch.chdir(tmp_path)
    with console.capture():
        assert [Path(file).resolve() for file in unpack_videos(store.folder, ["two.avi"], None)] == [
            tmp_path / "two.mp4"
        ]
    with pytest.raises(UserError, match="there is none"):
        list_entries(str(tmp_path / "none"))


def test_a_damaged_entry_is_not_taken_out(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", SIZE)
    write_entry(store, row_of(20), "rgb", [numbered_frames(20, *SIZE)])
    (path,) = (tmp_path / "s" / "shards").iterdir()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"the entry of ab.mp4 in shard rgb-\w+ is damaged \(picture 16 is not what was written\)"
    ):
        unpack_videos(store.folder, ["ab.mp4"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_store_of_an_earlier_version_lists_nothing_that_it_cannot_give(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parent / "data" / "flow_stores" / "format_2", tmp_path / "s")
    with console.capture() as told:
        assert unpack_videos(str(tmp_path / "s"), [], None) == []
    assert told.get() == ""
