"""Metrics sinks: what is logged is read back by the tools' own readers; a sink that fails or hangs holds up nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny import tiny_experiment

from vicc_ray.errors import UserError
from vicc_ray.runs import sinks as sinks_module
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.sinks import SinkRun, Sinks, check_sinks, figures_of

HERE = __name__


def record(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "train", "stage": "RGB-1", "step": step, "samples": 8 * step, "time": 1.7e9 + step, "loss": loss, **more,
    }  # fmt: skip


def run_of(folder: Path, samples: int = 0, **sinks: Mapping[str, Any]) -> SinkRun:
    experiment = tiny_experiment(name="mine", train={"sinks": sinks})
    return SinkRun(RunFolder(folder), experiment, samples)


def feed(run: SinkRun, *records: dict[str, Any]) -> list[str]:
    told: list[str] = []
    made = Sinks(run, told.append)
    for one in records:
        made.add(one)
    made.close()
    return told


def test_figures() -> None:
    line = record(3, 1.5, rows=8, **{"R@1": 0.25}) | {"lr": float("nan")}
    assert figures_of(line) == {"RGB-1/loss": 1.5, "RGB-1/R@1": 0.25}
    assert figures_of({"kind": "note", "stage": "RGB-1", "text": "x", "share": 0.5}) == {}


def test_tensorboard_has_each_point_once_after_a_restart(tmp_path: Path) -> None:
    """Also after one within a second, for which tensorboardX has no second name of a file."""
    event_file_loader = pytest.importorskip("tensorboardX").proto.event_pb2
    assert feed(run_of(tmp_path, tensorboard={}), *(record(step, 1.0 / step) for step in (1, 2, 3))) == []
    assert feed(run_of(tmp_path, samples=16, tensorboard={}), record(3, 0.5), record(4, 0.25)) == []
    points: list[tuple[int, float]] = []
    for file in sorted((tmp_path / "tensorboard").glob("events*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = event_file_loader.Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.HasField("session_log"):
                points = [point for point in points if point[0] < event.step]
            points += [(event.step, round(value.simple_value, 4)) for value in event.summary.value]
    assert points == [(8, 1.0), (16, 0.5), (24, 0.5), (32, 0.25)]


def test_mlflow_goes_on_in_its_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = {"tracking_uri": uri, "experiment": "videos"}
    assert feed(run_of(tmp_path, mlflow=options), *(record(s, 1.0 / s, **{"R@1": 0.5}) for s in (1, 2, 3))) == []
    assert feed(run_of(tmp_path, samples=16, mlflow=options), record(3, 9.0), record(4, 0.25)) == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("videos").experiment_id])
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    history = client.get_metric_history(found.info.run_id, "RGB-1/loss")
    assert [(point.step, round(point.value, 4)) for point in history] == [(8, 1.0), (16, 0.5), (24, 0.3333), (32, 0.25)]
    assert found.data.metrics["RGB-1/R at 1"] == 0.5
    assert found.data.params["clip.frames"] == "8" and found.data.params["model.backbone"] == "r2plus1d_10"


def offline_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def wandb_rows(folder: Path) -> list[tuple[str, dict[str, str]]]:
    """The run and the figures of each row in W&B's files for runs without a network."""
    from wandb.proto import wandb_internal_pb2

    rows: list[tuple[str, dict[str, str]]] = []
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        run = ""
        for data in offline_records(file.read_bytes()):
            message = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
            if message.HasField("run"):
                run = message.run.run_id
            if message.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in message.history.item}
                rows.append((run, items))
    return rows


def test_wandb_goes_on_in_its_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    options = {"mode": "offline", "project": "videos"}
    assert feed(run_of(tmp_path, wandb=options), record(1, 1.0), record(2, 0.5)) == []
    assert feed(run_of(tmp_path, samples=16, wandb=options), record(3, 0.25)) == []
    deadline = (
        time.monotonic() + 20
    )  # a process of W&B's own writes them, on a busy machine a moment after its run's end
    while len(rows := wandb_rows(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len({run for run, _ in rows}) == 1
    assert sorted((row["_step"], row["RGB-1/loss"]) for _, row in rows) == [("16", "0.5"), ("24", "0.25"), ("8", "1")]


class Fails:
    def __init__(self, run: SinkRun, options: Mapping[str, Any]) -> None:
        self.after, self.added = options.get("after", 0), 0

    def add(self, record: Mapping[str, Any]) -> None:
        self.added += 1
        if self.added > self.after:
            raise ConnectionError("the server is\naway")

    def close(self) -> None:
        pytest.fail("closed after it failed")


class Hangs(Fails):
    def add(self, record: Mapping[str, Any]) -> None:
        threading.Event().wait()


class Keeps(Fails):
    kept: ClassVar[list[int]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        self.kept.append(record["step"])

    def close(self) -> None:
        self.kept.append(-1)


def test_a_sink_that_fails_or_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_module, "CLOSE_SECONDS", 1.0)
    monkeypatch.setattr(sinks_module, "WAITING", 20)
    names = [f"{HERE}:{name}" for name in ("Fails", "Hangs", "Keeps")]
    told: list[str] = []
    Keeps.kept.clear()
    made = Sinks(run_of(tmp_path, **{names[0]: {"after": 2}, names[1]: {}, names[2]: {}}), told.append)  # type: ignore[arg-type]
    began = time.monotonic()
    for step in range(10):
        made.add(record(step, 1.0))
    assert time.monotonic() - began < 0.5
    time.sleep(0.2)
    made.close()
    assert time.monotonic() - began < 5
    assert Keeps.kept == [*range(10), -1]
    failed, hung = told
    assert failed == f"{names[0]}: ConnectionError: the server is away; gets no more records"
    assert hung.startswith(f"{names[1]}: has not written its last records")


def test_mistakes_show_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"train: sinks: metrics sink 'tensorbord' is unknown .did you mean tensorboard"
    ):
        tiny_experiment(train={"sinks": {"tensorbord": {}}})
    with pytest.raises(UserError, match=r"train.sinks.mlflow.uri: is not an option; allowed: experiment, tracking_uri"):
        check_sinks(tiny_experiment(train={"sinks": {"mlflow": {"uri": "x"}}}))
    with pytest.raises(UserError, match=r"train.sinks: metrics sink 'nowhere:Sink' cannot be loaded"):
        check_sinks(tiny_experiment(train={"sinks": {"nowhere:Sink": {}}}))
    monkeypatch.setattr(sinks_module, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"train.sinks.wandb: its package is not installed; pip install 'vicc-ray\[wandb\]'"
    ):
        check_sinks(tiny_experiment(train={"sinks": {"wandb": {}}}))
