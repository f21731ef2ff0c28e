"""Learning classifiers: published schedules, the same result on any number of workers, exact resumption, what stays frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_processes
from tiny import tiny_experiment
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from vicc_ray import distributed
from vicc_ray.config import Experiment, make_experiment
from vicc_ray.data.clips import share
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.models.classifier import ClassifierProtocol, build_classifier, dropout_mask
from vicc_ray.models.classifier_file import load_classifier
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.encoder_file import EncoderFile, save_encoder
from vicc_ray.objective import NonFiniteError
from vicc_ray.runs.checkpoint import State
from vicc_ray.runs.encoders import EncoderOnDisk, open_encoder
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import read_records
from vicc_ray.training.batches import Batch, Block, decode_share, to_batch
from vicc_ray.training.classification import Classification, rare_classes, training_classes
from vicc_ray.training.classification_step import ClassifierTrainer, drop_steps
from vicc_ray.training.loop import Notice, train
from vicc_ray.training.schedule import Stage
from vicc_ray.training.survival import Finished

CPU = torch.device("cpu")
CLASSES = 4
BOTH: tuple[ClassifierProtocol, ...] = ("linear", "finetune")


def _experiment(**changes: Any) -> Experiment:
    return tiny_experiment(**changes)


def _stage(steps: int = 100, batch: int = 8, per_epoch: int = 2) -> Stage:
    nothing: dict[str, Any] = {"guide": None, "starts_from": "RGB-2", "guided_by": None, "warm_up": 0}
    return Stage(
        index=1,
        name="RGB-2",
        stream="rgb",
        first_step=0,
        steps=steps,
        cosine_steps=steps,
        steps_per_epoch=per_epoch,
        global_batch=batch,
        **nothing,
    )


def _trainer(
    protocol: ClassifierProtocol, experiment: Experiment | None = None, *, without_statistics: bool = False
) -> ClassifierTrainer:
    """A trainer over 16 videos, of which number i is of class i % 4."""
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=16, seed=1)
    classifier = build_classifier(encoder, protocol, CLASSES, seed=2)
    labels = torch.arange(16) % CLASSES
    trainer = ClassifierTrainer(experiment or _experiment(), _stage(), protocol, classifier, labels, CPU)
    if without_statistics:
        # Running statistics in training mode too: then rows do not see each other.
        for module in trainer.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    return trainer


def _batch(step: int = 0, rows: slice | range = slice(0, 8)) -> Batch:
    """Rows of a global batch of 8; the classes differ in the colour of their noise."""
    rng = np.random.default_rng(step)
    videos = rng.permutation(16)[:8]
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [30, 30, 30]])
    clips = colours[videos % CLASSES][:, None, None, None] + rng.integers(-30, 31, (8, 4, 32, 32, 3))
    mine = np.arange(8)[rows if isinstance(rows, slice) else slice(rows.start, rows.stop)]
    return Batch(
        slots=torch.from_numpy(mine),
        videos=torch.from_numpy(videos[mine]),
        full=np.zeros((len(mine), 1), bool),
        keys=tuple(((step, int(slot)),) for slot in mine),
        clips={"rgb": torch.from_numpy(clips[mine].astype(np.uint8))[:, None]},
    )


def _state(trainer: ClassifierTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.classifier.state_dict().items()}


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name],
            tensor,
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",  # type: ignore[misc]
        )


# The schedule


@pytest.mark.parametrize(
    ("protocol", "drops", "epochs"), [("linear", (60, 80), 100), ("finetune", (200, 300, 400, 450), 500)]
)
def test_learning_rates_fall_at_the_published_epochs(
    protocol: ClassifierProtocol, drops: tuple[int, ...], epochs: int
) -> None:
    trainer = _trainer(protocol)
    trainer.stage = _stage(steps=3 * epochs, per_epoch=3)
    trainer.drops = drop_steps(trainer.settings, trainer.stage)
    empty = _batch(rows=slice(0, 0))
    rates: tuple[float, ...] = (0.1,) if protocol == "linear" else (0.1, 0.01)
    for passed, drop in enumerate(drops):
        for step, falls in ((3 * drop - 1, passed), (3 * drop, passed + 1)):
            trainer.step(empty, step)
            found = [group["lr"] for group in trainer.optimiser.param_groups]
            assert found == pytest.approx([rate * 0.1**falls for rate in rates])
    assert all(group["weight_decay"] == 1e-3 for group in trainer.optimiser.param_groups)


def test_drops_may_be_shares_of_the_stage() -> None:
    experiment = _experiment(linear={"drops": ["50 %", "90 %"]})
    assert drop_steps(experiment.linear, _stage(steps=40)) == [20, 36]


# A step against its twin


def test_a_linear_step_is_plain_sgd_on_frozen_features() -> None:
    trainer = _trainer("linear", _experiment(linear={"dropout": 0.5}))
    head = copy.deepcopy(trainer.classifier.head)
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=16, seed=1).eval()
    momentum = {name: torch.zeros_like(parameter) for name, parameter in head.named_parameters()}
    for step in range(3):
        batch = _batch(step)
        with torch.no_grad():
            features = encoder.features(trainer._inputs(batch))
        mask = dropout_mask((6, 3, 1, step), 8, encoder.feature_dim, 0.5)
        labels = batch.videos % CLASSES
        logits = head(features, mask)
        loss = -logits.log_softmax(1)[range(8), labels].mean()
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(head.named_parameters(), gradients, strict=True):
                momentum[name] = 0.9 * momentum[name] + gradient + 1e-3 * parameter
                parameter -= 0.1 * momentum[name]  # type: ignore[misc]
        outcome = trainer.step(batch, step).metrics()
        assert outcome["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert outcome["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
        assert outcome["rows"] == 8
    _assert_same(trainer.classifier.head.state_dict(), head.state_dict(), 1e-4, 1e-6)


def test_a_finetuning_step_reaches_head_and_backbone() -> None:
    trainer = _trainer("finetune")
    twin = copy.deepcopy(trainer.classifier)
    batch = _batch()
    mask = dropout_mask((6, 3, 1, 0), 8, twin.encoder.feature_dim, 0.9)
    logits = twin.head(twin.encoder.features(trainer._inputs(batch)), mask)
    loss = F.cross_entropy(logits, batch.videos % CLASSES)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for module, rate in ((twin.head, 0.1), (twin.encoder.backbone, 0.01)):
            for parameter in module.parameters():
                assert parameter.grad is not None
                parameter -= rate * (parameter.grad + 1e-3 * parameter)  # type: ignore[misc]
    assert trainer.step(batch, 0).loss == pytest.approx(loss.item(), rel=1e-5)
    _assert_same(trainer.classifier.state_dict(), twin.state_dict(), 1e-4, 5e-6)


# What stays


@pytest.mark.parametrize("protocol", BOTH)
def test_a_frozen_backbone_stays_bit_by_bit(protocol: ClassifierProtocol) -> None:
    """Also in finetuning at a rate of 0: neither weights nor running statistics move."""
    trainer = _trainer(protocol, _experiment(finetune={"backbone_lr": 0}))
    before = _state(trainer)
    for step in range(2):
        trainer.step(_batch(step), step)
    after = _state(trainer)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == (not name.startswith("head.")), name


def test_a_step_without_samples_changes_nothing() -> None:
    for protocol in BOTH:
        trainer = _trainer(protocol)
        trainer.step(_batch(), 0)  # momentum and weight decay would move the weights now
        before = _state(trainer)
        assert trainer.step(_batch(rows=slice(0, 0)), 1).metrics() == {"loss": 0, "accuracy": 0, "rows": 0}
        _assert_same(_state(trainer), before, 0, 0)


def test_a_single_row_is_learnt_from_with_the_statistics_that_are_there() -> None:
    trainer = _trainer("linear")
    before = _state(trainer)
    trainer.step(_batch(rows=slice(3, 4)), 0)
    after = _state(trainer)
    assert torch.equal(after["head.norm.running_mean"], before["head.norm.running_mean"])
    assert not torch.equal(after["head.linear.weight"], before["head.linear.weight"])
    trainer.step(_batch(1), 1)
    assert not torch.equal(_state(trainer)["head.norm.running_mean"], before["head.norm.running_mean"])


@pytest.mark.parametrize("protocol", BOTH)
def test_a_loss_that_is_not_finite_is_refused_before_it_is_learnt(protocol: ClassifierProtocol) -> None:
    trainer = _trainer(protocol)
    with torch.no_grad():
        trainer.classifier.head.linear.bias[1] = float("nan")
    before = trainer.classifier.head.linear.weight.clone()
    with pytest.raises(NonFiniteError, match=f"classifier on RGB-2, step 5: .*lower {protocol}.head_lr"):
        trainer.step(_batch(), 5)
    assert torch.equal(trainer.classifier.head.linear.weight, before)


@pytest.mark.parametrize("protocol", BOTH)
def test_all_that_a_classifier_has_is_checked_before_it_is_kept(protocol: ClassifierProtocol) -> None:
    trainer = _trainer(protocol)
    expected = {tensor.data_ptr() for tensor in trainer.classifier.state_dict().values()}
    assert {tensor.data_ptr() for tensor in trainer.weights()} == expected


# Any number of workers


def _learn(protocol: ClassifierProtocol, cut: Callable[[int, int], range]) -> tuple[dict[str, Any], list[Any]]:
    """Three steps on this worker's rows: the classifier's state and each step's figures."""
    torch.set_num_threads(1)
    trainer = _trainer(protocol, without_statistics=True)
    rows = cut(distributed.rank(), distributed.world_size())
    figures = [trainer.step(_batch(step, rows), step).metrics() for step in range(3)]
    return {name: tensor.numpy() for name, tensor in _state(trainer).items()}, figures


