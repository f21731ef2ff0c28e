"""What evaluations of a run gave: one JSON file each below the run's `evaluations` folder, all of them as one CSV table.

RUN/evaluations/PROTOCOL-DATA[-FOLD]-TRAIN-TEST-VIDEOS8.json     one protocol on one data set; the newest stays
    results.csv                                                  a line a figure of all of them

VIDEOS8 begins the manifest's fingerprint: data sets of one name are kept apart.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vicc_ray.config import Experiment, flatten, is_free
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import write_text

PROTOCOLS = {  # what each is called, in the order of the page
    "retrieval": "Nearest-neighbour retrieval",
    "reference": "Nearest-neighbour retrieval as published",
    "linear": "Linear probe",
    "finetune": "Finetuning",
    "probe": "Linear fit on stored features",
}
COLUMNS = (
    "protocol",
    "run",
    "seed",
    "data",
    "fold",
    "videos",
    "train_on",
    "test_on",
    "encoder",
    "class",
    "metric",
    "value",
)


@dataclass(frozen=True)
class Evaluation:
    """One protocol on one data set (one official split of it) of one run.

    Args:
        protocol: retrieval, reference (retrieval as published), linear, finetune or probe.
        run: name of the run; `seed` is its experiment's.
        data: name of the data set: the manifest's (ucf101, hmdb51, ...), else the stem of its file.
        fold: the official split of UCF101 or HMDB51, where the manifest has it.
        train_on: split that was learnt from or searched in; `test_on` the split of the queries or test videos.
        train, test: numbers of videos on the two sides.
        rows: one an encoder, in the order of the table: {"name": "RGB-2", "R@1": 0.62, ..., "mAP": ...} of retrieval,
            {"name": "RGB-2", "top-1": ..., "top-5": ..., "mean class": ...} of classifiers; shares of 1. A row of fitted
            fusion has `weights`, one a stream.
        chance: the first figure of a guess.
        settings: what else decides the numbers (windows, crops, fusion, ...).
        classes: encoder -> class -> its figures.
        confusion: encoder -> {"labels": [C], "counts": [C][C]}, rows the true class, columns the most probable one; of
            retrieval the query's class and that of its nearest neighbour. Empty of more than 500 classes of retrieval, and in
            retrieval's results of earlier versions.
        refused: (video, reason) of what could not be read.
        scale: full, or smoke for the small sizes of a trial run.
        notes: lines for the reader on how the figures came about.
        videos: fingerprint of the manifest (contents, labels, splits, order); empty in results of earlier versions.
        contents: the same of contents and labels alone, which the folds of a data set have in common.
        title: what the protocol calls itself; empty in results of earlier versions.
    """

    protocol: str
    run: str
    seed: int
    data: str
    fold: int | None
    train_on: str
    test_on: str
    train: int
    test: int
    rows: list[dict[str, Any]]
    chance: float
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    confusion: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    scale: str = "full"
    notes: tuple[str, ...] = ()
    videos: str = ""
    contents: str = ""
    title: str = ""

    @property
    def file_name(self) -> str:
        """Of its JSON file."""
        fold = () if self.fold is None else (str(self.fold),)
        videos = (self.videos[:8],) if self.videos else ()
        return plain_name("-".join((self.protocol, self.data, *fold, self.train_on, self.test_on, *videos))) + ".json"


@dataclass(frozen=True)
class Spread:
    """One figure over several folds and seeds: mean, standard deviation of a sample (None for one value), count.

    `videos` is what they have in common of `Evaluation.videos` and `contents`.
    """

    protocol: str
    data: str
    videos: str
    encoder: str
    metric: str
    mean: float
    deviation: float | None
    count: int
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    train_on: str
    test_on: str
    scale: str
    settings: Mapping[str, Any]


def title_of_protocol(protocol: str, title: str = "") -> str:
    """What pages and tables call a protocol: its title, which the evaluations of other packages' protocols have with them."""
    return PROTOCOLS.get(protocol) or title or protocol


def name_of_data(one: Evaluation, among: Sequence[Evaluation]) -> str:
    """hmdb51 split 2; with the videos' fingerprint where another evaluation `among` them gives that name to other videos."""
    name = one.data if one.fold is None else f"{one.data} split {one.fold}"
    alike = {other.videos for other in among if (other.data, other.fold) == (one.data, one.fold)}
    return with_videos(name, one.videos, alike | {one.videos})


def with_videos(name: str, videos: str, alike: Collection[str]) -> str:
    """A data set's name, with the fingerprint of its videos where there are several of the name."""
    return f"{name} (videos {videos[:8] or 'unknown'})" if len(alike) > 1 else name


def row_name(row: Mapping[str, Any]) -> str:
    """The row's encoder, and the weights of fitted fusion."""
    weights = row.get("weights")
    return f"{row['name']} ({' : '.join(f'{weight:g}' for weight in weights)})" if weights else str(row["name"])


def plain_name(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def recipe_of(experiment: Experiment) -> str:
    """8 hex digits of all that decides what was learnt but for the seed: runs of one recipe may be averaged."""
    settings = flatten(experiment.model_dump(mode="json"))
    kept = {key: value for key, value in settings.items() if key != "seed" and not is_free(key)}
    return blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=4).hexdigest()


