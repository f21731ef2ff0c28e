#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8.1.2): yuv420p to rgb24 at the same size ignores the named interpolation; two flags together change it much.
#
# VideoFrame.reformat and to_ndarray(format="rgb24") take a fast way, which repeats each colour sample over 2x2 pixels and rounds
# roughly. Flags of swscale are combined into `interpolation`, as in Interpolation.BILINEAR | Interpolation.ACCURATE_RND; a string
# takes one name only. Pictures of 172x128 were made yuv420p once, with AREA, and brought back. PSNR in dB against the source.
# "smooth" are coloured gradients, "hard" adds shapes whose edges fall on even rows and columns, "soft" is "hard" blurred. Seen:
#
#   how                                        smooth  soft   hard   flat grey 128
#   default, and any of 9 algorithms by name   39.88   33.40  32.93  128
#   BILINEAR | FULL_CHR_H_INT                  39.88   33.40  32.93  128
#   BILINEAR | ACCURATE_RND                    40.64   35.42  30.46  126
#   BILINEAR | ACCURATE_RND | FULL_CHR_H_INT   51.96   38.65  29.93  128
#   OpenCV 5.0.0.93, COLOR_YUV2RGB_I420        41.02   33.64  33.14  128
#
# The default is 0.2 to 1.1 dB below OpenCV, which repeats colour too and rounds better. FULL_CHR_H_INT alone changes nothing,
# ACCURATE_RND alone darkens; both gain 5 to 12 dB on smooth and soft, lose 3 dB on hard, and take ten times as long. So a named
# interpolation is no choice unless the size changes too, and trying the flags one by one hides what they do together.
#
# Exits with 0 while the order holds, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 opencv-python-headless==5.0.0.93
cat > "$work/try.py" <<'PYTHON'
import sys

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation

WIDTH, HEIGHT = 172, 128
EXACT, FULL, PLAIN = Interpolation.ACCURATE_RND, Interpolation.FULL_CHR_H_INT, Interpolation.BILINEAR
NAMES = "FAST_BILINEAR BILINEAR BICUBIC POINT AREA BICUBLIN GAUSS LANCZOS SPLINE".split()


def sources():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    waves = [np.sin(x / 23 + y / 41), np.sin(x / 31 - y / 19 + 2), np.cos(x / 17 + y / 37 + 1)]
    smooth = 127 + 110 * np.stack(waves, axis=-1)
    hard = smooth.copy()
    hard[30:70, 40:90] = (230, 40, 30)
    hard[60:110, 80:150] = (20, 60, 220)
    hard[(x - 40) ** 2 + (y - 95) ** 2 < 22**2] = (30, 200, 60)
    soft = cv2.GaussianBlur(hard, (0, 0), 1)
    return [np.clip(np.rint(picture), 0, 255).astype(np.uint8) for picture in (smooth, soft, hard)]


def halved(picture):
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return frame.reformat(format="yuv420p", interpolation=Interpolation.AREA)


def back(how, frame):
    if how == "cv2":
        return cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)
    return frame.reformat(format="rgb24", **({} if how is None else {"interpolation": how})).to_ndarray()


def psnr(one, other):
    return round(float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean())), 2)


pictures = [(picture, halved(picture)) for picture in sources()]
gray = halved(np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
ways = {"default": None, **{name: Interpolation[name] for name in NAMES}}
ways |= {"FULL": PLAIN | FULL, "EXACT": PLAIN | EXACT, "both": PLAIN | EXACT | FULL, "cv2": "cv2"}
print("av", av.__version__, "with FFmpeg", av.ffmpeg_version_info, "and cv2", cv2.__version__)
got, flat = {}, {}
for name, how in ways.items():
    got[name] = [psnr(picture, back(how, frame)) for picture, frame in pictures]
    flat[name] = int(back(how, gray)[HEIGHT // 2, WIDTH // 2, 0])
    print(f"{name:14}", *(f"{value:7.2f}" for value in got[name]), f"{flat[name]:5}")
base, exact, both = got["default"], got["EXACT"], got["both"]
checks = {
    "a name or FULL_CHR_H_INT alone changes nothing": all(got[name] == base for name in [*NAMES, "FULL"]),
    "cv2 is above the default": all(a > b + 0.1 for a, b in zip(got["cv2"], base, strict=True)),
    "both gain 3 dB on smooth and soft": all(both[k] > base[k] + 3 for k in (0, 1)),
    "ACCURATE_RND alone gains less": all(exact[k] < both[k] - 2 for k in (0, 1)),
    "both lose 2 dB on hard": both[2] < base[2] - 2,
    "ACCURATE_RND alone darkens grey": (flat["default"], flat["EXACT"], flat["both"]) == (128, 126, 128),
}
for name, holds in checks.items():
    if not holds:
        print("CHANGED:", name)
sys.exit(not all(checks.values()))
PYTHON
"$work/venv/bin/python" "$work/try.py" && echo "as described: only the two flags together interpolate colour"
