"""Encoders and videos -> pooled features in files, by Ray Data: CPU actors decode, model actors encode.

What is stored already is not made again; what is missing is made in one pass over the videos for all encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vicc_ray.cluster.progress import Counter
from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.cluster.stream import in_parts, modelled_windows
from vicc_ray.config import Experiment
from vicc_ray.data.refusals import check_share
from vicc_ray.data.rows import Rows
from vicc_ray.data.store.checking import check_stored
from vicc_ray.evaluation.feature_store import read_refused
from vicc_ray.evaluation.model_actors import EncodeWindows
from vicc_ray.evaluation.passes import Pass, passes, write_means
from vicc_ray.evaluation.stored import FeatureFile, Side, feature_file, missing
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.runs.folder import RunFolder


def extract_features(
    folder: RunFolder,
    data: str,
    encoders: Mapping[str, EncoderOnDisk],
    sides: Sequence[Side],
    experiment: Experiment,
    resources: Callable[[], ResourcePlan],
    say: Callable[[str], None],
    threads: int = 1,
) -> dict[str, list[FeatureFile]]:
    """The file of each encoder (by the name of its row) for each side; `resources` opens a Ray session where one is needed.

    A feature is the mean over a video's windows. Files that were made from just this are used again and the rest is
    encoded, each window decoded once for all encoders that lack it. Unreadable videos are left out, listed in the files,
    and tried again by the next call. `say` takes a line for the reader. UserError where a side lacks more videos than
    `data.max_refused` allows.
    """
    files = {
        row: [feature_file(folder, data, encoder, side, experiment) for side in sides]
        for row, encoder in encoders.items()
    }
    absent = missing(folder, files, say)
    for part in passes(absent):
        _encode(part, experiment, resources(), threads)
        folder.push(*(file.path for file in part.files))
    for side in sides:
        _check_refused([file for found in files.values() for file in found if file.side is side], experiment)
    return files


def _check_refused(files: Sequence[FeatureFile], experiment: Experiment) -> None:
    """UserError where too many videos of a side could not be read for one encoder or another."""
    refused = dict(pair for file in files for pair in read_refused(str(file.path)))
    splits = " and ".join(sorted(Rows.of(files[0].side.videos).counts("split")))
    check_share(
        len(refused),
        refused.items(),
        len(files[0].side.videos),
        experiment.data.max_refused,
        f"videos of split {splits} could not be read",
        "bring them back and evaluate again, which tries them anew",
    )


def _encode(part: Pass, experiment: Experiment, resources: ResourcePlan, threads: int) -> None:
    videos, windows = part.videos, part.windows(experiment)
    clips = part.decoded(experiment)
    check_stored(experiment, videos, clips)
    paths = {encoder.name: encoder.shared_name for encoder in part.encoders}
    arguments = paths, experiment, resources.use_gpu, threads, part.sides[0].jitter
    with Counter("evaluating windows", len(windows)) as counter:
        blocks = modelled_windows(
            videos,
            in_parts(windows),
            experiment,
            clips,
            EncodeWindows,
            arguments,
            resources,
            counter.advance,
        )
        write_means(part, blocks)
