"""Packed stores of decoded clips to choose from: what encodes the pictures, and how their packets lie in files.

`Files`: one Matroska file a video, opened for each read. `Shards`: the packets of all videos end to end in a few large
files, which stay open, with a table of where each packet begins. Both hold the very same packets, and both give any
frames of a video in one go, decoding none of them twice.

Shapes: n frames, H rows, W columns; images are uint8 RGB [n, H, W, 3].
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.data.decode import Indices
from vicc_ray.data.pictures import Images

# Matroska counts milliseconds, so that a picture lasts a whole number of them.
RATE = 25
MILLISECONDS = 1000 // RATE
# A shard is closed by the video that makes it larger than this.
SHARD_BYTES = 256 << 20
# What one request to an object store fetches at least, where FFmpeg asks for bytes.
REMOTE_READ = 1 << 20
INDEX = "index.parquet"
LIMITED, FULL = 1, 2  # FFmpeg's numbers of the two ranges of Y, U and V


@dataclass(frozen=True)
class Codec:
    """Encoder, decoder and settings. `key_every`: decoding can start at each such frame."""

    name: str
    encoder: str
    decoder: str
    pixels: str
    key_every: int
    options: Mapping[str, str]
    range: int = LIMITED

    @property
    def folder(self) -> str:
        """A name for its folder."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())

    def lacks(self) -> str | None:
        """What this build of PyAV has not of it; None where it has all."""
        for name, mode in ((self.encoder, "w"), (self.decoder, "r")):
            try:
                av.codec.Codec(name, mode)
            except ValueError:
                return f"{'encoder' if mode == 'w' else 'decoder'} {name}"
        return None


_X264 = {"preset": "veryfast", "tune": "psnr", "qp": "14", "bf": "0", "sc_threshold": "0", "threads": "1"}
_PLAIN = {"x264-params": "cabac=0:no-deblock=1:weightp=0:rc-lookahead=0"}
_FULL = {"x264-params": "weightp=0:rc-lookahead=0"}
# FFmpeg counts this quality in 118ths; the flag makes it the same for all pictures.
_MJPEG = {"flags": "+qscale", "global_quality": str(2 * 118)}
_AV1 = {"preset": "8", "crf": "20", "svtav1-params": "lp=1"}
CODECS = (
    Codec("H.264 short GOP", "libx264", "h264", "yuv420p", 16, _X264 | _PLAIN),
    Codec("H.264 short GOP, CABAC, deblocked", "libx264", "h264", "yuv420p", 16, _X264 | _FULL),
    Codec("H.264 all intra", "libx264", "h264", "yuv420p", 1, _X264 | _PLAIN),
    Codec("H.264 short GOP, 4:4:4", "libx264", "h264", "yuv444p", 16, _X264 | _PLAIN),
    Codec("MJPEG", "mjpeg", "mjpeg", "yuvj420p", 1, _MJPEG, FULL),
    Codec("AV1", "libsvtav1", "libdav1d", "yuv420p", 16, _AV1),
    # Two controls: of the first all error is that of halved colour and its way back, the second has none at all.
    Codec("FFV1, 4:2:0", "ffv1", "ffv1", "yuv420p", 1, {"level": "3"}),
    Codec("FFV1, RGB", "ffv1", "ffv1", "bgr0", 1, {"level": "3"}, FULL),
)


class Colours:
    """RGB images to a codec's pictures and back. One a reader: what it has set up serves all pictures of one kind."""

    def __init__(self, pixels: str, size: tuple[int, int]) -> None:
        self.pixels, self.size = pixels, size
        self._reformatter = VideoReformatter()

    def picture(self, image: Images) -> Any:
        """uint8 [H, W, 3] as a picture of even width, whose new column repeats the one beside it."""
        width = image.shape[1]
        padded = np.ascontiguousarray(np.pad(image, ((0, 0), (0, width % 2), (0, 0)), mode="edge"))
        frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
        return self._reformatter.reformat(frame, format=self.pixels, interpolation="AREA", threads=1)

    def image(self, frame: Any) -> Images:
        """uint8 [H, W, 3] of a decoded picture."""
        if frame.format.name == "yuv420p":  # OpenCV's way is the faster one, but it has the limited range only
            whole = cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)
        else:
            # The fast way, which like OpenCV's repeats halved colour; both flags ACCURATE_RND and FULL_CHR_H_INT would
            # give MJPEG 1 dB more and take 3 ms a clip more. They change nothing of whole colour.
            whole = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        image: Images = whole[: self.size[0], : self.size[1]]
        return image


@dataclass(frozen=True)
class Encoded:
    """A video's packets in the order of its frames, the frames at which decoding can start, and the decoder's header."""

    packets: list[bytes]
    keys: Indices
    header: bytes
    seconds: float  # of converting and encoding


