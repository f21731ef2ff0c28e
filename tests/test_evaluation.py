"""evaluation.py: runs and data sets in, one session, tables and spread out; what is judged is tested elsewhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_experiment

from vicc_ray.commands import evaluate as evaluation
from vicc_ray.commands.evaluate import evaluate_runs, evaluations_json, print_evaluations
from vicc_ray.console import console, console_on_stderr, errors
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation import neighbours
from vicc_ray.evaluation.neighbours import sides_of
from vicc_ray.evaluation.protocols import EvaluationTask
from vicc_ray.evaluation.results import Evaluation, read_all
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.encoder_file import EncoderFile, save_encoder
from vicc_ray.runs import encoders
from vicc_ray.runs import folder as folder_module
from vicc_ray.runs.folder import RunFolder


def make_run(runs: Path, videos: Manifest, name: str = "tiny", **changes: Any) -> RunFolder:
    experiment = tiny_experiment(runs=str(runs), name=name, **changes)
    folder = RunFolder.at(experiment.run_folder)
    folder.open(experiment, videos.fingerprint())
    videos.write(folder.manifest)
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=8, seed=0)
    save_encoder(folder.encoder("RGB-2"), EncoderFile(encoder.spec, "rgb", encoder.state_dict()))
    return folder


class Judged:
    """A protocol that notes what it is to judge."""

    title = "Nearest-neighbour retrieval"

    def __init__(self, calls: Calls, task: EvaluationTask) -> None:
        sides_of(task.experiment, task.manifest)
        self.calls, self.task = calls, task

    def evaluate(self) -> Evaluation:
        task, calls = self.task, self.calls
        task.ray.resources()
        task.report("features of RGB-2 as they were stored")
        data = task.experiment.data
        calls.judged.append((task.experiment.name, task.data, data.gallery_split, data.query_split, task.manifest.fold))
        rows = [{"name": "RGB-2", "R@1": 0.5 + 0.1 * len(calls.judged), "mAP": 0.25}]
        return task.result(
            "retrieval",
            rows,
            train=16,
            test=8,
            chance=0.125,
            refused=(("gone.mp4", "no such file"),),
            notes=("a note",),
        )


class Calls:
    """Stands in for what judges: takes notes and gives figures that differ from run to run."""

    def __init__(self) -> None:
        self.judged: list[tuple[str, str, str, str, int | None]] = []
        self.sessions = 0

    def protocol(self, task: EvaluationTask) -> Judged:
        return Judged(self, task)

    @contextmanager
    def session(self, *_: Any) -> Iterator[str]:
        self.sessions += 1
        yield "resources"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    monkeypatch.setattr(neighbours, "Retrieval", made.protocol)
    monkeypatch.setattr(evaluation, "ray_session", made.session)
    return made


def test_runs_and_data_sets_are_judged_in_one_session(calls: Calls, tmp_path: Path, videos: Manifest) -> None:
    runs = [make_run(tmp_path, videos, name, seed=seed) for seed, name in enumerate(("a", "b"))]
    files = []
    for fold in (1, 2):
        files.append(str(tmp_path / f"fold{fold}.parquet"))
        Manifest(videos.videos, dataset="ucf101", fold=fold).write(files[-1])
    found = evaluate_runs([str(run) for run in runs], data=files, train_on="all", test_on="train")
    assert calls.judged == [(name, "ucf101", "all", "train", fold) for name in "ab" for fold in (1, 2)]
    assert calls.sessions == 1
    assert [len(read_all(run)) for run in runs] == [2, 2]
    (one,) = [s for s in evaluations_json(found)["summary"] if s["metric"] == "R@1"]
    assert (one["count"], one["folds"], one["seeds"]) == (4, (1, 2), (0, 1)) and one["mean"] == pytest.approx(0.75)
    json.dumps(evaluations_json(found))


def test_a_data_set_is_called_as_its_layout_or_its_file(calls: Calls, tmp_path: Path, videos: Manifest) -> None:
    run = str(make_run(tmp_path, videos))
    mine = str(tmp_path / "my clips.parquet")
    videos.write(mine)
    evaluate_runs([run])
    evaluate_runs([run], overrides=[f"data.manifest={mine}", "data.query_split=train"])
    evaluate_runs([run], data=[mine])
    named = [(data, *splits) for _, data, *splits, _ in calls.judged]
    assert named == [("manifest", "train", "query"), ("my_clips", "train", "train"), ("my_clips", "train", "query")]


def test_the_reader_sees_tables_notes_and_the_spread(calls: Calls, tmp_path: Path, videos: Manifest) -> None:
    runs = [str(make_run(tmp_path, videos, name, seed=seed)) for seed, name in enumerate(("a", "b"))]
    found = evaluate_runs(runs)
    with console.capture() as shown:
        print_evaluations(found)
    text = shown.get()
    for told in (
        "a: nearest-neighbour retrieval on manifest: 8 queries in 16 videos, chance R@1 0.125",
        "a note",
        "left out: gone.mp4: no such file",
        "1 videos left out",
        "0.650 ± 0.071",
        "0.250 ± 0.000",
    ):
        assert told in text, told
    assert text.count("R@1") == 2 + 2 + 1


def test_with_json_the_way_is_told_aside(capfd: pytest.CaptureFixture[str]) -> None:
    with console_on_stderr():
        assert console.file is errors.file
    assert console.file is not errors.file


def test_mistakes_show_before_anything_runs(calls: Calls, tmp_path: Path, videos: Manifest) -> None:
    good = str(make_run(tmp_path, videos))
    empty = make_run(tmp_path, videos, "empty")
    empty.encoder("RGB-2").unlink()
    bare = make_run(tmp_path, videos, "bare")
    bare.manifest.unlink()
    for runs, changes, message in (
        ([good, str(tmp_path / "absent")], {}, "is not a run folder"),
        (
            [good],
            {"protocol": "knn"},
            "--protocol: evaluation protocol 'knn' is unknown.*retrieval, linear, finetune, probe",
        ),
        ([good, str(empty)], {}, "has no finished stage to evaluate"),
        ([good, str(bare)], {}, "has no manifest of its own; name the videos with --data"),
        ([good], {"data": ["absent.parquet"]}, "absent.parquet: no such file"),
        ([good], {"test_on": "val"}, r"no video in split 'val'"),
        ([good], {"overrides": ["evaluate.windows=some"]}, "evaluate.windows"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_runs(runs, **changes)
    assert calls.judged == [] and calls.sessions == 0


def test_encoders_and_settings_are_read_once(
    calls: Calls, tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the protocols and data sets: a run may have ten encoders of 100 MB, in a store."""
    run, counts = make_run(tmp_path, videos), Counter[str]()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **named)

        return call

    for module, name in (
        (encoders, "open_encoder"),
        (folder_module, "load_experiment"),
        (neighbours, "retrieval_problem"),
    ):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    file = str(tmp_path / "again.parquet")
    videos.write(file)
    evaluate_runs([str(run)], data=[str(run.manifest), file])
    assert counts == {"open_encoder": 1, "load_experiment": 1, "retrieval_problem": 2}  # a problem is one of a data set
