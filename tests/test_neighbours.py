"""neighbours.py, stored.py, features.py: retrieval over a run with its actors called in this process; Ray has its own test."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_experiment

from vicc_ray.cluster.decode_actors import DecodeWindows, list_windows, video_key
from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.config import Experiment
from vicc_ray.data.augment import AugmentSettings, draw_jitter, evaluation_input
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.randomness import jitter_key
from vicc_ray.data.reader import read_here
from vicc_ray.data.samples import Answer, Clips, Request, read_clips
from vicc_ray.errors import UserError
from vicc_ray.evaluation import feature_store, features, joined, neighbours
from vicc_ray.evaluation import passes as passes_module
from vicc_ray.evaluation import protocols as evaluate
from vicc_ray.evaluation.feature_store import read_features
from vicc_ray.evaluation.means import video_means
from vicc_ray.evaluation.model_actors import EncodeWindows
from vicc_ray.evaluation.neighbours import Retrieval
from vicc_ray.evaluation.passes import Pass, passes
from vicc_ray.evaluation.protocols import EvaluationTask, RayAccess
from vicc_ray.evaluation.results import Evaluation
from vicc_ray.evaluation.stored import Side, feature_file
from vicc_ray.metrics.fusion import fit_weights, fused_similarities
from vicc_ray.metrics.retrieval import similarities
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.encoder_file import EncoderFile, load_encoder, save_encoder
from vicc_ray.runs.encoders import finished_encoders, open_encoder, open_encoders
from vicc_ray.runs.folder import RunFolder

NAMES = ("RGB-0", "RGB-1", "RGB-2", "Flow-2")


def put_encoder(folder: RunFolder, name: str, stream: str, seed: int) -> None:
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=8, seed=seed)
    save_encoder(
        folder.encoder(name),
        EncoderFile(encoder.spec, "flow" if stream == "flow" else "rgb", encoder.state_dict(), meta={"name": name}),
    )


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("encoders"))
    for seed, name in enumerate(NAMES):
        put_encoder(folder, name, name.split("-")[0].lower(), seed)
    return folder


class Here:
    """A reader without a process of its own."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def read_all(self, requests: Sequence[Request], into: Sequence[Clips] | None = None) -> Sequence[Answer]:
        return read_here(self.experiment, requests, into)


@dataclass(frozen=True)
class Judged:
    """Figures, and the neighbours that were written."""

    evaluation: Evaluation
    neighbours: dict[str, list[dict[str, Any]]]


