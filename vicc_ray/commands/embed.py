"""`vicc embed`: a run and videos in, an archive of vectors out; what is there already is not made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.archive.embedding import embed_missing, make_embedding_plan, reasons
from vicc_ray.archive.store import Archive, ArchiveInfo, Maker, check_kind, create_archive
from vicc_ray.cluster.progress import Counter
from vicc_ray.cluster.resources import this_machine
from vicc_ray.cluster.session import ray_session
from vicc_ray.commands.index import IndexOptions, index_videos
from vicc_ray.config import STREAMS, Experiment, TrainConfig, WorkerRange, with_overrides
from vicc_ray.console import console, quiet, scratch_log
from vicc_ray.data.cutting import STILL
from vicc_ray.data.manifest import ALL, Manifest, VideoRow, is_manifest
from vicc_ray.data.rows import Rows
from vicc_ray.data.segments import cut_evenly
from vicc_ray.data.store.checking import check_stored
from vicc_ray.errors import UserError
from vicc_ray.evaluation.stored import Side, source_of
from vicc_ray.models.encoder_file import load_encoder
from vicc_ray.runs.encoders import EncoderOnDisk, encoder_settings, file_hash, finished_encoders, open_encoder
from vicc_ray.runs.folder import RunFolder

Streams = Literal["rgb", "flow", "both"]
MOST_WORKERS = 256  # on a cluster, where --workers does not say


@dataclass(frozen=True)
class EmbedOptions:
    """How `vicc embed` works; see the verb's help."""

    stream: Streams = "rgb"
    encoder: str | None = None
    windows: Literal["all", "centre"] = "all"
    every: float | None = None
    half: bool = False
    split: str | None = None
    cut: str | None = None
    workers: int | None = None
    address: str | None = None
    verbose: bool = False
    overrides: tuple[str, ...] = ()


NO_OPTIONS = EmbedOptions()


def embed_videos(run: str, source: str, out: str, options: EmbedOptions = NO_OPTIONS) -> Archive:
    """Embed the videos of a source into the archive `out`; the same call goes on after an interruption.

    UserError for what the reader has to change, before anything runs.
    """
    out = storage.absolute(out)
    storage.refuse_credentials(out, "--out")
    experiment, encoders = open_encoders_of(run, options)
    info = _info(encoders, experiment, options, source)
    check_kind(out, info)  # before anything is written
    rows = _rows(source, out, options)
    check_stored(experiment, rows, experiment.decoded_at_test(encoder.stream for encoder in encoders))
    info = replace(info, planned=len(rows))
    with storage.only_writer(out, "'vicc embed'"):
        archive = create_archive(out, info)
        encoders = [_kept(archive, encoder) for encoder in encoders]
        plan = make_embedding_plan(archive, rows, experiment, options.windows)
        _report_plan(archive, rows, plan.done)
        blocks = plan.blocks
        refused: Mapping[str, str] = {}
        if blocks:
            settings = train_settings(experiment, options.workers, options.address)
            with (
                quiet(scratch_log("embed"), options.verbose),
                ray_session(settings, options.address, options.verbose) as resources,
                Counter("embedding windows", sum(len(plan.of_block(block)) for block in blocks)) as counter,
            ):
                if options.address is not None and not resources.use_gpu:
                    # Of a cluster that shrinks to one CPU, a decode actor must not wait for ever for one of its own.
                    resources = replace(resources, decode_cpus=0)
                refused = embed_missing(archive, plan, encoders, experiment, resources, counter.advance)
    for line in reasons(refused):
        console.print(line)
    console.print(
        f"{out}: {len(archive)} vectors of {info.describe()}; {len(refused)} of {len(rows)} could not be read and are left out"
    )
    return archive


def open_encoders_of(run: str, options: EmbedOptions) -> tuple[Experiment, list[EncoderOnDisk]]:
    """The settings and the encoders that the options choose of a run's folder, or of one encoder's file."""
    if run.endswith(".safetensors"):
        file = load_encoder(Path(run))
        name = str(file.meta.get("name") or Path(run).stem)
        shared = storage.absolute(run)
        found = [EncoderOnDisk(name, Path(run), shared, file.stream, file_hash(run))]
        experiment = with_overrides(encoder_settings(file, run), options.overrides)
    else:
        folder = RunFolder.at(run)
        with folder.as_user_errors():
            folder.pull()
        experiment = folder.experiment(options.overrides)
        found = [open_encoder(folder, name) for name in _chosen(folder, options)]
    for encoder in found:
        if options.encoder is None and run.endswith(".safetensors") and not _is_wanted(encoder.stream, options.stream):
            raise UserError(f"--stream {options.stream}: {run} holds an encoder of {encoder.stream}")
    return experiment, found


