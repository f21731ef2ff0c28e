"""What makes the step fast leaves what it learns: 50 losses of each setting beside those of the plain fp32 step."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from step_curves import assert_same_course, assert_same_curve, experiment_of, losses, plain_losses, trainer_of
from tiny import tiny_experiment
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.step_published import Ways, made_batch
from vicc_ray.errors import UserError
from vicc_ray.machine import cpu_has_matrix_units
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.folding import fold_batch_norm
from vicc_ray.models.planar import PlanarConv3d, planar_
from vicc_ray.models.precision import autocast_for
from vicc_ray.models.recompute import recomputing
from vicc_ray.training.step import _Graphs

AMX = pytest.mark.skipif(not cpu_has_matrix_units(), reason="this CPU has no matrix units for bfloat16")
BACKBONES = ["s3d", "s3dg", "r2plus1d_10", "r2plus1d_18"]


@pytest.mark.parametrize(
    "train", [{"channels_last": True}, {"planar": True}, {"fold_guide": True}, {"recompute": True}], ids=str
)
def test_the_loss_curve_stays(train: dict[str, Any]) -> None:
    assert_same_curve(losses(experiment_of(train=train)), plain_losses())


@AMX
def test_bfloat16_on_a_cpu_stays_on_the_curve() -> None:
    experiment = experiment_of(train={"planar": "auto"}, optim={"precision": "auto"})
    assert trainer_of(experiment).autocast.bf16
    assert_same_course(losses(experiment), plain_losses())


class _Rounded(torch.autograd.Function):
    """To bfloat16 and back, of values and of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].bfloat16().float()


def _round_layers_(module: nn.Module) -> None:
    """Computes in float32 what autocast computes in bfloat16, rounding as it does before and after each layer."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.Linear):
            part.weight.data = part.weight.data.bfloat16().float()
            part.register_forward_pre_hook(lambda _, inputs: tuple(_Rounded.apply(x) for x in inputs))
        if isinstance(part, nn.Conv3d | nn.Linear | nn.BatchNorm3d):
            part.register_forward_hook(lambda _, inputs, output: _Rounded.apply(output))


def _first_gradient(precision: str, seed: int, *, rounded: bool = False) -> torch.Tensor:
    trainer = trainer_of(experiment_of(train={"planar": True}, optim={"precision": precision}, seed=seed))
    if rounded:
        assert trainer.guide is not None
        _round_layers_(trainer.module)
        _round_layers_(trainer.guide)
    trainer.step(made_batch(trainer.experiment, trainer.stage, full_share=0.4), 0)
    return torch.cat([p.grad.flatten() for p in trainer.module.parameters() if p.grad is not None])


@AMX
def test_a_gradient_in_bfloat16_is_float32s_but_for_rounding() -> None:
    """Rounding alone turns it a long way here (cosine 0.79 to 0.90), so it is held to float32 with the same rounding."""
    likeness = [
        functional.cosine_similarity(_first_gradient("bf16", seed), _first_gradient("fp32", seed, rounded=True), dim=0)
        for seed in range(6)
    ]
    # 0.977 and 0.984 (by threads) where this was written, beside plain float32 0.85.
    assert float(torch.stack(likeness).mean()) > 0.93


def test_the_defaults_together_stay_on_the_curve() -> None:
    experiment = experiment_of()
    together = experiment.model_copy(update={"train": type(experiment.train)()})
    assert_same_curve(losses(together), plain_losses())


def test_the_published_ways_are_on_the_curve() -> None:
    """The bench's other side does the same step: assignments by exp(), LARS in a loop, the guide view by view."""
    assert_same_curve(losses(experiment_of(), ways=Ways(guide=True, objective=True, lars=True)), plain_losses())


