"""One encoder on disk: a single safetensors file with JSON in its metadata, never a pickle.

Tensors: `encoder.<name>` for the encoder's state and `prototypes.<i>` [K_i, D] for its prototype heads. Metadata:
`format` = "vicc-encoder", and `encoder` = JSON of the specification, the stream, the flow input and free-form facts.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vicc_ray.config import STREAMS, Stream
from vicc_ray.errors import UserError
from vicc_ray.models.encoder import Encoder, EncoderSpec, empty_encoder

# "published": the three channels are constant 128, v, u, quantised flow normalised like RGB (method facts 5).
FlowInput = Literal["published"]
FLOW_INPUTS: tuple[str, ...] = get_args(FlowInput)

_FORMAT = "vicc-encoder"
_VERSION = 1
_ENCODER = "encoder."
_PROTOTYPES = "prototypes."


@dataclass(frozen=True, eq=False)
class EncoderFile:
    """An encoder with what is needed to use it rightly.

    `stream` says what it was trained on and `flow_input` which channel order a flow encoder takes. `state_dict` is the
    state of `Encoder`; `prototypes` holds one tensor [K, embedding_dim] a head (none for a guide or an import that has
    none). `meta` is JSON: name (such as RGB-2), stage, config, versions, commit, data fingerprint.
    """

    spec: EncoderSpec
    stream: Stream
    state_dict: Mapping[str, Tensor]
    prototypes: list[Tensor] = field(default_factory=list)
    flow_input: FlowInput = "published"
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_stream(self.stream)
        if self.flow_input not in FLOW_INPUTS:
            raise UserError(f"flow_input {self.flow_input!r} is unknown; allowed: {', '.join(FLOW_INPUTS)}")
        for i, head in enumerate(self.prototypes):
            if head.ndim != 2 or head.shape[0] < 1 or head.shape[1] != self.spec.embedding_dim:
                raise UserError(
                    f"prototype head {i} is {list(head.shape)}, but [K, {self.spec.embedding_dim}] is needed"
                )

    def build(self) -> Encoder:
        """The encoder in eval mode on the CPU with these weights; UserError if they do not fit the spec exactly."""
        check_state(self.spec, self.state_dict)
        encoder = empty_encoder(self.spec).to_empty(device="cpu")
        encoder.load_state_dict(dict(self.state_dict), strict=True)
        return encoder.eval()


def check_stream(stream: str) -> None:
    """UserError unless `stream` is rgb or flow."""
    if stream not in STREAMS:
        raise UserError(f"stream {stream!r} is unknown; allowed: {', '.join(STREAMS)}")


def check_state(spec: EncoderSpec, state: Mapping[str, Tensor]) -> None:
    """UserError unless `state` has exactly the names and shapes of an encoder of `spec`."""
    expected = {name: tuple(tensor.shape) for name, tensor in empty_encoder(spec).state_dict().items()}
    wrong = mismatch(expected, state)
    if wrong:
        raise UserError(f"the weights do not fit a {spec.backbone} encoder of width {spec.width}: {wrong}")


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


def save_encoder(path: Path | str, encoder_file: EncoderFile) -> None:
    """Writes the file whole or not at all, making its folder; UserError if the weights or the disk do not allow it."""
    check_state(encoder_file.spec, encoder_file.state_dict)
    tensors = {f"{_ENCODER}{name}": tensor for name, tensor in encoder_file.state_dict.items()}
    tensors |= {f"{_PROTOTYPES}{i}": head for i, head in enumerate(encoder_file.prototypes)}
    # A copy each: safetensors refuses tensors that share memory or are strided.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        # Not save_file, which makes the file readable by its owner only.
        temporary.write_bytes(
            safetensors.torch.save(plain, {"format": _FORMAT, "encoder": facts_as_json(encoder_file)})
        )


def facts_as_json(encoder_file: EncoderFile) -> str:
    """All of an encoder file but its tensors, as JSON."""
    return json.dumps(
        {
            "version": _VERSION,
            "spec": asdict(encoder_file.spec),
            "stream": encoder_file.stream,
            "flow_input": encoder_file.flow_input,
            "meta": encoder_file.meta,
        }
    )


def load_encoder(path: Path | str) -> EncoderFile:
    """Reads what `save_encoder` wrote; UserError in one line for a missing or damaged file or another format."""
    path = readable_file(path)
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"{path} is a safetensors file, but not an encoder that this program wrote")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): damaged, truncated or another format; "
            "published checkpoints are read by `vicc import`"
        ) from None
    try:
        facts = json.loads(metadata["encoder"])
        if facts["version"] != _VERSION:
            raise UserError(f"{path} has version {facts['version']!r} of the encoder format; this program reads 1")
        heads = sorted((int(name.removeprefix(_PROTOTYPES)), name) for name in tensors if name.startswith(_PROTOTYPES))
        return EncoderFile(
            spec=EncoderSpec(**facts["spec"]),
            stream=facts["stream"],
            flow_input=facts["flow_input"],
            state_dict={name.removeprefix(_ENCODER): t for name, t in tensors.items() if name.startswith(_ENCODER)},
            prototypes=[tensors[name] for _, name in heads],
            meta=dict(facts["meta"]),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the encoder's description is damaged ({type(error).__name__}: {error})") from None


def readable_file(path: Path | str) -> Path:
    """`path` as a Path if it is a file with something in it; UserError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is a folder, not a file" if path.is_dir() else f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    return path


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
