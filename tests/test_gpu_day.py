"""The command for GPU machines: parts, budgets, bars; what it measures is rehearsed by `make gpu-rehearsal`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def day() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_day", ROOT / "benchmarks" / "gpu_day.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_day"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def bar(holds: bool) -> dict[str, Any]:
    return {"bar: speed": {"figure": 2.0, "bar": ">= 3", "holds": holds}}


def result(state: str = "done", figures: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"state": state, "seconds": 1.0, "figures": figures or {}}


@pytest.mark.parametrize(
    ("results", "rehearse", "status"),
    [
        ({}, False, 0),
        ({"step_s3d": result(figures=bar(True))}, False, 0),
        ({"step_s3d": result(figures=bar(False))}, False, 1),
        ({"step_s3d": result(figures=bar(False))}, True, 0),  # a CPU's figures say nothing
        ({"tvl1": result("failed")}, False, 1),
        ({"tvl1": result("out of time")}, True, 1),
        ({"quickstart": result("skipped")}, False, 0),
    ],
)
def test_the_status_is_that_of_parts_and_bars(
    day: ModuleType,
    results: dict[str, Any],
    rehearse: bool,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Every part is begun whatever came of the one before, and later ones get its figures."""
    seen: dict[str, Any] = {}

    def run(part: Any, left: float, rehearsal: bool, earlier: dict[str, Any]) -> dict[str, Any]:
        seen[part.name] = earlier
        return results.get(part.name, result())  # type: ignore[no-any-return]

    monkeypatch.setattr(day, "run", run)
    arguments = ["gpu_day.py", "--json", str(tmp_path / "day.json")] + ["--rehearse"] * rehearse
    monkeypatch.setattr(sys, "argv", arguments)
    assert day.main() == status
    assert list(seen) == [part.name for part in day.PARTS]
    assert list(seen["quickstart"]) == list(seen)[:-1]
    assert list(json.loads((tmp_path / "day.json").read_text())["parts"]) == list(seen)


def test_a_part_without_time_is_skipped(day: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    part = day.PARTS[0]
    assert day.run(part, part.least - 1, False, {})["state"] == "skipped"
    assert "skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "state"), [("raise SystemExit(3)", "failed"), ("import time; time.sleep(60)", "out of time")]
)
def test_a_part_that_ends_badly_keeps_its_figures(
    day: ModuleType, code: str, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "benchmarks").mkdir()
    lines = ["import sys", "open(sys.argv[2], 'w').write('{\"speed\": 7}\\n')", code]
    (tmp_path / "benchmarks" / "gpu_parts.py").write_text("\n".join(lines))
    monkeypatch.setattr(day, "ROOT", tmp_path)
    found = day.run(day.Part("x", 4, 0, "a script"), 100, False, {})
    assert (found["state"], found["figures"]) == (state, {"speed": 7})


def test_without_a_gpu_a_part_says_so(day: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert day.run(day.PARTS[-1], 1000, False, {})["state"] == "failed"
    assert "torch sees no GPU here" in capfd.readouterr().out


def test_unknown_parts_are_refused(day: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--parts", "steps"])
    with pytest.raises(SystemExit) as end:
        day.main()
    assert end.value.code == 2


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(
    day: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(day, "run", lambda *_: pytest.fail("a part has begun"))
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--json", str(tmp_path / "none" / "day.json")])
    with pytest.raises(SystemExit) as end:
        day.main()
    assert end.value.code == 2
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err
