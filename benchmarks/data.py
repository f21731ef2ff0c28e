"""Data at the speed of the decoder: what Ray Data delivers to its consumers, beside four other ways to the same samples.

A sample is one video with two clips of 32 frames of both streams. All contenders take the same global steps and run on
as many processes as this process may use cores. A last, longer stream says whether a consumer whose step lasts as long
as the data takes has to wait, and whether memory grows.
"""

from __future__ import annotations

import os
import queue
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import Bar, Outcome, take_turns
from benchmarks.data_memory import MEGABYTE, Watch
from benchmarks.data_rivals import (
    JPEG_QUALITY,
    BareLoop,
    DecodedSteps,
    Loader,
    PicturedSteps,
    Pictures,
    pace,
    rgb_only,
    write_pictures,
)
from benchmarks.data_store import (
    OwnPicturedSteps,
    PackedSteps,
    compare,
    copy_store,
    from_store,
    pack,
    pictured_batches,
)
from benchmarks.long_files import LONG, SHORT, compare_lengths
from benchmarks.object_store import ObjectStore, object_store
from vicc_ray import storage
from vicc_ray.cluster.resources import Decoders
from vicc_ray.cluster.session import ray_session
from vicc_ray.cluster.stream import training_stream
from vicc_ray.config import Experiment, make_experiment
from vicc_ray.console import quiet
from vicc_ray.data.augment import augment, draw
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.probing import index
from vicc_ray.data.rows import Rows
from vicc_ray.data.synthetic import make_dataset
from vicc_ray.errors import UserError
from vicc_ray.training.batches import Batch, TrainingPlan, decode_share, to_batch
from vicc_ray.training.schedule import make_stages
from vicc_ray.training.step import augment_settings

BATCH = 4  # samples a step
# Steps a core: until Ray Data's actors have all started; before the clock, on it and after it.
RAMP, LEAD, COUNTED, TAIL = 4, 1, 5, 1
EPOCHS, FREE_EPOCHS = 10, 4  # of the long stream; of them taken as fast as they come, the rest at the measured pace
LONG_VIDEOS = 48
MOST_OF_SHORT = 1.3  # times a clip of a ten-second file that one of a two-hour file may take
SMALL_SIDE = 256  # a store of pictures made smaller than the videos, which saves its readers time

FLOOR, ONE, TWO = "bare loop", "Ray Data, one consumer", "Ray Data, two consumers"
AUGMENTED, LOADER = "Ray Data, consumer augments", "torch DataLoader"
STORE, STORE_AUGMENTED, STORE_LOADER = "packed store", "packed store, consumer augments", "DataLoader, same store"
STORE_S3, SMALL_AUGMENTED = "packed store on S3", f"JPEG, short side {SMALL_SIDE}, our augmentation"
STORE_COUNTED = 50  # steps a core on the clock of a store's readers
PUBLISHED, SMALL = "JPEG + PIL, videos' size", f"JPEG + PIL, short side {SMALL_SIDE}"

Use = Callable[[Batch], Any]


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Samples/s of every way to cross-stream batches; without a manifest, of videos made for the purpose.

    UserError where the manifest has fewer usable videos than a step needs.
    """
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch, _one_thread():
        videos = _videos(Path(scratch), manifest)
        plan = make_bench_plan(videos, f"{(RAMP + COUNTED + TAIL) * cores} steps", cores)
        with (
            object_store() as served,
            quiet(Path(scratch) / "ray.log"),
            ray_session(plan.experiment.train) as resources,
        ):
            packed = str(Path(scratch) / "packed")
            packing = pack(plan.experiment, videos, packed, cores)
            fidelity = compare(plan.experiment, videos, packed)
            outcome = _compare(Course(plan, cores), rounds, Path(scratch), _Packed(packed, served))
            lengths = compare_lengths(rounds, Path(scratch))
            long = endure(make_bench_plan(videos[:LONG_VIDEOS], f"{EPOCHS} epochs", cores), cores)
        outcome.facts["object store's limit, MB"] = round(resources.object_store / MEGABYTE)
    outcome.bars += [packing.bar(), *fidelity.bars()]
    outcome.facts |= {
        "packing": f"{packing.packed:.0f} frames/s, bare loop {packing.bare:.0f}",
        "stored beside the originals": f"{fidelity.clips} clips",
    }
    outcome.bars += [*long.bars(), Bar(f"{LONG} / {SHORT}", _median_ratio(lengths), MOST_OF_SHORT, at_least=False)]
    outcome.facts |= {f"ms, {name}": round(1000 * statistics.median(times)) for name, times in lengths.items()}
    outcome.facts |= long.facts() | _sizes(plan, manifest, cores)
    return outcome


def _median_ratio(lengths: Mapping[str, Sequence[float]]) -> float:
    """The median of the rounds' ratios of a clip of a long file to one of a short file."""
    return statistics.median(long / short for long, short in zip(lengths[LONG], lengths[SHORT], strict=True))


