"""Archives: written in parts, gone on with, searched, tidied and shown; and what is said where they cannot be."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_experiment, tiny_manifest
from videos import numbered_frames, write_video

import vicc_ray
from vicc_ray import storage
from vicc_ray.archive import embedding
from vicc_ray.archive.clusters import find_clusters, map_of
from vicc_ray.archive.duplicates import find_duplicates
from vicc_ray.archive.faiss_index import build_index
from vicc_ray.archive.library import FEW, Library
from vicc_ray.archive.page import Card, Page, Strip, clock, write_page
from vicc_ray.archive.search import search
from vicc_ray.archive.store import Archive, ArchiveInfo, Maker, Segments, create_archive, open_archive
from vicc_ray.cluster import stream as ray_stream
from vicc_ray.cluster.decode_actors import DecodeWindows
from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.cluster.stream import WINDOWS_A_BLOCK
from vicc_ray.commands.archive_status import archive_status
from vicc_ray.commands.clusters import show_clusters
from vicc_ray.commands.duplicates import show_duplicates
from vicc_ray.commands.embed import EmbedOptions, embed_videos, open_encoders_of
from vicc_ray.commands.search import search_archives
from vicc_ray.console import console
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.reader import read_here
from vicc_ray.data.segments import cut_evenly
from vicc_ray.errors import UserError
from vicc_ray.evaluation.model_actors import EncodeWindows
from vicc_ray.metrics.nearest import unit_rows
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.encoder_file import EncoderFile, load_encoder, save_encoder
from vicc_ray.runs.folder import RunFolder

D = 8


def info(**changes: Any) -> ArchiveInfo:
    made = ArchiveInfo((Maker("RGB-2", "0" * 32, "rgb", D),), {"windows": "all"}, {}, planned=9)
    return replace(made, **changes)


def segments(vectors: NDArray[np.float32], first: int = 0, **columns: Any) -> Segments:
    """Rows of ten-second parts, ten of a file."""
    numbers = range(first, first + len(vectors))
    videos = [f"/films/{number // 10}.mp4" for number in numbers]
    starts = [float(number % 10 * 10) for number in numbers]
    made = Segments(
        ids=[f"{video}@{start:g}-{start + 10:g}" for video, start in zip(videos, starts, strict=True)],
        videos=videos,
        starts=starts,
        ends=[start + 10 for start in starts],
        labels=["even" if number % 2 == 0 else None for number in numbers],
        groups=videos,
        contents=[f"{number // 10:032x}" for number in numbers],
        vectors=vectors,
    )
    return replace(made, **columns)


def random_rows(rows: int, seed: int = 0, mean: float = 3.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(rows, D)) + mean).astype(np.float32)


def make_archive(folder: Path, vectors: NDArray[np.float32], part: int = 7, **changes: Any) -> Archive:
    made = create_archive(str(folder), info(**changes))
    for first in range(0, len(vectors), part):
        made.write_part(segments(vectors[first : first + part], first), {})
    return made


def twin(vectors: NDArray[np.float32], query: NDArray[np.float32], centre: bool) -> NDArray[np.float64]:
    """Cosines, the plain way."""
    mean = vectors.astype(np.float64).mean(axis=0) if centre else 0.0
    rows, one = vectors - mean, query - mean
    return np.asarray(rows @ one / np.linalg.norm(rows, axis=1) / np.linalg.norm(one))


def test_an_archive_comes_back_as_it_was_written(tmp_path: Path) -> None:
    vectors = random_rows(25)
    make_archive(tmp_path / "a", vectors)
    archive = open_archive(str(tmp_path / "a"))
    assert len(archive) == 25 and [part.rows for part in archive.parts] == [7, 7, 7, 4]
    assert archive.table().column_names == ["id", "video", "start", "end", "label", "group"]
    assert archive.table()["id"].to_pylist()[:2] == ["/films/0.mp4@0-10", "/films/0.mp4@10-20"]
    np.testing.assert_array_equal(archive.rows().whole(), vectors)
    np.testing.assert_allclose(archive.mean(), vectors.mean(axis=0), rtol=1e-6)
    half = make_archive(tmp_path / "h", vectors, half=True)
    np.testing.assert_array_equal(half.rows().whole(), vectors.astype(np.float16).astype(np.float32))


def test_other_tools_open_it_as_it_is(tmp_path: Path) -> None:
    vectors = random_rows(25)
    make_archive(tmp_path / "a", vectors)
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(tmp_path / "a")
    assert list(frame.columns) == ["id", "video", "start", "end", "label", "group", "vector"]
    np.testing.assert_array_equal(np.stack(frame["vector"].to_list()), vectors)
    schema = pq.read_schema(tmp_path / "a" / "part-000001.parquet")
    about = json.loads(schema.metadata[b"vicc_archive"])
    assert about["encoders"][0]["name"] == "RGB-2" and about["settings"] == {"windows": "all"}


@pytest.mark.parametrize("tool", ["polars", "duckdb", "lancedb"])
def test_these_tools_too(tmp_path: Path, tool: str) -> None:
    module = pytest.importorskip(tool)
    vectors = random_rows(25)
    make_archive(tmp_path / "a", vectors)
    files = str(tmp_path / "a" / "*.parquet")
    if tool == "polars":
        found = module.read_parquet(files)
        assert found.height == 25 and found["vector"].to_numpy().shape == (25, D)
    elif tool == "duckdb":
        query = (
            f"select id from '{files}' order by array_cosine_similarity(vector::float[{D}], ?::float[{D}]) desc limit 1"
        )
        assert module.execute(query, [vectors[3].tolist()]).fetchone() == ("/films/0.mp4@30-40",)
    else:
        import pyarrow.dataset as dataset

        made = module.connect(str(tmp_path / "db")).create_table("a", dataset.dataset(str(tmp_path / "a")).to_table())
        assert made.search(vectors[3]).limit(1).to_list()[0]["id"] == "/films/0.mp4@30-40"


def test_an_archive_of_other_vectors_is_not_gone_on_with(tmp_path: Path) -> None:
    make_archive(tmp_path / "a", random_rows(5))
    for changes, reason in (
        ({"settings": {"windows": "centre"}}, "windows: all there, centre here"),
        ({"half": True}, "half precision: False there, True here"),
        ({"encoders": (Maker("Flow-2", "0" * 32, "flow", D),)}, r"encoders: \['RGB-2'\] there, \['Flow-2'\] here"),
        ({"encoders": (Maker("RGB-2", "1" * 32, "rgb", D),)}, "the encoder's weights are others"),
    ):
        with pytest.raises(UserError, match=f"holds other vectors than these settings give .*{reason}"):
            create_archive(str(tmp_path / "a"), info(**changes))
    make_archive(tmp_path / "b", random_rows(5), settings={"windows": "centre"})
    with pytest.raises(UserError, match="vectors of different encoders cannot be compared"):
        Library([str(tmp_path / "a"), str(tmp_path / "b")])


def test_archives_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no archive \(no _archive.json\); make one with 'vicc embed"):
        open_archive(str(tmp_path / "none"))
    create_archive(str(tmp_path / "empty"), info())
    with pytest.raises(UserError, match="the archive is empty; fill it with 'vicc embed'"):
        search(str(tmp_path / "empty"), random_rows(1)[0])
    make_archive(tmp_path / "a", random_rows(20))
    cut = tmp_path / "a" / "part-000002.parquet"
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"part-000002.parquet: is no whole part of an archive"):
        search(str(tmp_path / "a"), random_rows(1)[0])
    spoilt = bytearray(whole)
    spoilt[whole.index(random_rows(20)[9].tobytes()[:16])] ^= 1
    cut.write_bytes(bytes(spoilt))
    with pytest.raises(UserError, match=r"part-000002.parquet: is no whole part of an archive"):
        search(str(tmp_path / "a"), random_rows(1)[0])
    cut.write_bytes(whole)
    (tmp_path / "a" / "_archive.json").write_text("{")
    with pytest.raises(UserError, match=r"its _archive.json is damaged"):
        open_archive(str(tmp_path / "a"))
    make_archive(tmp_path / "other", random_rows(20), settings={"windows": "centre"})
    (tmp_path / "a" / "_archive.json").write_text((tmp_path / "other" / "_archive.json").read_text())
    with pytest.raises(UserError, match=r"part-000001.parquet: is of another archive"):
        open_archive(str(tmp_path / "a"))


@pytest.mark.parametrize("rows", [FEW - 1, FEW, 1000])
def test_search_is_exact_whatever_the_parts(tmp_path: Path, rows: int) -> None:
    vectors = random_rows(rows)
    make_archive(tmp_path / "a", vectors, part=rows // 3)
    for number in (0, rows // 2, rows - 1):
        query = vectors[number] + 0.01
        (answer,) = search(str(tmp_path / "a"), query, k=15)
        cosines = twin(vectors, query, centre=rows >= FEW)
        order = np.argsort(-cosines, kind="stable")[:15]
        names = segments(vectors).ids
        assert [match.id for match in answer.matches] == [names[place] for place in order]
        np.testing.assert_allclose([match.similarity for match in answer.matches], cosines[order], atol=2e-6)
        assert [match.rank for match in answer.matches] == list(range(1, 16))
    plain = search(str(tmp_path / "a"), vectors[0], k=3, centre=False)[0]
    np.testing.assert_allclose(
        [m.similarity for m in plain.matches], np.sort(twin(vectors, vectors[0], False))[:-4:-1], atol=2e-6
    )


def test_a_mean_far_from_zero_does_not_change_the_order(tmp_path: Path) -> None:
    """Features after a ReLU: what is compared in float32 first is small beside the mean."""
    vectors = random_rows(500, mean=200.0)
    make_archive(tmp_path / "a", vectors, part=100)
    (answer,) = search(str(tmp_path / "a"), vectors[7] + 0.1, k=20)
    cosines = twin(vectors, vectors[7] + np.float32(0.1), centre=True)
    names = segments(vectors).ids
    assert [m.id for m in answer.matches] == [names[place] for place in np.argsort(-cosines, kind="stable")[:20]]


def test_both_streams_count_alike(tmp_path: Path) -> None:
    """The similarity of two encoders' vectors is the mean of both cosines, whatever their lengths."""
    makers = (Maker("RGB-2", "0" * 32, "rgb", 5), Maker("Flow-2", "0" * 32, "flow", 3))
    vectors = random_rows(40)
    vectors[:, 5:] *= 1000
    make_archive(tmp_path / "a", vectors, encoders=makers)
    (answer,) = search(str(tmp_path / "a"), vectors[0], k=40)
    wanted = (twin(vectors[:, :5], vectors[0, :5], False) + twin(vectors[:, 5:], vectors[0, 5:], False)) / 2
    np.testing.assert_allclose([m.similarity for m in answer.matches], -np.sort(-wanted), atol=2e-6)


