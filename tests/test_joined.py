"""joined.py and the probe that is built on it: encoders that lost different videos are judged on the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_experiment

from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.errors import UserError
from vicc_ray.evaluation import joined, protocols
from vicc_ray.evaluation.classifiers import Probe
from vicc_ray.evaluation.feature_store import Source, VideoFeatures, writing_features
from vicc_ray.evaluation.joined import Joined
from vicc_ray.evaluation.protocols import EvaluationTask, RayAccess
from vicc_ray.evaluation.stored import FeatureFile, Side
from vicc_ray.metrics.search import Rows
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.runs.folder import RunFolder

CLASSES = 4


def videos(split: str, count: int) -> list[VideoRow]:
    return [
        VideoRow(f"{split}/{number}.mp4", label=f"c{number % CLASSES}", split=split, frames=20, group=f"g{number // 8}")
        for number in range(count)
    ]


def write(path: Path, rows: list[VideoRow], lost: set[int], scale: float, order: int = 1) -> None:
    """Features that tell the class without fail; `lost` rows are refused."""
    here = [row for number, row in enumerate(rows) if number not in lost][::order]
    codes = np.eye(CLASSES, dtype=np.float32)[[int(str(row.label)[1:]) for row in here]]
    noise = np.random.default_rng(len(rows)).normal(0, 0.05, (len(here), CLASSES))
    with writing_features(str(path), Source("RGB-2", "ab", "cd", {})) as writer:
        writer.add(
            VideoFeatures(
                [row.video for row in here],
                [row.label for row in here],
                [row.group for row in here],
                [row.split for row in here],
                [1] * len(here),
                (scale * codes + noise).astype(np.float32),
            )
        )
        for number in sorted(lost):
            writer.refuse(rows[number].video, "lost")


@pytest.mark.parametrize("lost", [({0}, {5}), ({2, 3, 7}, {11})], ids=["as many", "more"])
def test_the_probe_scores_each_encoder_against_its_own_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[set[int], set[int]]
) -> None:
    train, test = videos("train", 32), videos("query", 16)
    files: dict[str, list[FeatureFile]] = {}
    encoders: dict[str, EncoderOnDisk] = {}
    for number, (name, stream) in enumerate((("RGB-2", "rgb"), ("Flow-2", "flow"))):
        encoders[name] = EncoderOnDisk(name, tmp_path, "", stream, name)  # type: ignore[arg-type]
        files[name] = []
        for rows in (train, test):
            path = tmp_path / f"{name}-{rows[0].split}.parquet"
            write(path, rows, lost[number], 1.0 + number)
            source = Source(name, "ab", "cd", {})
            files[name].append(FeatureFile(path, encoders[name], Side(tuple(rows), "all"), source))
    monkeypatch.setattr(protocols, "extract_features", lambda *_: files)
    experiment = tiny_experiment(evaluate={"fusion": "fitted"})
    task = EvaluationTask(
        RunFolder(tmp_path), experiment, Manifest([*train, *test]), "d", encoders, RayAccess(_no_ray), print
    )
    found = Probe(task).evaluate()
    assert {row["name"]: row["top-1"] for row in found.rows} == {"RGB-2": 1.0, "Flow-2": 1.0, "R+F": 1.0}
    away = len(lost[0] | lost[1])
    assert (found.train, found.test, len(found.refused)) == (32 - away, 16 - away, 2 * away)


def _no_ray() -> Any:
    pytest.fail("Ray was started")


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_are_joined_by_id_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    if streamed:
        monkeypatch.setattr(joined, "STREAM_ABOVE", 0)
    rows = videos("train", 20)
    write(tmp_path / "a", rows, {3}, 1.0)
    write(tmp_path / "b", rows, {4, 5}, 1.0)
    write(tmp_path / "c", rows, set(), 1.0, order=-1)
    side = Joined({name: str(tmp_path / name) for name in "abc"})
    assert side.ids == [row.video for number, row in enumerate(rows) if number not in (3, 4, 5)]
    assert isinstance(side.table("b"), Rows) == streamed
    for name in "abc":
        assert [f"c{place}" for place in _whole(side.table(name)).argmax(axis=1)] == side.labels
        features = side.features(name)
        assert features.ids == side.ids and np.array_equal(features.vectors, _whole(side.table(name)))
    assert {video for video, _ in side.refused} == {rows[number].video for number in (3, 4, 5)}


def _whole(table: Any) -> Any:
    return table.whole() if isinstance(table, Rows) else table


def test_encoders_without_a_video_in_common_are_refused(tmp_path: Path) -> None:
    rows = videos("train", 4)
    files: Mapping[str, str] = {name: str(tmp_path / name) for name in "ab"}
    write(tmp_path / "a", rows, {0, 1}, 1.0)
    write(tmp_path / "b", rows, {2, 3}, 1.0)
    with pytest.raises(UserError, match="features of a and b are of no video in common"):
        Joined(files)