def make_bench_plan(videos: Sequence[VideoRow], length: str, actors: int) -> TrainingPlan:
    """The published clips in cross-stream steps of BATCH samples; the last but one stage is `length` long."""
    stage = {"global_batch": BATCH, "queue_start": "0 steps", "freeze_prototypes": "0 steps"}
    tree: Mapping[str, Any] = {
        "name": "bench-data",
        "train": {"workers": 1, "decode_actors": actors},
        "schedule": {
            "cycles": 1,
            "single": {**stage, "length": "1 steps", "cosine_over": "100 %"},
            "cross": {**stage, "length": {"rgb": length, "flow": "1 steps"}},
        },
    }
    experiment: Experiment = make_experiment(tree, "bench data")
    return TrainingPlan(experiment, tuple(make_stages(experiment, len(videos))), Rows.of(videos))


def stream(plan: TrainingPlan, first: int, last: int, consumers: int, actors: int, use: Use) -> Iterator[int]:
    """Global steps first..last-1 through Ray Data; yields the samples of each block once its consumer has used it.

    With more than one consumer each has a thread and its share of every step. What a consumer raises is raised here.
    """
    done: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def consume(rank: int) -> None:
        try:
            share = Decoders(actors).share(rank, consumers)
            for step, block in enumerate(training_stream(plan, range(first, last), rank, consumers, share), first):
                use(to_batch(plan, step, block)[0])
                done.put(len(block["slot"]))
            done.put(None)
        except BaseException as error:
            done.put(error)

    threads = [threading.Thread(target=consume, args=(rank,), daemon=True) for rank in range(consumers)]
    for thread in threads:
        thread.start()
    running = len(threads)
    while running:
        event = done.get()
        if isinstance(event, BaseException):
            raise event
        if event is None:
            running -= 1
        else:
            yield event


@dataclass(frozen=True)
class Endurance:
    """What the long stream showed; `waiting` is the share of the paced epochs' time that their consumer waited."""

    epochs: int
    samples: int
    step_seconds: float
    waiting: float
    watch: Watch

    def bars(self) -> list[Bar]:
        """The stall and the memory bars."""
        return [
            Bar("share of a matched consumer's time spent waiting", self.waiting, 0.05, at_least=False),
            Bar("object store's peak / machine's memory", self.watch.store_peak / _machine(), 0.25, at_least=False),
            Bar("spilled, MB", self.watch.spilled / MEGABYTE, 0, at_least=False),
            Bar("growth of a decode process, MB", self.watch.growth() / MEGABYTE, 50, at_least=False),
        ]

    def facts(self) -> dict[str, Any]:
        """What the bars were measured on."""
        return {
            "long stream": f"{self.epochs} epochs, {self.samples} samples, {self.step_seconds:.2f} s a step of {BATCH}",
            "decode processes": self.watch.processes(),
            "the largest one's memory by epoch, MB": self.watch.by_epoch(),
            "object store's peak, MB": round(self.watch.store_peak / MEGABYTE),
        }


def endure(plan: TrainingPlan, actors: int) -> Endurance:
    """Some epochs as fast as they come, which gives the time of a step; the rest with a consumer that sleeps that long."""
    stage = plan.stages[-2]
    epoch, first = stage.steps_per_epoch, stage.first_step
    free, total = FREE_EPOCHS * epoch, stage.steps
    started = waited = step_seconds = 0.0
    with Watch() as watch:
        blocks = training_stream(plan, range(first, stage.end), 0, 1, Decoders(actors))
        for done in range(total):
            watch.epoch = done // epoch
            requested = time.perf_counter()
            if done == epoch:
                started = requested
            if done == free:
                step_seconds, started = (requested - started) / (free - epoch), requested
            block = next(blocks)
            came = time.perf_counter()
            to_batch(plan, first + done, block)
            if done >= free:
                waited += came - requested
                time.sleep(max(came + step_seconds - time.perf_counter(), 0))
        waiting = waited / (time.perf_counter() - started)
        for _ in blocks:
            raise RuntimeError("the data stream goes on after its last step")
    return Endurance(EPOCHS, total * BATCH, step_seconds, waiting, watch)


