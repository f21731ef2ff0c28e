"""`vicc index`: from a source of videos to a manifest, with every refusal named and counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vicc_ray import storage
from vicc_ray.config import ClipConfig
from vicc_ray.console import console, quiet, scratch_log
from vicc_ray.data.guarded import Failure, run_guarded
from vicc_ray.data.layouts import Found, scan
from vicc_ray.data.layouts.scanning import FOLDED, OFFICIAL
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.probing import Journal, check_named, probe_named, row_of, to_probe
from vicc_ray.errors import UserError
from vicc_ray.progress import Counter

# Below this many videos Ray's own start takes longer than probing them in processes of this machine.
WORTH_A_CLUSTER = 256
PROBE_SECONDS = 60.0
CLIP = ClipConfig().frames
CHECK_SECONDS = 3600.0  # every frame of a long video is decoded


@dataclass(frozen=True)
class IndexOptions:
    """How `vicc index` looks at its source; see the verb's help."""

    layout: str = "auto"
    fold: int = 1
    split: str | None = None
    check: bool = False
    workers: int | None = None
    address: str | None = None
    verbose: bool = False


NO_OPTIONS = IndexOptions()


def index_videos(source: str, out: str | Path, options: IndexOptions = NO_OPTIONS) -> Manifest:
    """Probe the videos of a source and write their manifest; UserError where none can be read.

    A manifest that is there already tells what is known: only new and changed files are opened. An interrupted run
    leaves its journal beside the manifest and the next one goes on from it.
    """
    found = scan(source, options.layout, options.split, options.fold)
    for candidate in found:
        storage.refuse_credentials(candidate.path, f"{source}: a video")
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    with Journal(out) as journal:
        known = _known(out) | journal.rows()
        if options.check:
            known = {video: row for video, row in known.items() if row.checked}
        rows, places = to_probe(found, known)
        if rows:
            console.print(f"{len(rows)} of {len(found)} videos are known and unchanged")
        with Counter("checking videos" if options.check else "probing videos", len(places)) as counter:
            for number, outcome in _probe_all([found[place].path for place in places], options):
                place = places[number]
                rows[place] = row_of(found[place], outcome)
                journal.add(rows[place])
                counter.advance()
        manifest = Manifest((rows[place] for place in sorted(rows)), *_origin(found, options))
        _tell(source, out, manifest, found)
        try:
            manifest.write(out)
        except OSError as error:
            raise UserError(
                f"{out}: cannot be written ({' '.join(str(error).split())[:200]}); what was found is kept in {journal.path}, so "
                "the same command goes on when it can be"
            ) from error
        journal.remove()
    return manifest


def _origin(found: Found, options: IndexOptions) -> tuple[str | None, int | None]:
    """The data set that the layout tells, and its official split where the videos are placed by it."""
    dataset = found.layout if found.layout in OFFICIAL else None
    return dataset, options.fold if dataset in FOLDED and not options.split else None


def _known(out: str | Path) -> dict[str, VideoRow]:
    try:
        if not storage.exists(str(out)):
            return {}
    except OSError as error:
        raise UserError(f"{out}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    try:
        earlier = Manifest.read(out)
    except UserError as error:
        console.print(f"note: {error}; every video is probed again", markup=False)
        return {}
    return {row.video: row for row in [*earlier.videos, *earlier.refused]}


def _probe_all(paths: Sequence[str], options: IndexOptions) -> Iterator[tuple[int, VideoRow | Failure]]:
    """(place, row or failure) as they come, from a cluster where that is worth its start, else from processes here."""
    if not paths:
        return
    function: Callable[[str], VideoRow] = check_named if options.check else probe_named
    seconds = CHECK_SECONDS if options.check else PROBE_SECONDS
    if options.address is None and len(paths) < WORTH_A_CLUSTER:
        yield from run_guarded(function, paths, options.workers or len(os.sched_getaffinity(0)), seconds)
        return
    from vicc_ray.data.jobs import run_on_cluster
    from vicc_ray.session import job_session

    with (
        quiet(scratch_log("index"), options.verbose),
        job_session(options.workers, address=options.address, verbose=options.verbose) as actors,
    ):
        yield from run_on_cluster(function, paths, actors, lambda _: seconds)


def _tell(source: str, out: str | Path, manifest: Manifest, found: Found) -> None:
    """What is in the manifest, what is not, and why."""
    for row in manifest.refused:
        console.print(f"refused: {row.video}: {row.refused}", markup=False)
    for row in manifest.videos:
        if row.declared_frames not in (0, row.frames):
            console.print(
                f"note: {row.video}: its header counts {row.declared_frames} frames, there are {row.frames}",
                markup=False,
            )
    if not manifest.videos:
        raise UserError(f"{source}: none of its {len(manifest.refused)} videos can be read; nothing was written")
    splits = ", ".join(f"{name} {count}" for name, count in manifest.splits.items())
    console.print(
        f"{out}: {len(manifest.videos)} videos used ({splits}), {len(manifest.labels)} classes, "
        f"{sum(row.frames < CLIP for row in manifest.videos)} shorter than {CLIP} frames (padded in clips of that length), "
        f"{len(manifest.refused)} refused, {sum(found.ignored.values())} other files passed over",
        markup=False,
    )
