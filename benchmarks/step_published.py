"""The training step the published way, for `vicc bench step`: written from the facts of the method, one thing at a time.

What differs from `training.step` can be chosen part by part (`Ways`), so that each of our steps can be measured on its own:
frames augmented one by one with PIL in the processes of a loader, one forward a view, assignments view by view as exp(), and
LARS one parameter at a time. Legend: B samples, V views, N rows, K prototypes, T frames, s side of the network's input.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.augment import by_frame
from vicc_ray.config import CHANNELS, Decoded, Experiment, Stream
from vicc_ray.data.augment import AugmentSettings, draw
from vicc_ray.models.encoder import Encoder
from vicc_ray.objective import Outcome, PrototypeObjective, Prototypes, SwappedPrediction
from vicc_ray.training.batches import Batch
from vicc_ray.training.schedule import Stage
from vicc_ray.training.step import StageTrainer, augment_settings

MOST_PROCESSES = 8
Views = dict[Stream, Tensor]


@dataclass(frozen=True)
class Ways:
    """Which parts of a step are done the published way."""

    loader: bool = False  # frames augmented in a loader's processes
    guide: bool = False  # one forward a view of the guide too
    objective: bool = False  # assignments by exp(), view by view
    lars: bool = False  # the update one parameter at a time


class PublishedTrainer(StageTrainer):
    """A stage whose step is, in the parts that `ways` names, the published one.

    Args:
        views: augmented clips [B, 2, 3, T, s, s] of each stream, batch by batch, for `ways.loader`.
    """

    def __init__(
        self,
        experiment: Experiment,
        stage: Stage,
        learner: Encoder,
        objective: PrototypeObjective,
        guide: Encoder | None,
        device: torch.device,
        ways: Ways,
        views: Iterator[Views] | None,
    ) -> None:
        super().__init__(experiment, stage, learner, objective, guide, device)
        self.ways, self.loaded = ways, views
        if ways.objective:
            ours = objective.prediction
            objective.prediction = PublishedPrediction(
                ours.settings, views=ours.views, dim=ours.dim, global_batch=stage.global_batch, stage=stage.name
            )
        if ways.lars:
            optim = experiment.optim
            self.optimiser = LoopLARS(
                self.module.parameters(), optim.lr, optim.momentum, optim.weight_decay, optim.trust
            )

    def wait(self) -> Views | None:
        """The next batch of the loader."""
        return next(self.loaded) if self.loaded is not None else None

    def _augmented(self, batch: Batch) -> dict[Stream, list[Tensor]]:
        loaded = self.wait()
        if loaded is None:
            return super()._augmented(batch)
        sent = {stream: self._sent(both) for stream, both in loaded.items()}
        return {
            stream: [both[:, clip].contiguous(memory_format=self.layout) for clip in (0, 1)]
            for stream, both in sent.items()
        }

    def _guide(self, views: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        if not self.ways.guide or views is None or self.guide is None:
            return super()._guide(views)
        with torch.no_grad(), self.autocast():
            return [self.guide(view) for view in views]


class PublishedPrediction(SwappedPrediction):
    """The same loss, one view after the other, with assignments from exp(scores / epsilon); one worker only."""

    def __call__(
        self, embeddings: Sequence[Tensor], prototypes: nn.Module, *, slots: Tensor, use_queue: bool, step: int
    ) -> Outcome:
        """As `SwappedPrediction`; nothing is checked. `step` is not needed."""
        assert isinstance(prototypes, Prototypes)
        counts = prototypes.counts
        z = [embedding.float() for embedding in embeddings]
        scores = [prototypes(view) for view in z]  # V x heads x [N, K]
        assignments = []
        loss = z[0].new_zeros(())
        for number, view in enumerate(self.assigned):
            past = None
            if self.queue is not None and use_queue and self.queue.full:
                past = prototypes(self.queue.rows[number].to(z[0]))
            heads = []
            for head in range(len(counts)):
                own = scores[view][head].detach()
                rows = own if past is None else torch.cat([past[head].detach(), own])
                heads.append(exp_sinkhorn(rows, self.settings.epsilon, self.settings.iterations)[-len(own) :])
            assignments.append(torch.cat(heads, dim=1))
            for other in (j for j in range(self.views) if j != view):
                for head, q in enumerate(heads):
                    prediction = torch.log_softmax(scores[other][head] / self.settings.temperature, dim=1)
                    loss = loss - (q * prediction).sum(dim=1).mean()
        loss = loss / (len(self.assigned) * (self.views - 1) * len(counts))
        if self.queue is not None:
            self.queue.push(torch.stack([z[view].detach() for view in self.assigned]), slots)
        learner = torch.stack([view.detach() for view in z[:2]])
        return Outcome(loss, torch.stack(assignments), learner, loss.detach() * len(slots), counts)


@torch.no_grad()
def exp_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assignments [N, K] of scores [N, K]: exp, then prototypes scaled to 1/K and samples to 1/N in turn."""
    q = torch.exp(scores / epsilon).T  # [K, N]
    prototypes, rows = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / prototypes
        q = q / q.sum(dim=0, keepdim=True) / rows
    return (q / q.sum(dim=0, keepdim=True)).T


