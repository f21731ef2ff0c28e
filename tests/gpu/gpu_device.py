"""Where the tests of this folder run: on a GPU; with VICC_REHEARSE=1 on the CPU, which shows that they run at all."""

from __future__ import annotations

import os

import pytest
import torch

REHEARSAL = bool(os.environ.get("VICC_REHEARSE"))
GPU = "cpu" if REHEARSAL else "cuda"
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSAL or torch.cuda.is_available()), reason="needs a GPU"),
]
