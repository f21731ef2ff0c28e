"""The parts of `gpu_day`, one a process:  gpu_parts.py PART FIGURES.jsonl SECONDS EARLIER.json [--rehearse].

Figures are appended as lines of JSON as soon as they are known, so that a part which is ended keeps what it found. Floors are
counted before anything is timed: operations over the rate that the card reaches on the same convolutions, bytes over the rate
of its copy. Legend: B samples of a step, 2 clips a sample, 2 streams (one learns, one guides).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vicc_ray.config import Experiment

ROOT = Path(__file__).resolve().parent.parent
Sections = dict[str, dict[str, Any]]  # settings of an experiment file
SINGLE_VIEW = {"objective": {"second_view_gradient": False}}  # as published; R(2+1)D in fp32 fits 80 GB no other way
ATTEMPTS = (48, 24, 12)  # samples a step: the largest one that the published way has room for


@dataclass
class Context:
    """What a part needs to know: `earlier` has the figures of the parts before it, by their names."""

    device: torch.device
    rehearse: bool
    deadline: float
    file: Path
    earlier: dict[str, dict[str, Any]]

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def record(self, name: str, figure: Any) -> None:
        """Print a figure and keep it."""
        print(f"   {name}: {_shown(figure)}", flush=True)
        with self.file.open("a") as out:
            out.write(json.dumps({name: figure}) + "\n")

    def bar(self, name: str, figure: float, bar: float, at_least: bool = True) -> None:
        """Keep a figure that has to reach a bar, or must not exceed it."""
        holds = figure >= bar if at_least else figure <= bar
        sign = ">=" if at_least else "<="
        self.record(f"bar: {name}", {"figure": figure, "bar": f"{sign} {bar:g}", "holds": holds})


def _shown(figure: Any) -> str:
    if isinstance(figure, float):
        return f"{figure:.4g}"
    if isinstance(figure, dict):
        return ", ".join(f"{name} {_shown(value)}" for name, value in figure.items())
    return str(figure)


def tests(context: Context) -> None:
    """`tests/gpu`, and the augmentation kernel beside its twin."""
    command = [sys.executable, "-m", "pytest", "-q", "-x" if context.rehearse else "--maxfail=20", "tests/gpu"]
    if not context.rehearse:  # in the interpreter of a CPU they are part of the fast tests
        command.append("tests/test_augment_triton.py")
    result = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, check=False)
    context.record("pytest's status", result.returncode)
    if result.returncode:
        raise SystemExit(1)


# --- ceilings -------------------------------------------------------------------------------------------------------


def ceilings(context: Context) -> None:
    """Rates of the card, of the networks' own convolutions, and the floors of a step that follow."""
    from benchmarks import roofline
    from benchmarks.roofline import copy_rate, matmul_rate

    device = context.device
    if context.rehearse:
        roofline._MATRIX, roofline._COPIED = {"cpu": 256}, {"cpu": 1 << 22}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        cudnn: int = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        about = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, cuDNN {cudnn}"
        )
        context.record("card", f"{about}, driver and highest clock {_driver()}")
    copy = copy_rate(device)
    context.record("copy, GB/s read and written", copy / 1e9)
    torch.backends.cudnn.allow_tf32 = False
    context.record("matrix product in fp32, TFLOP/s", matmul_rate(device, torch.float32) / 1e12)
    torch.backends.cudnn.allow_tf32 = True
    context.record("matrix product in TF32, TFLOP/s", matmul_rate(device, torch.float32) / 1e12)
    context.record("matrix product in bf16, TFLOP/s", matmul_rate(device, torch.bfloat16) / 1e12)
    for backbone in ("s3d", "r2plus1d_10"):
        if context.left() < 12 and not context.rehearse:
            context.record(f"{backbone}", "skipped, out of time")
            continue
        floors(context, backbone, copy)


def _driver() -> str:
    line = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return line.stdout.strip()


