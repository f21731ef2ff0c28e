"""Weights and what they are in one file: safetensors with JSON in its metadata, whole or not there, never a pickle.

Metadata: `format` = "vicc-KIND", KIND = JSON of the facts, whose `version` says how to read them, and `digest` = hash of all
else in the file (missing in files of earlier versions). KIND is encoder or classifier. The same weights and facts give the
same bytes.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vicc_ray.errors import UserError

VERSION = 1


def write_weights(path: Path | str, kind: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes the file, making its folder; UserError if the disk does not allow it."""
    # A copy each: safetensors refuses tensors that share memory or are strided.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    described = {"format": f"vicc-{kind}", kind: json.dumps({"version": VERSION, **facts})}
    with atomic_path(path) as temporary:
        header, data = _parts(safetensors.torch.save(plain))
        header["__metadata__"] = described
        described["digest"] = _digest(header, data)
        with temporary.open("wb") as file:
            file.write(_packed(header))
            file.write(data)


def check_whole(path: Path | str) -> None:
    """UserError where the file is not as it was written; nothing for one of an earlier version, which has no digest."""
    path = readable_file(path)
    header, data = _parts(path.read_bytes())
    stated = header.get("__metadata__", {}).get("digest")
    if stated is not None and stated != _digest(header, data):
        raise UserError(f"{path} is damaged: its content is not what was written; copy it again, or make it again")


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header of a safetensors file (names, types, places, `__metadata__`), and the tensors' bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start])
    return header, memoryview(content)[start:]


def _packed(header: Mapping[str, Any]) -> bytes:
    """A header as a safetensors file begins: its length in 8 bytes, then JSON filled up with blanks to whole 8 bytes.

    Sorted, as safetensors itself writes several entries of metadata in an order that is drawn anew each time.
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(header: Mapping[str, Any], data: memoryview) -> str:
    """blake2b-128 (hex) of a file but for its digest."""
    metadata = {name: value for name, value in header.get("__metadata__", {}).items() if name != "digest"}
    digest = blake2b(_packed({**header, "__metadata__": metadata}), digest_size=16)
    digest.update(data)
    return digest.hexdigest()


def read_facts(path: Path | str, kind: str, hint: str = "") -> dict[str, Any]:
    """The facts of a file, without its tensors; UserError in one line for a missing, damaged or other file."""
    path = readable_file(path)
    with _opened(path, hint) as file:
        metadata = file.metadata() or {}
    article = "an" if kind[0] in "aeiou" else "a"
    if metadata.get("format") != f"vicc-{kind}":
        raise UserError(f"{path} is a safetensors file, but not {article} {kind} that this program wrote")
    if unknown := set(metadata) - {"format", kind, "digest"}:
        raise UserError(f"{path}: its metadata has entries that no {kind} has ({', '.join(sorted(unknown))}): damaged")
    with understood(path, kind):
        facts: dict[str, Any] = json.loads(metadata[kind])
        if facts["version"] != VERSION:
            raise UserError(f"version {facts['version']!r} of the {kind} format; this program reads {VERSION}")
        return facts


def read_weights(path: Path | str, kind: str, hint: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and the tensors (on the CPU) of a file; UserError as `read_facts`, whose `hint` says what else to do."""
    facts = read_facts(path, kind, hint)
    check_whole(path)
    with _opened(Path(path), hint) as file:
        return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


@contextmanager
def understood(path: Path | str, kind: str) -> Iterator[None]:
    """For reading facts: what is missing or of a wrong type in them is a UserError that names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the {kind}'s description is damaged ({type(error).__name__}: {error})") from None


@contextmanager
def _opened(path: Path, hint: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): damaged, truncated or another format{hint and '; '}{hint}"
        ) from None


def readable_file(path: Path | str) -> Path:
    """`path` as a Path if it is a file with something in it; UserError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is a folder, not a file" if path.is_dir() else f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    return path


def mismatch(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> str:
    """How `state` differs from `expected` (name -> shape): counts and the first few names; "" if it does not."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(names)} {what} ({first_few(names)})" for what, names in parts if names)


def first_few(names: list[str], count: int = 3) -> str:
    """The first `count` names, with ", ..." where there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to it (and flushed to disk) if the block ends well, else removed.

    Folders above `path` are made. UserError where the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """fsync of a file or, after a rename, of its folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
