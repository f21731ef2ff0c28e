"""What to index: which videos a folder, a table or a list names, with labels, groups and splits; then probing them.

Splits are names. The system trains on `train`, which is the gallery of retrieval too, and queries with `query`; a data
set may use others and say so in the experiment.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, get_args

from vicc_ray.data.guarded import Failure, run_guarded
from vicc_ray.data.manifest import Manifest, VideoRow, probe
from vicc_ray.errors import UserError

Layout = Literal["auto", "folders", "flat", "table", "list", "video"]

VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpeg", "mpg", "mts", "ogv", "ts", "vob", "webm", "wmv"),
    )
)
TABLE_EXTENSIONS = frozenset({".csv", ".parquet"})
LIST_EXTENSIONS = frozenset({".txt", ".lst"})
_KNOWN_COLUMNS = ("video", "label", "split", "group")
# UCF101's names, e.g. v_BenchPress_g01_c04.avi: clips of one group are cut from one source video.
GROUPED_NAME = re.compile(r"v_.+_(g\d+)_c\d+")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A video to be indexed: absolute path or URI, and what is known of it before it is opened."""

    path: str
    label: str | None = None
    split: str = "train"
    group: str | None = None


class Found(list[Candidate]):
    """The candidates in path order. `ignored` counts other files by extension; `layout` is the one that was used."""

    def __init__(self, candidates: Iterable[Candidate], layout: Layout, ignored: Counter[str] | None = None) -> None:
        super().__init__(candidates)
        self.layout: Layout = layout
        self.ignored: Counter[str] = ignored or Counter()


def scan(source: str | Path, layout: str = "auto", split_rule: str | None = None) -> Found:
    """Name the videos of `source` without opening them.

    `layout`: `folders` (a folder of class folders: label = folder), `flat` (a folder of videos: no labels), `table`
    (CSV or Parquet with columns video[,label,split,group]), `list` (a text file, one path a line), `video` (one file),
    or `auto`. Relative paths in a table or list are relative to that file. `split_rule`: see `assign_splits`.

    Raises `UserError` where the source does not exist, is of another layout, or names no video.
    """
    if layout not in get_args(Layout):
        raise UserError(f"layout '{layout}' is not known; allowed: {', '.join(get_args(Layout))}")
    root = Path(os.path.abspath(source))
    if not root.exists():
        raise UserError(f"{source}: no such file or folder")
    kind = _guess(root) if layout == "auto" else layout
    if root.is_dir() != (kind in ("folders", "flat")):
        raise UserError(f"{source}: layout '{kind}' does not fit {'a folder' if root.is_dir() else 'a single file'}")
    if kind in ("folders", "flat"):
        found = _scan_folder(root, kind == "folders")
    elif kind == "table":
        found = Found(_read_table(root), "table")
    elif kind == "list":
        found = Found(_read_list(root), "list")
    else:
        found = Found([_candidate(root, None)], "video")
    if not found:
        others = ", ".join(f"{count} {name}" for name, count in found.ignored.most_common(5))
        raise UserError(f"{source}: no video in it" + (f" (only {others})" if others else ""))
    unique = _deduplicate(found)
    return Found(assign_splits(unique, split_rule) if split_rule else unique, found.layout, found.ignored)


def _guess(root: Path) -> Layout:
    if root.is_dir():
        nested = any(path.parent != root for path, is_video in _walk(root) if is_video)
        return "folders" if nested else "flat"
    extension = root.suffix.lower()
    if extension in TABLE_EXTENSIONS:
        return "table"
    return "list" if extension in LIST_EXTENSIONS else "video"


def _walk(root: Path) -> Iterator[tuple[Path, bool]]:
    """Every file below `root` that is not hidden, and whether its name is a video's. Links are followed once."""
    seen: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        names[:] = [] if real in seen else sorted(name for name in names if not name.startswith("."))
        files = [] if real in seen else sorted(name for name in files if not name.startswith("."))
        seen.add(real)
        for name in files:
            yield Path(folder, name), Path(name).suffix.lower() in VIDEO_EXTENSIONS


