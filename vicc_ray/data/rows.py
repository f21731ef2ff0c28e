"""A manifest's rows as columns: what is known of each video, held in one Arrow table whatever the number of videos.

A `VideoRow` is made when somebody wants it. Ten million of them would be 10 GB of objects in every process; as columns they are
2 GB that all processes of a node can share, because an Arrow table that comes from shared memory is not copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.decode import Decoder

if TYPE_CHECKING:
    import pyarrow as pa

# The rule of content hashes. Rule 1 was size, first and last MiB, which is all of a file of at most EARLIER_WHOLE bytes:
# of these both rules give the same.
HASH_RULE, EARLIER_WHOLE = 2, 2 << 20
# Rows that are made at a time where all are walked over.
WALK = 4096
# Columns of which many rows have the same value: each value is held once.
REPEATED = ("label", "split", "group", "codec", "decoder", "refused", "frame_table", "changes")


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One video, or a part of one. Sizes are pixels of the upright picture; `rotation` is clockwise degrees counted in them.

    `frames` counts pictures really there, `declared_frames` is what the header says (0: nothing). `fps` is their mean
    rate and `duration_seconds` the time they cover; without `constant_rate` pictures come at uneven times. `checked`:
    every picture was decoded once. `modified` (seconds) and `bytes` show whether the file is the one that was probed.
    `refused` is the reason why the video cannot be used, or None; a refused row may know nothing but its name.
    `content_hash` (see there) is what flow stores, samples and fingerprints know the video by, `hash_rule` the rule that it
    was made by. A row keeps both while its file is the same, so that what was made with it stays valid.

    `start` and `end` are None for a whole file; else the row is the part of it that is shown from `start` to before `end`,
    seconds from the file's first picture: `frames` pictures from `first_frame` on, of `file_frames` in the file. `frames` and
    `duration_seconds` are the part's, all else is the file's. `frame_table` says when the file's pictures are shown
    (`vicc_ray.data.frame_table`) and `changes` where its scenes begin and what moves (`vicc_ray.data.changes`); empty: unknown.
    """

    video: str
    label: str | None = None
    split: str = "train"
    group: str | None = None
    frames: int = 0
    declared_frames: int = 0
    fps: float = 0.0
    constant_rate: bool = True
    width: int = 0
    height: int = 0
    rotation: int = 0
    duration_seconds: float = 0.0
    codec: str = ""
    bytes: int = 0
    modified: float = 0.0
    content_hash: str = ""
    checked: bool = False
    decoder: Decoder = "decord"
    refused: str | None = None
    hash_rule: int = HASH_RULE
    start: float | None = None
    end: float | None = None
    first_frame: int = 0
    file_frames: int = 0
    frame_table: str = ""
    changes: str = ""

    @property
    def id(self) -> str:
        """What names the row among all: its file, and of a part its times too, `FILE@START-END` in seconds."""
        return self.video if self.start is None or self.end is None else part_id(self.video, self.start, self.end)

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a file, not a whole one."""
        return self.start is not None

    @property
    def last_frame(self) -> int:
        """The number of its last picture in the file."""
        return self.first_frame + self.frames - 1

    @property
    def span(self) -> tuple[float, float]:
        """When it begins and ends in its file, in seconds."""
        return (0.0, self.duration_seconds) if self.start is None or self.end is None else (self.start, self.end)

    def file_row(self) -> VideoRow:
        """The row of the whole file that it is a part of."""
        if not self.is_part:
            return self
        seconds = self.file_frames / self.fps if self.fps else 0.0
        return replace(
            self,
            start=None,
            end=None,
            first_frame=0,
            frames=self.file_frames,
            file_frames=0,
            duration_seconds=seconds,
            group=None if self.group == self.video else self.group,
        )

    @property
    def hash_is_partial(self) -> bool:
        """Whether its content hash is of the earlier rule and left out what the rule of today reads."""
        return self.refused is None and self.hash_rule < HASH_RULE and self.bytes > EARLIER_WHOLE


def part_id(video: str, start: float, end: float) -> str:
    """The name of a part of a file, by its times in seconds: `a.mp4@12.5-15`."""
    return f"{video}@{seconds_text(start)}-{seconds_text(end)}"


def seconds_text(seconds: float) -> str:
    """Seconds to the millisecond, without needless zeros: 12.5, 15."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


FIELDS = {field.name: field for field in fields(VideoRow)}
# What training reads of a row.
TRAINING = tuple(
    name for name in FIELDS if name not in ("declared_frames", "codec", "bytes", "modified", "checked", "changes")
)


