#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8.1.2): yuv420p to rgb24 at the same size ignores the named interpolation; two flags together change it much.
#
# VideoFrame.reformat and to_ndarray(format="rgb24") take a fast way, which repeats each colour sample over 2x2 pixels and rounds
# roughly. Flags of swscale are combined into `interpolation`, as in Interpolation.BILINEAR | Interpolation.ACCURATE_RND, or as the
# int that this is; a string takes one name only. Pictures of 172x128 were made yuv420p once, with AREA, and brought back. PSNR in
# dB against the source, and the median ms a frame on one core (AMD EPYC, x86-64). "smooth" are coloured gradients. "hard" adds two
# rectangles, whose edges fall on even rows and columns, and a disc; "soft" is "hard" after a blur (sigma 1). Seen:
#
#   how                                        smooth  soft   hard   colour repeated  ms
#   default, and any of 9 algorithms by name   39.88   33.40  32.93  2x2              0.009
#   BILINEAR | FULL_CHR_H_INT                  39.88   33.40  32.93  2x2              0.009
#   BILINEAR | ACCURATE_RND                    40.64   35.42  30.46  2x1              0.06
#   BILINEAR | ACCURATE_RND | FULL_CHR_H_INT   51.96   38.65  29.93  no               0.10
#   BICUBIC | ACCURATE_RND | FULL_CHR_H_INT    51.51   44.27  30.71  no               0.16
#   POINT | ACCURATE_RND | FULL_CHR_H_INT      41.02   33.64  33.14  2x2              0.07
#   OpenCV 5.0.0.93, COLOR_YUV2RGB_I420        41.02   33.64  33.14  2x2              0.02
#
# - The default is 0.2 to 1.1 dB below OpenCV, which repeats colour too and rounds better: a flat (230, 40, 30) comes back as
#   (229, 38, 28) by default, as (230, 40, 29) from OpenCV and with both flags. POINT with both flags is OpenCV's quality.
# - FULL_CHR_H_INT alone changes nothing. ACCURATE_RND alone gains 1 to 2 dB on smooth and soft, loses 2.5 dB on hard, and darkens:
#   a flat grey of 128 becomes 126.
# - Both gain 5 to 12 dB on smooth and soft and lose 3 dB on hard, at some ten times the default's cost.
#
# So a named interpolation in reformat(format="rgb24") is no choice unless the size changes too, and trying the flags one by one
# hides what they do together.
#
# Exits with 0 while the order holds, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 opencv-python-headless==5.0.0.93
cat > "$work/try.py" <<'PYTHON'
import statistics
import sys
import time

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

WIDTH, HEIGHT = 172, 128
EXACT, FULL = Interpolation.ACCURATE_RND, Interpolation.FULL_CHR_H_INT
NAMES = "FAST_BILINEAR BILINEAR BICUBIC POINT AREA BICUBLIN GAUSS LANCZOS SPLINE".split()
cv2.setNumThreads(1)


def rounded(picture):
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def sources():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    waves = [np.sin(x / 23 + y / 41), np.sin(x / 31 - y / 19 + 2), np.cos(x / 17 + y / 37 + 1)]
    smooth = 127 + 110 * np.stack(waves, axis=-1)
    hard = smooth.copy()
    hard[30:70, 40:90] = (230, 40, 30)
    hard[60:110, 80:150] = (20, 60, 220)
    hard[(x - 40) ** 2 + (y - 95) ** 2 < 22**2] = (30, 200, 60)
    soft = cv2.GaussianBlur(hard, (0, 0), 1)
    return {name: rounded(picture) for name, picture in (("smooth", smooth), ("soft", soft), ("hard", hard))}


def halved(picture):
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
        format="yuv420p", interpolation=Interpolation.AREA
    )


def back(how):
    """A function of a yuv420p frame that starts the conversion and gives what holds the picture."""
    if how == "cv2":
        return lambda frame, planes: cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420)
    given, reformatter = {} if how is None else {"interpolation": how}, VideoReformatter()
    return lambda frame, planes: reformatter.reformat(frame, format="rgb24", threads=1, **given)


def array(picture):
    return picture if isinstance(picture, np.ndarray) else picture.to_ndarray()


def psnr(one, other):
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