def test_a_row_does_not_find_itself_nor_with_exclude_group_its_file(tmp_path: Path) -> None:
    vectors = random_rows(30)
    make_archive(tmp_path / "a", vectors)
    (answer,) = search(str(tmp_path / "a"), "/films/1.mp4@30-40", k=100)
    assert (answer.video, answer.start, answer.end) == ("/films/1.mp4", 30.0, 40.0)
    assert len(answer.matches) == 29 and answer.query not in {match.id for match in answer.matches}
    (answer,) = search(str(tmp_path / "a"), "/films/1.mp4@30-40", k=100, exclude_group=True)
    assert len(answer.matches) == 20 and {match.video for match in answer.matches} == {"/films/0.mp4", "/films/2.mp4"}


def test_what_is_passed_over_does_not_crowd_out_others(tmp_path: Path) -> None:
    """All that is nearest is of the query's own file; the nearest of the others is found all the same."""
    vectors = np.tile(random_rows(1), (400, 1)) + random_rows(400, 1, 0) * 0.001
    vectors[390:] = random_rows(10, 2)
    groups = ["mine"] * 390 + ["other"] * 10
    made = create_archive(str(tmp_path / "a"), info())
    made.write_part(segments(vectors, groups=groups), {})
    (answer,) = search(str(tmp_path / "a"), "/films/0.mp4@0-10", k=5, exclude_group=True)
    cosines = twin(vectors, vectors[0], True)[390:]
    names = segments(vectors).ids
    assert [match.id for match in answer.matches] == [names[390 + place] for place in np.argsort(-cosines)[:5]]