def _even(rank: int, workers: int) -> range:
    return share(8, rank, workers)


def _lopsided(rank: int, workers: int) -> range:
    """Worker 1 has no row at all."""
    return range(0, 5) if rank == 0 else range(5, 5 if rank == 1 else 8)


def _learn_both(cut: Callable[[int, int], range]) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    return {protocol: _learn(protocol, cut) for protocol in BOTH}


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[dict[str, Any], list[Any]]]:
    return _learn_both(_even)


@pytest.mark.parametrize(("workers", "cut"), [(2, _even), (3, _even), (3, _lopsided)])
def test_any_number_of_workers_learns_the_same(alone: Any, workers: int, cut: Callable[[int, int], range]) -> None:
    for found in run_processes(_learn_both, workers, cut):
        for protocol, (expected, figures) in alone.items():
            state, seen = found[protocol]
            _assert_same(
                {name: torch.from_numpy(value) for name, value in state.items()},
                {name: torch.from_numpy(value) for name, value in expected.items()},
                1e-3,
                1e-5,
            )
            assert [step["rows"] for step in seen] == [8, 8, 8]
            assert [step["accuracy"] for step in seen] == [step["accuracy"] for step in figures]
            np.testing.assert_allclose([s["loss"] for s in seen], [s["loss"] for s in figures], rtol=1e-4)