def floors(context: Context, backbone: str, copy: float) -> None:
    """Seconds that a step of B samples cannot go below on this card, by what it has to compute and to move."""
    experiment = experiment_of(context, backbone)
    samples = 2 if context.rehearse else ATTEMPTS[0]
    layers, traffic = watched_layers(context, experiment)
    best = dict.fromkeys(("forward", "both"), 0.0)
    by_layout: dict[str, float] = defaultdict(float)
    operations = 0
    torch.backends.cudnn.benchmark = True
    for layer, count in layers.items():
        times = {layout: convolution_seconds(context, layer, samples, layout) for layout in ("plain", "last", "planar")}
        for layout, (forward, both) in times.items():
            by_layout[f"{layout}, forward and backward, ms a view"] += 1000 * count * both
            by_layout[f"{layout}, forward, ms a view"] += 1000 * count * forward
        best["forward"] += count * min(forward for forward, _ in times.values())
        best["both"] += count * min(both for _, both in times.values())
        operations += count * layer.operations(samples)
    context.record(f"{backbone}: convolutions by layout", dict(by_layout))
    # Both of the learner's views, of which one or both carry gradient, and two of the guide.
    gradient = 2 if experiment.objective.second_view_gradient else 1
    views = 2
    convolutions = gradient * best["both"] + (2 * views - gradient) * best["forward"]
    total = operations * (2 * views + 2 * gradient)  # a backward is two products
    context.record(f"{backbone}: operations of a step, 1e12", total / 1e12)
    context.record(_convolutions(backbone), 1000 * convolutions)
    context.record(f"{backbone}: their rate, TFLOP/s", total / convolutions / 1e12)
    # In bf16. Normalised maps, fused at best: forward reads them twice and writes, backward reads four and writes.
    norm = traffic["norm"] * (8 * gradient + 3 * (views - gradient))
    between = norm + views * (5 * traffic.get("pool", 0) + 2 * traffic["guide"])
    moved = 2 * samples * between
    context.record(f"{backbone}: bytes of what stands between convolutions, GB", moved / 1e9)
    context.record(f"{backbone}: floor of a step of {samples}, ms", 1000 * (convolutions + moved / copy))


def _convolutions(backbone: str) -> str:
    """The figure's name, under which a later part finds it."""
    return f"{backbone}: convolutions of a step alone, each in its best layout, ms"


@dataclass(frozen=True)
class Layer:
    """A convolution of a network, for one clip."""

    cin: int
    cout: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    size: tuple[int, ...]  # [t, h, w] of its input

    def operations(self, samples: int) -> int:
        """Floating-point operations of a forward."""
        sides = zip(self.size, self.padding, self.kernel, self.stride, strict=True)
        out = [(n + 2 * p - k) // s + 1 for n, p, k, s in sides]
        return int(2 * samples * self.cin * self.cout * np.prod(self.kernel) * np.prod(out))


def watched_layers(context: Context, experiment: Any) -> tuple[Counter[Layer], dict[str, int]]:
    """The convolutions that a clip goes through and how often, and how many numbers of a clip the other layers see.

    norm: in maps that are normalised; pool: read and written by pools; guide: written by convolutions with their norms folded in.
    """
    from vicc_ray.models.encoder import build_encoder

    encoder = build_encoder(experiment.model.backbone, width=experiment.model.width).to(context.device)
    layers: Counter[Layer] = Counter()
    moved: dict[str, int] = defaultdict(int)

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv3d):
            shape = tuple(inputs[0].shape[2:])
            kernel, stride, padding = (tuple(v) for v in (module.kernel_size, module.stride, module.padding))
            layers[Layer(module.in_channels, module.out_channels, kernel, stride, padding, shape)] += 1  # type: ignore[arg-type]
            moved["guide"] += output[0].numel()
        elif isinstance(module, nn.BatchNorm3d):
            moved["norm"] += output[0].numel()
        elif not list(module.children()) and "Pool" in type(module).__name__:
            moved["pool"] += output[0].numel() + inputs[0][0].numel()

    hooks = [module.register_forward_hook(seen) for module in encoder.modules()]
    clip = experiment.clip
    with torch.no_grad():
        encoder(torch.zeros(2, 3, clip.frames, clip.size, clip.size, device=context.device))
    for hook in hooks:
        hook.remove()
    return layers, dict(moved)


