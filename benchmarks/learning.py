"""What recipes learn from the same samples: R@1 against samples seen, over seeds, beside features that nothing was learnt for.

Every run is one process of one thread, so that its figures do not depend on how many run at a time. All runs read the same
packed stores. Recipes are judged on videos held out of the training split; the queries are searched with only once a run, at
the end, with `--queries`, by encoders that are finished already.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import Bar, Outcome
from benchmarks.learning_cost import Costs, data_cost
from benchmarks.learning_data import HELD_OUT, MADE, data_set, naive_recall, packed
from benchmarks.learning_run import RunResult, run_once, search_queries
from vicc_ray.config import STREAMS, Experiment, load_experiment, with_settings, without_places
from vicc_ray.config.published import experiment_file, shipped_experiment
from vicc_ray.console import console
from vicc_ray.data.flow.bound import with_bound
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.store.checking import from_videos
from vicc_ray.errors import UserError
from vicc_ray.evaluation.neighbours import fused_name
from vicc_ray.runs.records import write_text

BASE = "quickstart"
REACHED = 0.6  # R@1 up to which samples are counted

# What every row is a change of: the quickstart until it learnt from its guide's prototypes and assignments (8a99438).
_EARLIER: dict[str, Any] = {
    "objective.views_for_assignment": None,
    "schedule.total": None,
    "schedule.cross.prototypes": "own",
    "schedule.single.length": {"rgb": "30 steps", "flow": "50 steps"},
    "schedule.single.global_batch": 32,
    "schedule.cross.length": {"rgb": "140 steps", "flow": "12 steps"},
    "schedule.cross.global_batch": 32,
    "model.difference_filters": 0.0,
    "optim.end_lr": 0.0002,
    "optim.ema": 0.0,
    "optim.precision": "fp32",
    "evaluate.monitor_every": "20 steps",
}
_PUBLISHED: dict[str, Any] = {
    "objective.prototypes": 300,
    "objective.epsilon": 0.05,
    "objective.queue": 1920,
    "objective.second_view_gradient": False,
    "model.batch_norm": "shuffle",
    "augment.style": "reference",
    # As many samples in all as the others, in the published proportion: 300 epochs each alone, then 4 x 100 epochs.
    "schedule.total": "232 steps",
    "schedule.cycles": 2,
    "schedule.single.length": "30 %",
    "schedule.single.cosine_over": "166.667 %",
    "schedule.single.queue_start": "50 %",
    "schedule.single.freeze_prototypes": "33.333 %",
    "schedule.cross.length": "10 %",
    "schedule.cross.queue_start": "25 %",
}
_LARS: dict[str, Any] = {"optim.name": "lars", "optim.lr": 0.6, "optim.end_lr": 0.0006}

_STARTED: dict[str, Any] = {"schedule.cross.prototypes": "guide"}

_LED: dict[str, Any] = _STARTED | {"objective.views_for_assignment": [2, 3]}
_BEST: dict[str, Any] = _LED | {
    "schedule.single.length": {"rgb": "8 steps", "flow": "32 steps"},
    "schedule.cross.length": {"rgb": "186 steps", "flow": "6 steps"},
}
# 2,560 samples in all.
_FEW: dict[str, Any] = {
    "model.difference_filters": 0.5,
    "schedule.single.global_batch": 16,
    "schedule.single.length": {"rgb": "4 steps", "flow": "24 steps"},
    "schedule.cross.global_batch": 8,
    "schedule.cross.length": {"rgb": "256 steps", "flow": "8 steps"},
    "evaluate.monitor_every": "40 steps",
}

_JOINT: dict[str, Any] = {"schedule.cross.guide": "learning", "schedule.cross.length": "152 steps"}
_QUEUE: dict[str, Any] = {
    "objective.queue": 256,
    # From the first step on the embeddings collapse (docs/guides/choosing.md).
    "schedule.single.queue_start": "50 %",
    "schedule.cross.queue_start": "25 %",
}
_FOLLOW: dict[str, Any] = {"augment.follow": 0.7}
_CROP: dict[str, Any] = {"evaluate.motion_crop": 0.5}
_DIFFERENCES: dict[str, Any] = {"clip.motion": "difference"}
_COMPENSATED: dict[str, Any] = {"flow.algorithm": "dis_compensated"}
_VECTORS: dict[str, Any] = {"flow.algorithm": "motion_vectors"}

_LUCAS_KANADE: dict[str, Any] = {"clip.motion": "lucas_kanade"}
# As many samples in twice as many steps.
_BEST_16: dict[str, Any] = _BEST | {
    "schedule.cross.global_batch": 16,
    "schedule.cross.length": {"rgb": "372 steps", "flow": "12 steps"},
}

# Name -> differences from `_EARLIER`. Sizes (clips, networks, samples in all) are the same in every row but `best, few samples`.
_ROWS: dict[str, dict[str, Any]] = {
    "earlier quickstart": {},
    # Objective, optimiser, batch norm, augmentation, queue, frozen prototypes and proportions of the stages as published.
    "published": _PUBLISHED | _LARS,
    # The same learnt by the quickstart's optimiser: LARS at 0.6 hardly moves in so few steps.
    "published, adamw": _PUBLISHED,
    # Without a guide, for as many samples a stream.
    "single-stream": {
        "schedule.cycles": 0,
        "schedule.single.length": {"rgb": "170 steps", "flow": "62 steps"},
    },
    # One option each.
    "joint": _JOINT,
    "joint, averaged": _JOINT | {"schedule.cross.guide": "averaged", "optim.ema": 0.97},
    "guided": {"objective.guidance": 0.5},
    "guide's prototypes": _STARTED,
    "guide's assignments": {"objective.views_for_assignment": [2, 3]},
    "guide's prototypes and assignments": _LED,
    # The same with less time alone, which experiments/recipe_best.yaml is made from.
    "best": _BEST,
    "best, batches of 16": _BEST_16,
    # A third of the samples: little for the guide, small steps for RGB-2, which starts with filters for change.
    "best, few samples": _BEST | _FEW,
    "best, few samples, without difference filters": _BEST | _FEW | {"model.difference_filters": 0.0},
    "joint, guided": _JOINT | {"objective.guidance": 0.5},
    "even prototypes": {"objective.even_prototypes": True},
    "joint, even prototypes": _JOINT | {"objective.even_prototypes": True},
    "warm-up": {"optim.warm_up": "10 %", "optim.lr": 0.003, "optim.end_lr": 0.0003},
    "multi-crop": {"augment.local_clips": 2, "augment.local_frames": 6},
    "follow": _FOLLOW,
    # Their length is the limit of the embeddings' age: 8 steps, 2 steps.
    "queue": _QUEUE,
    "short queue": _QUEUE | {"objective.queue": 64},
    "neighbours": _QUEUE | {"objective.neighbours": 0.5},
    "joint, neighbours": _JOINT | _QUEUE | {"objective.neighbours": 0.5},
    "bound auto": {"flow.bound": "auto"},
    "joint, bound auto": _JOINT | {"flow.bound": "auto"},
    # Without flow in the data: another motion stream of the same videos, clips and samples.
    "differences": _DIFFERENCES,
    "motion vectors": _VECTORS,
    "joint, differences": _JOINT | _DIFFERENCES,
    "joint, motion vectors": _JOINT | _VECTORS,
    # For what is small in the picture.
    "joint, follow": _JOINT | _FOLLOW,
    "joint, crop at test": _JOINT | _CROP,
    "joint, follow, crop at test": _JOINT | _FOLLOW | _CROP,
    "best, follow, crop at test": _BEST | _FOLLOW | _CROP,
    "best, compensated": _BEST | _COMPENSATED,
    "best, compensated, follow, crop at test": _BEST | _COMPENSATED | _FOLLOW | _CROP,
    "best, differences": _BEST | _DIFFERENCES,
    "best, motion vectors": _BEST | _VECTORS,
    "best, batches of 16, Lucas-Kanade": _BEST_16 | _LUCAS_KANADE,
    "best, batches of 16, differences": _BEST_16 | _DIFFERENCES,
    "best, batches of 16, motion vectors": _BEST_16 | _VECTORS,
    "joint, follow, crop at test, bound auto": _JOINT | _FOLLOW | _CROP | {"flow.bound": "auto"},
}
RECIPES: dict[str, dict[str, Any]] = {
    # As it is shipped: `best, batches of 16` from fewer samples, in bf16 where the machine has units for it.
    "quickstart": {},
    **{name: _EARLIER | changes for name, changes in _ROWS.items()},
}
# Recipe without measured flow -> the one that it is held against: at most so much recall less at so little of its data's cost.
WITHOUT_FLOW = {
    "differences": "earlier quickstart",
    "motion vectors": "earlier quickstart",
    "joint, differences": "joint",
    "best, differences": "best",
    "best, motion vectors": "best",
    "joint, motion vectors": "joint",
} | {
    f"best, batches of 16, {motion}": "best, batches of 16"
    for motion in ("Lucas-Kanade", "differences", "motion vectors")
}
SHARE_OF_RECALL, SHARE_OF_COST = 0.9, 0.7
# Column -> the encoders, or both together, whose recall it shows: of a run each column has one.
_MOTION = [kind.title for kind in STREAMS.values() if kind.motion]
COLUMNS = {
    "RGB-1": ["RGB-1"],
    "motion-1": [f"{title}-1" for title in _MOTION],
    "motion-2": [f"{title}-2" for title in _MOTION],
    "both": [fused_name(("RGB", title)) for title in _MOTION],
}
# Settings that count in a run's name where they are on, as runs have names of before there were these.
ADDED = (("evaluate", "motion_crop"), ("model", "difference_filters"))


@dataclass(frozen=True)
class Job:
    """One run: a recipe with a seed."""

    recipe: str
    experiment: Experiment
    folder: Path

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        return self.experiment.seed


def measure(
    rounds: int,
    manifest: str | None = None,
    *,
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    data: str | None = None,
    folder: Path | None = None,
    recipes: str | None = None,
    cores: int | None = None,
    queries: bool = False,
) -> Outcome:
    """Train what is not yet there of recipes x seeds 0 to `rounds` - 1, and put the figures together.

    `experiment` is a recipe of one's own, changed by `overrides`. What is finished below `folder` is not run again.
    """
    if data and manifest:
        raise UserError("bench learning: --data and --manifest both name the videos; give one of them")
    name = data or ("own" if manifest else next(iter(MADE)))
    where = (folder or Path("runs") / "learning").absolute() / name
    chosen = _chosen(recipes, experiment, overrides)
    videos = data_set(name, manifest, where)
    rows = Manifest.read(videos)
    chosen = {label: with_bound(from_videos(one), rows, console.print) for label, one in chosen.items()}
    jobs = [
        _job(label, one.model_copy(update={"seed": seed}), videos, where)
        for seed in range(rounds)
        for label, one in chosen.items()
    ]
    results = _results(jobs, cores or os.cpu_count() or 1)
    split = HELD_OUT
    if queries:
        split = "query"
        recalls = [search_queries(job.folder) for job in jobs]
    else:
        recalls = [result.recall for result in results]
    costs = {label: data_cost(rows, one, where) for label, one in chosen.items()}
    naive = naive_recall(videos, next(iter(jobs)).experiment, split)
    _write_curves(where, jobs, results)
    console.print(_curves(jobs, results))
    return _outcome(jobs, results, recalls, naive, split, costs)


def _chosen(names: str | None, file: str | None, overrides: Sequence[str]) -> dict[str, Experiment]:
    """The recipes to run by name: those named (`a;b`) and one of a file; where neither is given, all of `RECIPES`."""
    known = list(RECIPES) if file is None else []
    if names:
        known = [name.strip() for name in names.split(";")]
    for name in known:
        if name not in RECIPES:
            raise UserError(f"bench learning: recipe {name!r} is unknown; known: {'; '.join(RECIPES)}")
    base = load_experiment(shipped_experiment(BASE))
    chosen = {name: with_settings(base, RECIPES[name], f"recipe {name}") for name in known}
    if file is not None:
        own = load_experiment(experiment_file(file), overrides)
        label = ", ".join([own.name, *overrides])
        if label in chosen:
            raise UserError(f"bench learning: {file} is called {label}, as a recipe is; set another name")
        chosen[label] = own
    elif overrides:
        raise UserError("bench learning: --set changes the experiment that is named; name one, such as 'quickstart'")
    return chosen


def _job(recipe: str, experiment: Experiment, videos: str, where: Path) -> Job:
    """The run of a recipe, in a folder whose name knows all that it learns from."""
    store = packed(Manifest.read(videos), experiment, where)
    sections = experiment.model_dump(mode="json")
    sections["data"] |= {"manifest": videos, "query_split": HELD_OUT}
    sections["clip"] |= {"source": "store", "store": store}
    sections["flow"] |= {"source": "stream", "store": None}
    sections["train"] |= {"workers": 1, "sinks": {}, "use_gpu": False}
    whole = Experiment.model_validate(sections)
    kept = without_places(whole.model_dump(mode="json")) | {"name": "", "seed": 0}
    for section, name in ADDED:
        if not kept[section][name]:
            del kept[section][name]
    digest = blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=4).hexdigest()
    plain = "".join(letter if letter.isalnum() else "-" for letter in recipe).strip("-")[:40]
    return Job(recipe, whole, where / "runs" / f"{plain}-{digest}-seed{whole.seed}")


def _results(jobs: Sequence[Job], cores: int) -> list[RunResult]:
    """Of every job, in order; those that are not finished are run, `cores` at a time."""
    left = [job for job in jobs if RunResult.read(job.folder) is None]
    for number, (job, result) in enumerate(_finished(left, cores), 1):
        shown = ", ".join(f"{encoder} {recall:.3f}" for encoder, recall in result.recall.items())
        console.print(f"{number} of {len(left)}: {job.recipe}, seed {job.seed}: {shown} ({result.seconds:.0f} s)")
    found = [RunResult.read(job.folder) for job in jobs]
    return [result for result in found if result is not None]


def _finished(jobs: Sequence[Job], cores: int) -> Iterator[tuple[Job, RunResult]]:
    """Run these, and give each as it ends."""
    if min(cores, len(jobs)) <= 1:
        yield from ((job, run_once(job.experiment, job.folder)) for job in jobs)
        return
    # New processes: this one may hold threads that do not survive a fork.
    with ProcessPoolExecutor(min(cores, len(jobs)), multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run_once, job.experiment, job.folder): job for job in jobs}
        yield from ((waiting[done], done.result()) for done in as_completed(waiting))


def rgb_of(recall: Mapping[str, float]) -> float:
    """The recall of the newest RGB encoder."""
    return next(recall[name] for name in ("RGB-2", "RGB-1") if name in recall)


def samples_to(curve: Sequence[tuple[int, str, float]], recall: float) -> float:
    """Samples of all stages when the RGB encoder first reached a recall; infinity where it did not."""
    return next(
        (float(samples) for samples, stage, found in curve if stage.startswith("RGB") and found >= recall), float("inf")
    )


def _outcome(
    jobs: Sequence[Job],
    results: Sequence[RunResult],
    recalls: Sequence[Mapping[str, float]],
    naive: Mapping[str, float],
    split: str,
    costs: Mapping[str, Costs],
) -> Outcome:
    """The table: R@1 of RGB a seed, and by recipe means, spread and costs; a bar for each recipe without flow."""
    seeds = len({job.seed for job in jobs})
    figures: dict[str, list[float]] = {}
    details: dict[str, dict[str, float]] = {}
    for recipe in dict.fromkeys(job.recipe for job in jobs):
        mine = [place for place, job in enumerate(jobs) if job.recipe == recipe]
        figures[recipe] = [rgb_of(recalls[place]) for place in mine]
        details[recipe] = _details(
            figures[recipe], [results[place] for place in mine], [recalls[place] for place in mine]
        ) | {"packing ms a video": costs[recipe]["packing"], "motion ms a video": costs[recipe]["motion"]}
    for name, recall in naive.items():
        figures[name] = [recall] * seeds
        details[name] = dict.fromkeys(next(iter(details.values())), float("nan")) | {"mean": recall, "spread": 0.0}
    outcome = Outcome(f"R@1 of the newest RGB encoder on the {split} videos, a round a seed", figures)
    outcome.details = details
    outcome.bars = list(_bars(details))
    return outcome


def _bars(details: Mapping[str, Mapping[str, float]]) -> Iterator[Bar]:
    """What recipes without optical flow keep of the recall, and what they save of the data's cost."""
    for recipe, against in WITHOUT_FLOW.items():
        if recipe in details and against in details:
            mine, flow = details[recipe], details[against]
            yield Bar(f"R@1, {recipe} / {against}", mine["mean"] / max(flow["mean"], 1e-9), SHARE_OF_RECALL)
            ratio = mine["packing ms a video"] / flow["packing ms a video"]
            yield Bar(f"packing, {recipe} / {against}", ratio, SHARE_OF_COST, at_least=False)


