"""`vicc index`: from a source of videos to a manifest, with every refusal named and counted."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.cluster.progress import Counter as Progress
from vicc_ray.config import MAX_PIXELS
from vicc_ray.console import console, quiet, scratch_log
from vicc_ray.data.cutting import STILL, Cutting, moved_share, parse_cut
from vicc_ray.data.guarded import Failure, run_guarded
from vicc_ray.data.layouts import Candidate, Found, scan
from vicc_ray.data.layouts.candidates import UNUSED
from vicc_ray.data.layouts.scanning import layout_of
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.probing import (
    FreshRows,
    Journal,
    check_named,
    find_known,
    labelled,
    places_of,
    probe_named,
    whole_files,
)
from vicc_ray.data.rows import Rows
from vicc_ray.errors import UserError
from vicc_ray.machine import usable_cpus

# Below this many videos Ray's own start takes longer than probing them in processes of this machine.
WORTH_A_CLUSTER = 256
PROBE_SECONDS = 60.0
CHECK_SECONDS = 3600.0  # every frame of a long video is decoded


@dataclass(frozen=True)
class IndexOptions:
    """How `vicc index` reads its source; see the verb's help."""

    layout: str = "auto"
    fold: int = 1
    split: str | None = None
    check: bool = False
    workers: int | None = None
    address: str | None = None
    verbose: bool = False
    clip: int | None = None  # frames; shorter videos are counted, where clips of that length will be taken
    max_pixels: int = MAX_PIXELS
    cut: str | None = None
    min_length: float | None = None
    max_length: float | None = None
    still: float | None = None

    @property
    def cutting(self) -> Cutting:
        """How a file becomes rows; UserError for a rule that is none."""
        return parse_cut(self.cut, self.min_length, self.max_length, self.still)


NO_OPTIONS = IndexOptions()


def index_videos(source: str, out: str | Path, options: IndexOptions = NO_OPTIONS) -> Manifest:
    """Probe the videos of a source, cut them where that is wished, and write their manifest; UserError where none can be read.

    A manifest that is there already holds what is known: only new and changed files are opened. An interrupted run
    leaves its journal beside the manifest and the next one goes on from it.
    """
    cutting = options.cutting
    found = scan(source, options.layout, options.split, options.fold)
    for candidate in found:
        storage.refuse_credentials(candidate.path, f"{source}: a video")
    for note in found.notes:
        console.print(f"note: {note}")
    with Journal(out) as journal:
        earlier, outdated = _known(out)
        facts = _probe(found, earlier, outdated, journal, options)
        manifest = Manifest(facts.rows(found, cutting), *_origin(found, options))
        del facts
        _report(source, out, manifest, found, options.clip, cutting)
        _report_kept_hashes(manifest, earlier)
        _report_copies(manifest)
        try:
            manifest.write(out)
        except OSError as error:
            raise UserError(
                f"{out}: cannot be written ({' '.join(str(error).split())[:200]}); what was found is kept in {journal.path}, so "
                "the same command goes on when it can be"
            ) from error
        journal.remove()
    return manifest


def manifest_json(out: str, manifest: Manifest) -> dict[str, Any]:
    """What `vicc index` wrote, for a program."""
    return {
        "manifest": out,
        "videos": len(manifest.videos),
        "parts": len(manifest.videos.where(manifest.videos.column("start").is_valid())),
        "splits": dict(manifest.splits),
        "classes": len(manifest.labels),
        "refused": [{"video": row.id, "reason": row.refused} for row in manifest.refused],
    }


@dataclass(frozen=True)
class _Facts:
    """What is known of the files: `files`, a row each in an order, and of each candidate the place of its file, int64 [n]."""

    files: Rows
    places: NDArray[np.int64]

    def rows(self, found: Found, cutting: Cutting) -> Iterable[VideoRow]:
        """The rows of every candidate, in order."""
        files = self.files.take(self.places)
        if not (cutting.cuts or cutting.needs_changes) and all(candidate.span is None for candidate in found):
            return labelled(files, found)
        return self._cut(found, cutting, files)

    @staticmethod
    def _cut(found: Found, cutting: Cutting, files: Rows) -> Iterator[VideoRow]:
        for candidate, row in zip(found, files, strict=True):
            own = replace(row, label=candidate.label, split=candidate.split, group=candidate.group)
            yield from cutting.rows(own, candidate.span)