def convolution_seconds(context: Context, layer: Layer, samples: int, layout: str) -> tuple[float, float]:
    """Seconds of forward, and of forward and backward, of one convolution of `samples` clips in bf16."""
    from vicc_ray.models.planar import planar_

    dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32
    made = nn.Conv3d(layer.cin, layer.cout, layer.kernel, layer.stride, layer.padding, bias=False)  # type: ignore[arg-type]
    module: nn.Module = nn.Sequential(made)
    if layout == "planar":
        module = planar_(module)
    memory = torch.contiguous_format if layout == "plain" else torch.channels_last_3d
    module = module.to(context.device, dtype).to(memory_format=memory)
    first = layer.cin == 3
    x = torch.randn(samples, layer.cin, *layer.size, device=context.device, dtype=dtype).contiguous(
        memory_format=memory
    )
    x.requires_grad_(not first)
    y = module(x)
    upstream = torch.randn_like(y)

    def both() -> None:
        torch.autograd.grad(module(x), [*module.parameters()] + ([] if first else [x]), upstream)

    with torch.no_grad():
        forward = timed(context, partial(module, x), 5)
    return forward, timed(context, both, 5)


def timed(context: Context, work: Callable[[], object], times: int) -> float:
    """Seconds of one of several in a row, after two that are not counted."""
    from benchmarks.roofline import now

    times = 1 if context.rehearse else times
    for _ in range(2):
        work()
    start = now(context.device)
    for _ in range(times):
        work()
    return (now(context.device) - start) / times


# --- the step -------------------------------------------------------------------------------------------------------

PLAIN = {
    "channels_last": False,
    "planar": False,
    "fold_guide": False,
    "overlap": False,
    "fused_augment": False,
    "autotune": False,
}


def experiment_of(context: Context, backbone: str, sections: Sections | None = None, samples: int = 48) -> Experiment:
    """The published recipe at 32 x 128 px with this backbone; what is given replaces settings in its sections."""
    from vicc_ray.config import make_experiment

    tree: dict[str, Any] = {
        "name": "gpu",
        "clip": {"decode_size": [128, 171]},
        "augment": {"style": "physical"},
        "model": {"backbone": backbone, "batch_norm": "auto"},
        "objective": {},
        "schedule": {"single": {"global_batch": samples}, "cross": {"global_batch": samples}},
        "optim": {},
        "train": {},
    }
    if backbone != "s3d":
        tree["objective"] |= SINGLE_VIEW["objective"]
    if context.rehearse:
        tree["clip"] = {"frames": 4, "decode_size": [24, 32], "size": 24}
        tree["model"] |= {"width": 0.0625, "embedding_dim": 16}
        tree["schedule"] = {name: {"global_batch": 4, "queue_start": "0"} for name in ("single", "cross")}
        tree["objective"] |= {"prototypes": 8, "queue": 8}
    for section, values in (sections or {}).items():
        tree[section] = tree[section] | values
    return make_experiment(tree, "gpu_day")


def step_s3d(context: Context) -> None:
    """S3D."""
    _step(context, "s3d")


def step_r2plus1d(context: Context) -> None:
    """R(2+1)D of 10 layers."""
    _step(context, "r2plus1d_10")


