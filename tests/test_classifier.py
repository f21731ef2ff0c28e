"""Classifiers: heads equal their formula, dropout is a function of its key, files come back whole or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from vicc_ray.errors import UserError
from vicc_ray.models.classifier import (
    PROTOCOLS,
    Classifier,
    ClassifierProtocol,
    Head,
    build_classifier,
    dropout_mask,
    empty_classifier,
)
from vicc_ray.models.classifier_file import ClassifierFile, load_classifier, save_classifier
from vicc_ray.models.encoder import EncoderSpec, build_encoder
from vicc_ray.models.encoder_file import EncoderFile, save_encoder
from vicc_ray.runs.folder import RunFolder

SPEC = EncoderSpec("r2plus1d_10", width=0.0625, embedding_dim=8)


def _classifier(protocol: ClassifierProtocol, classes: int = 3) -> Classifier:
    encoder = build_encoder(SPEC.backbone, width=SPEC.width, embedding_dim=SPEC.embedding_dim, seed=3)
    return build_classifier(encoder, protocol, classes, seed=4)


def _file(protocol: ClassifierProtocol = "linear") -> ClassifierFile:
    classifier = _classifier(protocol)
    classifier(_clips(4))  # moves the running statistics
    meta = {"name": "RGB-2", "experiment": {"seed": 1}}
    return ClassifierFile(SPEC, "flow", protocol, ("run", "jump", "sit"), classifier.state_dict(), meta)


def _clips(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def _linear_twin(features: Any, head: Head, mean: Any, variance: Any) -> Any:
    """The linear probe's head, number by number."""
    assert head.norm is not None
    weight, bias = head.linear.weight.tolist(), head.linear.bias.tolist()
    scale, shift = head.norm.weight.tolist(), head.norm.bias.tolist()
    logits = []
    for row in features.tolist():
        length = math.sqrt(sum(value * value for value in row))
        normed = [
            (value / length - mean[i]) / math.sqrt(variance[i] + 1e-5) * scale[i] + shift[i]
            for i, value in enumerate(row)
        ]
        logits.append([sum(w * x for w, x in zip(weight[c], normed, strict=True)) + bias[c] for c in range(len(bias))])
    return torch.tensor(logits)


def test_the_linear_head_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(5, 3, normalises=True)
    assert head.norm is not None
    torch.nn.init.uniform_(head.norm.weight, 0.5, 2, generator=generator)
    torch.nn.init.uniform_(head.norm.bias, -1, 1, generator=generator)
    features = torch.rand(6, 5, generator=generator) * torch.tensor([1.0, 5, 2, 1, 1]) + 0.3
    unit = features / features.square().sum(1, keepdim=True).sqrt()
    batch = head.train()(features)
    expected = _linear_twin(features, head, unit.mean(0).tolist(), unit.var(0, correction=0).tolist())
    torch.testing.assert_close(batch, expected, rtol=1e-4, atol=1e-4)

    # In eval mode the statistics are the running ones: a tenth of the batch's after one step.
    running = (0.1 * unit.mean(0)).tolist(), (0.9 + 0.1 * unit.var(0)).tolist()
    found = head.eval()(features[:2])
    torch.testing.assert_close(found, _linear_twin(features[:2], head, *running), rtol=1e-4, atol=1e-4)