def schema() -> pa.Schema:
    """Column names and types of a manifest's file; only label, group, refused, start and end may be empty."""
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "str | None": pa.string(),
        "int": pa.int64(),
        "bool": pa.bool_(),
        "float": pa.float64(),
        "float | None": pa.float64(),
        "Decoder": pa.string(),
    }
    return pa.schema([pa.field(f.name, kinds[str(f.type)], nullable="None" in str(f.type)) for f in FIELDS.values()])


class Rows(Sequence[VideoRow]):
    """Rows in an order: those of a table at `places` (int64 [n], one may come several times), or all of them.

    Columns that a table lacks have the value that a `VideoRow` has by default. Two are equal where their rows are.
    """

    def __init__(self, table: pa.Table, places: NDArray[np.int64] | None = None) -> None:
        self.table = table
        self.places = places
        # As they are read from one by one, which is much faster than through the table.
        self._columns: dict[str, Any] | None = None

    @classmethod
    def of(cls, rows: Iterable[VideoRow]) -> Rows:
        """Of ready-made rows, `WALK` of which are in memory as objects at a time."""
        if isinstance(rows, Rows):
            return rows
        walk = iter(rows)
        tables = [_table_of(list(itertools.islice(walk, WALK)))]
        while len(tables[-1]) == WALK:
            tables.append(_table_of(list(itertools.islice(walk, WALK))))
        return cls(joined([table for table in tables if len(table)] or tables))

    @classmethod
    def chain(cls, parts: Sequence[Sequence[VideoRow]]) -> Rows:
        """Those of several, one after another."""
        rows = [cls.of(part) for part in parts]
        if len(rows) == 1:
            return rows[0]
        return cls(joined([one._whole_table() for one in rows]))

    def _whole_table(self) -> pa.Table:
        """The table of these rows with every column."""
        import pyarrow as pa

        if self.table.column_names == list(FIELDS):
            return self.flat().table
        return narrow(pa.table({name: self.texts(name) for name in FIELDS}))

    def __len__(self) -> int:
        return self.table.num_rows if self.places is None else len(self.places)

    @overload
    def __getitem__(self, place: int) -> VideoRow: ...

    @overload
    def __getitem__(self, place: slice) -> Rows: ...

    def __getitem__(self, place: int | slice) -> VideoRow | Rows:
        if isinstance(place, slice):
            if self.places is None and place.step in (None, 1):
                start, stop, _ = place.indices(len(self))
                return Rows(self.table.slice(start, max(stop - start, 0)))
            return self.take(np.arange(len(self))[place])
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        place = self._place(place)
        return VideoRow(**{name: column[place].as_py() for name, column in self._read().items()})

    def __iter__(self) -> Iterator[VideoRow]:
        for start in range(0, len(self), WALK):
            part = self[start : start + WALK].flat().table
            columns = [_values(part[name]) for name in part.column_names]
            for values in zip(*columns, strict=True):
                yield VideoRow(**dict(zip(part.column_names, values, strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        if len(self) != len(other):
            return False
        if not isinstance(other, Rows):
            return all(map(VideoRow.__eq__, self, other))
        if self.table is other.table and self.places is other.places:
            return True
        return all(self._plain(name).equals(other._plain(name)) for name in FIELDS)

    def _plain(self, name: str) -> pa.ChunkedArray:
        """A column as a manifest's file has it."""
        return self.texts(name).cast(schema().field(name).type)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(row.id for row in itertools.islice(self, 3))
        return f"Rows({len(self)}: {shown}{', ...' if len(self) > 3 else ''})"

    def cell(self, place: int, name: str) -> Any:
        """One value of one row."""
        column = self._read().get(name)
        return _default_of(FIELDS[name]) if column is None else column[self._place(place)].as_py()

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of these rows, in their order; text as text, however it is held."""
        import pyarrow as pa

        if name not in self.table.column_names:
            kind = schema().field(name).type
            return pa.chunked_array([pa.array([_default_of(FIELDS[name])] * len(self), kind)])
        column = self.table[name]
        if self.places is not None:
            column = column.take(pa.array(self.places))
        return column

    def numbers(self, name: str) -> NDArray[Any]:
        """One column of numbers or truths: int64, float64 (NaN: none) or bool [n]."""
        found: NDArray[Any] = self.column(name).to_numpy()
        return found.astype(np.int64) if found.dtype.kind == "i" else found

    def texts(self, name: str) -> pa.ChunkedArray:
        """One column of text as plain strings."""
        import pyarrow as pa

        column = self.column(name)
        return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column

    def longest(self, name: str) -> int:
        """Bytes that a text of a column takes at most."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self.column(name)
        known = [chunk.dictionary for chunk in column.chunks] if pa.types.is_dictionary(column.type) else column.chunks
        return max((pc.max(pc.binary_length(texts)).as_py() or 0 for texts in known), default=0)

    def ids(self) -> pa.Array | pa.ChunkedArray:
        """The id of each row, as plain strings."""
        import pyarrow as pa
        import pyarrow.compute as pc

        whole = pc.is_null(self.column("start"))
        if pc.all(whole).as_py() is not False:
            return self.texts("video")
        found = []
        for start in range(0, len(self), WALK):
            part = self[start : start + WALK]
            times = zip(*(part.column(name).to_pylist() for name in ("start", "end")), strict=True)
            names = part.texts("video").to_pylist()
            found.append(
                [n if s is None or e is None else part_id(n, s, e) for n, (s, e) in zip(names, times, strict=True)]
            )
        return pa.chunked_array(found, pa.string())

    def hash_is_partial(self) -> NDArray[np.bool_]:
        """`VideoRow.hash_is_partial` of each row, bool [n]."""
        earlier = (self.numbers("hash_rule") < HASH_RULE) & (self.numbers("bytes") > EARLIER_WHOLE)
        found: NDArray[np.bool_] = earlier & np.asarray(self.column("refused").is_null(), bool)
        return found

    def counts(self, name: str) -> dict[Any, int]:
        """How many rows have each value of a column, in the order of their first rows; None is one of them."""
        import pyarrow.compute as pc

        return {one["values"]: one["counts"] for one in pc.value_counts(self.texts(name).combine_chunks()).to_pylist()}

    def take(self, places: NDArray[np.integer[Any]]) -> Rows:
        """The rows at these places, in this order."""
        chosen = np.asarray(places, np.int64)
        return Rows(self.table, chosen if self.places is None else self.places[chosen])

    def where(self, wanted: NDArray[np.bool_] | pa.ChunkedArray | pa.Array) -> Rows:
        """The rows for which it is true, bool [n]."""
        chosen = np.asarray(wanted, bool)
        return self if chosen.all() else self.take(np.flatnonzero(chosen))

    def once(self) -> Rows:
        """Each row of the table that is among these, once, in the table's order."""
        if self.places is None:
            return self
        return Rows(self.table, np.unique(self.places))

    def flat(self) -> Rows:
        """The same rows with a table of their own."""
        import pyarrow as pa

        return self if self.places is None else Rows(self.table.take(pa.array(self.places)))

    def only(self, names: Sequence[str]) -> Rows:
        """The same rows with these columns alone; the others have their default."""
        return Rows(self.table.select([name for name in names if name in self.table.column_names]), self.places)

    def replaced(self, name: str, change: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> Rows:
        """The same rows with one column changed as a whole, of plain strings where it is text."""
        return self.having({name: change(self.texts(name))})

    def having(self, columns: Mapping[str, Any]) -> Rows:
        """The same rows with other columns: sequences, arrays, or one value for all, by their names."""
        import pyarrow as pa

        table = self.flat().table
        for name, values in columns.items():
            kind = schema().field(name).type
            if not isinstance(values, (pa.Array, pa.ChunkedArray)):
                single = values is None or np.isscalar(values)
                values = pa.repeat(pa.scalar(values, kind), len(self)) if single else pa.array(values, kind)
            table = table.set_column(table.column_names.index(name), name, values.cast(kind))
        return Rows(joined([narrow(table)]))

    def _read(self) -> dict[str, Any]:
        if self._columns is None:
            columns = {name: self.table[name] for name in self.table.column_names}
            self._columns = {name: c.chunk(0) if c.num_chunks == 1 else c for name, c in columns.items()}
        return self._columns

    def _place(self, place: int) -> int:
        if self.places is not None:
            return int(self.places[place])
        return place + len(self) if place < 0 else place

    def __reduce__(self) -> tuple[Any, ...]:
        # What is sent is these rows, not the table that they are a few of.
        import pyarrow as pa

        rows = self
        if self.places is not None and 2 * len(np.unique(self.places)) < self.table.num_rows:
            rows = self.flat()
        table = rows.table
        if table.get_total_buffer_size() > 2 * table.nbytes + WALK:
            table = table.take(pa.array(np.arange(len(table))))  # a slice would take all of its table along
        return Rows, (table, rows.places)


def _table_of(rows: Sequence[VideoRow]) -> pa.Table:
    import pyarrow as pa

    kinds = schema()
    columns = {}
    for name in FIELDS:
        values = [getattr(row, name) for row in rows]
        columns[name] = _each_once(values) if name in REPEATED else pa.array(values, kinds.field(name).type)
    return narrow(pa.table(columns))


def _each_once(texts: Sequence[str | None]) -> pa.DictionaryArray:
    """Texts as a column that holds each once, never all of them: every part of a long file has the file's frame table."""
    import pyarrow as pa

    places: dict[str, int] = {}
    found = [None if text is None else places.setdefault(text, len(places)) for text in texts]
    return pa.DictionaryArray.from_arrays(pa.array(found, pa.int32()), pa.array(list(places), pa.string()))


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column as a list; a text that comes several times is one object, as a file's frame table may be long."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        found: list[Any] = column.to_pylist()
        return found
    values: list[Any] = []
    for chunk in column.chunks:
        texts = [*chunk.dictionary.to_pylist(), None]
        values += [texts[-1 if place is None else place] for place in chunk.indices.to_pylist()]
    return values


def _default_of(field: Field[Any]) -> Any:
    """The value of a field where nothing is known."""
    return "" if field.default is MISSING else field.default


def narrow(table: pa.Table) -> pa.Table:
    """A manifest's table as it is held: repeated texts once, numbers as small as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns: dict[str, pa.ChunkedArray] = {}
    for name in table.column_names:
        column = table[name]
        if name in REPEATED and not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        elif pa.types.is_int64(column.type) and len(column):
            ends = pc.min_max(column).as_py()
            if (ends["min"] or 0) >= -(2**31) and (ends["max"] or 0) < 2**31:
                column = column.cast(pa.int32())
        columns[name] = column
    return pa.table(columns)


def joined(tables: list[pa.Table]) -> pa.Table:
    """Tables of `narrow` as one, in one piece, where a row is found at once. The list is emptied, column by column in memory."""
    import pyarrow as pa

    parts = [{name: table[name] for name in table.column_names} for table in tables]
    tables.clear()
    columns = {}
    for name in list(parts[0]):
        own = [part.pop(name) for part in parts]
        kind = own[0].type
        if {column.type for column in own} == {pa.int32(), pa.int64()}:
            own, kind = [column.cast(pa.int64()) for column in own], pa.int64()
        whole = pa.chunked_array([chunk for column in own for chunk in column.chunks], kind)
        if pa.types.is_dictionary(whole.type):
            whole = whole.unify_dictionaries()
        columns[name] = whole.combine_chunks()
        del own, whole
    pa.default_memory_pool().release_unused()
    return pa.table(columns)


class Places:
    """Where texts stand in a list of different ones, by 16 bytes a text: what is looked up may come in parts."""

    def __init__(self, texts: pa.Array | pa.ChunkedArray) -> None:
        self.texts = texts
        marks = _marks(texts)
        self._order = np.argsort(marks, kind="stable")
        self._marks = marks[self._order]

    def find(self, texts: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """The place of each text, -1 where it is not in the list: int64 [m]."""
        import pyarrow.compute as pc

        marks = _marks(texts)
        at = np.searchsorted(self._marks, marks)
        places = np.full(len(marks), -1, np.int64)
        left = np.arange(len(marks))
        while len(left):  # once more where two texts have one mark
            left = left[at[left] < len(self._marks)]
            left = left[self._marks[at[left]] == marks[left]]
            found = self._order[at[left]]
            same = np.asarray(pc.equal(self.texts.take(found), texts.take(left)), bool)
            places[left[same]] = found[same]
            left = left[~same]
            at[left] += 1
        return places


def _marks(texts: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each text, which says in this process alone that two are different."""
    marks = np.empty(len(texts), np.int64)
    for start in range(0, len(texts), WALK):
        part = texts[start : start + WALK].to_pylist()
        marks[start : start + len(part)] = [hash(text) for text in part]
    return marks


def first_of_each(columns: Mapping[str, Any]) -> NDArray[np.int64]:
    """The places of the rows that no earlier one equals in these columns (of one length), ascending: int64 [m]."""
    import pyarrow as pa

    table = pa.table(dict(columns))
    keys = list(columns)
    numbered = table.append_column("place", pa.array(np.arange(table.num_rows)))
    firsts = numbered.group_by(keys, use_threads=False).aggregate([("place", "min")])["place_min"]
    return np.sort(firsts.to_numpy()).astype(np.int64)