def encode(codec: Codec, images: Images, path: Path) -> Encoded:
    """Write uint8 [n, H, W, 3] as a Matroska file; RuntimeError where the packets are not one a frame, in order."""
    os.environ.setdefault("SVT_LOG", "1")  # else SVT-AV1 writes its settings to the screen for each video
    colours = Colours(codec.pixels, (images.shape[1], images.shape[2]))
    packets: list[bytes] = []
    stamps, keys, seconds = [], [], 0.0
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream(codec.encoder, rate=RATE, options=dict(codec.options))
        stream.height, stream.width, stream.pix_fmt = (
            images.shape[1],
            images.shape[2] + images.shape[2] % 2,
            codec.pixels,
        )
        context = stream.codec_context
        context.gop_size, context.thread_count, context.color_range = codec.key_every, 1, codec.range
        for number in range(len(images) + 1):
            started = time.perf_counter()
            frame = colours.picture(images[number]) if number < len(images) else None
            if frame is not None:
                frame.pts = number
            made = stream.encode(frame)
            seconds += time.perf_counter() - started
            for packet in made:  # copied before the container changes it
                keys += [len(packets)] if packet.is_keyframe else []
                stamps.append(packet.pts)
                packets.append(bytes(packet))
                container.mux(packet)
        header = context.extradata or b""
    if stamps != list(range(len(images))):
        raise RuntimeError(f"{codec.name}: the encoder's packets are not one a frame in order: {stamps[:40]}")
    return Encoded(packets, np.array(keys, np.int64), header, seconds)


class Packing:
    """Writes videos one after another in both layouts below a folder; call `close` after the last."""

    def __init__(self, codec: Codec, folder: Path) -> None:
        self.codec, self.folder = codec, folder
        (folder / "files").mkdir(parents=True)
        (folder / "shards").mkdir()
        self.seconds = 0.0
        self.frames = 0
        self._rows: list[dict[str, Any]] = []
        self._shard, self._place = 0, 0

    def add(self, images: Images) -> None:
        """The next video, uint8 [n, H, W, 3]."""
        encoded = encode(self.codec, images, self.folder / "files" / f"{len(self._rows):05d}.mkv")
        self.seconds += encoded.seconds
        self.frames += len(images)
        with (self.folder / "shards" / _shard_name(self._shard)).open("ab") as file:
            file.writelines(encoded.packets)
        sizes = [len(packet) for packet in encoded.packets]
        row = {"shard": self._shard, "offset": self._place, "sizes": sizes, "keys": encoded.keys}
        self._rows.append(row | {"header": encoded.header, "height": images.shape[1], "width": images.shape[2]})
        self._place += sum(sizes)
        if self._place > SHARD_BYTES:
            self._shard, self._place = self._shard + 1, 0

    def close(self) -> None:
        """Write the table of the shards: a row a video."""
        small = pa.list_(pa.int32())
        kinds = {"shard": pa.int32(), "offset": pa.int64(), "sizes": small, "keys": small, "header": pa.binary()}
        schema = pa.schema(kinds | {"height": pa.int32(), "width": pa.int32()})
        pq.write_table(pa.Table.from_pylist(self._rows, schema=schema), self.folder / "shards" / INDEX)


def _shard_name(number: int) -> str:
    return f"{number:05d}.packets"


class _Wanted:
    """Frames of a read, ascending, which take their images from the decoder's pictures as these come."""

    def __init__(self, numbers: Indices, colours: Colours) -> None:
        self.numbers, self.colours = numbers, colours
        self.images = np.empty((len(numbers), *colours.size, 3), np.uint8)
        self.found = 0

    def take(self, number: int, picture: Any) -> None:
        """A decoded picture, which may be one on the way to a wanted one."""
        if self.found < len(self.numbers) and number == self.numbers[self.found]:
            self.images[self.found] = self.colours.image(picture)
            self.found += 1

    def whole(self) -> Images:
        """The images uint8 [n, H, W, 3]; RuntimeError where some are lacking."""
        if self.found < len(self.numbers):
            raise RuntimeError(f"frame {self.numbers[self.found]} did not come")
        return self.images


class Files:
    """One Matroska file a video below a folder or URI."""

    def __init__(self, codec: Codec, folder: str, size: tuple[int, int]) -> None:
        self.codec, self.folder = codec, storage.join(folder, "files")
        self.colours = Colours(codec.pixels, size)

    def decoder(self) -> str:
        """What FFmpeg reads the first file with."""
        with self._opened(0) as (_, stream):
            return str(stream.codec_context.codec.name)

    def read(self, video: int, frames: Indices) -> Images:
        """Frames of a video: int64 [n], ascending -> uint8 [n, H, W, 3]."""
        wanted = _Wanted(frames, self.colours)
        # Two frames further apart than keys are have a key between them; nearer ones may have none.
        runs = np.split(frames, np.flatnonzero(np.diff(frames) > self.codec.key_every) + 1)
        with self._opened(video) as (container, stream):
            for run in runs:
                container.seek(int(run[0]) * MILLISECONDS, stream=stream)
                for picture in container.decode(stream):
                    number = picture.pts // MILLISECONDS
                    wanted.take(number, picture)
                    if number >= run[-1]:
                        break
        return wanted.whole()

    @contextmanager
    def _opened(self, video: int) -> Iterator[tuple[Any, Any]]:
        name = storage.join(self.folder, f"{video:05d}.mkv")
        with ExitStack() as stack:
            local = storage.local_path(name)
            if local is not None:
                container = stack.enter_context(av.open(local, format="matroska"))
            else:
                system, remote = storage.open_filesystem(name)
                file = stack.enter_context(system.open_input_file(remote))
                container = stack.enter_context(av.open(file, format="matroska", buffer_size=REMOTE_READ))
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            yield container, stream


