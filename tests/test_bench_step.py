"""`vicc bench step`: its published side does the method's step, its rows differ by one thing each, its clocks add up."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_levers import experiment_of  # type: ignore[attr-defined]
from torch import nn

from benchmarks import run_bench
from benchmarks import step as bench
from benchmarks.roofline import copy_rate, matmul_rate, operations, peak_memory
from benchmarks.step_published import LoopLARS, Ways, exp_sinkhorn, loader, made_batch
from vicc_ray.data.augment import augment, draw
from vicc_ray.errors import UserError
from vicc_ray.objective.sinkhorn import sinkhorn
from vicc_ray.training.optim import LARS
from vicc_ray.training.step import StageTrainer, augment_settings

CPU = torch.device("cpu")
QUICKSTART = str(Path(__file__).parent.parent / "experiments" / "quickstart.yaml")


def test_exp_sinkhorn_is_the_log_domain_one() -> None:
    scores = torch.rand(12, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(exp_sinkhorn(scores, 0.1, 3), sinkhorn(scores[None], (7,), 0.1, 3)[0])


def test_the_loop_is_lars() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((4, 3), (5,), (2, 3, 1))] + [torch.zeros(3)]
    mine, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-2, "trust": 0.01}
    optimisers = LoopLARS(mine, **settings), LARS(theirs, **settings)
    for _ in range(3):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_loader_gives_the_same_clips() -> None:
    """Frame by frame with PIL, up to PIL's rounding, again and again."""
    experiment = experiment_of()
    batch = made_batch(experiment, bench.stage_of(experiment), full_share=0.0)
    views = loader(batch, experiment, processes=0, pinned=False)
    settings = augment_settings(experiment)
    for found in (next(views), next(views)):
        for clip in (0, 1):
            params = draw(settings, [keys[clip] for keys in batch.keys], batch.full[:, clip])
            rgb, flow = augment(batch.clips["rgb"][:, clip], batch.clips["flow"][:, clip], params, settings)
            for stream, expected in (("rgb", rgb), ("flow", flow)):
                assert expected is not None
                gap = (found[stream][:, clip] - expected).abs()  # type: ignore[index]
                assert float(gap.mean()) < 0.02 and float(expected.std()) > 0.2


def test_every_row_adds_one_thing() -> None:
    experiment = experiment_of(train={"planar": "auto", "fold_guide": True, "recompute": True})
    rows = bench.rows_of(experiment, bench.stage_of(experiment), CPU)
    assert [row.name for row in rows] == [
        "the published way",
        "+ frames augmented in batches",
        "+ log-domain assignments of all views at once",
        "+ LARS of all parameters at once",
        "+ one forward for the guide",
        "+ guide's batch norm folded",
        "+ convolutions and pools as 2D ones",
        "+ activations computed again = vicc train",
    ]
    assert rows[0].ways == Ways(True, True, True, True)
    assert rows[-1].ways is None and rows[-1].experiment == experiment
    states = [
        dataclasses.asdict(row.ways or Ways()) | row.experiment.train.model_dump() | row.experiment.model.model_dump()
        for row in rows
    ]
    for before, after in itertools.pairwise(states):
        assert sum(before[key] != after[key] for key in before) == 1
    trainers = [bench.make_trainer(row, bench.stage_of(experiment), CPU) for row in rows]
    assert type(trainers[-1]) is StageTrainer


def test_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setattr(bench, "loader_processes", lambda *_: 0)
    monkeypatch.setattr(bench, "matmul_rate", lambda *_: 1e12)
    monkeypatch.setattr(bench, "copy_rate", lambda *_: 1e9)
    experiment = experiment_of(train={"planar": True})
    outcome = bench.measure(1, experiment, "cpu")
    assert list(outcome.figures) == [row.name for row in bench.rows_of(experiment, bench.stage_of(experiment), CPU)]
    for name, figures in outcome.details.items():
        phases = {key: value for key, value in figures.items() if key.endswith(", ms")}
        assert len(phases) == len(bench.PHASES) and min(phases.values()) >= 0 and figures["MiB"] > 0
        for phase in ("augment", "encode guide", "encode learning", "objective", "backward", "optimiser"):
            assert phases[f"{phase}, ms"] or (phase == "augment" and name == bench.PUBLISHED)
        assert phases["data wait, ms"] > 0 if name == bench.PUBLISHED else phases["data wait, ms"] == 0
        assert figures["TFLOP/s"] == figures["of peak"]
    (bar,) = outcome.bars
    assert bar.bar == 1.5 and bar.figure == outcome.ratio(list(outcome.figures)[-1], bench.PUBLISHED)


def test_the_clock_takes_inner_phases_out_of_outer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(float(tick) for tick in (0, 1, 4, 10))
    monkeypatch.setattr(bench, "now", lambda _: next(ticks))
    clock = bench._Clock(CPU)
    clock.run("rest", lambda: clock.run("objective", lambda: None))
    assert clock.seconds["objective"] == 3 and clock.seconds["rest"] == 7


def test_counted_operations_and_memory() -> None:
    """A convolution of 3 x 3 over 8 x 8 pixels: 2 x 9 x 4 x 5 x 64 operations, once forward, once for its weights."""
    x, conv = torch.randn(1, 4, 8, 8), nn.Conv2d(4, 5, 3, padding=1, bias=False)
    assert operations(lambda: conv(x).sum().backward()) == 2 * (2 * 9 * 4 * 5 * 64)
    size = 64 << 20

    def work() -> None:
        """One that is given back at once, then two together."""
        torch.ones(size // 4)
        kept = torch.ones(size // 4)
        kept.add_(torch.ones(size // 8).sum())

    work()
    assert 1.5 * size <= peak_memory(work, CPU) < 1.6 * size


def test_rates_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.roofline._MATRIX", {"cpu": 128})
    monkeypatch.setattr("benchmarks.roofline._COPIED", {"cpu": 1 << 20})
    assert 1e7 < matmul_rate(CPU, torch.float32) < 1e14
    assert 1e7 < copy_rate(CPU) < 1e13


@pytest.mark.parametrize(
    ("name", "asked", "parts"),
    [
        ("step", {}, ["bench step", "EXPERIMENT.yaml"]),
        ("step", {"experiment": QUICKSTART, "manifest": "m.parquet"}, ["takes no --manifest"]),
        ("augment", {"experiment": QUICKSTART}, ["bench augment", "takes no experiment"]),
        ("augment", {"device": "cpu"}, ["--device"]),
    ],
)
def test_what_does_not_fit_is_refused(name: str, asked: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        run_bench(name, None, 1, **asked)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(UserError, match="sees no GPU"):
        bench.measure(1, experiment_of(), "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_measures_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "loader_processes", lambda *_: 0)
    outcome = bench.measure(1, experiment_of(train={"overlap": True}, optim={"precision": "bf16"}), "cuda")
    assert any("beside backward" in name for name in outcome.figures)
    assert all(figures["MiB"] > 0 for figures in outcome.details.values())
