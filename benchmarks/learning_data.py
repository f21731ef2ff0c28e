"""The videos of `vicc bench learning`: made or given, some held out of training, packed once; features that need no learning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import Decoded, Experiment
from vicc_ray.data.clips import evaluation_starts
from vicc_ray.data.flow.algorithms import fingerprint
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.packing import Packer, split_work
from vicc_ray.data.probing import index
from vicc_ray.data.samples import Clips
from vicc_ray.data.store.store import Header, PackedStore, picture_facts
from vicc_ray.data.store.writing import list_loose, seal
from vicc_ray.data.store_reader import StoreReader
from vicc_ray.data.synthetic import make_dataset
from vicc_ray.errors import UserError
from vicc_ray.metrics.retrieval import recall_at_k

HELD_OUT = "held_out"  # the split that recipes are judged on: part of the training videos, in no training
# Data sets that are made here, by the sets of motions that they show; the default first.
MADE = {"quickstart": "plain", "relations": "relations", "far": "far"}
# Of a made set, a class: as many training and query videos as `vicc quickstart` has, and as many held out as queries.
TRAIN, QUERY = 50, 20
SHARE = 0.2  # held out of given videos

Features = NDArray[np.float32]


def data_set(name: str, manifest: str | None, folder: Path) -> str:
    """The manifest of a made set, or of given videos, with `HELD_OUT` videos; made once below `folder`."""
    target = folder / "videos.parquet"
    if target.is_file():
        if manifest is not None and len(Manifest.read(manifest)) != len(Manifest.read(target)):
            raise UserError(f"{target}: is made of other videos than {manifest}; give another --folder")
        return str(target)
    if manifest is not None:
        found, share = Manifest.read(manifest), SHARE
    elif name in MADE:
        made: dict[str, Any] = {"train_per_class": TRAIN + QUERY, "query_per_class": QUERY, "frames": 16}
        table = make_dataset(folder / "data", **made, motions=MADE[name])
        found, share = index(scan(table), workers=2), QUERY / (TRAIN + QUERY)
    else:
        raise UserError(f"bench learning: --data {name} is unknown; known: {', '.join(MADE)}; or give --manifest")
    Manifest(hold_out(list(found.videos), share), found.dataset, found.fold).write(target)
    return str(target)


def hold_out(rows: list[VideoRow], share: float) -> list[VideoRow]:
    """The rows with the last groups of each class's training videos in the split `HELD_OUT`; a group is never split.

    UserError where a class has a single group, or videos have no label.
    """
    groups: dict[str, set[str]] = {}
    for row in rows:
        if row.split == "train":
            if row.label is None:
                raise UserError(f"{row.id}: has no label, which recipes cannot be judged without")
            groups.setdefault(row.label, set()).add(row.group or row.id)
    held = set[tuple[str, str]]()
    for label, names in groups.items():
        count = max(round(share * len(names)), 1)
        if count >= len(names):
            raise UserError(f"class {label}: has {len(names)} group of training videos; two or more are needed")
        held |= {(label, name) for name in sorted(names)[-count:]}
    return [
        replace(row, split=HELD_OUT) if row.split == "train" and (str(row.label), row.group or row.id) in held else row
        for row in rows
    ]


def packed(manifest: Manifest, experiment: Experiment, folder: Path) -> str:
    """The store of the manifest's videos at an experiment's size and flow, below `folder`; what is missing is packed."""
    flow, size = experiment.flow, experiment.clip.decode_size
    where = folder / f"store-{size[0]}x{size[1]}-{flow.algorithm}-{flow.pixels:g}"
    store = empty_store(experiment, str(where))
    rows = manifest.videos
    packer = Packer(store, flow, experiment.data.interlaced)
    for work in split_work(rows, _BOTH, np.stack([store.lacks(rows, stream) for stream in _BOTH], 1)):
        done = packer(work)
        if done.refused or done.not_written:
            raise UserError(f"{where}: {done.not_written or done.refused}")
    loose = sorted(list_loose(store))
    for stream in _BOTH:
        if keys := [key for key in loose if key.stream == stream]:
            seal(store, keys)
        store.forget(stream)
    return str(where)


def empty_store(experiment: Experiment, where: str) -> PackedStore:
    """A store of pictures and flow of an experiment's settings at `where`, with nothing in it yet; or the one that is there."""
    flow, interlaced = experiment.flow, experiment.data.interlaced
    made = json.loads(fingerprint(flow.algorithm, flow.weights, interlaced, flow.options))
    header = Header(experiment.clip.decode_size, interlaced, picture_facts(), made, float(flow.pixels))
    return PackedStore.create(where, header)


def windows(experiment: Experiment, rows: list[VideoRow], streams: tuple[Decoded, ...]) -> Iterator[Clips]:
    """All evaluation windows of each video, read from the experiment's store: uint8 [w, T, H, W, C] a stream."""
    clip = experiment.clip
    with closing(StoreReader(experiment)) as reader:
        for row in rows:
            yield reader.read(row, evaluation_starts(row.frames, clip.frames, clip.stride, "all"), streams)


def naive_recall(manifest: str, experiment: Experiment, split: str) -> dict[str, float]:
    """R@1 of features that nothing was learnt for, with the training videos as the gallery."""
    videos = Manifest.read(manifest)
    sides = [list(videos.select(name)) for name in ("train", split)]
    tables = [[naive_features(clips) for clips in windows(experiment, rows, _BOTH)] for rows in sides]
    labels = [[row.label for row in rows] for rows in sides]
    return {
        name: recall_at_k(
            np.stack([row[name] for row in tables[0]]),
            labels[0],
            np.stack([row[name] for row in tables[1]]),
            labels[1],
            (1,),
        )[1]
        for name in tables[0][0]
    }


def naive_features(clips: Mapping[Decoded, NDArray[np.uint8]]) -> dict[str, Features]:
    """Of a video's windows: shares of 64 colours, a thumbnail of 8 x 8, and shares of 16 directions x 4 speeds of flow."""
    rgb, flow = clips["rgb"], clips["flow"].astype(np.float32) - 127.5
    codes = (rgb // 64).astype(np.int64) @ np.array([16, 4, 1])
    height, width = (side // 8 * 8 for side in rgb.shape[2:4])
    mean = rgb[:, :, :height, :width].mean(axis=(0, 1))
    small = mean.reshape(8, height // 8, 8, width // 8, 3).mean(axis=(1, 3))
    speed, turn = np.hypot(flow[..., 0], flow[..., 1]), np.arctan2(flow[..., 1], flow[..., 0])
    direction = np.floor(turn * 8 / np.pi + 16.5).astype(np.int64) % 16
    fast = np.digitize(speed, (2.0, 8.0, 24.0))
    return {
        "naive: colours": _shares(codes, 64),
        "naive: thumbnail": small.ravel().astype(np.float32),
        "naive: flow histogram": _shares(direction * 4 + fast, 64),
    }


_BOTH: tuple[Decoded, ...] = ("rgb", "flow")


def _shares(codes: NDArray[np.int64], count: int) -> Features:
    """Square roots of the shares, whose cosine is that of two distributions' agreement (Bhattacharyya)."""
    found: Any = np.sqrt(np.bincount(codes.ravel(), minlength=count) / codes.size)
    return np.asarray(found, dtype=np.float32)
