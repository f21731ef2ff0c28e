"""`vicc bench data`: its clock, its rivals and its watch on memory. The streams themselves run on Ray, elsewhere."""

from __future__ import annotations

import io
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data, data_memory, data_rivals
from benchmarks.data import BATCH, EPOCHS, FREE_EPOCHS, endure, make_bench_plan, picture_sizes
from benchmarks.data_memory import Watch, decode_memory
from benchmarks.data_rivals import (
    BareLoop,
    DecodedSteps,
    Loader,
    PicturedSteps,
    augment_pictures,
    pace,
    rgb_only,
    write_pictures,
)
from vicc_ray.data.augment import IMAGENET_STD, AugmentSettings, augment, draw
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.probing import index
from vicc_ray.data.synthetic import make_dataset
from vicc_ray.training.batches import TrainingPlan, decode_share, to_batch


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    """8 videos of 40 frames; the clips are smaller than the bench's to be quick."""
    table = make_dataset(
        tmp_path_factory.mktemp("videos"), train_per_class=1, query_per_class=0, frames=40, size=64, workers=1
    )
    made = make_bench_plan(tuple(index(scan(table), workers=1).videos), "6 steps", 1)
    clip = made.experiment.clip.model_copy(update={"frames": 8, "decode_size": (48, 64), "size": 32})
    return replace(made, experiment=made.experiment.model_copy(update={"clip": clip}))


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of threads in place of processes, which take seconds to start."""

    def pool(workers: int, mp_context: Any, initializer: Callable[..., None], initargs: tuple[Any]) -> Any:
        assert mp_context.get_start_method() == "spawn"
        return ThreadPoolExecutor(workers, initializer=initializer, initargs=initargs)

    monkeypatch.setattr(data_rivals, "ProcessPoolExecutor", pool)


def first_step(plan: TrainingPlan) -> int:
    return plan.stages[-2].first_step


@pytest.mark.parametrize("sizes", [[2] * 20, [4] * 10, [1, 3, 2, 2] * 5])
def test_the_clock_counts_only_its_own_samples(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    now = 0.0
    monkeypatch.setattr(data_rivals.time, "perf_counter", lambda: now)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.5, 2, len(sizes)))

    def deliveries() -> Iterator[int]:
        nonlocal now
        for size, at in zip(sizes, times, strict=True):
            now = float(at)
            yield size

    total = np.cumsum(sizes)
    start = int(np.argmax(total >= 8))
    end = int(np.argmax(total >= total[start] + 16))
    want = (total[end] - total[start]) / (times[end] - times[start])
    assert pace(deliveries(), lead=8, counted=16) == pytest.approx(want)
    assert now == times[-1]  # all of them were taken


def test_too_few_samples_are_no_measurement() -> None:
    with pytest.raises(ValueError, match="12 samples came; the clock needs 4 before it and 9 more"):
        pace([4, 4, 4], lead=4, counted=9)


def test_the_plan_is_the_published_clip_in_cross_stream_steps(plan: TrainingPlan) -> None:
    made = make_bench_plan(plan.videos, "7 steps", 3)
    stage = made.stages[-2]
    clip = made.experiment.clip
    assert (clip.frames, clip.decode_size, clip.size, made.experiment.flow.algorithm) == (32, (128, 171), 128, "dis")
    assert (stage.streams, stage.steps, stage.global_batch) == (("rgb", "flow"), 7, BATCH)
    assert made.experiment.train.decode_actors == 3


def test_pictures_are_as_large_as_most_videos_and_small_where_that_saves() -> None:
    rows = [
        VideoRow("a", height=480, width=854),
        VideoRow("b", height=480, width=854),
        VideoRow("c", height=9, width=9),
    ]
    assert picture_sizes(rows) == {data.PUBLISHED: (480, 854), data.SMALL: (256, 455)}
    assert picture_sizes([VideoRow("a", height=240, width=320)]) == {data.PUBLISHED: (240, 320)}


def test_rgb_alone_is_of_the_same_samples(plan: TrainingPlan) -> None:
    step = first_step(plan)
    both, rgb = decode_share(plan, step, 0, 1), decode_share(rgb_only(plan, (48, 64)), step, 0, 1)
    assert "flow" not in rgb and np.array_equal(rgb["rgb"], both["rgb"])


@pytest.mark.usefixtures("in_threads")
def test_stored_pictures_are_the_plans_clips(plan: TrainingPlan, tmp_path: Path) -> None:
    step = first_step(plan)
    pictures = write_pictures(tmp_path / "pictures", BareLoop(plan, 1), [step, step + 1], (48, 64))
    assert pictures.bytes == (tmp_path / "pictures").stat().st_size
    block = decode_share(plan, step + 1, 0, 1)
    for row, number in ((0, 1), (3, 0)):
        rgb = np.stack([np.asarray(p) for p in pictures.read(step + 1, row, number, "rgb")])
        flow = np.stack([np.asarray(p) for p in pictures.read(step + 1, row, number, "flow")])
        assert rgb.shape == (8, 48, 64, 3)
        assert np.abs(rgb.astype(int) - block["rgb"][row, number]).mean() < 4
        assert np.abs(flow[..., 0].astype(int) - 128).mean() < 2
        assert np.abs(flow[..., 2:0:-1].astype(int) - block["flow"][row, number]).mean() < 3
    larger = write_pictures(tmp_path / "larger", BareLoop(plan, 1), [step], (60, 80))
    assert {p.size for stream in ("rgb", "flow") for p in larger.read(step, 0, 0, stream)} == {(80, 60)}


def test_flow_pictures_are_128_v_u() -> None:
    frame = np.empty((16, 16, 2), np.uint8)
    frame[..., 0], frame[..., 1] = 60, 200
    picture = np.asarray(Image.open(io.BytesIO(data_rivals._encode(frame, (16, 16)))))
    assert np.abs(picture.astype(int) - (128, 200, 60)).max() <= 3


def test_pictures_one_by_one_give_what_the_batched_chain_gives() -> None:
    """Same frames, same draws: PIL picture by picture beside `augment`, for clips with every operation in turn."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (6, 3, 12, 16, 3), np.uint8)
    clips = np.stack([[np.asarray(Image.fromarray(f).resize((64, 48), 3)) for f in clip] for clip in coarse])
    settings = AugmentSettings(size=32, jitter_p=0.7, gray_p=0.5)
    params = draw(settings, [(1, row) for row in range(6)], [False, False, True, True, True, True])
    assert params.flip.any() and params.jitter.any() and params.gray.any() and params.blur.any()
    want, _ = augment(torch.from_numpy(clips), None, params, settings)
    assert want is not None
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1, 1)
    for row in range(6):
        frames = [Image.fromarray(frame) for frame in clips[row]]
        got = augment_pictures(frames, params, row, 32, coloured=True)
        assert got.shape == (3, 3, 32, 32) and got.dtype == torch.float32
        # Grey levels of difference: PIL rounds after every operation and blurs with a stack of boxes.
        assert ((got - want[row]) * std * 255).abs().mean() < (1 if row < 2 else 5)
        plain = augment_pictures(frames, params, row, 32, coloured=False)
        assert torch.equal(plain, got) == (not params.jitter[row] and not params.gray[row] and not params.blur[row])