# Resumption and learning


@pytest.mark.parametrize("protocol", BOTH)
def test_resuming_is_as_if_nothing_had_happened(protocol: ClassifierProtocol) -> None:
    whole, first, second = (_trainer(protocol) for _ in range(3))
    for step in range(4):
        whole.step(_batch(step), step)
    for step in range(2):
        first.step(_batch(step), step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        second.step(_batch(step), step)
    _assert_same(_state(second), _state(whole), 0, 0)


def test_colours_are_learnt() -> None:
    settings = {"head_lr": 0.1, "weight_decay": 0, "dropout": 0, "momentum": 0.5}
    for protocol in BOTH:
        trainer = _trainer(protocol, _experiment(linear=settings, finetune=settings))
        figures = [trainer.step(_batch(step), step) for step in range(32)]
        assert figures[0].loss == pytest.approx(np.log(CLASSES), abs=0.2)
        assert np.mean([f.accuracy for f in figures[-4:]]) > 0.85, protocol
        assert figures[-1].loss < 0.5 * figures[0].loss


def test_remarks_name_what_was_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicc_ray.models.precision.cpu_has_matrix_units", lambda: False)
    experiment = _experiment(
        optim={"micro_batch": 2, "precision": "bf16"},
        model={"batch_norm": "shuffle"},
        objective={"second_view_gradient": False},
    )
    assert experiment.linear.global_batch == 128
    linear, finetune = _trainer("linear", experiment).warnings(), _trainer("finetune", experiment).warnings()
    expected = ["linear.global_batch: 128", "optim.micro_batch: 2", "optim.precision: this CPU"]
    assert [line[: len(start)] for line, start in zip(linear, expected, strict=True)] == expected
    assert [line.split(":")[0] for line in finetune][-1] == "model.batch_norm"
    assert _trainer("linear", _experiment(linear={"global_batch": 8})).warnings() == []


# The task


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderOnDisk]:
    folder = RunFolder(tmp_path_factory.mktemp("encoders"))
    names = {"Flow-2": "flow", "RGB-2": "rgb"}
    for seed, (name, stream) in enumerate(names.items()):
        encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=16, seed=seed)
        file = EncoderFile(encoder.spec, stream, encoder.state_dict())  # type: ignore[arg-type]
        save_encoder(folder.encoder(name), file)
    return {name: open_encoder(folder, name) for name in names}


