"""Networks: equality with torchvision at width 1, the published layer facts, sizes, seeds, batch norm, refusals."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video import mvit_v2_s, r2plus1d_18, swin3d_t
from torchvision.models.video.s3d import S3D as TorchvisionS3D

from vicc_ray.errors import UserError
from vicc_ray.extensions import BACKBONES
from vicc_ray.models.encoder import (
    Encoder,
    EncoderSpec,
    build_encoder,
    check_clip_size,
    convert_batch_norm,
    empty_encoder,
)
from vicc_ray.models.encoder_file import EncoderFile, load_encoder, save_encoder
from vicc_ray.models.layers import subtract_mean_over_time_
from vicc_ray.models.r2plus1d import mid_channels
from vicc_ray.models.s3d import SelfGating

# Of clips of any size; mvit_v2_s takes clips of one size only.
ANY_SIZE = [name for name in BACKBONES.built_in if name != "mvit_v2_s"]


class Mixed(nn.Module):
    """A backbone of another package: layers, parameters and buffers that the built-in networks do not have."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        self.feature_dim = 8
        self.first = nn.Conv3d(in_channels, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.mix = nn.Linear(8, 8, bias=False)
        self.scale = nn.Parameter(torch.full((8,), 2.0))
        self.register_buffer("offset", torch.full((8,), 0.5))
        self.register_buffer("hidden", torch.full((8,), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.first(x)).movedim(1, -1)
        return (self.mix(maps) * self.scale + self.offset + self.hidden).movedim(-1, 1)  # type: ignore[no-any-return]


class PlainWithBias(nn.Module):
    """Convolutions with a bias and linear layers without one, and nothing else."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        self.feature_dim = 4
        self.first, self.norm = nn.Conv3d(in_channels, 4, 1, bias=True), nn.BatchNorm3d(4)
        self.mix = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(self.first(x)).movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    """Batch norm with statistics and scales that are not the trivial ones, so that a missing norm shows."""
    g = torch.Generator().manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.weight.data.uniform_(0.5, 1.5, generator=g)
            norm.bias.data.normal_(0, 0.1, generator=g)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0, 0.1, generator=g)
            norm.running_var.uniform_(0.5, 1.5, generator=g)
    return module.eval()


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Loads a state by position, after checking that every shape agrees."""
    ours, theirs = source.state_dict(), target.state_dict()
    assert [t.shape for t in ours.values()] == [t.shape for t in theirs.values()]
    target.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))


def test_s3d_at_width_1_is_torchvisions() -> None:
    ours = shaken(build_encoder("s3d").backbone)
    theirs = TorchvisionS3D(norm_layer=partial(nn.BatchNorm3d, eps=1e-5, momentum=0.1)).features.eval()
    copy_in_order(ours, theirs)
    for size in ((16, 64, 64), (9, 33, 40), (6, 32, 32)):
        x = randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_r2plus1d_18_at_width_1_is_torchvisions_by_name() -> None:
    ours = shaken(build_encoder("r2plus1d_18").backbone)
    theirs = r2plus1d_18(weights=None).eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).mean(dim=(2, 3, 4)), theirs(x), rtol=1e-5, atol=1e-5)


def test_swin3d_t_at_width_1_is_torchvisions_by_name() -> None:
    ours, theirs = build_encoder("swin3d_t").backbone.eval(), swin3d_t().eval()
    state = {name.replace("norm.norm.", "norm."): value for name, value in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert missing == ["head.weight", "head.bias"] and not unexpected
    theirs.head = nn.Identity()
    for size in ((8, 64, 64), (5, 33, 40)):
        x = randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x).mean(dim=(2, 3, 4)), theirs(x), rtol=1e-4, atol=1e-5)


def test_mvit_v2_s_at_width_1_is_torchvisions_by_order() -> None:
    """The tokens after torchvision's last block and norm, without the class token."""
    ours, theirs = build_encoder("mvit_v2_s").backbone.eval(), mvit_v2_s().eval()
    theirs.head = nn.Identity()
    names = {"tokens.conv.": "conv_proj.", "tokens.positions.": "pos_encoding.", ".block.": ".", "norm.norm.": "norm."}
    by_order = {}
    for name, value in ours.state_dict().items():
        for mine, torchvisions in names.items():
            name = name.replace(mine, torchvisions)
        by_order[name] = value
    assert by_order.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(by_order)
    tokens: list[Tensor] = []
    theirs.norm.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    x = randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        theirs(x)
        maps = ours(x)
    assert maps.shape == (1, 768, 8, 7, 7)
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), tokens[0][:, 1:], rtol=1e-4, atol=1e-5)


