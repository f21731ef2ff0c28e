"""The manifest: a row a video or a part of one, in a Parquet file or several. What is there, how to read it, what was refused.

`probe` reads the file itself, not its header alone. `Manifest` holds the rows, the refused ones apart.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vicc_ray import storage
from vicc_ray.data.decode import DECODERS, Decoder, VideoError, fetched
from vicc_ray.data.inspection import RULES, inspect
from vicc_ray.data.rows import (
    FIELDS,
    REPEATED,
    Rows,
    VideoRow,
    first_of_each,
    joined,
    narrow,
    part_id,
    schema,
    seconds_text,
)
from vicc_ray.errors import UserError
from vicc_ray.machine import usable_cpus

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Manifest", "VideoError", "VideoRow", "check", "content_hash", "part_id", "probe", "seconds_text"]

# Names every split together, wherever a split is named.
ALL = "all"
# Rows whose facts are in memory as text at a time.
FINGERPRINT_ROWS = 1 << 18
GROUP_ROWS = 1 << 18  # of a file's row group, which is what reading and writing hold
GROUP_BYTES = 1 << 25  # of the frame tables in it, as text
_NAME = b"vicc_ray"  # of the entry of the Parquet file's metadata
# How much of a file its content hash reads: see `content_hash`.
BLOCK, BLOCKS = 1 << 20, 64
# Columns that manifests of earlier versions lack -> what is true of their rows.
_ADDED: dict[str, Any] = {
    "hash_rule": 1,
    "start": None,
    "end": None,
    "first_frame": 0,
    "file_frames": 0,
    "frame_table": "",
    "changes": "",
}


def content_hash(path: str, every: bool = False, edge: int = BLOCK) -> str:
    """blake2b-128 (hex) of the file's size and its bytes: all of them up to `BLOCKS` blocks, or with `every`.

    Of a longer file `BLOCKS` blocks of `edge` bytes are read, evenly spread from its first to its last byte, so a change
    between two blocks is not seen; `--check` reads it all.
    """
    size = os.path.getsize(path)
    whole = every or size <= BLOCKS * edge
    digest = blake2b(f"{size}:".encode(), digest_size=16, person=b"" if whole else b"sampled")
    with open(path, "rb") as file:
        if whole:
            while chunk := file.read(BLOCK):
                digest.update(chunk)
        else:
            for number in range(BLOCKS):
                file.seek(number * (size - edge) // (BLOCKS - 1))
                digest.update(file.read(edge))
    return digest.hexdigest()


def part_in(name: str) -> tuple[str, float, float] | None:
    """File, start and end (seconds) of a name such as `part_id` gives; None for one that is none."""
    named = re.fullmatch(r"(.+)@(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", name, re.DOTALL)
    return (named[1], float(named[2]), float(named[3])) if named else None


def is_manifest(source: str) -> bool:
    """Whether a source is a manifest that `vicc index` wrote, or a folder of nothing else; not a table or a folder of videos."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if storage.is_folder(source):
            names = [posixpath.basename(entry.name) for entry in storage.list_files(source, recursive=False)]
            if not all(name.endswith(".parquet") for name in names if not name.startswith(("_", "."))):
                return False
        (first, *_) = manifest_files(source)
        if not first.endswith(".parquet"):
            return False
        return "content_hash" in pq.read_schema(pa.BufferReader(storage.read_bytes(first))).names
    except (pa.ArrowException, OSError, UserError):
        return False