def _task(protocol: ClassifierProtocol, encoders: dict[str, EncoderOnDisk], videos: Manifest) -> Classification:
    return Classification(protocol, encoders, training_classes(_experiment(), videos))


def test_a_plan_has_a_stage_an_encoder(videos: Manifest, encoders: dict[str, EncoderOnDisk]) -> None:
    experiment = _experiment(linear={"global_batch": 5, "length": "4 epochs"})
    task = _task("linear", encoders, videos)
    assert len(task.classes) == 8 and list(task.classes) == sorted(task.classes)
    plan = task.plan(experiment, videos)
    assert plan.views == 1 and len(plan.videos) == 16
    first, second = plan.stages
    assert [(s.name, s.stream, s.streams, s.steps) for s in plan.stages] == [
        ("Flow-2", "flow", ("flow",), 12),
        ("RGB-2", "rgb", ("rgb",), 12),
    ]
    assert (first.steps_per_epoch, first.global_batch, second.first_step, second.index) == (3, 5, 12, 1)

    published = task.plan(make_experiment({}, "defaults"), videos).stages[0]
    assert (published.global_batch, published.steps) == (16, 100)  # 128 a step are more than there are
    finetuned = _task("finetune", encoders, videos).plan(make_experiment({}, "defaults"), videos).stages[0]
    assert finetuned.steps == 500


def test_bad_labels_get_one_line(videos: Manifest, encoders: dict[str, EncoderOnDisk]) -> None:
    experiment, task = _experiment(), _task("linear", encoders, videos)
    rows = videos.videos
    unlabelled = Manifest([replace(row, label=None) for row in rows])
    single = Manifest([replace(row, label="run") for row in rows])
    with pytest.raises(UserError, match="none of the 16 videos of train has a label"):
        task.plan(experiment, unlabelled)
    with pytest.raises(UserError, match=r"one class \(run\)"):
        task.plan(experiment, single)
    with pytest.raises(UserError, match="do not name"):
        replace(task, classes=task.classes[:-1]).plan(experiment, videos)
    with pytest.raises(UserError, match="no video in split 'val'"):
        task.plan(_experiment(data={"train_split": "val"}), videos)
    with pytest.raises(UserError, match=r"linear.length: 0"):
        task.plan(_experiment(linear={"length": "0"}), videos)
    with pytest.raises(UserError, match=r"linear.length: 50 %"):
        task.plan(_experiment(linear={"length": "50 %"}), videos)
    with pytest.raises(UserError, match=r"linear.global_batch: 1"):
        task.plan(_experiment(linear={"global_batch": 1}), videos)
    with pytest.raises(UserError, match="no encoder"):
        replace(task, encoders={}).plan(experiment, videos)
    gone = replace(task, encoders={"RGB-2": replace(encoders["RGB-2"], shared_name="missing.safetensors")})
    plan = gone.plan(experiment, videos)
    with pytest.raises(UserError, match=r"missing\.safetensors: no such file"):
        gone.open_stage(plan, RunFolder(Path("unused")), plan.stages[0], torch.device("cpu"))


