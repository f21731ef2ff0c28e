"""The flow store: what is written comes back, whole or not at all; another's entries and damage are noticed."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from s3 import s3_bucket
from videos import shifted_texture, spoil, truncate, write_interlaced, write_video

from vicc_ray import storage
from vicc_ray.config import DataConfig, FlowConfig
from vicc_ray.data.decode import VideoError, read_frames
from vicc_ray.data.flow.algorithms import dequantise, fingerprint, flow_between, quantise
from vicc_ray.data.flow.codes import compute_codes
from vicc_ray.data.flow.store import GOP, FlowStore, check_stored
from vicc_ray.data.manifest import VideoRow
from vicc_ray.errors import UserError

Codes = NDArray[np.uint8]
SIZE = (48, 71)


def _row(frames: int, digits: str = "ab", video: str = "x.mp4") -> VideoRow:
    return VideoRow(video=video, frames=frames, content_hash=digits * 16, decoder="pyav")


def _codes(n: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Codes:
    """Smooth fields that drift, so that each differs from its neighbours; the first value counts them."""
    y, x = np.mgrid[: size[0], : size[1]] / 16.0
    phase = np.random.default_rng(seed).uniform(0, 6) + np.arange(n)[:, None, None] / 4
    field = np.stack([4 * np.sin(x + phase), 3 * np.cos(y + phase)], -1).astype(np.float32)
    return quantise(field)


def _store(folder: Path | str, size: tuple[int, int] = SIZE) -> FlowStore:
    return FlowStore.create(str(folder), fingerprint("dis"), 20.0, size)


def _differences(got: Codes, want: Codes) -> NDArray[np.int16]:
    assert got.shape == want.shape and got.dtype == np.uint8
    return np.abs(got.astype(np.int16) - want)  # type: ignore[no-any-return]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    store, row, codes = _store(tmp_path), _row(101), _codes(100)
    store.write(row, iter([codes[:1], codes[1:64], codes[64:]]))
    whole = store.read(row, np.arange(100))
    assert _differences(whole, codes).max() <= 2
    assert (_differences(whole, codes) <= 1).mean() > 0.999
    # Any other field is further away, so these are the asked ones.
    for origins in ([0], [99], [15, 16, 17], [1, 40, 41, 97], [50, 3, 50, 98], list(range(0, 100, 7))):
        got = store.read(row, np.array(origins))
        assert np.array_equal(got, whole[origins]), origins
        assert _differences(got, codes[np.array(origins) - 1]).max() > 4
    with pytest.raises(ValueError, match="from 0 to 99"):
        store.read(row, np.array([100]))
    with pytest.raises(ValueError, match="from 0 to 99"):
        store.read(row, np.array([-1]))


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (17, 8), (8, 171), (127, 33)])
@pytest.mark.parametrize("n", [1, 2, GOP + 1])
def test_any_size_and_length(size: tuple[int, int], n: int, tmp_path: Path) -> None:
    store, row, codes = _store(tmp_path, size), _row(n + 1), _codes(n, size)
    store.write(row, iter([codes]))
    assert _differences(store.read(row, np.arange(n)), codes).max() <= 5
    one = _row(1, "cd")
    store.write(one, iter([codes[:1]]))
    assert _differences(store.read(one, np.array([0])), codes[:1]).max() <= 5


def test_noise_and_extremes_come_back(tmp_path: Path) -> None:
    store, row = _store(tmp_path), _row(41)
    noise = np.random.default_rng(1).integers(0, 256, (40, *SIZE, 2), np.uint8)
    noise[:5], noise[5:10] = 0, 255
    store.write(row, iter([noise]))
    difference = _differences(store.read(row, np.arange(40)), noise)
    assert difference.max() <= 6 and (difference <= 2).mean() > 0.95


@pytest.mark.parametrize("scheme", ["path", "uri", "elsewhere"])
def test_stores_by_path_and_uri(scheme: str, tmp_path: Path) -> None:
    # fsspec's memory:// goes the way of every object store.
    folder = {"path": str(tmp_path / "s t"), "uri": f"{tmp_path.as_uri()}/u", "elsewhere": f"memory://{tmp_path.name}"}[
        scheme
    ]
    store, codes = _store(folder), _codes(40)
    rows = [_row(41, digits) for digits in ("ab", "cd", "ef")]
    assert store.missing([*rows, rows[0]]) == rows and not store.has(rows[1])
    store.write(rows[1], iter([codes]))
    assert store.has(rows[1]) and not store.has(rows[0])
    assert store.missing(rows) == [rows[0], rows[2]]
    assert FlowStore.open(folder) == store == _store(folder)
    assert _differences(FlowStore.open(folder).read(rows[1], np.array([33, 5])), codes[[33, 5]]).max() <= 2
    with pytest.raises(VideoError, match=r"no entry for it \(content abab"):
        store.read(rows[0], np.array([0]))
    with pytest.raises(RuntimeError, match="stopped"):
        store.write(rows[2], _stopping(codes))
    assert not store.has(rows[2])
    names = sorted(entry.name.rsplit("/", 1)[1] for entry in storage.list_files(store.folder))
    assert names == ["cd" * 16 + ".mkv", "store.json"]


def test_a_store_in_a_bucket_is_read_by_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_bucket(monkeypatch) as bucket:
        store, row, codes = _store(f"s3://{bucket.name}/flow"), _row(41), _codes(40)
        assert store.missing([row]) == [row]
        store.write(row, iter([codes]))
        with pytest.raises(RuntimeError):
            store.write(_row(41, "cd"), _stopping(codes))
        assert store.missing([row, _row(41, "cd")]) == [_row(41, "cd")]
        keys = [entry["Key"] for entry in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]]
        assert [key for key in keys if not key.endswith("/")] == [f"flow/ab/{'ab' * 16}.mkv", "flow/store.json"]
        assert _differences(FlowStore.open(store.folder).read(row, np.array([33, 5])), codes[[33, 5]]).max() <= 2
        with pytest.raises(VideoError, match="no entry"):
            store.read(_row(41, "cd"), np.array([0]))
        with pytest.raises(UserError, match="there is none"):
            FlowStore.open(f"s3://{bucket.name}/none")


def _stopping(codes: Codes) -> Iterator[Codes]:
    yield codes[:20]
    raise RuntimeError("stopped")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    store, row, codes = _store(tmp_path), _row(41), _codes(40)
    before = sorted(tmp_path.rglob("*.*"))
    for chunks, error in [
        (_stopping(codes), RuntimeError),
        (iter([codes[:39]]), VideoError),
        (iter([codes, codes[:1]]), VideoError),
        (iter([]), VideoError),
        (iter([codes[:, :40]]), ValueError),
        (iter([codes.astype(np.float32)]), ValueError),
    ]:
        with pytest.raises(error):
            store.write(row, chunks)  # type: ignore[arg-type]
        assert sorted(tmp_path.rglob("*.*")) == before
    store.write(row, iter([codes]))
    with pytest.raises(RuntimeError):
        store.write(row, _stopping(codes))
    assert _differences(store.read(row, np.arange(40)), codes).max() <= 2  # the old entry is still there


def test_the_same_fields_make_the_same_bytes(tmp_path: Path) -> None:
    first, second = _store(tmp_path / "a"), _store(tmp_path / "b")
    first.write(_row(41), iter([_codes(40)]))
    second.write(_row(41), iter(np.array_split(_codes(40), 7)))
    name = f"ab/{'ab' * 16}.mkv"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_damage_is_noticed(tmp_path: Path) -> None:
    store, row = _store(tmp_path), _row(201)
    path = tmp_path / "ab" / f"{'ab' * 16}.mkv"

    def fresh() -> None:
        store.write(row, iter([_codes(200)]))

    fresh()
    truncate(path, 0.5)
    with pytest.raises(VideoError, match=r"damaged \(content abab.*run 'vicc flow' again"):
        store.read(row, np.arange(190, 200))
    path.write_bytes(b"not a video")
    with pytest.raises(VideoError, match="damaged"):
        store.read(row, np.array([0]))
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="damaged"):
        store.read(row, np.array([0]))
    fresh()
    spoil(path, 0.4, 0.6)
    with pytest.raises(VideoError, match="damaged"):
        store.read(row, np.arange(200))
    for place in (0.2, 0.35, 0.5, 0.65, 0.8):
        fresh()
        spoil(path, place, place + 64 / path.stat().st_size)
        with pytest.raises(VideoError, match="damaged"):
            store.read(row, np.arange(200))
    fresh()
    with pytest.raises(VideoError, match="it holds 200 fields, the video has 150"):
        store.read(dataclasses.replace(row, frames=151), np.array([0]))
    other = _store(tmp_path / "other", (50, 71))
    other.write(row, iter([_codes(200, (50, 71))]))
    path.write_bytes((tmp_path / "other" / "ab" / path.name).read_bytes())
    with pytest.raises(VideoError, match="its pictures are 72 x 100"):
        store.read(row, np.array([0]))


def test_no_damaged_byte_is_believed(tmp_path: Path) -> None:
    """Wherever a byte is changed, reading any stretch gives what was written or says that the entry is damaged."""
    store, row = _store(tmp_path), _row(101)
    store.write(row, iter([_codes(100)]))
    path = tmp_path / "ab" / f"{'ab' * 16}.mkv"
    whole, stretches = path.read_bytes(), [np.arange(100), np.array([37, 38]), np.array([5, 90])]
    right = [store.read(row, origins) for origins in stretches]
    draw, reasons = random.Random(4), list[str]()
    first = whole.index(b"CHECKSUMS")
    places = [*range(first + 20, len(whole) - 400, (len(whole) - first) // 150), first + 40]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        for origins, want in zip(stretches, right, strict=True):
            try:
                got = store.read(row, origins)
            except VideoError as error:
                reasons.append(str(error))
            else:
                assert np.array_equal(got, want), place
    assert len(reasons) > len(places) and all("damaged" in reason for reason in reasons)


def test_an_entry_whose_checksums_are_gone_is_damaged(tmp_path: Path) -> None:
    store, row = _store(tmp_path), _row(41)
    store.write(row, iter([_codes(40)]))
    path = tmp_path / "ab" / f"{'ab' * 16}.mkv"
    path.write_bytes(path.read_bytes().replace(b"CHECKSUMS", b"CHECKSUMX"))
    with pytest.raises(VideoError, match=r"damaged .*it holds checksums of 0 of its 40 fields"):
        store.read(row, np.array([0]))


def test_another_kind_of_store_is_refused(tmp_path: Path) -> None:
    _store(tmp_path)
    with pytest.raises(
        UserError, match=r"holds other fields than these settings give: width is 71 there, 72 here; name another"
    ):
        _store(tmp_path, (48, 72))
    with pytest.raises(UserError, match=r"bound is 20.0 there, 4.0 here"):
        FlowStore.create(str(tmp_path), fingerprint("dis"), 4, SIZE)
    with pytest.raises(UserError, match="algorithm is dis there, tvl1 here"):
        FlowStore.create(str(tmp_path), fingerprint("tvl1"), 20, SIZE)
    with pytest.raises(UserError, match="interlaced is weave there, deinterlace here"):
        FlowStore.create(str(tmp_path), fingerprint("dis", interlaced="deinterlace"), 20, SIZE)
    newer = fingerprint("dis").replace('"PatchSize": 8', '"PatchSize": 12')
    with pytest.raises(UserError, match="these settings give: PatchSize is 8 there, 12 here; "):
        FlowStore.create(str(tmp_path), newer, 20, SIZE)
    with pytest.raises(UserError, match=r"there is none \(no store.json\); make it with 'vicc flow MANIFEST'"):
        FlowStore.open(str(tmp_path / "none"))
    for text, match in [
        ('{"format": 9}', "format 9; this version reads 1 and 2"),
        ("[1]", "format None"),
        ("{", "not JSON"),
    ]:
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(UserError, match=match):
            FlowStore.open(str(tmp_path))


@pytest.mark.parametrize("algorithm", ["dis", "farneback", "tvl1", "tvl1_torch", "motion_vectors"])
@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-sequential"])
def test_stored_and_streamed_flow_agree(algorithm: str, decoder: str, tmp_path: Path) -> None:
    n = 12 if algorithm.startswith("tvl1") else 40
    path = write_video(tmp_path / "v.mp4", shifted_texture(n, 64, 96, 1.5, -0.5))
    row = dataclasses.replace(_row(n, video=str(path)), decoder=decoder)  # type: ignore[arg-type]
    store = FlowStore.create(str(tmp_path / "store"), fingerprint(algorithm), 20.0, SIZE)
    chunks = list(compute_codes(row, algorithm, SIZE, chunk=7))
    assert all(len(chunk) <= 7 for chunk in chunks)
    store.write(row, iter(chunks))
    stored = store.read(row, np.arange(n - 1))
    difference = _differences(stored, np.concatenate(chunks))
    # TV-L1's fields have edges and single pixels that stand out, vectors of blocks have edges.
    sharp = algorithm in ("tvl1", "tvl1_torch", "motion_vectors")
    assert (difference <= 1).mean() > (0.99 if sharp else 0.999)
    assert difference.max() <= (7 if sharp else 2)
    if algorithm != "motion_vectors":
        flow = flow_between(read_frames(str(path), np.arange(n), SIZE, row.decoder), algorithm)
        assert np.array_equal(np.concatenate(chunks), quantise(flow))
        assert np.abs(dequantise(stored) - flow).mean() < 0.1


def test_the_flow_of_interlaced_videos_is_that_of_the_chosen_pictures(tmp_path: Path) -> None:
    moments = shifted_texture(24, 96, 128, 4.0, 0.0)
    path = str(write_interlaced(tmp_path / "v.mp4", moments, "libx264", {"qp": "0"}))
    row = dataclasses.replace(_row(12, video=path), decoder="pyav")
    codes = {}
    for choice in ("weave", "deinterlace"):
        codes[choice] = np.concatenate(list(compute_codes(row, "dis", SIZE, interlaced=choice)))
        images = read_frames(path, np.arange(12), SIZE, "pyav", choice)
        assert np.array_equal(codes[choice], quantise(flow_between(images, "dis")))
    assert not np.array_equal(*codes.values())  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["dis", "motion_vectors"])
def test_one_frame_has_no_motion_and_a_short_file_is_refused(algorithm: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", shifted_texture(1, 64, 96, 0, 0))
    (codes,) = compute_codes(_row(1, video=str(path)), algorithm, SIZE)
    assert codes.shape == (1, *SIZE, 2) and (codes == quantise(np.zeros(1, np.float32))).all()
    for decoder in ("decord", "pyav"):
        row = dataclasses.replace(_row(31, video=str(path)), decoder=decoder)
        with pytest.raises(VideoError):
            _store(tmp_path / "s").write(row, compute_codes(row, algorithm, SIZE))
    with pytest.raises(VideoError, match="no such file"):
        list(compute_codes(_row(5, video=str(tmp_path / "none.mp4")), algorithm, SIZE))


def test_an_experiment_that_does_not_fit_its_store_is_told_before_it_begins(tmp_path: Path) -> None:
    folder = str(tmp_path / "store")
    rows = [VideoRow("a.mp4", frames=3, content_hash="a" * 32), VideoRow("b.mp4", frames=3, content_hash="b" * 32)]
    asked = FlowConfig(source="store", store=folder)
    check_stored(FlowConfig(), (16, 24), rows)  # streams
    with pytest.raises(UserError, match="there is none"):
        check_stored(asked, (16, 24), rows)
    store = FlowStore.create(folder, fingerprint("dis"), 20, (16, 24))
    store.write(rows[0], [np.full((2, 16, 24, 2), 128, np.uint8)])
    check_stored(asked, (16, 24), rows[:1])
    with pytest.raises(UserError, match=r"lacks 1 of 2 videos \(the first: b.mp4\); fill it with 'vicc flow"):
        check_stored(asked, (16, 24), rows)
    with pytest.raises(UserError, match=r"clip.decode_size: is \[16, 25\], the flow store .* holds \[16, 24\]"):
        check_stored(asked, (16, 25), rows[:1])
    with pytest.raises(UserError, match=r"data.interlaced: is deinterlace, .* holds weave"):
        check_stored(asked, (16, 24), rows[:1], DataConfig(interlaced="deinterlace"))
    with pytest.raises(UserError, match=r"flow.algorithm: is tvl1, .* holds dis"):
        check_stored(asked.model_copy(update={"algorithm": "tvl1"}), (16, 24), rows[:1])


@pytest.mark.parametrize(
    "name", ["", "aa", "/elsewhere/evil", "../../evil/aaaaaaaaaaaaaaaaaaaaaaaa", "A" * 32, "a" * 31 + "\n"]
)
def test_a_content_hash_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    """It comes from a manifest, which anybody may have made."""
    store = FlowStore.create(str(tmp_path / "store"), fingerprint("dis"), 20, (16, 24))
    row = VideoRow("a.mp4", frames=3, content_hash=name)
    for attempt in (lambda: store.write(row, []), lambda: store.missing([row]), lambda: store.has(row)):
        with pytest.raises(UserError, match=r"a\.mp4: its row has no content hash of 32 hex digits"):
            attempt()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["store", "store.json"]


def test_what_vicc_flow_was_content_with_training_is_too(tmp_path: Path) -> None:
    rows = [VideoRow(f"{n}.mp4", frames=3, content_hash=f"{n:032x}") for n in range(10)]
    store = FlowStore.create(str(tmp_path / "store"), fingerprint("dis"), 20, (16, 24))
    for row in rows[:9]:
        store.write(row, [np.full((2, 16, 24, 2), 128, np.uint8)])
    asked = FlowConfig(source="store", store=store.folder)
    assert check_stored(asked, (16, 24), rows, DataConfig(max_refused=0.1)) == rows[9:]
    with pytest.raises(UserError, match=r"lacks 1 of 10 videos .* or raise data.max_refused \(now 0.05\)"):
        check_stored(asked, (16, 24), rows, DataConfig(max_refused=0.05))


def test_a_header_of_any_json_is_told(tmp_path: Path) -> None:
    store = FlowStore.create(str(tmp_path / "store"), fingerprint("dis"), 20, (16, 24))
    header = tmp_path / "store" / "store.json"
    whole = json.loads(header.read_text())
    for change in ({"fingerprint": 7}, {"fingerprint": {}}, {"bound": "x"}, {"height": None}, {"format": [1]}):  # type: ignore[var-annotated]
        header.write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match="make it again"):
            FlowStore.open(store.folder)


def test_a_store_from_before_checksums_is_read_and_added_to(tmp_path: Path) -> None:
    """TV-L1 of a data set takes days; what it gave is not thrown away for want of checksums."""
    store, old, new = _store(tmp_path), _row(11), _row(11, "cd")
    codes = _codes(10)
    store.write(old, [codes])
    (entry,) = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "store.json")
    entry.write_bytes(entry.read_bytes().replace(b"CHECKSUMS", b"CHECKSUMX"))
    header = tmp_path / "store.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 1}))
    with pytest.raises(VideoError, match="checksums of 0"):
        store.read(old, np.arange(10))  # a store of today has them
    for earlier in (FlowStore.open(str(tmp_path)), _store(tmp_path)):
        assert not earlier.checked
        assert _differences(earlier.read(old, np.arange(10)), codes).max() <= 1
    earlier.write(new, [codes])
    (added,) = (path for path in tmp_path.rglob("*") if path.is_file() and path not in (entry, header))
    data = bytearray(added.read_bytes())
    assert b"CHECKSUMS" in data
    data[len(data) * 2 // 3] ^= 255
    added.write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        earlier.read(new, np.arange(10))