def is_content_hash(text: str) -> bool:
    """Whether a text is what `content_hash` gives: 32 hex digits, and so safe as a file's name."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def probe(video: str) -> VideoRow:
    """Open, count and try one video (path or URI); raises `VideoError` with the reason where it cannot be used.

    Decodes the first picture and the stretch after the last key frame (where a cut or damaged file shows itself), or
    all pictures where packets do not give their number; compares decord with PyAV there to choose the reader. Of a very
    long video only the ends are decoded.
    """
    return _row(video, every=False)


def check(video: str) -> VideoRow:
    """`probe`, with every picture decoded: `checked` is set, `frames` is what came out, one after another.

    A header lies about its length where `declared_frames` is neither 0 nor `frames`. decord is chosen only where each
    of its pictures is PyAV's, read in order and by seeking. Raises `VideoError` as `probe` does, damage included.
    """
    return _row(video, every=True)


def _row(video: str, every: bool) -> VideoRow:
    with fetched(video) as path:
        entry = storage.describe(video)
        return VideoRow(
            video=video,
            **asdict(inspect(path, every)),
            bytes=os.path.getsize(path),
            modified=entry.modified if entry else 0.0,
            content_hash=content_hash(path, every),
            checked=every,
        )


class Manifest:
    """The rows of one data set: `videos` can be used, `refused` cannot. Of an id that comes twice the first stays.

    `dataset` names it where its layout is one of a data set (ucf101, hmdb51, kinetics), `fold` is the official split in use;
    None: nobody knows. Both are for the reader of results and no part of the fingerprint. `outdated`: read from a file that an
    earlier version wrote, whose choice of the reader (decord or PyAV) was wrong for some videos: its rows name PyAV.
    """

    def __init__(self, rows: Iterable[VideoRow], dataset: str | None = None, fold: int | None = None) -> None:
        self.dataset, self.fold = dataset, fold
        self.outdated = False
        self._recorded: Rows | None = None  # the videos of an outdated one with the reader that its file names
        whole = _without_repeated_ids(Rows.of(rows))
        usable = np.asarray(whole.column("refused").is_null())
        self.videos, self.refused = whole.where(usable).flat(), whole.where(~usable).flat()

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def labels(self) -> list[str]:
        """The classes of the usable videos, sorted; unlabelled videos add none."""
        return sorted(label for label in self.videos.counts("label") if label is not None)

    @property
    def splits(self) -> dict[str, int]:
        """Usable videos in each split, by name."""
        return dict(sorted(self.videos.counts("split").items()))

    def select(self, split: str) -> Rows:
        """The usable videos of one split ('all': of every split), in the manifest's order; `UserError` where there is none."""
        import pyarrow.compute as pc

        rows = self.videos
        if split != ALL:
            rows = rows.where(pc.equal(rows.texts("split"), split))
        if not rows:
            have = ", ".join(f"{name} ({count})" for name, count in self.splits.items()) or "no usable video at all"
            raise UserError(f"the manifest has no video in split '{split}'; it has: {have}")
        return rows

    def copies(self) -> list[list[VideoRow]]:
        """The usable videos that have the same content as others, together, in the manifest's order."""
        import pyarrow.compute as pc

        rows = self.videos
        hashes = rows.texts("content_hash").combine_chunks()
        counted = pc.value_counts(hashes)
        several = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
        again = rows.where(pc.and_(pc.is_in(hashes, value_set=several), pc.not_equal(hashes, "")))
        same: dict[tuple[str, int, int], list[VideoRow]] = {}
        for row in again:
            same.setdefault((row.content_hash, row.first_frame, row.frames), []).append(row)
        return [alike for alike in same.values() if len(alike) > 1]

    def fingerprint(self) -> str:
        """32 hex digits for the usable videos' contents, labels, splits, groups and order, wherever the files lie.

        blake2b-128 of the `repr` of (content_hash, frames, label, split, group, decoder) of each, and of a part its first frame.
        decord counts as PyAV, whose pictures are the same: a manifest is the same whether or not its indexer had decord.
        """
        return _digest_of(self.videos, decord="pyav")

    def earlier_fingerprint(self) -> str:
        """What versions that counted decord as another reader made of it: runs that they began are known by this one."""
        return _digest_of(self.videos if self._recorded is None else self._recorded, decord="decord")

    def times_fingerprint(self) -> str:
        """32 hex digits for the usable videos' contents and times, which `clip.fps` counts by."""
        digest = blake2b(digest_size=16)
        for start in range(0, len(self.videos), FINGERPRINT_ROWS):
            part = self.videos[start : start + FINGERPRINT_ROWS]
            columns = [part.texts("content_hash").to_pylist()]
            columns += [part.numbers(name).tolist() for name in ("duration_seconds", "fps")]
            digest.update("".join(map(repr, zip(*columns, strict=True))).encode())
        return digest.hexdigest()

    def write(self, path: str | Path) -> None:
        """Write one Parquet file, to a path or URI; it appears under its name only when whole."""
        import pyarrow as pa

        origin = {"dataset": self.dataset, "fold": self.fold} | ({} if self.outdated else {"rules": RULES})
        metadata = {_NAME: json.dumps(origin).encode()}
        parts = [self.videos if self._recorded is None else self._recorded, self.refused]
        local = storage.local_path(str(path))
        if local is not None:
            with storage.whole_file(Path(local)) as partial, partial.open("wb") as file:
                _write_parts(file, parts, metadata)
            return
        written = pa.BufferOutputStream()
        _write_parts(written, parts, metadata)
        storage.write_bytes(str(path), written.getvalue())

    @staticmethod
    def copy(source: str, target: Path) -> None:
        """Put a manifest, of one file or several, into one file as it is; errors as `read` and OSError."""
        files = manifest_files(source)
        if files == [source]:
            target.write_bytes(storage.read_bytes(source))
        else:
            Manifest.read(source).write(target)

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read what `write` wrote, or a folder (or URI of one) of such files, in the order of their names.

        `UserError` for a missing file, another format, missing columns, unknown values.
        """
        origins: list[tuple[str | None, int | None, int | None]] = []
        tables = [table for name in manifest_files(str(path)) for table in _read_parts(name, origins)]
        dataset, fold, _ = origins[0]
        manifest = cls(Rows(joined(tables)), dataset, fold)
        if any(rules != RULES for _, _, rules in origins):
            manifest._distrust_decord()
        return manifest

    def _distrust_decord(self) -> None:
        self.outdated = True
        self._recorded = self.videos
        self.videos = self.videos.replaced("decoder", lambda names: _renamed(names, "pyav"))


def _renamed(readers: pa.ChunkedArray, decord: Decoder) -> pa.ChunkedArray:
    """Names of readers with another one in decord's place."""
    import pyarrow.compute as pc

    return pc.if_else(pc.equal(readers, "decord"), decord, readers)


