"""The page: run folders -> tables, charts and gallery -> HTML through one template that escapes every text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vicc_ray.errors import UserError
from vicc_ray.report.charts import Chart, Curve, Level, chart, count
from vicc_ray.report.folder import Record, RunFolder, number, read_folder
from vicc_ray.report.thumbnails import Thumbnails

QUERIES, NEIGHBOURS = 8, 5  # shown a run
GALLERY_BYTES = 3_500_000  # of thumbnails on the page, over all runs
STREAM_COLOURS = {  # light before, dark after the cross-stream stage
    "rgb": ("#86b3dd", "#1c5d99", "#0b3558"),
    "flow": ("#efb366", "#b96a0b", "#6f3d00"),
}
RUN_COLOURS = ("#1c5d99", "#b96a0b", "#3a7d44", "#8e3b72", "#5b5f97", "#a23b3b", "#2a7f86", "#6b6b6b")


@dataclass(frozen=True)
class Cell:
    """One recall of the table; `share` in 0..1, or None where it was not measured."""

    share: float | None
    best: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    colour: str
    cells: list[Cell]
    times_chance: float | None


@dataclass(frozen=True)
class Table:
    """Retrieval recall: a row a feature, a column a k."""

    columns: list[str]
    rows: list[Row]
    chance: float | None


@dataclass(frozen=True)
class Shown:
    """A video of the gallery; `right`: whether it is of the query's class, None where a label is missing."""

    label: str
    uri: str | None
    similarity: float | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Answer:
    """One query with its neighbours under each feature, in the order of `Gallery.features`."""

    query: Shown
    neighbours: list[list[Shown]]


@dataclass(frozen=True)
class Gallery:
    features: list[tuple[str, str]]  # name, "7 of 40 right"
    answers: list[Answer]
    cut: str  # what was left out, or ""