def _details(
    rgb: Sequence[float], results: Sequence[RunResult], recalls: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    reached = [samples_to(result.curve, REACHED) for result in results]
    row = {"mean": statistics.fmean(rgb), "spread": statistics.stdev(rgb) if len(rgb) > 1 else float("nan")}
    for column, names in COLUMNS.items():
        known = [recall[name] for recall in recalls for name in names if name in recall]
        row[column] = statistics.fmean(known) if known else float("nan")
    return row | {
        f"samples to {REACHED:g}": statistics.median(reached),
        "samples": statistics.fmean(result.samples for result in results),
        "core seconds": statistics.fmean(result.core_seconds for result in results),
        "seconds": statistics.fmean(result.seconds for result in results),
    }


def _curves(jobs: Sequence[Job], results: Sequence[RunResult]) -> Table:
    """By samples of all stages and recipe, the mean over seeds of the monitored R@1 of RGB."""
    found: dict[int, dict[str, list[float]]] = {}
    for job, result in zip(jobs, results, strict=True):
        for samples, stage, recall in result.curve:
            if stage.startswith("RGB"):
                found.setdefault(samples, {}).setdefault(job.recipe, []).append(recall)
    recipes = list(dict.fromkeys(job.recipe for job in jobs))
    table = Table(title=f"R@1 of RGB in training, on {HELD_OUT} videos (mean over seeds)")
    for column in ("samples", *recipes):
        table.add_column(column, justify="right")
    for samples in sorted(found):
        cells = [found[samples].get(recipe) for recipe in recipes]
        table.add_row(str(samples), *("" if cell is None else f"{statistics.fmean(cell):.3f}" for cell in cells))
    return table


def _write_curves(where: Path, jobs: Sequence[Job], results: Sequence[RunResult]) -> None:
    """`curves.csv`: a line each measurement in training."""

    def lines() -> Iterator[str]:
        yield "recipe,seed,samples,stage,recall"
        for job, result in zip(jobs, results, strict=True):
            for samples, stage, recall in result.curve:
                yield f'"{job.recipe}",{job.seed},{samples},{stage},{recall:.4f}'

    write_text(where / "curves.csv", "\n".join(lines()) + "\n")
    console.print(f"curves of every run: {where / 'curves.csv'}")