def identified(evaluation: Evaluation, folder: RunFolder, experiment: Experiment, manifest: Manifest) -> Evaluation:
    """With what decides what it may be averaged with: the videos of `manifest`, the recipe, what the run was pretrained on."""
    settings = {
        **evaluation.settings,
        "recipe": recipe_of(experiment),
        "pretrained_on": pretrained_on(folder, experiment),
    }
    return replace(evaluation, settings=settings, videos=manifest.fingerprint(), contents=_contents(manifest))


def pretrained_on(folder: RunFolder, experiment: Experiment) -> str:
    """8 hex digits of the training videos of a run and of the flow that it measured in them; empty where it has no manifest."""
    if not folder.manifest.is_file():
        return ""
    videos = Manifest(Manifest.read(folder.manifest).select(experiment.data.train_split)).fingerprint()
    known = folder.path / "provenance.json"
    flow = folder.provenance().get("flow") if known.is_file() else None
    return blake2b(json.dumps([videos, flow], sort_keys=True).encode(), digest_size=4).hexdigest()


def _contents(manifest: Manifest) -> str:
    """32 hex digits of what the videos show and their labels, whatever their order and splits."""
    known = sorted(repr((row.content_hash or row.video, row.label)) for row in manifest.videos)
    return blake2b("\0".join(known).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row of a table, by name."""
    numbers = {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def write(folder: RunFolder, evaluation: Evaluation) -> Path:
    """Write an evaluation into a run's folder, and all of the run's figures as CSV; returns the JSON file."""
    file = folder.evaluations / evaluation.file_name
    write_text(file, json.dumps(asdict(evaluation), indent=1) + "\n")
    write_text(folder.results_csv, to_csv(read_all(folder)))
    folder.push(file, folder.results_csv)
    return file


def read(file: Path) -> Evaluation:
    """An evaluation that `write` wrote; UserError where the file holds anything else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        known = {name: value[name] for name in (one.name for one in fields(Evaluation)) if name in value}
        known |= {name: float(known[name]) for name in ("chance", "seconds")}
        known |= {name: int(known[name]) for name in ("seed", "train", "test")}
        known["refused"] = tuple((str(video), str(reason)) for video, reason in known.get("refused", ()))
        known["notes"] = tuple(str(note) for note in known.get("notes", ()))
        found = Evaluation(**known)
        if not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in found.rows):
            raise ValueError("a row has no name")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: is no result of an evaluation ({reason}); remove it and evaluate again") from None
    return found


def read_all(folder: RunFolder) -> list[Evaluation]:
    """All evaluations of a run, by the names of their files; UserError where one cannot be read."""
    return [read(file) for file in sorted(folder.evaluations.glob("*.json"))]


def to_csv(evaluations: Sequence[Evaluation]) -> str:
    """Every figure of every evaluation, a line each; `class` is empty in those over all classes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in evaluations:
        fold = "" if one.fold is None else one.fold
        fixed = (one.protocol, one.run, one.seed, one.data, fold, one.videos[:8], one.train_on, one.test_on)
        writer.writerows((*fixed, *figure) for figure in _flat(one))
    return text.getvalue()


def _flat(evaluation: Evaluation) -> Iterator[tuple[str, str, str, float]]:
    """(encoder, class, metric, value)."""
    for row in evaluation.rows:
        yield from ((row["name"], "", metric, value) for metric, value in figures(row).items())
        for label, own in evaluation.classes.get(row["name"], {}).items():
            yield from ((row["name"], label, metric, value) for metric, value in figures(own).items())


def summarise(evaluations: Sequence[Evaluation]) -> list[Spread]:
    """Mean and spread over folds and seeds of each (protocol, data, encoder, metric), in the order of first appearance.

    Evaluations whose splits, scale or settings differ are never averaged, nor those of other videos: folds are of the same
    videos, parted in another way.
    """
    of_fold: dict[tuple[str, str, int | None], set[str]] = {}
    for one in evaluations:
        of_fold.setdefault((one.data, one.contents, one.fold), set()).add(one.videos)
    together: dict[tuple[str, ...], list[tuple[Evaluation, float]]] = {}
    for one in evaluations:
        settings = json.dumps(one.settings, sort_keys=True, default=str)
        # Of one fold that was parted in two ways neither is known to be the official one.
        is_fold = one.fold is not None and len(of_fold[one.data, one.contents, one.fold]) == 1
        videos = one.contents if is_fold else one.videos
        apart = (one.protocol, one.data, one.train_on, one.test_on, one.scale, settings, videos)
        for row in one.rows:
            for metric, value in figures(row).items():
                together.setdefault((*apart, row["name"], metric), []).append((one, value))
    return [_spread(found, *key[-3:]) for key, found in together.items()]


def _spread(found: Sequence[tuple[Evaluation, float]], videos: str, encoder: str, metric: str) -> Spread:
    first = found[0][0]
    values = [value for _, value in found]
    return Spread(
        protocol=first.protocol,
        data=first.data,
        videos=videos,
        encoder=encoder,
        metric=metric,
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        count=len(values),
        folds=tuple(sorted({one.fold for one, _ in found if one.fold is not None})),
        seeds=tuple(sorted({one.seed for one, _ in found})),
        runs=tuple(dict.fromkeys(one.run for one, _ in found)),
        train_on=first.train_on,
        test_on=first.test_on,
        scale=first.scale,
        settings=first.settings,
    )
