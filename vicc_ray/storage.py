"""Files by path or URI: a local folder, `file://`, `s3://`, `gs://`, `abfs://`, `http(s)://` (to read) and others of fsspec.

A path without `://` is local and is only a name (`a:b.mp4` and `-x.mp4` too). In a URI `%23` stands for `#`, as in every
URI; `#` and `?` stand for themselves, because they are allowed in the names of files and objects. Only of `http(s)://`,
where a server reads it, the URL is passed on as it is.

Object stores take their address and credentials from where their own tools look for them (environment, profile, metadata
service), never from a URI, which would end up in a run's files and in error messages: such a URI is refused.
`s3://` honours AWS_ENDPOINT_URL.

A file appears under its name only when it is whole, locally and in a store; an interrupted write leaves the earlier one.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from vicc_ray.errors import UserError
from vicc_ray.machine import lock

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

CHUNK = 8 << 20
# A local table above this size is not read into memory before it is decoded.
MAPPED_BYTES = 64 << 20
# An object above this size is uploaded under another name and then copied by the store, so that Ctrl-C need not wait.
DRAFTED = 8 << 20
# Stores copy no larger object in one request.
MOST_COPIED = 5 << 30

WEB = ("http", "https")
# Words in the name of a variable or of a part of a query that say that its value is secret.
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|ACCESS_?KEY|API_?KEY", re.IGNORECASE)
_SECRET_QUERY = re.compile(r"^SIG$|SIGNATURE|^SAS|ACCOUNT_?KEY|^KEY$|^AUTH", re.IGNORECASE)
# Where the part before the @ names an account or a container; elsewhere it is a key.
_NAMED_ACCOUNT = ("abfs", "abfss", "wasb", "wasbs", "hdfs", "ssh", "sftp")
# Options that pyarrow reads from the query of a URI. Here a query is part of the name, so they would go unnoticed.
_OPTIONS = {"region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion", "anonymous"}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file below a folder: its whole name in the form of the request (path or URI), bytes, and when it was changed (seconds)."""

    name: str
    bytes: int
    modified: float


def is_uri(name: str) -> bool:
    """Whether a name says how it is reached (`s3://...`) and is not just a local path."""
    return "://" in name


def is_web(name: str) -> bool:
    """Whether a name is an `http(s)://` URL, which can be read and neither listed nor written."""
    return is_uri(name) and parts_of(name)[0] in WEB


def parts_of(uri: str) -> tuple[str, str, str]:
    """Scheme, authority (bucket, host, account) and the rest behind its slash, as they are written."""
    scheme, _, rest = uri.partition("://")
    authority, _, inner = rest.partition("/")
    return scheme.lower(), authority, inner


def credentials_in(name: str) -> str | None:
    """Which part of a URI is a credential, in words for the reader; None where none is."""
    if not is_uri(name):
        return None
    scheme, authority, _ = parts_of(name)
    user, at, _ = authority.partition("?")[0].rpartition("@")
    if at and (":" in user or scheme not in _NAMED_ACCOUNT):
        return "the part before the @"
    for pair in re.split("[&;]", name.partition("?")[2]):
        key = unquote(pair.partition("=")[0])
        if "=" in pair and (SECRET_NAME.search(key) or _SECRET_QUERY.search(key)):
            return f"'{key}' in its query"
    return None


def refuse_credentials(name: str, what: str = "") -> None:
    """UserError, which does not repeat them, for a URI that carries credentials; `what` names the field that holds it."""
    found = credentials_in(name)
    if found:
        scheme, authority, _ = parts_of(name)
        place = f"{scheme}://{authority.partition('?')[0].rpartition('@')[2]}"
        raise UserError(
            f"{what or place}: the URI carries credentials ({found}), which a run's files would keep; take them out and give "
            "the machines their rights instead (a role of the machine, a service account, the store's own settings)"
        )


def local_path(name: str) -> str | None:
    """The absolute path of a local name or `file://` URI; None for what lies elsewhere."""
    if not is_uri(name):
        return os.path.abspath(name)
    scheme, authority, inner = parts_of(name)
    if scheme != "file":
        return None
    if authority not in ("", "localhost"):
        raise UserError(
            f"{name}: '{authority}' would be another machine; a file of this one is written file:///FOLDER/FILE"
        )
    return "/" + unquote(inner)


def absolute(name: str) -> str:
    """A name that means the same from every folder: local ones absolute, URIs without a slash at their end."""
    return local_path(name) or name.rstrip("/")


def join(base: str, *parts: str) -> str:
    """A name below a folder."""
    return posixpath.join(base, *parts)