def test_several_archives_are_one(tmp_path: Path) -> None:
    vectors = random_rows(60)
    make_archive(tmp_path / "all", vectors)
    make_archive(tmp_path / "a", vectors[:25])
    second = create_archive(str(tmp_path / "b"), info())
    second.write_part(segments(vectors[25:], 25), {})
    query = random_rows(1, 5)[0]
    (one,) = search(str(tmp_path / "all"), query)
    (two,) = search([str(tmp_path / "a"), str(tmp_path / "b")], query)
    assert [(m.id, m.similarity) for m in one.matches] == [(m.id, m.similarity) for m in two.matches]
    assert {m.archive for m in two.matches} == {str(tmp_path / "a"), str(tmp_path / "b")}


def test_queries_that_cannot_be(tmp_path: Path) -> None:
    make_archive(tmp_path / "a", random_rows(20))
    with pytest.raises(UserError, match=r"gone.mp4: is neither a video nor an id of .*/a"):
        search(str(tmp_path / "a"), str(tmp_path / "gone.mp4"))
    with pytest.raises(UserError, match=r"a query of shape \[3\]: the archive's vectors have 8 values"):
        search(str(tmp_path / "a"), np.zeros(3, np.float32))
    with pytest.raises(UserError, match="the query's vector holds NaN"):
        search(str(tmp_path / "a"), np.full(D, np.nan, np.float32))
    with pytest.raises(UserError, match="-k 0: at least one"):
        search(str(tmp_path / "a"), random_rows(1)[0], k=0)
    broken = random_rows(20)
    broken[13, 2] = np.nan
    make_archive(tmp_path / "nan", broken)
    with pytest.raises(UserError, match="the archive's vectors hold NaN or infinite values"):
        search(str(tmp_path / "nan"), random_rows(1)[0])


