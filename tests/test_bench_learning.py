"""`vicc bench learning`: runs that are there are not run again, the queries stay apart, features without learning."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import TINY, tiny_experiment

from benchmarks import Outcome, learning, learning_cost, run_bench
from benchmarks.learning_data import HELD_OUT, hold_out, naive_features, windows
from benchmarks.learning_run import RunResult
from vicc_ray.config import load_experiment, without_places
from vicc_ray.config.published import shipped_experiment
from vicc_ray.data.flow.bound import with_bound
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.store.store import PackedStore
from vicc_ray.errors import UserError
from vicc_ray.training.pretraining import Pretraining


@pytest.fixture(scope="module")
def files(videos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny experiment and manifest, and the folder of the runs."""
    folder = tmp_path_factory.mktemp("learning")
    videos.write(folder / "videos.parquet")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return {
        "manifest": str(folder / "videos.parquet"),
        "experiment": str(folder / "tiny.yaml"),
        "folder": folder / "runs",
    }


def _runs(files: dict[str, Any]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in files["folder"].rglob("result.json")}


def test_what_is_finished_is_not_run_again(files: dict[str, Any], tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    options = {name: files[name] for name in ("experiment", "folder")}
    assert run_bench("learning", found, 1, files["manifest"], **options, cores=1)
    first = _runs(files)
    assert len(first) == 1
    result = RunResult.read(next(iter(first)).parent)
    assert result is not None
    assert set(result.recall) == {"RGB-1", "Flow-1", "RGB-2", "Flow-2", "R+F"}
    assert result.samples == 80, "10 steps of 8"
    assert [(samples, stage) for samples, stage, _ in result.curve] == [
        (16, "RGB-1"), (32, "Flow-1"), (48, "RGB-2"), (64, "RGB-2"), (80, "Flow-2")
    ]  # fmt: skip
    again = learning.measure(2, files["manifest"], **options, cores=2)
    second = _runs(files)
    assert len(second) == 2, "the other seed"
    assert all(second[path] == time for path, time in first.items())
    assert again.figures["tiny"] == [result.recall["RGB-2"], _other(second, first).recall["RGB-2"]]
    written = json.loads(found.read_text())
    assert written["figures"]["tiny"] == again.figures["tiny"][:1]
    assert set(written["figures"]) == {"tiny", "naive: colours", "naive: thumbnail", "naive: flow histogram"}
    changed = learning.measure(1, files["manifest"], **options, overrides=["optim.lr=0.002"], cores=1)
    assert "tiny, optim.lr=0.002" in changed.figures and len(_runs(files)) == 3


def _other(second: dict[Path, int], first: dict[Path, int]) -> RunResult:
    result = RunResult.read(next(path for path in second if path not in first).parent)
    assert result is not None
    return result


def test_queries_are_searched_with_once(files: dict[str, Any]) -> None:
    options = {name: files[name] for name in ("experiment", "folder")}
    learning.measure(1, files["manifest"], **options)
    assert not list(files["folder"].rglob("queries.json")), "only where it is requested"
    found = learning.measure(1, files["manifest"], **options, queries=True)
    (file,) = files["folder"].rglob("queries.json")
    recall = json.loads(file.read_text())
    assert found.figures["tiny"] == [recall["RGB-2"]] and found.unit.startswith(
        "R@1 of the newest RGB encoder on the query"
    )
    file.write_text(json.dumps(recall | {"RGB-2": 0.125}))
    assert learning.measure(1, files["manifest"], **options, queries=True).figures["tiny"] == [0.125]


def test_held_out_videos_are_in_no_training(files: dict[str, Any], videos: Manifest) -> None:
    learning.measure(1, files["manifest"], experiment=files["experiment"], folder=files["folder"])
    cut = Manifest.read(files["folder"] / "own" / "videos.parquet")
    assert cut.splits == {HELD_OUT: 8, "query": 8, "train": 8}
    assert {row.id for row in cut.select("query")} == {row.id for row in videos.select("query")}
    groups = [{(row.label, row.group) for row in cut.select(split)} for split in ("train", HELD_OUT, "query")]
    assert not groups[0] & groups[1] and not groups[1] & groups[2]


def test_a_group_is_held_out_whole(videos: Manifest) -> None:
    rows = [replace(row, group=str(place % 5), label="one") for place, row in enumerate(videos.select("train"))]
    cut = hold_out(rows, 0.4)
    assert {row.group for row in cut if row.split == HELD_OUT} == {"3", "4"}
    assert {row.group for row in cut if row.split == "train"} == {"0", "1", "2"}
    with pytest.raises(UserError, match="class one: has 1 group"):
        hold_out([replace(row, group="a") for row in rows], 0.4)
    with pytest.raises(UserError, match="has no label"):
        hold_out([replace(rows[0], label=None)], 0.4)


def test_features_that_need_no_learning_see_what_they_are_named_after() -> None:
    rgb = np.zeros((2, 3, 16, 16, 3), np.uint8)
    rgb[..., :8, :, 0] = 255
    still = naive_features({"rgb": rgb, "flow": np.full((2, 3, 16, 16, 2), 128, np.uint8)})
    assert still["naive: colours"][[0, 48]] == pytest.approx([0.5**0.5] * 2)
    assert still["naive: thumbnail"].reshape(8, 8, 3)[[0, 7], 0, 0].tolist() == [255, 0]
    right, down = (np.full((2, 3, 16, 16, 2), 128, np.uint8) for _ in range(2))
    right[..., 0] += 40
    down[..., 1] += 40
    places = [
        int(naive_features({"rgb": rgb, "flow": flow})["naive: flow histogram"].argmax()) for flow in (right, down)
    ]
    assert places == [0 * 4 + 3, 4 * 4 + 3], "direction 0 and a quarter turn of 16, the fastest of 4 speeds"


def test_samples_up_to_a_recall_count_those_of_rgb() -> None:
    curve = [(32, "RGB-1", 0.1), (64, "Flow-1", 0.9), (96, "RGB-2", 0.5), (128, "RGB-2", 0.7)]
    assert learning.samples_to(curve, 0.6) == 128
    assert learning.samples_to(curve, 0.8) == float("inf")


def test_columns_show_the_motion_stream_whichever_it_is(files: dict[str, Any], tmp_path: Path) -> None:
    """Each encoder that a run leaves has one, and so have both streams together."""
    made = learning.measure(
        1,
        files["manifest"],
        experiment=files["experiment"],
        folder=tmp_path,
        cores=1,
        overrides=["clip.motion=lucas_kanade"],
    )
    (result,) = [RunResult.read(path.parent) for path in tmp_path.rglob("result.json")]
    assert result is not None and list(result.recall) == ["RGB-1", "LK-1", "RGB-2", "LK-2", "R+L"]
    row = next(details for recipe, details in made.details.items() if recipe in made.figures and "lucas" in recipe)
    for column, name in {"RGB-1": "RGB-1", "motion-1": "LK-1", "motion-2": "LK-2", "both": "R+L"}.items():
        assert row[column] == pytest.approx(result.recall[name])
    assert row["motion ms a video"] == 0


def test_the_published_row_is_what_was_published() -> None:
    """All that decides what is learnt, but for sizes."""
    ours = learning._chosen("published", None, ())["published"]
    theirs = load_experiment(Path(__file__).parent.parent / "experiments" / "recipe_ucf101.yaml")
    assert ours.objective == theirs.objective
    assert ours.augment == theirs.augment
    assert ours.optim == theirs.optim
    assert ours.model.batch_norm == theirs.model.batch_norm and not ours.model.joint_views
    assert ours.schedule.cycles == theirs.schedule.cycles
    for kind in ("single", "cross"):
        mine, published = getattr(ours.schedule, kind), getattr(theirs.schedule, kind)
        epochs = published.length.value
        for name in ("queue_start", "freeze_prototypes"):
            assert getattr(mine, name).value == pytest.approx(100 * getattr(published, name).value / epochs, rel=1e-3)
    assert ours.schedule.single.stage_length("rgb").value / ours.schedule.cross.stage_length("rgb").value == 3


@pytest.mark.parametrize("recipe", learning.RECIPES)
def test_every_recipe_learns_from_as_many_samples(recipe: str, videos: Manifest) -> None:
    experiment = with_bound(learning._chosen(recipe, None, ())[recipe], videos, print)
    rows = [replace(row, video=f"{row.video}{copy}") for row in videos.videos for copy in range(3)]
    plan = Pretraining().plan(experiment, Manifest(rows))
    # The shipped one is for minutes on two cores: as good as it has to be, from fewer.
    few = 2560 if "few samples" in recipe else 232 * 32
    assert sum(stage.samples for stage in plan.stages) == (300 * 16 if recipe == "quickstart" else few)
    assert {stage.global_batch for stage in plan.stages} <= ({8, 16} if "few samples" in recipe else {16, 32})
    clip = load_experiment(shipped_experiment("quickstart")).clip
    assert experiment.clip.model_copy(update={"motion": clip.motion}) == clip
    if recipe in learning.WITHOUT_FLOW:
        assert learning.WITHOUT_FLOW[recipe] in learning.RECIPES


def test_a_name_in_the_table_is_one_change_of_settings() -> None:
    made = [
        json.dumps(one.model_dump(mode="json"), sort_keys=True) for one in learning._chosen(None, None, ()).values()
    ]
    assert len(set(made)) == len(learning.RECIPES)


def test_each_motion_stream_has_a_store_of_its_own(videos: Manifest, tmp_path: Path) -> None:
    name = str(tmp_path / "videos.parquet")
    videos.write(name)
    jobs = {}
    for recipe, changes in (
        ("dis", {}),
        ("differences", {"clip": {"motion": "difference"}}),
        ("vectors", {"flow": {"algorithm": "motion_vectors"}}),
        ("auto", {"flow": {"algorithm": "motion_vectors", "bound": "auto"}}),
        ("crop", {"evaluate": {"motion_crop": 0.5}}),
    ):
        experiment = with_bound(tiny_experiment(**changes), videos, print)
        jobs[recipe] = learning._job(recipe, experiment, name, tmp_path)
    stores = {recipe: Path(str(job.experiment.clip.store)) for recipe, job in jobs.items()}
    assert stores["dis"].name == stores["differences"].name == stores["crop"].name == "store-32x32-dis-8"
    assert stores["vectors"].name == "store-32x32-motion_vectors-8"
    number = jobs["auto"].experiment.flow.pixels
    assert stores["auto"].name == f"store-32x32-motion_vectors-{number:g}" and number != 8
    assert len({job.folder for job in jobs.values()}) == 5
    for recipe, place in stores.items():
        header = PackedStore.open(str(place)).header
        assert header.flow is not None and header.flow["algorithm"] == place.name.split("-")[2]
        row = videos.select("train")[0]
        (clips,) = windows(jobs[recipe].experiment, [row], ("rgb", "flow"))
        assert (abs(clips["flow"].astype(int) - 127.5) > 2).mean() > 0.02, "made videos hold motion vectors too"


def test_runs_keep_the_names_that_they_had(videos: Manifest, tmp_path: Path) -> None:
    """A setting that is added and off makes nothing run again."""
    name = str(tmp_path / "videos.parquet")
    videos.write(name)
    job = learning._job("one", tiny_experiment(), name, tmp_path)
    settings = without_places(job.experiment.model_dump(mode="json")) | {"name": "", "seed": 0}
    del settings["evaluate"]["motion_crop"], settings["model"]["difference_filters"]
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    assert job.folder.name == f"one-{digest}-seed3"


def test_what_data_cost_is_measured_once(videos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, none = tiny_experiment(), tiny_experiment(clip={"motion": "difference"})
    vectors = tiny_experiment(flow={"algorithm": "motion_vectors"})
    seconds = {("rgb",): 0.24, ("rgb", "flow"): 0.96}
    monkeypatch.setattr(learning_cost, "_round", lambda rows, experiment, streams, where: seconds[streams])
    assert learning_cost.data_cost(videos, flow, tmp_path) == {"packing": 60.0, "motion": 45.0}, "16 videos"
    assert learning_cost.data_cost(videos, none, tmp_path) == {"packing": 15.0, "motion": 0.0}
    monkeypatch.undo()
    assert learning_cost.data_cost(videos, flow, tmp_path)["packing"] == 60.0, "kept"
    found = learning_cost.data_cost(videos, vectors, tmp_path)
    assert found["packing"] > 0 and found["packing"] - found["motion"] == 15.0


def test_recipes_without_flow_are_held_against_the_one_with_it() -> None:
    row = {"mean": 0.6, "packing ms a video": 20.0}
    details = {
        "earlier quickstart": row,
        "differences": {"mean": 0.57, "packing ms a video": 15.0},
        "motion vectors": row | {"mean": 0.3},
    }
    bars = {bar.name: bar for bar in learning._bars(details)}
    assert {name: bar.holds for name, bar in bars.items()} == {
        "R@1, differences / earlier quickstart": True,
        "packing, differences / earlier quickstart": False,
        "R@1, motion vectors / earlier quickstart": False,
        "packing, motion vectors / earlier quickstart": False,
    }
    assert bars["packing, differences / earlier quickstart"].figure == 0.75


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"recipes": "quickstart;other"}, ["recipe 'other'", "single-stream"]),
        ({"data": "none"}, ["--data none", "quickstart"]),
        ({"data": "quickstart", "manifest": "m.parquet"}, ["--data and --manifest"]),
        ({"overrides": ["optim.lr=1"]}, ["--set", "name one"]),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    manifest = options.pop("manifest", None)
    with pytest.raises(UserError) as caught:
        run_bench("learning", None, 1, manifest, folder=tmp_path, **options)
    assert all(part in str(caught.value) for part in parts)
    with pytest.raises(UserError, match="takes no --queries; that is for 'vicc bench learning'"):
        run_bench("augment", None, 1, queries=True)


def test_a_recall_of_zero_has_no_ratio() -> None:
    outcome = Outcome("R@1", {"none": [0.0, 0.0], "some": [0.0, 0.5], "more": [0.5, 1.0]})
    assert math.isnan(outcome.ratio("more", "none"))
    assert outcome.ratio("more", "some") == 2.0
