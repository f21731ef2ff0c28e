"""Files by path or URI mean the same: local, file://, an object store, whatever fsspec opens."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web import web_server

from vicc_ray import storage
from vicc_ray.errors import UserError


@pytest.fixture(params=["path", "file", "s3", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/base"
    if request.param == "memory":
        return f"memory://{tmp_path.name.replace('_', '')}/base"
    return str(tmp_path / "base") if request.param == "path" else (tmp_path / "base").as_uri()


def test_what_is_written_is_there_whole_and_can_be_removed(base: str) -> None:
    name = storage.join(base, "deep", "a b.bin")
    name = name.replace(" ", "%20") if storage.is_uri(base) else name
    assert storage.describe(name) is None
    assert not storage.exists(name)
    storage.write_bytes(name, b"one")
    storage.write_bytes(name, b"three")
    assert storage.read_bytes(name) == b"three"
    entry = storage.describe(name)
    assert entry
    assert entry.bytes == 5
    assert [(e.name, e.bytes) for e in storage.list_files(base)] == [(name, 5)]
    assert storage.is_folder(storage.join(base, "deep"))
    with storage.local_copy(name) as path:
        assert Path(path).read_bytes() == b"three"
        assert path.endswith(".bin")
    storage.remove(name)
    storage.remove(name)
    assert not storage.exists(name)
    storage.write_bytes(name, b"x")
    storage.remove_folder(base)
    storage.remove_folder(base)
    assert not storage.exists(name)


def test_a_missing_file_is_a_file_not_found(base: str) -> None:
    storage.write_bytes(storage.join(base, "there"), b"")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(base, "absent"))


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("-x.mp4") == str(tmp_path / "-x.mp4")
    assert storage.absolute("a:b.mp4") == str(tmp_path / "a:b.mp4")
    assert storage.absolute("s3://bucket/runs/") == "s3://bucket/runs"
    assert storage.local_path((tmp_path / "ä b").as_uri()) == str(tmp_path / "ä b")
    assert storage.local_path("s3://bucket/x") is None


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden", ".git/config"):
        storage.write_bytes(str(tmp_path / name), b"")
    assert [Path(entry.name).name for entry in storage.list_files(str(tmp_path))] == ["a", "b"]


def test_what_nothing_opens_is_named() -> None:
    with pytest.raises(UserError, match="nowhere://: nothing that is installed opens it"):
        storage.exists("nowhere://x/y")
    with pytest.raises(UserError, match="no such folder"):
        list(storage.list_files("/absent/folder"))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with storage.whole_file(tmp_path / "a") as partial:
            partial.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("loose/ab/x.rgb", ".hidden", ".a.partial.jsonl", "loose/.x.rgb.12345678.more")]
    left = [tmp_path / name for name in ("loose/ab/.x.rgb.12ab34cd", ".metrics.jsonl.00000000")]
    for path in kept + left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    storage.remove_partials(tmp_path, older=3600)  # they may be written to now
    assert all(path.exists() for path in kept + left)
    storage.remove_partials(tmp_path)
    assert [path.exists() for path in kept] == [True] * len(kept)
    assert [path.exists() for path in left] == [False] * len(left)


def test_a_folder_that_is_removed_before_the_first_byte_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store's empty folders are removed while others write into it."""
    opened, target = os.open, tmp_path / "loose" / "ab" / "x"

    def open_late(path: Any, *arguments: Any) -> int:
        if target.parent.exists() and not removed:
            target.parent.rmdir()
            removed.append(True)
        return opened(path, *arguments)

    removed: list[bool] = []
    monkeypatch.setattr(os, "open", open_late)
    with storage.whole_file(target) as partial:
        partial.write_bytes(b"whole")
    assert removed and target.read_bytes() == b"whole"