def open_filesystem(name: str) -> tuple[FileSystem, str]:
    """The file system that holds `name` and the path in it.

    `UserError` for a scheme that nothing here opens, and for a URI with credentials, options, or `.` and `..` as parts.
    """
    path = local_path(name)
    if path is not None:
        return _local_filesystem(), path
    refuse_credentials(name)
    scheme, authority, inner = parts_of(name)
    if scheme in WEB:
        return _remote_filesystem(scheme, authority)[0], name
    _refuse_options(name)
    # Object stores know no such folders; a mirror or a listing would lead out of the folder that is meant.
    if {".", ".."} & set(unquote(inner).split("/")):
        raise UserError(f"{name}: has '.' or '..' as a part; write the whole name of the folder")
    system, base = _remote_filesystem(scheme, authority)
    inner = unquote(inner).rstrip("/")
    return system, f"{base.rstrip('/')}/{inner}".rstrip("/") if base else inner


def _refuse_options(name: str) -> None:
    found = {pair.partition("=")[0] for pair in name.partition("?")[2].split("&") if "=" in pair} & _OPTIONS
    if found or set("?#") & set(parts_of(name)[1]):
        which = ", ".join(sorted(found)) or "behind the bucket"
        raise UserError(
            f"{name}: options of the store ({which}) are not read from a URI; set them where the store's own tools look, for "
            "example AWS_REGION and AWS_ENDPOINT_URL"
        )


@lru_cache(maxsize=1)
def _local_filesystem() -> FileSystem:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


@lru_cache(maxsize=32)
def _remote_filesystem(scheme: str, authority: str) -> tuple[FileSystem, str]:
    """A store and the path of the authority's root in it. One connection a process: opening one costs a round trip or more."""
    import pyarrow as pa
    from pyarrow import fs

    if scheme in WEB:
        return fs.PyFileSystem(fs.FSSpecHandler(_web())), ""
    # Small objects in one request, made when their bytes are complete.
    options = "?allow_delayed_open=true" if scheme == "s3" else ""
    try:
        # A scheme that pyarrow does not know may be one of fsspec's.
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            system, root = fs.FileSystem.from_uri(f"{scheme}://{authority}/{options}")
            return system, root
    except OSError as error:
        raise UserError(f"{scheme}://{authority}: the store does not answer: {_one_line(error)}") from error
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(f"{scheme}://{authority}/")
    except (ImportError, ValueError) as error:
        raise UserError(f"{scheme}://: nothing that is installed opens it ({_one_line(error)})") from error
    return fs.PyFileSystem(fs.FSSpecHandler(system)), root


def remote_in_use() -> bool:
    """Whether this process has connected to an object store: its client has threads, which a fork would be without."""
    return _remote_filesystem.cache_info().currsize > 0


@lru_cache(maxsize=1)
def _web() -> Any:
    """Reads `http(s)://`. A large video may take longer than aiohttp's five minutes; silence is what ends a transfer."""
    import aiohttp
    import fsspec

    patience = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    return fsspec.filesystem("http", client_kwargs={"timeout": patience, "trust_env": True})


@contextmanager
def _web_errors(name: str) -> Iterator[None]:
    """What a web server or the way to it objects to, as FileNotFoundError, PermissionError or OSError."""
    import aiohttp

    try:
        yield
    except (FileNotFoundError, aiohttp.ClientError, ValueError) as error:
        # fsspec calls every failure a missing file and keeps the reason as its cause.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status = getattr(cause, "status", None)
        missing = cause is error and isinstance(error, FileNotFoundError)
        if missing or status in (404, 410):
            raise FileNotFoundError(2, "no such file", name) from error
        if status in (401, 403):
            raise PermissionError(13, f"the server refuses it (status {status})", name) from error
        raise OSError(f"{name}: {_one_line(cause)}") from error


def _describe_web(name: str) -> FileEntry:
    with _web_errors(name):
        info = _web().info(name)
    changed = info.get("Last-Modified")
    modified = 0.0
    with suppress(TypeError, ValueError):
        modified = parsedate_to_datetime(changed).timestamp()
    return FileEntry(name, info.get("size") or 0, modified)


