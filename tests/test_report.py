"""The report: what stands on the page, that nothing in it can run or reach out, and the numbers behind the charts."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from contextlib import closing
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from vicc_ray.errors import UserError
from vicc_ray.evaluation.results import Evaluation
from vicc_ray.report import write_report
from vicc_ray.report.charts import POINTS, Chart, Curve, Level, chart, confusions, count, points_each, thinned
from vicc_ray.report.folder import read_folder
from vicc_ray.report.page import (
    MOST_CELLS,
    RUN_COLOURS,
    STREAM_COLOURS,
    Cell,
    Head,
    _oriented,
    _settings_that_differ,
    duration,
)
from vicc_ray.report.plots import BAND, GRID, INK, MUTED, PALETTE, TRACK, scripts
from vicc_ray.report.thumbnails import FRAMES, Thumbnails

STAGES = ("RGB-1", "Flow-1", "RGB-2", "Flow-2")
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of <style>."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.words.append(data.strip())

    @property
    def figures(self) -> dict[str, Any]:
        """Plotly's figures by their titles."""
        plots = self.having("plot")
        return {str(attrs["aria-label"]).split(":")[0]: json.loads(str(attrs["data-figure"])) for attrs in plots}

    @property
    def own(self) -> str:
        """The source without the scripts that every page has."""
        source = self.source
        for text in scripts(thumbnails=True).texts:
            assert source.count(text) <= 1, "it is there once"
            source = source.replace(f"<script>{text}</script>", "")
        return source

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)

    def having(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if name in (attrs.get("class") or "").split() or tag == name]


def video(path: Path, frames: np.ndarray) -> str:
    """uint8 [T,H,W,3] -> an .mp4 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=10, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def passing_bar(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A white bar, 4 px wide, on black: its left edge stands at x = i in frame i."""
    clip = np.zeros((frames, height, width, 3), dtype=np.uint8)
    for i in range(frames):
        clip[i, :, i : i + 4] = 255
    return clip


