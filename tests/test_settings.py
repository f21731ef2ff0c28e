"""Every setting is described; `vicc config` shows where values come from; the schema takes and refuses what the program does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from vicc_ray.cli import app
from vicc_ray.commands.config import resolve, shown
from vicc_ray.config import Experiment, dump_experiment, load_experiment, make_experiment, with_settings
from vicc_ray.config.published import published_settings
from vicc_ray.config.settings import experiment_schema, sections, settings
from vicc_ray.errors import UserError
from vicc_ray.runs.scale import Scale, experiment_at

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))
shipped = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
SCHEMA = jsonschema.Draft202012Validator(experiment_schema())


def at(tree: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def test_every_setting_is_described() -> None:
    by_path = {one.path: one for one in settings()}
    assert len(by_path) == len(settings()) > 140
    for path, one in by_path.items():
        assert len(one.description) > 5 and one.type not in ("", "anything") and "StreamCounts" not in one.type, path
    for _, section in sections():
        assert section.__doc__
    assert by_path["optim.momentum"].type == "number, at least 0, below 1"
    assert by_path["objective.prototypes"].type.endswith("{rgb: whole number or list of: whole number, flow: whole "
                                                         "number or list of: whole number}")  # fmt: skip
    assert by_path["schedule.cross.queue_start"].default == "25 epochs"
    assert by_path["schedule.cross.queue_start"].description == by_path["schedule.single.queue_start"].description != ""


def test_every_value_of_the_defaults_is_a_settings() -> None:
    """Whatever the model has is listed, with the default that it has."""
    sweep = make_experiment({"search": {}}, "x").model_dump(mode="json")
    for one in settings():
        assert at(sweep, one.path) == one.default, one.path
    listed = {one.path for one in settings()}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if f"{prefix}{key}" not in listed:
                walk(value, f"{prefix}{key}.")

    walk(sweep, "")


def test_published_values_are_those_of_the_rows() -> None:
    published = published_settings()
    assert (published["objective.queue"], published["flow.algorithm"], published["clip.decode_size"]) == (
        1920,
        "tvl1",
        [240, 320],
    )
    assert not {"train.workers", "runs", "search.seed", "evaluate.retrieval"} & published.keys()
    assert {path for path in published if "." in path} <= {one.path for one in settings()}


@shipped
def test_the_schema_takes_every_shipped_experiment_and_what_it_resolves_to(path: Path) -> None:
    SCHEMA.validate(yaml.safe_load(path.read_text()))
    SCHEMA.validate(yaml.safe_load(dump_experiment(load_experiment(path))))


@pytest.mark.parametrize(
    "tree",
    [
        {"optim": {"lrr": 1}},
        {"zzz": 1},
        {"clip": {"frames": "many"}},
        {"clip": {"decode_size": [64]}},
        {"schedule": {"single": {"length": "3 fortnights"}}},
        {"schedule": {"cross": {"length": {"rgb": "3 steps"}}}},
        {"train": {"workers": 0}},
        {"train": {"workers": {"min": 2}}},
        {"train": {"checkpoint_every": "3 hours"}},
        {"train": {"sinks": {"tensorbord": {}}}},
        {"optim": {"name": "adam"}},
        {"model": {"backbone": "s3dd"}},
        {"search": {"space": {"optim.lr": {"logs": [0.1, 1]}}}},
        {"search": {"space": {"lr": {"log": [0.1, 1]}}}},
        {"search": {"budget": "12 trails"}},
        {"data": {"samples_an_epoch": "10 minutes"}},
        {"name": "../elsewhere"},
    ],
)
def test_the_schema_refuses_what_the_program_refuses(tree: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(tree)
    with pytest.raises(UserError):
        _as_a_sweep_would(tree)


def _as_a_sweep_would(tree: dict[str, Any]) -> None:
    experiment = make_experiment(tree, "x")
    with_settings(experiment, dict.fromkeys(tree["search"]["space"], 0.1), "x")


@pytest.mark.parametrize(
    "tree",
    [
        {"extends": "base.yaml", "schedule": {"single": {"length": {"rgb": "30 steps", "motion": "5 %"}, "queue_start": 0}}},
        {"train": {"workers": {"min": 2, "max": 8}, "checkpoint_every": "5 min", "sinks": {"a.b:C": {"file": "x"}}}},
        {"objective": {"prototypes": [100, 200], "name": "my.module:Mine", "options": {"a": 1}}},
        {"objective": {"prototypes": {"rgb": 300, "flow": [10, 20]}}},
        {"clip": {"fps": 12.5}, "data": {"samples_an_epoch": "2.5s"}, "model": {"backbone": "pack.age:Name"}},
        {"search": {"space": {"objective.queue": {"choice": [0, 64]}}, "metric": ["RGB-2/R@1", "Flow-2/R@1"]}},
        {"train": {"use_gpu": "auto", "planar": False}},
    ],
)  # fmt: skip
def test_the_schema_takes_what_the_program_takes(tree: dict[str, Any]) -> None:
    SCHEMA.validate(tree)
    make_experiment({key: value for key, value in tree.items() if key != "extends"}, "x")


@shipped
@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_what_is_shown_reads_back(path: Path, scale: Scale) -> None:
    overrides = ["optim.momentum=0.8", "train.workers={min: 1, max: 2}"]
    experiment, origins = resolve(path, overrides, scale)
    assert experiment == experiment_at(path, overrides, scale)
    assert make_experiment(yaml.safe_load(shown(experiment, origins)), "shown") == experiment
    assert origins["optim.momentum"] == origins["train.workers"] == "--set"
    assert origins["data.max_refused"] == "default"
    assert (origins["linear.length"] == "--scale smoke") == (scale == "smoke")


def test_a_value_is_shown_with_the_last_place_that_sets_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.3, momentum: 0.8}\ntrain: {sinks: {mlflow: {}}}\nseed: 4\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\noptim: {lr: 0.2}\nseed: 0\n")
    _, origins = resolve(
        tmp_path / "mine.yaml", ["optim.trust=0.5", "schedule.cross.length={rgb: 3 steps, motion: 1 %}"], "full"
    )
    base, mine = str(tmp_path / "base.yaml"), str(tmp_path / "mine.yaml")
    assert (origins["optim.lr"], origins["optim.momentum"], origins["optim.trust"]) == (mine, base, "--set")
    assert (origins["seed"], origins["train.sinks"], origins["schedule.cross.length"]) == (mine, base, "--set")
    assert origins["optim.end_lr"] == "default"
    assert origins.keys() == {one.path for one in settings()}


def test_the_verb_prints_yaml_json_and_the_schema(tmp_path: Path) -> None:
    run = CliRunner()
    text = run.invoke(app, ["config", "show", "quickstart", "--set", "seed=7"]).output
    assert load_experiment(ROOT / "experiments" / "quickstart.yaml", ["seed=7"]) == make_experiment(
        yaml.safe_load(text), "x"
    )
    assert "quickstart.yaml\n" in text and "# --set\n" in text and "# default\n" in text
    assert make_experiment(yaml.safe_load(run.invoke(app, ["config", "show"]).output), "x") == Experiment()
    told = json.loads(run.invoke(app, ["config", "show", "quickstart", "--json"]).output)
    assert make_experiment(told["experiment"], "x").name == "quickstart" and told["sources"]["optim.trust"] == "default"
    file = tmp_path / "s.json"
    assert run.invoke(app, ["config", "schema", "--out", str(file)]).exit_code == 0
    assert (
        json.loads(file.read_text()) == json.loads(run.invoke(app, ["config", "schema"]).output) == experiment_schema()
    )
    with pytest.raises(UserError, match="cannot be written"):
        run.invoke(app, ["config", "schema", "--out", str(tmp_path)], catch_exceptions=False)
