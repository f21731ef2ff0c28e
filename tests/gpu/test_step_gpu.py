"""The training step on a GPU: the same losses as on a CPU and as without each lever; checkpoints that move between the two."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_device import GPU, REHEARSAL, needs_gpu
from processes import run_processes
from step_curves import (
    BF16,
    STEPS,
    assert_same_course,
    assert_same_curve,
    experiment_of,
    losses,
    plain_losses,
    trainer_of,
)

from benchmarks.step_published import Ways, made_batch
from vicc_ray.models.encoder import build_encoder, convert_batch_norm
from vicc_ray.training.batches import Batch

pytestmark = needs_gpu
TF32 = 1e-2  # a GPU's convolutions round their inputs to 10 bits by default


@cache
def plain() -> torch.Tensor:
    return plain_losses(GPU)


def test_fifty_losses_are_those_of_a_cpu() -> None:
    assert_same_curve(plain(), plain_losses("cpu"), TF32)


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({"train": {"overlap": True}}, id="overlap"),
        pytest.param({"train": {"channels_last": True, "fold_guide": True}}, id="layout and folding"),
        pytest.param({"train": {"planar": True}}, id="planar"),
        pytest.param({"train": {"autotune": True}}, id="autotune"),
        pytest.param({"train": {"recompute": True}}, id="recompute"),
        pytest.param({"train": {"fused_augment": True}}, id="fused augmentation"),
        pytest.param({"train": {"cuda_graphs": True}}, id="CUDA graphs"),
        pytest.param({"train": {"cuda_graphs": True, "overlap": True, "fold_guide": True}}, id="graphs and overlap"),
        pytest.param({"optim": {"precision": "bf16"}}, id="bf16"),
        pytest.param(
            {
                "optim": {"precision": "bf16"},
                "train": {"planar": True, "fused_augment": True, "fold_guide": True, "overlap": True, "autotune": True},
            },
            id="all of them",
        ),
    ],
)
def test_a_lever_leaves_the_losses(sections: dict[str, Any]) -> None:
    found = losses(experiment_of(**sections), GPU)
    bf16 = "optim" in sections
    if bf16 and REHEARSAL:
        assert_same_course(found, plain())
    else:
        assert_same_curve(found, plain(), BF16 if bf16 else TF32)


def test_compiled_backbones_leave_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    if REHEARSAL:  # the real compiler takes minutes on a CPU
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)
    assert_same_curve(losses(experiment_of(train={"compile": True}), GPU), plain(), TF32)


def test_the_published_ways_are_on_the_curve() -> None:
    assert_same_curve(losses(experiment_of(), GPU, Ways(guide=True, objective=True, lars=True)), plain(), TF32)


def test_sync_batch_norm_of_one_process_is_batch_norm() -> None:
    encoder = build_encoder("s3d", width=0.0625, embedding_dim=16, seed=1).to(GPU)
    other = convert_batch_norm(build_encoder("s3d", width=0.0625, embedding_dim=16, seed=1).to(GPU), "sync", GPU)
    x = torch.randn(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0)).to(GPU)
    torch.testing.assert_close(other(x), encoder(x), rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(other.buffers(), encoder.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), [(GPU, "cpu"), ("cpu", GPU)], ids=["to the CPU", "to the GPU"])
def test_a_checkpoint_moves_between_cpu_and_gpu(tmp_path: Path, first: str, second: str) -> None:
    """Ten steps here, the rest there: the losses of a run that stayed where it began."""
    experiment = experiment_of(objective={"queue": 16})
    here, there = trainer_of(experiment, first), trainer_of(experiment, second)
    batch = made_batch(experiment, here.stage, full_share=0.4)
    for step in range(10):
        here.step(batch, step)
    torch.save(here.state_dict(), tmp_path / "state.pt")
    there.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True))
    curves = [[float(t.step(batch, step).loss.detach()) for step in range(10, 20)] for t in (here, there)]
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=TF32, atol=0)


def _curve_of_a_rank(steps: int) -> list[float]:
    """Losses of this rank's half of every batch; gloo, since two ranks of NCCL cannot share a card."""
    from torch import distributed as dist

    experiment = experiment_of(train={"channels_last": True, "fold_guide": True, "overlap": True})
    trainer = trainer_of(experiment, GPU)
    batch = made_batch(experiment, trainer.stage, full_share=0.4)
    rows = slice(dist.get_rank() * 4, dist.get_rank() * 4 + 4)
    mine = Batch(
        batch.slots[rows],
        batch.videos[rows],
        batch.full[rows],
        batch.keys[rows],
        {stream: clips[rows] for stream, clips in batch.clips.items()},
    )
    return [trainer.step(mine, step).metrics()["loss"] for step in range(steps)]


def test_two_ranks_on_one_card_learn_what_one_does() -> None:
    """Synchronised batch norm, gradients averaged in backward, assignments over both: without NCCL."""
    first, second = run_processes(_curve_of_a_rank, 2, STEPS // 2, timeout=180)
    assert first == second
    if REHEARSAL:
        return  # batch norm is synchronised on GPUs only
    experiment = experiment_of(train={"channels_last": True, "fold_guide": True})
    trainer = trainer_of(experiment, GPU)
    batch = made_batch(experiment, trainer.stage, full_share=0.4)
    alone = [trainer.step(batch, step).metrics()["loss"] for step in range(STEPS // 2)]
    torch.testing.assert_close(torch.tensor(first), torch.tensor(alone), rtol=TF32, atol=0)
