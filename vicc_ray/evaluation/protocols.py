"""What an evaluation protocol is: one way to judge the encoders of a run on a data set.

One of your own is a class with this interface, named on the command line (`vicc evaluate RUN --protocol package.module:Name`) or
given by an installed package (entry points `vicc_ray.protocols`). See docs/extending.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.config import Experiment
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.evaluation.feature_store import VideoFeatures
from vicc_ray.evaluation.features import extract_features
from vicc_ray.evaluation.joined import Joined
from vicc_ray.evaluation.results import Evaluation, identified, write
from vicc_ray.evaluation.stored import FeatureFile, Side
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.runs.folder import RunFolder


@dataclass(frozen=True)
class RayAccess:
    """The Ray session of an evaluation, which is started by the first that needs it: stored features need none.

    resources: opens the session where it is not open yet. address, verbose: as on the command line.
    """

    resources: Callable[[], ResourcePlan]
    address: str | None = None
    verbose: bool = False


@dataclass(frozen=True, eq=False)
class EvaluationTask:
    """The encoders of one run, to be judged on one data set.

    Attributes:
        folder: of the run; a protocol may keep files of its own in it.
        experiment: the run's settings, with those that were changed for this evaluation. `experiment.data.gallery_split` is the
            split that is learnt from or searched, `query_split` the one that is tested; `experiment.evaluate.options` are free
            for protocols of other packages.
        manifest: the videos of the data set.
        data: name of the data set.
        encoders: name of the row (RGB-2, random) -> the encoder's file, in the order of the table.
        ray: the Ray session.
        report: takes a line for the reader.
    """

    folder: RunFolder
    experiment: Experiment
    manifest: Manifest
    data: str
    encoders: Mapping[str, EncoderOnDisk]
    ray: RayAccess
    report: Callable[[str], None]

    def feature_files(self, sides: Sequence[Side]) -> dict[str, list[FeatureFile]]:
        """The file of every encoder's features of each side: stored ones are used again, others are made, by Ray.

        UserError where more videos cannot be read than `data.max_refused` allows.
        """
        return extract_features(
            self.folder, self.data, self.encoders, sides, self.experiment, self.ray.resources, self.report
        )

    def features(self, *sides: Sequence[VideoRow]) -> list[dict[str, VideoFeatures]]:
        """Features float32 [n, d] of every encoder for each list of videos, with ids, labels and groups.

        The mean over the windows of `evaluate.windows`. Row i is the same video for every encoder; videos that cannot be read
        are left out. As `feature_files`.
        """
        wanted = [Side(videos, self.experiment.evaluate.windows) for videos in sides]
        files = self.feature_files(wanted)
        tables = []
        for number in range(len(wanted)):
            joined = Joined({row: str(found[number].path) for row, found in files.items()})
            tables.append({row: joined.features(row) for row in files})
        return tables

    def result(self, protocol: str, rows: list[dict[str, Any]], **facts: Any) -> Evaluation:
        """The evaluation with what is known of the run and the data set filled in.

        rows: {"name": encoder, figure: value, ...} each. facts: `train` and `test` (numbers of videos), `chance` (the first figure
        of a guess) and other fields of `Evaluation`.
        """
        data = self.experiment.data
        evaluation = Evaluation(
            protocol=protocol,
            run=self.experiment.name,
            seed=self.experiment.seed,
            data=self.data,
            fold=self.manifest.fold,
            train_on=data.gallery_split,
            test_on=data.query_split,
            rows=rows,
            seconds=0.0,
            scale=self.experiment.scale,
            **facts,
        )
        return identified(evaluation, self.folder, self.experiment, self.manifest)


class EvaluationProtocol(Protocol):
    """One way to judge a run's encoders.

    Attributes:
        title: what it is called on pages and tables, for example "Linear probe".
    """

    title: ClassVar[str]

    def __init__(self, task: EvaluationTask) -> None:
        """Check everything that can be checked before videos are read; UserError for what the reader has to change."""
        ...

    def evaluate(self) -> Evaluation:
        """Judge the encoders; `task.result` makes the evaluation, which is then written to the run's folder and printed."""
        ...


def crop_setting(experiment: Experiment) -> dict[str, Any]:
    """What a result says of crops that follow motion; nothing where there are none, as in results of earlier versions."""
    share = experiment.evaluate.motion_crop
    return {"motion_crop": share} if share else {}


def judge(task: EvaluationTask, protocol: EvaluationProtocol) -> Evaluation:
    """Run a protocol and write its evaluation into the run's folder."""
    started = time.monotonic()
    evaluation = protocol.evaluate()
    evaluation = replace(evaluation, seconds=round(time.monotonic() - started, 1), title=protocol.title)
    write(task.folder, evaluation)
    return evaluation
