"""CUDA graphs of the encoders: a step's thousand launches become two or three, which counts where a worker's share is small.

A graph repeats the same kernels on the same memory, so it holds for one shape of batch and one set of parameters (whose values may
change in place). The augmentation before it and the objective after it, whose shapes differ from step to step, stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def graphed_training(encode: nn.Module, views: Sequence[Tensor], dtype: torch.dtype | None) -> nn.Module:
    """Forward and backward of `encode` in training mode as CUDA graphs, for views of these shapes; called as `encode` is.

    Args:
        encode: views [b, 3, T, h, w] -> embeddings [b, D], without hooks; it has the parameters that the embeddings depend on
            and no others.
        views: samples of the views, whose values do not matter.
        dtype: of autocast, None for none.

    Batch norm's running statistics are afterwards what they were before.
    """
    module = _Autocast(encode, dtype)
    buffers = [buffer.clone() for buffer in encode.buffers()]
    samples = tuple(torch.zeros_like(view) for view in views)
    # Outside of the caller's autocast, whose cache a capture refuses; the module has its own.
    with torch.autocast(views[0].device.type, enabled=False, cache_enabled=False):
        graphed: nn.Module = torch.cuda.make_graphed_callables(module, samples)  # type: ignore[assignment]
    with torch.no_grad():
        for buffer, before in zip(encode.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return graphed


def graphed_inference(encode: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """`encode` of clips [B, C, T, H, W] of x's shape as a CUDA graph, without gradient; the next call overwrites its result."""
    static = torch.zeros_like(x)
    side = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):  # libraries choose their kernels and take their memory before the capture
            encode(static)
    torch.cuda.current_stream(x.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = encode(static)

    def replay(clips: Tensor) -> Tensor:
        static.copy_(clips)
        graph.replay()
        return result

    return replay


class _Autocast(nn.Module):
    """A module of clips [B, C, T, H, W] with its own autocast, whose cache of weights would not outlive a capture."""

    def __init__(self, encode: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.encode, self.dtype = encode, dtype

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(
            views[0].device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None, cache_enabled=False
        ):
            return tuple(self.encode(*views))