def metrics() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for i in range(40):
        shared = {"stage": STAGES[i // 10], "samples": 32 * (i + 1)}
        values = {"loss": 3.4 - 0.05 * (i % 10), "ln_k": math.log(32), "entropy": 1.5, "prototypes_used": 0.9}
        times = {"samples_per_second": 30.0, "time": 1.7e9 + 342.4 * i / 39}
        records.append({"kind": "train", "step": i % 10, **times, **shared, **values})
        if i % 5 == 4:
            records.append({"kind": "monitor", "R@1": 0.3, "R@5": 0.6, **shared})
    return records


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [video(folder / f"clip {i}.mp4", passing_bar(12 + 12 * i)) for i in range(2)]


@pytest.fixture
def run(tmp_path: Path, videos: list[str]) -> Path:
    return make_run(tmp_path / "quickstart", videos)


def put_evaluation(folder: Path, **changes: Any) -> None:
    facts: dict[str, Any] = {"protocol": "retrieval", "run": folder.name, "seed": 0, "data": "motion", "fold": None}
    facts |= {"train_on": "train", "test_on": "query", "train": 400, "test": 160, "chance": 0.125, "seconds": 9.0}
    one = Evaluation(**{**facts, "rows": [], **changes})
    (folder / "evaluations").mkdir(exist_ok=True)
    (folder / "evaluations" / one.file_name).write_text(json.dumps(asdict(one)))


def make_run(folder: Path, videos: list[str], rgb2: float = 0.66) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("clip: {frames: 12, size: 56}\nmodel: {backbone: r2plus1d_10}\n# <b>bold</b>\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics()))
    names = {"random init": 0.14, "RGB-1": 0.15, "Flow-1": 0.63, "RGB-2": rgb2, "Flow-2": 0.7, "R+F": 0.744}
    rows = [{"name": name, "R@1": share, "R@5": share + 0.2} for name, share in names.items()]
    classes = {"RGB-2": {"orbit": {"queries": 3, "R@1": 0.875}}, "R+F": {"orbit": {"queries": 3, "R@1": 0.625}}}
    put_evaluation(folder, rows=rows, classes=classes)
    query = {"video": videos[0], "label": "orbit"}
    found = [
        {"video": videos[1], "label": "orbit", "similarity": 0.91},
        {"video": videos[0], "label": EVIL, "similarity": 0.8},
        {"video": str(folder / "vanished.mp4"), "label": "fall", "similarity": 0.7},
    ]
    tables = {"RGB-1": [{"query": query, "neighbours": found}], "RGB-2": [{"query": query, "neighbours": found[:1]}]}
    (folder / "neighbours.json").write_text(json.dumps(tables))
    return folder


def frame_count(uri: str | None) -> int:
    picture: Any = Image.open(io.BytesIO(base64.b64decode((uri or "").split(",")[1])))
    return int(getattr(picture, "n_frames", 1))


def written(tmp_path: Path, *runs: Path) -> Page:
    out = tmp_path / "made" / "report.html"
    write_report(runs, out)
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]  # no draft is left behind
    return Page(out)


def test_the_page_tells_the_results(run: Path, tmp_path: Path) -> None:
    page = written(tmp_path, run)
    for told in ("quickstart", "random init", "66.0", "94.4", "12.5", "5 min 42 s", "4.4 x", "5.3 x", "r2plus1d_10"):
        assert told in page.text, told
    assert "width:66.0%" in page.source and page.source.count("left:12.5%") == 6
    figures = page.figures
    assert list(figures) == [
        "Loss",
        "Retrieval recall during training",
        "Assignment entropy (nats)",
        "Prototypes in use",
    ]
    texts = [annotation["text"] for annotation in figures["Loss"]["layout"]["annotations"]]
    assert texts == ["ln K = 3.47", *STAGES] and "missing" not in page.text
    assert [trace["name"] for trace in figures["Loss"]["data"]] == list(STAGES)
    assert "global batch" in page.text and "192 and 96" in page.text  # of the experiment's defaults
    assert "clip: {frames: 12, size: 56}" in page.text and not page.having("open")


def test_the_gallery_moves_and_marks_right_and_wrong(run: Path, tmp_path: Path) -> None:
    page = written(tmp_path, run)
    kinds = [[word for word in ("query", "right", "wrong") if word in attrs["class"]] for attrs in page.having("video")]  # type: ignore[operator]
    assert kinds == [["query"], ["right"], ["wrong"], ["wrong"], ["right"]]
    assert [attrs["title"] for attrs in page.having("mark")] == [
        "same class",
        "another class",
        "another class",
        "same class",
    ]
    assert len(page.having("unreadable")) == 1 and "1 of 3 right" in page.text and "1 of 1 right" in page.text
    moving = [frame_count(a["data-moving"]) for a in page.having("frame") if "data-moving" in a]
    assert moving == [12, FRAMES, 12, FRAMES]
    assert [frame_count(a["src"]) for a in page.having("img") if "src" in a] == [1, 1, 1, 1], "until it is pointed at"


def test_all_text_is_escaped_and_nothing_is_fetched(run: Path, tmp_path: Path, videos: list[str]) -> None:
    put_evaluation(run, rows=[{"name": EVIL, "R@1": 0.5}], data=EVIL, notes=(EVIL,), refused=((EVIL, EVIL),))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "stage": EVIL, "samples": 9999, "loss": 1.0}) + "\n")
    page = written(tmp_path, run, make_run(tmp_path / "<img src=x onerror=y>", videos))
    assert page.text.count(EVIL) >= 4 and EVIL not in page.own and "<b>bold</b>" in page.text
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object")] and "<script" not in page.own
    drawn = [json.loads(str(attrs["data-figure"])) for attrs in page.having("plot")]
    stages = {trace["name"] for one in drawn for trace in one["data"]}
    assert EVIL not in stages and EVIL.replace("<", "&lt;").replace(">", "&gt;") in stages  # Plotly reads some tags
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        assert "href" not in attrs and (attrs.get("src") or "data:image/").startswith("data:image/")
    assert "url(" not in page.own and "http:" not in page.own and "https:" not in page.own
    (policy,) = [attrs["content"] or "" for attrs in page.having("meta") if attrs.get("http-equiv")]
    assert "default-src 'none'" in policy and policy.endswith(f"script-src {scripts(thumbnails=True).policy}")