def _probe(found: Found, earlier: Rows, outdated: bool, journal: Journal, options: IndexOptions) -> _Facts:
    """What is known of the candidates' files, after those are opened that are new or have changed."""
    files, places = _files_of(found)
    fresh = whole_files(Rows.chain([journal.rows(), *[earlier] * (not outdated)]))
    fresh = fresh.where(fresh.numbers("width") * fresh.numbers("height") <= options.max_pixels)
    fresh = _believed(fresh, options)
    known = find_known(files, fresh)
    new = FreshRows(files, np.flatnonzero(known < 0), _believed(earlier, options), journal)
    if len(new.paths) < len(files):
        console.print(f"{len(files) - len(new.paths)} of {len(files)} videos are known and unchanged")
    with Progress("checking videos" if options.check else "probing videos", len(new.paths)) as counter:
        for number, outcome in _probe_all(new.paths, options):
            new.add(number, outcome)
            counter.advance()
    return _Facts(new.beside(fresh, known), places)


def _files_of(found: Found) -> tuple[Sequence[Candidate], NDArray[np.int64]]:
    """A candidate of each file, and of each candidate the number of its file, int64 [n]."""
    if all(candidate.span is None for candidate in found):  # so each has a file of its own
        return found, np.arange(len(found))
    numbers: dict[str, int] = {}
    places = np.array([numbers.setdefault(candidate.path, len(numbers)) for candidate in found], np.int64)
    files = dict(zip(places.tolist(), found, strict=True))
    return [files[number] for number in range(len(files))], places


def _origin(found: Found, options: IndexOptions) -> tuple[str | None, int | None]:
    """The data set that the layout is one of, and its official split where the videos are placed by it."""
    layout = layout_of(found.layout)
    fold = options.fold if layout.dataset and layout.folds and not options.split else None
    return (found.layout if layout.dataset else None), fold