@dataclass(frozen=True)
class Course:
    """The global steps that all contenders take. The clock runs over the same ones for all.

    `counted`: steps a core on the clock; more for contenders whose steps are short.
    """

    plan: TrainingPlan
    cores: int
    counted: int = COUNTED

    @property
    def begin(self) -> int:
        """Where Ray Data begins, whose actors start one after the other."""
        return self.plan.stages[-2].first_step

    @property
    def steps(self) -> range:
        """What the others take, whose processes are there already."""
        return range(self.begin + (RAMP - LEAD) * self.cores, self.begin + (RAMP + self.counted + TAIL) * self.cores)

    def time(self, deliveries: Iterable[int], ramp: int = LEAD) -> float:
        """Samples/s on the clock, which starts after `ramp` steps a core."""
        return pace(deliveries, ramp * self.cores * BATCH, self.counted * self.cores * BATCH)

    def stream(self, consumers: int, use: Use) -> float:
        """Samples/s through Ray Data."""
        return self.time(stream(self.plan, self.begin, self.steps.stop, consumers, self.cores, use), RAMP)

    def blocks(self, loader: Loader) -> float:
        """Samples/s of blocks from torch's loader, made into batches as Ray Data's are."""

        def deliveries() -> Iterator[int]:
            for step, block in loader.steps(self.steps):
                to_batch(self.plan, step, block)
                yield len(block["slot"])

        return self.time(deliveries())

    def augmented(self, loader: Loader, use: Use) -> float:
        """Samples/s of batches made from stored pictures that are augmented as ours are."""

        def deliveries() -> Iterator[int]:
            for batch in pictured_batches(self.plan, loader.steps(self.steps)):
                use(batch)
                yield len(batch.slots)

        return self.time(deliveries())

    def pictures(self, loader: Loader) -> float:
        """Samples/s of batches made from stored pictures."""
        return self.time(len(views["rgb"]) for _, views in loader.steps(self.steps))


@dataclass(frozen=True)
class _Packed:
    """A packed store of the videos, and the S3 server that a copy of it goes to."""

    folder: str
    served: ObjectStore | None

    def contenders(self, course: Course, augmented: Use) -> dict[str, Callable[[], float]]:
        """Its readers, over more steps than the others, as their steps are short."""
        length = f"{(RAMP + STORE_COUNTED + TAIL) * course.cores} steps"
        longer = make_bench_plan(course.plan.videos, length, course.cores)
        own = Course(from_store(longer, self.folder), course.cores, STORE_COUNTED)
        loader = Loader(PackedSteps(own.plan), course.cores)
        found: dict[str, Callable[[], float]] = {
            STORE: lambda: own.stream(1, _take),
            STORE_AUGMENTED: lambda: own.stream(1, augmented),
            STORE_LOADER: lambda: own.blocks(loader),
        }
        if self.served is not None:
            place = storage.join(self.served.bucket, "packed")
            copy_store(self.folder, place)
            remote = Course(from_store(longer, place), course.cores, STORE_COUNTED)
            found[STORE_S3] = lambda: remote.stream(1, _take)
        return found


def _compare(course: Course, rounds: int, scratch: Path, packed: _Packed) -> Outcome:
    plan, cores = course.plan, course.cores
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    augmenting: list[float] = []

    def augmented(batch: Batch) -> None:
        if not len(batch.slots):
            return  # every video of the step was refused
        began = time.perf_counter()
        augment_batch(plan.experiment, batch, device)
        augmenting.append((time.perf_counter() - began) / len(batch.slots))

    blocks = Loader(DecodedSteps(plan), cores)
    with BareLoop(plan, cores) as bare:
        stores = {
            name: write_pictures(scratch / name, bare, course.steps, size)
            for name, size in picture_sizes(plan.videos).items()
        }
        pictures = {
            name: Loader(PicturedSteps(plan, store, augment_settings(plan.experiment)), cores)
            for name, store in stores.items()
        }
        contenders: dict[str, Callable[[], float]] = {
            FLOOR: lambda: course.time(bare.steps(course.steps)),
            ONE: lambda: course.stream(1, _take),
            TWO: lambda: course.stream(2, _take),
            AUGMENTED: lambda: course.stream(1, augmented),
            LOADER: lambda: course.blocks(blocks),
            **{name: partial(course.pictures, loader) for name, loader in pictures.items()},
            **packed.contenders(course, augmented),
        }
        if SMALL in stores:
            own = Loader(OwnPicturedSteps(plan, stores[SMALL]), cores)
            contenders[SMALL_AUGMENTED] = lambda: course.augmented(own, augmented)
        outcome = Outcome("samples/s", take_turns(contenders, rounds))
    outcome.bars = [
        Bar(f"{one} / {other}", outcome.ratio(one, other), bar)
        for one, other, bar in (
            (ONE, FLOOR, 0.85),
            (TWO, FLOOR, 0.85),
            (ONE, LOADER, 1.0),
            (ONE, PUBLISHED, 1.5),
            (STORE, ONE, 5.0),
            (STORE, STORE_LOADER, 1.0),
            (STORE_AUGMENTED, SMALL_AUGMENTED, 2.5),
            (STORE_S3, STORE, 0.8),
        )
        if {one, other} <= outcome.figures.keys()
    ]
    if packed.served is not None:
        outcome.facts["S3 server"] = packed.served.server
    outcome.facts = {f"{AUGMENTED} / {name}": round(outcome.ratio(AUGMENTED, name), 3) for name in stores}
    outcome.facts |= _picture_facts(stores, len(course.steps) * BATCH) | {
        "augmentation": f"{1000 * statistics.median(augmenting):.0f} ms a sample on {device}, done in "
        f"'{AUGMENTED}' and with pictures only",
        "a sample on one core": split_of_time(plan, course.steps[: 2 * cores]),
        "samples timed a round": COUNTED * cores * BATCH,
    }
    return outcome