def test_several_runs_are_compared(run: Path, tmp_path: Path, videos: list[str]) -> None:
    page = written(tmp_path, run, make_run(tmp_path / "seed 1", videos, rgb2=0.7123))
    assert "Runs side by side" in page.text and "71.2" in page.text and "seed 1" in page.text
    assert len(page.having("plot")) == 4 + 2 * 4
    assert "Settings that differ" in page.text and "settings are the same in all runs" in page.text
    other = tmp_path / "other"
    other.mkdir()
    twins = written(tmp_path, run, make_run(other / "quickstart", videos))
    assert "quickstart (1)" in twins.text and "quickstart (2)" in twins.text


def test_settings_that_differ_stand_beside_each_other(run: Path, tmp_path: Path, videos: list[str]) -> None:
    other = make_run(tmp_path / "other", videos)
    (run / "config.yaml").write_text("name: a\nruns: here\noptim: {lr: 0.3}\n")
    (other / "config.yaml").write_text("name: b\nruns: there\noptim: {lr: 0.25}\nseed: 7\n")
    runs = [read_folder(folder) for folder in (run, other)]
    grid, same = _settings_that_differ(runs, [Head("a"), Head("b")])
    assert grid is not None and same > 90
    rows = {head.text: [(cell.text, cell.best) for cell in cells] for head, cells in grid.rows}
    assert rows == {"optim.lr": [("0.3", False), ("0.25", True)], "seed": [("0", False), ("7", True)]}
    assert _settings_that_differ(runs[:1] * 2, [Head("a"), Head("b")])[0] is None


def test_many_runs_are_rows(tmp_path: Path) -> None:
    heads = [Head(f"run {number}", "#1c5d99") for number in range(6)]
    line = (Head("RGB-2"), [Cell(number / 10) for number in range(6)])
    few = _oriented("R@1, %", heads[:5], [(line[0], line[1][:5])])
    assert [head.text for head in few.columns] == [head.text for head in heads[:5]] and len(few.rows) == 1
    many = _oriented("R@1, %", heads, [line])
    assert [head.text for head in many.columns] == ["RGB-2, %"] and [head for head, _ in many.rows] == heads
    assert [cells[0].share for _, cells in many.rows] == [number / 10 for number in range(6)]


def test_a_page_of_many_curves_has_fewer_points_of_each() -> None:
    assert [points_each(curves) for curves in (1, 100, 300, 5000)] == [400, 400, 200, 40]


def test_figures_are_told_in_words() -> None:
    curves = [Curve(f"run {number}", "#000", [(0.0, 3.0), (1.0, number / 10)]) for number in range(8)]
    few, many = chart("t", curves[:2]), chart("t", curves, percent=True)
    assert few is not None and few.alt == "run 0 from 3 to 0; run 1 from 3 to 0.1"
    assert many is not None and many.alt == "8 curves, which end between 0.0 % and 70.0 %"
    matrix = confusions({"RGB-2": {"labels": ["a", "b"], "counts": [[3, 1], [0, 2]]}})[0]
    assert matrix.alt == "5 of 6 videos in their own class; most often confused: a as b, 1 of 4"
    assert confusions({"x": {"labels": ["a"], "counts": [[3]]}})[0].alt == "3 of 3 videos in their own class"


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_lines_and_texts_stand_out_in_both_themes() -> None:
    """WCAG 2: 3 to 1 for what is drawn, 4.5 to 1 for texts."""
    quiet = {GRID, BAND, TRACK, "#e9eef6", "#1f4e8c"}  # of what is behind the figures
    for light, dark in PALETTE.items():
        for colour, paper in ((light, "#ffffff"), (dark, "#14181f")):
            high, low = sorted((_luminance(colour), _luminance(paper)), reverse=True)
            least = 1.0 if light in quiet else 4.5 if light in (INK, MUTED) else 3.0
            assert (high + 0.05) / (low + 0.05) >= least, colour
    for colours in (RUN_COLOURS, *STREAM_COLOURS.values()):
        assert set(colours) <= set(PALETTE), "each has one for the dark"


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations", "neighbours.json"])
def test_a_missing_part_is_said(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).rename(tmp_path / "elsewhere")
    assert f"{name} is missing" in written(tmp_path, run).text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rows": 3, "RGB-1": [1, {"query": 2}], "chance": "x"}'])
