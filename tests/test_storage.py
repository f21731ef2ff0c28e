"""Files by path or URI mean the same: local, file://, an object store, whatever fsspec opens."""

from __future__ import annotations

from pathlib import Path

import pytest

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
