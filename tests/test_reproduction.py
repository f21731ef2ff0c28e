"""The reproduction part of the report: which runs count for a row, what is averaged, what it cost, what is said beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vicc_ray.config import dump_experiment, load_experiment
from vicc_ray.config.published import ROWS, PublishedRow, shipped_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.evaluation.results import Evaluation, write
from vicc_ray.report import write_report
from vicc_ray.report.reproduction import Attempt, Reproduction, pretraining_cost, reproduction
from vicc_ray.runs.folder import RunFolder

BY_ID = {row.id: row for row in ROWS}
FINETUNED = BY_ID["s3d_rf_finetune_hmdb51"]
FOUND = BY_ID["s3d_rgb_retrieval_ucf101"]


def run(
    folder: Path, row: PublishedRow, *changes: str, data: tuple[str | None, int | None] = ("ucf101", 1)
) -> RunFolder:
    """A run folder as a row's file would leave it."""
    folder.mkdir(parents=True)
    made = RunFolder(folder)
    experiment = load_experiment(shipped_experiment(row.id), changes)
    made.config.write_text(dump_experiment(experiment))
    Manifest([], *data).write(made.manifest)
    return made


def evaluated(made: RunFolder, row: PublishedRow, percent: float, fold: int | None = 1, **changes: Any) -> None:
    """An evaluation in the folder: `percent` of the row's encoder, another number of another encoder."""
    experiment = made.experiment()
    protocol = "reference" if row.protocol == "retrieval" else row.protocol
    rows = [{"name": "RGB-1", row.metric: 0.01}, {"name": row.encoder, row.metric: percent / 100, "R@50": 1.0}]
    settings = {"windows": "all", "fusion": "published"}
    told: dict[str, Any] = {
        "protocol": protocol, "run": experiment.name, "seed": experiment.seed, "data": row.dataset, "fold": fold,
        "train_on": "train", "test_on": "query", "train": 20, "test": 10, "rows": rows, "chance": 0.01, "seconds": 9.0,
        "settings": settings, "scale": experiment.scale,
    }  # fmt: skip
    write(made, Evaluation(**(told | changes)))


def records(made: RunFolder, *told: dict[str, Any]) -> None:
    """Starts into events.jsonl, the others into metrics.jsonl."""
    for file, chosen in ((made.events, True), (made.metrics, False)):
        file.write_text("".join(json.dumps(r) + "\n" for r in told if (r["kind"] == "start") == chosen))


def of(*folders: RunFolder) -> Reproduction:
    """The reproduction of run folders that hold something of a row."""
    found = reproduction([folder.path for folder in folders])
    assert found is not None
    return found


def only(*folders: RunFolder) -> Attempt:
    """The one attempt of run folders."""
    (attempt,) = of(*folders).attempts
    return attempt


def test_folds_and_seeds_are_averaged_and_set_against_the_number(tmp_path: Path) -> None:
    first = run(tmp_path / "a", FINETUNED)
    second = run(tmp_path / "b", FINETUNED, "seed=1", "name=vicc-s3d-ucf101-seed1")
    for made, percents in ((first, (60.0, 62.0, 64.0)), (second, (61.0, 63.0))):
        for fold, percent in enumerate(percents, 1):
            evaluated(made, FINETUNED, percent, fold)
    attempt = only(first, second)
    assert attempt.row.percent == 62.2
    assert attempt.mean == pytest.approx(62.0) and attempt.difference == pytest.approx(-0.2)
    assert attempt.deviation == pytest.approx((10 / 4) ** 0.5)  # of a sample: squares 4, 0, 4, 1, 1 over n - 1
    assert (attempt.folds, attempt.seeds, attempt.missing_folds) == ((1, 2, 3), (0, 1), ())
    assert attempt.departures == ()
    alone = only(second)
    assert alone.missing_folds == (3,) and alone.over == "splits 1, 2; seed 1"
    assert alone.mean == pytest.approx(62.0) and only(second).departures == ()
    assert {row.id for row in of(second).missing} == set(BY_ID) - {FINETUNED.id}


def test_runs_of_another_recipe_are_not_averaged_with_the_published_one(tmp_path: Path) -> None:
    made = run(tmp_path / "a", FOUND)
    other = run(tmp_path / "b", FOUND, "objective.prototypes=100", "name=vicc-s3d-ucf101-k100")
    evaluated(made, FOUND, 62.0)
    evaluated(other, FOUND, 50.0)
    assert [round(attempt.mean) for attempt in of(made, other).attempts] == [62, 50]
    evaluated(other, FOUND, 50.0, settings={"windows": "centre", "recipe": "2"})
    published, departs = of(made, other).attempts
    assert published.mean == pytest.approx(62.0) and published.departures == ()
    assert departs.departures == (
        "objective.prototypes 100 (published: 300)",
        "evaluate.windows centre (published: all)",
    )


def test_a_classifier_of_another_recipe_says_so(tmp_path: Path) -> None:
    made = run(tmp_path / "a", FINETUNED)
    evaluated(made, FINETUNED, 60.0, settings={"crops": "five", "dropout": 0.5, "head_lr": 0.1, "recipe": "1"})
    assert only(made).departures == (
        "evaluate.crops five (published: ten)",
        "finetune.dropout 0.5 (published: 0.9)",
    )