def test_broken_parts_are_no_crash(run: Path, tmp_path: Path, text: str) -> None:
    for name in ("metrics.jsonl", "evaluations/retrieval-motion-train-query.json", "neighbours.json"):
        (run / name).write_text(text)
    (run / "config.yaml").write_text("- only\n- a list\n")
    assert "retrieval-motion-train-query.json: is no result" in written(tmp_path, run, run).text


def test_every_evaluation_has_its_table_and_its_classes(run: Path, tmp_path: Path) -> None:
    """Retrieval first; a row of fitted fusion tells its weights, and what was left out is said."""
    rows = [{"name": "RGB-2", "top-1": 0.801, "mean class": 0.79}, {"name": "R+F", "weights": [1.4, 0.6], "top-1": 0.9}]
    refused = (("bad.avi", "no picture"), ("worse.avi", "empty"))
    put_evaluation(
        run, protocol="linear", data="ucf101", fold=2, rows=rows, chance=0.01, notes=("ten crops",), refused=refused
    )
    page = written(tmp_path, run)
    titles = [text for text in page.words if " on " in text and "videos" in text]
    assert titles == [
        "Nearest-neighbour retrieval on motion: 160 queries in 400 videos",
        "Linear probe on ucf101 split 2: 160 videos, learnt on 400",
    ]
    for told in (
        "R+F (1.4 : 0.6)",
        "80.1",
        "80.1 x",
        "mean class, %",
        "ten crops",
        "not measured",
        "R@1 of each class, %",
    ):
        assert told in page.text, told
    assert "2 videos left out (the first: bad.avi: no picture)" in page.text and "87.5" in page.text


def test_folds_and_seeds_are_averaged_where_there_are_several(run: Path, tmp_path: Path, videos: list[str]) -> None:
    assert "Mean and spread" not in written(tmp_path, run).text
    for fold, share in ((1, 0.6), (2, 0.7), (3, 0.65)):
        put_evaluation(run, data="ucf101", fold=fold, rows=[{"name": "RGB-2", "R@1": share, "mAP": 0.5}])
    page = written(tmp_path, run)
    assert "RGB-2, nearest-neighbour retrieval on ucf101" in page.text and "65.0 ± 5.0" in page.text
    other = make_run(tmp_path / "seed 1", videos)
    put_evaluation(other, data="ucf101", fold=1, rows=[{"name": "RGB-2", "R@1": 0.7}])
    both = written(tmp_path, run, other)
    assert "first figure of each, %" in both.text and "66.2 ± 4.8" in both.text
    assert "RGB-2, nearest-neighbour retrieval on motion" in both.text


def test_a_line_cut_by_a_crash_and_a_resumed_stretch(run: Path) -> None:
    again = [
        {"kind": "train", "stage": "RGB-1", "samples": 32, "loss": 1.25},
        {"kind": "train", "samples": 64, "loss": math.nan},
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in again) + '{"kind": "tra')
    folder = read_folder(run)
    assert len(folder.train) == 40 and folder.train[0]["loss"] == 1.25 and len(folder.monitor) == 8
    assert folder.notes == ["metrics.jsonl: 1 unreadable line left out."]


def test_no_run_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UserError, match="no run folder was given"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_eight_queries_of_hard_videos_stay_under_five_megabytes(tmp_path: Path) -> None:
    """Noise compresses worst; every thumbnail is of its own size, as pages repeat the data of a repeated video."""
    folder = tmp_path / "noise"
    folder.mkdir()
    (folder / "config.yaml").write_text("{}\n")
    noise = np.random.default_rng(0).integers(0, 256, (24, 96, 96, 3), dtype=np.uint8)
    path = video(tmp_path / "noise.mp4", noise)
    item = {"video": path, "label": "a", "similarity": 0.5}
    entries = [{"query": {**item, "video": path + "/" * i}, "neighbours": [item] * 5} for i in range(9)]  # type: ignore[dict-item]
    (folder / "neighbours.json").write_text(json.dumps({"RGB-1": entries, "RGB-2": entries}))
    out = tmp_path / "report.html"
    write_report([folder], out)
    assert 1_000_000 < out.stat().st_size < 5_000_000
    page = Page(out)
    assert len(page.having("video")) == 8 * 11 and "8 of 9 queries are shown" in page.text


