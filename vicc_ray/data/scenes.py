"""Where scenes begin in a file and what moves in it, from one decoding of all its pictures at a small size.

A picture begins a scene where it differs from the one before it by much more than the pictures around it do from theirs (the
rule of PySceneDetect's AdaptiveDetector), both point by point and in what colours it has: a shaking camera moves the points
and leaves the colours. A picture that is shown twice in a row, as in clips whose rate was raised, counts as none.

PySceneDetect itself is not used: its packages install an OpenCV over the one with TV-L1 that is needed here, and it finds fewer
cuts and more false ones (docs/benchmarks.md has the figures).

Legend: n frames of a file.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.changes import Changes, by_second
from vicc_ray.data.decode import VideoError, decode_from, timeline_of
from vicc_ray.data.pictures import Images, to_image

SIZE = (48, 64)  # H, W at which pictures are compared
BLUR = 2.0  # pixels of SIZE, sigma: noise and small movements are no scene
NEIGHBOURS = 6  # frames on each side that a change is compared with
POINTS_RATIO, COLOURS_RATIO = 2.25, 2.5  # a cut changes this many times as much as its neighbours do
POINTS_LEAST, COLOURS_LEAST = 8.0, 0.05  # a smaller change (of 255; of all points) is no cut
REPEATED = 0.5  # of 255: a picture that changes by less is shown again
BINS = 16  # of a colour's histogram
MOVED = 16  # of 255: a point that changes by more moves
APART = 0.5  # seconds between two pictures that are compared for what moves


@dataclass(frozen=True)
class FrameChanges:
    """What changes from frame to frame of a file; 0 for the first frame.

    points: float32 [n], mean difference (of 255) of a frame's points to those of the frame before. colours: float32 [n],
    difference (0 to 2) of their histograms. moved: float32 [n], share (0 to 1) of the picture that differs from half a second
    before. seconds: float64 [n], when each frame is shown.
    """

    points: NDArray[np.float32]
    colours: NDArray[np.float32]
    moved: NDArray[np.float32]
    seconds: NDArray[np.float64]

    def cuts(self) -> tuple[int, ...]:
        """The frames with which scenes begin, ascending, frame 0 left out."""
        changed = self.points > REPEATED
        found = (self.points >= POINTS_LEAST) & (self.colours >= COLOURS_LEAST)
        found &= self.points >= POINTS_RATIO * _around(self.points, changed)
        found &= self.colours >= COLOURS_RATIO * _around(self.colours, changed)
        return tuple(int(frame) for frame in np.flatnonzero(found) if frame)


def _around(values: NDArray[np.float32], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean of each value's neighbours [n], of those that are `counted` [n]; the first frame, without a change, is none."""
    weights = np.pad(counted.astype(np.float64), NEIGHBOURS)
    weights[NEIGHBOURS] = 0.0
    window = np.ones(2 * NEIGHBOURS + 1)
    window[NEIGHBOURS] = 0.0
    sums = np.convolve(np.pad(values.astype(np.float64), NEIGHBOURS) * weights, window, "valid")
    return sums / np.maximum(np.convolve(weights, window, "valid"), 1.0)


def find_changes(path: str) -> Changes:
    """Where scenes begin in a local file and what moves in each second; `VideoError` where it cannot be decoded."""
    changes = frame_changes(path)
    return Changes(changes.cuts(), by_second(changes.seconds, changes.moved))


def frame_changes(path: str) -> FrameChanges:
    """Decode a local file once and compare its pictures; a few numbers a frame are kept."""
    timeline = timeline_of(path)
    points, colours, moved = array("f"), array("f"), array("f")
    rate = (len(timeline) - 1) / max(float(timeline.seconds[-1]), 1e-6) if len(timeline) > 1 else 1.0
    gray: deque[Images] = deque(maxlen=max(round(APART * rate), 1))
    before: tuple[Images, NDArray[np.float64]] | None = None
    for frame in decode_from(path, timeline, 0):
        image = to_image(frame, SIZE)
        soft, histogram = cv2.GaussianBlur(image, (0, 0), BLUR), _histogram(image)
        points.append(0.0 if before is None else float(np.mean(cv2.absdiff(soft, before[0]))))
        colours.append(0.0 if before is None else float(np.abs(histogram - before[1]).sum()))
        light = cv2.cvtColor(soft, cv2.COLOR_RGB2GRAY)
        moved.append(float(np.mean(cv2.absdiff(light, gray[0]) > MOVED)) if gray else 0.0)
        gray.append(light)
        before = soft, histogram
    if before is None:
        raise VideoError("no picture can be decoded")
    if len(moved) > 1:
        moved[0] = moved[1]
    # A file whose packets promise another number of pictures than it shows has the times of an even rate.
    seconds = timeline.seconds if len(timeline) == len(points) else np.arange(len(points)) / rate
    found = [np.array(values, np.float32) for values in (points, colours, moved)]
    return FrameChanges(found[0], found[1], found[2], seconds)


def _histogram(image: Images) -> NDArray[np.float64]:
    """How much of a picture uint8 [H, W, 3] has which colour: float64 [3 * BINS], 1 in all, softened over neighbouring bins."""
    counts = [np.bincount((image[..., channel] // (256 // BINS)).ravel(), minlength=BINS) for channel in range(3)]
    shares = np.concatenate(counts) / image.size
    return np.convolve(shares, [0.25, 0.5, 0.25], "same")
