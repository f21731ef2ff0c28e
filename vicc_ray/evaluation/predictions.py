"""Classifiers and videos -> class probabilities, by Ray Data: CPU actors decode, model actors classify.

Every window is seen through one, five or ten crops; the softmax is averaged over crops and windows (docs/method.md, section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vicc_ray.cluster.decode_actors import list_windows
from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.cluster.stream import in_parts, modelled_windows
from vicc_ray.config import STREAMS, Experiment, stream_titled
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.store.checking import check_stored
from vicc_ray.errors import UserError
from vicc_ray.evaluation.means import Probabilities, mean_over_windows
from vicc_ray.evaluation.model_actors import ClassifyWindows
from vicc_ray.models.classifier_file import ClassifierFile, load_classifier


def classify_videos(
    files: Mapping[str, str],
    videos: Sequence[VideoRow],
    experiment: Experiment,
    resources: ResourcePlan,
    on_progress: Callable[[int], None] = lambda windows: None,
    threads: int = 1,
) -> Probabilities:
    """What every classifier gives for every video; an open Ray session is needed.

    `files`: name -> path or URI, where every node reads the classifier. A window is decoded once for all classifiers, only
    as the clips that they take. Unreadable videos are left out and listed. `on_progress` is called with the number of
    windows that have just been finished. Raises UserError for no videos or none that can be read, classifiers of different
    classes, one of another stream than its name says, flow that is not in its store, and probabilities that are NaN.
    """
    opened = {name: load_classifier(path) for name, path in files.items()}
    classes = _common_classes(opened)
    for name, file in opened.items():
        _check_stream(name, file)
    if not videos:
        raise UserError("classification: there are no videos to classify; is the split empty?")
    clips = experiment.decoded_at_test(file.stream for file in opened.values())
    check_stored(experiment, videos, clips)
    windows = list_windows(videos, experiment.clip, experiment.evaluate.windows)
    arguments = dict(files), experiment, resources.use_gpu, threads
    shown = modelled_windows(
        videos, in_parts(windows), experiment, clips, ClassifyWindows, arguments, resources, on_progress
    )
    return mean_over_windows(shown, videos, tuple(files), classes)


def _common_classes(files: Mapping[str, ClassifierFile]) -> tuple[str, ...]:
    if not files:
        raise ValueError("classification: no classifiers")
    (first, one), *others = files.items()
    for name, file in others:
        if file.classes != one.classes:
            raise UserError(
                f"classification: {first} knows {len(one.classes)} classes and {name} {len(file.classes)}, not the same "
                "or not in one order; train them on the same split of the same data"
            )
    return one.classes


def _check_stream(name: str, file: ClassifierFile) -> None:
    named = stream_titled(name.split("-")[0])
    if named is not None and named != file.stream:
        raise UserError(
            f"classification: {name} is the name of a {named} classifier, but its file holds one of the {file.stream} "
            f"stream; give it a name that begins with {STREAMS[file.stream].title}-, or the right file"
        )