def list_files(folder: str, recursive: bool = True) -> Iterator[FileEntry]:
    """Files below a folder or prefix, in the order of their names; hidden ones (a part begins with a dot) are passed over.

    Raises `UserError` where there is no such folder or the store refuses.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSelector, FileType

    refuse_credentials(folder)
    if is_web(folder):
        raise UserError(f"{folder}: http(s) has no folders to list; give a list or a table of the files' URLs")

    system, root = open_filesystem(folder)
    try:
        infos = system.get_file_info(FileSelector(root, recursive=recursive))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no such folder") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{folder}: cannot be listed: {_one_line(error)}") from error
    for info in sorted(infos, key=lambda info: info.path):
        # Some file systems begin paths with a slash, whether the request has one or not.
        inner = info.path.lstrip("/").removeprefix(root.lstrip("/")).lstrip("/")
        if info.type == FileType.File and not any(part.startswith(".") for part in inner.split("/")):
            yield FileEntry(join(folder, quote(inner) if is_uri(folder) else inner), info.size, _seconds(info))


def describe(name: str) -> FileEntry | None:
    """Size and time of one file; None where there is no such file (a folder is none)."""
    from pyarrow.fs import FileType

    if is_web(name):
        refuse_credentials(name)
        with suppress(FileNotFoundError):
            return _describe_web(name)
        return None
    system, path = open_filesystem(name)
    info = system.get_file_info(path)
    return FileEntry(name, info.size, _seconds(info)) if info.type == FileType.File else None


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name."""
    from pyarrow.fs import FileType

    if is_web(name):
        return describe(name) is not None
    system, path = open_filesystem(name)
    return bool(system.get_file_info(path).type != FileType.NotFound)


def is_folder(name: str) -> bool:
    """Whether the name is a folder, or a prefix below which an object store holds something."""
    from pyarrow.fs import FileType

    if is_web(name):
        return False
    system, path = open_filesystem(name)
    return bool(system.get_file_info(path).type == FileType.Directory)


def read_bytes(name: str) -> bytes:
    """The whole file; OSError (FileNotFoundError, PermissionError) as the store raises it."""
    system, path = open_filesystem(name)
    if is_web(name):
        with _web_errors(name):
            content: bytes = _web().cat_file(name)
        return content
    with system.open_input_stream(path) as stream:
        data: bytes = stream.readall()
    return data


def parquet_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a Parquet file's bytes (None: all its columns), read by this thread alone; ArrowException or OSError where
    they are none, or damaged.

    pyarrow's pools of threads (it reads files by path with one, too) may still be starting when a short command leaves: its
    process then ends with SIGABRT.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(
        None if columns is None else list(columns), use_threads=False
    )


def parquet_parts(
    name: str, read: Callable[[pa.Table], pa.Table], repeated: Sequence[str] = (), threads: int = 1
) -> list[pa.Table]:
    """What `read` makes of each row group of a Parquet file, in order, by that many threads; no group's raw table outlives it.

    `repeated`: columns of which each value is held once. Errors as of `read_bytes` and `parquet_table`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = local_path(name)
    # Mapped, a file's bytes are no memory of this process; what `whole_file` puts in its place is another file.
    mapped = path is not None and os.path.getsize(path) >= MAPPED_BYTES
    data = _mapped(str(path)) if mapped else pa.py_buffer(read_bytes(name))

    def opened() -> pq.ParquetFile:
        source = pa.BufferReader(data)
        return pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=there)

    there: list[str] | None = None
    schema = opened().schema_arrow
    there = [column for column in repeated if column in schema.names] or None
    files = threading.local()

    def part(group: int) -> pa.Table:
        if not hasattr(files, "file"):
            files.file = opened()
        return read(files.file.read_row_group(group, use_threads=False).replace_schema_metadata(schema.metadata))

    groups = range(opened().num_row_groups)
    if threads == 1 or len(groups) < 2:
        found = [part(group) for group in groups]
    else:
        with ThreadPoolExecutor(min(threads, len(groups)), thread_name_prefix="parquet") as pool:
            found = list(pool.map(part, groups))
    return found or [read(schema.empty_table())]


def _mapped(path: str) -> pa.Buffer:
    import pyarrow as pa

    with pa.memory_map(path) as file:
        return file.read_buffer()


def write_bytes(name: str, data: bytes) -> None:
    """Write a file that appears under its name only when whole, making the folders above it."""
    path = local_path(name)
    if path is not None:
        with whole_file(Path(path)) as partial:
            partial.write_bytes(data)
        return
    system, remote = _writable(name)
    _put(system, remote, lambda stream: stream.write(data))


def _writable(name: str) -> tuple[FileSystem, str]:
    refuse_credentials(name)
    if is_web(name):
        raise UserError(f"{name}: http(s) can only be read; name a folder or an object store to write to")
    return open_filesystem(name)


def _put(system: FileSystem, remote: str, write: Callable[[Any], Any]) -> None:
    """Make an object from all that `write` gives to its stream, in a thread of its own.

    However a stream is left, pyarrow makes an object of the bytes that it got. Ctrl-C comes to the main thread only, so it
    waits for the end of the object and leaves no cut one.
    """

    def work() -> None:
        with _output(system, remote) as stream:
            write(stream)

    with ThreadPoolExecutor(1, thread_name_prefix="upload") as alone:
        alone.submit(work).result()


def _output(system: FileSystem, remote: str) -> Any:
    """A stream to a new object. Object stores have no folders, and a marker for one may not be allowed: none is made."""
    try:
        return system.open_output_stream(remote)
    except FileNotFoundError:
        if not system.type_name.startswith("py::"):
            raise
        system.create_dir(posixpath.dirname(remote), recursive=True)
        return system.open_output_stream(remote)


def remove(name: str) -> None:
    """Remove a file; nothing happens where there is none."""
    system, path = _writable(name)
    with suppress(FileNotFoundError), _removing(name):
        system.delete_file(path)


def remove_folder(name: str) -> None:
    """Remove a folder and all below it; nothing happens where there is none."""
    system, path = _writable(name)
    with suppress(FileNotFoundError), _removing(name):
        system.delete_dir(path)


@contextmanager
def _removing(name: str) -> Iterator[None]:
    """pyarrow ends by writing a marker for the folder above, which may not be allowed: what counts is that it is gone."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError:
        if exists(name):
            raise


