"""One stage on one worker: a batch of decoded clips in, one optimiser step and its metrics out. No Ray.

Legend: b samples of this worker, B of all workers, 2 clips a sample, T frames, D embedding size, V views (2 or 4).
Views of a cross-stream step, in the method's order: f(x1), f(x2) of the learner, g(m2), g(m1) of the guide.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vicc_ray import distributed
from vicc_ray.config import STREAMS, Decoded, Experiment, Stream
from vicc_ray.data.augment import AugmentSettings, ClipParameters, augmented, draw_for
from vicc_ray.data.randomness import RandomUse, key
from vicc_ray.models.encoder import Encoder, convert_batch_norm
from vicc_ray.models.folding import fold_batch_norm
from vicc_ray.models.planar import arrange, layout_of
from vicc_ray.models.precision import autocast_for
from vicc_ray.models.recompute import recomputing
from vicc_ray.objective import Objective, StepOutcome
from vicc_ray.training.batches import Batch
from vicc_ray.training.graphs import graphed_inference, graphed_training
from vicc_ray.training.optim import make_optimiser
from vicc_ray.training.schedule import Stage, learning_rate
from vicc_ray.training.survival import OwnState, Undo, running_statistics

SHORT = 8  # the last word of the key of a sample's first short clip; its long clips have 0 and 1


class StageTrainer:
    """The encoders, the objective and the optimiser of a stage.

    Args:
        learner: encoder that learns; it is moved to `device` and trained in place.
        objective: what it learns by; moved to `device`, its parameters are trained in place.
        guide: frozen encoder of the other stream, None in a single-stream stage.
    """

    def __init__(
        self,
        experiment: Experiment,
        stage: Stage,
        learner: Encoder,
        objective: Objective,
        guide: Encoder | None,
        device: torch.device,
    ) -> None:
        self.experiment, self.stage, self.device = experiment, stage, device
        self.settings = augment_settings(experiment)
        # The layout changes the speed only; which one is faster depends on backbone, width and device.
        self.layout = layout_of(experiment.train, device)
        learner = arrange(learner.train(), experiment.train, device)
        mode = experiment.model.batch_norm
        if mode == "sync" or (mode == "auto" and device.type == "cuda"):
            learner = convert_batch_norm(learner, "sync", device)
        # One wrapped module: gradients of encoder and objective are averaged together.
        self.module = nn.ModuleDict({"encoder": learner, "objective": objective.to(device)})
        self.encoder, self.objective = learner, objective
        self.guide = None if guide is None else self._ready(guide)
        self.micro_batch = experiment.optim.micro_batch
        self.autocast = autocast_for(experiment.optim.precision, device, learner)
        # On GPU gradients are averaged while the backward pass goes on; on CPU, or in parts, in one message after it.
        overlaps = device.type == "cuda" and self.micro_batch is None
        self.encode = _Views(self.module, self._backbone(learner), experiment.model.joint_views)
        self.parallel = distributed.wrap_ddp(self.encode, device) if overlaps else self.encode
        self.graphs = _Graphs(self) if device.type == "cuda" and experiment.train.cuda_graphs else None
        self.averages = not overlaps
        self.optimiser = make_optimiser(list(self.module.parameters()), experiment.optim)
        self.rows = 0  # that batch norm has learnt from since its statistics were averaged over the workers
        self.undo = Undo(dict(learner.named_buffers()))
        self.undo_objective = Undo({**dict(objective.named_parameters()), **dict(objective.named_buffers())})
        self.averaged = copy.deepcopy(learner).eval().requires_grad_(False) if experiment.optim.ema else None
        # What prepares the inputs on a GPU does not wait for the backward pass before it, nor that for it.
        self.beside: torch.cuda.Stream | None = None
        if device.type == "cuda" and experiment.train.overlap:
            self.beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def _ready(self, guide: Encoder) -> Encoder:
        """The guide in its fastest form: nothing in it learns."""
        guide = guide.eval().requires_grad_(False)
        if self.experiment.train.fold_guide:
            guide = fold_batch_norm(guide)
        guide = arrange(guide, self.experiment.train, self.device)
        if self.experiment.train.compile:
            guide.backbone.compile(dynamic=False)
        return guide

    def _backbone(self, learner: Encoder) -> Callable[[Tensor], Tensor] | None:
        """Another way than its own to compute the learner's backbone, where the settings have one."""
        if self.experiment.train.recompute:
            return recomputing(learner.parts())
        if self.experiment.train.compile:
            # Beside the module, not in it: the monitor's clips, in eval mode, are not compiled for.
            return torch.compile(learner.backbone, dynamic=False)
        return None

    @property
    def sides(self) -> tuple[StageTrainer, ...]:
        """The learners of the stage, each of which leaves an encoder."""
        return (self,)

    @property
    def encoders(self) -> list[tuple[str, Stream, Encoder]]:
        """Name, stream and encoder of each that learns."""
        return [(side.stage.name, side.stage.stream, side.encoder) for side in self.sides]

    def warnings(self) -> list[str]:
        """Settings that this stage could not take as they are."""
        settings = self.experiment
        lines = [*distributed.idle_workers(self.stage.global_batch), *self.objective.warnings()]
        if self.autocast.refused:
            lines.append(f"optim.precision: {self.autocast.refused}; fp32 is used")
        for name in ("fused_augment", "autotune", "cuda_graphs"):
            if getattr(settings.train, name) and self.device.type != "cuda":
                lines.append(f"train.{name}: is for GPUs and does nothing on {self.device.type}")
        if self.graphs is not None and distributed.world_size() > 1:
            lines.append("train.cuda_graphs: is for one worker; with several only the guide is a graph")
        return lines

    def observe(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A warning where the recorded figures call for one."""
        return self.objective.observe(step, metrics)

    def step(self, batch: Batch, step: int, measure: Callable[[StepOutcome], None] | None = None) -> StepOutcome:
        """One optimiser step, `step` counted from the stage's start; every worker calls it, also with no samples.

        `measure`: as in `Learner.step`.
        """
        with self.kernels():
            return self._step(batch, step, measure)

    def _step(self, batch: Batch, step: int, measure: Callable[[StepOutcome], None] | None) -> StepOutcome:
        learner_views, guide_views = self.views(batch)
        short = self.short_views(batch)[self.stage.stream]
        self.begin(step)
        guided = self._guide(guide_views)
        if self.micro_batch is None:
            outcome = self._whole(learner_views, short, guided, batch.slots, step)
        else:
            outcome = self._in_parts(learner_views, guided, batch.slots, step)
        self.settle(step)
        if measure is not None:
            measure(outcome)
        self.apply(len(batch.slots))
        return outcome

    def begin(self, step: int) -> None:
        """A step begins: nothing is computed yet."""
        self.undo.begin()
        self.undo_objective.begin()
        self._set_learning_rate(step)
        self.optimiser.zero_grad(set_to_none=True)
        self.objective.before_forward(step)

    def settle(self, step: int) -> None:
        """The backward pass is done: the gradients of all workers come together."""
        self._average_gradients()
        self.objective.after_backward(step)
        if self.experiment.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.experiment.optim.clip_norm)

    def apply(self, rows: int) -> None:
        """Change what lasts, by the gradients of a step with this many samples of this worker; sends no message."""
        self.objective.finish_step()
        self.optimiser.step()
        self.rows += rows
        if self.averaged is not None:
            _average_(self.averaged, self.encoder, self.experiment.optim.ema)
        self.undo.end()
        self.undo_objective.end()

    def embed_averaged(self, views: tuple[Tensor, Tensor]) -> list[Tensor]:
        """The embeddings of both views by the averaged weights, two [b, D] without gradient."""
        assert self.averaged is not None
        with torch.inference_mode(), self.autocast():
            embeddings: Tensor = self.averaged(torch.cat(views))
        # Copied out of inference mode, as the objective's graph holds on to them.
        return list(embeddings.clone().chunk(2))

    def weights(self) -> list[Tensor]:
        """Of the encoder and the objective, and averaged ones, with the encoders' batch statistics, as this worker has them.

        Each in its own shape and dtype, not copied.
        """
        averaged = [] if self.averaged is None else [*self.averaged.parameters(), *self.averaged.buffers()]
        return [*self.module.parameters(), *self.encoder.buffers(), *averaged]

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Give the encoder, on every worker, the batch statistics of all of them; every worker calls it."""
        distributed.average_buffers_(self.encoder, self.rows)
        self.rows = 0
        if self.averaged is not None:
            for mine, theirs in zip(self.averaged.buffers(), self.encoder.buffers(), strict=True):
                mine.copy_(theirs)

    @torch.no_grad()
    def finish(self) -> Encoder:
        """The encoder that the stage leaves: averaged weights where configured, batch statistics of all workers."""
        self.share_statistics()
        self.objective.finish()
        return self.averaged if self.averaged is not None else self.encoder

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs, the same on every worker, all of which call this; tensors and plain values only."""
        self.share_statistics()
        return {
            "encoder": self.encoder.state_dict(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "memory": self.objective.memory(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
        }

    @torch.no_grad()
    def own_state(self) -> OwnState | None:
        """`state_dict` as of the last finished step, from this worker alone: no message, also in the middle of a step.

        None where the objective's memory is spread over the workers.
        """
        memory = self.objective.own_memory()
        if memory is None:
            return None
        state = {
            "encoder": self.undo.undone(self.encoder.state_dict()),
            "objective": self.undo_objective.undone(self.objective.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "memory": memory,
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
        }
        return OwnState(state, "encoder", running_statistics(self.encoder), self.rows)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a stage saved by any number of workers."""
        if "prototypes" in state:  # of a version whose trainer knew the prototypes and the queue by name
            heads = {f"prototypes.{name}": head for name, head in state["prototypes"].items()}
            state = state | {"objective": heads, "memory": state["objective"]}
        self.encoder.load_state_dict(state["encoder"])
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.objective.load_memory(state["memory"])
        if self.averaged is not None and state["averaged"] is not None:
            self.averaged.load_state_dict(state["averaged"])

    def views(self, batch: Batch) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
        """Augmented network inputs, float [b, 3, T, size, size]: (x1, x2) of the learner and (m2, m1) of the guide."""
        with self._beside():
            pairs = self._augmented(batch)
        if self.beside is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self.beside)
            for view in (view for pair in pairs.values() for view in pair):
                view.record_stream(now)  # or its memory would be given away while it is read here
        x1, x2 = pairs[self.stage.stream]
        if self.stage.guide is None:
            return (x1, x2), None
        m1, m2 = pairs[self.stage.guide]
        return (x1, x2), (m2, m1)

    def short_views(self, batch: Batch) -> dict[Stream, list[Tensor]]:
        """Network inputs of short clips cut out of the sample's two in turn, float [b, 3, t, size, size]; none without the setting.

        Where a short clip begins is drawn for each sample; it is augmented as a clip of its own.
        """
        augment = self.experiment.augment
        found: dict[Stream, list[Tensor]] = {stream: [] for stream in self.stage.streams}
        for number in range(augment.local_clips):
            long, length = number % 2, augment.local_frames
            places = [keys[long][:-1] for keys in batch.keys]
            first = [self._short_start(place, number) for place in places]
            clips = {
                name: torch.stack([clip[long, start : start + length] for clip, start in zip(both, first, strict=True)])
                if len(first)
                else both[:, long, :length]
                for name, both in batch.clips.items()
            }
            sent = {name: self._sent(frames) for name, frames in clips.items()}
            keys = [(*place, SHORT + number) for place in places]
            params = draw_for(self.settings, keys, batch.full[:, long], sent)
            for stream, view in self._augment(sent, params).items():
                found[stream].append(view.contiguous(memory_format=self.layout))
        return found

    def _short_start(self, place: tuple[int, ...], number: int) -> int:
        """The frame of its long clip that a short clip begins with."""
        room = self.experiment.clip.frames - self.experiment.augment.local_frames
        return int(np.random.default_rng(key(RandomUse.SHORT, *place, number)).integers(0, room + 1))

    def _augmented(self, batch: Batch) -> dict[Stream, list[Tensor]]:
        """Both clips of each stream, float [b, 3, T, size, size]."""
        pairs: dict[Stream, list[Tensor]] = {stream: [] for stream in self.stage.streams}
        sent = {name: self._sent(frames) for name, frames in batch.clips.items()}
        # Clip by clip: all first clips, then all second ones, so that the streams of a clip share their draw.
        for clip in (0, 1):
            clips = {name: both[:, clip] for name, both in sent.items()}
            params = draw_for(self.settings, [keys[clip] for keys in batch.keys], batch.full[:, clip], clips)
            for stream, view in self._augment(clips, params).items():
                pairs[stream].append(view.contiguous(memory_format=self.layout))
        return pairs

    def _augment(self, clips: Mapping[Decoded, Tensor], params: ClipParameters) -> Mapping[Stream, Tensor]:
        """One clip of each sample in every stream, float [b, 3, T, size, size]."""
        streams, size = self.stage.streams, self.settings.size
        if not len(params):
            frames = next(iter(clips.values()))
            return {stream: torch.zeros(0, 3, frames.shape[1], size, size, device=self.device) for stream in streams}
        if self.device.type != "cuda" or not self.experiment.train.fused_augment:
            return augmented(clips, streams, params, self.settings)
        from vicc_ray.data.augment_triton import augment_fused

        rgb, flow = (clips[STREAMS[name].decoded] if name in streams else None for name in ("rgb", "flow"))
        fused = augment_fused(rgb, flow, params, self.settings, self.autocast.dtype or torch.float32, self.layout)
        views = {name: view for name, view in zip(("rgb", "flow"), fused, strict=True) if view is not None}
        rest = augmented(clips, [stream for stream in streams if stream not in views], params, self.settings)
        return {**views, **rest}  # type: ignore[dict-item]

    def _sent(self, frames: Tensor) -> Tensor:
        """Decoded clips on the device. From pinned memory a copy neither waits nor is waited for."""
        if self.beside is not None:
            frames = frames.pin_memory()
        return frames.to(self.device, non_blocking=True)

    def _beside(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.beside is None else torch.cuda.stream(self.beside)

    def _guide(self, views: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        """The guide's embeddings of (m2, m1): [] or two [b, D], without gradient."""
        if views is None or self.guide is None:
            return []
        with torch.inference_mode(), self.autocast():
            # In eval mode rows do not see each other, so both views go through together.
            clips = torch.cat(views)
            embeddings = self.guide(clips) if self.graphs is None else self.graphs.guide(clips)
        # Copied out of inference mode, as the objective's graph holds on to them.
        return list(embeddings.clone().chunk(2))

    def _whole(
        self, views: tuple[Tensor, Tensor], short: list[Tensor], guided: list[Tensor], slots: Tensor, step: int
    ) -> StepOutcome:
        """Forward and backward of the whole share at once."""
        z1, z2, *rest = self.embed(views, short, step)
        outcome = self.outcome([z1, z2, *guided, *rest], slots, step)
        self.backward(outcome.loss)
        return outcome

    def embed(self, views: tuple[Tensor, Tensor], short: Sequence[Tensor], step: int) -> list[Tensor]:
        """The learner's embeddings of both views and of the short ones, [b, D] each.

        With gradient, but for the second view where `objective.second_view_gradient` is false.
        """
        x1, x2 = views
        with self.autocast():
            if self.experiment.objective.second_view_gradient:
                return list(self.parallel(x1, x2, *short) if self.graphs is None else self.graphs.learner(x1, x2))
            z1, *rest = self.parallel(x1, *short)
        return [z1, self._second_view(x2, step), *rest]

    def _in_parts(self, views: tuple[Tensor, Tensor], guided: list[Tensor], slots: Tensor, step: int) -> StepOutcome:
        """The same gradient with `optim.micro_batch` samples in memory at a time.

        The assignments need the whole batch. So the embeddings are computed first without a graph, the objective gives
        the loss and its gradient with respect to them, then each part is encoded again with a graph and that gradient is
        sent through it. Exact but for batch norm, whose statistics are those of a part.
        """
        encoder, size = self.encode, self.micro_batch or 1
        second = self.experiment.objective.second_view_gradient
        inputs = views if second else views[:1]
        statistics = [buffer.clone() for buffer in self.encoder.buffers()]
        with torch.no_grad(), self.autocast():
            parts = [encoder(*chunk) for chunk in _chunks(inputs, size)]
        for buffer, before in zip(self.encoder.buffers(), statistics, strict=True):
            buffer.copy_(before)  # the first pass leaves no trace in the running statistics
        leaves = [torch.cat(view).requires_grad_() for view in zip(*parts, strict=True)]
        learnt = leaves if second else [leaves[0], self._second_view(views[1], step)]
        outcome = self.outcome([*learnt, *guided], slots, step)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        for chunk, chunk_grads in zip(_chunks(inputs, size), _chunks(grads, size), strict=True):
            with self.autocast():
                embeddings = encoder(*chunk)
            torch.autograd.backward(embeddings, list(chunk_grads))
        return outcome

    def _second_view(self, x2: Tensor, step: int) -> Tensor:
        """The second view without gradient, as published; with `shuffle`, its rows encoded on other workers."""
        with torch.no_grad(), self.autocast():
            if self.experiment.model.batch_norm != "shuffle" or distributed.world_size() == 1:
                return self._encode(x2)
            # Of one type on every worker, also on those without rows, whose views nothing has made.
            rows = torch.cat(distributed.gather_rows(x2.to(self.autocast.dtype or torch.float32)))
            counts = [len(part) for part in distributed.gather_rows(torch.zeros(len(x2), 1, device=self.device))]
            place = key(RandomUse.SHUFFLE, self.experiment.seed, self.stage.index, step)
            order = np.random.default_rng(place).permutation(len(rows))
            before = sum(counts[: distributed.rank()])
            mine = slice(before, before + len(x2))
            shuffled = self._encode(rows[torch.as_tensor(order[mine], device=self.device)])
            everywhere = torch.cat(distributed.gather_rows(shuffled))
            back = torch.as_tensor(np.argsort(order)[mine], device=self.device)
            return everywhere[back]

    def _encode(self, x: Tensor) -> Tensor:
        """The learner's embeddings of one view, also where this worker has no rows."""
        embeddings: list[Tensor] = self.encode(x)
        return embeddings[0]

    def outcome(self, embeddings: Sequence[Tensor], slots: Tensor, step: int) -> StepOutcome:
        """What the objective makes of V embeddings [b, D]."""
        outcome: StepOutcome = self.objective(embeddings, slots=slots, step=step)
        return outcome

    def backward(self, loss: Tensor) -> None:
        """The gradients of this worker's samples, of a loss float32 []; on a GPU averaged over the workers meanwhile."""
        loss.backward()  # type: ignore[no-untyped-call]

    def _average_gradients(self) -> None:
        shared = self.objective.shared()
        if self.averages:
            distributed.average_gradients_(self.module, shared)
        else:
            distributed.all_reduce_sum_(*shared)

    def _set_learning_rate(self, step: int) -> None:
        rate = learning_rate(self.stage, step, self.experiment.optim.lr, self.experiment.optim.end_lr)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """How libraries choose their kernels, as the settings want it; afterwards as before."""
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark
        cudnn.benchmark = self.device.type == "cuda" and self.experiment.train.autotune
        try:
            yield
        finally:
            cudnn.benchmark = before


class _Graphs:
    """The encoders as CUDA graphs for the first shape of batch that comes; other shapes, and several workers, go without."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer
        # Without the objective, which the embeddings do not depend on: a graph takes gradients of all that it is given.
        self.encode = _Views(nn.ModuleDict({"encoder": trainer.encoder}), None, trainer.experiment.model.joint_views)
        self.ready: tuple[torch.Size, nn.Module] | None = None
        self.ready_guide: tuple[torch.Size, Callable[[Tensor], Tensor]] | None = None

    def learner(self, *views: Tensor) -> Sequence[Tensor]:
        """As `trainer.parallel`."""
        trainer, shape = self.trainer, views[0].shape
        if self.ready is None and len(views[0]) and distributed.world_size() == 1:
            self.ready = (shape, graphed_training(self.encode, views, trainer.autocast.dtype))
        if self.ready is None or self.ready[0] != shape:
            plain: Sequence[Tensor] = trainer.parallel(*views)
            return plain
        embeddings: Sequence[Tensor] = self.ready[1](*views)
        return embeddings

    def guide(self, clips: Tensor) -> Tensor:
        """As `trainer.guide`."""
        guide = self.trainer.guide
        assert guide is not None
        if self.ready_guide is None and len(clips):
            self.ready_guide = (clips.shape, graphed_inference(guide, clips))
        if self.ready_guide is None or self.ready_guide[0] != clips.shape:
            plain: Tensor = guide(clips)
            return plain
        return self.ready_guide[1](clips)


class _Views(nn.Module):
    """The encoder applied to each view on its own, so that batch norm sees one view at a time, as published.

    Args:
        module: `encoder` is in it.
        backbone: what computes the encoder's backbone, None for itself.
        joint: all views of a length in one forward, so that batch norm sees them together.
    """

    def __init__(self, module: nn.ModuleDict, backbone: Callable[[Tensor], Tensor] | None, joint: bool) -> None:
        super().__init__()
        self.module, self.joint = module, joint
        self.backbone = (backbone,)  # in a tuple, or what is compiled would be a second child with the same weights

    def forward(self, *views: Tensor) -> list[Tensor]:
        """Embeddings [b, D] of each of the views [b, 3, T, h, w]; a worker without samples still takes part."""
        if not self.joint:
            return [self._encode(x) for x in views]
        groups: dict[int, list[Tensor]] = {}
        for x in views:  # short views come after the long ones
            groups.setdefault(x.shape[2], []).append(x)
        return [z for group in groups.values() for z in self._encode(torch.cat(group)).chunk(len(group))]

    def _encode(self, x: Tensor) -> Tensor:
        embeddings: Tensor
        if len(x):
            embeddings = self.module["encoder"](x, self.backbone[0])
            return embeddings
        # No rows teach batch norm nothing, and the graph is there for the gradients of all workers to meet. In float32,
        # as synchronised batch norm sends the statistics of no rows in their own type and those of others in float32.
        with torch.autocast(x.device.type, enabled=False):
            embeddings = self.module["encoder"](x)
        return embeddings


def augment_settings(experiment: Experiment) -> AugmentSettings:
    """The augmentation of training clips of an experiment."""
    settings = experiment.augment
    return AugmentSettings(
        size=experiment.clip.size,
        area=settings.area,
        aspect=settings.aspect,
        jitter=settings.jitter,
        jitter_p=settings.jitter_p,
        gray_p=settings.gray_p,
        blur_sigma=settings.blur_sigma,
        blur_p=settings.blur_p,
        flip_p=settings.flip_p,
        style=settings.style,
        follow=settings.follow,
    )


def _chunks(tensors: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    """The rows of all tensors in parts of at most `size`; one part where there are no rows."""
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


@torch.no_grad()
def _average_(averaged: Encoder, encoder: Encoder, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(encoder.parameters()), 1 - decay)
    for mine, theirs in zip(averaged.buffers(), encoder.buffers(), strict=True):
        mine.copy_(theirs)
