"""A run's folder: claimed once, resumed by the same experiment only, records trimmed to a checkpoint, nothing unpickled."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path

import pytest
import torch

from vicc_ray.checkpoint import (
    RunFolder,
    append_record,
    forget_records_after,
    load_state,
    read_records,
    save_state,
    write_text,
)
from vicc_ray.config import make_experiment
from vicc_ray.errors import UserError


def test_a_folder_is_resumed_by_the_same_experiment_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    first = make_experiment({"seed": 1}, "x")
    assert folder.open(first, "data-a") is False
    assert folder.experiment() == first
    assert folder.open(make_experiment({"seed": 1, "train": {"workers": 2}}, "x"), "data-a") is True
    assert folder.experiment().train.workers == 2
    with pytest.raises(UserError, match=r"another experiment \(optim.lr: was 0.6, now 0.3\)"):
        folder.open(make_experiment({"seed": 1, "optim": {"lr": 0.3}}, "x"), "data-a")
    with pytest.raises(UserError, match="videos of the manifest are not the same"):
        folder.open(first, "data-b")
    assert folder.provenance()["data_fingerprint"] == "data-a"
    assert "torch" in folder.provenance()["versions"]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder(tmp_path).experiment()


def test_records_survive_a_cut_line_and_forget_what_is_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(read_records(path)) == []
    for step in range(1, 6):
        append_record(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4, 5]
    forget_records_after(path, 3)
    assert path.read_text() == "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3))


def test_state_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path, {"step": 3, "trainer": {"w": torch.arange(4.0)}})
    state = load_state(tmp_path)
    assert state["step"] == 3
    assert torch.equal(state["trainer"]["w"], torch.arange(4.0))


HARM = str(Path(tempfile.gettempdir()) / "vicc-harm")


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (open, (HARM, "w"))


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", pickle.dumps(_Harmful()), pickle.dumps({"format": 1})[:-5]]
)
def test_a_damaged_or_harmful_state_is_refused_and_not_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"state.pt: (cannot be read|is not) "):
        load_state(tmp_path)
    assert not Path(HARM).exists()
    torch.save({"format": 99}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        load_state(tmp_path)


def test_a_text_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