def test_unlabelled_videos_are_left_out_and_rare_classes_listed(
    videos: Manifest, encoders: dict[str, EncoderOnDisk]
) -> None:
    rows = [replace(row) for row in videos.videos]
    first = next(i for i, row in enumerate(rows) if row.split == "train")
    rare = rows[first].label
    rows[first] = replace(rows[first], label=None)
    plan = _task("linear", encoders, videos).plan(_experiment(), Manifest(rows))
    assert len(plan.videos) == 15 and all(video.label is not None for video in plan.videos)
    assert rare_classes(plan) == [rare]
    assert rare_classes(_task("linear", encoders, videos).plan(_experiment(), videos)) == []


class _Host:
    """A host without Ray that keeps the last checkpoint and asks for an end after some looks."""

    device = CPU

    def __init__(self, plan: Any, looks: int = 1000) -> None:
        self.plan, self.looks, self.saved = plan, looks, {}  # type: Any, int, State

    def blocks(self, first_step: int) -> Iterator[Block]:
        for step in range(first_step, self.plan.steps):
            yield decode_share(self.plan, step, 0, 1)

    def save(self, state: State, about: dict[str, Any]) -> None:
        self.saved = copy.deepcopy(state)

    def finished(self, step: Finished) -> None:
        """Nothing is kept."""

    def notice(self) -> Notice:
        self.looks -= 1
        return Notice(stop=self.looks <= 0)


@pytest.mark.parametrize("protocol", BOTH)
def test_the_loop_leaves_classifiers_also_after_a_stop(
    videos: Manifest,
    encoders: dict[str, EncoderOnDisk],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: ClassifierProtocol,
) -> None:
    monkeypatch.setattr("vicc_ray.training.loop.POLL_SECONDS", 0.0)  # a look after every step
    settings = {"length": "3 steps", "global_batch": 8}
    experiment = _experiment(linear=settings, finetune=settings, train={"checkpoint_every": "2 steps"})
    task = _task(protocol, encoders, videos)
    plan = task.plan(experiment, videos)
    folders = [RunFolder(tmp_path / name) for name in ("whole", "stopped")]
    for folder in folders:
        folder.open(experiment, videos.fingerprint())
    whole, stopped = folders
    assert not task.is_finished(whole, plan.stages[0])
    assert train(task, plan, whole, _Host(plan), None, None) == 6
    host = _Host(plan, looks=3)  # after the first step of the second stage
    assert train(task, plan, stopped, host, None, None) == 4
    assert train(task, plan, stopped, _Host(plan), host.saved, None) == 6

    assert [record["loss"] > 0 for record in read_records(whole.metrics)] == [True] * 6
    for stage in plan.stages:
        assert task.is_finished(whole, stage) and task.is_finished(stopped, stage)
        first, second = (load_classifier(folder.classifier(stage.name)) for folder in folders)
        _assert_same(dict(second.state_dict), dict(first.state_dict), 0, 0)
        assert (first.stream, first.protocol, first.classes) == (stage.stream, protocol, task.classes)
        assert first.meta["name"] == stage.name and first.meta["experiment"]["name"] == "tiny"


def test_a_real_batch_brings_its_labels(videos: Manifest, encoders: dict[str, EncoderOnDisk]) -> None:
    experiment = _experiment(linear={"global_batch": 8})
    task = _task("linear", encoders, videos)
    plan = task.plan(experiment, videos)
    batch, _ = to_batch(plan, 3, decode_share(plan, 3, 1, 2))
    assert batch.clips["flow"].shape == (4, 1, 8, 32, 32, 2)
    learner = task.open_stage(plan, RunFolder(Path("unused")), plan.stages[0], CPU)
    _, chosen = plan.epoch_and_videos(3)
    expected = [plan.videos[video].label for video in chosen[4:]]
    assert [task.classes[label] for label in learner.labels[batch.videos]] == expected
    assert learner._inputs(batch).shape == (4, 3, 8, 32, 32)