@pytest.mark.parametrize("name", ["exp#1", "a?b.mp4", "100%.mp4", "#", "take 2?x=1#end.mp4"])
def test_marks_of_urls_are_parts_of_a_name(base: str, name: str) -> None:
    """Nothing is cut: two names are two files, and what is listed is what was written."""
    for folder in (name, f"{name}2"):
        storage.write_bytes(storage.join(base, folder, "config.yaml"), folder.encode())
    assert storage.read_bytes(storage.join(base, name, "config.yaml")) == name.encode()
    listed = [entry.name for entry in storage.list_files(base)]
    assert [storage.read_bytes(one).decode() for one in listed] == sorted([name, f"{name}2"])


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a web server and the files that it has."""
    with web_server() as server:
        yield server


def test_web_addresses_are_read(web: tuple[str, dict[str, bytes]]) -> None:
    address, files = web
    files["/videos/a%20b.mp4?part=1"] = bytes(range(256)) * 40
    name = f"{address}/videos/a%20b.mp4?part=1"
    entry = storage.describe(name)
    assert entry
    assert (entry.bytes, entry.modified) == (10240, 1445412480.0)
    assert storage.exists(name)
    assert not storage.is_folder(name)
    assert storage.read_bytes(name) == files["/videos/a%20b.mp4?part=1"]
    with storage.local_copy(name) as path:
        assert Path(path).read_bytes() == files["/videos/a%20b.mp4?part=1"]
        assert path.endswith(".mp4")
    system, path = storage.open_filesystem(name)
    with system.open_input_stream(path) as stream:
        assert stream.read(3) == bytes(range(3))


def test_what_the_web_refuses(web: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    address, _ = web
    assert storage.describe(f"{address}/gone.mp4") is None
    assert not storage.exists(f"{address}/gone.mp4")
    for name, error in (("gone.mp4", FileNotFoundError), ("closed", PermissionError)):
        with pytest.raises(error):
            storage.read_bytes(f"{address}/{name}")
        with pytest.raises(error):
            storage.download(f"{address}/{name}", tmp_path / "copy")
    with pytest.raises(PermissionError, match="status 403"):
        storage.describe(f"{address}/closed")
    for question in (storage.describe, storage.exists, storage.read_bytes):  # an outage is no deletion
        with pytest.raises(OSError, match="503") as busy:
            question(f"{address}/busy")
        assert not isinstance(busy.value, FileNotFoundError)
    with pytest.raises(OSError, match="Cannot connect"):
        storage.read_bytes("http://127.0.0.1:1/x.mp4")
    with pytest.raises(UserError, match="can only be read"):
        storage.write_bytes(f"{address}/x", b"")
    with pytest.raises(UserError, match="no folders to list"):
        list(storage.list_files(f"{address}/videos"))
    assert list(tmp_path.iterdir()) == []


def test_a_container_of_an_account_is_a_place() -> None:
    """The path in the store is what pyarrow makes of the authority, which differs from scheme to scheme."""
    system, path = storage.open_filesystem("abfs://videos@account.dfs.core.windows.net/runs/a%20b")
    assert (system.type_name, path) == ("abfs", "videos/runs/a b")


SECRETS = [
    "s3://AKIAEXAMPLE:HUSH@bucket/runs",
    "s3://HUSH@bucket/runs",
    "https://me:HUSH@host/runs",
    "abfs://videos@account.dfs.core.windows.net/runs?sv=2024-01-01&sig=HUSH",
    "abfs://videos:HUSH@account.dfs.core.windows.net/runs",
    "s3://bucket/runs?access_key=A&secret_key=HUSH",
    "https://host/v.mp4?X-Amz-Signature=HUSH",
]


@pytest.mark.parametrize("name", SECRETS)
def test_credentials_in_a_name_are_refused_and_not_repeated(name: str, tmp_path: Path) -> None:
    assert storage.credentials_in(name)
    for attempt in (storage.exists, storage.read_bytes, storage.describe, lambda n: storage.write_bytes(n, b"")):
        with pytest.raises(UserError, match="carries credentials") as caught:
            attempt(name)
        assert "HUSH" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["s3://bucket/a@b/c", "abfs://c@a.dfs.core.windows.net/x", "sftp://me@host/x", "a:b@c"]
)
def test_what_only_looks_like_credentials(name: str) -> None:
    assert storage.credentials_in(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("s3://bucket/runs?region=eu-west-1", "options of the store \\(region\\) are not read"),
        ("s3://bucket?x=1", "are not read from a URI"),
        ("s3://bucket#1/runs", "are not read from a URI"),
        ("s3://bucket/runs/../other", "'.' or '..' as a part"),
        ("s3://bucket/runs/%2e%2e/other", "'.' or '..' as a part"),
        ("file://server/videos/a.mp4", "'server' would be another machine"),
    ],
)
def test_what_would_be_another_place_is_refused(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        storage.exists(name)


def _keys(bucket: str) -> list[str]:
    import boto3

    listed = boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://"))
    return [entry["Key"] for entry in listed.get("Contents", [])]


def test_writing_makes_no_markers_of_folders(bucket: str, tmp_path: Path) -> None:
    """Credentials for one prefix may write none above it."""
    small = tmp_path / "small"
    small.write_bytes(b"2")
    storage.write_bytes(f"{bucket}/runs/x/one", b"1")
    storage.upload(small, f"{bucket}/runs/x/deep/two")
    assert _keys(bucket) == ["runs/x/deep/two", "runs/x/one"]


def test_an_interrupted_upload_leaves_the_earlier_object(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(storage.DRAFTED + 1))
    name = f"{bucket}/x/features.parquet"
    storage.upload(large, name)

    def half(source: Any, target: Any, *_: Any) -> None:
        target.write(source.read(6 << 20))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", half)
        for target in (name, f"{bucket}/x/new"):
            with pytest.raises(KeyboardInterrupt):
                storage.upload(large, target)
    entry = storage.describe(name)
    assert entry
    assert entry.bytes == storage.DRAFTED + 1
    assert [key for key in _keys(bucket) if not key.endswith("/")] == ["x/features.parquet"]


def test_ctrl_c_waits_for_a_small_object(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = storage._output

    class Slow:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Slow:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, data: bytes) -> None:
            for part in (data[:1], data[1:]):
                self.stream.write(part)
                time.sleep(0.3)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "_output", lambda system, remote: Slow(output(system, remote)))
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes(f"{bucket}/x", b"whole")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert storage.read_bytes(f"{bucket}/x") == b"whole"


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_who_may_read_a_file_follows_from_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        storage.write_bytes(str(tmp_path / "a" / "b"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == mode


def test_whether_a_store_is_in_use_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    storage._remote_filesystem.cache_clear()
    storage.exists("/nowhere")
    assert not storage.remote_in_use()
    storage.exists("memory://bucket/nowhere")
    assert storage.remote_in_use()
