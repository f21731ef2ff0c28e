#!/usr/bin/env bash
# torch 2.15.0 (2.11.0 too), CPU: F.interpolate(..., antialias=True) of a float tensor to an output of width 1 is wrong, silently.
#
# Seen: six rows 0..5 (one column) made four rows. Right is 0.375, 1.778, 3.222, 4.625 (as the same rows give with two equal
# columns, or lying as one row). With an output width of 1 every row is the first one: 0.375, 0.375, 0.375, 0.375. The same for
# growing (12 rows: all 0), for bicubic, for several channels, from any input width. uint8 and antialias=False are right.
# It meets whoever resizes a projection (a slit scan, a column of a spectrogram) or tests a resize on one column.
# Fails when one of these is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.nn.functional import interpolate


def rows(columns_in: int, columns_out: int, mode: str = "bilinear", antialias: bool = True, dtype=torch.float32) -> list[float]:
    picture = torch.arange(6.0, dtype=torch.float32).view(1, 1, 6, 1).repeat(1, 1, 1, columns_in).to(dtype)
    out = interpolate(picture, (4, columns_out), mode=mode, antialias=antialias)
    return [round(float(value), 3) for value in out[0, 0, :, 0]]


right, wrong = [0.375, 1.778, 3.222, 4.625], [0.375] * 4
print("torch", torch.__version__)
print("two columns to two:", rows(2, 2))
print("one column to one: ", rows(1, 1))
print("three columns to one:", rows(3, 1))
lying = interpolate(torch.arange(6.0).view(1, 1, 1, 6), (1, 4), mode="bilinear", antialias=True)
print("lying:", [round(float(value), 3) for value in lying.flatten()])
assert rows(2, 2) == right and [round(float(value), 3) for value in lying.flatten()] == right
assert rows(1, 1) == wrong and rows(3, 1) == wrong, "an output of one column is no longer wrong"
bicubic = rows(1, 1, "bicubic")
assert len(set(bicubic)) == 1 and len(set(rows(2, 2, "bicubic"))) == 4, bicubic
assert rows(1, 1, antialias=False) == rows(2, 2, antialias=False) == [0.25, 1.75, 3.25, 4.75]
assert rows(1, 1, dtype=torch.uint8) == rows(2, 2, dtype=torch.uint8), "uint8 is right"
print("as stated")
PY
