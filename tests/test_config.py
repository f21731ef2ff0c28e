"""The experiment: defaults are the published recipe, every mistake is named, what is written reads back."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from vicc_ray.config import (
    Duration,
    Experiment,
    differences,
    dump_experiment,
    load_experiment,
    make_experiment,
    parse_duration,
)
from vicc_ray.errors import UserError

SHIPPED = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))


def test_defaults_are_the_published_recipe() -> None:
    published = Experiment()
    assert (published.clip.frames, published.clip.stride, published.clip.size) == (32, 1, 128)
    assert published.objective.heads("rgb") == (300,)
    assert (published.objective.temperature, published.objective.epsilon, published.objective.iterations) == (
        0.1,
        0.05,
        3,
    )
    assert published.objective.queue == 1920
    assert (published.optim.name, published.optim.lr, published.optim.end_lr) == ("lars", 0.6, 0.0006)
    assert (published.optim.momentum, published.optim.weight_decay, published.optim.trust) == (0.9, 1e-6, 0.001)
    single, cross = published.schedule.single, published.schedule.cross
    assert (single.stage_length("rgb"), single.cosine_over) == (Duration(300, "epochs"), Duration(500, "epochs"))
    assert (single.global_batch, cross.global_batch, published.schedule.cycles) == (192, 96, 2)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_experiment_loads_and_reads_back(path: Path, tmp_path: Path) -> None:
    experiment = load_experiment(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_experiment(experiment))
    assert load_experiment(copy) == experiment


@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        ({"optim": {"lrr": 1}}, ["optim.lrr is not a setting", "did you mean optim.lr?"]),
        ({"zzz": 1}, ["zzz is not a setting", "allowed here: name"]),
        ({"objective": {"prototypes": 1}}, ["prototypes: 1", "at least 2"]),
        ({"clip": {"frames": 13}}, ["frames: 13 is odd"]),
        ({"schedule": {"single": {"length": "0 epochs"}}}, ["schedule.single.length: 0 trains nothing"]),
        ({"schedule": {"cross": {"length": "3 fortnights"}}}, ["schedule.cross.length", "'30 epochs'", "3 fortnights"]),
        ({"train": {"workers": 0}}, ["train.workers", "came: 0"]),
        ({"optim": {"name": "adam"}}, ["optim.name", "'lars', 'sgd' or 'adamw'"]),
        ({"optim": {"lr": float("nan")}}, ["optim.lr"]),
        ({"model": {"batch_norm": "shuffle"}}, ["second_view_gradient: false"]),
        ({"objective": {"views_for_assignment": [0, 0]}}, ["views_for_assignment"]),
        ({"name": "../elsewhere"}, ["name"]),
    ],
)
def test_a_mistake_is_named_in_one_line(tree: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        make_experiment(tree, "mine.yaml")
    text = str(caught.value)
    assert text.startswith("mine.yaml: ")
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize("text", ["", "3", "epochs", "-1 epochs", "1 2 epochs", None, "five epochs"])
def test_a_length_needs_number_and_unit(text: object) -> None:
    with pytest.raises(ValueError, match="needs a number and a unit"):
        parse_duration(text)


def test_lengths_become_steps() -> None:
    def steps(text: str, whole: int | None = None) -> int:
        return parse_duration(text).steps(steps_per_epoch=10, global_batch=32, whole=whole)

    assert steps("3 epochs") == 30
    assert steps("0.5 epoch") == 5
    assert steps("320 samples") == 10
    assert steps("7 steps") == 7
    assert steps("25 %", whole=80) == 20
    assert steps("1 samples") == 1  # something is at least one step
    assert steps("0") == 0
    with pytest.raises(UserError, match="share of nothing"):
        steps("25 %")


def test_files_extend_one_another_and_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.3, name: sgd}\nseed: 4\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\noptim: {lr: 0.2}\n")
    experiment = load_experiment(tmp_path / "mine.yaml", ["optim.momentum=0.5", "schedule.single.global_batch=8"])
    assert (experiment.optim.lr, experiment.optim.name, experiment.optim.momentum, experiment.seed) == (
        0.2,
        "sgd",
        0.5,
        4,
    )
    assert experiment.schedule.single.global_batch == 8
    assert experiment.schedule.single.cosine_over == Duration(500, "epochs")
    (tmp_path / "base.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load_experiment(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("content", "part"),
    [("[1, 2]", "holds list"), ("a: [", "not valid YAML"), ("!!python/object:os.system {}", "not valid YAML")],
)
def test_a_file_that_is_no_experiment(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=part):
        load_experiment(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(tmp_path / "absent.yaml")


def test_only_changes_that_alter_learning_count_as_differences() -> None:
    base = Experiment()
    assert (
        differences(base, make_experiment({"train": {"workers": 8}, "evaluate": {"ks": [1]}, "name": "other"}, "x"))
        == []
    )
    changed = make_experiment({"optim": {"lr": 0.3}, "seed": 1}, "x")
    assert differences(base, changed) == ["seed: was 0, now 1", "optim.lr: was 0.6, now 0.3"]


def test_nested_aliases_are_refused_before_they_are_written_out(tmp_path: Path) -> None:
    """Seven lines that stand for ten million values; nothing of that size is made, not even for the message."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(f'*a{n - 1}' for _ in range(10))}]" for n in range(1, 7)]
    path = tmp_path / "aliases.yaml"
    path.write_text("\n".join(lines))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"aliases.yaml: holds more than 10000 values with its aliases"):
        load_experiment(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5e6


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "[" * 5000])
def test_yaml_without_a_bottom_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="nested too deeply, or an alias"):
        load_experiment(path)


def test_an_alias_may_be_used(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("clip: {frames: &n 16}\nseed: *n\n")
    assert load_experiment(path).seed == 16


@pytest.mark.parametrize("field", ["runs", "data.manifest", "flow.store", "flow.weights"])
@pytest.mark.parametrize("uri", ["s3://KEY:HUSH@bucket/x", "abfs://c@a.dfs.core.windows.net/x?sv=1&sig=HUSH"])
def test_no_verb_takes_credentials_in_a_uri(field: str, uri: str) -> None:
    section, _, name = field.rpartition(".")
    tree = {section: {name: uri}} if section else {name: uri}
    with pytest.raises(UserError, match=rf"x\.yaml: {field}: the URI carries credentials") as told:
        make_experiment(tree, "x.yaml")
    assert "HUSH" not in str(told.value)
    container = "abfs://videos@account.dfs.core.windows.net/x"
    assert (
        make_experiment({section: {name: container}} if section else {name: container}, "x").places[field] == container
    )
