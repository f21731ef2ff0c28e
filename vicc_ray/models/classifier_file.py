"""One classifier on disk (`models.weight_file`).

Tensors: the state of `Classifier` (`encoder.<name>`, `head.<name>`). Facts: the encoder's specification, the stream, the
protocol, the classes and free-form ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vicc_ray import storage
from vicc_ray.config import Stream
from vicc_ray.errors import UserError
from vicc_ray.models.classifier import PROTOCOLS, Classifier, ClassifierProtocol, blank_classifier, empty_classifier
from vicc_ray.models.encoder import EncoderSpec
from vicc_ray.models.encoder_file import check_stream
from vicc_ray.models.weight_file import mismatch, read_weights, understood, write_weights


@dataclass(frozen=True, eq=False)
class ClassifierFile:
    """A classifier with what is needed to use it rightly.

    Args:
        spec: of its encoder.
        stream: what its encoder takes.
        protocol: which head it has and how it was learnt.
        classes: their names, in the order of the logits.
        state_dict: of `Classifier`.
        meta: JSON: name (such as RGB-2), experiment, provenance.
    """

    spec: EncoderSpec
    stream: Stream
    protocol: ClassifierProtocol
    classes: tuple[str, ...]
    state_dict: Mapping[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_stream(self.stream)
        if self.protocol not in PROTOCOLS:
            raise UserError(f"classifier protocol {self.protocol!r} is unknown; allowed: {', '.join(PROTOCOLS)}")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise UserError(f"a classifier needs at least 2 classes, each named once; came: {', '.join(self.classes)}")

    def check(self) -> None:
        """UserError unless the weights have exactly the names and shapes that follow from the other fields."""
        empty = empty_classifier(self.spec, self.protocol, len(self.classes))
        wrong = mismatch({name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}, self.state_dict)
        if wrong:
            raise UserError(
                f"the weights do not fit a {self.protocol} classifier of {len(self.classes)} classes on a "
                f"{self.spec.backbone} encoder of width {self.spec.width}: {wrong}"
            )

    def build(self) -> Classifier:
        """The classifier in eval mode on the CPU with these weights; UserError if they do not fit exactly."""
        self.check()
        classifier = blank_classifier(self.spec, self.protocol, len(self.classes))
        classifier.load_state_dict(dict(self.state_dict), strict=True)
        return classifier.eval()


def save_classifier(path: Path | str, file: ClassifierFile) -> None:
    """Writes the file whole or not at all, making its folder; UserError if the weights or the disk do not allow it."""
    file.check()
    facts = {
        "spec": asdict(file.spec),
        "stream": file.stream,
        "protocol": file.protocol,
        "classes": file.classes,
        "meta": file.meta,
    }
    write_weights(path, "classifier", facts, file.state_dict)


def load_classifier(where: Path | str) -> ClassifierFile:
    """Reads what `save_classifier` wrote, by path or URI; UserError in one line for a missing, damaged or other file."""
    try:
        with storage.local_copy(str(where)) as path:
            return _read(path)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None


def _read(path: str) -> ClassifierFile:
    facts, tensors = read_weights(path, "classifier")
    with understood(path, "classifier"):
        return ClassifierFile(
            spec=EncoderSpec(**facts["spec"]),
            stream=facts["stream"],
            protocol=facts["protocol"],
            classes=tuple(facts["classes"]),
            state_dict=tensors,
            meta=dict(facts["meta"]),
        )
