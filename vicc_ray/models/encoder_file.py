"""One encoder on disk (`models.weight_file`).

Tensors: `encoder.<name>` for the encoder's state and `prototypes.<i>` [K_i, D] for its prototype heads. Facts: the
specification, the stream, the flow input and free-form ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from vicc_ray.config import STREAMS, Stream
from vicc_ray.errors import UserError
from vicc_ray.models.encoder import Encoder, EncoderSpec, blank_encoder, empty_encoder
from vicc_ray.models.weight_file import mismatch, read_facts, read_weights, understood, write_weights

# "published": the three channels are constant 128, v, u, quantised flow normalised like RGB (docs/method.md, section 5).
FlowInput = Literal["published"]
FLOW_INPUTS: tuple[str, ...] = get_args(FlowInput)

_HINT = "published checkpoints are read by `vicc import`"
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
        encoder = blank_encoder(self.spec)
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


def save_encoder(path: Path | str, encoder_file: EncoderFile) -> None:
    """Writes the file whole or not at all, making its folder; UserError if the weights or the disk do not allow it."""
    check_state(encoder_file.spec, encoder_file.state_dict)
    tensors = {f"{_ENCODER}{name}": tensor for name, tensor in encoder_file.state_dict.items()}
    tensors |= {f"{_PROTOTYPES}{i}": head for i, head in enumerate(encoder_file.prototypes)}
    write_weights(path, "encoder", facts_of(encoder_file), tensors)


def facts_of(encoder_file: EncoderFile) -> dict[str, Any]:
    """All of an encoder file but its tensors, as JSON takes it."""
    return {
        "spec": asdict(encoder_file.spec),
        "stream": encoder_file.stream,
        "flow_input": encoder_file.flow_input,
        "meta": encoder_file.meta,
    }


def load_encoder(path: Path | str) -> EncoderFile:
    """Reads what `save_encoder` wrote; UserError in one line for a missing or damaged file or another format."""
    facts, tensors = read_weights(path, "encoder", _HINT)
    with understood(path, "encoder"):
        heads = sorted((int(name.removeprefix(_PROTOTYPES)), name) for name in tensors if name.startswith(_PROTOTYPES))
        return EncoderFile(
            spec=EncoderSpec(**facts["spec"]),
            stream=facts["stream"],
            flow_input=facts["flow_input"],
            state_dict={name.removeprefix(_ENCODER): t for name, t in tensors.items() if name.startswith(_ENCODER)},
            prototypes=[tensors[name] for _, name in heads],
            meta=dict(facts["meta"]),
        )


def stream_of(path: Path | str) -> Stream:
    """What an encoder's file says that it was trained on, read without its weights; UserError as `load_encoder`."""
    facts = read_facts(path, "encoder", _HINT)
    with understood(path, "encoder"):
        stream: Stream = facts["stream"]
        check_stream(stream)
        return stream