# Settings beyond the plain step, by the name of the row; a row has those of `base` (the ones before it in CUMULATIVE) too.
CUMULATIVE: list[tuple[str, Sections]] = [
    ("+ guide folded", {"train": {"fold_guide": True}}),
    ("+ channels-last", {"train": {"channels_last": True}}),
    ("+ autotune", {"train": {"autotune": True}}),
    ("+ bf16", {"optim": {"precision": "bf16"}}),
    ("+ fused augmentation", {"train": {"fused_augment": True}}),
]
WITHOUT_TF32 = "ours, plain, convolutions in full float32"
BRANCHES: list[tuple[str, Sections]] = [
    ("planar", {"train": {"planar": True}}),
    ("overlap", {"train": {"overlap": True}}),
    ("joint views", {"model": {"joint_views": True}}),
    ("CUDA graphs", {"train": {"cuda_graphs": True}}),
    ("recompute", {"train": {"recompute": True}}),
    ("planar and overlap", {"train": {"planar": True, "overlap": True}}),
    ("contiguous instead of channels-last", {"train": {"channels_last": False}}),
    # The compiler last, as it takes a minute.
    ("compile and overlap", {"train": {"compile": True, "overlap": True}}),
    ("planar, compile and overlap", {"train": {"planar": True, "compile": True, "overlap": True}}),
]


def _step(context: Context, backbone: str) -> None:
    """Samples/s of the published way, of ours with each lever on top, and of single levers on the best of these."""
    for samples in ATTEMPTS:
        try:
            published = _published(context, backbone, samples)
            break
        except torch.OutOfMemoryError:
            context.record(f"{samples} samples", "out of memory the published way")
            torch.cuda.empty_cache()
    else:
        return
    rates = {"published": published}
    settings: Sections = {"train": dict(PLAIN)}
    rows: list[tuple[str, Sections]] = [("ours, plain", settings), (WITHOUT_TF32, settings)]
    for name, more in CUMULATIVE:
        settings = _merged(settings, more)
        rows.append((name, settings))
    for name, more in BRANCHES:
        rows.append((name, _merged(settings, more)))
    for name, chosen in rows:
        if backbone != "s3d" and ("model" in chosen or chosen["train"].get("cuda_graphs")):
            continue  # one view without gradient takes neither
        if context.left() < 12 and not context.rehearse:
            context.record(name, "skipped, out of time")
            continue
        try:
            torch.backends.cudnn.allow_tf32 = name != WITHOUT_TF32
            rates[name] = _row(context, name, experiment_of(context, backbone, chosen, samples), None)
        except Exception as error:
            context.record(name, f"failed: {type(error).__name__}: {str(error)[:300]}")
            torch.cuda.empty_cache()
    best = max((name for name in rates if name != "published"), key=lambda name: rates[name])
    context.record("best", {best: rates[best]})
    context.bar(f"{backbone}: {best} / the published way, frames ready", rates[best] / rates["published"], 3.0)
    convolutions = context.earlier.get("ceilings", {}).get(_convolutions(backbone))
    if convolutions:
        share = convolutions / ATTEMPTS[0] * rates[best] / 1000
        context.bar(f"{backbone}: share of the attainable rate of its convolutions", share, 0.4)


def _merged(settings: Sections, more: Sections) -> Sections:
    return settings | {section: settings.get(section, {}) | values for section, values in more.items()}


def _published(context: Context, backbone: str, samples: int) -> float:
    """The published way with the frames ready on the device (its loader is measured apart), and with its loader."""
    from benchmarks.step_published import Ways, loader, loader_processes, made_batch

    experiment = experiment_of(context, backbone, {"train": dict(PLAIN)}, samples)
    ways = Ways(guide=True, objective=True, lars=True)
    rate = _row(context, "published, frames augmented on the device", experiment, ways)
    stage = _stage(experiment)
    batch = made_batch(experiment, stage, 0.4)
    processes = 0 if context.rehearse else loader_processes(batch, experiment)
    views = loader(batch, experiment, processes, pinned=context.device.type == "cuda")
    next(views)
    start, count = time.perf_counter(), 2 if context.rehearse else 2 * max(processes, 1)
    for _ in range(count):
        next(views)
    loaded = count * samples / (time.perf_counter() - start)
    context.record(f"the published way's loader alone, {processes} processes, samples/s", loaded)
    context.record("published with its loader, samples/s (the slower of the two)", min(loaded, rate))
    return rate


