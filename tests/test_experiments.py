"""Shipped experiments: every file loads, every published number has one, and what they resolve to is what was published."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

from vicc_ray.cli import app
from vicc_ray.commands.train import make_plan
from vicc_ray.config import flatten, load_experiment
from vicc_ray.config.published import (
    ROWS,
    TRAIN_VIDEOS,
    UNPUBLISHED,
    UNPUBLISHED_SECTIONS,
    Cost,
    PublishedRow,
    commands,
)
from vicc_ray.console import console, errors
from vicc_ray.objective.prototype_objective import prototype_phases
from vicc_ray.training.schedule import learning_rate, make_stages

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").iterdir())
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)

# The table of results as published: backbone, streams, protocol -> percent on UCF101 and HMDB51.
PUBLISHED = """
    s3d          rgb   linear     72.2   38.5
    s3d          rgb   finetune   84.3   47.9
    s3d          rf    finetune   90.5   62.2
    r2plus1d_10  rgb   finetune   82.8   52.4
    r2plus1d_10  rf    finetune   88.8   61.5
    s3d          rgb   retrieval  62.1   25.5
    s3d          flow  retrieval  59.7   -
    s3d          rf    retrieval  65.1   -
    r2plus1d_10  rgb   retrieval  58.6   25.3
    r2plus1d_10  flow  retrieval  50.0   -
    r2plus1d_10  rf    retrieval  -      28.3
