"""The page: run folders -> tables, charts and gallery -> HTML through one template that escapes every text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicc_ray.config import PLACES, Experiment, Stream, flatten, stream_titled
from vicc_ray.errors import UserError
from vicc_ray.evaluation.results import (
    PROTOCOLS,
    Evaluation,
    Spread,
    figures,
    name_of_data,
    row_name,
    summarise,
    title_of_protocol,
    with_videos,
)
from vicc_ray.report.charts import Chart, Curve, Level, chart, confusions, count, points_each
from vicc_ray.report.folder import Record, RunFolder, number, read_folder
from vicc_ray.report.pages import attribute, render
from vicc_ray.report.plots import palette_style, scripts, tone
from vicc_ray.report.reproduction import reproduction
from vicc_ray.report.thumbnails import Thumbnail, Thumbnails
from vicc_ray.runs.records import write_text

QUERIES, NEIGHBOURS = 8, 5  # shown a run
MOST_OPEN = 8  # runs whose sections stand open, and whose neighbours are shown: each of these is a video to decode
MOST_COLUMNS = 5  # runs beyond which a table that compares them has a row a run, not a column
MOST_CELLS = 250_000  # of a page's confusion matrices, 11 bytes each: six of each of four runs on UCF101's 101 classes
GALLERY_BYTES = 3_500_000  # of thumbnails on the page, over all runs
STREAM_COLOURS: dict[Stream, tuple[str, str, str]] = {  # light before, dark after the cross-stream stage
    "rgb": ("#5a93c7", "#1c5d99", "#0b3558"),
    "flow": ("#bf7d22", "#945306", "#6f3d00"),
    "difference": ("#4f9a62", "#2f7a3c", "#1c4a25"),
    "lucas_kanade": ("#a8669a", "#8e3b72", "#5e2049"),
}
RUN_COLOURS = ("#1c5d99", "#bf7d22", "#2f7a3c", "#8e3b72", "#5b5f97", "#a23b3b", "#2a7f86", "#6b6b6b")


@dataclass(frozen=True)
class Cell:
    """One recall of a table; `share` in 0..1, or None where it was not measured. In tables of settings `text` in its place.

    best: the highest of those beside it; of a setting, another value than the first run's.
    """

    share: float | None
    best: bool = False
    text: str = ""


@dataclass(frozen=True)
class Row:
    """One encoder's line of a table; `times_chance`: its first figure over that of a guess."""

    name: str
    colour: str
    cells: list[Cell]
    times_chance: float | None


@dataclass(frozen=True)
class Table:
    """One evaluation: a row a feature, a column a figure, `chance` that of the first one.

    classes: the first figure of each class, a cell a feature of `class_columns`.
    confusions: matrices, which `reads` tells how to read.
    """

    title: str
    columns: list[str]
    rows: list[Row]
    chance: float
    notes: list[str]
    class_columns: list[str]
    classes: list[tuple[str, list[Cell]]]
    confusions: list[Chart]
    reads: str


@dataclass(frozen=True)
class SpreadTable:
    """Mean and standard deviation of figures that several folds or seeds gave, in percent."""

    columns: list[str]
    rows: list[tuple[str, int, list[str]]]  # what it is, count, a cell a column


@dataclass(frozen=True)
class Shown:
    """A video of the gallery; `right`: whether it is of the query's class, None where a label is missing."""

    label: str
    thumbnail: Thumbnail | None
    similarity: float | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Answer:
    """One query with its neighbours under each feature, in the order of `Gallery.features`."""

    query: Shown
    neighbours: list[list[Shown]]


@dataclass(frozen=True)
class Gallery:
    """Queries with their neighbours under each of some features."""

    features: list[tuple[str, str]]  # name, "7 of 40 right"
    answers: list[Answer]
    cut: str  # what was left out, or ""


@dataclass(frozen=True)
class Section:
    """All that the page shows of one run; `line` sums it up where its section is closed."""

    name: str
    line: str
    facts: list[tuple[str, str]]
    highlights: list[tuple[str, str]]
    tables: list[Table]
    charts: list[Chart]
    gallery: Gallery | None
    config_text: str
    notes: list[str]