def test_exact_recall_stands_beside_the_one_as_published(tmp_path: Path) -> None:
    made = run(tmp_path / "a", FOUND)
    evaluated(made, FOUND, 63.0, protocol="retrieval")
    evaluated(made, FOUND, 61.0)
    assert [(a.exact, round(a.mean)) for a in of(made).attempts] == [(False, 61), (True, 63)]


@pytest.mark.parametrize(
    ("changes", "data", "counts"),
    [
        ({}, ("ucf101", 1), True),
        ({}, ("hmdb51", 1), False),
        ({}, (None, None), True),  # by its name
        ({"name": "mine"}, (None, None), False),
        ({"name": "mine"}, ("ucf101", 1), True),
        ({"name": "vicc-s3d-ucf1010"}, (None, None), False),
        ({"model.backbone": "r2plus1d_10"}, ("ucf101", 1), False),
    ],
)
def test_a_row_takes_runs_of_its_backbone_and_videos(
    tmp_path: Path, changes: dict[str, str], data: tuple[str | None, int | None], counts: bool
) -> None:
    made = run(tmp_path / "a", FOUND, *(f"{key}={value}" for key, value in changes.items()), data=data)
    evaluated(made, FOUND, 60.0)
    found = reproduction([made.path])
    assert (found is not None and FOUND.id in {attempt.row.id for attempt in found.attempts}) == counts


def test_pretraining_on_another_split_is_said(tmp_path: Path) -> None:
    made = run(tmp_path / "a", FOUND, data=("ucf101", 2))
    evaluated(made, FOUND, 60.0)
    assert only(made).departures == ("pretrained on split 2 (published: 1)",)


@pytest.mark.parametrize(
    "changes", [{"data": "hmdb51"}, {"train_on": "query", "test_on": "train"}, {"protocol": "probe"}, {"rows": []}]
)
def test_other_evaluations_are_not_the_row(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = run(tmp_path / "a", FOUND)
    evaluated(made, FOUND, 60.0, **changes)
    found = reproduction([made.path])
    assert found is None or FOUND.id not in {attempt.row.id for attempt in found.attempts}


def test_a_trial_stands_apart(tmp_path: Path) -> None:
    made = run(tmp_path / "a", FOUND, "scale=smoke", "clip.frames=8")
    evaluated(made, FOUND, 10.0)
    found = of(made)
    assert (found.attempts, [a.row.id for a in found.smoke]) == ([], [FOUND.id])
    assert found.smoke[0].departures == ()


def test_the_cost_is_time_at_work_times_workers(tmp_path: Path) -> None:
    made = run(tmp_path / "a", FOUND)
    assert pretraining_cost(made) is None
    train = {"kind": "train", "stage": "RGB-1", "samples": 1}
    records(
        made,
        {"kind": "start", "time": 0.0},
        train | {"time": 3600.0, "workers": 4},
        train | {"time": 5400.0, "workers": 4},
        {"kind": "monitor", "time": 6000.0},
        {"kind": "start", "time": 9000.0},  # an hour lost after 5400 s
        train | {"time": 10800.0, "workers": 2},
    )
    cost = pretraining_cost(made)
    assert cost is not None
    assert (cost.device_hours, cost.hours) == pytest.approx((4 * 1.5 + 2 * 0.5, 2.0))
    assert cost.told == "7.0 device-hours, 2.0 hours on the clock"


def test_what_cannot_be_read_is_said_and_left_out(tmp_path: Path) -> None:
    good, bad = run(tmp_path / "a", FOUND), run(tmp_path / "b", FOUND)
    for made in (good, bad):
        evaluated(made, FOUND, 60.0)
    next(bad.evaluations.glob("*.json")).write_text("{")
    found = of(good, bad)
    assert [a.runs for a in found.attempts] == [("vicc-s3d-ucf101",)]
    assert len(found.notes) == 1 and "is no result of an evaluation" in found.notes[0]


def test_the_page_shows_the_rows(tmp_path: Path) -> None:
    made = run(tmp_path / "a", FOUND, "objective.prototypes=100")
    trial = run(tmp_path / "b", FOUND, "scale=smoke", "name=t-smoke")
    evaluated(made, FOUND, 61.2)
    evaluated(trial, FOUND, 10.0)
    write_report([made.path, trial.path], tmp_path / "report.html")
    page = " ".join((tmp_path / "report.html").read_text().split())
    for text in (
        "Published results, reproduced", "S3D, RGB, nearest-neighbour retrieval on UCF101", "<td>62.1</td>", "<b>61.2</b>",
        "<td>-0.9</td>", "at most 912 GPU-hours", "1 departure from the published recipe",
        "objective.prototypes 100 (published: 300)", "Trial runs (--scale smoke): no reproduction",
        "17 published results have no run here",
    ):  # fmt: skip
        assert text in page
    assert page.count("<td>62.1</td>") == page.count("GPU-hours") == 1  # a trial is set against nothing
    bare = run(tmp_path / "c", FOUND)
    write_report([bare.path], tmp_path / "bare.html")
    assert "Published results" not in (tmp_path / "bare.html").read_text()
