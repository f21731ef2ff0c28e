"""The tutorial's notebook runs as it stands, and shows what it says."""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from vicc_ray.config import make_experiment

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOK = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))


def text_of(cell: Any) -> str:
    """What a cell printed."""
    return "".join("".join(one.get("text", "")) for one in cell.get("outputs", []))


def pictures_of(cell: Any) -> int:
    return sum("image/png" in one.get("data", {}) for one in cell.get("outputs", []))


def test_what_is_kept_is_whole_and_small() -> None:
    """The site shows what is kept; `make tutorial` makes it."""
    assert sum(pictures_of(cell) for cell in NOTEBOOK["cells"]) == 4
    shown = (DOCS / "tutorial.ipynb").read_text()
    assert len(shown) < 400_000
    assert not any(word in shown for word in (str(Path.home()), tempfile.gettempdir(), "Traceback"))
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "tutorial", "exec")
            for settings in re.findall(r"settings=(\{.*?\n    \})", "".join(cell["source"]), re.DOTALL):
                tree: dict[str, Any] = {}
                for path, value in eval(
                    settings, {"work": Path("x"), "str": str}
                ).items():  # the notebook's own literal
                    inside = tree
                    for key in path.split(".")[:-1]:
                        inside = inside.setdefault(key, {})
                    inside[path.split(".")[-1]] = value
                make_experiment(tree, "tutorial.ipynb")


@pytest.mark.cluster
def test_the_notebook_runs_and_finds_by_motion(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("tutorial_outputs", DOCS / "tutorial_outputs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = module.execute(tmp_path, seconds=500)
    assert sum(pictures_of(cell) for cell in notebook.cells) == 4
    (found,) = re.findall(r"same motion: (\d\.\d+) of 32 queries", " ".join(text_of(cell) for cell in notebook.cells))
    assert float(found) > 0.3  # by chance 0.125
