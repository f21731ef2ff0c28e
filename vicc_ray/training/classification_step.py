"""One classifier being learnt on one worker: a batch of decoded clips in, one optimiser step and its figures out. No Ray.

Legend: b samples of this worker, B of all workers, one clip a sample, T frames, d feature size, C classes.
A frozen encoder only gives features: they are gathered, and every worker takes the same step of the head on all of them,
so batch norm sees the global batch and no gradient travels. An encoder that learns too has its gradients averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from vicc_ray import distributed
from vicc_ray.config import ClassifierConfig, Experiment, Stream
from vicc_ray.data.augment import augmented, draw
from vicc_ray.data.randomness import RandomUse, key
from vicc_ray.models.classifier import Classifier, ClassifierProtocol, dropout_mask
from vicc_ray.models.encoder import Encoder, convert_batch_norm
from vicc_ray.models.planar import arrange, layout_of
from vicc_ray.models.precision import autocast_for
from vicc_ray.objective import NonFiniteError
from vicc_ray.training.batches import Batch
from vicc_ray.training.schedule import Stage
from vicc_ray.training.step import augment_settings
from vicc_ray.training.survival import OwnState, Undo, running_statistics


@dataclass(frozen=True)
class Classified:
    """What a step gave, over the global batch: mean cross-entropy in nats, share of rows whose class scored highest."""

    loss: float
    accuracy: float
    rows: int

    def metrics(self) -> dict[str, float]:
        """The figures, the same on every worker; `rows` are the samples that could be read, with 0 the others are 0."""
        return asdict(self)


def settings_of(experiment: Experiment, protocol: ClassifierProtocol) -> ClassifierConfig:
    """The section of the experiment for a protocol."""
    return experiment.linear if protocol == "linear" else experiment.finetune


def drop_steps(settings: ClassifierConfig, stage: Stage) -> list[int]:
    """Steps of the stage from which the learning rates are lower."""
    per_epoch, batch = stage.steps_per_epoch, stage.global_batch
    return [length.steps(steps_per_epoch=per_epoch, global_batch=batch, whole=stage.steps) for length in settings.drops]


class ClassifierTrainer:
    """The modules and the optimiser of a classifier's stage: `Learner` of the training loop.

    Args:
        classifier: it is moved to `device` and trained in place.
        labels: int64 [n], class of each of the plan's videos.
    """

    def __init__(
        self,
        experiment: Experiment,
        stage: Stage,
        protocol: ClassifierProtocol,
        classifier: Classifier,
        labels: Tensor,
        device: torch.device,
    ) -> None:
        self.experiment, self.stage, self.device = experiment, stage, device
        self.protocol, self.labels = protocol, labels
        self.settings = settings_of(experiment, protocol)
        self.drops = drop_steps(self.settings, stage)
        self.augmentation = augment_settings(experiment)
        self.layout = layout_of(experiment.train, device)
        self.classifier = arrange(classifier.train(), experiment.train, device)
        self.rows = 0  # that batch norm has learnt from since its statistics were averaged over the workers
        self.frozen = self.settings.backbone_lr == 0
        mode = experiment.model.batch_norm
        self.synced = not self.frozen and device.type == "cuda" and mode in ("auto", "sync")
        if self.frozen:
            self.classifier.encoder.eval().requires_grad_(False)
        elif self.synced or mode == "sync":
            self.classifier.encoder = convert_batch_norm(self.classifier.encoder, "sync", device)
        self.undo = Undo(dict(self.classifier.named_buffers()))
        self.autocast = autocast_for(experiment.optim.precision, device, self.classifier)
        self.learnt = [list(self.classifier.head.parameters())]
        self.rates = [self.settings.head_lr]
        if not self.frozen:
            # The projection has no part in a classifier and gets no gradient.
            self.learnt.append(list(self.encoder.backbone.parameters()))
            self.rates.append(self.settings.backbone_lr)
        self.optimiser: torch.optim.Optimizer = SGD(
            [{"params": params, "lr": rate} for params, rate in zip(self.learnt, self.rates, strict=True)],
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
            foreach=True,
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder under the head."""
        return self.classifier.encoder

    @property
    def encoders(self) -> list[tuple[str, Stream, Encoder]]:
        """That one, by the stage's name."""
        return [(self.stage.name, self.stage.stream, self.encoder)]

    def step(self, batch: Batch, step: int, measure: Callable[[Classified], None] | None = None) -> Classified:
        """One optimiser step, `step` counted from the stage's start; every worker calls it, also with no samples.

        NonFiniteError, on every worker alike and before anything is learnt, where the loss is NaN or infinite. A step
        without a readable sample on any worker changes nothing. `measure`: as in `Learner.step`.
        """
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.settings.drop_factor ** sum(step >= drop for drop in self.drops)
        self.undo.begin()
        self.optimiser.zero_grad(set_to_none=True)
        labels, slots = self.labels[batch.videos].to(self.device), batch.slots.to(self.device)
        forward = self._head_on_all_rows if self.frozen else self._own_rows
        outcome = forward(self._inputs(batch), labels, slots, step)
        if measure is not None:
            measure(outcome)
        self.rows += len(slots)
        if outcome.rows:
            self.optimiser.step()
        self.undo.end()
        return outcome

    def weights(self) -> list[Tensor]:
        """Parameters and batch statistics of the classifier, as this worker has them."""
        return [*self.classifier.parameters(), *self.classifier.buffers()]

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Give the encoder, on every worker, the batch statistics of all of them; every worker calls it."""
        distributed.average_buffers_(self.encoder, self.rows)
        self.rows = 0

    @torch.no_grad()
    def finish(self) -> Classifier:
        """The classifier that the stage leaves, with batch statistics of all workers; every worker calls it."""
        if not self.frozen:
            self.share_statistics()
        return self.classifier

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs, the same on every worker, all of which call this; tensors and plain values only."""
        return {"classifier": self.finish().state_dict(), "optimiser": self.optimiser.state_dict()}

    @torch.no_grad()
    def own_state(self) -> OwnState:
        """`state_dict` as of the last finished step, from this worker alone: no message, also in the middle of a step."""
        state = {
            "classifier": self.undo.undone(self.classifier.state_dict()),
            "optimiser": self.optimiser.state_dict(),
        }
        # The head's statistics are of all workers' rows already.
        names = [] if self.frozen else [f"encoder.{name}" for name in running_statistics(self.encoder)]
        return OwnState(state, "classifier", names, self.rows)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a stage saved by any number of workers."""
        self.classifier.load_state_dict(state["classifier"])
        self.optimiser.load_state_dict(state["optimiser"])

    def observe(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """None: nothing in a classifier's figures is known to be a warning."""
        return None

    def warnings(self) -> list[str]:
        """Settings that this stage could not take as they are."""
        lines, optim = distributed.idle_workers(self.stage.global_batch), self.experiment.optim
        if self.settings.global_batch > self.stage.global_batch:
            lines.append(
                f"{self.protocol}.global_batch: {self.settings.global_batch} is more than the "
                f"{len(self.labels)} labelled training videos, so a step takes {self.stage.global_batch}"
            )
        if optim.micro_batch is not None:
            lines.append(
                f"optim.micro_batch: {optim.micro_batch} is for pretraining; classifiers learn from whole shares"
            )
        if self.autocast.refused:
            lines.append(f"optim.precision: {self.autocast.refused}; fp32 is used")
        if not self.frozen and self.experiment.model.batch_norm == "shuffle":
            lines.append("model.batch_norm: shuffle is for pretraining; batch norm takes each worker's own statistics")
        return lines

    def _inputs(self, batch: Batch) -> Tensor:
        """Network inputs of the samples' first clips, augmented, float [b, 3, T, size, size]."""
        stream, size = self.stage.stream, self.augmentation.size
        clips = {name: both[:, 0].to(self.device, non_blocking=True) for name, both in batch.clips.items()}
        if not len(batch.slots):
            return torch.zeros(0, 3, next(iter(clips.values())).shape[1], size, size, device=self.device)
        params = draw(self.augmentation, [keys[0] for keys in batch.keys], batch.full[:, 0])
        view = augmented(clips, [stream], params, self.augmentation)[stream]
        return view.contiguous(memory_format=self.layout)

    def _head_on_all_rows(self, x: Tensor, labels: Tensor, slots: Tensor, step: int) -> Classified:
        """Forward and backward of the head on the features of every worker's rows."""
        with torch.no_grad(), self.autocast():
            features = self.encoder.features(x)
        # One message for all three; a float holds a class or a slot exactly up to 2^24.
        mine = torch.cat([features, labels[:, None].to(features), slots[:, None].to(features)], dim=1)
        rows = torch.cat(distributed.gather_rows(mine))
        features, labels, slots = rows[:, :-2], rows[:, -2].long(), rows[:, -1].long()
        if not len(rows):
            return Classified(0.0, 0.0, 0)
        # Of a single row batch norm cannot take statistics; it uses those that it has.
        self.classifier.head.train(len(rows) > 1)
        logits = self.classifier.head(features, self._mask(slots, step))
        loss = F.cross_entropy(logits, labels)
        outcome = self._outcome(torch.stack([loss.detach() * len(rows), _right(logits, labels), _count(rows)]), step)
        loss.backward()  # type: ignore[no-untyped-call]
        return outcome

    def _own_rows(self, x: Tensor, labels: Tensor, slots: Tensor, step: int) -> Classified:
        """Forward and backward of this worker's rows, gradients averaged to those of the mean over all rows."""
        with self.autocast():
            features = self._features(x)
        logits = self.classifier.head(features, self._mask(slots, step))
        loss_sum = F.cross_entropy(logits, labels, reduction="sum")
        figures = torch.stack([loss_sum.detach(), _right(logits, labels), _count(x)])
        distributed.all_reduce_sum_(figures)
        outcome = self._outcome(figures, step)
        # The gradients are averaged over the workers, hence times their number.
        mean = loss_sum * (distributed.world_size() / max(outcome.rows, 1))
        mean.backward()  # type: ignore[no-untyped-call]
        for parameter in (parameter for group in self.learnt for parameter in group):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        distributed.average_gradients_(self.classifier)
        return outcome

    def _features(self, x: Tensor) -> Tensor:
        """The encoder's features [b, d] of this worker's rows, with a graph to where all workers have to meet."""
        if len(x):
            return self.encoder.features(x)
        if not self.synced:
            return x.new_zeros(0, self.encoder.feature_dim)
        # Synchronised batch norm waits for every worker. It sends the statistics of no rows in the type of the input and
        # those of others in float32.
        with torch.autocast(x.device.type, enabled=False):
            return self.encoder.features(x)

    def _mask(self, slots: Tensor, step: int) -> Tensor | None:
        """The dropout of the rows at these slots [b]: float32 [b, d]; None without dropout."""
        if not self.settings.dropout:
            return None
        place = key(RandomUse.DROPOUT, self.experiment.seed, self.stage.index, step)
        whole = dropout_mask(place, self.stage.global_batch, self.encoder.feature_dim, self.settings.dropout)
        return whole.to(self.device)[slots]

    def _outcome(self, figures: Tensor, step: int) -> Classified:
        """From sums over the global batch [3] of loss, right rows and rows; NonFiniteError where the loss is not finite."""
        loss_sum, right, rows = figures.tolist()
        if not math.isfinite(loss_sum):
            raise NonFiniteError(
                f"classifier on {self.stage.name}, step {step}: the loss is NaN or infinite; restart from the last "
                f"checkpoint with a lower {self.protocol}.head_lr"
                + ("" if self.frozen else f" or {self.protocol}.backbone_lr")
                + ", and check whether the encoder's weights are finite"
            )
        return Classified(loss_sum / max(rows, 1.0), right / max(rows, 1.0), int(rows))


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """How many rows have their class highest: float32 []."""
    return (logits.detach().argmax(dim=1) == labels).sum().float()


def _count(rows: Tensor) -> Tensor:
    return torch.tensor(float(len(rows)), device=rows.device)