def _digest_of(rows: Rows, decord: Decoder) -> str:
    digest = blake2b(digest_size=16)
    for start in range(0, len(rows), FINGERPRINT_ROWS):
        digest.update(_known_facts(rows[start : start + FINGERPRINT_ROWS].flat(), decord))
    return digest.hexdigest()


def _write_parts(file: Any, parts: Sequence[Rows], metadata: Mapping[bytes, bytes]) -> None:
    """Parquet with all columns of these rows, a row group of which is in memory as text at a time: fewer rows where texts are long,
    as each part of a file of many hours has the file's frame table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema().with_metadata(metadata), write_page_checksum=True) as writer:
        for rows in parts:
            step = min(GROUP_ROWS, max(GROUP_BYTES // max(rows.longest("frame_table"), 1), 1))
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                table = pa.table({name: part.texts(name) for name in FIELDS}).cast(schema())
                writer.write_table(table.replace_schema_metadata(metadata), step)


def _without_repeated_ids(rows: Rows) -> Rows:
    """The rows whose id no earlier one has."""
    import pyarrow.compute as pc

    videos = rows.texts("video")
    # In the order of a listing, as they mostly are, each is greater than the one before: far cheaper to see than in a hash table.
    if pc.all(pc.greater(videos[1:], videos[:-1])).as_py() or pc.count_distinct(videos).as_py() == len(rows):
        return rows
    times = {
        # An id has them in milliseconds; of a whole file there are none.
        name: np.rint(1000 * np.nan_to_num(rows.numbers(name).astype(np.float64), nan=-1)).astype(np.int64)
        for name in ("start", "end")
    }
    firsts = first_of_each({"video": videos, **times})
    return rows if len(firsts) == len(rows) else rows.take(firsts)


def _known_facts(rows: Rows, decord: Decoder) -> memoryview:
    """The text of the rows that `fingerprint` is made of; `decord`: what this reader is called in it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    group, whole = rows.texts("group"), rows.column("start").is_null()
    # The group of a part is its file, wherever that lies.
    own = pc.and_(pc.invert(whole), pc.fill_null(pc.equal(group, rows.texts("video")), False))
    group = pc.if_else(own, pa.scalar(None, pa.string()), group)
    parts = [
        _repr_of(rows.texts("content_hash")),
        rows.column("frames").cast(pa.string()),
        _repr_of(rows.texts("label")),
        _repr_of(rows.texts("split")),
        _repr_of(group),
        _repr_of(_renamed(rows.texts("decoder"), decord)),
    ]
    first = rows.column("first_frame").cast(pa.string())
    end = pc.if_else(whole, ")", pc.binary_join_element_wise(", ", first, ")", ""))
    text = pc.binary_join_element_wise("(", pc.binary_join_element_wise(*parts, ", "), end, "")
    joined = pa.concat_arrays(text.chunks) if isinstance(text, pa.ChunkedArray) else text
    length = pc.sum(pc.binary_length(joined)).as_py() or 0
    return memoryview(joined.buffers()[2] or b"")[:length]


