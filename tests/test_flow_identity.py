"""What is learnt from flow is known by the flow's content: features, classifiers, resumed runs and sweeps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packed import make_store as packed_store
from tiny import tiny_experiment

from vicc_ray.config import Experiment, FlowConfig
from vicc_ray.data.flow import algorithms as flow_module
from vicc_ray.data.identity import flow_identity, pictures_identity
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation import classifiers
from vicc_ray.evaluation.stored import Side, source_of
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.runs.folder import RunFolder
from vicc_ray.tune.folder import SweepFolder


def make_store(folder: Path, made_by: str = "dis", bound: float = 8.0) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    packed_store(folder, (32, 32), ["flow"], FlowConfig(algorithm=made_by, bound=bound))
    return str(folder)


def measured(**flow: Any) -> Experiment:
    return tiny_experiment(flow={"bound": 20.0} | flow)


def stored(folder: Path | str) -> Experiment:
    return measured(source="store", store=str(folder), bound=8.0)


def packed(folder: Path | str) -> Experiment:
    return tiny_experiment(clip={"source": "store", "store": str(folder)})


def test_a_store_is_what_it_was_made_with_wherever_it_lies(tmp_path: Path) -> None:
    first = flow_identity(stored(make_store(tmp_path / "a")))
    assert flow_identity(stored(make_store(tmp_path / "b"))) == first
    assert flow_identity(stored(make_store(tmp_path / "a", "farneback"))) != first
    assert flow_identity(stored(make_store(tmp_path / "a", bound=9.0))) != first
    assert flow_identity(measured(bound=8.0)) != first  # measured anew, not what a store keeps of it
    with pytest.raises(UserError, match="there is none"):
        flow_identity(stored(tmp_path / "absent"))


def test_streamed_flow_is_its_parameters_and_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    first = flow_identity(measured())
    assert flow_identity(measured(bound=7)) != first != flow_identity(measured(algorithm="tvl1"))
    monkeypatch.setattr(flow_module.cv2, "__version__", "0.0.1")  # type: ignore[attr-defined]
    assert flow_identity(measured()) == first | {"opencv": "0.0.1"}


def test_pictures_of_a_packed_store_are_those_of_its_encoder(tmp_path: Path) -> None:
    assert pictures_identity(measured()) is None and pictures_identity(stored(make_store(tmp_path / "f"))) is None
    packed_store(tmp_path / "a", (32, 32), flow=FlowConfig(bound=8))
    packed_store(tmp_path / "b", (32, 32), flow=FlowConfig(bound=8))
    first = pictures_identity(packed(tmp_path / "a"))
    assert first is not None and first["encoder"]["qp"] == "14"
    assert pictures_identity(packed(tmp_path / "b")) == first
    # Where the clips come from a packed store their flow does too, unless another store is named for it.
    assert flow_identity(packed(tmp_path / "a")) == flow_identity(stored(tmp_path / "a"))
    other = make_store(tmp_path / "other", "farneback")
    both = tiny_experiment(
        clip={"source": "store", "store": str(tmp_path / "a")}, flow={"source": "store", "store": other}
    )
    assert flow_identity(both) == flow_identity(stored(other)) != flow_identity(packed(tmp_path / "a"))


def test_features_are_of_the_stores_content(tmp_path: Path, videos: Manifest) -> None:
    side = Side(tuple(videos.videos), "all")

    def keys(folder: Path) -> list[str]:
        experiment = tiny_experiment(flow={"source": "store", "store": str(folder)})
        encoders = [EncoderOnDisk("x", tmp_path, "", stream, "hash") for stream in ("rgb", "flow")]
        return [source_of(encoder, side, experiment).key for encoder in encoders]

    first = keys(Path(make_store(tmp_path / "a")))
    assert keys(Path(make_store(tmp_path / "b"))) == first
    remade = keys(Path(make_store(tmp_path / "a", "farneback")))
    assert remade[0] == first[0] and remade[1] != first[1]


@pytest.fixture
def encoders(tmp_path: Path) -> dict[str, EncoderOnDisk]:
    return {
        "RGB-2": EncoderOnDisk("RGB-2", tmp_path, "", "rgb", "r"),
        "Flow-2": EncoderOnDisk("Flow-2", tmp_path, "", "flow", "f"),
    }


def digest(
    experiment: Experiment, videos: Manifest, encoders: Mapping[str, EncoderOnDisk], protocol: str = "linear"
) -> str:
    return classifiers._own_folder(RunFolder(Path("run")), experiment, videos, "d", protocol, encoders)[1]


def test_a_classifier_on_a_store_that_was_made_anew_is_another(
    tmp_path: Path, videos: Manifest, encoders: dict[str, EncoderOnDisk]
) -> None:
    def here(folder: Path) -> str:
        return digest(tiny_experiment(flow={"source": "store", "store": str(folder)}), videos, encoders)

    first = here(Path(make_store(tmp_path / "a")))
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert here(tmp_path / "moved") == first
    assert here(Path(make_store(tmp_path / "a", "farneback"))) != first
    rgb = {"RGB-2": encoders["RGB-2"]}
    first = digest(tiny_experiment(flow={"source": "store", "store": str(tmp_path / "gone")}), videos, rgb)
    assert first == digest(tiny_experiment(flow={"source": "store", "store": str(tmp_path / "a")}), videos, rgb)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"decoder": "pyav"}},
        {"optim": {"precision": "bf16"}},
        {"model": {"batch_norm": "sync"}},
        {"clip": {"stride": 2}},
        {"linear": {"head_lr": 0.5}},
        {"seed": 9},
        {"data": {"train_split": "query"}},
    ],
)
def test_whatever_changes_what_a_classifier_learns_makes_another(
    tmp_path: Path, videos: Manifest, encoders: dict[str, EncoderOnDisk], changes: dict[str, Any]
) -> None:
    """Else its folder would hold another run's, and the run would be refused with the advice to change its name."""
    one, other = tiny_experiment(), tiny_experiment(**changes)
    names = [digest(experiment, videos, encoders) for experiment in (one, other)]
    assert names[0] != names[1]
    for name, experiment in zip(names, (one, other), strict=True):
        RunFolder(tmp_path / name).open(experiment, videos.fingerprint(), flow_identity(experiment))