def _stage(experiment: Any) -> Any:
    from benchmarks.step import stage_of

    return stage_of(experiment)


def _row(context: Context, name: str, experiment: Any, ways: Any) -> float:
    """Samples/s of one way to do the step."""
    from benchmarks.roofline import now, peak_memory
    from benchmarks.step import Contender, Row, make_trainer
    from benchmarks.step_published import made_batch

    stage = _stage(experiment)
    batch = _batch(experiment, stage, made_batch)
    row = Row(name, experiment, ways)
    contender = Contender(row, make_trainer(row, stage, context.device), batch, context.device)
    start = now(context.device)
    contender.step()
    first = now(context.device) - start
    contender.step()
    steps = 1 if context.rehearse else 6
    start = now(context.device)
    for _ in range(steps):
        contender.step()
    seconds = (now(context.device) - start) / steps
    rate: float = stage.global_batch / seconds
    memory = peak_memory(contender.step, context.device) / 2**30
    phases = {phase: 1000 * value for phase, value in contender.phases().items() if value > 1e-4}
    context.record(name, {"samples/s": rate, "ms": 1000 * seconds, "first s": first, "GiB": memory, **phases})
    return rate


_BATCHES: dict[Any, Any] = {}


def _batch(experiment: Any, stage: Any, made_batch: Any) -> Any:
    """The decoded clips of a step, made once."""
    key = (stage.global_batch, experiment.clip.size, stage.streams)
    if key not in _BATCHES:
        _BATCHES[key] = made_batch(experiment, stage, 0.4)
    return _BATCHES[key]


# --- flow, features, profile ----------------------------------------------------------------------------------------