def _repr_of(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """What Python's `repr` makes of each text, None included."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.match_substring_regex(texts, r"\A[ -&(-\[\]-~]*\z")  # nothing that has to be escaped, no quote
    if pc.all(pc.fill_null(plain, True)).as_py() is False:
        return pa.chunked_array([pa.array([repr(text) for text in texts.to_pylist()], pa.string())])
    return pc.fill_null(pc.binary_join_element_wise("'", texts, "'", ""), "None")


def manifest_files(path: str) -> list[str]:
    """The files of a manifest: itself, or those of its folder, by name; UserError for a folder without one."""
    try:
        if not storage.is_folder(path):
            return [path]
        files = [entry.name for entry in storage.list_files(path, recursive=False) if entry.name.endswith(".parquet")]
    except OSError as error:
        raise UserError(f"manifest {path}: cannot be read ({error.strerror or error})") from error
    if not files:
        raise UserError(
            f"manifest {path}: a folder without a .parquet file; make one with 'vicc index DIR --out {path}'"
        )
    return sorted(files)


def _read_parts(path: str, origins: list[tuple[str | None, int | None, int | None]]) -> list[pa.Table]:
    """A file's columns as they are held, part by part, checked; `UserError` as `Manifest.read`. Adds its origin to `origins`."""
    import pyarrow as pa

    found: list[tuple[str | None, int | None, int | None]] = []

    def read(table: pa.Table) -> pa.Table:
        found.append(_origin(table.schema))
        for name, value in _ADDED.items():
            if name not in table.column_names:
                kind = schema().field(name)
                table = table.append_column(kind, pa.array([value] * len(table), kind.type))
        missing = [name for name in FIELDS if name not in table.column_names]
        if missing:
            raise UserError(f"manifest {path}: missing columns {', '.join(missing)}; make it with 'vicc index'")
        try:
            typed = _typed(table)
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"manifest {path}: a column has another type than 'vicc index' writes: {error}") from error
        _check_values(path, typed)
        return narrow(typed)

    try:
        tables = storage.parquet_parts(path, read, REPEATED, threads=usable_cpus())
    except FileNotFoundError:
        raise UserError(f"manifest {path}: no such file; make one with 'vicc index DIR --out {path}'") from None
    except pa.ArrowException as error:
        raise UserError(
            f"manifest {path}: not a Parquet file, or damaged; make one with 'vicc index DIR --out M.parquet'"
        ) from error
    except OSError as error:
        if error.errno is None:  # pyarrow's of bytes that are none
            raise UserError(
                f"manifest {path}: not a Parquet file, or damaged; make one with 'vicc index DIR --out M.parquet'"
            ) from error
        raise UserError(f"manifest {path}: cannot be read ({error.strerror or error})") from error
    origins.append(found[0])
    return tables


def _typed(table: pa.Table) -> pa.Table:
    """The columns of a manifest in their order, of their types; ArrowException where they are of others."""
    import pyarrow as pa

    columns = {}
    for field in schema():
        column = table[field.name]
        if pa.types.is_dictionary(column.type) and field.name in REPEATED:
            column = column.cast(pa.dictionary(pa.int32(), field.type))
        else:
            column = column.cast(field.type)
        if column.null_count and not field.nullable:
            raise ValueError(f"{field.name} is empty in {column.null_count} rows")
        columns[field.name] = column
    return pa.table(columns)


def _check_values(path: str, table: pa.Table) -> None:
    """UserError for a content hash or a decoder that is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = Rows(table)
    strange = pc.invert(pc.match_substring_regex(rows.texts("content_hash"), r"\A[0-9a-f]*\z"))
    if pc.any(strange).as_py():
        row = rows.where(strange)[0]
        raise UserError(
            f"manifest {path}: content_hash {row.content_hash!r} of {row.video} is none (32 hex digits); make the "
            "manifest with 'vicc index'"
        )
    unknown = pc.invert(pc.is_in(rows.texts("decoder"), value_set=pa.array(DECODERS)))
    if pc.any(unknown).as_py():
        row = rows.where(unknown)[0]
        raise UserError(f"manifest {path}: decoder '{row.decoder}' of {row.video}; allowed: {', '.join(DECODERS)}")


def _origin(schema: pa.Schema) -> tuple[str | None, int | None, int | None]:
    """Data set, fold and rules of a file's metadata; None of files without them, such as those written before."""
    try:
        facts = json.loads((schema.metadata or {}).get(_NAME, b"{}"))
        dataset, fold, rules = facts.get("dataset"), facts.get("fold"), facts.get("rules")
    except (ValueError, AttributeError):
        return None, None, None
    return (
        dataset if isinstance(dataset, str) else None,
        fold if isinstance(fold, int) else None,
        rules if isinstance(rules, int) else None,
    )


def count_videos(path: str | Path, split: str) -> int:
    """How many videos `Manifest.read(path).select(split)` has, from two columns; UserError as both of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        count = 0
        for name in manifest_files(str(path)):
            table = storage.parquet_table(storage.read_bytes(name), ["split", "refused"])
            used = pc.is_null(table["refused"])
            if split != ALL:
                used = pc.and_(used, pc.equal(table["split"], split))
            count += int(pc.sum(used).as_py() or 0)
    except (pa.ArrowException, OSError, KeyError):
        count = 0
    return count or len(Manifest.read(path).select(split))  # what is wrong with it is said there