_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}")


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A local name to write to; the file is at `target` when the block ends, and nothing is left where it fails.

    Read permissions follow from the umask, as for every file that a program makes.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    for last_try in (False, False, True):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            break
        except FileNotFoundError:  # another process has just removed the folder, which was empty
            if last_try:
                raise
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partials(folder: Path, older: float = 0.0) -> None:
    """Remove what a killed process had begun to write in a folder, and below it, with `whole_file`.

    `older`: seconds since it was last written to, where other writers may be at work.
    """
    for path in partials(folder, older):
        with suppress(OSError):  # another one removes it too
            path.unlink()


def partials(folder: Path, older: float = 0.0) -> Iterator[Path]:
    """What `whole_file` has begun in a folder, and below it, and has not finished; last written to `older` seconds ago or more."""
    for path in folder.rglob(".*"):
        with suppress(OSError):  # its writer was not killed
            if _PARTIAL.fullmatch(path.name) and time.time() - path.stat().st_mtime >= older:
                yield path


@contextmanager
def only_writer(folder: str, what: str) -> Iterator[None]:
    """UserError where another process of this machine (or file system, where that has locks) writes there; `what` names it.

    The lock goes with its process, however that ends. In an object store there is none: there writers are safe side by side,
    at the price of work done twice.
    """
    local = local_path(folder)
    if local is None:
        yield
        return
    try:
        os.makedirs(local, exist_ok=True)
        handle = os.open(Path(local, "_lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        if lock(handle) is False:
            raise UserError(f"{folder}: another {what} is at work on it; wait for its end")
        yield
    finally:
        with suppress(OSError):
            os.close(handle)


def upload(path: Path, name: str) -> None:
    """Copy a local file to a path or URI, where it appears only when whole; never all of it in memory."""
    if (target := local_path(name)) is not None:
        with whole_file(Path(target)) as partial:
            shutil.copyfile(path, partial)
        return
    system, remote = _writable(name)
    if DRAFTED < path.stat().st_size <= MOST_COPIED:
        _upload_draft(system, path, remote)
        return
    with path.open("rb") as source:
        if source.seek(0, os.SEEK_END) <= DRAFTED:
            source.seek(0)
            data = source.read()  # before the object is begun: nothing that fails here may cut it
            _put(system, remote, lambda stream: stream.write(data))
        else:
            source.seek(0)
            _put(system, remote, lambda stream: shutil.copyfileobj(source, stream, CHUNK))


def _upload_draft(system: FileSystem, path: Path, remote: str) -> None:
    folder, base = posixpath.split(remote)
    draft = posixpath.join(folder, f".{base}.{uuid.uuid4().hex}")
    try:
        with path.open("rb") as source, _output(system, draft) as target:
            shutil.copyfileobj(source, target, CHUNK)
        system.copy_file(draft, remote)
    finally:
        with suppress(OSError):  # hidden, so nobody takes it for a file of the folder
            system.delete_file(draft)


def download(name: str, path: Path) -> None:
    """Copy a path or URI to a local file that appears only when whole; FileNotFoundError where there is none."""
    system, remote = open_filesystem(name)
    if is_web(name):
        with whole_file(path) as partial, _web_errors(name):
            _web().get_file(name, str(partial))
        return
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
        inner = parts_of(name)[2]
        plain = re.split("[?#]", inner)[0] if is_web(name) else unquote(inner)
        copy = Path(folder, "file" + posixpath.splitext(plain)[1])
        download(name, copy)
        yield str(copy)


def _seconds(info: Any) -> float:
    return float(info.mtime_ns) / 1e9 if info.mtime_ns else 0.0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
