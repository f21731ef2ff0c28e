"""Where a film's scenes begin, and how much moves in it: one pass over all pictures, at a small size.

Three numbers a frame are kept, so that a film of any length fits into memory, and what is asked of them (how short a
scene may be, which stretch is meant) costs no second pass. Frame i is the i-th picture that the file shows, as everywhere
(`vicc_ray.data.decode`).

A scene begins where the picture changes in a moment, nearly everywhere, and stays changed:

- in a moment: fast motion makes high scores for long, so a cut's score has to stand out from those around it. Fades and
  dissolves take many frames and are not looked for;
- nearly everywhere: a subtitle or a small picture in a corner appears in a moment too, so the quarter of the picture that
  changes most is left out. Coarse colours are compared, because details move within a scene;
- stays changed: the two pictures before a frame are compared with it and the next one, and the least of the four
  differences is the score: one bright or broken picture is unlike its neighbours, but these are like each other.

With two of the numbers it can also be said how much moves, so that stills can be left out.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.changes import Changes, by_second
from vicc_ray.data.decode import Indices, Timeline, VideoError, decode_from, open_video, timeline_of
from vicc_ray.data.pictures import Images, to_image

SMALL = (48, 64)  # (H, W) to which pictures are scaled while decoding; motion is counted at this size
COARSE = (12, 16)  # (H, W) of the colours of which cuts are made out
CALMEST = 0.75  # the share of these that counts, the least changed ones

MIN_FRAMES = 12
"""Frames that `FileChanges.cuts` keeps from cut to cut by default: about half a second."""
RATIO = 2.8  # of a cut's score to the mean of those around it
LEAST = 1.2  # score of a cut, of 255: another view of the same room makes 1 to 10, a camera at rest up to 0.5
NEIGHBOURS = 4  # changes on either side from which a cut has to stand out
REACH = 16  # frames within which these are looked for
REPEATED = 0.25  # a frame of a lower score shows the picture before it

MOVED_LEVELS = 16  # of 255; below lies the noise of cameras and of compression
HALF_SECOND = 0.5
MOST_BACK = 600  # frames kept for looking back half a second: time stamps can be absurd
ANY_RATE = 25.0  # frames a second of a file that tells none


@dataclass(frozen=True)
class FileChanges:
    """What changes from frame to frame in a file of n frames.

    `score`: float32 [n], 0..255, how far the picture's colours jump between frames i - 1 and i; 0 for frame 0.
    `moved`: float32 [n], 0..1, the share of the picture that is not as in frame `earlier[i]`. `earlier`: int32 [n], the
    latest frame that is half a second older; -1 near the start, where there is none and frame 0 stands in for it.
    """

    score: NDArray[np.float32]
    moved: NDArray[np.float32]
    earlier: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.score)

    def cuts(self, min_frames: int = MIN_FRAMES, ratio: float = RATIO, least: float = LEAST) -> list[int]:
        """The frames with which new scenes begin, ascending; frame 0 begins none.

        A cut's score is at least `least` (levels of 0..255) and at least `ratio` times the mean of the scores around it.
        Of two that are fewer than `min_frames` frames apart, the clearer one stays.
        """
        around = _around(self.score)
        found = np.flatnonzero((self.score >= least) & (self.score >= ratio * around))
        # Where nothing moves, a mean near 0 says nothing about which of two cuts is clearer.
        clearness = self.score[found] / np.maximum(around[found], least)
        return _apart(found[np.argsort(-clearness, kind="stable")].tolist(), min_frames)

    def motion(self, first: int, frames: int) -> float:
        """How much moves in the `frames` frames from `first` on: 0 (a still) to 1.

        It is the mean of the share of the picture that is not as half a second before. Where that moment lies before
        `first`, a cut may lie between: such frames count only where there are no others.
        """
        if first < 0 or frames < 1 or first + frames > len(self):
            raise ValueError(f"frames {first} to {first + frames - 1} are not all in a file of {len(self)} frames")
        moved, earlier = (values[first : first + frames] for values in (self.moved, self.earlier))
        inside = earlier >= first
        return float(np.mean(moved[inside] if inside.any() else moved, dtype=np.float64))


def find_changes(path: str) -> Changes:
    """What a manifest keeps of a local file: where its scenes begin, and how much moves in each second.

    Raises `VideoError` as `measure_changes`.
    """
    found = measure_changes(path)
    cuts = found.cuts()
    # The moment half a second before lies in another scene: a difference to that is no motion.
    begins = np.zeros(len(found), np.int64)
    for cut in cuts:
        begins[cut:] = cut
    timeline = timeline_of(path)
    seconds = timeline.seconds if len(timeline) == len(found) else np.arange(len(found)) / ANY_RATE
    return Changes(tuple(cuts), by_second(seconds, found.moved, found.earlier >= begins))


def scene_cuts(path: str, min_frames: int = MIN_FRAMES) -> list[int]:
    """The frames of a local video file with which new scenes begin; see `FileChanges.cuts`."""
    return measure_changes(path).cuts(min_frames)


def measure_changes(path: str, frames: int | None = None) -> FileChanges:
    """Decode a local video file once, by one thread, and measure what changes; `frames`: only that many from the start.

    Raises `VideoError` where decoding meets damage or ends before `frames`. Without `frames`, what is measured is what
    decoding shows, which can be less than the packets promise.
    """
    timeline = timeline_of(path)
    if not len(timeline):
        raise VideoError("no picture can be decoded")
    pictures = islice(decode_from(path, timeline, 0), frames)
    changes = changes_of((to_image(picture, SMALL) for picture in pictures), _steps_back(path, timeline))
    if not len(changes) or (frames is not None and len(changes) < frames):
        promised = len(timeline) if frames is None else frames
        raise VideoError(f"decoding ended after {len(changes)} of {promised} frames: the file is cut short or damaged")
    return changes


def changes_of(images: Iterable[Images], steps_back: Sequence[int] | Indices) -> FileChanges:
    """Measure uint8 RGB images [H, W, 3] of one size, in order; only the last half second of them is kept.

    `steps_back[i]`: how many frames before frame i the one half a second older lies, more than i where there is none; the
    last value holds for all frames after it.
    """
    scores, moved, earlier = array("f"), array("f"), array("i")
    coarse: deque[Images] = deque(maxlen=4)
    past: deque[Images] = deque()
    for index, image in enumerate(images):
        coarse.append(_coarse_colours(image))
        if index:
            # A score needs the picture after, so it is one frame late; the first is of frame 0, which follows nothing.
            scores.append(_jump(list(coarse)[:-2], list(coarse)[-2:]))
        past.append(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        back = min(int(steps_back[min(index, len(steps_back) - 1)]), MOST_BACK)
        while len(past) > back + 1:
            past.popleft()
        moved.append(_share_moved(past[0], past[-1]))
        earlier.append(max(index - back, -1))
    if coarse:
        scores.append(_jump(list(coarse)[-3:-1], list(coarse)[-1:]))
    return FileChanges(np.array(scores, np.float32), np.array(moved, np.float32), np.array(earlier, np.int32))


def _steps_back(path: str, timeline: Timeline) -> Indices:
    """For each frame, how many frames before it the latest one that is half a second older lies; int64 [n].

    Where there is none, the number leads to before frame 0.
    """
    seconds = timeline.seconds if timeline.exact else np.arange(len(timeline)) / _declared_rate(path)
    # Stamps are rounded, in some containers to milliseconds: a hair less than half a second is one.
    latest = np.searchsorted(seconds, seconds - HALF_SECOND + 0.002, side="right") - 1
    return np.asarray(np.arange(len(seconds)) - latest, np.int64)


def _declared_rate(path: str) -> float:
    with open_video(path) as (_, stream):
        return float(stream.average_rate or stream.guessed_rate or ANY_RATE)


def _coarse_colours(image: Images) -> Images:
    """Uint8 RGB [H, W, 3] -> uint8 L*a*b* [h, w, 3] of `COARSE` size: in this space distances are about as seen."""
    coarse = cv2.resize(image, COARSE[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(coarse, cv2.COLOR_RGB2LAB), np.uint8)


def _jump(before: list[Images], after: list[Images]) -> float:
    """The least difference, 0..255, between a picture before the boundary and one after it; 0.0 with none before."""
    return min((_difference(old, new) for old in before for new in after), default=0.0)


def _difference(old: Images, new: Images) -> float:
    """The mean over the channels and over the `CALMEST` share of the places; uint8 [h, w, 3] both."""
    places = cv2.absdiff(old, new).sum(axis=-1, dtype=np.int32).reshape(-1)
    calmest = max(int(CALMEST * places.size), 1)
    return int(np.partition(places, calmest - 1)[:calmest].sum()) / (calmest * int(old.shape[-1]))


def _share_moved(old: Images, new: Images) -> float:
    return int(np.count_nonzero(cv2.absdiff(old, new) > MOVED_LEVELS)) / new.size


def _around(score: NDArray[np.float32]) -> NDArray[np.float64]:
    """For each frame the mean score of the `NEIGHBOURS` nearest changes on either side, float64 [n].

    Frames that repeat the one before them are skipped: drawn films show each picture two to four times, and every new one
    would stand out from its repetitions. A change that is not within `REACH` counts as 0.
    """
    frames = np.arange(len(score))
    changes = np.flatnonzero(score >= REPEATED)
    total = np.zeros(len(score))
    for step in range(1, NEIGHBOURS + 1):
        left, right = changes[:-step], changes[step:]
        near = right - left <= REACH
        total[right[near]] += score[left[near]]
        total[left[near]] += score[right[near]]
    # Frame 0 has no score, so that frame 1 has no neighbour before it.
    count = np.clip(frames - 1, 0, NEIGHBOURS) + np.clip(len(score) - 1 - frames, 0, NEIGHBOURS)
    return np.asarray(total / np.maximum(count, 1), np.float64)


def _apart(candidates: list[int], min_frames: int) -> list[int]:
    """Of frames in order of preference those that keep `min_frames` from all that were preferred to them; ascending."""
    kept: list[int] = []
    taken: set[int] = set()
    for frame in candidates:
        if frame not in taken:
            kept.append(frame)
            taken.update(range(frame - min_frames + 1, frame + min_frames))
    return sorted(kept)