@dataclass(frozen=True)
class Head:
    """What a row or a column is of; runs have a colour."""

    text: str
    colour: str = ""


@dataclass(frozen=True)
class Grid:
    """A table that compares runs, a column a run where these are few, else a row a run."""

    corner: str
    columns: list[Head]
    rows: list[tuple[Head, list[Cell]]]


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other: the first figure of each feature in each evaluation, settings that differ, overlaid curves.

    same: how many settings all runs have in common.
    """

    figures: Grid | None
    settings: Grid | None
    same: int
    charts: list[Chart]


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write one self-contained HTML page about the runs in `run_dirs` to `out`; several are compared first.

    Reads config.yaml (required), metrics.jsonl, evaluations, neighbours.json and the videos named there; what is
    missing or unreadable is said on the page. Raises UserError for no run or for a folder without config.yaml.
    """
    if not run_dirs:
        raise UserError("report: no run folder was given; name at least one, e.g. runs/quickstart")
    runs = [read_folder(Path(folder)) for folder in run_dirs]
    queries = max(2, QUERIES // len(runs)) if len(runs) <= MOST_OPEN else 0
    names = _distinct(runs)
    most = points_each(sum(len(_stages(run)) * (2 + len(_further_figures(run))) for run in runs))
    with closing(Thumbnails(GALLERY_BYTES // (len(runs) * max(queries, 1) * (1 + 2 * NEIGHBOURS)))) as thumbnails:
        room = MOST_CELLS // max(sum(len(run.evaluations) for run in runs), 1)
        sections = [_section(run, name, thumbnails, queries, most, room) for run, name in zip(runs, names, strict=True)]
    comparison = _compare(runs, names) if len(runs) > 1 else None
    drawn = comparison or any(one.charts or any(table.confusions for table in one.tables) for one in sections)
    gallery = any(one.gallery for one in sections)
    facts = {
        "title": names[0] if len(runs) == 1 else f"{len(runs)} runs",
        "sections": sections,
        "comparison": comparison,
        "spreads": _spreads([one for run in runs for one in run.evaluations]),
        "reproduction": reproduction(run_dirs),
        "folded": len(runs) > MOST_OPEN,
        "palette": palette_style(),
        "scripts": scripts(figures=bool(drawn), thumbnails=gallery),
    }
    filters = {"percent": lambda share: f"{100 * share:.1f}", "tone": tone, "attribute": attribute}
    write_text(out, render(Path(__file__).parent / "template.html.j2", facts, filters))


def _distinct(runs: Sequence[RunFolder]) -> list[str]:
    """Names of the runs, numbered where two folders share one."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _section(run: RunFolder, name: str, thumbnails: Thumbnails, queries: int, most: int, room: int) -> Section:
    """`most` points a curve, `room` for cells of each evaluation's confusion matrices."""
    order = sorted(run.evaluations, key=lambda one: (_rank(one), one.data, one.fold or 0))
    return Section(
        name=name,
        line="; ".join(" ".join(one) for one in _highlights(run)[:1]),
        facts=_facts(run),
        highlights=_highlights(run),
        tables=[_table(one, order, room) for one in order],
        charts=[made for made in _charts(run, most) if made is not None],
        gallery=_gallery(run.neighbours, thumbnails, queries) if queries else None,
        config_text=run.config_text,
        notes=list(run.notes),
    )


def _rank(evaluation: Evaluation) -> int:
    """The place of its protocol on the page."""
    return list(PROTOCOLS).index(evaluation.protocol) if evaluation.protocol in PROTOCOLS else len(PROTOCOLS)


def _retrieval(run: RunFolder) -> Evaluation | None:
    """The newest retrieval of a run, `exact` before `reference`."""
    return next((one for kind in ("retrieval", "reference") for one in run.evaluations if one.protocol == kind), None)


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """What the run was, from its settings."""
    settings = run.experiment
    rates = sorted(r for r in (number(record, "samples_per_second") for record in run.train) if r is not None)
    found: list[tuple[str, Any]] = []
    if settings is not None:
        batches = dict.fromkeys(str(kind.global_batch) for kind in (settings.schedule.single, settings.schedule.cross))
        found = [
            ("backbone", settings.model.backbone),
            ("clips", f"{settings.clip.frames} frames of {settings.clip.size} px"),
            ("objective", settings.objective.name if settings.objective.name != "prototypes" else None),
            ("prototypes", _counts(settings) if settings.objective.name == "prototypes" else None),
            ("motion", settings.flow.algorithm if settings.clip.motion == "flow" else settings.clip.motion),
            ("global batch", " and ".join(batches)),
        ]
    found += [
        ("speed (median)", f"{rates[len(rates) // 2]:.3g} samples/s" if rates else None),
        ("samples seen", count(run.train[-1]["samples"]) if run.train else None),
    ]
    return [(label, str(value)) for label, value in found if value is not None]


def _counts(settings: Experiment) -> str:
    """Prototypes of each head; of both streams where they differ."""
    heads = dict.fromkeys(" + ".join(map(str, settings.objective.heads(stream))) for stream in settings.streams)
    return " and ".join(heads)


def _table(evaluation: Evaluation, among: Sequence[Evaluation], room: int) -> Table:
    rows = evaluation.rows
    shares = [figures(row) for row in rows]
    columns = list(dict.fromkeys(key for share in shares for key in share))
    by_column = [_cells([share.get(column) for share in shares]) for column in columns]
    chance = evaluation.chance
    made = []
    for i, (row, share) in enumerate(zip(rows, shares, strict=True)):
        cells = [column[i] for column in by_column]
        first = share.get(columns[0]) if columns else None
        times = first / chance if first is not None and chance > 0 else None
        made.append(Row(row_name(row), _stage_colour(str(row["name"])), cells, times))
    notes = list(evaluation.notes)
    if evaluation.refused:
        video, reason = evaluation.refused[0]
        notes.append(f"{len(evaluation.refused)} videos left out (the first: {video}: {reason})")
    title, classes = _title(evaluation, among), _classes(evaluation, columns[:1])
    return Table(title, columns, made, chance, notes, *classes, *_confusions(evaluation, room))


def _confusions(evaluation: Evaluation, room: int) -> tuple[list[Chart], str]:
    """As many matrices as there is room for their cells, the last ones of the table, and how to read them."""
    found, reads = "classified as", "A row a true class, a column the predicted class"
    if _retrieves(evaluation):
        found, reads = "next to", "A row a query's class, a column the class of its nearest neighbour"
    kept = dict(evaluation.confusion)
    for name in evaluation.confusion:
        if sum(len(one["labels"]) ** 2 for one in kept.values()) > room:
            del kept[name]
    reads += "; the stronger the colour, the larger the share of the row. Point at a square to read it."
    if left := [name for name in evaluation.confusion if name not in kept]:
        reads += (
            f" Left out, as the page would be too large: {', '.join(left)} (all are in the run's folder `evaluations`)."
        )
    return confusions(kept, found), reads


def _retrieves(evaluation: Evaluation) -> bool:
    return evaluation.protocol in ("retrieval", "reference")


def _title(one: Evaluation, among: Sequence[Evaluation]) -> str:
    named = name_of_data(one, among)
    sides = (
        f"{one.test} queries in {one.train} videos" if _retrieves(one) else f"{one.test} videos, learnt on {one.train}"
    )
    trial = ", at trial sizes" if one.scale != "full" else ""
    return f"{title_of_protocol(one.protocol, one.title)} on {named}: {sides}{trial}"


def _classes(evaluation: Evaluation, first: Sequence[str]) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    features = [name for name in evaluation.classes if first]
    labels = sorted({label for name in features for label in evaluation.classes[name]})
    found = {name: {label: figures(own) for label, own in evaluation.classes[name].items()} for name in features}
    return features, [
        (label, _cells([found[name].get(label, {}).get(first[0]) for name in features])) for label in labels
    ]


def _spreads(evaluations: Sequence[Evaluation]) -> SpreadTable | None:
    """Of what was measured more than once; None where nothing was."""
    several = [one for one in summarise(evaluations) if one.deviation is not None]
    if not several:
        return None
    columns = list(dict.fromkeys(one.metric for one in several))
    rows: dict[tuple[str, ...], dict[str, Spread]] = {}
    for one in several:
        settings = tuple(f"{key} {value}" for key, value in sorted(one.settings.items()))
        key = (one.protocol, one.data, one.videos, one.encoder, one.train_on, one.test_on, one.scale, *settings)
        rows.setdefault(key, {})[one.metric] = one
    made = []
    for (protocol, data, videos, encoder, *_), found in rows.items():
        cells = [_mean_and_deviation(found.get(column)) for column in columns]
        count = max(one.count for one in found.values())
        named = with_videos(data, videos, {one.videos for one in several if one.data == data})
        made.append((f"{encoder}, {title_of_protocol(protocol).lower()} on {named}", count, cells))
    return SpreadTable(columns, made)


def _mean_and_deviation(spread: Spread | None) -> str:
    if spread is None or spread.deviation is None:
        return ""
    return f"{100 * spread.mean:.1f} ± {100 * spread.deviation:.1f}"


def _cells(shares: Sequence[float | None]) -> list[Cell]:
    """Cells of values to compare; the highest is marked, unless all are equal."""
    known = [share for share in shares if share is not None]
    best = max(known) if len(set(known)) > 1 else None
    return [Cell(share, share is not None and share == best) for share in shares]


def _records(value: Any) -> list[Record]:
    """The objects of a JSON list; none of anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _highlights(run: RunFolder) -> list[tuple[str, str]]:
    """(figure, what it is): recall of the last RGB stage, against the first one and chance, and the time taken."""
    found: list[tuple[str, str]] = []
    newest = _retrieval(run)
    recall = {str(row["name"]): figures(row).get("R@1") for row in newest.rows} if newest else {}
    last = ([name for name in recall if name.startswith("RGB-") and name != "RGB-1"] or [""])[-1]
    share, before = recall.get(last), recall.get("RGB-1")
    if newest and share is not None:
        where = f" on {newest.data}" if len({one.data for one in run.evaluations}) > 1 else ""
        found.append((f"{100 * share:.1f} %", f"R@1 of {last}{where}, pictures alone"))
        if before:
            found.append((f"{share / before:.1f} x", "the recall of RGB-1, before the streams met"))
        if newest.chance > 0:
            found.append((f"{share / newest.chance:.1f} x", f"chance ({100 * newest.chance:.1f} %)"))
    times = [time for time in (number(record, "time") for record in run.train) if time is not None]
    if len(times) > 1:
        found.append((duration(max(times) - min(times)), "from the first step to the last"))
    return found


def duration(seconds: float) -> str:
    """3725 as 1 h 2 min, 340 as 5 min 40 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _stage_colour(name: str) -> str:
    title, _, level = name.partition("-")
    stream = stream_titled(title)
    if stream is not None and level.isdigit() and int(level) >= 1:
        colours = STREAM_COLOURS[stream]
        return colours[min(int(level), len(colours)) - 1]
    return "#6d4a9c" if "+" in name else "#7d838c"


def _stages(run: RunFolder) -> list[str]:
    """Names of the stages in the order in which they were trained."""
    return list(dict.fromkeys(str(record.get("stage", "?")) for record in run.train + run.monitor))


def _points(records: Sequence[Record], key: str, stage: str) -> list[tuple[float, float]]:
    values = [(record["samples"], number(record, key)) for record in records if str(record.get("stage", "?")) == stage]
    return [(float(x), y) for x, y in values if y is not None]


def _charts(run: RunFolder, most: int) -> list[Chart | None]:
    stages = _stages(run)
    bands, start = [], 0.0
    for stage in stages:
        ends = [x for x, _ in _points(run.train, "samples", stage)]
        if ends:
            bands.append((start, max(ends), stage))
            start = max(ends)

    def curves(key: str) -> list[Curve]:
        return [Curve(stage, _stage_colour(stage), _points(run.train, key, stage)) for stage in stages]

    newest = _retrieval(run)
    recall = [
        Curve(f"{stage} {key}", _stage_colour(stage), _points(run.monitor, key, stage), dots=True, dashed=key != "R@1")
        for key in ("R@1", "R@5")
        for stage in stages
    ]
    levels = _uniform_levels(run, bands)
    loss_note = "At ln K every prototype is predicted alike." if levels else ""
    return [
        chart("Loss", curves("loss"), levels=levels, bands=bands, note=loss_note, most=most),
        chart(
            "Retrieval recall during training",
            recall,
            levels=[Level(newest.chance, "chance, R@1")] if newest else [],
            bands=bands,
            percent=True,
            note="Measured on a small part of the data while training.",
            most=most,
        ),
        *(
            chart(
                FIGURES.get(name, (name.replace("_", " "), ""))[0],
                curves(name),
                levels=levels if name == "entropy" else (),
                bands=bands,
                percent=name in SHARES,
                note=FIGURES.get(name, ("", ""))[1],
                most=most,
            )
            for name in _further_figures(run)
        ),
    ]


# Figures of the records besides the loss: title and what they say. One of another objective is drawn under its own name.
FIGURES = {
    "entropy": ("Assignment entropy (nats)", "0: each clip has one prototype. ln K: assignments say nothing."),
    "prototypes_used": (
        "Prototypes in use",
        "Share of prototypes that are some clip's nearest. A fall towards 0 is collapse.",
    ),
    "accuracy": ("Training accuracy", ""),
}
SHARES = {"prototypes_used", "accuracy"}
NO_CHART = {
    "loss",
    "ln_k",
    "cosine",
    "rows",
    "lr",
    "samples",
    "samples_per_second",
    "data_wait",
    "step",
    "time",
    "workers",
}


def _further_figures(run: RunFolder) -> list[str]:
    """Names of figures that the training records hold and that have a chart of their own, in their order."""
    names = dict.fromkeys(name for record in run.train for name in record if number(record, name) is not None)
    return [name for name in names if name not in NO_CHART]


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
    entries = list(by_query[features[0]].items())
    answers, right, labelled = [], dict.fromkeys(features, 0), dict.fromkeys(features, 0)
    for video, entry in entries[:queries]:
        label = _label(entry.get("query"))
        columns = []
        for name in features:
            found = _records(by_query[name].get(video, {}).get("neighbours"))
            column = [_shown(item, label, thumbnails) for item in found[:NEIGHBOURS]]
            right[name] += sum(item.right is True for item in column)
            labelled[name] += sum(item.right is not None for item in column)
            columns.append(column)
        answers.append(Answer(Shown(label or "", thumbnails.both(video)), columns))
    totals = [
        (name, f"{right[name]} of {labelled[name]} right" if labelled[name] else "unlabelled") for name in features
    ]
    left = len(entries) - len(answers)
    return Gallery(totals, answers, f"{len(answers)} of {len(entries)} queries are shown." if left else "")


def _video(item: Any) -> str:
    return str(item.get("video", "")) if isinstance(item, dict) else ""


def _label(item: Any) -> str | None:
    label = item.get("label") if isinstance(item, dict) else None
    return None if label is None else str(label)


def _shown(item: Record, wanted: str | None, thumbnails: Thumbnails) -> Shown:
    label = _label(item)
    right = None if label is None or wanted is None else label == wanted
    return Shown(label or "", thumbnails.both(_video(item)), number(item, "similarity"), right)


def _compare(runs: Sequence[RunFolder], names: Sequence[str]) -> Comparison:
    heads = [Head(name, RUN_COLOURS[number % len(RUN_COLOURS)]) for number, name in enumerate(names)]
    settings, same = _settings_that_differ(runs, heads)
    further = dict.fromkeys(name for run in runs for name in _further_figures(run))
    titles = {name: FIGURES.get(name, (name.replace("_", " "), ""))[0] for name in further}
    charts = [
        _overlaid(runs, heads, "loss", "Loss", note="A gap or jump is a new stage."),
        _overlaid(runs, heads, "R@1", "Recall R@1 during training", percent=True, note="Small part of the data."),
        *(_overlaid(runs, heads, name, title, percent=name in SHARES) for name, title in titles.items()),
    ]
    return Comparison(_first_figures_beside(runs, heads), settings, same, [c for c in charts if c is not None])


def _first_figures_beside(runs: Sequence[RunFolder], heads: Sequence[Head]) -> Grid | None:
    """The first figure of each feature in each evaluation; None where nothing was evaluated."""
    measured = [{_key(one): one for one in reversed(run.evaluations)} for run in runs]
    keys = sorted(
        {key: one for found in measured for key, one in found.items()}.items(), key=lambda item: _rank(item[1])
    )
    lines: list[tuple[Head, list[Cell]]] = []
    figure = ""
    for key, one in keys:
        firsts = [_first_figures(found.get(key)) for found in measured]
        figure = figure or next((name for name, _ in firsts if name), "")
        named = name_of_data(one, [other for _, other in keys])
        labelled = f", {title_of_protocol(one.protocol, one.title).lower()} on {named}" if len(keys) > 1 else ""
        for feature in dict.fromkeys(name for _, shares in firsts for name in shares):
            cells = _cells([shares.get(feature) for _, shares in firsts])
            lines.append((Head(f"{feature}{labelled}"), cells))
    return _oriented(f"{figure if len(keys) == 1 else 'first figure of each'}, %", heads, lines) if lines else None


def _settings_that_differ(runs: Sequence[RunFolder], heads: Sequence[Head]) -> tuple[Grid | None, int]:
    """The settings that are not the same in all runs, and how many are. Names and places of files say nothing of a run."""
    known = [flatten(run.experiment.model_dump(mode="json")) if run.experiment else None for run in runs]
    read = [settings for settings in known if settings is not None]
    keys = [key for key in dict.fromkeys(key for one in read for key in one) if key not in ("name", *PLACES)]
    differing = [key for key in keys if len({str(one.get(key)) for one in read}) > 1]
    lines = []
    for key in differing:
        texts = ["not known" if one is None else _setting(one.get(key)) for one in known]
        lines.append((Head(key), [Cell(None, text != texts[0], text) for text in texts]))
    return (_oriented("setting", heads, lines) if lines else None), len(keys) - len(differing)


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _oriented(corner: str, heads: Sequence[Head], lines: list[tuple[Head, list[Cell]]]) -> Grid:
    """Runs as columns where they are few, else as rows: a page is longer than it is wide."""
    if len(heads) <= MOST_COLUMNS:
        return Grid(corner, list(heads), lines)
    rows = [(head, [cells[place] for _, cells in lines]) for place, head in enumerate(heads)]
    return Grid("run", [Head(f"{head.text}, %" if corner.endswith("%") else head.text) for head, _ in lines], rows)


def _overlaid(
    runs: Sequence[RunFolder], heads: Sequence[Head], key: str, title: str, *, percent: bool = False, note: str = ""
) -> Chart | None:
    """A figure's curves of all runs over each other, a stage after the other."""
    curves = [
        Curve(head.text, head.colour, points, dots=key == "R@1")
        for run, head in zip(runs, heads, strict=True)
        for stage in _stages(run)
        if (points := _points(run.monitor if key == "R@1" else run.train, key, stage))
    ]
    return chart(title, curves, percent=percent, note=note, most=points_each(len(curves), 24_000))


def _key(one: Evaluation) -> tuple[str, ...]:
    return one.protocol, one.data, str(one.fold), one.train_on, one.test_on, one.scale, one.videos


def _first_figures(evaluation: Evaluation | None) -> tuple[str, dict[str, float]]:
    """The name of an evaluation's first figure, and what each feature has of it, chance first."""
    if evaluation is None:
        return "", {}
    shares = {str(row["name"]): figures(row) for row in evaluation.rows}
    name = next((key for share in shares.values() for key in share), "")
    found = {feature: share[name] for feature, share in shares.items() if name in share}
    return name, {"chance": evaluation.chance} | found
