"""Published checkpoints in and out: recorded outputs, strictness, hostile files, every export format."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vicc_ray.config import make_experiment, with_settings
from vicc_ray.errors import UserError
from vicc_ray.interop import import_published
from vicc_ray.interop.exporting import export
from vicc_ray.interop.names import published_names
from vicc_ray.models.encoder import EncoderSpec, build_encoder, empty_encoder
from vicc_ray.models.encoder_file import EncoderFile, load_encoder

DATA = Path(__file__).parent / "data" / "interop"
RECORDED = {"s3d": "s3d_dev", "r2plus1d_10": "r21d_dev"}
CLIP = (4, 32, 32)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recorded_keys(backbone: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(gzip.decompress((DATA / f"{RECORDED[backbone]}_keys.json.gz").read_bytes()))
    return rows


def drawn(key: str, shape: list[int], source: str) -> np.ndarray:
    """The recorded networks' weights, by the rule of docs/method.md, section 7."""
    rng = np.random.default_rng(zlib.crc32(f"dev:{source}".encode()))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.array(7, dtype=np.int64)
    if leaf == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        values = 0.1 * rng.standard_normal(shape)
    elif ".bn" in key or "downsamplebn" in key:
        values = rng.uniform(0.8, 1.2, shape) if leaf == "weight" else 0.1 * rng.standard_normal(shape)
    elif leaf == "weight":
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 0.05 * rng.standard_normal(shape)
    return np.asarray(values, dtype=np.float32)


