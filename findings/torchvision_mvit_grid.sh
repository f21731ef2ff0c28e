#!/usr/bin/env bash
# torchvision 0.29.2 (torch 2.15.0): MViT takes a clip of the wrong size where its number of tokens is the right one, and reads it
# as another picture.
#
# An MViT is made for one `spatial_size` and `temporal_size`. What comes is never compared with them: the tokens of a clip are laid
# out as the grid that was planned, and only their number can fail (a RuntimeError about a view). A network made for 8 frames of
# 64x64, seen:
#
#   clip          result
#   8 x 64 x 64   [1, 5]
#   8 x 32 x 128  [1, 5]   as many tokens, in rows of 16 in place of 32: not what the same weights give in a network for 32x128
#   16 x 32 x 64  [1, 5]   as many tokens, frames cut out of two
#   8 x 32 x 32   RuntimeError
#
# Expected: an error that names the size, as torchvision's VisionTransformer has it for pictures. So a loader that crops 112x448 where
# 224x224 was meant trains and is evaluated without a word. (Of the shipped mvit_v1_b and mvit_v2_s: 16 frames of 224x224.)
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 torchvision==0.29.2
cat > "$work/try.py" <<'PYTHON'
import sys

import torch
from torchvision.models.video.mvit import MSBlockConfig, MViT

BLOCKS = [
    MSBlockConfig(1, 16, 16, [3, 3, 3], [1, 2, 2], [1, 1, 1], [3, 3, 3]),
    MSBlockConfig(2, 16, 32, [3, 3, 3], [1, 1, 1], [1, 2, 2], [3, 3, 3]),
]


def network(height, width):
    torch.manual_seed(0)
    settings = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": False, "proj_after_attn": True}
    made = MViT((height, width), 8, BLOCKS, num_classes=5, **settings).eval()
    for name, values in made.named_parameters():  # places count through the grid alone, so that both networks can be compared
        if name.startswith("pos_encoding"):
            torch.nn.init.zeros_(values)
    return made


def outcome(clip):
    try:
        return list(square(clip).shape)
    except RuntimeError:
        return "RuntimeError"


square, wide = network(64, 64), network(32, 128)
wide.load_state_dict(square.state_dict())
seen = {}
with torch.inference_mode():
    for size in ((8, 64, 64), (8, 32, 128), (16, 32, 64), (8, 32, 32)):
        seen[size] = outcome(torch.zeros(1, 3, *size))
        print(*size, seen[size])
    clip = torch.randn(1, 3, 8, 32, 128)
    apart = (square(clip) - wide(clip)).abs().max().item() / wide(clip).std().item()
print(f"8 32 128 in the network for 64x64 and in that for 32x128, same weights: {apart:.3f} standard deviations apart")
expected = dict(zip(seen, ([1, 5], [1, 5], [1, 5], "RuntimeError"), strict=True))
sys.exit(seen != expected or apart < 0.001)
PYTHON
"$work/venv/bin/python" "$work/try.py" && echo "as described: clips of other sizes pass where tokens are as many"
