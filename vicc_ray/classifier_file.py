"""One classifier on disk: a single safetensors file with JSON in its metadata, never a pickle; the manner of `weights`.

Tensors: the state of `Classifier` (`encoder.<name>`, `head.<name>`). Metadata: `format` = "vicc-classifier", and
`classifier` = JSON of the encoder's specification, the stream, the protocol, the classes and free-form facts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vicc_ray.config import Stream
from vicc_ray.errors import UserError
from vicc_ray.models.classifier import PROTOCOLS, Classifier, ClassifierProtocol, empty_classifier
from vicc_ray.models.encoder import EncoderSpec
from vicc_ray.run_folder import RunFolder
from vicc_ray.weights import atomic_path, check_stream, mismatch, readable_file

_FORMAT = "vicc-classifier"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class ClassifierFile:
    """A classifier with what is needed to use it rightly.

    Args:
        spec: of its encoder.
        stream: what its encoder looks at.
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
        """UserError unless the weights have exactly the names and shapes that the other fields ask for."""
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
        classifier = empty_classifier(self.spec, self.protocol, len(self.classes)).to_empty(device="cpu")
        classifier.load_state_dict(dict(self.state_dict), strict=True)
        return classifier.eval()


def classifier_path(folder: RunFolder, name: str) -> Path:
    """Where a classification's folder holds the classifier on the encoder `name`, for example RGB-2."""
    return folder.path / "classifiers" / f"{name}.safetensors"


def save_classifier(path: Path | str, file: ClassifierFile) -> None:
    """Writes the file whole or not at all, making its folder; UserError if the weights or the disk do not allow it."""
    file.check()
    facts = {
        "version": _VERSION,
        "spec": asdict(file.spec),
        "stream": file.stream,
        "protocol": file.protocol,
        "classes": file.classes,
        "meta": file.meta,
    }
    # A copy each: safetensors refuses tensors that share memory or are strided.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in file.state_dict.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(plain, {"format": _FORMAT, "classifier": json.dumps(facts)}))


def load_classifier(path: Path | str) -> ClassifierFile:
    """Reads what `save_classifier` wrote; UserError in one line for a missing or damaged file or another format."""
    path = readable_file(path)
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"{path} is a safetensors file, but not a classifier that this program wrote")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): damaged, truncated or another format"
        ) from None
    try:
        facts = json.loads(metadata["classifier"])
        if facts["version"] != _VERSION:
            raise UserError(f"version {facts['version']!r} of the classifier format; this program reads {_VERSION}")
        return ClassifierFile(
            spec=EncoderSpec(**facts["spec"]),
            stream=facts["stream"],
            protocol=facts["protocol"],
            classes=tuple(facts["classes"]),
            state_dict=tensors,
            meta=dict(facts["meta"]),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the classifier's description is damaged ({type(error).__name__}: {error})") from None