def test_compiled_backbones_stay_on_the_curve_and_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as by the real compiler, without the minutes that it takes to write code."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert_same_curve(losses(experiment_of(train={"compile": True})), plain_losses())
    assert counters["stats"]["unique_graphs"] == 2  # the learner and the guide
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_joint_views_are_batch_norm_over_both() -> None:
    """The same as a batch of twice the size, so z is that of the encoder on both views, one after the other."""
    trainer = trainer_of(experiment_of(model={"joint_views": True}))
    x1, x2 = (torch.randn(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    encoder = copy.deepcopy(trainer.encoder)
    apart = [copy.deepcopy(encoder)(x) for x in (x1, x2)]
    found = trainer.encode(x1, x2)
    expected = encoder(torch.cat([x1, x2]))
    torch.testing.assert_close(torch.cat(found), expected)
    assert not torch.allclose(torch.cat(found), torch.cat(apart), atol=1e-3)
    for mine, theirs in zip(trainer.encoder.buffers(), encoder.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
    empty = trainer.encode(x1[:0], x2[:0])
    assert [tuple(z.shape) for z in empty] == [(0, 16), (0, 16)]


def test_joint_views_learn_as_well() -> None:
    """Another batch norm, so not the same curve: it ends within 3 % of the plain one."""
    joint, plain = plain_losses(joint=True), plain_losses()
    assert abs(float(joint[-5:].mean() / plain[-5:].mean()) - 1) < 0.03


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"model": {"joint_views": True}, "objective": {"second_view_gradient": False}}, ["model.joint_views"]),
        ({"train": {"compile": True, "recompute": True}}, ["train.compile", "train.recompute"]),
        ({"train": {"cuda_graphs": True, "compile": True}}, ["train.cuda_graphs", "train.compile"]),
        ({"train": {"cuda_graphs": True}, "optim": {"micro_batch": 2}}, ["train.cuda_graphs", "optim.micro_batch"]),
    ],
)
def test_what_excludes_each_other_is_refused(sections: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        tiny_experiment(**sections)
    assert all(part in str(caught.value) for part in parts)


def _lived(backbone: str) -> Any:
    """An encoder whose batch norms are far from where they start."""
    encoder = build_encoder(backbone, width=0.0625, embedding_dim=16, seed=1)
    generator = torch.Generator().manual_seed(2)
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                tensor.uniform_(low, high, generator=generator)  # type: ignore[union-attr]
    return encoder


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("frames", [6, 16])
def test_a_folded_encoder_gives_the_same_embeddings(backbone: str, frames: int) -> None:
    encoder = _lived(backbone).train()
    x = torch.randn(3, 3, frames, 32, 32, generator=torch.Generator().manual_seed(3))
    folded = fold_batch_norm(encoder)
    assert encoder.training and not folded.training
    assert not any(isinstance(module, _BatchNorm) for module in folded.modules())
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), encoder(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(folded.features(x), encoder.features(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("frames", [2, 6, 16])
def test_a_planar_encoder_learns_the_same(backbone: str, frames: int) -> None:
    """Embeddings, gradients by name and running statistics, those of pools with equal values (after ReLU) among them."""
    # In double precision: batch norm over few values blows rounding up.
    plain, other = _lived(backbone).double().train(), planar_(_lived(backbone).double().train())
    assert list(other.state_dict()) == list(plain.state_dict())
    x = torch.randn(3, 3, frames, 48, 48, generator=torch.Generator().manual_seed(3)).double()
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(4)).double()
    z = plain(x)
    (z * weight).sum().backward()
    found = other(x.contiguous(memory_format=torch.channels_last_3d))
    (found * weight).sum().backward()
    torch.testing.assert_close(found, z)
    for (name, mine), theirs in zip(other.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]
    for mine, theirs in zip(other.buffers(), plain.buffers(), strict=True):  # type: ignore[assignment]
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_planar_encoder_takes_no_clips_too(backbone: str) -> None:
    """A guide's share may be empty."""
    encoder = planar_(_lived(backbone)).eval()
    assert encoder(torch.zeros(0, 3, 6, 32, 32)).shape == (0, 16)
    assert fold_batch_norm(encoder)(torch.zeros(0, 3, 6, 32, 32)).shape == (0, 16)  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [2, 5, 7, 8, 16])
@pytest.mark.parametrize(("kernel", "stride"), [((7, 1, 1), (2, 1, 1)), ((3, 1, 1), (1, 1, 1)), ((1, 3, 3), (1, 2, 2))])
def test_planar_convolutions_have_the_right_float32_gradient(frames: int, kernel: Any, stride: Any) -> None:
    """Beside double precision, at channel counts where libraries choose their fastest code."""
    generator = torch.Generator().manual_seed(0)
    plain = nn.Conv3d(32, 32, kernel, stride, tuple(k // 2 for k in kernel)).double()
    other = planar_(nn.Sequential(copy.deepcopy(plain).float()))
    x = torch.randn(2, 32, frames, 8, 8, generator=generator)
    x64 = x.double().requires_grad_()
    x32 = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    y64, y32 = plain(x64), other(x32)
    upstream = torch.randn(y64.shape, generator=generator)
    y64.backward(upstream.double())
    y32.backward(upstream)
    close: Any = {"rtol": 1e-3, "atol": 1e-3, "check_dtype": False}
    torch.testing.assert_close(y32, y64, **close)
    torch.testing.assert_close(x32.grad, x64.grad, **close)
    for mine, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **close)


@AMX
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (3, 3), (4, 1), (7, 7)])
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((3, 1, 1), (2, 1, 1)), ((1, 3, 3), (1, 2, 2)), ((1, 7, 7), (1, 2, 2)), ((1, 1, 1), (1, 2, 2))],
)
def test_planar_convolutions_have_the_right_bfloat16_gradient(size: tuple[int, int], kernel: Any, stride: Any) -> None:
    """Beside float32. Over pictures of one column with stride 2 the library's own padding gave weights what lay in memory."""
    generator = torch.Generator().manual_seed(0)
    for batch, channels in itertools.product((1, 3, 8), (16, 64, 83)):
        plain = nn.Conv3d(channels, 64, kernel, stride, tuple(k // 2 for k in kernel))
        other = planar_(nn.Sequential(copy.deepcopy(plain)))
        x = torch.randn(batch, channels, 4, *size, generator=generator)
        mine = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        theirs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            found = other(mine)
        assert found.dtype == torch.bfloat16
        expected = plain(theirs)
        upstream = torch.randn(expected.shape, generator=generator)
        (found.float() * upstream).sum().backward()
        (expected * upstream).sum().backward()
        pairs = [(mine, theirs), *zip(other.parameters(), plain.parameters(), strict=True)]
        for one, reference in pairs:
            assert one.grad is not None and reference.grad is not None
            error = float((one.grad - reference.grad).norm() / reference.grad.norm().clamp_min(1e-6))
            assert error < 0.02, (batch, channels, error)


@pytest.mark.parametrize(("flags", "has"), [("fpu amx_bf16 amx_tile", True), ("fpu avx512_bf16", False), (None, False)])
def test_matrix_units_are_what_linux_says(flags: str | None, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, *arguments: object) -> str:
        if flags is None:
            raise FileNotFoundError(path)
        return f"flags : {flags}\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert cpu_has_matrix_units() is has


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_taken_where_it_is_sound_and_faster(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicc_ray.models.precision.cpu_has_matrix_units", lambda: has)
    encoder = _lived("r2plus1d_10")
    plain, factors, cpu = copy.deepcopy(encoder), planar_(encoder), torch.device("cpu")
    assert not autocast_for("fp32", cpu, factors).bf16
    for precision in ("auto", "bf16"):
        assert autocast_for(precision, cpu, factors).bf16 is has
        assert not autocast_for(precision, cpu, plain).bf16  # its 3D gradients are not sound
    assert not autocast_for("auto", cpu, plain).refused
    assert ("AMX" in autocast_for("bf16", cpu, factors).refused) is not has
    assert ("planar" in autocast_for("bf16", cpu, plain).refused) is has


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), ((1, 3, 3), (1, 2, 2), (0, 1, 1))])
def test_planar_pools_send_the_gradient_to_the_same_place(kernel: Any, stride: Any, padding: Any) -> None:
    """Whole numbers 0 to 2: nearly every window has several largest values."""
    generator = torch.Generator().manual_seed(0)
    pool = nn.MaxPool3d(kernel, stride, padding)
    other = planar_(nn.Sequential(copy.deepcopy(pool)))
    x = torch.randint(0, 3, (2, 5, 7, 8, 6), generator=generator).float().requires_grad_()
    y = x.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    expected, found = pool(x), other(y)
    assert torch.equal(found, expected)
    upstream = torch.randn(expected.shape, generator=generator)
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(y.grad, x.grad)


