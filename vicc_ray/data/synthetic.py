"""The embedded motion data sets: small H.264 videos of classes that differ in motion only (`motion_sets`).

Letters: T frames, H = W = size.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from vicc_ray.data.drawing import Frames
from vicc_ray.data.motion_sets import MOTION_SETS, MotionSet
from vicc_ray.errors import UserError

SPLITS = ("train", "query")
PLAIN = "plain"  # the quickstart's set of motions

RECIPE = 1
"""Raised whenever the pixels for the same settings change, so that an old folder is not taken for a new one."""

FINISHED = "dataset.json"
STARTED = "unfinished.json"
VIDEOS_WORTH_A_PROCESS = 50


@dataclass(frozen=True)
class Settings:
    """What the pixels depend on; `dataset.json` keeps it."""

    train_per_class: int
    query_per_class: int
    frames: int
    size: int
    fps: int
    seed: int
    motions: str = PLAIN

    @property
    def motion_set(self) -> MotionSet:
        """The classes, and how their videos are drawn."""
        return MOTION_SETS[self.motions]

    def facts(self) -> dict[str, Any]:
        """As a record has them: folders of before there were several sets of motions name none."""
        found = asdict(self)
        if self.motions == PLAIN:
            del found["motions"]
        return found

    def check(self) -> None:
        """Raise `UserError` naming the first value that no data set can have."""
        lowest = {"train_per_class": 1, "query_per_class": 0, "frames": 2, "size": 16, "fps": 1, "seed": 0}
        if self.motions not in MOTION_SETS:
            raise UserError(f"synthetic data: motions is {self.motions}; there are {', '.join(MOTION_SETS)}")
        for name in lowest:
            value = getattr(self, name)
            if value < lowest[name]:
                raise UserError(f"synthetic data: {name} is {value}; it must be at least {lowest[name]}")
        if self.size % 2:
            raise UserError(f"synthetic data: size is {self.size}; it must be even (4:2:0 video)")

    def fingerprint(self) -> str:
        """SHA-256 over the settings and the recipe's number, in hexadecimal."""
        text = json.dumps({"recipe": RECIPE, "classes": self.motion_set.classes, **self.facts()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def videos(self) -> Iterator[VideoKey]:
        """Every video of the set, training videos first."""
        for split, count in zip(SPLITS, (self.train_per_class, self.query_per_class), strict=True):
            for label in self.motion_set.classes:
                for number in range(1, count + 1):
                    yield VideoKey(self.seed, split, label, number, self.motions)


@dataclass(frozen=True)
class VideoKey:
    """One video's name in the set; its pixels are a function of this and of frame count and size."""

    seed: int
    split: str
    label: str
    number: int
    motions: str = PLAIN

    @property
    def path(self) -> str:
        """Relative POSIX path, UCF101's manner of naming: every video is a group of its own."""
        return f"{self.split}/{self.label}/v_{self.label}_g{self.number:02d}_c01.mp4"

    @property
    def group(self) -> str:
        """Name of the source scene, which no other video of either split shares."""
        return f"{self.split}_{self.label}_g{self.number:02d}"

    def rng(self) -> np.random.Generator:
        """The video's own generator, independent of every other video's."""
        label = MOTION_SETS[self.motions].classes.index(self.label)
        words = [self.seed, SPLITS.index(self.split), label, self.number]
        # Keys of one length differ in their last word; a set besides the first has one word more.
        return np.random.default_rng(words + ([list(MOTION_SETS).index(self.motions)] if self.motions != PLAIN else []))

    def rate(self) -> float:
        """Its frame rate as a multiple of the set's."""
        rates = MOTION_SETS[self.motions].rates
        return rates[int(self.rng().spawn(1)[0].integers(len(rates)))]


def make_clip(key: VideoKey, frames: int, size: int) -> Frames:
    """Draw one video of the set before compression: uint8 RGB [T, H, W, 3], as many `frames` more as its rate is higher."""
    return MOTION_SETS[key.motions].draw(key.rng(), key.label, frames, size, key.rate())


def write_mp4(path: Path, clip: Frames, fps: int) -> None:
    """Encode uint8 RGB [T, H, W, 3] as H.264 (yuv420p, a key frame every 6), whole or not at all.

    The same build of the encoder writes the same bytes: one thread, no time stamp of the writing, and no macroblock tree, whose
    assembler took what lay in memory beside small pictures into its decisions (libx264 of PyAV 18.1: a third of the files).
    """
    part = path.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(part), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "h264",
            rate=fps,
            options={"crf": "20", "preset": "veryfast", "threads": "1", "sc_threshold": "0", "x264-params": "mbtree=0"},
        )
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 6
        stream.codec_context.time_base = Fraction(1, fps)
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    os.replace(part, path)


def make_dataset(
    folder: Path,
    *,
    train_per_class: int = 50,
    query_per_class: int = 20,
    frames: int = 20,
    size: int = 64,
    fps: int = 12,
    seed: int = 0,
    workers: int = 2,
    motions: str = PLAIN,
) -> Path:
    """Make the data set under `folder` and return the path of its `videos.csv`.

    Writes `{split}/{class}/v_{class}_gNN_c01.mp4`, then `videos.csv` (video, label, split, group; paths relative to
    `folder`), then `dataset.json`. `motions` names one of `MOTION_SETS`. A whole set of the same settings is left as it is, an
    interrupted one is finished. `workers` processes share the work and change no pixel.

    Raises `UserError` for an impossible setting and for a folder that holds something else.
    """
    settings = Settings(train_per_class, query_per_class, frames, size, fps, seed, motions)
    settings.check()
    if workers < 1:
        raise UserError(f"synthetic data: workers is {workers}; it must be at least 1")
    folder = Path(folder)
    finished = _claim(folder, settings)
    table = folder / "videos.csv"
    missing = [key for key in settings.videos() if not (folder / key.path).is_file()]
    if finished and not missing and table.is_file():
        return table
    _write_videos(folder, missing, settings, workers)
    _write_csv(table, settings)
    _write_json(folder / FINISHED, settings)
    (folder / STARTED).unlink(missing_ok=True)
    return table


def _claim(folder: Path, settings: Settings) -> bool:
    """Say whether `folder` holds a finished set of these settings; mark it as begun where it holds none."""
    marks = [folder / name for name in (FINISHED, STARTED) if (folder / name).is_file()]
    for mark in marks:
        _check_mark(mark, settings)
    if not marks:
        taken = [name for name in (*SPLITS, "videos.csv") if (folder / name).exists()]
        if taken:
            raise UserError(
                f"{folder}: holds {taken[0]!r} but no {FINISHED}, so it is no synthetic data set; choose another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / STARTED, settings)
    return (folder / FINISHED).is_file()


def _check_mark(mark: Path, settings: Settings) -> None:
    """Raise `UserError` unless the settings in the JSON file `mark` are these, naming the first that differs."""
    try:
        found = json.loads(mark.read_text())
        recorded, fingerprint = dict(found["settings"]), found["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{mark}: no record of a synthetic data set ({error}); delete the folder and run again"
        ) from error
    recorded.setdefault("motions", PLAIN)
    for name, wanted in asdict(settings).items():
        if recorded.get(name) != wanted:
            raise UserError(
                f"{mark}: the set was made with {name} = {recorded.get(name)}, but {wanted} is requested; "
                "choose another folder or delete this one"
            )
    if fingerprint != settings.fingerprint():
        raise UserError(f"{mark}: the set was made by another version of vicc_ray; delete the folder and run again")


def _write_json(path: Path, settings: Settings) -> None:
    """Record the settings and their fingerprint, whole or not at all."""
    record = {
        "settings": settings.facts(),
        "classes": settings.motion_set.classes,
        "recipe": RECIPE,
        "fingerprint": settings.fingerprint(),
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(path)


def _write_csv(path: Path, settings: Settings) -> None:
    """Write the table that `vicc index` reads, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video", "label", "split", "group"))
        writer.writerows((key.path, key.label, key.split, key.group) for key in settings.videos())
    part.replace(path)


def _write_videos(folder: Path, keys: list[VideoKey], settings: Settings, workers: int) -> None:
    """Draw and encode the videos, in this process or, where that pays, in several."""
    workers = min(workers, len(keys) // VIDEOS_WORTH_A_PROCESS)
    if workers < 2:
        for key in keys:
            _write_video(folder, key, settings)
        return
    # Spawned, not forked: the caller may hold threads (torch, Ray, OpenCV) that a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        jobs = [pool.submit(_write_video, folder, key, settings) for key in keys]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_video(folder: Path, key: VideoKey, settings: Settings) -> None:
    clip = make_clip(key, settings.frames, settings.size)
    write_mp4(folder / key.path, clip, round(settings.fps * key.rate()))
