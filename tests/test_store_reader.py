"""Clips from a packed store are those of the videos themselves, whatever is asked; steps of training that travel together."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from packed import BOTH, make_store, pack, psnr
from ray.data import DataContext
from s3 import s3_bucket
from tiny import tiny_experiment, tiny_plan
from videos import OPEN_GOPS, numbered_frames, read_number, write_video

from vicc_ray.cluster.decode_actors import DecodeShares, DecodeWindows, list_windows
from vicc_ray.cluster.resources import steps_a_block
from vicc_ray.cluster.stream import iterate_steps, step_runs
from vicc_ray.config import ClipConfig, Decoded, Experiment, FlowConfig
from vicc_ray.data.clips import window_span
from vicc_ray.data.manifest import Manifest, VideoError, VideoRow, probe
from vicc_ray.data.reader import ClipReader, make_reader, read_here
from vicc_ray.data.samples import Clips, Request, empty_clips, positions, read_clips
from vicc_ray.data.segments import part_of_frames
from vicc_ray.data.store.checking import open_stores
from vicc_ray.data.store.reading import EntryReader
from vicc_ray.data.store.store import PackedStore
from vicc_ray.data.store_reader import StoreReader
from vicc_ray.training.batches import PADDING, Block, TrainingPlan, decode_share, decode_shares, split_steps, to_batch
from vicc_ray.training.schedule import locate


def calm_frames(n: int) -> NDArray[np.uint8]:
    """Numbered frames whose colours change slowly over the picture, as they do in films: a store has them at half the size."""
    frames = []
    for frame in numbered_frames(n):
        luma, *colours = cv2.split(cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb))
        blurred = [cv2.GaussianBlur(colour, (0, 0), 5.0) for colour in colours]
        frames.append(cv2.cvtColor(cv2.merge([luma, *blurred]), cv2.COLOR_YCrCb2RGB))
    return np.stack(frames).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoRow]:
    """Numbered frames at even and uneven times, in files that decord can read and others, long and short."""
    folder = tmp_path_factory.mktemp("films")
    gaps = np.random.default_rng(5).choice([20, 40, 80, 350], 79)
    stamps = [0, *np.cumsum(gaps).tolist()]
    made = {
        "even": write_video(folder / "even.mp4", calm_frames(120)),
        "slow": write_video(folder / "slow.mkv", calm_frames(70), fps=10),
        "open": write_video(folder / "open.mp4", calm_frames(90), options=OPEN_GOPS),
        "uneven": write_video(folder / "uneven.mkv", calm_frames(80), stamps=stamps),
        "late": write_video(folder / "late.mp4", calm_frames(80), stamps=[5000 + stamp for stamp in stamps]),
        "short": write_video(folder / "short.mp4", calm_frames(5)),
        "one": write_video(folder / "one.mp4", calm_frames(1)),
    }
    rows = {name: probe(str(path)) for name, path in made.items()}
    assert rows["even"].decoder == "decord" and rows["open"].decoder == "pyav"
    assert not rows["uneven"].constant_rate and not rows["late"].constant_rate and rows["slow"].constant_rate
    return rows


def from_store(clip: ClipConfig, store: PackedStore, flow: FlowConfig | None = None) -> Experiment:
    """An experiment whose clips come from a store."""
    packed = clip.model_copy(update={"source": "store", "store": store.folder})
    return Experiment(clip=packed, flow=flow or FlowConfig())


def numbers(clips: Clips) -> list[list[int]]:
    return [[read_number(frame) for frame in clip] for clip in clips["rgb"]]


def agree(found: Clips, wanted: Clips) -> None:
    """The same frames, and near enough."""
    assert found.keys() == wanted.keys()
    for stream, clips in wanted.items():
        assert found[stream].shape == clips.shape and found[stream].dtype == np.uint8
    if "rgb" in wanted:
        assert numbers(found) == numbers(wanted) and min(min(row) for row in numbers(wanted)) >= 0
        for clip, original in zip(found["rgb"], wanted["rgb"], strict=True):
            assert min(psnr(a, b) for a, b in zip(clip, original, strict=True)) >= 34
    if "flow" in wanted:
        difference = np.abs(found["flow"].astype(int) - wanted["flow"])
        assert difference.mean() <= 1 and difference.mean(axis=(2, 3, 4)).max() <= 1.5


def random_clip(rng: np.random.Generator) -> ClipConfig:
    frames = int(rng.choice([2, 4, 8, 16]))
    size = [(32, 48), (33, 51), (64, 96), (40, 57)][int(rng.integers(4))]
    by_time = bool(rng.random() < 0.4)
    fps = float(rng.choice([2.5, 5.0, 12.0, 25.0, 60.0])) if by_time else None
    stride = 1 if by_time else int(rng.choice([1, 1, 2, 3, 7]))
    return ClipConfig(frames=frames, stride=stride, fps=fps, decode_size=size, size=32)


def random_part(rng: np.random.Generator, row: VideoRow) -> VideoRow:
    if row.frames < 4 or rng.random() < 0.4:
        return row
    first = int(rng.integers(0, row.frames - 2))
    return part_of_frames(row, first, int(rng.integers(first + 2, row.frames + 1)))


def random_starts(rng: np.random.Generator, row: VideoRow, clip: ClipConfig) -> list[int]:
    """As training draws them: from the first frame to the last possible one, or before the first where it is too short."""
    last = positions(row, clip) - window_span(clip.frames, clip.stride)
    return [last if last <= 0 else int(rng.integers(0, last + 1)) for _ in range(int(rng.integers(1, 3)))]


@pytest.mark.parametrize("seed", range(40))
def test_clips_of_a_store_are_those_of_the_videos(seed: int, files: dict[str, VideoRow], tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    clip = random_clip(rng)
    store = make_store(tmp_path / "s", clip.decode_size)
    rows: list[VideoRow] = []
    for name in rng.choice(sorted(files), 3, replace=False):
        row = files[name]
        decoders = ["pyav", "pyav-sequential", *["decord"] * 2 * (row.decoder == "decord")]
        row = replace(row, decoder=str(rng.choice(decoders)))  # type: ignore[arg-type]
        if rng.random() < 0.3:
            row = replace(row, frame_table="")
        part = random_part(rng, row)
        # Entries of the part, of the whole file, or of other parts that overlap.
        kind = rng.integers(3)
        packed = [[part], [row], [random_part(rng, row), row, part]][kind]
        outcomes = pack(store, packed, entries_a_shard=int(rng.integers(1, 4)))
        assert all(not outcome.refused and outcome.not_written is None for outcome in outcomes)
        rows.append(part)
    streams: list[tuple[Decoded, ...]] = [("rgb", "flow"), ("rgb",), ("flow",)]
    requests: list[Request] = [
        (rows[i], random_starts(rng, rows[i], clip), streams[int(rng.choice(3, p=[0.6, 0.2, 0.2]))])
        for i in rng.integers(0, 3, 6)
    ]
    with closing(StoreReader(from_store(clip, store))) as reader:
        answers = reader.read_all(requests)
        for (row, starts, wanted), answer in zip(requests, answers, strict=True):
            assert not isinstance(answer, VideoError), answer
            agree(answer, read_clips(row, starts, wanted, clip, FlowConfig()))


def test_uneven_frames_of_a_part_are_found_by_the_times_of_the_whole_file(
    files: dict[str, VideoRow], tmp_path: Path
) -> None:
    clip = ClipConfig(frames=8, fps=8.0, decode_size=(32, 48), size=32)
    for name in ("uneven", "late"):
        row = files[name]
        store = make_store(tmp_path / name, (32, 48))
        pack(store, [row])
        for part in (row, part_of_frames(row, 33, 70)):
            starts = [0, positions(part, clip) - 8]
            found = StoreReader(from_store(clip, store)).read(part, starts, BOTH)
            wanted = read_clips(part, starts, BOTH, clip, FlowConfig())
            agree(found, wanted)
            assert len({number for shown in numbers(wanted) for number in shown}) > 8


def test_a_store_that_does_not_say_when_its_pictures_are_shown_says_so(
    files: dict[str, VideoRow], tmp_path: Path
) -> None:
    """As where the file counted as one at even times when it was packed."""
    row = files["uneven"]
    store = make_store(tmp_path / "s", (32, 48))
    pack(store, [replace(row, constant_rate=True)])
    clip = ClipConfig(frames=4, decode_size=(32, 48), size=32)
    assert numbers(StoreReader(from_store(clip, store)).read(row, [3], ("rgb",))) == [[3, 4, 5, 6]]
    by_time = clip.model_copy(update={"fps": 5.0})
    with pytest.raises(
        VideoError, match=r"does not say when its pictures are shown, which clip.fps needs; pack it again"
    ):
        StoreReader(from_store(by_time, store)).read(row, [3], ("rgb",))


def test_one_request_that_cannot_be_read_costs_no_other(files: dict[str, VideoRow], tmp_path: Path) -> None:
    clip = ClipConfig(frames=4, decode_size=(32, 48), size=32)
    store = make_store(tmp_path / "s", (32, 48))
    pack(store, [files["even"], files["slow"]], entries_a_shard=1)
    pack(store, [files["open"]], ["rgb"])
    experiment = from_store(clip, store)
    reader = pickle.loads(pickle.dumps(StoreReader(experiment)))
    requests: list[Request] = [
        (files["even"], [3, 60], BOTH),
        (files["short"], [0], BOTH),
        (files["open"], [4], BOTH),
        (files["open"], [4], ("rgb",)),
        (files["slow"], [66], BOTH),
    ]
    into = [empty_clips(len(starts), streams, clip) for _, starts, streams in requests]
    answers = reader.read_all(requests, into)
    assert "the store has no pictures for it" in str(answers[1]) and "the store has no flow for it" in str(answers[2])
    assert [isinstance(answer, VideoError) for answer in answers] == [False, True, True, False, False]
    for place in (0, 3, 4):
        assert answers[place] is into[place]
        row, starts, streams = requests[place]
        agree(into[place], read_clips(row, starts, streams, clip, FlowConfig()))
    assert numbers(into[0]) == [[3, 4, 5, 6], [60, 61, 62, 63]]
    with pytest.raises(VideoError, match="no pictures"):
        reader.read(files["short"], [0], ("rgb",))
    # A shard that goes while it is read from: nothing but its videos.
    reader.close()
    where = store.find(files["slow"], "rgb")
    assert where is not None
    Path(store.folder, "shards", f"{where.shard}.shard").unlink()
    assert numbers(reader.read(files["even"], [5], ("rgb",))) == [[5, 6, 7, 8]]
    with pytest.raises(
        VideoError, match=r"its pictures in shard \S+ are damaged .*it is missing; run 'vicc pack --check'"
    ):
        reader.read(files["slow"], [5], ("rgb",))
    reader.close()


def test_what_an_experiments_clips_are_read_with(files: dict[str, VideoRow], tmp_path: Path) -> None:
    clip = ClipConfig(frames=4, decode_size=(32, 48), size=32)
    row, store = files["even"], make_store(tmp_path / "s", (32, 48))
    pack(store, [row])
    experiment = from_store(clip, store)
    assert isinstance(make_reader(Experiment(clip=clip)), ClipReader)
    opened = open_stores(experiment)
    index = opened[store.folder].index("rgb")
    with closing(make_reader(experiment, opened)) as reader:
        assert isinstance(reader, StoreReader) and reader.pid is None
        assert numbers(reader.read(row, [9], BOTH)) == [[9, 10, 11, 12]]
        assert next(iter(reader._readers.values())).store.index("rgb") is index  # read once
    into = [empty_clips(1, BOTH, clip)]
    for settings in (experiment, Experiment(clip=clip)):
        (answer,) = read_here(settings, [(row, [9], BOTH)], into)
        assert answer is into[0] and numbers(into[0]) == [[9, 10, 11, 12]]
        (answer,) = read_here(settings, [(row, [9], BOTH)])
        assert not isinstance(answer, VideoError) and numbers(answer) == [[9, 10, 11, 12]]


def test_flow_of_another_store_and_pictures_of_the_videos(files: dict[str, VideoRow], tmp_path: Path) -> None:
    clip = ClipConfig(frames=4, decode_size=(32, 48), size=32)
    row, bounded = files["even"], FlowConfig(bound=8)
    pictures = make_store(tmp_path / "p", (32, 48), ["rgb"])
    fields = make_store(tmp_path / "f", (32, 48), ["flow"], bounded)
    pack(pictures, [row], ["rgb"])
    pack(fields, [row], ["flow"], bounded)
    stored = FlowConfig(bound=8, source="store", store=fields.folder)
    wanted = read_clips(row, [7, 100], BOTH, clip, bounded)
    for experiment in (from_store(clip, pictures, stored), Experiment(clip=clip, flow=stored)):
        with closing(make_reader(experiment)) as reader:
            agree(reader.read(row, [7, 100], BOTH), wanted)
            agree(reader.read(row, [7], ("flow",)), {"flow": wanted["flow"][:1]})


def test_clips_come_from_a_bucket(files: dict[str, VideoRow], monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ClipConfig(frames=4, decode_size=(32, 48), size=32)
    with s3_bucket(monkeypatch) as bucket:
        store = make_store(f"s3://{bucket.name}/a/packed", (32, 48))
        rows = [files["even"], files["uneven"], part_of_frames(files["slow"], 20, 60)]
        pack(store, rows, entries_a_shard=2)
        with closing(StoreReader(from_store(clip, store))) as reader:
            requests: list[Request] = [(row, [2, 30], BOTH) for row in (*rows, *rows[:2])]
            for (row, starts, streams), answer in zip(requests, reader.read_all(requests), strict=True):
                assert not isinstance(answer, VideoError)
                agree(answer, read_clips(row, starts, streams, clip, FlowConfig()))


# Training and evaluation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(videos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> PackedStore:
    """The tiny data set, packed at the tiny experiment's size, but for one training video."""
    flow = tiny_experiment().flow
    store = make_store(tmp_path_factory.mktemp("packed"), (32, 32), flow=flow)
    pack(store, videos.videos[1:], flow=flow, entries_a_shard=5)
    return store