@pytest.mark.usefixtures("in_threads")
def test_pictured_steps_hold_all_views_of_the_plan(plan: TrainingPlan, tmp_path: Path) -> None:
    step = first_step(plan)
    settings = AugmentSettings(size=32)
    pictures = write_pictures(tmp_path / "pictures", BareLoop(plan, 1), [step], (48, 64))
    views = PicturedSteps(plan, pictures, settings)[step]
    assert {name: tuple(v.shape) for name, v in views.items()} == dict.fromkeys(
        ("rgb", "flow"), (BATCH, 2, 3, 8, 32, 32)
    )
    batch, _ = to_batch(plan, step, decode_share(plan, step, 0, 1))
    for clip in (0, 1):
        params = draw(settings, [keys[clip] for keys in batch.keys], batch.full[:, clip])
        rgb, _ = augment(batch.clips["rgb"][:, clip], None, params, settings)
        assert rgb is not None and (views["rgb"][:, clip] - rgb).abs().mean() < 0.15


@pytest.mark.usefixtures("in_threads")
def test_the_bare_loop_decodes_every_step(plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(data_rivals, "decode_share", lambda held, step, rank, workers: seen.append(step))
    with BareLoop(plan, 2) as bare:
        assert list(bare.steps(range(3, 8))) == [BATCH] * 5
    assert sorted(seen) == [3, 4, 5, 6, 7]


def test_a_loader_gives_whole_steps_in_order_turn_after_turn(plan: TrainingPlan) -> None:
    loader = Loader(DecodedSteps(plan), 1)
    first = first_step(plan)
    for steps in (range(first, first + 2), range(first + 1, first + 4)):
        for step, block in loader.steps(steps):
            batch, refused = to_batch(plan, step, block)
            assert not refused and np.array_equal(batch.clips["rgb"], decode_share(plan, step, 0, 1)["rgb"])
        assert step == steps[-1]


def test_the_split_of_time_names_both_parts(plan: TrainingPlan) -> None:
    assert "ms decoding" in data.split_of_time(plan, [first_step(plan)])


def feed(monkeypatch: pytest.MonkeyPatch, blocks: Callable[[Any], Iterator[Any]]) -> None:
    """Blocks in place of Ray's: consumer r of n gets what `blocks(r)` yields."""
    monkeypatch.setattr(data, "training_stream", lambda plan, steps, rank, workers, decoders: blocks(rank))
    monkeypatch.setattr(data, "to_batch", lambda plan, step, block: (step, []))


def test_a_stream_has_a_thread_for_each_consumer(monkeypatch: pytest.MonkeyPatch, plan: TrainingPlan) -> None:
    meeting = threading.Barrier(2, timeout=10)

    def blocks(rank: int) -> Iterator[Any]:
        for _ in range(3):
            meeting.wait()  # neither gets on without the other
            yield {"slot": np.zeros(rank + 1)}

    feed(monkeypatch, blocks)
    used: list[Any] = []
    assert sorted(data.stream(plan, 5, 8, 2, 1, used.append)) == [1, 1, 1, 2, 2, 2]
    assert sorted(used) == [5, 5, 6, 6, 7, 7]


def test_what_a_consumer_raises_ends_the_stream(monkeypatch: pytest.MonkeyPatch, plan: TrainingPlan) -> None:
    feed(monkeypatch, lambda rank: iter([{"slot": np.zeros(2)}]))

    def refuse(batch: Any) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        list(data.stream(plan, 5, 6, 1, 1, refuse))


def ahead(blocks: Iterator[Any]) -> Iterator[Any]:
    """What a stream does: the next blocks are made while the consumer is busy."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=3)

    def fill() -> None:
        for block in blocks:
            ready.put(block)
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (block := ready.get()) is not None:
        yield block


@pytest.mark.parametrize(("working_ahead", "low", "high"), [(True, 0, 0.3), (False, 0.4, 0.6)])
def test_a_consumer_waits_where_nothing_is_made_ahead(
    monkeypatch: pytest.MonkeyPatch, plan: TrainingPlan, working_ahead: bool, low: float, high: float
) -> None:
    made = make_bench_plan(plan.videos[:BATCH], f"{EPOCHS} epochs", 1)

    def slow(rank: int) -> Iterator[Any]:
        for _ in range(EPOCHS):
            time.sleep(0.05)
            yield {}

    feed(monkeypatch, (lambda rank: ahead(slow(rank))) if working_ahead else slow)
    monkeypatch.setattr(data_memory, "INTERVAL", 0.02)
    monkeypatch.setattr(data_memory, "decode_memory", lambda: {1: 10, 2: 20})
    monkeypatch.setattr(data_memory, "store_memory", lambda: (7, 0))
    found = endure(made, 1)
    assert found.samples == EPOCHS * BATCH
    assert found.step_seconds == pytest.approx(0.05, abs=0.03)
    assert low <= found.waiting <= high
    assert len(found.watch.by_epoch()) == EPOCHS > FREE_EPOCHS
    assert found.watch.processes() == 2 and found.watch.store_peak == 7


def test_growth_is_of_one_process_after_its_first_epoch() -> None:
    watch = Watch()
    for epoch, sizes in enumerate([{1: 100, 2: 10}, {1: 60, 2: 30}, {1: 105, 2: 20, 3: 500}, {3: 510}]):
        watch.epoch = epoch
        watch.note(dict.fromkeys(sizes, 1), 5 * epoch, 0)
        watch.note(sizes, 3, epoch)
    assert watch.growth() == 20  # process 2, from 10 to 30; 1 grew by 5, 3 by 10
    assert (watch.store_peak, watch.spilled, watch.processes()) == (15, 3, 3)


def test_growth_of_nothing_is_no_measurement() -> None:
    watch = Watch()
    watch.note({1: 5}, 0, 0)
    with pytest.raises(RuntimeError, match="more than one epoch"):
        watch.growth()


def test_a_watch_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_memory, "INTERVAL", 0.01)

    def fail() -> tuple[int, int]:
        raise ConnectionError("gone")

    monkeypatch.setattr(data_memory, "store_memory", fail)
    with pytest.raises(ConnectionError, match="gone"), Watch():
        time.sleep(0.2)


def test_decode_processes_count_what_is_theirs_alone() -> None:
    """A process named as a decode actor with 32 MiB of its own, a child of its own with 16, and 64 MiB shared."""
    child = "import sys, time; own = bytearray(b'x' * (16 << 20)); time.sleep(60)"
    code = (
        "import mmap, subprocess, sys, time\n"
        "own = bytearray(b'x' * (32 << 20)); shared = mmap.mmap(-1, 64 << 20); shared.write(b'x' * (64 << 20))\n"
        f"process = subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(1)\n"
        "print('ready', flush=True); sys.stdin.read(); process.kill(); process.wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ray::MapWorker(MapBatches(DecodeShares))"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        found = decode_memory()
    finally:
        process.communicate()
    assert set(found) == {process.pid}
    assert 48 << 20 < found[process.pid] < 48 + 32 << 20
