"""Where the flow of a clip comes from: computed from its decoded frames, read from a store, or taken from the video file.

Shapes: n fields; H x W decode size. Quantised fields are uint8 [n, H, W, 2] (`data.flow.algorithms.quantise`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import ClipConfig, FlowConfig
from vicc_ray.data.flow.algorithms import flow_algorithm, flow_of_frames, quantise
from vicc_ray.data.flow.contract import FileFlowAlgorithm, FlowAlgorithm
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.store.reading import EntryReader
from vicc_ray.data.store.store import PackedStore

Codes = NDArray[np.uint8]
Numbers = NDArray[np.int64]


class FlowSource(Protocol):
    """Quantised flow of some frames of a video, for one experiment; made once a reader.

    Attributes:
        needs_file: whether the video file is needed at all.
    """

    needs_file: bool

    def frames(self, origins: Numbers, video: VideoRow) -> Numbers:
        """The frames that have to be decoded for the fields that lead from the frames `origins` [n], ascending."""
        ...

    def fields(
        self, video: VideoRow, path: str, origins: Numbers, images: NDArray[np.uint8], numbers: Numbers
    ) -> Codes:
        """uint8 [n, H, W, 2] of the fields that lead from `origins`, ascending.

        path: of the file on this machine. images uint8 [m, H, W, 3] are the decoded frames of these `numbers` [m], ascending,
        those of `frames` among them.
        """
        ...


class ComputedFlow:
    """Computed from decoded frames."""

    needs_file = True

    def __init__(self, algorithm: FlowAlgorithm, bound: float) -> None:
        self.algorithm, self.bound = algorithm, bound

    def frames(self, origins: Numbers, video: VideoRow) -> Numbers:
        """Each origin and the frame after it."""
        return np.union1d(origins, np.minimum(origins + 1, video.last_frame))

    def fields(
        self, video: VideoRow, path: str, origins: Numbers, images: NDArray[np.uint8], numbers: Numbers
    ) -> Codes:
        """As `FlowSource`; zero motion in a video of one frame."""
        fields = []
        for run in np.split(origins, np.flatnonzero(np.diff(origins) > 1) + 1):
            first = int(np.searchsorted(numbers, run[0]))
            pictures = images[first : first + len(run) + 1]
            if len(pictures) == 1:
                pictures = np.repeat(pictures, 2, axis=0)
            fields.append(quantise(flow_of_frames(self.algorithm, pictures), self.bound))
        return np.concatenate(fields)


class StoredFlow:
    """Read from a flow store, which is opened with the first video."""

    needs_file = False

    def __init__(self, where: str) -> None:
        self.where = where
        self._reader: EntryReader | None = None

    def frames(self, origins: Numbers, video: VideoRow) -> Numbers:
        """None."""
        return np.empty(0, np.int64)

    def fields(
        self, video: VideoRow, path: str, origins: Numbers, images: NDArray[np.uint8], numbers: Numbers
    ) -> Codes:
        """As `FlowSource`."""
        if self._reader is None:
            self._reader = EntryReader(PackedStore.open(self.where))
        return self._reader.read(video, "flow", origins)


class FileFlow:
    """Motion that the video file holds."""

    needs_file = True

    def __init__(self, algorithm: FileFlowAlgorithm, bound: float, size: tuple[int, int]) -> None:
        self.algorithm, self.bound, self.size = algorithm, bound, size

    def frames(self, origins: Numbers, video: VideoRow) -> Numbers:
        """None."""
        return np.empty(0, np.int64)

    def fields(
        self, video: VideoRow, path: str, origins: Numbers, images: NDArray[np.uint8], numbers: Numbers
    ) -> Codes:
        """As `FlowSource`."""
        return quantise(self.algorithm.fields_of_file(path, origins, self.size, video.decoder), self.bound)


def flow_source(flow: FlowConfig, clip: ClipConfig) -> FlowSource:
    """The source that an experiment's flow settings name; UserError for an algorithm that cannot be made."""
    if flow.source == "store":
        assert flow.store is not None  # the configuration has checked it
        return StoredFlow(flow.store)
    algorithm = flow_algorithm(flow.algorithm, flow.weights, options=flow.options)
    if isinstance(algorithm, FileFlowAlgorithm):
        return FileFlow(algorithm, flow.pixels, clip.decode_size)
    return ComputedFlow(algorithm, flow.pixels)
