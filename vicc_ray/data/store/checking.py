"""Whether an experiment and its stores fit each other, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.config import Decoded, Experiment
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pictures import RULES
from vicc_ray.data.rows import Rows
from vicc_ray.data.store.store import NAMES, PackedStore
from vicc_ray.errors import UserError


def store_of(experiment: Experiment, stream: Decoded) -> str | None:
    """Where an experiment reads a stream from; None: it is decoded, or measured, while streaming."""
    clip, flow = experiment.clip, experiment.flow
    if stream == "flow" and flow.source == "store":
        return flow.store
    return clip.store if clip.source == "store" else None


def from_videos(experiment: Experiment) -> Experiment:
    """The experiment for videos that are in none of its stores, as they are other ones than those that it learnt from."""
    sections = {name: getattr(experiment, name).model_copy(update={"source": "stream"}) for name in ("clip", "flow")}
    return experiment.model_copy(update=sections)


def with_absolute_stores(experiment: Experiment) -> Experiment:
    """The experiment with stores that mean the same in every process: those of Ray have other folders to work in."""
    sections = {
        name: getattr(experiment, name).model_copy(update={"store": storage.absolute(where)})
        for name in ("clip", "flow")
        if (where := getattr(experiment, name).store) is not None
    }
    return experiment.model_copy(update=sections)


def open_stores(experiment: Experiment, streams: Sequence[Decoded] = ("rgb", "flow")) -> dict[str, PackedStore]:
    """The packed stores that an experiment's clips are read from, their indexes read: to hand to the processes that read them."""
    found: dict[str, PackedStore] = {}
    for stream in streams:
        where = store_of(experiment, stream)
        if where is not None and experiment.clip.source == "store":
            if where not in found:
                found[where] = PackedStore.open(where)
            found[where].index(stream)
    return found


def see_stores(experiment: Experiment) -> None:
    """`UserError` where this machine cannot read a packed store that the experiment's clips come from; reads no index."""
    for stream in ("rgb", "flow"):
        where = store_of(experiment, stream)
        if where is not None and experiment.clip.source == "store":
            PackedStore.open(where)


def check_stored(
    experiment: Experiment, rows: Sequence[VideoRow], streams: Sequence[Decoded] = ("rgb", "flow")
) -> Rows:
    """The rows that the experiment's stores lack of these streams: none where nothing is read from a store.

    UserError where a store is absent, damaged, made from something else than the experiment wants, or lacks more than the share
    `max_refused` of the rows. Up to there `vicc pack` was content too: such a video is one that cannot be read. The library
    that measured flow may be another version than the one here: what is stored is what counts.
    """
    rows = Rows.of(rows)
    lacking = np.zeros(len(rows), bool)
    stores: dict[str, PackedStore] = {}
    for stream in streams:
        where = store_of(experiment, stream)
        if where is not None:
            name = "clip.store" if where == experiment.clip.store else "flow.store"
            if where not in stores:
                stores[where] = PackedStore.open(where)
            store = stores[where]
            _check_header(experiment, name, store, stream)
            lacking |= _lacking(experiment, name, store, rows, stream)
    return rows.take(np.flatnonzero(lacking))


def _check_header(experiment: Experiment, name: str, store: PackedStore, stream: Decoded) -> None:
    header, where, flow = store.header, store.folder, experiment.flow
    size = experiment.clip.decode_size
    made = header.of(stream)
    if made is None:
        what = f"--flow {flow.algorithm}" if stream == "flow" else f"--size {size[0]}x{size[1]}"
        raise UserError(
            f"{name}: {where} holds no {NAMES[stream]}; add them with 'vicc pack MANIFEST --store {where} {what}'"
        )
    facts: list[tuple[str, object, object]] = [("clip.decode_size", list(header.size), list(size))]
    if stream == "flow":
        facts += [
            ("flow.algorithm", made["algorithm"], flow.algorithm),
            ("flow.options", made.get("options", {}), flow.options),
            ("flow.bound", header.bound, header.bound if flow.bound == "auto" else flow.bound),
            ("data.interlaced", made.get("interlaced", experiment.data.interlaced), experiment.data.interlaced),
        ]
    else:
        facts += [("data.interlaced", header.interlaced, experiment.data.interlaced)]
        if made.get("rules") != RULES:
            raise UserError(
                f"{name}: the pictures of {where} were made by rules of another version; pack them into another store"
            )
    for setting, there, here in facts:
        if there != here:
            raise UserError(f"{setting}: is {here}, the store {where} holds {there}; set what it has, or fill another")


def _lacking(experiment: Experiment, name: str, store: PackedStore, rows: Rows, stream: Decoded) -> NDArray[np.bool_]:
    store.check_shards([stream])
    lacking = store.lacks(rows, stream)
    most = experiment.data.max_refused
    if lacking.sum() > most * len(rows):
        setting = f"{name.partition('.')[0]}.source=stream"
        missing = rows.where(lacking)
        raise UserError(
            f"{name}: {store.folder} lacks the {NAMES[stream]} of {len(missing)} of {len(rows)} videos (the first: "
            f"{missing[0].id}); fill it with '{_command(experiment, store, stream)}', index again without what that refuses, "
            f"read the videos themselves ({setting}), or raise data.max_refused (now {most:g})"
        )
    return lacking


def _command(experiment: Experiment, store: PackedStore, stream: Decoded) -> str:
    size = experiment.clip.decode_size
    verb, flow = "pack", "--flow" if store.header.flow else ""
    if store.header.pictures is None:
        verb, flow = "flow", "--algorithm"
    what = f" {flow} {experiment.flow.algorithm}" if flow and (stream == "flow" or store.header.flow) else ""
    how = experiment.data.interlaced
    more = "" if how == "weave" else f" --set data.interlaced={how}"
    return f"vicc {verb} MANIFEST --store {store.folder} --size {size[0]}x{size[1]}{what}{more}"
