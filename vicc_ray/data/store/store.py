"""A packed store: a folder or URI with the pictures and the flow of videos at one size, each decoded once.

    STORE/store.json      what it was made from: size, interlaced pictures, the flow's algorithm and parameters, versions
          shards/, index/ entries that can be read (`vicc_ray.data.store.index`)
          loose/          entries that are whole and wait for a shard (`vicc_ray.data.store.writing`)

A store may hold pictures, flow or both. A flow store of an earlier version is read as one, and filled further as one.

Legend: H x W the store's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.config import Decoded
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pictures import RULES, Interlaced
from vicc_ray.data.rows import Rows, first_of_each
from vicc_ray.data.store import earlier
from vicc_ray.data.store.entry import ENCODERS
from vicc_ray.data.store.index import Index, Location, check_hash, list_shards, read_parts
from vicc_ray.errors import UserError

FORMAT = 3
NAMES: Mapping[Decoded, str] = {"rgb": "pictures", "flow": "flow"}


@dataclass(frozen=True)
class Header:
    """What a store says that it was made from.

    Args:
        size: (H, W).
        interlaced: how pictures marked interlaced are read.
        pictures: the rules by which they are made and the versions of what made them; None: it holds none.
        flow: the algorithm's `fingerprint` as a tree, and the bound in pixels; None: it holds none.
        id: of this store, which its shards carry.
        earlier: the format of the flow store that it began as; its files are read too.
    """

    size: tuple[int, int]
    interlaced: Interlaced = "weave"
    pictures: Mapping[str, Any] | None = None
    flow: Mapping[str, Any] | None = None
    bound: float | None = None
    id: str = ""
    earlier: int | None = None

    def of(self, stream: Decoded) -> Mapping[str, Any] | None:
        """What it says of a stream; None: it holds none."""
        return self.pictures if stream == "rgb" else self.flow


def picture_facts() -> dict[str, Any]:
    """What `Header.pictures` says of pictures that are made now."""
    versions = {name: version(package) for name, package in (("pyav", "av"), ("opencv", _OPENCV))}
    return {"rules": RULES, "encoder": dict(ENCODERS["rgb"]), "versions": versions}


_OPENCV = "opencv-contrib-python-headless"


@dataclass
class PackedStore:
    """A store that exists; opened with `open` or made with `create`. The indexes are read when they are first needed."""

    folder: str
    header: Header
    _indexes: dict[Decoded, Index] = field(default_factory=dict, repr=False, compare=False)
    _earlier: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def create(cls, folder: str, wanted: Header) -> PackedStore:
        """Make the store, or open the one that is there and add what it is to hold too; `UserError` where it does not fit."""
        found = read_header(folder)
        if found is None:
            header = replace(wanted, id=uuid4().hex)
        else:
            differences = list(_differences(found, wanted))
            if differences:
                raise UserError(
                    f"store {folder}: holds other clips than these settings give: {'; '.join(differences)}; name another "
                    "folder, or set what the store has"
                )
            header = replace(
                found,
                id=found.id or uuid4().hex,
                pictures=found.pictures or wanted.pictures,
                flow=found.flow or wanted.flow,
                bound=found.bound or wanted.bound,
            )
        if header != found:
            _write_header(folder, header)
        return cls(storage.absolute(folder), header)

    @classmethod
    def open(cls, folder: str) -> PackedStore:
        """The store at a path or URI; `UserError` where there is none."""
        header = read_header(folder)
        if header is None:
            raise UserError(f"store {folder}: there is none (no store.json); make it with 'vicc pack MANIFEST'")
        return cls(storage.absolute(folder), header)

    def index(self, stream: Decoded) -> Index:
        """Where the entries of a stream lie."""
        if stream not in self._indexes:
            parts = read_parts(self.folder, stream, self.header.id) if self.header.id else []
            self._indexes[stream] = Index(parts)
        return self._indexes[stream]

    def find(self, row: VideoRow, stream: Decoded) -> Location | None:
        """Where the entry lies that covers all frames of a row; None: there is none, or it is an earlier version's file."""
        check_hash(row)
        return self.index(stream).find(row)

    def forget(self, stream: Decoded) -> None:
        """The index has changed: it is read again when it is needed."""
        self._indexes.pop(stream, None)

    def lacks(self, rows: Rows, stream: Decoded) -> NDArray[np.bool_]:
        """Which rows lack an entry of a stream, bool [n]."""
        import pyarrow.compute as pc

        covered = self.index(stream).covers(rows)
        if stream == "flow" and self.header.earlier is not None:
            if self._earlier is None:
                self._earlier = earlier.entries(self.folder)
            covered |= np.asarray(pc.is_in(rows.texts("content_hash"), value_set=self._earlier), bool)
        lacking: NDArray[np.bool_] = ~covered
        return lacking

    def missing(self, rows: Sequence[VideoRow], stream: Decoded) -> Rows:
        """The rows that lack entries of a stream, each id once, in order."""
        rows = Rows.of(rows)
        found = rows.where(self.lacks(rows, stream))
        return found.take(first_of_each({"id": found.ids()}))

    def check_shards(self, streams: Sequence[Decoded]) -> None:
        """`UserError` where a shard is missing or cut short."""
        lost = [lost for stream in streams for lost in self.lost_shards(stream)]
        if lost:
            shard, what = lost[0]
            more = f" (and {len(lost) - 1} others are not whole)" if len(lost) > 1 else ""
            raise UserError(
                f"store {self.folder}: its shard {shard} {what}{more}; run 'vicc pack MANIFEST --store {self.folder}' again, "
                "which packs what it held"
            )

    def lost_shards(self, stream: Decoded) -> list[tuple[str, str]]:
        """The shards that are missing or cut short, with what is wrong."""
        index, there, lost = self.index(stream), list_shards(self.folder), []
        for shard, due in zip(index.shards, index.shard_bytes, strict=True):
            found = there.get(shard)
            if found is None or found.bytes != due:
                lost.append((shard, "is missing" if found is None else f"has {found.bytes:,} bytes instead of {due:,}"))
        return lost


