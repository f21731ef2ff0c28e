"""Imports go in one direction, and only the files that are Ray's part import Ray."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vicc_ray"

# From the top: a module may import from its own level and from the levels below it. The longest matching name counts.
LEVELS = [
    ["cli"],
    ["bench.faults"],
    ["bench.step"],
    ["bench.pipeline", "bench.step_published", "bench.data", "bench.recovery", "bench.checkpoint"],
    ["bench.scaling", "bench.tune", "bench.pruning"],
    ["bench.drill", "bench.data_rivals", "bench.flow", "bench.retrieval", "bench.augment", "bench.roofline"],
    ["bench.tvl1"],
    ["tune", "doctor", "submit"],
    ["bench", "quickstart", "evaluation", "exchange", "indexing", "flowing", "planning", "preview", "status", "report"],
    ["classifying", "scales"],
    ["evaluate.nearest", "evaluate.classification", "train.loop"],
    ["evaluate.features", "session"],
    ["data.jobs", "capacity"],
    ["placement", "ray_private"],
    ["train.host"],
    ["data.pipeline", "evaluate.passes", "evaluate.actors"],
    ["data.actors"],
    ["train.run", "train.pretraining", "train.classification"],
    ["train.task", "train.classifier_step"],
    ["train.monitor", "train.step", "train.ending", "train.restore", "progress"],
    ["train.batches", "train.optim", "train.graphs"],
    [
        "evaluate.accuracy",
        "evaluate.probe",
        "evaluate.means",
        "evaluate.crops",
        "evaluate.joined",
        "evaluate.results",
        "evaluate.stored",
        "classifier_file",
    ],
    ["train.schedule", "evaluate.fusion", "interop"],
    ["evaluate.retrieval", "evaluate.feature_store", "objective", "run_folder"],
    ["weights"],
    ["evaluate.search", "evaluate.folds", "data.reader", "data.probing"],
    ["data.samples", "data.flow_codes", "data.layouts", "data.augment_triton"],
    ["data.flow_identity"],
    ["data.flow_store"],
    ["data.manifest", "data.flow", "data.augment", "data.synthetic", "models"],
    ["data.inspection", "data.motion_vectors", "data.raft", "data.tvl1", "data.guarded"],
    ["refusals"],
    ["data.decode", "resources", "console", "checkpoint", "records", "pages", "weight_file", "experiments_table"],
    ["data.clips", "data.field_vectors", "data.nal", "data.pictures", "config", "distributed"],
    ["storage"],
    ["errors", "interrupts"],
]
RAY = {
    "session",
    "capacity",
    "ray_private",
    "data.pipeline",
    "data.jobs",
    "train.loop",
    "train.host",
    "tune.execution",
    "submit.client",
    "doctor.cluster",
    "bench.data_memory",
}


def _modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if parts:
            names[".".join(parts)] = path
    return names


MODULES = _modules()


def _level(module: str) -> int | None:
    found = [
        (len(entry), number)
        for number, level in enumerate(LEVELS)
        for entry in level
        if module == entry or module.startswith(f"{entry}.")
    ]
    return max(found)[1] if found else None


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", [name for name in MODULES if name not in {"data", "train", "evaluate"}])
def test_imports_go_down(module: str) -> None:
    level = _level(module)
    assert level is not None, f"vicc_ray.{module} has no place in LEVELS; give it one"
    for name in _imports(MODULES[module]):
        inner = name.removeprefix("vicc_ray.")
        if name.startswith("vicc_ray.") and inner in MODULES and inner not in {"data", "train", "evaluate"}:
            below = _level(inner)
            assert below is not None
            assert below >= level, f"vicc_ray.{module} imports vicc_ray.{inner}, which stands above it"


@pytest.mark.parametrize("module", list(MODULES))
def test_only_rays_part_imports_ray(module: str) -> None:
    imports = {name.split(".")[0] for name in _imports(MODULES[module])}
    assert ("ray" in imports) == (module in RAY)


@pytest.mark.parametrize("module", ["distributed"])
def test_collectives_live_in_one_file(module: str) -> None:
    users = {name for name, path in MODULES.items() if any(i.startswith("torch.distributed") for i in _imports(path))}
    assert users == {module}


def test_pickles_stay_inside_a_process_tree_and_ray() -> None:
    """To a process of our own, through Ray, and torch's restricted reader; never over a connection that anybody may open."""
    users = {name for name, path in MODULES.items() if _imports(path) & {"pickle", "cloudpickle", "ray.cloudpickle"}}
    assert users == {"data.guarded", "data.jobs", "interop.reader"}
    assert not [name for name, path in MODULES.items() if "cloudpickle" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("vicc_ray.train.batches", "torch"), ("vicc_ray.train.loop", "torchvision"), ("vicc_ray.data.pipeline", "torch")],
)
def test_processes_load_only_what_they_need(module: str, heavy: str) -> None:
    """Of the seconds of a core in which each process of a run starts, nearly all are imports."""
    import subprocess
    import sys

    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
