"""From a probed file to the rows of a manifest: the part that a table names, the file whole, or cut; still parts named."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vicc_ray import storage
from vicc_ray.data.changes import decode_changes
from vicc_ray.data.decode import VideoError
from vicc_ray.data.layouts.candidates import Span
from vicc_ray.data.manifest import VideoRow, part_in
from vicc_ray.data.probing import probe_named
from vicc_ray.data.segments import cut_at, cut_evenly, part_between, part_of_frames
from vicc_ray.errors import UserError

STILL = "still"  # the split of rows in which nothing moves
LEAST_SECONDS, MOST_SECONDS = 1.0, 60.0  # of a scene, by default


@dataclass(frozen=True)
class Cutting:
    """How videos become rows.

    Attributes:
        every: seconds of a part; None: not cut evenly.
        scenes: whether files are cut where scenes begin, in parts from `least` to `most` seconds.
        still: share (0 to 1) of the picture below which nothing moves; None: not looked at. Such rows get the split `STILL`.
    """

    every: float | None = None
    scenes: bool = False
    least: float = LEAST_SECONDS
    most: float = MOST_SECONDS
    still: float | None = None

    @property
    def needs_changes(self) -> bool:
        """Whether files have to be decoded whole for it."""
        return self.scenes or self.still is not None

    @property
    def cuts(self) -> bool:
        """Whether a file becomes several rows."""
        return self.scenes or self.every is not None

    def rows(self, row: VideoRow, span: Span | None) -> list[VideoRow]:
        """The rows of a probed file, of which `span` is meant (None: all of it). A part that cannot be is a refused row."""
        if row.refused is not None:
            return [row]
        if span is not None:
            try:
                whole = [_part(row, span)]
            except VideoError as error:
                return [_refused(row, span, f"{span.row}: {error}" if span.row else str(error))]
        else:
            whole = [row]
        return [self._moving(part) for one in whole for part in self._cut(one)]

    def _cut(self, row: VideoRow) -> list[VideoRow]:
        if self.every is not None:
            return cut_evenly(row, self.every)
        changes = decode_changes(row.changes)
        if not self.scenes or changes is None:
            return [row]
        return cut_at(row, changes.cuts, self.least, self.most)

    def _moving(self, row: VideoRow) -> VideoRow:
        if self.still is None or row.refused is not None or not row.changes:
            return row
        return row if moved_share(row) >= self.still else replace(row, split=STILL)


def moved_share(row: VideoRow) -> float:
    """The mean share (0 to 1) of a row's picture that differs from half a second before; 0 where it was not measured."""
    changes = decode_changes(row.changes)
    return changes.motion(*row.span) if changes else 0.0


def named_row(name: str) -> VideoRow:
    """The probed row of a video, or of a part of one as `file.mp4@12.5-15` (seconds) names it.

    Raises `VideoError` with the reason, or what `probe_named` raises. A file of the whole name is that file.
    """
    part = None if storage.exists(name) else part_in(name)
    if part is None:
        return probe_named(name)
    video, start, end = part
    return part_between(probe_named(video), start, end)


def parse_cut(text: str | None, least: float | None, most: float | None, still: float | None) -> Cutting:
    """The rule of `--cut` (`10s`, `2.5`, `scenes`), of the lengths of scenes and of `--still`; UserError for others."""
    every, scenes = None, text == "scenes"
    if text is not None and not scenes:
        named = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:s|sec|seconds)?\s*", text)
        every = float(named[1]) if named else 0.0
        if not every:
            raise UserError(f"--cut {text}: is neither a length such as 10s nor 'scenes'")
    for name, value in (("--min-length", least), ("--max-length", most)):
        if value is not None and not scenes:
            raise UserError(f"{name}: is the length of a scene; it goes with --cut scenes")
    cutting = Cutting(every, scenes, least or LEAST_SECONDS, most or MOST_SECONDS, still)
    if cutting.most < cutting.least:
        raise UserError(f"--max-length {cutting.most:g}: is less than --min-length {cutting.least:g}")
    if still is not None and not 0 < still < 1:
        raise UserError(f"--still {still:g}: is a share of the picture, between 0 and 1, such as 0.02")
    return cutting


def _part(row: VideoRow, span: Span) -> VideoRow:
    if span.frames:
        return part_of_frames(row, int(span.start), int(span.end))
    return part_between(row, span.start, span.end)


def _refused(row: VideoRow, span: Span, reason: str) -> VideoRow:
    """A row that names a part which is not there; the file's facts stay, by which it need not be opened again."""
    rate = (row.fps or 1.0) if span.frames else 1.0
    start, end = span.start / rate, span.end / rate
    return replace(row, start=start, end=end, file_frames=row.frames, frames=0, refused=reason)