def test_a_thumbnail_shows_the_middle_of_the_video(tmp_path: Path) -> None:
    uri = Thumbnails(100_000).uri(video(tmp_path / "long.mp4", passing_bar(50)))
    assert uri is not None
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert picture.size == (96, 72) and picture.info.get("loop") == 0
    places = []
    for frame in range(picture.n_frames):  # type: ignore[attr-defined]
        picture.seek(frame)
        brightness = np.asarray(picture.convert("L")).astype(float).mean(axis=0)
        places.append(float((brightness * np.arange(96)).sum() / brightness.sum()))
    # 16 frames, every second one: 9, 11, .., 39 of 50; the bar's middle at 1.5 output pixels a pixel
    assert places == pytest.approx([1.5 * (i + 2) - 0.5 for i in range(9, 40, 2)], abs=0.7)


def test_a_video_is_decoded_once(videos: list[str]) -> None:
    thumbnails = Thumbnails(100_000)
    first = thumbnails.uri(videos[0])
    assert first is not None
    thumbnails.close()  # what is decoded after this raises
    assert thumbnails.uri(videos[0]) == first


def test_a_video_that_hangs_its_decoder_has_no_thumbnail(
    videos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "endless.mp4")  # opening it waits for a writer, deep in native code
    monkeypatch.setattr("vicc_ray.report.thumbnails.SECONDS", 5.0)
    with closing(Thumbnails(100_000)) as thumbnails:
        assert thumbnails.uri(str(tmp_path / "endless.mp4")) is None
        assert thumbnails.uri(videos[0]) is not None


def figure(made: Chart | None) -> Any:
    assert made is not None
    return json.loads(made.json)


def test_a_chart_holds_its_points_levels_and_stages() -> None:
    curves = [
        Curve("a", "#000", [(0, 0), (50, 2), (100, 4)], dots=True),
        Curve("b", "#111", [(0, 1), (9, 1)], dashed=True),
    ]
    made = figure(
        chart("t", curves, levels=[Level(5, "five", 50, 100)], bands=[(0, 3, "x"), (3, 60, "y"), (60, 100, "z")])
    )
    first, second = made["data"]
    assert (first["x"], first["y"], first["mode"], second["line"]["dash"]) == (
        [0, 50, 100],
        [0, 2, 4],
        "lines+markers",
        "dash",
    )
    level, shaded = made["layout"]["shapes"]
    assert (level["x0"], level["x1"], level["y0"], level["y1"]) == (50, 100, 5, 5) and (shaded["x0"], shaded["x1"]) == (
        3,
        60,
    )
    assert [one["text"] for one in made["layout"]["annotations"]] == ["five", "y", "z"]  # too narrow for its name
    assert made["layout"]["yaxis"]["range"] == [0, pytest.approx(5.4)] and made["layout"]["xaxis"]["range"] == [0, 100]
    assert chart("t", [Curve("a", "#000", [])]) is None


def test_one_point_and_equal_values_make_a_chart() -> None:
    for points in ([(0.0, 0.0)], [(5.0, 0.0), (6.0, 0.0)], [(1.0, -2.0)]):
        low, high = figure(chart("t", [Curve("a", "#000", points)]))["layout"]["yaxis"]["range"]
        assert low <= min(y for _, y in points) and low < high


def test_a_long_curve_is_drawn_with_few_points() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    assert len(figure(chart("t", [Curve("a", "#000", points)]))["data"][0]["x"]) == POINTS


