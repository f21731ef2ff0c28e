"""`flow.bound: auto`: measured once, one number for every process, seed and resume; a store's bound comes first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packed import make_store
from tiny import tiny_experiment

from vicc_ray.cluster import launch
from vicc_ray.commands import pack
from vicc_ray.commands.pack import PackOptions
from vicc_ray.commands.tune import check
from vicc_ray.config import Experiment, FlowConfig, dump_experiment, load_experiment
from vicc_ray.data.decode import read_frames
from vicc_ray.data.flow import bound
from vicc_ray.data.flow.algorithms import flow_between
from vicc_ray.data.flow.bound import GRID, measured_bound, sampled, with_bound
from vicc_ray.data.flow.motion_vectors import motion_vector_fields
from vicc_ray.data.identity import flow_identity
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.rows import Rows
from vicc_ray.data.store.checking import check_stored
from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder

AUTO: dict[str, Any] = {"flow": {"bound": "auto"}}
SIZE = (32, 32)


def nobody(line: str) -> None:
    raise AssertionError(f"nothing is measured: {line}")


def by_hand(rows: Rows, algorithm: str) -> float:
    """The slow twin: every field of every video that has no more than the sample takes, sorted."""
    values: list[float] = []
    for row, origins in sampled(rows):
        if algorithm == "motion_vectors":
            fields = motion_vector_fields(row.video, origins, SIZE, row.decoder)
        else:
            frames = np.arange(origins[0], origins[0] + len(origins) + 1)
            fields = flow_between(read_frames(row.video, frames, SIZE, row.decoder), algorithm)
        values += [abs(float(value)) for field in fields for row in field[::4] for pixel in row[::4] for value in pixel]
    values.sort()
    place = 0.999 * (len(values) - 1)
    low = int(place)
    pixels = values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])
    return min(one for one in GRID if one >= pixels)


@pytest.mark.parametrize("algorithm", ["dis", "motion_vectors"])
def test_the_bound_is_what_sorting_says(videos: Manifest, algorithm: str) -> None:
    rows, lines = videos.select("train"), list[str]()
    found = measured_bound(rows, FlowConfig(algorithm=algorithm), SIZE, say=lines.append)
    assert found == by_hand(rows, algorithm)
    assert found in GRID and f"flow.bound: auto is {found:g} px: in 16 training videos 99.9 %" in lines[0]


def test_the_bound_grows_with_the_pictures(videos: Manifest) -> None:
    rows, flow = videos.select("train"), FlowConfig()
    small, large = (measured_bound(rows, flow, size) for size in ((16, 16), (64, 64)))
    assert 2 * small <= large <= 8 * small, "pixels of frames four times as wide"


def test_the_sample_is_bounded_and_inside_its_rows(videos: Manifest) -> None:
    row = videos.select("train")[0]
    many = Rows.of([replace(row, first_frame=1000 * place, frames=place % 40 + 1) for place in range(300)])
    items = sampled(many)
    assert 55 <= len(items) <= 64, "rows of one frame have no motion"
    assert len({one.first_frame for one, _ in items}) == len(items)
    for one, origins in items:
        assert len(origins) == min(8, one.frames - 1)
        assert origins[0] >= one.first_frame and origins[-1] + 1 <= one.last_frame
    again = sampled(many)
    assert [(one.first_frame, origins[0]) for one, origins in again] == [
        (one.first_frame, origins[0]) for one, origins in items
    ]


def test_a_video_that_cannot_be_read_is_left_out(videos: Manifest, tmp_path: Path) -> None:
    rows = list(videos.select("train"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    lines: list[str] = []
    measured_bound(Rows.of([*rows[1:], replace(rows[0], video=str(broken))]), FlowConfig(), SIZE, say=lines.append)
    assert "in 15 training videos" in lines[0]
    with pytest.raises(UserError, match=r"flow.bound: auto .*broken.mp4.*; give a number"):
        measured_bound(Rows.of([replace(rows[0], video=str(broken))]), FlowConfig(), SIZE)
    with pytest.raises(UserError, match="one frame each"):
        measured_bound(Rows.of([replace(rows[0], frames=1)]), FlowConfig(), SIZE)


def test_a_stores_bound_comes_first(videos: Manifest, tmp_path: Path) -> None:
    make_store(tmp_path / "s", SIZE, ["flow"], FlowConfig(bound=4))
    auto = tiny_experiment(flow={"bound": "auto", "source": "store", "store": str(tmp_path / "s")})
    found = with_bound(auto, videos, nobody)
    assert found.flow.bound == 4.0
    assert flow_identity(found)["bound"] == 4.0
    # A store that holds whatever bound fits auto, as where a sweep is checked.
    assert not len(check_stored(auto, (), ("flow",)))
    make_store(tmp_path / "pictures", SIZE, ["rgb"])
    without = tiny_experiment(flow={"bound": "auto"}, clip={"source": "store", "store": str(tmp_path / "pictures")})
    with pytest.raises(UserError, match=r"flow.bound: auto is that of the store, and .* holds no flow"):
        with_bound(without, videos, nobody)
    absent = tiny_experiment(flow={"bound": "auto", "source": "store", "store": str(tmp_path / "none")})
    with pytest.raises(UserError, match="there is none"):
        with_bound(absent, videos, nobody)


def test_what_needs_no_flow_measures_none(videos: Manifest) -> None:
    difference = tiny_experiment(flow={"bound": "auto"}, clip={"motion": "difference"})
    assert with_bound(difference, videos, nobody).flow.bound == 20.0
    number = tiny_experiment()
    assert with_bound(number, videos, nobody) is number


def test_auto_that_is_no_number_yet_is_refused() -> None:
    with pytest.raises(UserError, match=r"flow.bound: auto becomes a number where a run"):
        flow_identity(tiny_experiment(**AUTO))
    with pytest.raises(UserError, match=r"flow.bound"):
        tiny_experiment(flow={"bound": "wide"})
    with pytest.raises(UserError, match=r"flow.bound"):
        tiny_experiment(flow={"bound": 0})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """Experiments that workers were started with; none is."""
    seen: list[Experiment] = []

    @contextmanager
    def session(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(describe=lambda: "nothing")

    monkeypatch.setattr(launch, "ray_session", session)
    monkeypatch.setattr(launch, "_fit", lambda task, plan, *_: seen.append(plan.experiment))
    monkeypatch.setattr(launch, "report_videos", lambda *_: None)
    return seen


def test_a_run_has_one_number_that_a_resume_takes_over(
    videos: Manifest, tmp_path: Path, opened: list[Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = tiny_experiment(**AUTO, runs=str(tmp_path))
    folder = launch.run_training(auto, manifest=videos)
    number = measured_bound(videos.select("train"), auto.flow, SIZE)
    assert opened[0].flow.bound == number != 8.0
    assert load_experiment(folder.config).flow.bound == number
    # Another version of the project would measure another number: the run goes on with its own.
    monkeypatch.setattr(bound, "measured_bound", nobody)
    launch.run_training(auto, manifest=videos)
    assert opened[1].flow.bound == number
    with pytest.raises(UserError, match=r"flow.bound: was .*, now 8.0"):
        launch.run_training(tiny_experiment(runs=str(tmp_path)), manifest=videos)


def test_seeds_share_a_number(videos: Manifest) -> None:
    numbers = {with_bound(tiny_experiment(**AUTO, seed=seed), videos, len).flow.bound for seed in (0, 7)}  # type: ignore[arg-type]
    assert len(numbers) == 1


def test_begun_reads_and_changes_nothing(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for where in (str(tmp_path / "run"), f"{bucket}/run"):
        folder = RunFolder.at(where)
        assert folder.begun() is None and not folder.path.exists()
        folder.open(tiny_experiment(), "0" * 32)
        folder.config.write_text(dump_experiment(tiny_experiment(seed=9)))
        begun = folder.begun()
        assert begun is not None and begun.seed == (9 if folder.remote is None else 3)
        assert load_experiment(folder.config).seed == 9, "a mirror is left as it is"


def test_a_packed_store_keeps_its_bound(videos: Manifest, tmp_path: Path) -> None:
    options = PackOptions(("flow",))
    flow = FlowConfig(bound="auto")
    first = pack._bounded(videos, str(tmp_path / "new"), flow, SIZE, options)
    assert first.bound == measured_bound(videos.select("train"), flow, SIZE)
    query = pack._bounded(videos, str(tmp_path / "new"), flow, SIZE, replace(options, train_split="none"))
    assert query.bound == measured_bound(videos.select("all"), flow, SIZE)
    make_store(tmp_path / "old", SIZE, ["flow"], FlowConfig(bound=48))
    assert pack._bounded(videos, str(tmp_path / "old"), flow, SIZE, options).bound == 48
    assert pack._bounded(videos, str(tmp_path / "new"), flow, SIZE, PackOptions(("rgb",))) is flow


def test_a_sweep_has_one_number(videos: Manifest, tmp_path: Path) -> None:
    videos.write(tmp_path / "videos.parquet")
    sweep = tiny_experiment(
        **AUTO,
        runs=str(tmp_path),
        data={"manifest": str(tmp_path / "videos.parquet")},
        search={"space": {"optim.lr": {"log": [0.001, 0.01]}}, "metric": "RGB-2/R@1"},
    )
    prepared = check(sweep)
    number = prepared.experiment.flow.bound
    assert number == measured_bound(videos.select("train"), sweep.flow, SIZE)
    begun = prepared.experiment.model_copy(update={"flow": sweep.flow.model_copy(update={"bound": 3.0})})
    prepared.folder.path.mkdir(parents=True, exist_ok=True)
    prepared.folder.config.write_text(dump_experiment(begun))
    assert check(sweep).experiment.flow.bound == 3.0