def _is_wanted(stream: str, wanted: Streams) -> bool:
    return wanted == "both" or (stream == "rgb") == (wanted == "rgb")


def _chosen(folder: RunFolder, options: EmbedOptions) -> list[str]:
    """Names of the encoders: the named one, else the newest of each stream that is wanted."""
    names = list(finished_encoders(folder).values())
    if options.encoder is not None:
        if options.encoder not in names:
            raise UserError(f"--encoder {options.encoder}: {folder} has: {', '.join(names)}")
        return [options.encoder]
    titles = {
        "rgb": [STREAMS["rgb"].title],
        "flow": [kind.title for kind in STREAMS.values() if kind.motion],
    }
    wanted = ["rgb", "flow"] if options.stream == "both" else [options.stream]
    chosen = []
    for stream in wanted:
        own = [name for name in names if name.split("-")[0] in titles[stream] and not name.endswith("-0")]
        if not own:
            raise UserError(
                f"--stream {options.stream}: {folder} has no encoder of {stream}; it has: {', '.join(names)}"
            )
        chosen.append(own[-1])
    return chosen


def _rows(source: str, out: str, options: EmbedOptions) -> Rows:
    """The rows of a manifest, or of videos that are indexed first."""
    import pyarrow.compute as pc

    if is_manifest(source):
        if options.cut is not None:
            raise UserError("--cut: is for videos that are indexed; use --every SECONDS, or index again with --cut")
        manifest = Manifest.read(source)
    else:
        manifest = index_videos(
            source,
            storage.join(out, "_videos.parquet"),
            IndexOptions(cut=options.cut, workers=options.workers, address=options.address, verbose=options.verbose),
        )
    if options.split is not None:
        rows = manifest.select(options.split)
    else:
        rows = manifest.select(ALL)
        rows = rows.where(pc.not_equal(rows.texts("split"), STILL))
        still = len(manifest) - len(rows)
        if still:
            console.print(f"{still} rows of split '{STILL}' are left out; --split {ALL} embeds them too")
    every = options.every
    return rows if every is None else Rows.of(part for row in rows for part in cut_evenly(row, every))


def _info(encoders: Sequence[EncoderOnDisk], experiment: Experiment, options: EmbedOptions, source: str) -> ArchiveInfo:
    settings: dict[str, Any] = {"windows": options.windows, "every": options.every}
    for encoder in encoders:
        settings |= source_of(encoder, Side((), options.windows), experiment).protocol
    widths = {encoder.name: load_encoder(encoder.path).build().feature_dim for encoder in encoders}
    return ArchiveInfo(
        encoders=tuple(Maker(one.name, one.hash, one.stream, widths[one.name]) for one in encoders),
        settings=settings,
        experiment=experiment.model_dump(mode="json", exclude_defaults=True),
        half=options.half,
        source=storage.absolute(source) if storage.exists(source) else source,
    )


def _kept(archive: Archive, encoder: EncoderOnDisk) -> EncoderOnDisk:
    """The encoder as it lies in the archive, where its copy is made."""
    there = archive.encoder_file(encoder.name)
    if not storage.exists(there):
        storage.write_bytes(there, encoder.path.read_bytes())
    return replace(encoder, shared_name=there)


def _report_plan(archive: Archive, rows: Sequence[VideoRow], done: NDArray[np.bool_]) -> None:
    there = int(done.sum())
    if there:
        console.print(f"{there} of {len(rows)} are in {archive.folder} already")
    other = len(archive) - there
    if other > 0:
        console.print(f"note: {archive.folder} holds {other} more that the source does not name; they stay")


def train_settings(experiment: Experiment, workers: int | None = None, address: str | None = None) -> TrainConfig:
    """Workers and decode actors: as many of each as there are CPUs, so that neither waits for the other."""
    train = experiment.train
    if address is not None:
        return train.model_copy(update={"workers": WorkerRange(min=1, max=workers or MOST_WORKERS)})
    machine = this_machine()
    workers = workers or machine.cpus
    return train.model_copy(
        update={
            "workers": WorkerRange(min=1, max=workers),
            "decode_actors": None if machine.gpus and train.use_gpu else workers,
        }
    )