def test_a_search_for_an_id_needs_no_torch(tmp_path: Path) -> None:
    make_archive(tmp_path / "a", random_rows(20))
    code = (
        "import sys; from vicc_ray.archive.search import search\n"
        f"found = search({str(tmp_path / 'a')!r}, '/films/0.mp4@0-10')\n"
        "sys.exit(len(found[0].matches) != 10 or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_are_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    vectors = random_rows(20)
    archive = make_archive(tmp_path / "a", vectors)
    ends = np.cumsum([part.rows for part in archive.parts]).tolist()
    for number, (part, end) in enumerate(zip(list(archive.parts), ends, strict=True)):
        archive.drop(number, np.isin(np.arange(end - part.rows, end), [3, 18]))
    again = open_archive(str(tmp_path / "a"))
    kept = [place for place in range(20) if place not in (3, 18)]
    np.testing.assert_array_equal(again.rows().whole(), vectors[kept])
    np.testing.assert_allclose(again.mean(), vectors[kept].mean(axis=0), rtol=1e-6)
    for part in again.parts:
        ids, contents = again.ids_and_contents(part)
        assert len(ids) == len(contents) == part.rows


def test_near_copies_are_grouped_and_the_longest_kept(tmp_path: Path) -> None:
    vectors = random_rows(30, mean=0.0)
    vectors[11] = vectors[2] * 3 + 0.001
    vectors[25] = vectors[2]
    vectors[7] = vectors[6]
    made = create_archive(str(tmp_path / "a"), info())
    columns = segments(vectors)
    ends = [end + (5 if place == 11 else 0) for place, end in enumerate(columns.ends)]
    made.write_part(replace(columns, ends=ends), {})
    groups = find_duplicates(Library([str(tmp_path / "a")]), 0.99, check=False).groups
    assert [group.rows for group in groups] == [(11, 2, 25), (6, 7)]
    assert min(groups[0].similarities) > 0.999
    with console.capture() as printed:
        found = show_duplicates([str(tmp_path / "a")], 0.99, None, tmp_path / "t.csv", False, as_json=False)
    assert "2 groups; 3 of 30 rows are near-duplicates" in printed.get()
    assert [group["kept"] for group in found["groups"]] == [columns.ids[11], columns.ids[6]]
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [(row["group"], row["kept"]) for row in rows] == [
        ("1", "true"), ("1", "false"), ("1", "false"), ("2", "true"), ("2", "false"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"is neither a .csv nor a .parquet file"):
        show_duplicates([str(tmp_path / "a")], 0.99, None, tmp_path / "t.txt", False, as_json=True)


def test_a_faiss_index_finds_what_search_finds(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    vectors = random_rows(3000)
    make_archive(tmp_path / "a", vectors, part=1000)
    library = Library([str(tmp_path / "a")])
    query = random_rows(1, 9)[0]
    exact = search(library, query)[0]
    with pytest.raises(UserError, match="has no index; build one"):
        search(library, query, index=True)
    for kind in ("ivf", "hnsw"):
        assert build_index(library, kind) >= 0.95
        found = search(library, query, index=True)[0]
        assert len({m.id for m in exact.matches} & {m.id for m in found.matches}) >= 8
        same = {m.id: m.similarity for m in exact.matches}
        assert all(abs(same[m.id] - m.similarity) < 1e-5 for m in found.matches if m.id in same)
        own = search(library, "/films/7.mp4@10-20", 300, exclude_group=True, index=True)[0]
        assert "/films/7.mp4" not in {m.video for m in own.matches}
    with console.capture() as printed:
        search_archives([str(tmp_path / "a")], [], 10, False, "ivf", None)
    assert re.search(
        r"ivf index of 3000 rows built in \d+ s; it finds \d+\.\d% of the 10 nearest", " ".join(printed.get().split())
    )
    create_archive(str(tmp_path / "a"), info())
    open_archive(str(tmp_path / "a")).write_part(segments(random_rows(5), 3000), {})
    with pytest.raises(UserError, match="its index is of other rows than the archive has now"):
        search(str(tmp_path / "a"), query, index=True)
    with pytest.raises(UserError, match="an index is of one archive"):
        search([str(tmp_path / "a"), str(tmp_path / "a")], query, index=True)


def test_kmeans_finds_clusters_and_the_map_has_every_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, D)) * 10
    of = rng.integers(0, 3, 120)
    vectors = (centres[of] + rng.normal(size=(120, D))).astype(np.float32)
    make_archive(tmp_path / "a", vectors, part=50)
    library = Library([str(tmp_path / "a")])
    clusters = find_clusters(library, "kmeans", 3)
    assert sorted(one.size for one in clusters.found) == sorted(np.bincount(of).tolist())
    for one in clusters.found:
        assert len({int(of[row]) for row in one.central}) == 1 and len(one.central) == 6
    assert clusters.found[0].labels[0][0] == "even"
    chart = map_of(library, clusters)
    assert chart is not None
    figure = json.loads(chart.json)
    assert sum(len(trace["x"]) for trace in figure["data"]) == 120
    assert map_of(Library([str(make_archive(tmp_path / "few", vectors[:4]).folder)]), clusters) is None
    with pytest.raises(UserError, match="--count 200: the archive has 120 rows"):
        find_clusters(library, "kmeans", 200)
    with pytest.raises(UserError, match="--count: prototypes are as many as the encoder learnt"):
        find_clusters(library, "prototypes", 3)


HOSTILE = "<script>alert(1)</script>\"' & <b>bold</b>"


def test_pages_escape_names_and_labels(tmp_path: Path) -> None:
    video = write_video(tmp_path / "films" / "a.mp4", numbered_frames(30)).rename(
        tmp_path / "films" / "<img src=x onerror=alert(1)>.mp4"
    )
    cards = [
        Card(f"{video}@0-1", str(video), "0:00 - 0:01", HOSTILE, "kept", "kept"),
        Card("/gone.mp4", "/gone.mp4", "", HOSTILE),
    ]
    page = Page(
        "search", HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [Strip(HOSTILE, HOSTILE, cards), Strip("none", "", [])]
    )
    write_page(page, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and "onerror=alert(1)>" not in text and "<b>bold" not in text
    assert "&lt;script&gt;" in text and text.count("data:image/webp;base64,") == 1
    assert "cannot be shown" in text and "nothing found" in text
    assert "script-src &#39;none&#39;" in text
    many = [Card(f"/{number}.mp4", f"/{number}.mp4") for number in range(500)]
    write_page(replace(page, strips=[Strip("many", "", many)]), tmp_path / "many.html")
    assert "100 more are not shown" in (tmp_path / "many.html").read_text()


def test_clusters_page_escapes_what_plotly_would_read(tmp_path: Path) -> None:
    vectors = random_rows(30)
    made = create_archive(str(tmp_path / "a"), info())
    made.write_part(replace(segments(vectors), labels=[HOSTILE] * 30), {})
    with console.capture():
        show_clusters([str(tmp_path / "a")], "kmeans", 2, tmp_path / "c.html", as_json=True)
    text = (tmp_path / "c.html").read_text()
    body = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "<script" not in body and "alert(1)&lt;/script" in body


def test_places_are_clock_times() -> None:
    assert clock(0, 12.5) == "0:00 - 0:12.5" and clock(59.96, 3725.04) == "1:00 - 1:02:05"


# The whole way: a run's encoders, videos of a folder, an archive. Ray's part is done here in this process.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    experiment = tiny_experiment()
    from vicc_ray.config import dump_experiment

    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(dump_experiment(experiment))
    for number, (name, stream) in enumerate({"RGB-1": "rgb", "RGB-2": "rgb", "Flow-2": "flow"}.items()):
        model = experiment.model
        encoder = build_encoder(model.backbone, width=model.width, embedding_dim=model.embedding_dim, seed=number)
        prototypes = [torch.nn.functional.normalize(torch.randn(6, model.embedding_dim), dim=1)]
        save_encoder(
            folder.encoder(name),
            EncoderFile(encoder.spec, stream, encoder.state_dict(), prototypes),  # type: ignore[arg-type]
        )
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-videos")
    tiny_manifest(folder).write(folder / "m.parquet")
    return folder / "m.parquet"


class OneProcess:
    """Ray's part of `vicc embed` in this process; `stop_after` blocks it is interrupted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stop_after: int | None = None
        self.blocks = 0
        patch.setattr(ray_stream, "_evaluation_windows", lambda *arguments: arguments)
        patch.setattr(ray_stream, "_through_models", self.through)
        patch.setattr("vicc_ray.commands.embed.ray_session", self.session)

    def session(self, *_: Any) -> Any:
        from contextlib import nullcontext

        return nullcontext(ResourcePlan(1, 1, False, 1, 1, 1 << 28))

    def read_all(self, requests: Sequence[Any], into: Any = None) -> Any:
        return read_here(self.experiment, requests, into)

    def through(self, clips: Any, actor: Any, arguments: Any, resources: Any, on_windows: Any) -> Iterator[Any]:
        rows, windows, self.experiment, _, streams, _ = clips
        decode = DecodeWindows(rows, windows, WINDOWS_A_BLOCK, self.experiment, streams)
        decode.reader = self  # type: ignore[assignment]  # no process of its own
        encode = EncodeWindows(*arguments)
        for unit in range(-(-len(windows) // WINDOWS_A_BLOCK)):
            if self.blocks == self.stop_after:
                raise KeyboardInterrupt
            self.blocks += 1
            yield encode(decode({"unit": np.array([unit])}))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> OneProcess:
    return OneProcess(monkeypatch)


def embed(run: RunFolder, source: Path, out: Path, **options: Any) -> tuple[Archive, str]:
    with console.capture() as printed:
        archive = embed_videos(str(run), str(source), str(out), EmbedOptions(workers=1, **options))
    return archive, " ".join(printed.get().split())


def test_embedding_gives_what_the_encoder_gives(
    run: RunFolder, manifest: Path, tmp_path: Path, here: OneProcess
) -> None:
    archive, text = embed(run, manifest, tmp_path / "a")
    rows = Manifest.read(manifest).videos
    assert len(archive) == 24 and "24 vectors of RGB-2" in text
    table = archive.table().to_pylist()
    assert [row["id"] for row in table] == [row.video for row in rows]
    assert [row["label"] for row in table] == [row.label for row in rows]
    encoder = vicc_ray.load(str(run)).encoder("RGB-2", device="cpu")
    for number in (0, 13):
        np.testing.assert_allclose(
            archive.rows().whole()[number], encoder.embed(rows[number].video), rtol=2e-4, atol=1e-5
        )
    (answer,) = vicc_ray.search(str(tmp_path / "a"), f"{rows[5].video}@0-{rows[5].duration_seconds:g}", k=1)
    assert answer.matches[0].id == rows[5].video
    both, text = embed(run, manifest, tmp_path / "both", stream="both")
    np.testing.assert_array_equal(both.rows().whole()[:, :32], archive.rows().whole())
    assert "24 vectors of RGB-2+Flow-2, 64 values" in text
    clusters = find_clusters(Library([both.folder]), "prototypes")
    assert clusters.count == 6 and sum(one.size for one in clusters.found) == 24
    z = load_encoder(run.encoder("RGB-2")).build().embed(torch.from_numpy(archive.rows().whole()))
    prototypes = load_encoder(run.encoder("RGB-2")).prototypes[0]
    np.testing.assert_array_equal(clusters.of, (z @ prototypes.T).argmax(dim=1).numpy())


def test_an_interrupted_job_goes_on_and_gives_the_same(
    run: RunFolder, manifest: Path, tmp_path: Path, here: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = embed(run, manifest, tmp_path / "whole")
    blocks, here.blocks = here.blocks, 0
    monkeypatch.setattr(embedding, "PART_ROWS", 3)
    for stop in (2, 4):
        here.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            embed(run, manifest, tmp_path / "a")
        status = archive_status(str(tmp_path / "a"))
        assert status["state"].startswith("unfinished") and 0 < status["rows"] < 24 == status["planned"]
    here.stop_after = None
    again, text = embed(run, manifest, tmp_path / "a")
    assert re.search(r"\d+ of 24 are in .*/a already", text)
    assert here.blocks < 2 * blocks
    ids = again.table()["id"].to_pylist()
    assert sorted(ids) == sorted(whole.table()["id"].to_pylist()) and len(set(ids)) == 24
    by_id = dict(zip(ids, again.rows().whole(), strict=True))
    for name, vector in zip(whole.table()["id"].to_pylist(), whole.rows().whole(), strict=True):
        np.testing.assert_array_equal(by_id[name], vector)
    here.blocks = 0
    _, text = embed(run, manifest, tmp_path / "a")
    assert here.blocks == 0 and "24 of 24 are in" in text
    assert archive_status(str(tmp_path / "a"))["state"] == "finished"


def test_what_is_new_changed_or_gone(run: RunFolder, tmp_path: Path, here: OneProcess) -> None:
    films = tmp_path / "films"
    for name, first in (("a", 0), ("b", 40)):
        write_video(films / f"{name}.mp4", numbered_frames(40, start=first))
    archive, text = embed(run, films, tmp_path / "a", cut="0.8s")
    assert len(archive) == 4 and archive.table()["id"].to_pylist()[0] == f"{films}/a.mp4@0-0.8"
    assert set(archive.table()["group"].to_pylist()) == {f"{films}/a.mp4", f"{films}/b.mp4"}
    before = dict(zip(archive.table()["id"].to_pylist(), archive.rows().whole(), strict=True))
    write_video(films / "b.mp4", numbered_frames(40, start=150))
    write_video(films / "c.mp4", numbered_frames(40, start=90))
    (films / "bad.mp4").write_bytes(b"no video")
    second, text = embed(run, films, tmp_path / "a", cut="0.8s")
    assert "2 of 6 are in" in text and "refused: " in text
    after = dict(zip(second.table()["id"].to_pylist(), second.rows().whole(), strict=True))
    assert sorted(after) == [f"{films}/{name}.mp4@{span}" for name in "abc" for span in ("0-0.8", "0.8-1.6")]
    assert all((after[name] == before[name]).all() == ("/a.mp4" in name) for name in before)
    (films / "a.mp4").unlink()
    third, text = embed(run, films, tmp_path / "a", cut="0.8s")
    assert len(third) == 6 and "holds 2 more that the source does not name; they stay" in text


def test_unreadable_files_are_named_and_tried_again(run: RunFolder, tmp_path: Path, here: OneProcess) -> None:
    films = tmp_path / "films"
    for name in ("a", "b"):
        write_video(films / f"{name}.mp4", numbered_frames(20, start=30 if name == "b" else 0))
    from vicc_ray.commands.index import IndexOptions, index_videos

    with console.capture():
        index_videos(str(films), tmp_path / "m.parquet", IndexOptions(workers=1))
    (films / "b.mp4").rename(tmp_path / "b.mp4")
    archive, text = embed(run, tmp_path / "m.parquet", tmp_path / "a")
    assert f"refused: {films}/b.mp4: no such file" in text and "1 of 2 could not be read" in text
    assert archive.refused() == {f"{films}/b.mp4": "no such file"} and archive_status(archive.folder)["refused"] == 1
    (tmp_path / "b.mp4").rename(films / "b.mp4")
    archive, _ = embed(run, tmp_path / "m.parquet", tmp_path / "a")
    assert len(archive) == 2 and archive.refused() == {}
    for name in ("a", "b"):
        (films / f"{name}.mp4").unlink()
    with pytest.raises(UserError, match="none of 2 videos and parts could be embedded"):
        embed(run, tmp_path / "m.parquet", tmp_path / "other")


def test_windows_of_time_and_one_stream_only(run: RunFolder, manifest: Path, tmp_path: Path, here: OneProcess) -> None:
    every, _ = embed(run, manifest, tmp_path / "every", every=0.25)
    rows = [part for row in Manifest.read(manifest).videos for part in cut_evenly(row, 0.25)]
    assert every.table()["id"].to_pylist() == [row.id for row in rows] and len(rows) > 24
    centre, _ = embed(run, manifest, tmp_path / "centre", windows="centre", encoder="RGB-1", half=True)
    assert len(centre) == 24 and centre.info.encoders[0].name == "RGB-1" and centre.info.half
    query, _ = embed(run, manifest, tmp_path / "query", split="query")
    assert len(query) == 8


def test_options_that_do_not_fit(run: RunFolder, manifest: Path, tmp_path: Path, here: OneProcess) -> None:
    for options, reason in (
        ({"encoder": "RGB-9"}, "--encoder RGB-9: .* has: RGB-1, RGB-2, Flow-2"),
        ({"cut": "10s"}, "--cut: is for videos that are indexed; use --every"),
        ({"split": "nowhere"}, "no video in split 'nowhere'"),
        ({"overrides": ("clip.nothing=1",)}, "clip.nothing"),
    ):
        with pytest.raises(UserError, match=reason):
            embed(run, manifest, tmp_path / "a", **options)
    with pytest.raises(UserError, match=r"--stream flow: .* holds an encoder of rgb"):
        open_encoders_of(str(run.encoder("RGB-2")), EmbedOptions(stream="flow"))
    experiment, (encoder,) = open_encoders_of(str(run.encoder("RGB-2")), EmbedOptions(overrides=("clip.frames=8",)))
    assert encoder.stream == "rgb" and experiment.clip.frames == 8


def test_a_refused_job_leaves_the_archive_as_it_was(run: RunFolder, tmp_path: Path, here: OneProcess) -> None:
    write_video(tmp_path / "films" / "a.mp4", numbered_frames(40))
    archive, _ = embed(run, tmp_path / "films", tmp_path / "a", cut="0.8s")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()}
    with pytest.raises(UserError, match="holds other vectors than these settings give"):
        embed(run, tmp_path / "films", tmp_path / "a", stream="both")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()} == before
    with console.capture() as printed:
        answers = search_archives([archive.folder], [f"{tmp_path}/films/a.mp4@0-0.8"], 50, False, "none", None)
    assert len(answers[0].matches) == 1 and "-k 50 is more than the 2 rows there are" in printed.get()


def test_an_archive_in_a_bucket(run: RunFolder, tmp_path: Path, here: OneProcess, bucket: str) -> None:
    """Videos and archive in an object store; searched from there."""
    film = write_video(tmp_path / "films" / "a.mp4", numbered_frames(40))
    storage.upload(film, f"{bucket}/films/a.mp4")
    with console.capture():
        made = embed_videos(str(run), f"{bucket}/films", f"{bucket}/archive", EmbedOptions(workers=1, cut="0.8s"))
    assert made.table()["id"].to_pylist() == [f"{bucket}/films/a.mp4@0-0.8", f"{bucket}/films/a.mp4@0.8-1.6"]
    (answer,) = search(f"{bucket}/archive", f"{bucket}/films/a.mp4@0-0.8")
    assert [match.id for match in answer.matches] == [f"{bucket}/films/a.mp4@0.8-1.6"]
    (answer,) = search(f"{bucket}/archive", str(film), k=1)
    assert answer.matches[0].similarity > 0.9
    assert archive_status(f"{bucket}/archive")["rows"] == 2


def test_two_jobs_do_not_write_into_one_archive(
    run: RunFolder, manifest: Path, tmp_path: Path, here: OneProcess
) -> None:
    import os

    from vicc_ray.machine import lock

    (tmp_path / "a").mkdir()
    handle = os.open(tmp_path / "a" / "_lock", os.O_RDWR | os.O_CREAT)
    assert lock(handle)
    with pytest.raises(UserError, match="another 'vicc embed' is at work on it"):
        embed(run, manifest, tmp_path / "a")
    os.close(handle)
    assert len(embed(run, manifest, tmp_path / "a")[0]) == 24


def test_vectors_that_are_no_numbers_are_refused(
    run: RunFolder, manifest: Path, tmp_path: Path, here: OneProcess
) -> None:
    broken = RunFolder(tmp_path / "broken")
    broken.path.mkdir()
    broken.config.write_text(run.config.read_text())
    file = load_encoder(run.encoder("RGB-2"))
    state = {name: tensor.clone() for name, tensor in file.state_dict.items()}
    next(tensor for name, tensor in state.items() if name.endswith("conv.weight") or "weight" in name)[:] = float("nan")
    save_encoder(broken.encoder("RGB-2"), replace(file, state_dict=state))
    with pytest.raises(UserError, match=r"none of 24 videos and parts could be embedded .*NaN or infinite"):
        embed(broken, manifest, tmp_path / "a")


def test_a_query_too_short_for_a_clip_is_embedded_as_it_is(
    run: RunFolder, manifest: Path, tmp_path: Path, here: OneProcess
) -> None:
    embed(run, manifest, tmp_path / "a")
    short = write_video(tmp_path / "short.mp4", numbered_frames(3))
    (answer,) = search(str(tmp_path / "a"), str(short), k=100)
    assert len(answer.matches) == 24 and answer.query == str(short)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with pytest.raises(UserError, match=r"bad.mp4: not readable as a video"):
        search(str(tmp_path / "a"), str(bad))
    with pytest.raises(UserError, match=r"short.mp4@5-6: its part from 5 to 6 s lies past its end"):
        search(str(tmp_path / "a"), f"{short}@5-6")


def test_unit_rows_are_the_mean_of_the_spans_cosines() -> None:
    rows, mean = random_rows(6), random_rows(1, 3)[0]
    units = unit_rows(rows, mean, [slice(0, 3), slice(3, 8)])
    np.testing.assert_allclose((units * units).sum(axis=1), 1.0)