def test_a_confusion_matrix_has_shares_counts_and_sentences() -> None:
    made = figure(confusions({"RGB-2": {"labels": ["a", "b"], "counts": [[3, 1], [0, 2]]}})[0])
    (heat,) = made["data"]
    assert (heat["x"], heat["y"], heat["z"]) == (["a", "b"], ["a", "b"], [[0.75, 0.25], [None, 1.0]])
    assert heat["text"] == [["3", "1"], ["", "2"]] and heat["customdata"] == [[3, 1], [0, 2]]
    assert heat["hovertemplate"].startswith("%{customdata} videos of %{y} classified as %{x}, %{z:.1%}")
    assert made["layout"]["yaxis"]["autorange"] == "reversed" and made["layout"]["xaxis"]["showticklabels"]


def test_many_classes_have_no_names_in_a_confusion_matrix() -> None:
    many = [str(number) for number in range(21)]
    counts = [[int(row == column) for column in range(21)] for row in range(21)]
    made = figure(confusions({"R+F": {"labels": many, "counts": counts}})[0])
    assert not made["layout"]["xaxis"]["showticklabels"] and "text" not in made["data"][0]


def test_a_retrieval_shows_which_class_its_queries_find_first(run: Path, tmp_path: Path) -> None:
    matrix = {"labels": ["fall", "orbit"], "counts": [[5, 1], [2, 4]]}
    rows = [{"name": name, "R@1": 0.75} for name in ("RGB-2", "R+F")]
    put_evaluation(run, rows=rows, confusion={"RGB-2": matrix, "R+F": matrix})
    page = written(tmp_path, run)
    assert "A row a query's class, a column the class of its nearest neighbour" in page.text
    assert {"confusion of RGB-2", "confusion of R+F"} <= set(page.figures)
    assert "videos of %{y} next to %{x}" in page.figures["confusion of R+F"]["data"][0]["hovertemplate"]


def test_a_page_has_as_many_confusion_matrices_as_fit_the_newest_first(run: Path, tmp_path: Path) -> None:
    side = 300  # of three matrices two have room
    matrix = {"labels": [str(number) for number in range(side)], "counts": [[1] * side] * side}
    assert side**2 <= MOST_CELLS < 3 * side**2
    names = ("RGB-1", "RGB-2", "R+F")
    put_evaluation(run, rows=[{"name": name, "R@1": 0.75} for name in names], confusion=dict.fromkeys(names, matrix))
    page = written(tmp_path, run)
    assert [name for name in page.figures if name.startswith("confusion")] == [
        "confusion of RGB-2",
        "confusion of R+F",
    ]
    assert "Left out, as the page would be too large: RGB-1 (all are in" in page.text


def test_a_run_of_another_objective_has_charts_of_its_own_figures(run: Path, tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "stage": "RGB-1", "step": i, "samples": 8 * i, "loss": 1.0 / i, "matched": 0.5}
        for i in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = written(tmp_path, run)
    assert list(page.figures) == ["Loss", "matched"] and "ln K" not in page.text


def test_a_setting_that_does_not_exist_cannot_be_read(run: Path, tmp_path: Path) -> None:
    """The page read `optim.global_batch`, which there is not, and never showed a batch size."""
    experiment = read_folder(run).experiment
    assert experiment is not None
    with pytest.raises(AttributeError):
        _ = experiment.optim.global_batch  # type: ignore[attr-defined]
    (run / "config.yaml").write_text("schedule: {single: {global_batch: 24}, cross: {global_batch: 24}}\n")
    assert "global batch 24 " in written(tmp_path, run).text
    (run / "config.yaml").write_text("clip: {frames: 12, sice: 56}\n")
    page = written(tmp_path, run)
    assert (
        "clip.sice is not a setting" in page.text
        and "shown as text only" in page.text
        and "global batch" not in page.text
    )


def test_long_curves_are_thinned_to_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    thin = thinned(points, 100)
    assert len(thin) == 100 and {y for _, y in thin} == {0.5} and thin[0][0] == 49.5
    assert thinned(points[:50], 100) == points[:50]


def test_words_are_round() -> None:
    assert [count(x) for x in (0, 12, 1234, 5e6)] == ["0", "12", "1.23k", "5M"]
    assert [duration(s) for s in (9.6, 342.4, 3725)] == ["10 s", "5 min 42 s", "1 h 2 min"]