def recorded_state(backbone: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    state = {}
    for row in recorded_keys(backbone):
        source = row["source_key"]
        if source not in tensors:
            tensors[source] = torch.from_numpy(drawn(row["key"], row["shape"], source))
        state[row["key"]] = tensors[source]
    return state


def small_file(backbone: str = "s3d", stream: str = "rgb", seed: int = 0) -> EncoderFile:
    """A narrow encoder with statistics that training has moved, and one prototype head."""
    encoder = build_encoder(backbone, width=0.0625, embedding_dim=8, seed=seed)
    encoder(clips(4, seed=seed))
    head = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
    return EncoderFile(spec=encoder.spec, stream=stream, state_dict=encoder.state_dict(), prototypes=[head])  # type: ignore[arg-type]


def clips(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *CLIP, generator=torch.Generator().manual_seed(seed + 100))


def outputs(file: EncoderFile, x: Tensor) -> tuple[Tensor, Tensor]:
    encoder = file.build()
    with torch.no_grad():
        return encoder.features(x), encoder(x)


def published_content(tmp_path: Path, backbone: str = "s3d", cross: bool = False) -> dict[str, Any]:
    """What a small published file holds, as a dictionary to damage."""
    path = tmp_path / "base.pth.tar"
    export(small_file(backbone), "published", path, guide=small_file(backbone, "flow", 1) if cross else None)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    path.unlink()
    content["state_dict"] = {name: tensor.clone() for name, tensor in content["state_dict"].items()}
    return content


def refusal(tmp_path: Path, content: object) -> str:
    """The one line that importing a file with this content (bytes, or an object for torch.save) gives."""
    path = tmp_path / "wrong.pth.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        import_published(path, "rgb")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 500
    return message


# ------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("backbone", ["s3d", "r2plus1d_10"])
def test_recorded_outputs_of_the_published_network(tmp_path: Path, backbone: str) -> None:
    recorded = np.load(DATA / f"{RECORDED[backbone]}_outputs.npz")
    path = tmp_path / "cross.pth.tar"
    state = {f"module.{name}": tensor for name, tensor in recorded_state(backbone).items()}
    content = {
        "epoch": 7,
        "state_dict": state,
        "best_loss": np.float64(1.5),
        "optimizer": {"state": {}},
        "iteration": 3,
    }
    torch.save(content, path)
    result = import_published(path, "rgb")
    assert list(result.encoders) == ["RGB-2", "Flow-guide"]
    learner, guide = result.encoders["RGB-2"], result.encoders["Flow-guide"]
    assert (learner.stream, guide.stream, guide.flow_input) == ("rgb", "flow", "published")
    assert learner.spec == guide.spec == EncoderSpec(backbone)
    assert [line.split(":")[0].split(" =")[0] for line in result.left] == [n for n in content if n != "state_dict"]
    assert len(result.taken) == 3 and "300 prototypes" in result.taken[1]

    shape = recorded["input_shape"].tolist()
    rng = np.random.default_rng(zlib.crc32(b"dev:input"))
    x = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    features, z = outputs(learner, x)
    scores = z @ learner.prototypes[0].T  # recorded as they stand in the file, not normalised
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(features.numpy(), recorded["pooled_features"])
    close(z.numpy(), recorded["embedding"])
    close(scores.numpy(), recorded["prototype_scores"])
    close(outputs(guide, x)[1].numpy(), recorded["second_embedding"])

    back = tmp_path / "back.pth.tar"
    export(learner, "published", back, guide=guide)
    written = torch.load(back, weights_only=True)
    assert list(written) == ["epoch", "state_dict", "best_loss", "optimizer", "iteration"]
    keys = recorded_keys(backbone)
    assert list(written["state_dict"]) == [row["key"] for row in keys]
    for row in keys:
        tensor = written["state_dict"][row["key"]]
        assert (list(tensor.shape), str(tensor.dtype)) == (row["shape"], f"torch.{row['dtype']}")
        assert torch.equal(tensor, state[f"module.{row['key']}"])
    assert back.stat().st_size < 1.1 * path.stat().st_size  # doubled names share their tensor


@pytest.mark.parametrize("backbone", ["s3d", "r2plus1d_10"])
def test_name_maps_cover_our_encoder_exactly(backbone: str) -> None:
    ours = empty_encoder(EncoderSpec(backbone)).state_dict()
    assert set(published_names(backbone).values()) == set(ours)


# ------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("backbone", ["s3d", "r2plus1d_10"])
def test_published_round_trip_is_identical(tmp_path: Path, backbone: str, cross: bool) -> None:
    path = tmp_path / "out" / "x.pth.tar"
    learner, guide = small_file(backbone, "flow"), small_file(backbone, "rgb", seed=1)
    export(learner, "published", path, guide=guide if cross else None)
    result = import_published(path, "flow")
    assert list(result.encoders) == (["Flow-2", "RGB-guide"] if cross else ["Flow-1"])
    pairs = [(learner, result.encoders["Flow-2" if cross else "Flow-1"])]
    if cross:
        pairs.append((guide, result.encoders["RGB-guide"]))
    x = clips(2)
    for before, after in pairs:
        assert (after.spec, after.stream) == (before.spec, before.stream)
        for a, b in zip(outputs(before, x), outputs(after, x), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(pairs[0][1].prototypes[0], learner.prototypes[0])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_the_published_format_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    file = small_file()
    wrong: list[tuple[EncoderFile, EncoderFile | None, str]] = [
        (small_file("s3dg"), None, "s3d or r2plus1d_10, not s3dg"),
        (replace(file, prototypes=[]), None, "has 0"),
        (replace(file, prototypes=file.prototypes * 2), None, "has 2"),
        (file, small_file("r2plus1d_10", "flow"), "needs that of the encoder"),
        (file, small_file("s3d", "rgb"), "other stream"),
    ]
    for encoder_file, guide, message in wrong:
        with pytest.raises(UserError, match=message):
            export(encoder_file, "published", path, guide=guide)
    with pytest.raises(UserError, match="allowed: safetensors, torchscript, onnx, published"):
        export(file, "tflite", path)
    with pytest.raises(UserError, match="published format only"):
        export(file, "onnx", path, guide=small_file("s3d", "flow"))
    assert list(tmp_path.iterdir()) == []


def test_coclr_file_gives_an_encoder_without_prototypes(tmp_path: Path) -> None:
    content = published_content(tmp_path, "s3d")
    state = content["state_dict"]
    del state["prototypes.weight"]
    state |= {name.replace("encoder_q", "encoder_k"): t for name, t in state.items()}
    state |= {"queue": torch.zeros(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    path = tmp_path / "coclr.pth.tar"
    torch.save(content, path)
    result = import_published(path, "rgb")
    assert list(result.encoders) == ["RGB-CoCLR"] and result.encoders["RGB-CoCLR"].prototypes == []
    left = "\n".join(result.left)
    assert "queue: 1" in left and "queue_ptr: 1" in left and "encoder_k.*: 928" in left and "optimizer" in left
    x = clips(2)
    assert torch.equal(outputs(result.encoders["RGB-CoCLR"], x)[1], outputs(small_file(), x)[1])


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"module.{name}",
        lambda name: f"module.module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("encoder_q.", "encoder_q._orig_mod."),
    ],
    ids=["module", "twice", "compiled", "compiled over parallel", "parallel over compiled", "a part compiled"],
)
def test_what_wrappers_put_into_names_is_taken_out(tmp_path: Path, wrapped: Callable[[str], str]) -> None:
    content = published_content(tmp_path, cross=True)
    plain = tmp_path / "plain.pth.tar"
    torch.save(content, plain)
    content["state_dict"] = {wrapped(name): tensor for name, tensor in content["state_dict"].items()}
    path = tmp_path / "wrapped.pth.tar"
    torch.save(content, path)
    expected, found = import_published(plain, "rgb"), import_published(path, "rgb")
    assert list(found.encoders) == list(expected.encoders)
    for name, one in expected.encoders.items():
        assert all(torch.equal(found.encoders[name].state_dict[key], value) for key, value in one.state_dict.items())


# ------------------------------------------------------------------------------------------- strictness


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    content = published_content(tmp_path, cross=False)
    content["state_dict"]["module.encoder_q.2.bias"] = content["state_dict"]["encoder_q.2.bias"]
    message = refusal(tmp_path, content)
    assert "has encoder_q.2.bias twice, once as module.encoder_q.2.bias; keep one of them" in message


def test_missing_unexpected_and_misshapen_are_named(tmp_path: Path) -> None:
    content = published_content(tmp_path, cross=True)
    state = content["state_dict"]
    del state["encoder_q.0.Conv_1a.conv1.weight"], state["second.4.bias"]
    state["encoder_q.0.extra"] = torch.zeros(1)
    state["queue"] = torch.zeros(1)  # a ViCC file has no queue
    state["encoder_q.2.bias"] = torch.zeros(3)
    message = refusal(tmp_path, content)
    assert "2 missing (encoder_q.0.Conv_1a.conv1.weight, second.4.bias)" in message
    assert "2 unexpected (encoder_q.0.extra, queue)" in message
    assert "1 of another shape (encoder_q.2.bias [3] instead of [64])" in message


def _without_prototypes(state: dict[str, Tensor]) -> None:
    del state["prototypes.weight"]


def _differing_copies(state: dict[str, Tensor]) -> None:
    state["encoder_q.0.block3.1.branch0.0.conv.weight"][0, 0] += 1e-6


def _not_finite(state: dict[str, Tensor]) -> None:
    state["encoder_q.0.Conv_2b.bn.running_var"][0] = float("nan")


def _of_integers(state: dict[str, Tensor]) -> None:
    state["encoder_q.4.bias"] = state["encoder_q.4.bias"].long()


def _empty_prototypes(state: dict[str, Tensor]) -> None:
    state["prototypes.weight"] = torch.zeros(0, 8)


def _not_a_tensor(state: dict[str, Any]) -> None:
    state["encoder_q.4.bias"] = [1.0]


def _other_architecture(state: dict[str, Tensor]) -> None:
    state.clear()
    state.update({f"layer{i}.conv.weight": torch.zeros(2) for i in range(9)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_prototypes, "1 missing (prototypes.weight)"),
        (_differing_copies, "1 tensors differ between their two names (encoder_q.0.Mixed_3b.branch0.0.conv.weight and"),
        (_not_finite, "1 tensors hold NaN or infinity (encoder_q.0.Conv_2b.bn.running_var)"),
        (_of_integers, "another type than expected (encoder_q.4.bias int64)"),
        (_empty_prototypes, "prototypes.weight [0, 8] instead of"),
        (_not_a_tensor, "'encoder_q.4.bias' is not a plain tensor but list"),
        (_other_architecture, "another architecture: 9 tensors (layer0.conv.weight, "),
    ],
)
def test_damaged_states_are_refused(tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str) -> None:
    content = published_content(tmp_path)
    damage(content["state_dict"])
    assert message in refusal(tmp_path, content)


def test_network_of_other_sizes_without_its_spec_is_refused(tmp_path: Path) -> None:
    content = published_content(tmp_path)
    content["encoder_spec"]["width"] = -1.0
    assert "width must be a number above 0" in refusal(tmp_path, content)
    del content["encoder_spec"]
    (tmp_path / "wrong.pth.tar").unlink()
    assert "of another shape (encoder_q.0.Conv_1a.conv1.weight [4, 3, 1, 7, 7] instead of [64" in refusal(
        tmp_path, content
    )


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(published_content(tmp_path), buffer)
    whole = buffer.getvalue()
    legacy = io.BytesIO()
    torch.save(published_content(tmp_path), legacy, _use_new_zipfile_serialization=False)
    truncated = "truncated or damaged|damaged or holds more"
    cases: list[tuple[object, str]] = [
        (whole[: len(whole) // 2], truncated),
        (whole[:-30], truncated),
        (legacy.getvalue()[: len(legacy.getvalue()) // 2], truncated),
        (legacy.getvalue()[:40], truncated),
        (b"", "is empty"),
        (b"epoch: 3\nstate_dict: none\n", "not a PyTorch checkpoint"),
        (b"PK\x03\x04" + bytes(200), truncated),
        (torch.zeros(3), "no 'state_dict'"),
        ({"model": {}}, "no 'state_dict'"),
        ({"state_dict": {}}, "another architecture"),
    ]
    for content, message in cases:
        line = refusal(tmp_path, content)
        assert any(part in line for part in message.split("|")), line
    with pytest.raises(UserError, match="no such file"):
        import_published(tmp_path / "missing", "rgb")
    with pytest.raises(UserError, match="rgb, flow"):
        import_published(tmp_path / "missing", "depth")  # type: ignore[arg-type]


def test_legacy_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth.tar"
    torch.save(published_content(tmp_path), path, _use_new_zipfile_serialization=False)
    x = clips(2)
    assert torch.equal(outputs(import_published(path, "rgb").encoders["RGB-1"], x)[1], outputs(small_file(), x)[1])


class Payload:
    """Unpickling this creates a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("wrapping", ["raw", "torch zip", "legacy torch", "plain zip"])
def test_code_in_a_pickle_is_not_executed(tmp_path: Path, wrapping: str, protocol: int) -> None:
    marker = tmp_path.parent / f"{tmp_path.name}-executed"
    content = published_content(tmp_path) | {"best_loss": Payload(marker)}
    buffer = io.BytesIO()
    if wrapping == "raw":
        pickle.dump({"best_loss": Payload(marker)}, buffer, protocol=protocol)
    elif wrapping == "plain zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Payload(marker), protocol=protocol))
            archive.writestr("archive/version", "3")
    else:
        zipped = wrapping == "torch zip"
        torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path, buffer.getvalue())
    assert not marker.exists()
    if protocol == 2:
        assert "calls posix.mkdir, so it was not loaded; nothing in it was executed" in message
    # The trap works: an ordinary reader runs it.
    if wrapping == "raw":
        pickle.loads(buffer.getvalue())
        assert marker.exists()


# ------------------------------------------------------------------------------------------- other formats


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:FutureWarning")
@pytest.mark.parametrize("backbone", ["s3d", "s3dg", "r2plus1d_10", "r2plus1d_18"])
def test_torchscript_gives_the_same_for_any_batch(tmp_path: Path, backbone: str) -> None:
    file = small_file(backbone, "flow")
    path = tmp_path / "x.pt"
    export(file, "torchscript", path, clip_shape=CLIP)
    extra = {"vicc.json": ""}
    module = torch.jit.load(str(path), _extra_files=extra)  # type: ignore[no-untyped-call]
    facts = json.loads(extra["vicc.json"])
    assert (facts["stream"], facts["flow_input"], facts["spec"]["backbone"]) == ("flow", "published", backbone)
    for batch in (1, 3):
        x = clips(batch)
        with torch.no_grad():
            got = module(x)
        for a, b in zip(got, outputs(file, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("backbone", ["s3dg", "r2plus1d_10"])
def test_onnx_gives_the_same_for_any_batch(tmp_path: Path, backbone: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = small_file(backbone)
    path = tmp_path / "x.onnx"
    export(file, "onnx", path, clip_shape=CLIP)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # the weights are inside
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["vicc"])["stream"] == "rgb"
    for batch in (1, 5):
        x = clips(batch)
        features, z = session.run(["features", "embedding"], {"clips": x.numpy()})
        np.testing.assert_allclose(features, outputs(file, x)[0].numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(z, outputs(file, x)[1].numpy(), rtol=1e-4, atol=1e-4)


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"vicc-ray\[onnx\]"):
        export(small_file(), "onnx", tmp_path / "x.onnx")


def test_safetensors_is_our_own_format(tmp_path: Path) -> None:
    file = small_file()
    export(file, "safetensors", tmp_path / "x.safetensors")
    x = clips(2)
    assert torch.equal(outputs(load_encoder(tmp_path / "x.safetensors"), x)[1], outputs(file, x)[1])


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_clips_too_small_to_trace_are_refused(tmp_path: Path, format: str) -> None:
    with pytest.raises(UserError, match="too small"):
        export(small_file(), format, tmp_path / "x", clip_shape=(1, 32, 32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["safetensors", "torchscript", "onnx"])
def test_an_export_says_nothing_of_where_its_run_was(form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
    places = {"runs": "/home/hush/runs", "data.manifest": "s3://hush/m.parquet", "flow.store": "/hush/flow"}
    settings = with_settings(make_experiment({"name": "mine"}, "x"), places | {"flow.weights": "/hush/raft.pt"}, "x")
    file = replace(small_file(), meta={"name": "RGB-1", "experiment": settings.model_dump(mode="json")})
    export(file, form, tmp_path / "out", clip_shape=CLIP)
    data = (tmp_path / "out").read_bytes()
    if zipfile.is_zipfile(tmp_path / "out"):
        with zipfile.ZipFile(tmp_path / "out") as archive:
            data = b"".join(archive.read(name) for name in archive.namelist())
    assert b"prototypes" in data  # the other settings are there
    assert b"hush" not in data
    assert file.meta["experiment"]["runs"] == "/home/hush/runs"
