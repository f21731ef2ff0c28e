"""What in one or more archives is most like a video, a part of one, or a row of an archive.

Rows are compared by the cosine of their vectors; where the archives hold `FEW` rows or more, the mean of all is taken off first,
as retrieval does: it is what all videos have in common. With the vectors of two encoders the mean of both cosines counts.

Legend: n rows of all archives together, in their order; k neighbours; d values of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.archive.faiss_index import search_index
from vicc_ray.archive.library import Library, PassedOver, Vectors, absolute_id, nearest_exact
from vicc_ray.config import make_experiment
from vicc_ray.data.manifest import part_in
from vicc_ray.errors import UserError

if TYPE_CHECKING:
    from vicc_ray.data.manifest import VideoRow


@dataclass(frozen=True)
class Match:
    """A row of an archive that was found: its place among the found (from 1), and its similarity to the query (-1 to 1)."""

    rank: int
    similarity: float
    id: str
    video: str
    start: float
    end: float
    label: str | None
    group: str | None
    archive: str


@dataclass(frozen=True)
class Answer:
    """A query and what was found for it, the nearest first."""

    query: str
    video: str
    start: float
    end: float
    matches: tuple[Match, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def search(
    archives: str | Sequence[str] | Library,
    queries: str | Vectors | Sequence[str | Vectors],
    k: int = 10,
    *,
    exclude_group: bool = False,
    centre: bool | None = None,
    index: bool = False,
) -> list[Answer]:
    """The k rows of the archives that are most like each query, the nearest first.

    Args:
        archives: paths or URIs of archives that one encoder made, or a `Library` of them.
        queries: a video file (path or URI), a part of one (`file.mp4@12.5-15`, seconds), an id of the archives, or a vector
            float32 [d]; one or a list of them. A row of the archive does not find itself.
        k: neighbours; fewer come where the archives hold fewer.
        exclude_group: pass over rows of the query's group: the parts of the same file, unless a table gave another group.
        centre: whether the mean of all vectors is taken off; None: where there are 100 rows or more.
        index: search by the archive's faiss index (`vicc search --index`): faster, and not exact.

    UserError for what the reader has to change.
    """
    library = archives if isinstance(archives, Library) else Library(_listed(archives), centre)
    if k < 1:
        raise UserError(f"-k {k}: at least one neighbour is needed")
    wanted = [queries] if isinstance(queries, str | np.ndarray) else list(queries)
    sought = resolve(library, wanted)
    over = [_passed_over(library, one, exclude_group) for one in sought]
    vectors = np.stack([one.vector for one in sought])
    found = search_index(library, vectors, k, over) if index else nearest_exact(library, vectors, k, over)
    return [_answer(library, one, rows, values) for one, (rows, values) in zip(sought, found, strict=True)]


@dataclass(frozen=True)
class Query:
    """What is looked for: its name, where it lies, its vector float32 [d], its number in the archives (None: not there)."""

    name: str
    video: str
    start: float
    end: float
    vector: Vectors
    row: int | None = None
    group: str | None = None


def resolve(library: Library, queries: Sequence[str | Vectors]) -> list[Query]:
    """Each query with its vector; videos that the archives do not hold are embedded by the archive's own encoders."""
    found = []
    for query in queries:
        if not isinstance(query, str):
            vector = np.asarray(query, np.float32)
            if vector.shape != (library.info.width,):
                raise UserError(
                    f"a query of shape {list(vector.shape)}: the archive's vectors have {library.info.width} values"
                )
            found.append(Query("", "", 0.0, 0.0, vector))
            continue
        row = library.row_of(query)
        if row is not None:
            there = library.record(row)
            place = (there["video"], there["start"], there["end"])
            found.append(Query(there["id"], *place, library.vector(row), row, there["group"]))
        else:
            found.append(_embedded(library, query))
    return found


def _embedded(library: Library, query: str) -> Query:
    """A video that no archive has, embedded here."""
    from vicc_ray.data.cutting import named_row
    from vicc_ray.data.manifest import VideoError

    name = absolute_id(query)
    try:
        row = named_row(name)
        vector = embed_by(library, row)
    except (VideoError, OSError, ValueError, UserError) as error:
        part = part_in(name)
        there = storage.exists(part[0] if part and not storage.exists(name) else name)
        if not there:
            raise UserError(f"{query}: is neither a video nor an id of {_names(library)}") from error
        raise UserError(f"{query}: {' '.join(str(error).split()).removeprefix(f'{name}: ')}") from error
    return Query(query, row.video, *row.span, vector, None, row.group or row.video)


def embed_by(library: Library, row: VideoRow) -> Vectors:
    """The vector of a video by the archive's encoders, under the archive's settings."""
    from vicc_ray.evaluation.encoder import Encoder
    from vicc_ray.models.encoder_file import load_encoder

    archive = library.archives[0]
    experiment = make_experiment(archive.info.experiment, f"{archive.folder}/_archive.json")
    windows = str(archive.info.settings["windows"])
    vectors = []
    for maker in archive.info.encoders:
        with storage.local_copy(archive.encoder_file(maker.name)) as path:
            encoder = Encoder(load_encoder(Path(path)), experiment, maker.name)
        vectors.append(encoder.embed_row(row, windows=windows))
    return np.concatenate(vectors)


def _passed_over(library: Library, query: Query, exclude_group: bool) -> PassedOver:
    """Which rows a query passes over: itself, and where that is wished its group."""
    groups = library.table["group"] if exclude_group and query.group is not None else None
    same = pc.fill_null(pc.equal(groups, query.group), False).to_numpy() if groups is not None else None

    def over(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        mine: NDArray[np.bool_] = rows == (-1 if query.row is None else query.row)
        return mine if same is None else mine | same[rows]

    return over


def _answer(library: Library, query: Query, rows: NDArray[np.int64], values: NDArray[np.float64]) -> Answer:
    matches = [
        Match(rank, round(float(value), 6), archive=library.archive_of(int(row)).folder, **library.record(int(row)))
        for rank, (row, value) in enumerate(zip(rows, values, strict=True), 1)
    ]
    return Answer(query.name, query.video, query.start, query.end, tuple(matches))


def _names(library: Library) -> str:
    return ", ".join(archive.folder for archive in library.archives)


def _listed(archives: str | Sequence[str]) -> list[str]:
    return [archives] if isinstance(archives, str) else [str(one) for one in archives]