def test_what_does_not_change_it_finds_it_again(videos: Manifest, encoders: dict[str, EncoderOnDisk]) -> None:
    first = digest(tiny_experiment(), videos, encoders)
    for changes in ({"train": {"log_every": 7}}, {"finetune": {"head_lr": 0.5}}, {"evaluate": {"crops": "five"}}):
        assert digest(tiny_experiment(**changes), videos, encoders) == first
    assert digest(tiny_experiment(), videos, encoders, "finetune") != first


def test_a_run_goes_on_with_the_flow_that_it_began_with(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    experiment = tiny_experiment(flow={"source": "store", "store": make_store(tmp_path / "a")})
    assert not folder.open(experiment, "data", flow_identity(experiment))
    moved = tiny_experiment(flow={"source": "store", "store": make_store(tmp_path / "b")})
    assert folder.open(moved, "data", flow_identity(moved))
    make_store(tmp_path / "b", "farneback")
    with pytest.raises(UserError, match="the flow's algorithm: was dis, now farneback"):
        folder.open(moved, "data", flow_identity(moved))
    # Earlier versions knew the same videos by another fingerprint.
    assert folder.open(experiment, "new rule", flow_identity(experiment), earlier="data")
    with pytest.raises(UserError, match="the videos of the manifest are not the same"):
        folder.open(experiment, "new rule", flow_identity(experiment), earlier="other")
    # Runs of earlier versions did not say what their flow was; weights are known by content, not by name.
    old = RunFolder(tmp_path / "old")
    raft: dict[str, Any] = {"algorithm": "raft", "weights": "a.pth"}
    assert not old.open(tiny_experiment(flow=raft), "data")
    assert old.open(tiny_experiment(flow=raft | {"weights": "moved.pth"}), "data", {"algorithm": "raft"})


def test_a_sweep_goes_on_with_the_flow_that_it_began_with(tmp_path: Path) -> None:
    sweep = SweepFolder.at(str(tmp_path / "sweep"))
    experiment = tiny_experiment()
    flow = flow_identity(experiment)
    assert not sweep.open(experiment, "data", flow)
    assert sweep.open(experiment, "data", flow)
    with pytest.raises(UserError, match="the videos of the manifest are not the same"):
        sweep.open(experiment, "new rule", flow, earlier="other")
    assert sweep.open(experiment, "new rule", flow, earlier="data")
    with pytest.raises(UserError, match=r"the flow's opencv: was .*, now 0.0.1"):
        sweep.open(experiment, "data", flow | {"opencv": "0.0.1"})