@dataclass(frozen=True)
class _Entry:
    """Where a video's packets are: frame i's from `starts[i]` to `starts[i + 1]` of a shard."""

    shard: int
    starts: Indices
    keys: Indices
    header: bytes
    coded: tuple[int, int]

    def runs(self, frames: Indices) -> list[tuple[int, int]]:
        """Stretches of packets [first, last] that these frames need; each begins at a key, none overlap."""
        keys = self.keys[np.searchsorted(self.keys, frames, side="right") - 1]
        cuts = np.flatnonzero(keys[1:] > frames[:-1] + 1) + 1
        return [(int(k[0]), int(f[-1])) for k, f in zip(np.split(keys, cuts), np.split(frames, cuts), strict=True)]


class Shards:
    """Packets in large files below a folder or URI, which stay open; a decoder is kept and flushed between stretches."""

    def __init__(self, codec: Codec, folder: str, size: tuple[int, int]) -> None:
        self.codec, self.folder = codec, storage.join(folder, "shards")
        self.colours = Colours(codec.pixels, size)
        table = storage.parquet_table(storage.read_bytes(storage.join(self.folder, INDEX)))
        self.entries = [_entry(row) for row in table.to_pylist()]
        self._files: dict[int, Any] = {}
        self._decoders: dict[tuple[bytes, tuple[int, int]], Any] = {}

    def read(self, video: int, frames: Indices) -> Images:
        """Frames of a video: int64 [n], ascending -> uint8 [n, H, W, 3]. One range of a shard is read for each stretch."""
        entry = self.entries[video]
        wanted = _Wanted(frames, self.colours)
        decoder = self._decoder(entry)
        for first, last in entry.runs(frames):
            start = entry.starts[first]
            data = self.bytes(entry.shard, int(start), int(entry.starts[last + 1] - start))
            decoder.flush_buffers()
            for number in range(first, last + 1):
                packet = av.Packet(data[entry.starts[number] - start : entry.starts[number + 1] - start])
                packet.pts = number
                for picture in decoder.decode(packet):
                    wanted.take(picture.pts, picture)
            if wanted.found < np.searchsorted(frames, last, side="right"):
                # A decoder that holds pictures back gives them when it is told that no more come.
                for picture in decoder.decode(None):
                    wanted.take(picture.pts, picture)
        return wanted.whole()

    def bytes(self, shard: int, offset: int, count: int) -> bytes:
        """A range of a shard."""
        if shard not in self._files:
            system, path = storage.open_filesystem(storage.join(self.folder, _shard_name(shard)))
            self._files[shard] = system.open_input_file(path)
        data: bytes = self._files[shard].read_at(count, offset)
        return data

    def _decoder(self, entry: _Entry) -> Any:
        known = (entry.header, entry.coded)
        if known not in self._decoders:
            decoder = av.CodecContext.create(self.codec.decoder, "r")
            decoder.thread_count = 1
            # FFV1's decoder does not open without them: its header names the slices' number, not the picture's size.
            decoder.height, decoder.width = entry.coded
            if entry.header:
                decoder.extradata = entry.header
            self._decoders[known] = decoder
        return self._decoders[known]


def _entry(row: Mapping[str, Any]) -> _Entry:
    starts = row["offset"] + np.concatenate([[0], np.cumsum(row["sizes"], dtype=np.int64)])
    coded = (row["height"], row["width"] + row["width"] % 2)
    return _Entry(row["shard"], starts, np.array(row["keys"], np.int64), row["header"], coded)


def pack(codec: Codec, videos: Sequence[Images], folder: Path) -> float:
    """Write videos uint8 [n, H, W, 3] in both layouts; milliseconds a frame of converting and encoding."""
    packing = Packing(codec, folder)
    for images in videos:
        packing.add(images)
    packing.close()
    return packing.seconds * 1000 / packing.frames


def folder_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.iterdir())


def peak_signal_noise(images: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """PSNR in dB of two clips of one shape [n, H, W, 3]; 99 for equal ones, which have no finite one."""
    error = float(np.mean((images.astype(np.float32) - wanted) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))