def test_the_finetuning_head_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(5, 3, normalises=False)
    features = torch.rand(6, 5, generator=generator)
    mask = dropout_mask((1, 2), 6, 5, 0.5)
    assert set(mask.unique().tolist()) == {0.0, 2.0}  # type: ignore[no-untyped-call]
    weight, bias = head.linear.weight.tolist(), head.linear.bias.tolist()
    for found, factors in ((head(features, mask), mask), (head(features), torch.ones(6, 5))):
        expected = [
            [sum(weight[c][i] * row[i] * m[i] for i in range(5)) + bias[c] for c in range(3)]
            for row, m in zip(features.tolist(), factors.tolist(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_classifier_is_its_head_on_pooled_features(protocol: ClassifierProtocol) -> None:
    classifier, x = _classifier(protocol).eval(), _clips(2)
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), classifier.head(classifier.encoder.features(x)))
        with torch.autocast("cpu", torch.bfloat16):
            logits = classifier(x)
    assert logits.dtype == torch.float32 and logits.shape == (2, 3)


def test_dropout_is_a_function_of_its_key() -> None:
    mask = dropout_mask((4, 0, 1, 7), 400, 64, 0.9)
    assert mask.dtype == torch.float32 and mask.shape == (400, 64)
    assert set(mask.unique().tolist()) == {0.0, float(np.float32(1) / np.float32(1 - 0.9))}  # type: ignore[no-untyped-call]
    assert abs(float((mask == 0).float().mean()) - 0.9) < 0.01 and abs(float(mask.mean()) - 1) < 0.06
    assert torch.equal(mask, dropout_mask((4, 0, 1, 7), 400, 64, 0.9))
    assert not torch.equal(mask, dropout_mask((4, 0, 1, 8), 400, 64, 0.9))
    assert torch.equal(dropout_mask((1,), 3, 4, 0.0), torch.ones(3, 4))


def test_a_fresh_head_is_a_function_of_its_seed() -> None:
    before = torch.random.get_rng_state()
    encoder = build_encoder("r2plus1d_10", width=0.5, seed=0)
    first, second = (build_classifier(encoder, "linear", 40, seed=5).head.state_dict() for _ in range(2))
    other = build_classifier(encoder, "linear", 40, seed=6).head
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["linear.weight"], other.linear.weight)
    assert abs(float(first["linear.weight"].std()) - 0.01) < 0.001 and not first["linear.bias"].any()
    assert first["norm.weight"].eq(1).all() and first["norm.running_var"].eq(1).all()
    assert not first["norm.bias"].any() and not first["norm.running_mean"].any()
    assert all(tensor.is_meta for tensor in empty_classifier(SPEC, "linear", 3).state_dict().values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_round_trip_keeps_everything(tmp_path: Path, protocol: ClassifierProtocol) -> None:
    saved = _file(protocol)
    path = RunFolder(tmp_path).classifier("Flow-2")
    assert path == tmp_path / "classifiers" / "Flow-2.safetensors"
    save_classifier(path, saved)
    loaded = load_classifier(path)
    for name in ("spec", "stream", "protocol", "classes", "meta"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert loaded.state_dict.keys() == saved.state_dict.keys()
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in saved.state_dict.items())
    assert [p.name for p in path.parent.iterdir()] == [path.name]

    built = loaded.build()
    assert not any(module.training for module in built.modules())
    original = _classifier(protocol)
    original.load_state_dict(dict(saved.state_dict))
    with torch.no_grad():
        assert torch.equal(built(_clips(2)), original.eval()(_clips(2)))


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    file = _file()
    wrong = replace(file, classes=("run", "jump"))
    with pytest.raises(
        UserError, match=r"linear classifier of 2 classes .*head.linear.weight \[3, 32\] instead of \[2"
    ):
        wrong.build()
    with pytest.raises(UserError, match="2 classes"):
        save_classifier(tmp_path / "x.safetensors", wrong)
    with pytest.raises(UserError, match=r"unexpected \(head.norm.weight"):
        replace(file, protocol="finetune").build()
    assert list(tmp_path.iterdir()) == []


def test_impossible_fields_are_refused() -> None:
    file = _file()
    with pytest.raises(UserError, match="rgb, flow"):
        replace(file, stream="depth")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="linear, finetune"):
        replace(file, protocol="probe")  # type: ignore[arg-type]
    for classes in (("run",), ("run", "sit", "run")):
        with pytest.raises(UserError, match="at least 2 classes"):
            replace(file, classes=classes)


def test_other_files_get_one_line(tmp_path: Path) -> None:
    save_classifier(tmp_path / "good.safetensors", _file())
    encoder = _classifier("linear").encoder
    save_encoder(tmp_path / "encoder.safetensors", EncoderFile(SPEC, "rgb", encoder.state_dict()))
    content = (tmp_path / "good.safetensors").read_bytes()
    facts = {
        "version": 1,
        "spec": {"backbone": "s3d"},
        "stream": "rgb",
        "protocol": "linear",
        "classes": ["a", "b"],
        "meta": {},
    }
    described = {
        "no description": {},
        "bad json": {"classifier": "{"},
        "version": {"classifier": json.dumps(facts | {"version": 9})},
        "spec": {"classifier": json.dumps(facts | {"spec": {"backbone": "i3d"}})},
        "classes": {"classifier": json.dumps(facts | {"classes": 3})},
        "protocol": {"classifier": json.dumps(facts | {"protocol": "knn"})},
    }
    files = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"no classifier\n" * 20}
    files["encoder"] = (tmp_path / "encoder.safetensors").read_bytes()
    for name, metadata in described.items():
        files[name] = safetensors.torch.save({"a": torch.zeros(2)}, {"format": "vicc-classifier"} | metadata)
    for name, data in files.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_classifier(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(UserError, match="not a classifier"):
        load_classifier(tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_classifier(tmp_path / "missing.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "RGB-2.safetensors"
    save_classifier(path, _file())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        save_classifier(path, _file("finetune"))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