class Judge:
    """Retrieval whose passes are made in this process, and its lines for the reader."""

    def __init__(self, folder: RunFolder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.lines: list[str] = []
        self.made: list[list[str]] = []
        self.windows = 0
        self.streams: list[tuple[str, ...]] = []

    def encode(self, part: Pass, experiment: Experiment, resources: Any, threads: int) -> None:
        videos, windows = part.videos, part.windows(experiment)
        self.made.append([file.path.stem.rsplit("-", 1)[0] for file in part.files])
        self.windows += len(windows)
        self.streams.append(part.decoded(experiment))
        decode = DecodeWindows(videos, windows, 5, experiment, part.decoded(experiment))
        decode.reader = Here(experiment)  # type: ignore[assignment]  # no process of its own
        jitter = part.sides[0].jitter
        encode = EncodeWindows({e.name: e.shared_name for e in part.encoders}, experiment, False, 1, jitter)
        blocks = (encode(decode({"unit": [unit]})) for unit in range(-(-len(windows) // 5)))
        passes_module.write_means(part, blocks)

    def __call__(self, **changes: Any) -> Judged:
        experiment, encoders = tiny_experiment(**changes), open_encoders(self.folder)
        task = EvaluationTask(
            self.folder, experiment, self.manifest, "tiny", encoders, RayAccess(_plan), self.lines.append
        )
        evaluation = evaluate.judge(task, Retrieval(task))
        return Judged(evaluation, json.loads(self.folder.neighbours.read_text()))

    def stored(self, name: str) -> list[feature_store.VideoFeatures]:
        return [read_features(str(path)) for path in sorted(self.folder.features.glob(f"{name}-tiny-*"))]


def _plan() -> ResourcePlan:
    return ResourcePlan(1, 1, False, 1, 1, 1 << 28)


def new_judge(folder: Path, encoders: RunFolder, videos: Manifest, patch: pytest.MonkeyPatch) -> Judge:
    folder.mkdir()
    (folder / "encoders").symlink_to(encoders.path / "encoders")
    made = Judge(RunFolder(folder), videos)
    patch.setattr(features, "_encode", made.encode)
    return made


@pytest.fixture
def judge(encoders: RunFolder, tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch) -> Judge:
    return new_judge(tmp_path / "run", encoders, videos, monkeypatch)


@pytest.fixture(scope="module")
def exact(encoders: RunFolder, tmp_path_factory: pytest.TempPathFactory, videos: Manifest) -> tuple[Path, Evaluation]:
    """The features of the default protocol, and its figures."""
    with pytest.MonkeyPatch.context() as patch:
        made = new_judge(tmp_path_factory.mktemp("exact") / "run", encoders, videos, patch)
        return made.folder.features, made().evaluation


@pytest.fixture
def judged(judge: Judge, exact: tuple[Path, Evaluation]) -> Judge:
    """A run whose features are stored already."""
    shutil.copytree(exact[0], judge.folder.features)
    return judge


def recall_twin(
    similarity: np.ndarray, gallery: list[str], query: list[str], k: int, own: list[int] | None = None
) -> float:
    hits = 0
    for i, row in enumerate(similarity):
        order = [j for j in np.argsort(-row, kind="stable").tolist() if own is None or own[i] != j][:k]
        hits += any(gallery[j] == query[i] for j in order)
    return hits / len(query)


def feature_twin(folder: RunFolder, name: str, row: VideoRow, starts: list[int], experiment: Experiment) -> np.ndarray:
    file = load_encoder(folder.encoder(name))
    clips = read_clips(row, starts, (file.stream,), experiment.clip, experiment.flow)[file.stream]  # type: ignore[arg-type, index]
    with torch.inference_mode():
        rows = file.build().features(evaluation_input(torch.from_numpy(clips), 32)).numpy()
    return np.asarray(rows.mean(axis=0))


def test_the_figures_are_those_of_plain_features(judged: Judge) -> None:
    found = judged().evaluation
    experiment = tiny_experiment()
    sides = [judged.manifest.select("train"), judged.manifest.select("query")]
    labels = [[str(row.label) for row in side] for side in sides]
    twins = {}
    for name in ("RGB-2", "Flow-2"):
        starts = [0, 3, 4]
        twins[name] = [
            np.stack([feature_twin(judged.folder, name, row, starts, experiment) for row in side]) for side in sides
        ]
        similarity = similarities(*twins[name])  # type: ignore[arg-type]
        row = next(row for row in found.rows if row["name"] == name)
        for k in (1, 5):
            assert row[f"R@{k}"] == pytest.approx(recall_twin(similarity, *labels, k), abs=1e-6)  # type: ignore[arg-type, call-arg]
    fused = fused_similarities(*([twins[name][side] for name in ("RGB-2", "Flow-2")] for side in (0, 1)))  # type: ignore[arg-type]
    assert found.rows[-1]["name"] == "R+F"
    assert found.rows[-1]["R@5"] == pytest.approx(recall_twin(fused, *labels, 5), abs=1e-6)  # type: ignore[arg-type, call-arg]
    assert [row["name"] for row in found.rows] == ["random", "RGB-1", "RGB-2", "Flow-2", "R+F"]
    assert (found.protocol, found.data, found.train, found.test, found.chance) == ("retrieval", "tiny", 16, 8, 0.125)
    assert (found.train_on, found.test_on, found.seed, found.refused) == ("train", "query", 3, ())
    assert set(found.classes["R+F"]) == set(labels[0])
    assert set(found.confusion) == {row["name"] for row in found.rows}
    for row in found.rows:
        matrix = found.confusion[row["name"]]
        assert matrix["labels"] == sorted(set(labels[0])) and np.sum(matrix["counts"]) == found.test
        assert np.trace(matrix["counts"]) / found.test == pytest.approx(row["R@1"], abs=1e-6)
    stored = judged.stored("RGB-2")
    assert np.concatenate([table.vectors for table in stored]).shape == (24, 32)
    by_id = {video: vector for table in stored for video, vector in zip(table.ids, table.vectors, strict=True)}
    np.testing.assert_allclose(by_id[sides[1][2].video], twins["RGB-2"][1][2], rtol=1e-4, atol=1e-5)


def test_features_are_made_once_in_one_pass_and_what_is_missing_again(judge: Judge) -> None:
    first = judge().evaluation
    assert judge.made == [[f"{name}-tiny" for name in NAMES] * 2] and judge.streams == [("rgb", "flow")]
    assert judge.windows == 24 * 3 and judge.lines == []
    again = judge().evaluation
    assert len(judge.made) == 1
    assert judge.lines == [f"features of {row} as they were stored" for row in ("random", "RGB-1", "RGB-2", "Flow-2")]
    assert (again.rows, again.classes) == (first.rows, first.classes)
    for path in judge.folder.features.glob("RGB-1-*"):
        path.unlink()
    assert judge().evaluation.rows == first.rows
    assert judge.made[1:] == [["RGB-1-tiny"] * 2] and judge.streams[1] == ("rgb",)  # no flow is decoded for it
    query = next(path for path in judge.folder.features.glob("Flow-2-*") if len(read_features(str(path))) == 8)
    query.write_bytes(query.read_bytes()[:-9])
    judge.lines.clear()
    assert judge().evaluation.rows == first.rows
    assert judge.made[2:] == [["Flow-2-tiny"]] and judge.streams[2] == ("flow",)
    assert re.search(r"Flow-2-tiny-\w+.parquet: is no whole file of features .*; made again", judge.lines[-1])


@pytest.mark.parametrize(
    ("changes", "fresh"),
    [
        ({"clip": {"stride": 2, "frames": 4}}, set(NAMES)),
        ({"clip": {"fps": 5}}, set(NAMES)),
        ({"evaluate": {"windows": "centre"}}, set(NAMES)),
        ({"data": {"decoder": "pyav"}}, set(NAMES)),
        ({"data": {"interlaced": "deinterlace"}}, set(NAMES)),
        ({"flow": {"bound": 4}}, {"Flow-2"}),
        ({"augment": {"style": "reference"}}, {"Flow-2"}),
        ({"seed": 4}, set()),
        ({"augment": {"jitter": [0.1, 0.1, 0.1, 0.1]}}, set()),
        ({"evaluate": {"ks": [2], "exclude_groups": True, "fusion": "fitted"}}, set()),
    ],
)
def test_only_what_a_feature_depends_on_makes_it_anew(judged: Judge, changes: dict[str, Any], fresh: set[str]) -> None:
    judged.encode = lambda part, *_: judged.made.append([file.encoder.name for file in part.files])  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch, suppress(UserError):  # files that were not written are missing
        patch.setattr(features, "_encode", judged.encode)
        judged(**changes)
    assert {name for part in judged.made for name in part} == fresh


def test_other_videos_or_weights_make_other_features(judged: Judge) -> None:
    rows = judged.manifest.videos
    judged.manifest = Manifest([replace(rows[0], label=rows[-1].label), *rows[1:]])
    judged()
    assert judged.made == [[f"{name}-tiny" for name in NAMES]]  # the query side is the same
    own_encoders(judged.folder)
    put_encoder(judged.folder, "RGB-1", "rgb", 77)
    judged()
    assert judged.made[1:] == [["RGB-1-tiny", "RGB-1-tiny"]]


def own_encoders(folder: RunFolder) -> None:
    """Copies in place of the link to those that all tests share."""
    shared = (folder.path / "encoders").resolve()
    (folder.path / "encoders").unlink()
    shutil.copytree(shared, folder.path / "encoders")


def test_the_reference_protocol_has_one_random_window_and_jitter_keyed_by_video(judge: Judge) -> None:
    changes = {"evaluate": {"retrieval": "reference"}}
    found = judge(**changes).evaluation
    assert found.protocol == "reference" and judge.windows == 16 + 8 * 3
    tables = judge.stored("RGB-2")
    gallery = next(table for table in tables if len(table) == 16)
    assert set(gallery.windows) == {1}
    query = next(table for table in tables if len(table) == 8)
    assert set(query.windows) == {3}
    experiment = tiny_experiment(**changes)
    encoder = load_encoder(judge.folder.encoder("RGB-2")).build()
    plain = 0
    for row, vector in zip(judge.manifest.select("train"), gallery.vectors, strict=True):
        start = list_windows([row], experiment.clip, "random", experiment.seed)[0][1]
        clip = torch.from_numpy(read_clips(row, [start], ("rgb",), experiment.clip, experiment.flow)["rgb"])
        jitter = draw_jitter(AugmentSettings(32), [jitter_key(experiment.seed, video_key(row), start)], 0.3)
        with torch.inference_mode():
            want = encoder.features(evaluation_input(clip, 32, "physical", jitter)).numpy()[0]
            without = encoder.features(evaluation_input(clip, 32)).numpy()[0]
        np.testing.assert_allclose(vector, want, rtol=1e-4, atol=1e-5)
        plain += np.allclose(vector, without, rtol=1e-4, atol=1e-5)
    assert 5 <= plain <= 15
    shuffled = Manifest([*judge.manifest.videos[::-1]])
    judge.manifest = shuffled
    other = judge(**changes).evaluation
    assert len(judge.made) == 2 and other.chance == found.chance
    again = [table for table in judge.stored("RGB-2") if len(table) == 16]
    by_id = [dict(zip(table.ids, table.vectors, strict=True)) for table in again]
    for video, vector in by_id[0].items():
        np.testing.assert_allclose(vector, by_id[1][video], rtol=1e-4, atol=1e-5)
    judge(seed=9, **changes)
    assert len(judge.made) == 3


def test_a_single_copy_of_a_gallery_video_finds_it(judge: Judge, tmp_path: Path) -> None:
    rows = judge.manifest.select("train")
    copy = replace(rows[5], video=str(tmp_path / "copy.mp4"), split="query")
    shutil.copy(rows[5].video, copy.video)
    judge.manifest = Manifest([*rows, copy])
    found = judge()
    assert {row["name"]: row["R@1"] for row in found.evaluation.rows} == dict.fromkeys(
        ("random", "RGB-1", "RGB-2", "Flow-2", "R+F"), 1.0
    )
    nearest = found.neighbours["RGB-2"][0]["neighbours"][0]
    assert nearest["video"] == rows[5].video and nearest["similarity"] == pytest.approx(1, abs=1e-4)
    assert found.evaluation.settings["centre"] == "gallery"


def test_the_published_centring_is_noted_on_small_sides_and_refused_where_nothing_is_left(judge: Judge) -> None:
    reference = {"evaluate": {"retrieval": "reference"}}
    found = judge(**reference).evaluation
    assert found.settings["centre"] == "own"
    assert [note.partition("published, of which ")[2].partition(" give")[0] for note in found.notes] == [
        "the gallery (16 videos of 8 of 8 classes)",
        "the queries (8 videos of 8 of 8 classes)",
    ]
    assert "exact centres both sides by the gallery" in found.notes[0]
    whole = judge.manifest
    train, query = whole.select("train"), whole.select("query")
    several = [replace(query[0], video=f"{number}", label=query[0].label) for number in range(5)]
    for asking in (query[:1], several):
        judge.manifest = Manifest([*train, *asking])
        with pytest.raises(UserError, match=rf"of the queries \({len(asking)} videos of 1 of 8 classes\) that is what"):
            judge(**reference)


def test_the_same_split_on_both_sides_passes_over_the_query(judge: Judge) -> None:
    found = judge(data={"gallery_split": "train", "query_split": "train"}).evaluation
    assert judge.windows == 16 * 3  # encoded once
    table = judge.stored("RGB-2")[0]
    similarity = similarities(table.vectors, table.vectors)
    labels = [str(label) for label in table.labels]
    row = next(row for row in found.rows if row["name"] == "RGB-2")
    for k in (1, 5):
        assert row[f"R@{k}"] == pytest.approx(recall_twin(similarity, labels, labels, k, list(range(16))), abs=1e-6)
    assert found.chance == pytest.approx(1 / 15, abs=1e-6)
    assert found.notes == ("16 videos are on both sides: a query passes over itself",)
    every = judge(data={"gallery_split": "all", "query_split": "query"}).evaluation
    assert (every.train, every.test) == (24, 8) and "8 videos are on both sides" in every.notes[0]
    for entry in judge(data={"gallery_split": "train", "query_split": "train"}).neighbours["RGB-2"]:
        assert entry["query"]["video"] not in [near["video"] for near in entry["neighbours"]]


def test_groups_are_passed_over_where_asked(judge: Judge) -> None:
    rows = [replace(row, group=f"g{number % 3}") for number, row in enumerate(judge.manifest.videos)]
    judge.manifest = Manifest(rows)
    both = {"data": {"gallery_split": "all", "query_split": "all"}}
    found = judge(**both, evaluate={"exclude_groups": True, "ks": [1, 16, 17]}).evaluation
    assert found.notes == (
        "a query passes over gallery videos of its own group",
        "R@k is left out for k = 17: a query has 16 gallery videos",
    )
    table = judge.stored("RGB-2")[0]
    similarity = similarities(table.vectors, table.vectors)
    hits = 0
    for i, row in enumerate(similarity):
        allowed = [j for j in np.argsort(-row, kind="stable") if table.groups[j] != table.groups[i]]
        hits += table.labels[allowed[0]] == table.labels[i]
    assert next(row for row in found.rows if row["name"] == "RGB-2")["R@1"] == pytest.approx(hits / 24, abs=1e-6)
    ungrouped = Manifest([replace(row, group=None) for row in rows])
    judge.manifest = ungrouped
    alone = judge(**both, evaluate={"exclude_groups": True, "ks": [1]}).evaluation
    assert alone.notes == ("a query passes over itself only: no gallery video has a group",)


def test_groups_of_ucf101_are_those_of_a_class() -> None:
    side = neighbours.LabelledVideos(["a", "b", "c"], ["Punch", "Kick", "Kick"], ["g01", "g01", None])
    assert len(set(neighbours._own(side, "ucf101"))) == 3
    assert len(set(neighbours._own(side, "hmdb51"))) == 2


def test_fitted_weights_are_of_the_gallery_and_stand_in_the_row(judged: Judge) -> None:
    found = judged(evaluate={"fusion": "fitted"}).evaluation
    tables = [next(t for t in judged.stored(name) if len(t) == 16) for name in ("RGB-2", "Flow-2")]
    want = fit_weights([table.vectors for table in tables], [str(label) for label in tables[0].labels])
    assert found.rows[-1]["weights"] == list(want) and found.settings["fusion"] == "fitted"
    assert "weights" not in judged().evaluation.rows[-1]


def test_a_large_table_is_streamed_with_the_same_figures(judged: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    first = judged()
    monkeypatch.setattr(joined, "STREAM_ABOVE", 0)
    again = judged()
    assert (again.evaluation.rows, again.neighbours) == (first.evaluation.rows, first.neighbours)


SOME_LOST: dict[str, Any] = {"data": {"max_refused": 0.1}}


def test_unreadable_videos_are_left_out_of_every_row_and_told_each_time(judge: Judge, tmp_path: Path) -> None:
    rows = judge.manifest.videos
    gone = [replace(rows[0], video=str(tmp_path / name), content_hash=name) for name in ("gone", "lost")]
    judge.manifest = Manifest([gone[0], *rows[:5], gone[1], *rows[5:]])
    with pytest.raises(UserError, match=r"2 of 18 videos of split train could not be read, more than data.max_refused"):
        judge()
    found = judge(data={"max_refused": 0.2}).evaluation
    assert (found.train, found.test) == (16, 8)
    assert sorted(video for video, _ in found.refused) == sorted(row.video for row in gone)
    plain = [row for row in judge(data={"max_refused": 0.2}).evaluation.rows if row["name"] == "RGB-1"]
    # RGB-1 finds one of them again, the others do not: each row of the table is still of the same videos.
    shutil.copy(rows[1].video, gone[0].video)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "passes", lambda files: passes([f for f in files if f.encoder.name == "RGB-1"]))
        part = judge(data={"max_refused": 0.2}).evaluation
    assert (part.train, len(judge.stored("RGB-1")[0]) + len(judge.stored("RGB-1")[1])) == (16, 25)
    assert [row for row in part.rows if row["name"] == "RGB-1"] == plain


def test_videos_that_are_back_are_tried_again_and_nothing_else(judge: Judge, tmp_path: Path) -> None:
    rows = judge.manifest.videos
    gone = replace(rows[3], video=str(tmp_path / "gone.mp4"))
    judge.manifest = Manifest([*rows[:3], gone, *rows[4:]])
    assert judge(**SOME_LOST).evaluation.train == 15 and judge.windows == 24 * 3
    judge.lines.clear()
    assert judge(**SOME_LOST).evaluation.refused[0][0] == gone.video  # still away
    assert judge.windows == 24 * 3 + 3 and "features of RGB-2 lack 1 videos" in judge.lines[2]
    shutil.copy(rows[3].video, gone.video)
    found = judge().evaluation
    assert (found.train, found.refused, judge.windows) == (16, (), 24 * 3 + 6)
    stored = [table.ids for table in judge.stored("RGB-2") if len(table) == 16]
    assert stored == [[row.video for row in judge.manifest.select("train")]]  # in its old place
    judge.manifest = Manifest(rows)
    assert judge().evaluation.rows == found.rows  # as if it had never been away
    judge()
    assert judge.windows == 24 * 3 + 6 + 16 * 3


def test_damaged_features_are_made_again(judged: Judge) -> None:
    before = judged().evaluation.rows
    path = next(path for path in sorted(judged.folder.features.glob("RGB-2-*")) if len(read_features(str(path))) == 16)
    content = path.read_bytes()
    where = content.index(read_features(str(path)).vectors[3:7].tobytes())
    path.write_bytes(content[: where + 64] + bytes(256) + content[where + 320 :])
    judged.lines.clear()
    assert judged().evaluation.rows == before
    assert judged.made == [["RGB-2-tiny"]] and "made again" in "".join(judged.lines)
    assert path.read_bytes() == content


def changed(manifest: Manifest, split: str, label: Callable[[int, str | None], str | None]) -> Manifest:
    """The manifest with other labels in one split, by (place, label)."""
    rows, place = [], 0
    for row in manifest.videos:
        if row.split == split:
            row, place = replace(row, label=label(place, row.label)), place + 1
        rows.append(row)
    return Manifest(rows)


def test_what_cannot_be_judged_is_refused_before_anything_runs(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_encode", lambda *_: pytest.fail("ran"))
    good = judge.manifest
    both = {"gallery_split": "train", "query_split": "train"}
    for manifest, changes, message in (
        (changed(good, "query", lambda i, label: "yawn" if i < 2 else label), {}, r"2 of 8 queries .*lacks \(yawn\)"),
        (
            changed(good, "train", lambda i, label: label if i else "alone"),
            {"data": both},
            r"2 of 16 .*\(alone, bounce\), have no",
        ),
        (changed(good, "train", lambda i, label: None), {}, "16 of 16 gallery videos have no label"),
        (good, {"data": {"query_split": "test"}}, r"no video in split 'test'; it has: query \(8\), train \(16\)"),
        (good, {"evaluate": {"ks": [17, 20]}}, r"every k \(17, 20\) is larger than the gallery of 16"),
    ):
        judge.manifest = manifest
        with pytest.raises(UserError, match=message):
            judge(**changes)
    assert not judge.folder.features.exists()


def test_ks_beyond_the_gallery_are_left_out_with_a_line(judged: Judge) -> None:
    found = judged(evaluate={"ks": [1, 16, 17, 50]}).evaluation
    assert [key for key in found.rows[0] if key.startswith("R@")] == ["R@1", "R@16"] and found.rows[0]["R@16"] == 1
    assert found.notes == ("R@k is left out for k = 17, 50: a query has 16 gallery videos",)


def test_an_encoder_that_gives_nan_ends_it_and_leaves_no_file(judge: Judge) -> None:
    own_encoders(judge.folder)
    file = load_encoder(judge.folder.encoder("RGB-2"))
    state = {name: tensor.clone() for name, tensor in file.state_dict.items()}
    first = next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dim() > 1)
    state[first][:] = float("nan")
    save_encoder(judge.folder.encoder("RGB-2"), replace(file, state_dict=state))
    with pytest.raises(UserError, match=r"RGB-2-tiny-\w+.parquet: features of 16 videos hold NaN"):
        judge()
    assert list(judge.folder.features.iterdir()) == []
    assert not judge.folder.evaluations.exists()


def test_an_encoder_of_another_stream_than_its_name_says_is_refused(encoders: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_encoder(folder.encoder("RGB-2"), load_encoder(encoders.encoder("Flow-2")))
    with pytest.raises(UserError, match=r"RGB-2.safetensors: is named RGB-2 but holds an encoder of the flow stream"):
        open_encoders(folder)
    save_encoder(folder.encoder("mine"), load_encoder(encoders.encoder("Flow-2")))
    assert open_encoder(folder, "mine").stream == "flow"
    with pytest.raises(UserError, match="has no finished stage"):
        finished_encoders(RunFolder(tmp_path / "none"))


def test_encoders_come_in_the_order_of_training(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("Flow-2", "mine", "RGB-2", "RGB-2-cycle1", "RGB-0", "Flow-0", "Flow-1", "RGB-1"):
        folder.encoder(name).parent.mkdir(exist_ok=True)
        folder.encoder(name).touch()
    assert list(finished_encoders(folder)) == ["random", "RGB-1", "Flow-1", "RGB-2-cycle1", "RGB-2", "Flow-2", "mine"]


def test_means_are_over_the_windows_of_a_video_and_refuse_it_for_one() -> None:
    def block(numbers: list[int], values: list[float], refused: Mapping[int, str] = {}) -> dict[str, Any]:
        reasons = np.array([refused.get(number, "") for number in numbers], object)
        return {"video": np.array(numbers), "refused": reasons, "a": np.array(values, np.float32)[:, None]}

    blocks = [block([0, 0, 1], [1, 3, 9], {1: "gone"}), block([2, 2], [1, 2]), block([2, 3], [6, 5])]
    found = list(video_means(blocks, ["a"]))
    assert [(row.number, row.windows, row.refused) for row in found] == [
        (0, 2, ""),
        (1, 1, "gone"),
        (2, 3, ""),
        (3, 1, ""),
    ]
    assert [float(row.vectors["a"][0]) for row in found] == [2, 9, 3, 5]
    with pytest.raises(RuntimeError, match="windows of video 0 came after those of video 1"):
        list(video_means([block([0, 1], [1, 1]), block([0], [1])], ["a"]))


def test_of_a_long_video_the_sums_are_held() -> None:
    """The same to the bit as the mean over all of its windows; no block outlives the next ones."""
    vectors = np.random.default_rng(0).normal(size=(40, 16, 5)).astype(np.float32)
    alive: list[weakref.ref[Any]] = []

    def blocks() -> Iterator[dict[str, Any]]:
        for own in vectors:
            assert sum(one() is not None for one in alive) <= 2
            copy = own.copy()
            alive.append(weakref.ref(copy))
            yield {"video": np.zeros(16, np.int64), "refused": np.full(16, "", object), "a": copy}

    (mean,) = video_means(blocks(), ["a"])
    assert (mean.number, mean.windows, mean.refused) == (0, 640, "")
    expected = vectors.reshape(-1, 5).mean(axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(mean.vectors["a"], expected)


def test_parts_are_written_as_they_come(
    judge: Judge, exact: tuple[Path, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes_module, "PART", 3)
    assert judge().evaluation.rows == exact[1].rows
    for path in exact[0].iterdir():
        a, b = read_features(str(path)), read_features(str(judge.folder.features / path.name))
        assert a.ids == b.ids and np.array_equal(a.vectors, b.vectors)


def test_sides_that_lack_the_same_encoders_share_a_pass(judge: Judge) -> None:
    experiment = tiny_experiment()
    sides = [Side(tuple(judge.manifest.select(split)), "centre") for split in ("train", "query")]
    opened = [open_encoder(judge.folder, name) for name in NAMES]
    files = [feature_file(judge.folder, "x", encoder, side, experiment) for encoder in opened for side in sides]
    assert [len(part.files) for part in passes(files)] == [8]
    assert [len(part.files) for part in passes(files[1:])] == [4, 3]


def test_what_is_written_stays_in_the_runs_folder(judged: Judge) -> None:
    found = judged()
    assert json.loads(judged.folder.neighbours.read_text()) == found.neighbours
    assert list(found.neighbours) == ["RGB-1", "RGB-2"] and len(found.neighbours["RGB-2"]) == 4
    assert [path.name for path in judged.folder.evaluations.iterdir()] == [found.evaluation.file_name]
    assert found.evaluation.videos == judged.manifest.fingerprint()
