#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8.1.2): an FFV1 decoder has to be told the size of the pictures before its first packet; others find it out.
#
# Packets kept without a container (in a record file, a database, a shard) are decoded by CodecContext.create(name, "r") and
# decode(Packet(data)). H.264, AV1 and MJPEG write the size of the picture into the stream, and their decoders need nothing else.
# FFV1's decoder wants it from its caller, who has it from the container as a rule. Of 8 frames of 128x96, yuv420p, seen:
#
#   encoder    decoder   extradata   given to the decoder   result
#   ffv1       ffv1      42 bytes    extradata              InvalidDataError at avcodec_open2
#   ffv1       ffv1      42 bytes    extradata and size     8 frames, lossless
#   ffv1       ffv1      42 bytes    size                   InvalidDataError at avcodec_send_packet
#   libx264    h264      none        nothing                8 frames of 128x96, the same as with the size
#   mjpeg      mjpeg     none        nothing                8 frames of 128x96, the same as with the size
#   libsvtav1  libdav1d  none        nothing                8 frames of 128x96, the same as with the size
#
# The error says "Invalid data found when processing input", which reads as damaged data: it is raised before any packet is looked at.
# So who stores FFV1 packets by themselves keeps the coded width and height (and the extradata) beside them; the pixel format is not
# needed.
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cat > "$work/try.py" <<'PYTHON'
import sys
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT, FRAMES = 128, 96, 8


def pictures(pixels):
    """Moving gradients with a little noise."""
    noise = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    for time in range(FRAMES):
        colours = np.stack([2 * x, 2 * y + 8 * time, x + y + 4 * time], axis=-1) % 256
        shown = np.clip(colours + noise.integers(-6, 7, colours.shape), 0, 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(format=pixels)
        frame.pts = time
        yield frame


def encoded(name, pixels, options):
    encoder = av.CodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, pixels
    encoder.time_base, encoder.framerate, encoder.options = Fraction(1, 25), Fraction(25), options
    packets = [bytes(packet) for frame in [*pictures(pixels), None] for packet in encoder.encode(frame)]
    return packets, encoder.extradata


def decoded(name, packets, extradata=None, sized=False):
    """The frames, or the error and the call that it names."""
    decoder = av.CodecContext.create(name, "r")
    if extradata:
        decoder.extradata = extradata
    if sized:
        decoder.width, decoder.height = WIDTH, HEIGHT
    try:
        frames = [frame for data in packets for frame in decoder.decode(av.Packet(data))]
        return [frame.to_ndarray() for frame in [*frames, *decoder.decode(None)]]
    except av.error.InvalidDataError as error:
        return f"{type(error).__name__} at {error.filename.split('(')[0]}"


def same(some, others):
    return len(some) == len(others) == FRAMES and all(np.array_equal(*pair) for pair in zip(some, others, strict=True))


print("av", av.__version__, "with FFmpeg", av.ffmpeg_version_info)
source = [frame.to_ndarray() for frame in pictures("yuv420p")]
packets, extradata = encoded("ffv1", "yuv420p", {})
seen = [len(extradata), decoded("ffv1", packets, extradata), decoded("ffv1", packets, sized=True)]
lossless = same(decoded("ffv1", packets, extradata, sized=True), source)
print("ffv1 with", len(extradata), "bytes of extradata:", seen[1])
print("ffv1 with the size:", seen[2])
print("ffv1 with both:", "lossless" if lossless else "NOT lossless")
right = lossless and seen == [42, "InvalidDataError at avcodec_open2", "InvalidDataError at avcodec_send_packet"]
for encoder, decoder, pixels, options in (
    ("libx264", "h264", "yuv420p", {}),
    ("mjpeg", "mjpeg", "yuvj420p", {}),
    ("libsvtav1", "libdav1d", "yuv420p", {"preset": "12"}),
):
    packets, extradata = encoded(encoder, pixels, options)
    bare, sized = decoded(decoder, packets), decoded(decoder, packets, sized=True)
    alike = not isinstance(bare, str) and same(bare, sized) and bare[0].shape == (HEIGHT * 3 // 2, WIDTH)
    outcome = bare if isinstance(bare, str) else f"{len(bare)} frames of {bare[0].shape[1]}x{bare[0].shape[0] * 2 // 3}"
    alone = f"{decoder} of {encoder} (extradata: {extradata}) with nothing:"
    print(alone, outcome + (", as with the size" if alike else ", OTHERWISE than with the size"))
    right = right and alike and extradata is None
sys.exit(not right)
PYTHON
# SVT-AV1 tells its settings on stderr: errors alone are wanted.
SVT_LOG=1 "$work/venv/bin/python" "$work/try.py" && echo "as described: FFV1 alone needs the size"
