"""The encoder file: whole round trips, refusals in one line, nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from vicc_ray.errors import UserError
from vicc_ray.models import encoder_file as weights
from vicc_ray.models.encoder import EncoderSpec, build_encoder
from vicc_ray.models.encoder_file import EncoderFile, load_encoder, save_encoder


def small_file(backbone: str = "r2plus1d_10", heads: int = 2) -> EncoderFile:
    torch.set_num_threads(1)
    encoder = build_encoder(backbone, in_channels=2, width=0.0625, embedding_dim=8, seed=3)
    encoder(torch.randn(2, 2, 4, 32, 32, generator=torch.Generator().manual_seed(1)))  # moves the running statistics
    g = torch.Generator().manual_seed(2)
    return EncoderFile(
        spec=encoder.spec,
        stream="flow",
        state_dict=encoder.state_dict(),
        prototypes=[torch.randn(5 + i, 8, generator=g) for i in range(heads)],
        meta={"name": "Flow-2", "step": 12, "config": {"optim": {"lr": 0.6}}, "versions": ["2.11"]},
    )


@pytest.mark.parametrize("backbone", ["s3dg", "r2plus1d_10"])
def test_round_trip_keeps_everything(tmp_path: Path, backbone: str) -> None:
    saved = small_file(backbone, heads=11)
    path = tmp_path / "a" / "Flow-2.safetensors"
    save_encoder(path, saved)
    loaded = load_encoder(path)
    assert (loaded.spec, loaded.stream, loaded.flow_input, loaded.meta) == (saved.spec, "flow", "published", saved.meta)
    assert list(loaded.state_dict) != [] and set(loaded.state_dict) == set(saved.state_dict)
    for name, tensor in saved.state_dict.items():
        assert torch.equal(loaded.state_dict[name], tensor) and loaded.state_dict[name].dtype == tensor.dtype
    assert [len(head) for head in loaded.prototypes] == [5 + i for i in range(11)]
    assert all(torch.equal(a, b) for a, b in zip(loaded.prototypes, saved.prototypes, strict=True))
    assert [p.name for p in path.parent.iterdir()] == [path.name]

    x = torch.randn(2, 2, 4, 32, 32, generator=torch.Generator().manual_seed(5))
    built, again = saved.build(), loaded.build()
    assert not again.training
    with torch.no_grad():
        assert torch.equal(built(x), again(x))


def test_build_copies_the_weights() -> None:
    file = small_file()
    before = file.state_dict["projection.0.weight"].clone()
    for parameter in file.build().parameters():
        parameter.detach().zero_()
    assert torch.equal(file.state_dict["projection.0.weight"], before)


def test_state_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    file = small_file()
    state = dict(file.state_dict)
    del state["projection.0.bias"]
    state["extra"] = torch.zeros(1)
    state["projection.2.bias"] = torch.zeros(3)
    wrong = replace(file, state_dict=state)
    expected = (
        r"1 missing \(projection.0.bias\); 1 unexpected \(extra\); "
        r"1 of another shape \(projection.2.bias \[3\] instead of \[8\]\)"
    )
    with pytest.raises(UserError, match=expected):
        wrong.build()
    with pytest.raises(UserError, match=expected):
        save_encoder(tmp_path / "x.safetensors", wrong)
    assert list(tmp_path.iterdir()) == []


def test_impossible_fields_are_refused() -> None:
    file = small_file()
    with pytest.raises(UserError, match="rgb, flow"):
        replace(file, stream="depth")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="published"):
        replace(file, flow_input="uv")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"head 0 is \[5, 9\]"):
        replace(file, prototypes=[torch.zeros(5, 9)])


def test_other_files_get_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_encoder(good, small_file())
    content = good.read_bytes()
    facts = {"version": 1, **weights.facts_of(small_file())}
    files = {
        "truncated": content[: len(content) // 2],
        "header only": content[:100],
        "empty": b"",
        "text": b"this is no encoder\n" * 20,
        "zip": b"PK\x03\x04" + bytes(100),
        "foreign": safetensors.torch.save({"a": torch.zeros(2)}),
    }
    described = {
        "no description": {"format": "vicc-encoder"},
        "bad json": {"format": "vicc-encoder", "encoder": "{"},
        "version": {"format": "vicc-encoder", "encoder": json.dumps(facts | {"version": 9})},
        "backbone": {"format": "vicc-encoder", "encoder": json.dumps(facts | {"spec": {"backbone": "i3d"}})},
        "spec": {"format": "vicc-encoder", "encoder": json.dumps(facts | {"spec": {"depth": 3}})},
        "stream": {"format": "vicc-encoder", "encoder": json.dumps(facts | {"stream": "depth"})},
    }
    files |= {name: safetensors.torch.save({"a": torch.zeros(2)}, data) for name, data in described.items()}
    for name, data in files.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_encoder(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(UserError, match="no such file"):
        load_encoder(tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match="folder"):
        load_encoder(tmp_path)


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """The library writes entries of metadata in an order that it draws anew for each file."""
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=8)
    file = EncoderFile(encoder.spec, "rgb", encoder.state_dict(), [torch.ones(3, 8)], meta={"name": "RGB-1"})
    written = set()
    for number in range(20):
        save_encoder(tmp_path / f"{number}.safetensors", file)
        written.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(written) == 1
    (content,) = written
    assert int.from_bytes(content[:8], "little") % 8 == 0
    with safe_open(tmp_path / "0.safetensors", framework="pt") as opened:
        assert set(opened.metadata()) == {"format", "encoder", "digest"}
        assert all(torch.equal(opened.get_tensor(f"encoder.{k}"), v) for k, v in encoder.state_dict().items())


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=8)
    path = tmp_path / "RGB-1.safetensors"
    save_encoder(path, EncoderFile(encoder.spec, "rgb", encoder.state_dict(), meta={"name": "RGB-1"}))
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(start, len(whole), 4001), *(whole.index(text) for text in (b"RGB-1", b'"digest"', b"width"))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place + 1] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"RGB-1.safetensors.* damaged"):
            load_encoder(path)
    path.write_bytes(whole)
    load_encoder(path)


def test_files_of_earlier_versions_without_a_digest_are_read(tmp_path: Path) -> None:
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=8)
    path = tmp_path / "old.safetensors"
    save_encoder(path, EncoderFile(encoder.spec, "rgb", encoder.state_dict()))
    with safe_open(path, framework="pt") as opened:
        old = {name: value for name, value in opened.metadata().items() if name != "digest"}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    safetensors.torch.save_file(tensors, path, old)
    assert load_encoder(path).spec == encoder.spec


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "RGB-1.safetensors"
    save_encoder(path, small_file())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        save_encoder(path, small_file())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_shared_and_strided_tensors_are_written(tmp_path: Path) -> None:
    file = small_file()
    head = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).T
    path = tmp_path / "x.safetensors"
    save_encoder(path, replace(file, prototypes=[head, head]))
    assert all(torch.equal(h, head) for h in load_encoder(path).prototypes)
    assert path.stat().st_mode & 0o444 == 0o444  # readable by others, as plain files are


def test_spec_is_checked_against_the_weights() -> None:
    with pytest.raises(UserError, match="do not fit a s3d encoder"):
        replace(small_file(), spec=EncoderSpec("s3d", embedding_dim=8)).build()