class LoopLARS(Optimizer):
    """`training.optim.LARS`, one parameter after the other, the ratio decided on the host."""

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, trust: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; a closure is not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                grad, decay = weight.grad, group["weight_decay"]
                weight_norm, grad_norm = torch.norm(weight), torch.norm(grad)
                if weight_norm > 0 and grad_norm > 0:
                    ratio = group["trust"] * weight_norm / (grad_norm + decay * weight_norm + 1e-8)
                    grad = (grad + decay * weight) * ratio
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.clone(grad).detach()
                else:
                    state["momentum_buffer"].mul_(group["momentum"]).add_(grad)
                weight.add_(state["momentum_buffer"], alpha=-group["lr"])


class SampleViews(Dataset[Views]):
    """A sample's clips, augmented frame by frame: float32 [2, 3, T, s, s] of each stream."""

    def __init__(self, batch: Batch, settings: AugmentSettings) -> None:
        self.batch, self.settings = batch, settings

    def __len__(self) -> int:
        return len(self.batch.slots)

    def __getitem__(self, sample: int) -> Views:
        params = draw(self.settings, self.batch.keys[sample], self.batch.full[sample])
        return {stream: by_frame(clips[sample], params, self.settings) for stream, clips in self.batch.clips.items()}


class _InTurn(Sampler[int]):
    """All samples in order, again and again."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(self.samples)


def loader(batch: Batch, experiment: Experiment, processes: int, pinned: bool) -> Iterator[Views]:
    """Augmented batches without end, each process at work on the next one as soon as its last was taken.

    With 0 processes the batches are made in this one.
    """
    several: dict[str, Any] = {"multiprocessing_context": "spawn", "prefetch_factor": 1} if processes else {}
    size = len(batch.slots)
    made: DataLoader[Views] = DataLoader(
        SampleViews(batch, augment_settings(experiment)),
        batch_size=size,
        sampler=_InTurn(size),
        num_workers=processes,
        pin_memory=pinned,
        **several,
    )
    return iter(made)


def loader_processes(batch: Batch, experiment: Experiment) -> int:
    """As many as there are CPUs, up to 8, and as many as the shared memory of this machine holds two batches for each."""
    clip = experiment.clip
    bytes_ = len(batch.slots) * len(batch.clips) * 2 * 3 * clip.frames * clip.size**2 * 4
    try:
        room = shutil.disk_usage("/dev/shm").free
    except OSError:
        room = 0
    return int(min(len(os.sched_getaffinity(0)), MOST_PROCESSES, room // (2 * bytes_)))


def made_batch(experiment: Experiment, stage: Stage, full_share: float) -> Batch:
    """Decoded clips of a step as they come from the stream, smooth pictures that differ between frames."""
    clip, samples = experiment.clip, stage.global_batch
    generator = torch.Generator().manual_seed(experiment.seed)
    clips: dict[Decoded, Tensor] = {}
    for kind in stage.decoded:
        channels = CHANNELS[kind]
        noise = torch.rand((samples * 2 * clip.frames, channels, 12, 16), generator=generator)
        codes = (nn.functional.interpolate(noise, clip.decode_size, mode="bilinear") * 255).to(torch.uint8)
        frames = codes.permute(0, 2, 3, 1).contiguous()
        clips[kind] = frames.view(samples, 2, clip.frames, *clip.decode_size, channels)
    drawn = np.arange(2 * samples).reshape(samples, 2) % 10 < round(10 * full_share)
    keys = tuple(tuple((experiment.seed, sample, view) for view in (0, 1)) for sample in range(samples))
    return Batch(torch.arange(samples), torch.arange(samples), drawn, keys, clips)