def _scan_folder(root: Path, labelled: bool) -> Found:
    candidates, ignored = [], Counter[str]()
    for path, is_video in _walk(root):
        if not is_video:
            ignored[path.suffix.lower() or "no extension"] += 1
            continue
        inner = path.relative_to(root).parts
        candidates.append(_candidate(path, inner[0] if labelled and len(inner) > 1 else None))
    return Found(sorted(candidates, key=lambda c: c.path), "folders" if labelled else "flat", ignored)


def _candidate(path: Path, label: str | None) -> Candidate:
    named = GROUPED_NAME.fullmatch(path.stem)
    return Candidate(str(path), label, "train", named.group(1) if named else None)


def _read_list(path: Path) -> list[Candidate]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 text list of videos: {error}") from error
    return [replace(_candidate(Path(line), None), path=_beside(path, line)) for line in lines if line.strip()]


def _read_table(path: Path) -> list[Candidate]:
    """Rows of a CSV or Parquet file; empty cells are as good as absent ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as a table: {' '.join(str(error).split())}") from error
    if "video" not in table.column_names:
        have = ", ".join(table.column_names)
        raise UserError(f"{path}: no column 'video'; it has: {have}. Known: video, label, split, group")
    columns = {name: table.column(name).to_pylist() for name in _KNOWN_COLUMNS if name in table.column_names}
    candidates = []
    for number in range(table.num_rows):
        cells = {name: str(values[number]).strip() for name, values in columns.items() if values[number] is not None}
        if not cells.get("video"):
            raise UserError(f"{path}: row {number + 1} names no video")
        named = _candidate(Path(cells["video"]), cells.get("label") or None)
        group = cells.get("group") or named.group
        candidates.append(Candidate(_beside(path, cells["video"]), named.label, cells.get("split") or "train", group))
    return candidates


def _read_csv(path: Path) -> Any:
    """All known columns as text, so that a label `007` or a group `1` stays what it is."""
    import pyarrow as pa
    from pyarrow import csv

    text = csv.ConvertOptions(column_types={name: pa.string() for name in _KNOWN_COLUMNS}, strings_can_be_null=False)
    return csv.read_csv(path, convert_options=text)


def _beside(file: Path, video: str) -> str:
    """A path named in `file`: absolute paths and URIs stay, others start from the file's folder."""
    return video if "://" in video else os.path.abspath(file.parent / video)


def _deduplicate(candidates: Iterable[Candidate]) -> list[Candidate]:
    """One candidate a path; `UserError` where the same path is given another label, split or group."""
    unique: dict[str, Candidate] = {}
    for candidate in candidates:
        known = unique.setdefault(candidate.path, candidate)
        if known != candidate:
            what = [name for name in ("label", "split", "group") if getattr(known, name) != getattr(candidate, name)]
            pairs = ", ".join(f"{name} '{getattr(known, name)}' and '{getattr(candidate, name)}'" for name in what)
            raise UserError(f"{candidate.path}: named twice, with {pairs}; a video has one of each")
    return list(unique.values())


SPLIT_SYNTAX = (
    "a split rule is 'random:FRACTION[:SEED]', or 'NAME: CONDITION; NAME: CONDITION' with the conditions "
    "'group odd', 'group even', 'group 1,4,7-9' and 'rest', e.g. 'train: group odd; query: group even'"
)


def assign_splits(candidates: Sequence[Candidate], rule: str) -> list[Candidate]:
    """Give every candidate its split by a rule, whatever split it had.

    `train: group odd; query: group even`: the first clause that holds names the split; a group's number is the last
    run of digits in its name (g07 -> 7). `random:0.2[:SEED]`: whole groups go to `query` until it has at least that
    share of the videos, in an order that only the seed and the groups' names decide; a video without a group is one.

    Raises `UserError` for a rule that cannot be read, or that leaves videos without a split, or a split without videos.
    """
    text = rule.strip()
    placed = _random_split(candidates, text) if text.startswith("random") else _clause_split(candidates, text)
    return [replace(candidate, split=split) for candidate, split in zip(candidates, placed, strict=True)]