def _picture_facts(stores: Mapping[str, Pictures], samples: int) -> dict[str, Any]:
    sizes = {f"{name}, MB a sample": round(store.bytes / MEGABYTE / samples, 1) for name, store in stores.items()}
    how = f"JPEG quality {JPEG_QUALITY} in one indexed file, written before, read from memory; flow gets no colours"
    return sizes | {"stored pictures": how}


def picture_sizes(videos: Sequence[VideoRow]) -> dict[str, tuple[int, int]]:
    """(H, W) of stored pictures by contender: most videos' own, as published; and a smaller one where that is large."""
    (height, width), _ = Counter((video.height, video.width) for video in videos).most_common(1)[0]
    sizes = {PUBLISHED: (height, width)}
    shrink = SMALL_SIDE / min(height, width)
    return sizes | ({SMALL: (round(height * shrink), round(width * shrink))} if shrink < 1 else {})


def augment_batch(experiment: Experiment, batch: Batch, device: torch.device) -> None:
    """What a training step does to a batch before it encodes it, result dropped."""
    settings = augment_settings(experiment)
    for clip in (0, 1):
        params = draw(settings, [keys[clip] for keys in batch.keys], batch.full[:, clip])
        frames = {name: tensor[:, clip].to(device) for name, tensor in batch.clips.items()}
        augment(frames["rgb"], frames["flow"], params, settings)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def split_of_time(plan: TrainingPlan, steps: Sequence[int]) -> str:
    """Where the bare loop's time goes, from the same samples with and without flow, in this process."""
    rgb = rgb_only(plan, plan.experiment.clip.decode_size)
    seconds = {"rgb": 0.0, "both": 0.0}
    for step in steps:
        for name, requested in (("rgb", rgb), ("both", plan)):
            began = time.perf_counter()
            decode_share(requested, step, 0, 1)
            seconds[name] += (time.perf_counter() - began) / len(steps) / BATCH
    flow = seconds["both"] - seconds["rgb"]
    return f"{1000 * seconds['rgb']:.0f} ms decoding, {1000 * flow:.0f} ms flow"


def _take(batch: Batch) -> None:
    """A consumer with nothing to do."""


def _videos(scratch: Path, manifest: str | None) -> tuple[VideoRow, ...]:
    if manifest is None:
        made = make_dataset(scratch / "videos", train_per_class=6, query_per_class=0, frames=64, size=192)
        return tuple(index(scan(made)).videos)
    videos = tuple(Manifest.read(manifest).videos)
    if len(videos) < BATCH:
        raise UserError(f"manifest {manifest}: holds {len(videos)} usable videos; the bench needs {BATCH} or more")
    return videos


def _sizes(plan: TrainingPlan, manifest: str | None, cores: int) -> dict[str, Any]:
    clip = plan.experiment.clip
    return {
        "videos": f"{len(plan.videos)} of {manifest or 'the synthetic set'}",
        "sample": f"2 clips x {clip.frames} frames of {clip.decode_size[0]} x {clip.decode_size[1]}, RGB and "
        f"{plan.experiment.flow.algorithm} flow, seen at {clip.size}",
        "cores": cores,
    }


def _machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def _one_thread() -> Iterator[None]:
    """The consumer's own work takes one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