def _known(out: str | Path) -> tuple[Rows, bool]:
    """A row of each file of the manifest that is there, and whether an earlier version wrote it."""
    nothing = Rows.of(()), False
    try:
        if not storage.exists(str(out)):
            return nothing
    except OSError as error:
        raise UserError(f"{out}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    try:
        earlier = Manifest.read(out)
    except UserError as error:
        console.print(f"note: {error}; every video is probed again")
        return nothing
    if earlier.outdated:
        console.print(f"note: {out} was written by an earlier version; every video is probed again")
    rows = Rows.chain([earlier.videos, earlier.refused]) if len(earlier.refused) else earlier.videos
    return whole_files(rows), earlier.outdated


def _believed(earlier: Rows, options: IndexOptions) -> Rows:
    """The rows (one a file) to take as they are where the files are unchanged.

    Not those that the options want more of (every frame, every byte, scenes, times), nor those of one content hash by the
    earlier rule, which may be different videos.
    """
    cutting, partial = options.cutting, earlier.hash_is_partial()
    believed = np.ones(len(earlier), bool)
    if partial.any():
        counted = pc.value_counts(earlier.where(partial).texts("content_hash").combine_chunks())
        several = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
        believed &= ~np.asarray(pc.is_in(earlier.texts("content_hash"), value_set=several), bool)
    if options.check:
        believed &= earlier.numbers("checked") & ~partial
    if cutting.needs_changes:
        believed &= np.asarray(pc.not_equal(earlier.texts("changes"), ""), bool)
    if cutting.cuts:
        timed = pc.or_(
            pc.not_equal(earlier.texts("frame_table"), ""), pc.equal(earlier.texts("decoder"), "pyav-sequential")
        )
        believed &= np.asarray(timed, bool)
    return earlier.where(believed)


def _probe_all(paths: Sequence[str], options: IndexOptions) -> Iterator[tuple[int, VideoRow | Failure]]:
    """(place, row or failure) as they come, from a cluster where that is worth its start, else from processes here."""
    if not paths:
        return
    function = partial(
        check_named if options.check else probe_named,
        max_pixels=options.max_pixels,
        with_changes=options.cutting.needs_changes,
    )
    seconds = CHECK_SECONDS if options.check or options.cutting.needs_changes else PROBE_SECONDS
    if options.address is None and len(paths) < WORTH_A_CLUSTER:
        yield from run_guarded(function, paths, options.workers or usable_cpus(), seconds)
        return
    from vicc_ray.cluster.jobs import run_on_cluster
    from vicc_ray.cluster.session import job_session

    with (
        quiet(scratch_log("index"), options.verbose),
        job_session(options.workers, address=options.address, verbose=options.verbose) as actors,
    ):
        yield from run_on_cluster(function, paths, actors, lambda _: seconds)


def _report(source: str, out: str | Path, manifest: Manifest, found: Found, clip: int | None, cutting: Cutting) -> None:
    """What is in the manifest, what is not, and why."""
    for row in manifest.refused:
        console.print(f"refused: {row.id}: {row.refused}")
    _report_still(manifest, cutting)
    files = whole_files(manifest.videos)
    declared = files.numbers("declared_frames")
    for row in files.where((declared != 0) & (declared != files.numbers("frames"))):
        console.print(f"note: {row.video}: its header counts {row.declared_frames} frames, there are {row.frames}")
    if not manifest.videos:
        raise UserError(
            f"{source}: none of its {len(manifest.refused)} videos can be read; nothing was written{_where(source, found)}"
        )
    splits = ", ".join(f"{name} {count}" for name, count in manifest.splits.items())
    short = int((manifest.videos.numbers("frames") < (clip or 0)).sum())
    padded = f"{short} shorter than a clip of {clip} frames, " if short else ""
    parts = manifest.videos.where(manifest.videos.column("start").is_valid())
    of = pc.count_distinct(parts.texts("video")).as_py()
    what = f"videos and parts of videos ({len(parts)} of {of} files)" if parts else "videos"
    console.print(
        f"{out}: {len(manifest.videos)} {what} used ({splits}), {len(manifest.labels)} classes, {_lengths(manifest)}, {padded}"
        f"{len(manifest.refused)} refused, {sum(found.ignored.values())} other files passed over",
    )


def _report_still(manifest: Manifest, cutting: Cutting) -> None:
    """Each row in which nothing moves, and how many there are."""
    if cutting.still is None:
        return
    still = manifest.videos.where(pc.equal(manifest.videos.texts("split"), STILL))
    for row in still:
        console.print(f"still: {row.id}: {moved_share(row):.4f} of the picture moves")
    console.print(
        f"{len(still)} of {len(manifest.videos)} move less than --still {cutting.still:g}; they have the split '{STILL}', which "
        "neither trains nor is embedded unless it is named"
    )


def _lengths(manifest: Manifest) -> str:
    """How long the videos are: what clips have to fit into."""
    frames = np.sort(manifest.videos.numbers("frames"))
    if frames[0] == frames[-1]:
        return f"{frames[0]} frames each"
    return f"{frames[0]} to {frames[-1]} frames each (median {frames[(len(frames) - 1) // 2]})"


def _where(source: str, found: Found) -> str:
    """What a list's paths start from, for one whose videos are not found."""
    if found.layout not in ("csv", "list"):
        return ""
    return f" (relative paths start from the folder of the list: {posixpath.dirname(storage.absolute(source))})"


def _report_kept_hashes(manifest: Manifest, earlier: Rows) -> None:
    """Content hashes of the earlier rule that stay, and those of unchanged files that are others now."""
    partial = manifest.videos.where(manifest.videos.hash_is_partial())
    kept = pc.count_distinct(partial.texts("video")).as_py()
    if kept:
        console.print(
            f"note: {kept} videos keep the content hash of an earlier version (size, first and last MiB), which flow stores "
            "and runs know them by; --check hashes all of their bytes",
        )
    changed = _rehashed(manifest.videos, earlier)
    if changed:
        console.print(
            f"note: {len(changed)} unchanged videos have another content hash, as more of their bytes is read now "
            f"(the first: {changed[0].video}); flow stores and runs of the earlier manifest know them by the old one: "
            "'vicc flow' fills a store again, a run goes on with --set data.manifest=RUN/manifest.parquet",
        )


def _rehashed(rows: Rows, earlier: Rows) -> Rows:
    """The rows, one a file, whose file is what it was and whose content hash is not."""
    files = whole_files(rows)
    before = places_of(files.texts("video"), earlier)
    files = files.take(np.flatnonzero(before >= 0))
    earlier = earlier.take(before[before >= 0])
    same = (files.numbers("bytes") == earlier.numbers("bytes")) & (
        files.numbers("modified") == earlier.numbers("modified")
    )
    other = np.asarray(pc.not_equal(files.texts("content_hash"), earlier.texts("content_hash")), bool)
    return files.where(same & other & np.asarray(earlier.column("refused").is_null(), bool))


def _report_copies(manifest: Manifest) -> None:
    """Videos of the same content: on several sides, in several classes, or just twice."""
    crossing, mislabelled, others = [], [], []
    for rows in manifest.copies():
        sides = [row for row in rows if row.split != UNUSED]
        if len({row.split for row in sides}) > 1:
            crossing.append(sides)
        if len({row.label for row in rows}) > 1:
            mislabelled.append(rows)
        alike = sides or rows
        if len(alike) > 1 and len({(row.split, row.label) for row in alike}) == 1:
            others.append(alike)
    high = "; training videos are then among the queries, and recall too high"
    for found, what, where, why in (
        (crossing, "split", "in several splits", high),
        (mislabelled, "label", "under several labels", ""),
        (others, "video", "as others", ""),
    ):
        if found:
            count = sum(map(len, found))
            console.print(f"note: {count} videos have the same content {where}: {_pair(found[0], what)}{why}")


def _pair(rows: list[VideoRow], what: str) -> str:
    """Two of these rows that differ in something."""
    other = next(row for row in rows if getattr(row, what) != getattr(rows[0], what))
    details = ["" if what == "video" else f" ({what} {getattr(row, what)})" for row in (rows[0], other)]
    return f"{rows[0].id}{details[0]} and {other.id}{details[1]}"