@dataclass(frozen=True)
class Section:
    """All that the page tells of one run."""

    name: str
    facts: list[tuple[str, str]]
    highlights: list[tuple[str, str]]
    table: Table | None
    charts: list[Chart]
    gallery: Gallery | None
    config_text: str
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other: R@1 of each feature, and overlaid curves."""

    runs: list[tuple[str, str]]  # name, colour
    rows: list[tuple[str, list[Cell]]]
    charts: list[Chart]


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write one self-contained HTML page about the runs in `run_dirs` to `out`; several are compared first.

    Reads config.yaml (required), metrics.jsonl, results.json, neighbours.json and the videos named there; what is
    missing or unreadable is said on the page. Raises UserError for no run or for a folder without config.yaml.
    """
    if not run_dirs:
        raise UserError("report: no run folder was given; name at least one, e.g. runs/quickstart")
    runs = [read_folder(Path(folder)) for folder in run_dirs]
    here = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here.filters["percent"] = lambda share: f"{100 * share:.1f}"
    queries = max(2, QUERIES // len(runs))
    thumbnails = Thumbnails(GALLERY_BYTES // (len(runs) * queries * (1 + 2 * NEIGHBOURS)))
    names = _distinct(runs)
    html = here.get_template("template.html.j2").render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs",
        sections=[_section(run, name, thumbnails, queries) for run, name in zip(runs, names, strict=True)],
        comparison=_compare(runs, names) if len(runs) > 1 else None,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    draft.write_text(html, encoding="utf-8")
    draft.replace(out)


def _distinct(runs: Sequence[RunFolder]) -> list[str]:
    """Names of the runs, numbered where two folders share one."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _section(run: RunFolder, name: str, thumbnails: Thumbnails, queries: int) -> Section:
    notes = list(run.notes)
    table = _table(run.results)
    if run.results is not None and table is None:
        notes.append("results.json holds no rows.")
    return Section(
        name=name,
        facts=_facts(run),
        highlights=_highlights(run, table),
        table=table,
        charts=[made for made in _charts(run) if made is not None],
        gallery=_gallery(run.neighbours, thumbnails, queries),
        config_text=run.config_text,
        notes=notes,
    )


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """What the run was, from those settings that the config has."""

    def setting(*path: str) -> Any:
        value: Any = run.config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    frames, size = setting("clip", "frames"), setting("clip", "size")
    rates = sorted(r for r in (number(record, "samples_per_second") for record in run.train) if r is not None)
    found = [
        ("backbone", setting("model", "backbone")),
        ("clips", f"{frames} frames of {size} px" if frames and size else None),
        ("prototypes", setting("objective", "prototypes")),
        ("flow", setting("flow", "algorithm")),
        ("global batch", setting("optim", "global_batch")),
        ("speed (median)", f"{rates[len(rates) // 2]:.3g} samples/s" if rates else None),
        ("samples seen", count(run.train[-1]["samples"]) if run.train else None),
    ]
    return [(label, str(value)) for label, value in found if value is not None]


def _table(results: Record | None) -> Table | None:
    rows = _rows(results)
    columns = sorted({key for row in rows for key in row if _k(key)}, key=_k)
    if not rows or not columns:
        return None
    shares = [[number(row, column) for column in columns] for row in rows]
    by_column = [_cells([share[i] for share in shares]) for i in range(len(columns))]
    chance = number(results or {}, "chance")
    made = []
    for i, row in enumerate(rows):
        cells = [column[i] for column in by_column]
        first = number(row, "R@1")
        name = str(row.get("name", "?"))
        made.append(Row(name, _stage_colour(name), cells, first / chance if first is not None and chance else None))
    return Table(columns, made, chance)


def _rows(results: Record | None) -> list[Record]:
    rows = (results or {}).get("rows")
    return _records(rows)


def _cells(shares: Sequence[float | None]) -> list[Cell]:
    """Cells of values to compare; the highest is marked, unless all are equal."""
    known = [share for share in shares if share is not None]
    best = max(known) if len(set(known)) > 1 else None
    return [Cell(share, share is not None and share == best) for share in shares]


def _records(value: Any) -> list[Record]:
    """The objects of a JSON list; none of anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _k(column: object) -> int:
    """10 of "R@10"; 0 of any other name."""
    text = str(column)
    return int(text[2:]) if text.startswith("R@") and text[2:].isdigit() else 0


def _highlights(run: RunFolder, table: Table | None) -> list[tuple[str, str]]:
    """(figure, what it is): recall of the last RGB stage, against the first one and chance, and the time taken."""
    found: list[tuple[str, str]] = []
    recall = {str(row.get("name")): number(row, "R@1") for row in _rows(run.results)}
    last = ([name for name in recall if name.startswith("RGB-") and name != "RGB-1"] or [""])[-1]
    share, before = recall.get(last), recall.get("RGB-1")
    if share is not None:
        found.append((f"{100 * share:.1f} %", f"R@1 of {last}, pictures alone"))
        if before:
            found.append((f"{share / before:.1f} x", "the recall of RGB-1, before the streams met"))
        if table and table.chance:
            found.append((f"{share / table.chance:.1f} x", f"chance ({100 * table.chance:.1f} %)"))
    seconds = number(run.results or {}, "seconds")
    if seconds is not None:
        found.append((duration(seconds), "start to finish"))
    return found


def duration(seconds: float) -> str:
    """3725 as 1 h 2 min, 340 as 5 min 40 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _stage_colour(name: str) -> str:
    stream, _, number_ = name.partition("-")
    colours = STREAM_COLOURS.get(stream.lower())
    if colours and number_.isdigit() and int(number_) >= 1:
        return colours[min(int(number_), len(colours)) - 1]
    return {"r+f": "#6d4a9c"}.get(name.lower(), "#8a8f98")


def _stages(run: RunFolder) -> list[str]:
    """Names of the stages in the order in which they were trained."""
    return list(dict.fromkeys(str(record.get("stage", "?")) for record in run.train + run.monitor))


def _points(records: Sequence[Record], key: str, stage: str) -> list[tuple[float, float]]:
    values = [(record["samples"], number(record, key)) for record in records if str(record.get("stage", "?")) == stage]
    return [(float(x), y) for x, y in values if y is not None]


def _charts(run: RunFolder) -> list[Chart | None]:
    stages = _stages(run)
    bands, start = [], 0.0
    for stage in stages:
        ends = [x for x, _ in _points(run.train, "samples", stage)]
        if ends:
            bands.append((start, max(ends), stage))
            start = max(ends)

    def curves(key: str) -> list[Curve]:
        return [Curve(stage, _stage_colour(stage), _points(run.train, key, stage)) for stage in stages]

    uniform = _uniform_levels(run, bands)
    chance = number(run.results or {}, "chance")
    recall = [
        Curve(f"{stage} {key}", _stage_colour(stage), _points(run.monitor, key, stage), dots=True, dashed=key != "R@1")
        for key in ("R@1", "R@5")
        for stage in stages
    ]
    return [
        chart("Loss", curves("loss"), levels=uniform, bands=bands, note="At ln K every prototype is predicted alike."),
        chart(
            "Retrieval recall during training",
            recall,
            levels=[Level(chance, "chance, R@1")] if chance is not None else [],
            bands=bands,
            percent=True,
            note="Measured on a small part of the data while training.",
        ),
        chart(
            "Assignment entropy (nats)",
            curves("entropy"),
            levels=uniform,
            bands=bands,
            note="0: each clip has one prototype. ln K: assignments say nothing.",
        ),
        chart(
            "Prototypes in use",
            curves("prototypes_used"),
            bands=bands,
            percent=True,
            note="Share of prototypes that are some clip's nearest. A fall towards 0 is collapse.",
        ),
    ]


def _uniform_levels(run: RunFolder, bands: Sequence[tuple[float, float, str]]) -> list[Level]:
    """ln K: one line where all stages share it, else one a stage."""
    known = {stage: [y for _, y in _points(run.train, "ln_k", stage)] for _, _, stage in bands}
    values = {round(ys[-1], 4) for ys in known.values() if ys}
    if len(values) == 1:
        value = values.pop()
        return [Level(value, f"ln K = {value:.2f}")]
    return [Level(known[stage][-1], "ln K", x0, x1) for x0, x1, stage in bands if known[stage]]


def _gallery(neighbours: Record | None, thumbnails: Thumbnails, queries: int) -> Gallery | None:
    """The first `queries` queries of the first feature, each with its neighbours under every feature (two at most)."""
    tables = {name: _records(entries) for name, entries in (neighbours or {}).items() if _records(entries)}
    if not tables:
        return None
    features = list(tables)[:1] + list(tables)[1:][-1:]  # the first and the last: before and after
    by_query = {name: {_video(entry.get("query")): entry for entry in tables[name]} for name in features}
    asked = list(by_query[features[0]].items())
    answers, right, told = [], dict.fromkeys(features, 0), dict.fromkeys(features, 0)
    for video, entry in asked[:queries]:
        label = _label(entry.get("query"))
        columns = []
        for name in features:
            found = _records(by_query[name].get(video, {}).get("neighbours"))
            column = [_shown(item, label, thumbnails) for item in found[:NEIGHBOURS]]
            right[name] += sum(item.right is True for item in column)
            told[name] += sum(item.right is not None for item in column)
            columns.append(column)
        answers.append(Answer(Shown(label or "", thumbnails.uri(video)), columns))
    totals = [(name, f"{right[name]} of {told[name]} right" if told[name] else "unlabelled") for name in features]
    left = len(asked) - len(answers)
    return Gallery(totals, answers, f"{len(answers)} of {len(asked)} queries are shown." if left else "")


def _video(item: Any) -> str:
    return str(item.get("video", "")) if isinstance(item, dict) else ""


def _label(item: Any) -> str | None:
    label = item.get("label") if isinstance(item, dict) else None
    return None if label is None else str(label)


def _shown(item: Record, wanted: str | None, thumbnails: Thumbnails) -> Shown:
    label = _label(item)
    right = None if label is None or wanted is None else label == wanted
    return Shown(label or "", thumbnails.uri(_video(item)), number(item, "similarity"), right)


def _compare(runs: Sequence[RunFolder], names: Sequence[str]) -> Comparison:
    colours = [RUN_COLOURS[i % len(RUN_COLOURS)] for i in range(len(runs))]
    recalls: list[dict[str, float | None]] = [
        {"chance": number(run.results or {}, "chance")}
        | {str(row.get("name", "?")): number(row, "R@1") for row in _rows(run.results)}
        for run in runs
    ]
    rows = []
    for feature in dict.fromkeys(name for recall in recalls for name in recall):
        shares = [recall.get(feature) for recall in recalls]
        if any(share is not None for share in shares):
            rows.append((feature, _cells(shares)))

    def overlaid(pick: Callable[[RunFolder], list[Record]], key: str, dots: bool) -> list[Curve]:
        return [
            Curve(name, colour, _points(pick(run), key, stage), dots=dots)
            for run, name, colour in zip(runs, names, colours, strict=True)
            for stage in _stages(run)
        ]

    charts = [
        chart("Loss", overlaid(lambda run: run.train, "loss", False), note="A gap or jump is a new stage."),
        chart(
            "Recall R@1 during training",
            overlaid(lambda run: run.monitor, "R@1", True),
            percent=True,
            note="Small part of the data.",
        ),
    ]
    return Comparison(list(zip(names, colours, strict=True)), rows, [c for c in charts if c is not None])