def _header_name(folder: str) -> str:
    return storage.join(folder, "store.json")


def _write_header(folder: str, header: Header) -> None:
    text = json.dumps({"format": FORMAT} | asdict(header), indent=2) + "\n"
    try:
        storage.write_bytes(_header_name(folder), text.encode())
    except OSError as error:
        raise UserError(f"store {folder}: cannot be written: {' '.join(str(error).split())[:200]}") from error


def read_header(folder: str) -> Header | None:
    """What store.json says; None where there is none."""
    try:
        data = json.loads(storage.read_bytes(_header_name(folder)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"store {folder}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"store {folder}: store.json is not JSON; delete the store and make it again") from error
    header = _header_of(data)
    if header is None:
        found = data.get("format") if isinstance(data, dict) else None
        raise UserError(f"store {folder}: has format {found}; this version reads 1, 2 and {FORMAT}; make it again")
    return header


def _header_of(data: Any) -> Header | None:
    """A header of a known format from JSON, whatever else may stand in a damaged file."""
    if not isinstance(data, dict):
        return None
    known = data.get("format")
    if known in (earlier.UNCHECKED, earlier.CHECKED) and set(data) == {
        "format",
        "fingerprint",
        "bound",
        "height",
        "width",
    }:
        made = data["fingerprint"]
        interlaced: Any = made.get("interlaced", "weave") if isinstance(made, dict) else None
        size, bound = (data["height"], data["width"]), data["bound"]
        header = Header(size, interlaced, None, made, bound, "", known)
    elif known == FORMAT and set(data) == {"format"} | {field.name for field in fields(Header)}:
        header = Header(**{name: value for name, value in data.items() if name != "format"})
    else:
        return None
    return _checked(header)


def _checked(header: Header) -> Header | None:
    """None where a value has another type than a header's."""
    size, flow, pictures = header.size, header.flow, header.pictures
    right = (
        isinstance(size, Sequence)
        and len(size) == 2
        and all(isinstance(side, int) for side in size)
        and header.interlaced in ("weave", "deinterlace")
        and isinstance(header.id, str)
        and header.earlier in (None, earlier.UNCHECKED, earlier.CHECKED)
        and (pictures is None or isinstance(pictures, dict))
        and (flow is None or (isinstance(flow, dict) and isinstance(flow.get("algorithm"), str)))
        and (flow is None or isinstance(header.bound, int | float))
    )
    return replace(header, size=(int(size[0]), int(size[1]))) if right else None


def _differences(found: Header, wanted: Header) -> Iterator[str]:
    """One phrase for each thing in which a store that is there differs from what it should be."""
    for name, there, here in (
        ("height", found.size[0], wanted.size[0]),
        ("width", found.size[1], wanted.size[1]),
        ("interlaced", found.interlaced, wanted.interlaced),
    ):
        if there != here:
            yield f"{name} is {there} there, {here} here"
    if found.pictures is not None and wanted.pictures is not None:
        rules = found.pictures.get("rules")
        if rules != wanted.pictures.get("rules"):
            yield f"its pictures were made by rules {rules}, this version's are {wanted.pictures.get('rules')}"
    if found.flow is not None and wanted.flow is not None:
        before, now = {**found.flow, "bound": found.bound}, {**wanted.flow, "bound": wanted.bound}
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                yield f"{name} is {before.get(name)} there, {now.get(name)} here"
