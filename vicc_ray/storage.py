"""Files by path or URI: a local folder, `file://`, `s3://`, `gs://` and whatever else pyarrow or fsspec opens.

A path without `://` is local and is only a name (`a:b.mp4` and `-x.mp4` too). Object stores take their address and
credentials from where their own tools look for them (environment, profile, metadata service), never from a URI in a
run's files; `s3://` honours AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from vicc_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file below a folder: its whole name as it was asked for (path or URI), bytes, and when it was changed (seconds)."""

    name: str
    bytes: int
    modified: float


def is_uri(name: str) -> bool:
    """Whether a name says how it is reached (`s3://...`) and is not just a local path."""
    return "://" in name


def local_path(name: str) -> str | None:
    """The absolute path of a local name or `file://` URI; None for what lies elsewhere."""
    if not is_uri(name):
        return os.path.abspath(name)
    parts = urlsplit(name)
    return unquote(parts.path) if parts.scheme == "file" else None


def absolute(name: str) -> str:
    """A name that means the same from every folder: local ones absolute, URIs without a slash at their end."""
    return local_path(name) or name.rstrip("/")


def join(base: str, *parts: str) -> str:
    """A name below a folder."""
    return posixpath.join(base, *parts)


def open_filesystem(name: str) -> tuple[FileSystem, str]:
    """The file system that holds `name` and the path in it; `UserError` for a scheme that nothing here opens."""
    path = local_path(name)
    if path is not None:
        return _local_filesystem(), path
    parts = urlsplit(name)
    return _remote_filesystem(parts.scheme, parts.netloc), f"{parts.netloc}{unquote(parts.path)}".rstrip("/")


@lru_cache(maxsize=1)
def _local_filesystem() -> FileSystem:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


@lru_cache(maxsize=32)
def _remote_filesystem(scheme: str, netloc: str) -> FileSystem:
    """One connection a store and process: opening one costs a round trip or more."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        # A scheme that pyarrow does not know may be one of fsspec's.
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return fs.FileSystem.from_uri(f"{scheme}://{netloc}/")[0]
    except OSError as error:
        raise UserError(f"{scheme}://{netloc}: the store does not answer: {_one_line(error)}") from error
    import fsspec

    try:
        system, _ = fsspec.core.url_to_fs(f"{scheme}://{netloc}/")
    except (ImportError, ValueError) as error:
        raise UserError(f"{scheme}://: nothing that is installed opens it ({_one_line(error)})") from error
    return fs.PyFileSystem(fs.FSSpecHandler(system))


def list_files(folder: str, recursive: bool = True) -> Iterator[FileEntry]:
    """Files below a folder or prefix, in the order of their names; hidden ones (a part begins with a dot) are passed over.

    Raises `UserError` where there is no such folder or the store refuses.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSelector, FileType

    system, root = open_filesystem(folder)
    try:
        infos = system.get_file_info(FileSelector(root, recursive=recursive))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no such folder") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{folder}: cannot be listed: {_one_line(error)}") from error
    for info in sorted(infos, key=lambda info: info.path):
        # Some file systems begin paths with a slash, whether asked with one or not.
        inner = info.path.lstrip("/").removeprefix(root.lstrip("/")).lstrip("/")
        if info.type == FileType.File and not any(part.startswith(".") for part in inner.split("/")):
            yield FileEntry(join(folder, quote(inner) if is_uri(folder) else inner), info.size, _seconds(info))


def describe(name: str) -> FileEntry | None:
    """Size and time of one file; None where there is no such file (a folder is none)."""
    from pyarrow.fs import FileType

    system, path = open_filesystem(name)
    info = system.get_file_info(path)
    return FileEntry(name, info.size, _seconds(info)) if info.type == FileType.File else None


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name."""
    from pyarrow.fs import FileType

    system, path = open_filesystem(name)
    return bool(system.get_file_info(path).type != FileType.NotFound)


def is_folder(name: str) -> bool:
    """Whether the name is a folder, or a prefix below which an object store holds something."""
    from pyarrow.fs import FileType

    system, path = open_filesystem(name)
    return bool(system.get_file_info(path).type == FileType.Directory)


def read_bytes(name: str) -> bytes:
    """The whole file; OSError (FileNotFoundError, PermissionError) as the store raises it."""
    system, path = open_filesystem(name)
    with system.open_input_stream(path) as stream:
        data: bytes = stream.readall()
    return data


def parquet_table(data: bytes) -> pa.Table:
    """The table of a Parquet file's bytes, read by this thread alone; ArrowException or OSError where they are none.

    pyarrow's pools of threads (it reads files by path with one, too) may still be starting when a short command leaves: its
    process then ends with SIGABRT.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def write_bytes(name: str, data: bytes) -> None:
    """Write a file that appears under its name only when whole, making the folders above it."""
    path = local_path(name)
    if path is not None:
        with whole_file(Path(path)) as partial:
            partial.write_bytes(data)
        return
    system, remote = open_filesystem(name)
    system.create_dir(posixpath.dirname(remote), recursive=True)
    with system.open_output_stream(remote) as stream:  # object stores show an object when its upload has ended
        stream.write(data)


def remove(name: str) -> None:
    """Remove a file; nothing happens where there is none."""
    system, path = open_filesystem(name)
    with suppress(FileNotFoundError):
        system.delete_file(path)


def remove_folder(name: str) -> None:
    """Remove a folder and all below it; nothing happens where there is none."""
    system, path = open_filesystem(name)
    with suppress(FileNotFoundError):
        system.delete_dir(path)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A local name to write to; the file is at `target` when the block ends, and nothing is left where it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def upload(path: Path, name: str) -> None:
    """Copy a local file to a URI, where it appears only when whole; never all of it in memory."""
    system, remote = open_filesystem(name)
    system.create_dir(posixpath.dirname(remote), recursive=True)
    with path.open("rb") as source, system.open_output_stream(remote) as target:
        shutil.copyfileobj(source, target, CHUNK)


def download(name: str, path: Path) -> None:
    """Copy a path or URI to a local file that appears only when whole; FileNotFoundError where there is none."""
    system, remote = open_filesystem(name)
    with system.open_input_stream(remote) as source, whole_file(path) as partial, partial.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK)


@contextmanager
def local_copy(name: str) -> Iterator[str]:
    """The path of a local file with the bytes of `name`: the file itself, or a copy that ends with the block."""
    path = local_path(name)
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vicc-") as folder:
        copy = Path(folder, "file" + posixpath.splitext(urlsplit(name).path)[1])
        download(name, copy)
        yield str(copy)


def _seconds(info: Any) -> float:
    return float(info.mtime_ns) / 1e9 if info.mtime_ns else 0.0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
