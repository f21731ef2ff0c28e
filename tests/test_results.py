"""results.py: what is written is read again, every figure is in the table, only like is averaged with like."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_experiment

from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation.results import (
    Evaluation,
    identified,
    name_of_data,
    pretrained_on,
    read,
    read_all,
    recipe_of,
    row_name,
    summarise,
    to_csv,
    write,
)
from vicc_ray.runs.folder import RunFolder


def evaluation(**changes: Any) -> Evaluation:
    facts: dict[str, Any] = {"protocol": "retrieval", "run": "mine", "seed": 0, "data": "ucf101", "fold": 1}
    facts |= {"train_on": "train", "test_on": "query", "train": 40, "test": 20, "chance": 0.125, "seconds": 9.0}
    rows = [{"name": "RGB-2", "R@1": 0.5, "mAP": 0.25}, {"name": "R+F", "weights": [1.4, 0.6], "R@1": 0.75}]
    return Evaluation(**{**facts, "rows": rows, **changes})


def test_what_is_written_is_read_again_and_the_newest_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = evaluation(refused=(("a.mp4", "empty"),), notes=("a note",), settings={"windows": "all"})
    assert write(folder, first).name == "retrieval-ucf101-1-train-query.json"
    write(folder, evaluation(data="a b/c", fold=None, protocol="linear"))
    assert [one.data for one in read_all(folder)] == ["a b/c", "ucf101"]
    assert read_all(folder)[1] == first
    newer = replace(first, rows=[{"name": "RGB-2", "R@1": 0.6}])
    write(folder, newer)
    assert read_all(folder)[1] == newer
    names = sorted(path.name for path in folder.evaluations.iterdir())
    assert names == ["linear-a_b_c-train-query.json", "retrieval-ucf101-1-train-query.json"]
    with folder.results_csv.open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["data"], line["encoder"], line["value"]) for line in lines][-1] == ("ucf101", "RGB-2", "0.6")


def test_a_run_in_a_store_has_its_results_there(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    write(RunFolder.at(f"{bucket}/runs/mine"), evaluation())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    other = RunFolder.at(f"{bucket}/runs/mine")
    other.pull()
    assert read_all(other) == [evaluation()] and other.results_csv.is_file()


def test_every_figure_is_a_line() -> None:
    classes = {"RGB-2": {"Kick, high": {"queries": 3, "R@1": 0.25}}}
    lines = list(csv.reader(to_csv([evaluation(classes=classes), evaluation(fold=None, seed=4)]).splitlines()))
    assert lines[0] == [
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
    ]
    fixed = ["retrieval", "mine", "0", "ucf101", "1", "", "train", "query"]
    assert lines[1:6] == [
        [*fixed, "RGB-2", "", "R@1", "0.5"],
        [*fixed, "RGB-2", "", "mAP", "0.25"],
        [*fixed, "RGB-2", "Kick, high", "queries", "3.0"],
        [*fixed, "RGB-2", "Kick, high", "R@1", "0.25"],
        [*fixed, "R+F", "", "R@1", "0.75"],
    ]
    assert lines[6][:5] == ["retrieval", "mine", "4", "ucf101", ""]


def test_means_are_over_folds_and_seeds_of_the_same_thing_only() -> None:
    values = {(1, 0): 0.5, (2, 0): 0.6, (3, 0): 0.8, (1, 1): 0.4}
    same = [
        evaluation(
            fold=fold,
            seed=seed,
            run=f"run-{seed}",
            rows=[{"name": "RGB-2", "R@1": value}],
            videos=f"fold {fold}",
            contents="all",
        )
        for (fold, seed), value in values.items()
    ]
    apart: list[dict[str, Any]] = [
        {"data": "hmdb51"},
        {"protocol": "linear"},
        {"settings": {"windows": "centre"}},
        {"scale": "smoke"},
        {"videos": "other fold 1", "contents": "other"},
        {"settings": {"pretrained_on": "other"}},
        {"train_on": "all"},
        {"rows": [{"name": "RGB-1", "R@1": 0.9}]},
    ]
    others = [replace(same[0], **change) for change in apart]
    found = summarise([same[0], *others[:3], *same[1:], *others[3:]])
    assert [one.count for one in found] == [4, 1, 1, 1, 1, 1, 1, 1, 1]
    mean = found[0]
    assert (mean.protocol, mean.data, mean.encoder, mean.metric) == ("retrieval", "ucf101", "RGB-2", "R@1")
    assert mean.mean == pytest.approx(0.575) and mean.deviation == pytest.approx(statistics.stdev(values.values()))
    assert (mean.folds, mean.seeds, mean.runs) == ((1, 2, 3), (0, 1), ("run-0", "run-1"))
    assert found[1].deviation is None


def test_data_sets_of_one_name_are_kept_and_told_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    both = [
        evaluation(data="clips", fold=None, videos=videos, contents=videos, rows=[{"name": "RGB-2", "R@1": value}])
        for videos, value in (("aaaaaaaaaa", 0.2), ("bbbbbbbbbb", 0.6))
    ]
    names = [write(folder, one).name for one in both]
    assert names == [f"retrieval-clips-train-query-{8 * letter}.json" for letter in "ab"]
    assert read_all(folder) == both
    assert [(one.count, one.mean) for one in summarise(both)] == [(1, 0.2), (1, 0.6)]
    assert [name_of_data(one, both) for one in both] == ["clips (videos aaaaaaaa)", "clips (videos bbbbbbbb)"]
    assert name_of_data(both[0], both[:1]) == "clips"
    newer = replace(both[0], rows=[{"name": "RGB-2", "R@1": 0.3}])
    assert write(folder, newer).name == names[0] and read_all(folder) == [newer, both[1]]


def test_one_fold_that_was_parted_in_two_ways_is_not_averaged() -> None:
    parted = [evaluation(fold=1, videos=videos, contents="all") for videos in ("one way", "another way")]
    assert {one.count for one in summarise(parted)} == {1}
    assert {one.count for one in summarise([parted[0], replace(parted[0], seed=1)])} == {2}


def test_what_a_run_was_pretrained_on_belongs_to_its_results(tmp_path: Path, videos: Manifest) -> None:
    other = [replace(row, content_hash="e" * 32) if number == 0 else row for number, row in enumerate(videos.videos)]
    query = [replace(row, content_hash="e" * 32) if row.split == "query" else row for row in videos.videos]
    moved = [replace(row, video=f"/elsewhere/{row.video}") for row in videos.videos]
    found = []
    for number, (rows, flow) in enumerate(
        ((videos.videos, "dis"), (other, "dis"), (query, "dis"), (moved, "dis"), (videos.videos, "tvl1"))
    ):
        experiment = tiny_experiment(runs=str(tmp_path), name=str(number))
        folder = RunFolder.at(experiment.run_folder)
        folder.open(experiment, "", {"algorithm": flow})
        Manifest(rows).write(folder.manifest)
        one = identified(evaluation(), folder, experiment, videos)
        assert one.videos == videos.fingerprint() and one.settings["recipe"] == recipe_of(experiment)
        found.append(one.settings["pretrained_on"])
    assert found[0] == found[2] == found[3] and len(set(found)) == 3
    assert pretrained_on(RunFolder(tmp_path / "bare"), tiny_experiment()) == ""
    reordered = identified(evaluation(), RunFolder(tmp_path), tiny_experiment(), Manifest(videos.videos[::-1]))
    assert reordered.contents == one.contents and reordered.videos != one.videos


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    good = json.loads(write(RunFolder(tmp_path), evaluation()).read_text())
    file = tmp_path / "broken.json"
    for text in (
        "",
        "[]",
        "{}",
        '{"protocol": 1}',
        json.dumps(good | {"rows": [{"R@1": 1}]}),
        json.dumps(good | {"chance": "x"}),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=r"broken.json: is no result of an evaluation"):
            read(file)
    file.write_text(json.dumps(good | {"of a later version": 1}))
    assert read(file) == evaluation()


def test_numbers_that_are_none_are_no_figures() -> None:
    rows = [{"name": "a", "R@1": float("nan"), "mAP": True, "R@5": "x", "R@10": 0.5}]
    assert [(one.metric, one.mean) for one in summarise([evaluation(rows=rows)])] == [("R@10", 0.5)]


def test_a_recipe_is_what_is_learnt_but_for_the_seed() -> None:
    base = recipe_of(tiny_experiment())
    assert recipe_of(tiny_experiment(seed=9, name="other", evaluate={"ks": [7]})) == base
    assert recipe_of(tiny_experiment(optim={"lr": 0.01})) != base


def test_weights_of_fitted_fusion_stand_beside_the_name() -> None:
    assert [row_name(row) for row in evaluation().rows] == ["RGB-2", "R+F (1.4 : 0.6)"]