def _random_split(candidates: Sequence[Candidate], rule: str) -> list[str]:
    parsed = re.fullmatch(r"random:\s*(\d*\.?\d+)(?::(\d+))?", rule)
    if not parsed or not 0 < float(parsed[1]) < 1:
        raise UserError(f"split rule '{rule}': {SPLIT_SYNTAX}; FRACTION lies between 0 and 1")
    fraction, seed = float(parsed[1]), int(parsed[2] or 0)
    groups = [candidate.group or os.path.basename(candidate.path) for candidate in candidates]
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: blake2b(f"{seed}:{group}".encode("utf-8", "surrogateescape")).digest())
    query: set[str] = set()
    for group in order:
        if sum(sizes[name] for name in query) < fraction * len(candidates):
            query.add(group)
    if len(query) == len(order):
        raise UserError(f"split rule '{rule}': {len(order)} group(s) cannot be parted without splitting one")
    return ["query" if group in query else "train" for group in groups]


def _clause_split(candidates: Sequence[Candidate], rule: str) -> list[str]:
    clauses = [_parse_clause(clause, rule) for clause in rule.split(";") if clause.strip()]
    if not clauses:
        raise UserError(f"split rule '{rule}': {SPLIT_SYNTAX}")
    placed = []
    for candidate in candidates:
        number = _group_number(candidate.group)
        name = next((name for name, holds in clauses if holds(number)), None)
        if name is None:
            group = f"group '{candidate.group}'" if candidate.group else "no group"
            raise UserError(
                f"split rule '{rule}': no clause holds for {candidate.path} ({group}); end it with 'NAME: rest'"
            )
        placed.append(name)
    empty = sorted({name for name, _ in clauses} - set(placed))
    if empty:
        raise UserError(f"split rule '{rule}': no video falls into '{', '.join(empty)}'")
    return placed


def _group_number(group: str | None) -> int | None:
    digits = re.findall(r"\d+", group or "")
    return int(digits[-1]) if digits else None


def _parse_clause(clause: str, rule: str) -> tuple[str, Callable[[int | None], bool]]:
    parsed = re.fullmatch(r"\s*([\w.-]+)\s*:\s*(?:group\s+(odd|even|[\d,\s-]+)|(rest))\s*", clause)
    if not parsed:
        raise UserError(f"split rule '{rule}': cannot read '{clause.strip()}'; {SPLIT_SYNTAX}")
    name, which, rest = parsed.groups()
    if rest:
        return name, lambda number: True
    if which in ("odd", "even"):
        return name, lambda number: number is not None and number % 2 == (which == "odd")
    numbers: set[int] = set()
    for part in which.split(","):
        bounds = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not bounds:
            raise UserError(f"split rule '{rule}': cannot read the groups '{which.strip()}'; {SPLIT_SYNTAX}")
        numbers.update(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1))
    return name, lambda number: number in numbers


def index(
    candidates: Sequence[Candidate],
    workers: int = 2,
    on_progress: Callable[[int, int, VideoRow], None] | None = None,
    timeout_seconds: float = 60.0,
) -> Manifest:
    """Probe every candidate in `workers` processes; rows keep the candidates' order.

    A video that cannot be read, crashes its decoder, or gives no answer in time becomes a refused row and costs nothing
    else. `on_progress(done, total, row)` is called in this process, once a video, in the order of finishing.
    """
    unique = _deduplicate(candidates)
    paths = [candidate.path for candidate in unique]
    rows: list[VideoRow | None] = [None] * len(paths)
    for done, (place, outcome) in enumerate(run_guarded(_probe_named, paths, workers, timeout_seconds), 1):
        row = _row(unique[place], outcome)
        rows[place] = row
        if on_progress:
            on_progress(done, len(paths), row)
    return Manifest(row for row in rows if row is not None)


def _probe_named(path: str) -> VideoRow:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError("its name is not valid UTF-8; rename it") from error
    return probe(path)


def _row(candidate: Candidate, outcome: VideoRow | Failure) -> VideoRow:
    name = candidate.path.encode(errors="backslashreplace").decode()
    if isinstance(outcome, Failure):
        outcome = VideoRow(video=name, refused=outcome.reason)
    return replace(outcome, video=name, label=candidate.label, split=candidate.split, group=candidate.group)
