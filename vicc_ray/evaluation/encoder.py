"""A trained encoder in this process: videos in, vectors out. No Ray; decoding in a child process that may crash.

Shapes: n videos, w windows of a video, d feature size, D embedding size, T frames, H x W pixels.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.cluster.decode_actors import DecodeWindows, list_windows
from vicc_ray.config import Decoded, Experiment, Stream
from vicc_ray.data.augment import stream_input
from vicc_ray.data.cutting import named_row
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.motion_crop import motion_crops
from vicc_ray.data.store.checking import from_videos
from vicc_ray.errors import UserError
from vicc_ray.models.encoder_file import EncoderFile
from vicc_ray.models.planar import arrange

Frames: TypeAlias = NDArray[np.uint8]
Vectors: TypeAlias = NDArray[np.float32]
Video: TypeAlias = str | Path | Frames

WINDOWS_AT_A_TIME = 8


class Encoder:
    """A trained encoder with the settings that it was trained under: videos in, vectors out.

    Attributes:
        name: of the stage that it is from, for example RGB-2.
        stream: what it takes: rgb, or a motion stream, which is computed from the video.
        experiment: settings of clips, decoding and flow.
        device: where it computes; "cuda" where there is one, by default.
    """

    def __init__(self, file: EncoderFile, experiment: Experiment, name: str, device: str | None = None) -> None:
        self.file, self.experiment, self.name = file, from_videos(experiment), name
        self.stream: Stream = file.stream
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def __repr__(self) -> str:
        spec = self.file.spec
        return f"<Encoder {self.name}: {spec.backbone} of {self.stream}, {self.module.feature_dim} features>"

    @cached_property
    def module(self) -> torch.nn.Module:
        """The network, in eval mode on `device`: clips float32 [B, 3, T, size, size] -> embeddings [B, D] of unit length.

        `module.features` gives the pooled features [B, d] that retrieval uses.
        """
        return arrange(self.file.build(), self.experiment.train, self.device)

    def embed(
        self,
        videos: Video | Sequence[Video],
        *,
        output: Literal["features", "embedding"] = "features",
        windows: Literal["all", "centre"] = "all",
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Any:
        """Vectors of videos, without Ray, in this process (decoding in a child process that may crash).

        Args:
            videos: a file (path or URI), a part of one (`file.mp4@12.5-15`, seconds), frames uint8 [T, H, W, 3] (RGB, taken as
                consecutive), a list of these, or a folder.
            output: features: the pooled output of the backbone, which retrieval compares; embedding: the projection of it, of
                unit length, which training compares.
            windows: all: the mean over the windows that evaluation uses; centre: one window.
            on_error: raise: UserError for the first video that cannot be read; skip: a warning, and a row of NaN in a list, no
                entry for a folder.

        Returns:
            float32 [d] for one video; float32 [n, d] for a list, in its order; for a folder a dict from path to float32 [d],
            in the order of the paths. Of `embedding`, D in place of d.
        """
        if isinstance(videos, str | Path) and _is_folder(videos):
            paths = sorted(candidate.path for candidate in scan(str(videos), "flat"))
            vectors = self._embed(paths, output, windows, on_error)
            return {path: row for path, row in zip(paths, vectors, strict=True) if not np.isnan(row).any()}
        if isinstance(videos, str | Path | np.ndarray):
            return self._embed([videos], output, windows, "raise")[0]
        return self._embed(list(videos), output, windows, on_error)

    def _embed(self, videos: Sequence[Video], output: str, windows: str, on_error: str) -> Vectors:
        with _as_files(videos) as files:
            found = [self._vector(file, output, windows, on_error) for file in files]
        width = getattr(self.module, "feature_dim" if output == "features" else "embedding_dim")
        rows = [np.full(width, np.nan, np.float32) if row is None else row for row in found]
        return np.stack(rows) if rows else np.zeros((0, width), np.float32)

    def _vector(self, file: str, output: str, windows: str, on_error: str) -> Vectors | None:
        try:
            return self.embed_row(named_row(file), output, windows)
        except (UserError, VideoError, ValueError, OSError) as error:
            problem = f"{file}: {' '.join(str(error).split()).removeprefix(f'{file}: ')}"
            if on_error == "raise":
                raise UserError(problem) from error
            warnings.warn(f"left out: {problem}", stacklevel=4)
            return None

    def embed_row(self, row: VideoRow, output: str = "features", windows: str = "all") -> Vectors:
        """float32 [d]: the mean over the windows of a manifest's row; a mean of unit vectors is scaled to unit length again.

        UserError with the reason where the video cannot be read.
        """
        chosen = list_windows([row], self.experiment.clip, windows)
        decode = DecodeWindows([row], chosen, WINDOWS_AT_A_TIME, self.experiment, self._decoded)
        try:
            total = sum(
                self._encode(decode({"unit": [unit]}), output) for unit in range(-(-len(chosen) // WINDOWS_AT_A_TIME))
            )
        finally:
            decode.reader.close()
        mean: Vectors = (total / len(chosen)).astype(np.float32)
        return mean / np.float32(np.linalg.norm(mean)) if output == "embedding" else mean

    @property
    def _decoded(self) -> tuple[Decoded, ...]:
        return self.experiment.decoded_at_test([self.stream])

    @torch.inference_mode()
    def _encode(self, block: Mapping[str, Any], output: str) -> Any:
        """The sum over the windows of a block, float64 [d]."""
        reason = next((reason for reason in block["refused"] if reason), "")
        if reason:
            raise UserError(reason)
        clips = {name: torch.from_numpy(np.array(block[name])).to(self.device) for name in self._decoded}
        seen = motion_crops(clips, self.experiment.evaluate.motion_crop)
        x = stream_input(seen, self.stream, self.experiment.clip.size, self.experiment.augment.style)
        vectors = self.module.features(x) if output == "features" else self.module(x)  # type: ignore[operator]
        return vectors.double().sum(dim=0).cpu().numpy()


def _is_folder(where: str | Path) -> bool:
    name = str(where)
    return storage.is_folder(name) if storage.is_uri(name) else Path(name).is_dir()


@contextmanager
def _as_files(videos: Sequence[Video]) -> Iterator[list[str]]:
    """Every video as a file: frames are written as lossless RGB, so that they go the way that files go."""
    with tempfile.TemporaryDirectory(prefix="vicc-") as folder:
        yield [
            write_frames(video, Path(folder) / f"{number}.mkv")
            if isinstance(video, np.ndarray)
            else storage.absolute(str(video))
            for number, video in enumerate(videos)
        ]


def write_frames(frames: Frames, path: Path, fps: int = 25) -> str:
    """Write frames uint8 [T, H, W, 3] (RGB) as lossless video; UserError for arrays of another kind."""
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise UserError(
            f"frames {frames.dtype} {list(frames.shape)}: a video is uint8 [T, H, W, 3] in RGB, with 1 frame or more"
        )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        stream.time_base = Fraction(1, fps)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)