def test_only_what_can_be_planar_is() -> None:
    """Full kernels, dilated ones and groups stay as they are."""
    kept = nn.Sequential(
        nn.Conv3d(2, 2, 3), nn.Conv3d(2, 2, (3, 1, 1), dilation=(2, 1, 1)), nn.Conv3d(2, 2, (1, 3, 3), groups=2)
    )
    before = list(kept)
    assert list(planar_(kept)) == before  # type: ignore[call-overload]
    encoder = planar_(build_encoder("s3d", width=0.0625, embedding_dim=16, seed=1))
    kinds = {type(module) for module in encoder.modules()}
    assert PlanarConv3d in kinds and not kinds & {nn.Conv3d, nn.MaxPool3d}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_recomputing_gives_the_same_gradient_and_statistics(backbone: str) -> None:
    plain, other = _lived(backbone).train(), _lived(backbone).train()
    x = torch.randn(3, 3, 8, 32, 32, generator=torch.Generator().manual_seed(3))
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(4))
    (plain(x) * weight).sum().backward()
    (other(x, recomputing(other.parts())) * weight).sum().backward()
    for (name, mine), theirs in zip(other.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]
    for mine, theirs in zip(other.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_recomputing_keeps_less() -> None:
    """What autograd holds on to, in numbers."""
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=16, seed=1).train()
    x = torch.randn(2, 3, 8, 32, 32)

    def held(run: Any) -> int:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
            run(x)
        return sum(kept)

    assert held(lambda x: encoder(x, recomputing(encoder.parts()))) < 0.5 * held(encoder)


@pytest.mark.parametrize("joint", [False, True])
def test_what_becomes_a_graph_depends_on_all_of_its_parameters(joint: bool) -> None:
    """torch takes their gradients when it captures, and refuses one that the result does not depend on."""
    trainer = trainer_of(experiment_of(model={"joint_views": joint}))
    encode = _Graphs(trainer).encode
    embeddings = encode(*(torch.randn(2, 3, 4, 24, 24) for _ in range(2)))
    parameters = [parameter for parameter in encode.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad([z.sum() for z in embeddings], parameters)
    assert len(gradients) == len(list(trainer.encoder.parameters()))


@pytest.mark.parametrize("setting", ["fused_augment", "autotune", "cuda_graphs"])
def test_a_setting_for_gpus_is_named_on_a_cpu(setting: str) -> None:
    remarks = trainer_of(experiment_of(train={setting: True})).warnings()
    assert remarks == [f"train.{setting}: is for GPUs and does nothing on cpu"]