def milliseconds(convert, frame):
    planes, took = frame.to_ndarray(), []
    for _ in range(200):
        start = time.perf_counter()
        convert(frame, planes)
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took)


def repeated(convert):
    """Over how many rows and columns one colour sample is repeated, of a picture whose brightness is even."""
    planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    planes[HEIGHT:] = np.random.default_rng(0).integers(70, 190, (HEIGHT // 2, WIDTH))
    shown = array(convert(av.VideoFrame.from_ndarray(planes, format="yuv420p"), planes))
    across, down = np.array_equal(shown[:, ::2], shown[:, 1::2]), np.array_equal(shown[::2], shown[1::2])
    return f"{1 + across}x{1 + down}"  # width x height


frames = {name: (picture, halved(picture)) for name, picture in sources().items()}
flat = [halved(np.full((HEIGHT, WIDTH, 3), colour, np.uint8)) for colour in ((128, 128, 128), (230, 40, 30))]
ways = {
    "default": None,
    **{name: Interpolation[name] for name in NAMES},
    "FULL": Interpolation.BILINEAR | FULL,
    "EXACT": Interpolation.BILINEAR | EXACT,
    "both": Interpolation.BILINEAR | EXACT | FULL,
    "both, as an int": 2 + (1 << 13) + (1 << 18),
    "BICUBIC, both": Interpolation.BICUBIC | EXACT | FULL,
    "POINT, both": Interpolation.POINT | EXACT | FULL,
    "cv2": "cv2",
}
print("av", av.__version__, "with FFmpeg", av.ffmpeg_version_info, "and cv2", cv2.__version__)
print(f"{'how':16}", *(f"{name:>7}" for name in frames), " repeated      ms  flat grey and red")
got, even, over = {}, {}, {}
for name, how in ways.items():
    convert = back(how)
    got[name] = [
        round(psnr(picture, array(convert(frame, frame.to_ndarray()))), 2) for picture, frame in frames.values()
    ]
    even[name] = [tuple(array(convert(frame, frame.to_ndarray()))[HEIGHT // 2, WIDTH // 2].tolist()) for frame in flat]
    over[name] = repeated(convert)
    cost = milliseconds(convert, frames["soft"][1])
    print(f"{name:16}", *(f"{value:7.2f}" for value in got[name]), f"{over[name]:>9} {cost:7.3f} ", *even[name])

smooth, soft, hard = range(3)
picture, frame = frames["soft"]
checks = {
    "to_ndarray does as the default": np.array_equal(frame.to_ndarray(format="rgb24"), array(back(None)(frame, None))),
    "a name or FULL_CHR_H_INT alone changes nothing": all(got[name] == got["default"] for name in [*NAMES, "FULL"]),
    "an int does as the names": got["both, as an int"] == got["both"],
    "cv2 is 0.1 dB and more above the default": all(
        a > b + 0.1 for a, b in zip(got["cv2"], got["default"], strict=True)
    ),
    "cv2 is 1 dB above on smooth": got["cv2"][smooth] > got["default"][smooth] + 1,
    "POINT with both does as cv2": all(abs(a - b) < 0.05 for a, b in zip(got["POINT, both"], got["cv2"], strict=True)),
    "both gain 3 dB on smooth and soft": all(got["both"][k] > got["default"][k] + 3 for k in (smooth, soft)),
    "ACCURATE_RND alone gains less": all(got["EXACT"][k] < got["both"][k] - 2 for k in (smooth, soft)),
    "both lose 2 dB on hard": got["both"][hard] < got["default"][hard] - 2,
    "ACCURATE_RND alone loses 2 dB on hard": got["EXACT"][hard] < got["default"][hard] - 2,
    "ACCURATE_RND alone darkens grey": even["EXACT"][0] == (126, 126, 126)
    and even["default"][0] == even["both"][0] == (128, 128, 128),
    "the default darkens red, cv2 and both flags do not": even["default"][1] != even["cv2"][1] == even["both"][1],
    "repeated": [over[name] for name in ("default", "FULL", "EXACT", "both", "cv2")]
    == ["2x2", "2x2", "2x1", "1x1", "2x2"],
}
for name, holds in checks.items():
    if not holds:
        print("CHANGED:", name)
sys.exit(not all(checks.values()))
PYTHON
"$work/venv/bin/python" "$work/try.py" && echo "as described: only the two flags together interpolate colour"
