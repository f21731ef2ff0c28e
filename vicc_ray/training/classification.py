"""Classifiers as a task of the loop: one stage an encoder, each of which writes a classifier. No Ray.

The linear probe learns a head on a frozen encoder, finetuning the backbone too (docs/method.md, section 6). What is learnt comes
from the experiment's section of the protocol's name; data, clips and augmentation are those of pretraining, with one clip
a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vicc_ray import distributed, storage
from vicc_ray.config import Experiment, Stream
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.randomness import WeightUse, weight_seed
from vicc_ray.data.rows import Rows
from vicc_ray.errors import UserError
from vicc_ray.models.classifier import ClassifierProtocol, build_classifier
from vicc_ray.models.classifier_file import ClassifierFile, save_classifier
from vicc_ray.models.encoder_file import EncoderFile, load_encoder
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.batches import TrainingPlan
from vicc_ray.training.classification_step import ClassifierTrainer, settings_of
from vicc_ray.training.schedule import Stage


@dataclass(frozen=True)
class Classification:
    """Classifiers on some encoders: `Task` of the loop.

    Args:
        protocol: linear or finetune.
        encoders: name (of the stage and of the classifier's file) -> the encoder's file, which every worker can read
            where it is `shared_name`; they are taken in this order.
        classes: names in the order of the logits; `training_classes` gives those of the training videos.
    """

    protocol: ClassifierProtocol
    encoders: Mapping[str, EncoderOnDisk]
    classes: tuple[str, ...]

    def plan(self, experiment: Experiment, manifest: Manifest) -> TrainingPlan:
        """One stage an encoder over the labelled training videos, one clip a sample.

        A global batch larger than the number of videos is all of them. UserError for videos without labels, fewer than
        two classes, a class that `classes` does not name, or a length that trains nothing.
        """
        videos = _labelled(experiment, manifest)
        named = set(training_classes(experiment, manifest))
        if unknown := sorted(named - set(self.classes)):
            raise UserError(
                f"data.train_split: {experiment.data.train_split} has videos of {', '.join(unknown[:3])}"
                f"{', ...' if len(unknown) > 3 else ''}, which the classifier's {len(self.classes)} classes do not name"
            )
        if not self.encoders:
            raise UserError("no encoder to learn a classifier on; 'vicc train' leaves them in the run's folder")
        stages: list[Stage] = []
        for name, encoder in self.encoders.items():
            first_step = stages[-1].end if stages else 0
            stages.append(self._stage(experiment, len(videos), len(stages), name, encoder.stream, first_step))
        return TrainingPlan(experiment, tuple(stages), videos, views=1)

    def is_finished(self, folder: RunFolder, stage: Stage) -> bool:
        """Whether the stage's classifier is there."""
        return folder.classifier(stage.name).is_file()

    def open_stage(
        self, plan: TrainingPlan, folder: RunFolder, stage: Stage, device: torch.device
    ) -> ClassifierTrainer:
        """A fresh head on the stage's encoder."""
        encoder = _load(self.encoders[stage.name].shared_name).build()
        seed = weight_seed(WeightUse.CLASSIFIER, plan.experiment.seed, stage.index)
        classifier = build_classifier(encoder, self.protocol, len(self.classes), seed)
        number = {label: place for place, label in enumerate(self.classes)}
        labels = torch.tensor([number[str(label)] for label in plan.videos.texts("label").to_pylist()])
        return ClassifierTrainer(plan.experiment, stage, self.protocol, classifier, labels, device)

    def close_stage(self, plan: TrainingPlan, folder: RunFolder, stage: Stage, learner: ClassifierTrainer) -> None:
        """Write the stage's classifier."""
        classifier = learner.finish()
        if distributed.rank() == 0:
            file = ClassifierFile(
                spec=classifier.encoder.spec,
                stream=stage.stream,
                protocol=self.protocol,
                classes=self.classes,
                state_dict=classifier.state_dict(),
                meta={
                    "name": stage.name,
                    "experiment": plan.experiment.model_dump(mode="json"),
                    "provenance": folder.provenance(),
                },
            )
            save_classifier(folder.classifier(stage.name), file)
            folder.push(folder.classifier(stage.name))
        distributed.barrier()  # no worker opens the file before it is there

    def _stage(
        self, experiment: Experiment, videos: int, index: int, name: str, stream: Stream, first_step: int
    ) -> Stage:
        settings = settings_of(experiment, self.protocol)
        batch = min(settings.global_batch, videos)
        if batch == 1 and self.protocol == "linear":
            raise UserError("linear.global_batch: 1 sample a step is too few for the batch norm of the head; 2 or more")
        per_epoch = videos // batch
        if settings.length.unit == "%":
            raise UserError(f"{self.protocol}.length: {settings.length} is a share of nothing; write epochs or steps")
        steps = settings.length.steps(steps_per_epoch=per_epoch, global_batch=batch)
        if steps == 0:
            raise UserError(f"{self.protocol}.length: 0 trains nothing; it must be above 0")
        return Stage(
            index=index,
            name=name,
            stream=stream,
            guide=None,
            starts_from=name,
            guided_by=None,
            first_step=first_step,
            steps=steps,
            cosine_steps=steps,
            warm_up=0,
            steps_per_epoch=per_epoch,
            global_batch=batch,
        )


def training_classes(experiment: Experiment, manifest: Manifest) -> tuple[str, ...]:
    """The classes of the training videos, sorted; UserError where there are fewer than two."""
    classes = tuple(sorted(_labelled(experiment, manifest).counts("label")))
    if len(classes) < 2:
        raise UserError(
            f"data.train_split: all labelled videos of {experiment.data.train_split} are of one class ({classes[0]}); "
            "a classifier needs at least two"
        )
    return classes


def rare_classes(plan: TrainingPlan) -> list[str]:
    """The classes with a single training video, sorted: what is learnt of them is that one video."""
    return sorted(str(name) for name, count in plan.videos.counts("label").items() if count == 1)


def _labelled(experiment: Experiment, manifest: Manifest) -> Rows:
    """The labelled videos of the training split, in the manifest's order; UserError where there is none."""
    split = experiment.data.train_split
    rows = manifest.select(split)
    labelled = rows.where(rows.texts("label").is_valid())
    if not labelled:
        raise UserError(
            f"data.train_split: none of the {len(rows)} videos of {split} has a label, and classifiers learn from labels; "
            "index a data set with classes, or choose another split"
        )
    return labelled


def _load(path: str) -> EncoderFile:
    try:
        with storage.local_copy(path) as local:
            return load_encoder(local)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
