"""`vicc flow`: optical flow of every video of a manifest, measured once on the whole cluster and stored."""

from __future__ import annotations

from dataclasses import dataclass

from vicc_ray.cluster.jobs import run_on_cluster
from vicc_ray.cluster.progress import Counter
from vicc_ray.cluster.session import job_session
from vicc_ray.config import MAX_PIXELS, FlowConfig
from vicc_ray.console import console, quiet, scratch_log
from vicc_ray.data.decode import bound_pixels
from vicc_ray.data.flow.algorithms import fingerprint, uses_torch
from vicc_ray.data.flow.codes import compute_codes
from vicc_ray.data.flow.store import FlowStore
from vicc_ray.data.guarded import MEMORY_BYTES, Failure
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.pictures import Interlaced
from vicc_ray.errors import UserError

# What opening and decoding a video may take, and each of its fields, before its process counts as hung. TV-L1 takes 0.25 s
# a field at 320 x 240 on one core.
START_SECONDS = 120.0
FIELD_SECONDS = 5.0


@dataclass(frozen=True)
class StoreVideo:
    """Measures and stores the flow of one video; what each process of the job runs."""

    store: FlowStore
    flow: FlowConfig
    device: str
    interlaced: Interlaced

    def __call__(self, row: VideoRow) -> int:
        """Stores the fields of a video; returns its frames."""
        store, flow = self.store, self.flow
        bound_pixels(max(MAX_PIXELS, row.width * row.height))  # whoever indexed it has decided
        how = (flow.algorithm, store.size, store.bound, flow.weights, self.device)
        store.write(row, compute_codes(row, *how, interlaced=self.interlaced, options=flow.options))
        return row.frames


@dataclass(frozen=True)
class FlowOptions:
    """Where and how the job runs; see the verb's help."""

    workers: int | None = None
    use_gpu: bool = False
    address: str | None = None
    verbose: bool = False
    max_refused: float = 0.01
    interlaced: Interlaced = "weave"


def store_flow(
    manifest: Manifest, folder: str, flow: FlowConfig, size: tuple[int, int], options: FlowOptions
) -> FlowStore:
    """Fill a flow store with what it lacks of the manifest's videos; the same call goes on after an interruption.

    UserError where the store holds other fields, and at the end where too many videos could not be done.
    """
    made = fingerprint(flow.algorithm, flow.weights, options.interlaced, flow.options)
    store = FlowStore.create(folder, made, flow.bound, size)
    left = store.missing(manifest.videos)
    files = len({row.content_hash for row in manifest.videos})
    there = files - len(left)
    if there:
        console.print(f"{folder}: {there} videos are there already")
    failures: list[tuple[str, str]] = []
    if left:
        device = "cuda" if options.use_gpu else "cpu"
        function = StoreVideo(store, flow, device, options.interlaced)
        with (
            quiet(scratch_log("flow"), options.verbose),
            job_session(options.workers, options.use_gpu, options.address, options.verbose) as actors,
            Counter(f"{flow.algorithm} flow, frames", sum(row.frames for row in left)) as counter,
        ):
            memory = None if uses_torch(flow.algorithm) else MEMORY_BYTES
            jobs = run_on_cluster(function, left, actors, _seconds, 1 if options.use_gpu else 0, memory)
            for place, outcome in jobs:
                counter.advance(left[place].frames)
                if isinstance(outcome, Failure):
                    failures.append((left[place].video, outcome.reason))
    _report(folder, files, failures, options.max_refused)
    return store


def _seconds(row: VideoRow) -> float:
    return START_SECONDS + FIELD_SECONDS * row.frames


def _report(folder: str, videos: int, failures: list[tuple[str, str]], max_refused: float) -> None:
    for video, reason in failures:
        console.print(f"refused: {video}: {reason}")
    console.print(f"{folder}: {videos - len(failures)} videos stored, {len(failures)} refused")
    if len(failures) > max_refused * videos:
        raise UserError(
            f"{len(failures)} of {videos} videos have no flow, more than data.max_refused = {max_refused:g} allows; index "
            "them again, or raise data.max_refused"
        )