"""

# The published pretraining and protocols, field by field, without regard to what the defaults are.
RECIPE = {
    "seed": 0,
    "search": None,
    "scale": "full",
    "data.manifest": "ucf101_1.parquet",
    "data.train_split": "train",
    "data.gallery_split": "train",
    "data.query_split": "query",
    "data.samples_an_epoch": "row",
    "clip.frames": 32,
    "clip.stride": 1,
    "clip.fps": None,
    "clip.decode_size": [240, 320],
    "clip.size": 128,
    "clip.motion": "flow",
    "flow.algorithm": "tvl1",
    "flow.bound": 20,
    "evaluate.motion_crop": 0,
    "augment.style": "reference",
    "augment.area": [0.2, 1],
    "augment.aspect": [3 / 4, 4 / 3],
    "augment.jitter": [0.4, 0.4, 0.4, 0.1],
    "augment.jitter_p": 0.8,
    "augment.gray_p": 0.2,
    "augment.blur_sigma": [0.1, 2],
    "augment.blur_p": 0.5,
    "augment.flip_p": 0.5,
    "augment.same_window_p": 0.5,
    "augment.full_chain_p": 0.3,
    "augment.follow": 0,
    "augment.local_clips": 0,
    "model.width": 1,
    "model.embedding_dim": 128,
    "model.joint_views": False,
    "model.difference_filters": 0,
    "model.batch_norm": "shuffle",
    "objective.name": "prototypes",
    "objective.prototypes": 300,
    "objective.temperature": 0.1,
    "objective.epsilon": 0.05,
    "objective.iterations": 3,
    "objective.queue": 1920,
    "objective.views_for_assignment": None,
    "objective.guidance": 0,
    "objective.neighbours": 0,
    "objective.even_prototypes": False,
    "objective.second_view_gradient": False,
    "schedule.total": None,
    "schedule.cycles": 2,
    "schedule.single.length": "300 epochs",
    "schedule.single.cosine_over": "500 epochs",
    "schedule.single.global_batch": 192,
    "schedule.single.queue_start": "150 epochs",
    "schedule.single.freeze_prototypes": "100 epochs",
    "schedule.cross.length": "100 epochs",
    "schedule.cross.cosine_over": None,
    "schedule.cross.global_batch": 96,
    "schedule.cross.queue_start": "25 epochs",
    "schedule.cross.freeze_prototypes": "0 epochs",
    "schedule.cross.guide": "frozen",
    "schedule.cross.prototypes": "own",
    "optim.name": "lars",
    "optim.lr": 0.6,
    "optim.end_lr": 0.0006,
    "optim.warm_up": "0 epochs",
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-6,
    "optim.trust": 0.001,
    "optim.clip_norm": None,
    "optim.precision": "fp32",
    "optim.ema": 0,
    "train.workers": 4,
    "evaluate.windows": "all",
    "evaluate.ks": [1, 5, 10, 20, 50],
    "evaluate.fusion": "published",
    "evaluate.exclude_groups": False,
    "evaluate.crops": "ten",
    "linear.length": "100 epochs",
    "linear.drops": ["60 epochs", "80 epochs"],
    "linear.drop_factor": 0.1,
    "linear.head_lr": 0.1,
    "linear.backbone_lr": 0,
    "linear.weight_decay": 1e-3,
    "linear.dropout": 0,
    "finetune.length": "500 epochs",
    "finetune.drops": ["200 epochs", "300 epochs", "400 epochs", "450 epochs"],
    "finetune.drop_factor": 0.1,
    "finetune.head_lr": 0.1,
    "finetune.backbone_lr": 0.01,
    "finetune.weight_decay": 1e-3,
    "finetune.dropout": 0.9,
    "finetune.global_batch": 4 * 32,
}


def _text(row: PublishedRow) -> str:
    return (ROOT / row.file).read_text(encoding="utf-8")


def _head(row: PublishedRow) -> str:
    lines = [line for line in _text(row).splitlines() if line.startswith("#")]
    return " ".join(" ".join(line.removeprefix("#").split()) for line in lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_loads_and_has_a_head(path: Path) -> None:
    assert path.suffix == ".yaml"
    assert path.read_text(encoding="utf-8").startswith("# ")
    load_experiment(path)


def test_no_file_is_an_orphan() -> None:
    reached = {"quickstart.yaml", "sweep_quickstart.yaml", "sweep_ucf101.yaml"} | {Path(row.file).name for row in ROWS}
    waiting = list(reached)
    while waiting:
        tree = yaml.safe_load((ROOT / "experiments" / waiting.pop()).read_text(encoding="utf-8"))
        base = tree.get("extends")
        if base and base not in reached:
            reached.add(base)
            waiting.append(base)
    assert {path.name for path in FILES} == reached


def test_the_rows_are_the_published_numbers() -> None:
    expected = {}
    for line in PUBLISHED.strip().splitlines():
        backbone, streams, protocol, *numbers = line.split()
        for dataset, number in zip(("ucf101", "hmdb51"), numbers, strict=True):
            if number != "-":
                expected[f"{backbone}_{streams}_{protocol}_{dataset}"] = float(number)
    assert {row.id: row.percent for row in ROWS} == expected
    assert len(ROWS) == len(expected) == 18
    assert {row.id: row.also_listed for row in ROWS if row.also_listed} == {"s3d_rgb_finetune_ucf101": 88.8}
    encoders = {"rgb": "RGB-2", "flow": "Flow-2", "rf": "R+F"}
    for row in ROWS:
        streams = row.id.removeprefix(row.backbone).split("_")[1]
        assert row.encoder == encoders[streams]
        assert row.metric == ("R@1" if "_retrieval_" in row.id else "top-1")
        assert row.folds == ((1,) if "_retrieval_" in row.id else (1, 2, 3))


@every_row
def test_a_row_resolves_to_what_was_published(row: PublishedRow) -> None:
    experiment = load_experiment(ROOT / row.file)
    resolved = flatten(experiment.model_dump(mode="json"))
    assert {field: resolved[field] for field in RECIPE} == RECIPE
    assert experiment.model.backbone == row.backbone
    assert experiment.name == row.run
    others = {field for field in resolved if field not in RECIPE and not field.startswith(UNPUBLISHED_SECTIONS)}
    assert others == UNPUBLISHED, "a new setting: say in RECIPE what was published, or in UNPUBLISHED that nothing was"


@pytest.mark.parametrize("backbone", ["s3d", "r2plus1d_10"])
def test_rows_of_a_backbone_share_one_run(backbone: str) -> None:
    """So that one pretraining serves all of them: the second `vicc train` finds every stage finished."""
    rows = [row for row in ROWS if row.backbone == backbone]
    first, *rest = [load_experiment(ROOT / row.file) for row in rows]
    assert rest and all(other == first for other in rest)
    assert {row.run for row in ROWS if row.backbone != backbone}.isdisjoint({first.name})


@every_row
def test_a_row_plans_the_published_stages(row: PublishedRow) -> None:
    experiment = load_experiment(ROOT / row.file)
    stages = make_stages(experiment, 9537)
    assert TRAIN_VIDEOS == 9537
    single, cross = 9537 // 192, 9537 // 96  # steps an epoch; the tail smaller than a batch is left out
    assert [stage.name for stage in stages] == ["RGB-1", "Flow-1", "RGB-2-cycle1", "Flow-2-cycle1", "RGB-2", "Flow-2"]
    assert [stage.steps for stage in stages] == [300 * single] * 2 + [100 * cross] * 4
    assert [stage.cosine_steps for stage in stages] == [500 * single] * 2 + [100 * cross] * 4
    phases = [prototype_phases(experiment, stage) for stage in stages]
    assert [one.queue_start for one in phases] == [150 * single] * 2 + [25 * cross] * 4
    assert [one.freeze_prototypes for one in phases] == [100 * single] * 2 + [0] * 4
    assert [one.queue for one in phases] == [1920] * 6
    assert [stage.warm_up for stage in stages] == [0] * 6
    optim = experiment.optim
    rates = [learning_rate(stage, stage.steps, optim.lr, optim.end_lr) for stage in stages]
    # cos(3/5 pi) = (1 - sqrt 5) / 4: a stream alone stops at epoch 300 of a cosine over 500.
    assert rates == pytest.approx([0.0006 + 0.5994 * (5 - 5**0.5) / 8] * 2 + [0.0006] * 4)


@every_row
def test_a_plan_needs_no_data(row: PublishedRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with console.capture(), errors.capture() as told:
        plan = make_plan(load_experiment(ROOT / row.file), None)
    assert plan["videos"] == 9537 and "ucf101_1.parquet is not there yet; planned for the 9537" in told.get()
    assert [stage["epochs"] for stage in plan["stages"]] == ["300", "300", "100", "100", "100", "100"]


@every_row
def test_a_head_says_what_how_and_how_much(row: PublishedRow) -> None:
    head = _head(row)
    assert head.startswith(f"{row.title}, pretrained on UCF101 split 1 (ViCC, WACV 2022).")
    shown = tuple(line[4:] for line in _text(row).splitlines() if line.startswith("#   "))
    assert shown == commands(row)
    assert f" Expected: {row.metric} {row.percent} % of {row.encoder}, compared " in head
    assert ("one random window a gallery video and colour jitter at test" in head) == (row.protocol == "retrieval")
    assert ("mean over splits 1-3" in head and "ten-crop test" in head) == (row.protocol != "retrieval")
    assert ("another listing says" in head) == (row.also_listed is not None)
    assert row.also_listed is None or f"another listing says {row.also_listed}." in head
    cost = "6 jobs of at most 38 h on 4 TITAN RTX"
    assert (f"Published cost of pretraining: {cost} (9.5 days at most)." in head) == (row.backbone == "s3d")
    assert (f"Published cost: none for this backbone (S3D: {cost}" in head) == (row.backbone != "s3d")
    assert row.cost == (Cost(6, 38, 4, "TITAN RTX") if row.backbone == "s3d" else None)


@every_row
def test_the_commands_lead_from_folders_to_the_number(row: PublishedRow) -> None:
    """Each file is made before it is used, flow is there for every data set, and each fold is evaluated once."""
    made, measured, trained, evaluated = set(), set(), False, []
    for line in commands(row):
        verb, first, *rest = line.removeprefix("vicc ").split()
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        options = dict(pairs)
        if verb == "index":
            dataset, fold = options["--layout"], options["--fold"]
            assert (first, options["--out"]) == (dataset.upper(), f"{dataset}_{fold}.parquet")
            made.add(options["--out"])
        elif verb == "flow":
            assert first in made and options == {"--for": row.file}
            measured.add(first.split("_")[0])
        elif verb == "train":
            assert first == row.file and "ucf101_1.parquet" in made and measured == {"ucf101"}
            trained = True
        else:
            assert verb == "evaluate" and trained and first == f"runs/{row.run}"
            assert options["--protocol"] == row.protocol and row.dataset in measured
            assert options.get("--set") == ("evaluate.retrieval=reference" if row.protocol == "retrieval" else None)
            evaluated += [value for option, value in pairs if option == "--data"]
    assert evaluated == [f"{row.dataset}_{fold}.parquet" for fold in row.folds]
    assert set(evaluated) <= made


@pytest.mark.parametrize("verb", ["index", "flow", "train", "evaluate"])
def test_the_command_line_takes_the_commands(verb: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    lines = {line for row in ROWS for line in commands(row) if line.startswith(f"vicc {verb} ")}
    assert lines
    for line in lines:
        group.commands[verb].make_context(verb, shlex.split(line)[2:])


@every_row
def test_a_row_is_a_head_on_its_recipe(row: PublishedRow) -> None:
    lines = _text(row).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [f"extends: recipe_{row.backbone}.yaml"]
    assert len(lines) <= 20 and max(map(len, lines)) <= 140


def test_the_flow_store_is_named_after_what_it_holds() -> None:
    experiment = load_experiment(ROOT / "experiments" / "recipe_ucf101.yaml")
    height, width = experiment.clip.decode_size
    assert experiment.flow.store == f"flow/{experiment.flow.algorithm}_{height}x{width}"
