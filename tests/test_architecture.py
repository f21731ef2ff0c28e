"""Folders are layers, no files import each other in a circle, and only the folders that are Ray's part import Ray."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vicc_ray"


def _modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        names[".".join(parts)] = path
    return names


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_contracts_hold() -> None:
    """The contracts of pyproject.toml: the order of the folders, no circles, and who may import Ray."""
    lint = Path(sys.executable).parent / "lint-imports"
    found = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_a_circle_and_a_step_up_are_seen(tmp_path: Path) -> None:
    """The contracts can fail: a made package breaks both kinds."""
    package = tmp_path / "made"
    for folder, line in (("upper", ""), ("lower", "from made.upper import a")):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").write_text("")
        (package / folder / "a.py").write_text(f"{line}\nfrom made.{folder} import b\n")
        (package / folder / "b.py").write_text(f"from made.{folder} import a\n")
    (package / "__init__.py").write_text("")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.importlinter]\nroot_package = "made"\n'
        '[[tool.importlinter.contracts]]\nname = "order"\ntype = "layers"\nlayers = ["made.upper", "made.lower"]\n'
        '[[tool.importlinter.contracts]]\nname = "circles"\ntype = "acyclic_siblings"\nancestors = ["made"]\n'
    )
    lint = Path(sys.executable).parent / "lint-imports"
    found = subprocess.run([lint, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 1 and "0 kept, 2 broken" in found.stdout


def test_every_folder_has_its_layer() -> None:
    """A new folder or module below `vicc_ray` needs a place in the contract, else nothing is said about it."""
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one for one in contracts if one["type"] == "layers")["layers"]
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    assert placed == {f"vicc_ray.{name}" for name in MODULES if name and "." not in name}


def test_collectives_live_in_one_file() -> None:
    users = {name for name, path in MODULES.items() if any(i.startswith("torch.distributed") for i in _imports(path))}
    assert users == {"distributed"}


def test_pickles_stay_inside_a_process_tree_and_ray() -> None:
    """To a process of our own, through Ray, and torch's restricted reader; never over a connection that anybody may open."""
    users = {name for name, path in MODULES.items() if _imports(path) & {"pickle", "cloudpickle", "ray.cloudpickle"}}
    assert users == {"data.guarded", "cluster.jobs", "interop.reader"}
    assert not [name for name, path in MODULES.items() if "cloudpickle" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vicc_ray.training.batches", "torch"),
        ("vicc_ray.cluster.launch", "torchvision"),
        ("vicc_ray.cluster.stream", "torch"),
    ],
)
def test_processes_load_only_what_they_need(module: str, heavy: str) -> None:
    """Of the seconds of a core in which each process of a run starts, nearly all are imports."""
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_functions_are_short() -> None:
    """Of a hundred functions at most one is longer than 40 lines."""
    lengths = [
        node.end_lineno - node.lineno + 1
        for folder in (PACKAGE, ROOT / "benchmarks")
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    ]
    assert sorted(lengths)[int(0.99 * len(lengths))] <= 40


ARRAYS = re.compile(r"\b(NDArray|Tensor|Field|Floats|Codes)\b")
SHAPE = re.compile(r"\[|\bshape|scalar|Scalar|[Aa]s `")  # the shape itself, "of any shape", or where it is documented


def _takes_arrays(function: ast.FunctionDef) -> bool:
    """Arrays or tensors themselves; a state_dict's mapping and an optimiser's parameters have no one shape."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    types = [ast.unparse(one) for one in (*(argument.annotation for argument in arguments), function.returns) if one]
    return any(
        ARRAYS.search(text) and not text.startswith(("Mapping", "dict", "tuple[dict", "Sequence")) for text in types
    )


def test_what_takes_or_returns_arrays_states_their_shapes() -> None:
    silent, seen = [], 0
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for about, body in (("", tree.body), *((ast.get_docstring(one) or "", one.body) for one in classes)):
            for function in body:
                if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                    continue
                if not _takes_arrays(function):
                    continue
                seen += 1
                if not SHAPE.search((ast.get_docstring(function) or "") + about):
                    silent.append(f"{module}.{function.name}")
    assert not silent
    assert seen > 80