def test_a_fixed_clip_size_is_refused_by_name() -> None:
    spec = EncoderSpec("mvit_v2_s", width=0.125)
    check_clip_size(spec, 16, 224)
    with pytest.raises(
        UserError, match=r"mvit_v2_s: takes clips of 16 frames .*set clip.frames: 16 and clip.size: 224"
    ):
        check_clip_size(spec, 32, 128)
    with pytest.raises(UserError, match=r"mvit_v2_s: takes clips of 16 frames of 224x224 pixels only"):
        build_encoder("mvit_v2_s", width=0.125)(randn(1, 3, 16, 112, 112))


@pytest.mark.parametrize("backbone", ["mvit_v2_s", "swin3d_t", f"{__name__}:Mixed", f"{__name__}:PlainWithBias"])
def test_nothing_of_an_encoder_is_left_undefined(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that nobody has set holds 1e30 here, so it shows; a file gives back the very encoder, hidden buffers included."""
    plain_to_empty = nn.Module.to_empty

    def to_spoilt(module: nn.Module, *, device: str) -> nn.Module:
        module = plain_to_empty(module, device=device)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.fill_(1e30 if tensor.is_floating_point() else 99)
        return module

    monkeypatch.setattr(nn.Module, "to_empty", to_spoilt)
    before = torch.get_rng_state()
    encoder, again, other = (build_encoder(backbone, width=0.125, embedding_dim=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    tensors = [*encoder.parameters(), *encoder.buffers()]
    assert all(float(tensor.detach().abs().max()) < 1e4 for tensor in tensors if tensor.is_floating_point())
    assert all(torch.equal(a, b) for a, b in zip(tensors, [*again.parameters(), *again.buffers()], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(tensors, [*other.parameters(), *other.buffers()], strict=True))

    save_encoder(tmp_path / "e.safetensors", EncoderFile(encoder.spec, "rgb", encoder.state_dict()))
    loaded = load_encoder(tmp_path / "e.safetensors").build()
    size = encoder.clip or (4, 32, 32)
    x = randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(x), loaded(x))


@pytest.mark.parametrize("backbone", ["swin3d_t", f"{__name__}:Mixed"])
def test_a_worker_without_rows_has_a_graph_to_every_parameter(backbone: str) -> None:
    encoder = build_encoder(backbone, width=0.125, embedding_dim=8)
    z = encoder(randn(0, 3, 4, 32, 32))
    assert z.shape == (0, 8)
    z.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_a_backbone_that_is_none_is_refused_by_name() -> None:
    for name, part in (
        (f"{__name__}:SelfGating", "cannot be made"),
        ("operator:mul", "gives float, not a"),
        ("nowhere.at:All", "cannot be loaded"),
    ):
        with pytest.raises(UserError, match=part):
            build_encoder(name)


def test_published_sizes() -> None:
    encoder = empty_encoder(EncoderSpec("r2plus1d_10"))
    weights = sum(p.numel() for p in encoder.backbone.parameters())
    assert 14.35e6 < weights < 14.45e6  # docs/method.md, section 7: 14.4 M
    assert mid_channels(3, 64, (3, 7, 7)) == 83
    assert mid_channels(64, 128, (1, 1, 1)) == 42
    features = {name: empty_encoder(EncoderSpec(name)).feature_dim for name in BACKBONES.built_in}
    assert features == {
        "s3d": 1024,
        "s3dg": 1024,
        "r2plus1d_10": 512,
        "r2plus1d_18": 512,
        "mvit_v2_s": 768,
        "swin3d_t": 768,
    }


def test_width_and_input_channels() -> None:
    encoder = empty_encoder(EncoderSpec("r2plus1d_10", in_channels=2, width=0.25))
    stem = encoder.state_dict()["backbone.stem.spatial.weight"]
    assert stem.shape == (mid_channels(2, 16, (3, 7, 7)), 2, 1, 7, 7)
    assert encoder.state_dict()["backbone.layer4.conv2.spatial.weight"].shape == (288, 128, 1, 3, 3)
    assert encoder.feature_dim == 128
    assert empty_encoder(EncoderSpec("s3d", width=0.25)).feature_dim == 256
    assert empty_encoder(EncoderSpec("s3dg", width=0.001)).feature_dim == 4  # never below one channel a branch


@pytest.mark.parametrize("backbone", ANY_SIZE)
def test_small_clips_give_unit_embeddings(backbone: str) -> None:
    encoder = build_encoder(backbone, width=0.125, embedding_dim=20, in_channels=2)
    for size in ((12, 56, 56), (16, 64, 64), (2, 16, 16), (3, 17, 30), (32, 32, 32)):
        z = encoder(randn(2, 2, *size))
        assert z.shape == (2, 20) and z.dtype == torch.float32
        torch.testing.assert_close(z.norm(dim=1), torch.ones(2))


def test_forward_is_pool_then_projection() -> None:
    encoder = build_encoder("r2plus1d_10", width=0.125).eval()
    x = randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        maps = encoder.backbone(x)
        pooled = maps.flatten(2).double().sum(dim=2) / math.prod(maps.shape[2:])
        torch.testing.assert_close(encoder.features(x).double(), pooled)
        first, last = encoder.projection[0], encoder.projection[2]
        hidden = (pooled @ first.weight.double().T + first.bias.double()).clamp(min=0)
        z = hidden @ last.weight.double().T + last.bias.double()
        z = z / (z * z).sum(dim=1, keepdim=True).sqrt()
        torch.testing.assert_close(encoder(x).double(), z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames", [2, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("backbone", ["s3d", "r2plus1d_10"])
def test_gradients_of_short_clips_equal_float64(backbone: str, frames: int) -> None:
    # torch's float32 CPU kernels can give wrong gradients where a kernel is longer than the clip; float64 has others.
    encoder = build_encoder(backbone, width=0.25).eval()
    x = randn(2, 3, frames, 20, 20)
    grads = []
    for dtype in (torch.float32, torch.float64):
        encoder.to(dtype).zero_grad()
        features = encoder.features(x.to(dtype))
        (features * torch.arange(features.numel(), dtype=dtype).view_as(features).cos()).sum().backward()  # type: ignore[no-untyped-call]
        grads.append({n: p.grad.double().clone() for n, p in encoder.backbone.named_parameters() if p.grad is not None})
    assert len(grads[0]) > 20
    for name, exact in grads[1].items():
        # 1e-2: a ReLU whose input is within rounding of 0 may open in one precision only.
        assert (grads[0][name] - exact).norm() <= 1e-2 * exact.norm() + 1e-6, name


def test_gating_is_the_formula_and_stands_after_every_temporal_convolution() -> None:
    gate = SelfGating(3)
    x = randn(2, 3, 2, 4, 5)
    slow = torch.empty_like(x)
    for b in range(2):
        mean = torch.stack([x[b, c].mean() for c in range(3)])
        for c in range(3):
            slow[b, c] = torch.sigmoid(gate.gate.weight[c] @ mean + gate.gate.bias[c]) * x[b, c]
    torch.testing.assert_close(gate(x), slow)

    plain, gated = (build_encoder(name, width=0.125).eval() for name in ("s3d", "s3dg"))
    gates = [m for m in gated.modules() if isinstance(m, SelfGating)]
    assert len(gates) == 20  # stem, conv_2c, two in each of nine cells
    state = gated.state_dict() | plain.state_dict()
    gated.load_state_dict(state)
    for m in gates:
        nn.init.zeros_(m.gate.weight)
        nn.init.constant_(m.gate.bias, 50.0)  # open gates
    x = randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(gated(x), plain(x))
        nn.init.constant_(gates[7].gate.bias, -2.0)
        assert (gated.features(x) - plain.features(x)).abs().max() > 1e-3


def test_seed_fixes_the_weights_and_leaves_global_randomness_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (build_encoder("s3dg", width=0.125, seed=s) for s in (7, 7, 8))
    fresh = [build_encoder("s3dg", width=0.125, seed=None) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())

    def weight(e: Encoder) -> Tensor:
        return torch.cat([p.detach().flatten() for p in e.parameters()])

    assert torch.equal(weight(a), weight(b))
    assert not torch.equal(weight(a), weight(c))
    assert not torch.equal(weight(fresh[0]), weight(fresh[1]))


def test_initialisation_is_kaiming() -> None:
    encoder = build_encoder("r2plus1d_10", width=0.5)
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / module.in_features), rel=0.1)
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            assert (module.weight == 1).all() and (module.running_var == 1).all()
            assert not module.bias.any() and not module.running_mean.any() and module.num_batches_tracked == 0


@pytest.mark.parametrize("backbone", ["s3d", "r2plus1d_10", "r2plus1d_18", "mvit_v2_s"])
def test_difference_filters_are_the_formula(backbone: str) -> None:
    encoder, plain = build_encoder(backbone, width=0.125), build_encoder(backbone, width=0.125)
    found = subtract_mean_over_time_(encoder, 0.4)
    changed = 0
    for (name, layer), before in zip(encoder.named_modules(), plain.modules(), strict=True):
        if not isinstance(layer, nn.Conv3d):
            continue
        assert isinstance(before, nn.Conv3d)
        expected = before.weight.detach().double().numpy().copy()
        count = int(0.4 * layer.out_channels)
        if layer.kernel_size[0] > 1 and layer.groups == 1 and count:
            for number in range(count):
                for channel in range(expected.shape[1]):
                    expected[number, channel] -= sum(expected[number, channel]) / layer.kernel_size[0]
            before_it = float(np.square(before.weight[:count].detach().double().numpy()).sum())
            expected[:count] *= np.sqrt(before_it / np.square(expected[:count]).sum())
            changed += count
        np.testing.assert_allclose(layer.weight.detach().numpy(), expected, atol=1e-6, err_msg=name)
    assert found == changed > 0
    for mine, theirs in zip(encoder.projection.parameters(), plain.projection.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_difference_filters_do_not_see_what_stands_still() -> None:
    stem = build_encoder("r2plus1d_10", width=0.125).backbone.get_submodule("stem.temporal")
    assert isinstance(stem, nn.Conv3d)
    half = stem.out_channels // 2
    assert subtract_mean_over_time_(stem, 0.5) == half
    maps = torch.randn(1, stem.in_channels, 1, 8, 8).expand(-1, -1, 9, -1, -1)
    seen = stem(maps)[:, :, 1:-1].abs().amax(dim=(0, 2, 3, 4))
    assert seen[:half].max() < 1e-5 < 0.01 < seen[half:].min()


def test_bfloat16_autocast_keeps_features_and_norm_in_float32() -> None:
    encoder = build_encoder("r2plus1d_10", width=0.125).eval()
    x = randn(2, 3, 4, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder.backbone(x).dtype == torch.bfloat16
        features, z = encoder.features(x), encoder(x)
    assert features.dtype == z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(z, encoder(x), rtol=0, atol=0.03)
        assert F.cosine_similarity(z, encoder(x)).min() > 0.999


def test_a_worker_without_rows_changes_no_statistics() -> None:
    encoder = build_encoder("s3d", width=0.125)
    encoder(randn(2, 3, 4, 32, 32))
    before = {n: t.clone() for n, t in encoder.state_dict().items() if "running" in n}
    z = encoder(torch.zeros(0, 3, 4, 32, 32))
    z.sum().backward()
    assert z.shape == (0, 128)
    assert all(torch.equal(t, encoder.state_dict()[n]) for n, t in before.items())
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_sync_batch_norm_on_cuda_only(caplog: pytest.LogCaptureFixture) -> None:
    encoder = build_encoder("r2plus1d_10", width=0.125)
    names = list(encoder.state_dict())
    assert convert_batch_norm(encoder, "local", "cuda") is encoder
    with caplog.at_level(logging.WARNING):
        encoder = convert_batch_norm(encoder, "sync", "cpu")
    assert "own statistics" in caplog.text
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in encoder.modules())
    encoder = convert_batch_norm(encoder, "sync", torch.device("cuda", 0))
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in encoder.modules()) == 24  # 2 + 4 x 4 + 3 x 2
    assert not any(isinstance(m, nn.BatchNorm3d) for m in encoder.modules())
    assert list(encoder.state_dict()) == names
    with pytest.raises(UserError, match="local, sync"):
        convert_batch_norm(encoder, "shuffle", "cpu")  # type: ignore[arg-type]


def test_refusals_say_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"did you mean r2plus1d_18.*known: s3d, s3dg, r2plus1d_10, r2plus1d_18"):
        build_encoder("r2plus1d18")
    for wrong in ({"in_channels": 4}, {"width": 0.0}, {"width": math.nan}, {"embedding_dim": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            build_encoder("s3d", **wrong)
    encoder = build_encoder("s3d", width=0.125)
    for shape in ((2, 3, 1, 32, 32), (2, 3, 8, 15, 32), (2, 3, 8, 32, 15)):
        with pytest.raises(UserError, match="too small for s3d: at least 2 frames of 16x16"):
            encoder(torch.zeros(shape))
    for x in (torch.zeros(2, 1, 8, 32, 32), torch.zeros(3, 8, 32, 32), torch.zeros(2, 3, 8, 32, 32, dtype=torch.uint8)):
        with pytest.raises(UserError, match=r"float clips \[B, 3, T, H, W\]"):
            encoder(x)
    with pytest.raises(UserError, match="at least 2 clips"):
        encoder(torch.zeros(1, 3, 2, 16, 16))
    encoder.eval()(torch.zeros(1, 3, 2, 16, 16))