def tvl1(context: Context) -> None:
    """Fields/s of TV-L1 at 320 x 240 on the device and of one CPU core of OpenCV, and how far their fields are apart."""
    import cv2
    from moving import moving_texture  # of tests/, which gpu_day puts on the path

    from benchmarks.roofline import now
    from vicc_ray.data.flow.tvl1 import tvl1 as fields_between
    from vicc_ray.data.flow.tvl1 import tvl1_flow

    height, width, count = (24, 32, 4) if context.rehearse else (240, 320, 256)
    frames = moving_texture(count + 1, height, width)
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    first, second = (torch.from_numpy(part).to(context.device) for part in (gray[:-1], gray[1:]))
    fields_between(first[:8], second[:8])
    rates = []
    for _ in range(1 if context.rehearse else 3):
        start = now(context.device)
        found = fields_between(first, second)
        rates.append(count / (now(context.device) - start))
    context.record(f"fields/s on the device, {width}x{height}, {count} at a time", sorted(rates)[len(rates) // 2])
    context.bar("TV-L1: fields/s", sorted(rates)[len(rates) // 2], 170)
    few = 3 if context.rehearse else 9
    start = time.perf_counter()
    ours = tvl1_flow(frames[:few], "cpu")
    torch_core = (few - 1) / (time.perf_counter() - start)
    context.record("fields/s on one CPU core in PyTorch", torch_core)
    context.record("device / core in PyTorch", sorted(rates)[len(rates) // 2] / torch_core)
    inside = np.s_[:, 4:-4, 4:-4]
    apart = np.linalg.norm(found[: few - 1].cpu().numpy() - ours, axis=-1)[inside].mean()
    context.record("mean distance from the CPU's fields, px", float(apart))
    if not hasattr(cv2, "optflow"):
        context.record("OpenCV", "has no TV-L1 here")
        return
    cv2.setNumThreads(1)
    algorithm = cv2.optflow.DualTVL1OpticalFlow.create()
    start = time.perf_counter()
    theirs = np.stack([algorithm.calc(gray[i], gray[i + 1], None) for i in range(few - 1)])
    opencv_core = (few - 1) / (time.perf_counter() - start)
    context.record("fields/s on one CPU core of OpenCV", opencv_core)
    context.bar("TV-L1: the device / one core of OpenCV", sorted(rates)[len(rates) // 2] / opencv_core, 100)
    apart = np.linalg.norm(found[: few - 1].cpu().numpy() - theirs, axis=-1)[inside].mean()
    context.bar("TV-L1: mean distance from OpenCV's fields, px", float(apart), 0.25, at_least=False)


def features(context: Context) -> None:
    """Clips/s of the model actor of `vicc evaluate`, S3D: as it is, and with the encoder's levers."""
    from benchmarks.roofline import now
    from vicc_ray.evaluation.model_actors import EncodeWindows
    from vicc_ray.models.encoder import build_encoder
    from vicc_ray.models.encoder_file import EncoderFile, save_encoder

    width = 0.0625 if context.rehearse else 1.0
    encoder = build_encoder("s3d", width=width)
    clips = 2 if context.rehearse else 32
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "RGB-1.safetensors"
        save_encoder(path, EncoderFile(spec=encoder.spec, stream="rgb", state_dict=encoder.state_dict()))
        changes: Sections
        for name, changes in (
            ("as it is", {}),
            ("channels-last", {"train": {"channels_last": True}}),
            ("planar", {"train": {"planar": True}}),
        ):
            experiment = experiment_of(context, "s3d", changes)
            clip = experiment.clip
            actor = EncodeWindows({"RGB-1": str(path)}, experiment, context.device.type == "cuda", 1)
            windows = np.random.default_rng(0).integers(0, 256, (clips, clip.frames, *clip.decode_size, 3), np.uint8)
            row = {"video": np.zeros(clips, np.int64), "refused": np.array([""] * clips), "rgb": windows}
            for _ in range(2):
                actor(row)
            start, times = now(context.device), 1 if context.rehearse else 4
            for _ in range(times):
                actor(row)
            context.record(f"S3D, {name}, clips/s", times * clips / (now(context.device) - start))


KINDS = {
    "convolutions": ("conv", "gemm", "cutlass", "cudnn", "xmma", "wgrad", "dgrad", "nvjet", "sm90", "sm80", "implicit"),
    "batch norm": ("batch_norm", "batchnorm", "bn_"),
    "pools": ("pool",),
    "augmentation": ("_chain", "upsample"),
    "Triton of the compiler": ("triton_",),
    "optimiser": ("multi_tensor", "foreach", "lars"),
    "reductions": ("reduce", "softmax", "norm"),
    "copies": ("memcpy", "memset", "copy", "cat"),
    "elementwise": ("elementwise", "vectorized", "unrolled"),
}


def profile(context: Context) -> None:
    """Where the device's time goes in two steps of S3D: bf16, channels-last and overlap, then with planar, then compiled."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from benchmarks.roofline import now
    from benchmarks.step import Contender, Row, make_trainer
    from benchmarks.step_published import made_batch

    settings: Sections = {
        "train": {"channels_last": True, "overlap": True},
        "optim": {"precision": "bf16"},
    }
    rows = [("levers", settings), ("levers and planar", _merged(settings, {"train": {"planar": True}}))]
    if context.device.type == "cuda":
        rows.append(("levers and compiler", _merged(settings, {"train": {"compile": True}})))
    for name, chosen in rows:
        if context.left() < 20 and not context.rehearse:
            context.record(name, "skipped, out of time")
            continue
        experiment = experiment_of(context, "s3d", chosen)
        stage = _stage(experiment)
        row = Row(name, experiment, None)
        contender = Contender(
            row, make_trainer(row, stage, context.device), _batch(experiment, stage, made_batch), context.device
        )
        for _ in range(1 if context.rehearse else 3):
            contender.step()
        kinds = [ProfilerActivity.CUDA] if context.device.type == "cuda" else [ProfilerActivity.CPU]
        start = now(context.device)
        with profiled(activities=kinds) as seen:
            contender.step()
            contender.step()
            elapsed = now(context.device) - start
        _report(context, name, seen, elapsed / 2)
        layers, _ = watched_layers(context, experiment)
        operations = 8 * sum(count * layer.operations(stage.global_batch) for layer, count in layers.items())
        context.record(
            f"{name}: convolutions' operations over all of the step, TFLOP/s", operations / (elapsed / 2) / 1e12
        )


def _report(context: Context, name: str, seen: Any, seconds: float) -> None:
    kernels: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        time_us = event.self_device_time_total or (0 if context.device.type == "cuda" else event.self_cpu_time_total)
        kernels[event.key] += time_us / 1000 / 2
    groups: dict[str, float] = defaultdict(float)
    for kernel, ms in kernels.items():
        lower = kernel.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), "other")
        groups[kind] += ms
    busy = sum(kernels.values())
    context.record(f"{name}: ms a step by kind", dict(sorted(groups.items(), key=lambda item: -item[1])))
    context.record(f"{name}: step, ms", 1000 * seconds)
    context.record(f"{name}: device busy (kernels beside each other count twice)", busy / 1000 / seconds)
    for kernel, ms in sorted(kernels.items(), key=lambda item: -item[1])[:18]:
        print(f"      {ms:8.2f} ms  {kernel[:150]}", flush=True)
    context.record(
        f"{name}: largest kernels, ms",
        {k[:100]: round(v, 2) for k, v in sorted(kernels.items(), key=lambda i: -i[1])[:18]},
    )


def quickstart(context: Context) -> None:
    """`vicc quickstart` to its end, on the GPU where Ray sees one."""
    try:
        import ray  # noqa: F401
    except ImportError:
        context.record("quickstart", "skipped: no Ray here")
        return
    if context.rehearse:
        context.record("quickstart", "not rehearsed: 'make quickstart' is the same command")
        return
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-m", "vicc_ray.cli", "quickstart", "--runs", folder],
            cwd=ROOT,
            check=False,
            env=os.environ,
        )
        context.record("quickstart's status and seconds", [result.returncode, round(time.monotonic() - start, 1)])
        figures = Path(folder) / "quickstart" / "results.csv"
        if figures.exists():
            context.record("results", figures.read_text().splitlines())
        metrics = Path(folder) / "quickstart" / "metrics.jsonl"
        if metrics.exists():
            context.record("samples/s by stage", dict(_rates(metrics)))
    if result.returncode:
        raise SystemExit(1)


def _rates(metrics: Path) -> Iterator[tuple[str, float]]:
    rates: dict[str, list[float]] = defaultdict(list)
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            rates[record["stage"]].append(record["samples_per_second"])
    for stage, values in rates.items():
        yield stage, float(np.median(values))


def main(arguments: list[str]) -> None:
    """Run one part."""
    name, file, seconds, earlier = arguments[:4]
    rehearse = "--rehearse" in arguments
    if not rehearse and not torch.cuda.is_available():
        print("   torch sees no GPU here; --rehearse runs the same path on the CPU")
        raise SystemExit(1)
    device = torch.device("cpu" if rehearse else "cuda")
    if rehearse:
        torch.set_num_threads(1)
        torch.compile = partial(torch.compile, backend="aot_eager")  # the real compiler takes minutes on a CPU
        nn.Module.compile = lambda module, **_: None  # type: ignore[method-assign]
    parts = {f.__name__: f for f in (tests, ceilings, step_s3d, step_r2plus1d, tvl1, features, profile, quickstart)}
    figures = json.loads(Path(earlier).read_text())
    parts[name](Context(device, rehearse, time.monotonic() + float(seconds), Path(file), figures))


if __name__ == "__main__":
    main(sys.argv[1:])
