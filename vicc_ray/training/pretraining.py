"""Pretraining as a task of the loop: the streams' stages in turn, each of which writes an encoder. No Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vicc_ray import distributed
from vicc_ray.config import STREAMS, Experiment, Stream
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.randomness import WeightUse, weight_seed
from vicc_ray.errors import UserError
from vicc_ray.extensions import OBJECTIVES
from vicc_ray.models.encoder import Encoder, EncoderSpec, build_encoder, check_clip_size, empty_encoder
from vicc_ray.models.encoder_file import EncoderFile, load_encoder, save_encoder
from vicc_ray.models.layers import subtract_mean_over_time_
from vicc_ray.objective import Objective
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.batches import TrainingPlan, make_plan
from vicc_ray.training.joint import JointTrainer
from vicc_ray.training.schedule import Stage
from vicc_ray.training.step import StageTrainer


@dataclass(frozen=True)
class Pretraining:
    """The published alternation: `Task` of `training.schedule`'s stages.

    Attributes:
        last: the stage after which the run ends; None: the schedule's last one.
        pause: as `TrainingPlan.pause`.
    """

    last: str | None = None
    pause: int | None = None

    def plan(self, experiment: Experiment, manifest: Manifest) -> TrainingPlan:
        """The stages, to the last one, over the manifest's training videos."""
        model, clip = experiment.model, experiment.clip
        spec = EncoderSpec(model.backbone, width=model.width, embedding_dim=model.embedding_dim)
        check_clip_size(spec, clip.frames, clip.size)
        if experiment.augment.local_clips and empty_encoder(spec).clip is not None:
            raise UserError(f"augment.local_clips: {model.backbone} takes clips of one length only; set 0")
        share = model.difference_filters
        if share and not subtract_mean_over_time_(empty_encoder(spec), share):
            raise UserError(
                f"model.difference_filters: {share} of the filters of {model.backbone}'s convolutions over time is none; set 0"
            )
        plan = replace(make_plan(experiment, manifest), pause=self.pause)
        if self.last is None:
            return plan
        (last,) = (stage.index for stage in plan.stages if self.last in stage.leaves)
        return replace(plan, stages=plan.stages[: last + 1])

    def is_finished(self, folder: RunFolder, stage: Stage) -> bool:
        """Whether the stage's encoders are there."""
        return all(folder.encoder(name).is_file() for name in stage.leaves)

    def open_stage(
        self, plan: TrainingPlan, folder: RunFolder, stage: Stage, device: torch.device
    ) -> StageTrainer | JointTrainer:
        """The learner from its own stream's newest encoder, the guide from the other's, frozen or learning too."""
        if stage.beside is not None:
            sides = (stage, stage.mirrored())
            return JointTrainer(
                *(_trainer(plan, folder, one, None, _heads(plan, folder, one), device) for one in sides)
            )
        guide = load_encoder(folder.fetch(folder.encoder(stage.guided_by))).build() if stage.guided_by else None
        return _trainer(plan, folder, stage, guide, _heads(plan, folder, stage), device)

    def close_stage(
        self, plan: TrainingPlan, folder: RunFolder, stage: Stage, learner: StageTrainer | JointTrainer
    ) -> None:
        """Write the stage's encoders."""
        for side in learner.sides:
            _save(plan, folder, side.stage.name, side.stage, side.finish(), side.objective)
        distributed.barrier()  # no worker opens the file before it is there


def _heads(plan: TrainingPlan, folder: RunFolder, stage: Stage) -> list[Tensor] | None:
    """The prototypes that a stage starts with, [K_h, D] of each head; None: new ones.

    Where both streams learn in one stage, `stage.guided_by` is the other one's encoder before it.
    """
    if stage.starts_from is None:
        return None
    source = stage.starts_from
    if (
        plan.experiment.schedule.cross.prototypes == "guide"
        and stage.guided_by
        and not (stage.beside and stage.stream != "rgb")
    ):
        source = stage.guided_by
    return load_encoder(folder.fetch(folder.encoder(source))).prototypes


def _trainer(
    plan: TrainingPlan,
    folder: RunFolder,
    stage: Stage,
    guide: Encoder | None,
    heads: list[Tensor] | None,
    device: torch.device,
) -> StageTrainer:
    experiment = plan.experiment
    objective = build_objective(experiment, stage)
    if stage.starts_from is None:
        learner = _fresh_encoder(plan, stage.stream)
        _save(plan, folder, f"{STREAMS[stage.stream].title}-0", stage, learner, objective)
    else:
        learner = load_encoder(folder.fetch(folder.encoder(stage.starts_from))).build()
    if heads is not None:
        objective.load_heads(heads)
    return StageTrainer(experiment, stage, learner, objective, guide, device)


def build_objective(experiment: Experiment, stage: Stage) -> Objective:
    """The objective that the experiment names, at the stage's beginning, the same in every process.

    UserError where it cannot be loaded, or is no `Objective`.
    """
    name = experiment.objective.name
    kind = OBJECTIVES.load(name, "objective.name")
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise UserError(f"objective.name: {name} is no subclass of vicc_ray.objective.Objective; see docs/extending.md")
    objective: Objective = kind(experiment, stage, weight_seed(WeightUse.OBJECTIVE, experiment.seed, stage.index))
    return objective


def _fresh_encoder(plan: TrainingPlan, stream: Stream) -> Encoder:
    """A stream's encoder as it is before any training, the same in every process."""
    model = plan.experiment.model
    seed = weight_seed(WeightUse.ENCODER, plan.experiment.seed, STREAMS[stream].number)
    encoder = build_encoder(model.backbone, width=model.width, embedding_dim=model.embedding_dim, seed=seed)
    if stream == "rgb":
        subtract_mean_over_time_(encoder, model.difference_filters)
    return encoder


def _save(
    plan: TrainingPlan, folder: RunFolder, name: str, stage: Stage, encoder: Encoder, objective: Objective
) -> None:
    if distributed.rank():
        return
    meta = {"name": name, "experiment": plan.experiment.model_dump(mode="json"), "provenance": folder.provenance()}
    file = EncoderFile(
        spec=encoder.spec,
        stream=stage.stream,
        flow_input="published",
        state_dict={key: value.detach().cpu() for key, value in encoder.state_dict().items()},
        prototypes=[head.cpu() for head in objective.heads()],
        meta=meta,
    )
    save_encoder(folder.encoder(name), file)
    folder.push(folder.encoder(name))