def from_packed(packed: PackedStore) -> Experiment:
    return tiny_experiment(clip={"source": "store", "store": packed.folder})


def equal(found: Block, wanted: Block) -> None:
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert found[name].dtype == rows.dtype
        np.testing.assert_array_equal(found[name], rows)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("stored", [False, True])
def test_several_steps_in_one_block_are_the_blocks_of_each(
    workers: int, stored: bool, videos: Manifest, packed: PackedStore, tmp_path: Path
) -> None:
    """With rows that are padding (8 samples for 3 workers) and rows that are refused."""
    rows = list(videos.videos)
    if not stored:
        rows[0] = replace(rows[0], video=str(tmp_path / "gone.mp4"))
    plan = tiny_plan(from_packed(packed) if stored else tiny_experiment(), Manifest(rows))
    stage = next(one for one in plan.stages if one.steps == 4)
    first = stage.first_step
    refused, padding = 0, 0
    several = (range(first, first + 4), range(first + 1, first + 3), range(first + 2, first + 3))
    for steps in several if stored else (range(first, first + 2),):
        for rank in range(workers):
            together = decode_shares(plan, steps, rank, workers)
            width = -(-stage.global_batch // workers)
            assert all(len(column) == width * len(steps) for column in together.values())
            blocks = list(split_steps(together))
            assert len(blocks) == len(steps)
            for step, block in zip(steps, blocks, strict=True):
                equal(block, decode_share(plan, step, rank, workers))
                assert (block["step"] == step).all()
                batch, reasons = to_batch(plan, step, block)
                assert len(batch.slots) + len(reasons) + int((block["slot"] == PADDING).sum()) == width
                assert {name for name, _ in reasons} <= {rows[0].id}
                refused += len(reasons)
                padding += int((block["slot"] == PADDING).sum())
            if rank == 0:
                with closing(make_reader(plan.experiment)) as reader:
                    equal(decode_shares(plan, steps, rank, workers, reader.read_all), together)
    assert refused > 0 and (padding > 0) == (workers == 3)


def test_a_decode_actor_gives_several_steps_of_a_store(videos: Manifest, packed: PackedStore) -> None:
    experiment = from_packed(packed)
    plan, plain = tiny_plan(experiment, videos), tiny_plan(tiny_experiment(), videos)
    actor = DecodeShares(plan, 2, videos.select("query")[:3], open_stores(experiment))
    stage = next(one for one in plan.stages if one.steps == 4)
    unit = stage.first_step * 2 + 1
    block = actor({"unit": np.array([unit]), "steps": np.array([3])})
    equal(block, decode_shares(plan, range(stage.first_step, stage.first_step + 3), 1, 2))
    equal(actor({"unit": np.array([unit])}), decode_share(plan, stage.first_step, 1, 2))
    streamed = decode_shares(plain, range(stage.first_step, stage.first_step + 3), 1, 2)
    read = np.array([not reason for reason in block["refused"]])
    assert read.any() and [plan.videos[video].id for video in block["video"][~read]] == [videos.videos[0].id] * int(
        (~read).sum()
    )
    for name in ("slot", "video", "step"):
        np.testing.assert_array_equal(block[name], streamed[name])
    for name in stage.decoded:
        near(block[name][read], streamed[name][read])
    monitored = actor({"unit": np.array([-1]), "steps": np.array([1])})
    assert "step" not in monitored and not monitored["refused"].any()


def near(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> None:
    assert found.shape == wanted.shape
    assert psnr(found, wanted) > 30  # small pictures of sharp colours


def test_windows_of_an_evaluation_come_from_a_store(videos: Manifest, packed: PackedStore) -> None:
    experiment = from_packed(packed)
    rows = [videos.videos[1], videos.videos[0], *videos.select("query")[:2]]
    windows = list_windows(rows, experiment.clip, "all")
    blocks = []
    for settings in (experiment, tiny_experiment()):
        actor = DecodeWindows(rows, windows, 5, settings)
        units = [actor({"unit": np.array([unit])}) for unit in range(-(-len(windows) // 5))]
        blocks.append({name: np.concatenate([unit[name] for unit in units]) for name in units[0]})
    found, wanted = blocks
    assert found.keys() == wanted.keys()
    read = found["video"] != 1
    assert [bool(reason) for reason in found["refused"]] == (~read).tolist() and not wanted["refused"].any()
    for name in ("video", "start"):
        np.testing.assert_array_equal(found[name], wanted[name])
    for name in BOTH:
        near(found[name][read], wanted[name][read])


@pytest.mark.parametrize("seed", range(20))
def test_runs_of_steps_cover_each_once_and_cross_no_stage(seed: int, videos: Manifest) -> None:
    rng = np.random.default_rng(seed)
    plan: TrainingPlan = tiny_plan(tiny_experiment(), videos)
    first = int(rng.integers(0, plan.steps))
    steps, most = range(first, int(rng.integers(first, plan.steps + 1))), int(rng.integers(1, 7))
    runs = list(step_runs(plan.stages, steps, most))
    assert [step for run in runs for step in run] == list(steps)
    assert all(1 <= len(run) <= most for run in runs)
    assert all(len({locate(plan.stages, step)[0].name for step in run}) == 1 for run in runs)
    # No more of them than it takes.
    stages = [locate(plan.stages, step)[0].name for step in steps]
    assert len(runs) == sum(-(-stages.count(name) // most) for name in set(stages))


def test_steps_travel_together_where_reading_is_cheap_or_training_is_fast() -> None:
    clip = tiny_experiment().clip
    assert steps_a_block(clip, 1) == 1  # how fast training is, is not known yet
    assert [steps_a_block(clip, 1, seconds) for seconds in (2.0, 0.6, 0.5, 0.14)] == [1, 1, 2, 7]
    assert steps_a_block(clip, 1, 0.0) == (16 << 20) // (2 * 8 * 32 * 32 * 5)
    assert steps_a_block(clip, 100, 0.14) == 2  # 16 MiB
    stored = clip.model_copy(update={"source": "store", "store": "x"})
    pair = 2 * 8 * 32 * 32 * 5  # bytes of a sample's two clips
    assert steps_a_block(stored, 1) == (64 << 20) // pair
    assert steps_a_block(stored, 100) == (64 << 20) // (100 * pair)
    assert steps_a_block(stored, 10_000) == 1


class _Dataset:
    """What Ray Data hands to a worker."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks, self.context = blocks, DataContext()

    def iterator(self) -> _Dataset:
        return self

    def iter_batches(self, **_: Any) -> Iterator[Block]:
        yield from self.blocks


def test_a_worker_gets_one_block_a_step_and_the_monitors_as_they_are(videos: Manifest, packed: PackedStore) -> None:
    plan = tiny_plan(from_packed(packed), videos)
    rows = videos.select("query")[:1]
    actor = DecodeShares(plan, 1, rows, open_stores(plan.experiment))
    monitored = actor({"unit": np.array([-1])})
    units = [(run.start, len(run)) for run in step_runs(plan.stages, range(1, 8), 3)]
    blocks = [actor({"unit": np.array([unit]), "steps": np.array([steps])}) for unit, steps in units]
    assert len(blocks) < 7
    got = list(iterate_steps(_Dataset([monitored, *blocks])))
    equal(got[0], monitored)
    assert [int(block["step"][0]) for block in got[1:]] == list(range(1, 8))
    for step, block in enumerate(got[1:], 1):
        equal(block, decode_share(plan, step, 0, 1))


def test_a_reader_of_a_store_does_not_mix_videos_up(videos: Manifest, packed: PackedStore) -> None:
    """Entries lie one behind another in a shard, of the same size; each video's are its own."""
    with closing(EntryReader(packed)) as reader:
        for row in videos.videos[1:]:
            original = read_clips(row, [0], ("rgb",), tiny_experiment().clip, FlowConfig())["rgb"][0]
            scores = {other.id: psnr(reader.read(other, "rgb", np.arange(8)), original) for other in videos.videos[1:]}
            assert max(scores, key=lambda name: scores[name]) == row.id


def test_an_encoder_reads_other_videos_than_those_of_its_store(videos: Manifest) -> None:
    """What it is given later is in no store: it is read itself, from whatever its run read."""
    from vicc_ray.evaluation.encoder import Encoder
    from vicc_ray.models.encoder import build_encoder
    from vicc_ray.models.encoder_file import EncoderFile

    experiment = tiny_experiment(clip={"source": "store", "store": "nowhere"})
    made = build_encoder(experiment.model.backbone, width=experiment.model.width, embedding_dim=8)
    encoder = Encoder(EncoderFile(made.spec, "rgb", made.state_dict()), experiment, "RGB-2")
    assert encoder.embed(videos.videos[0].video).shape == (made.feature_dim,)
