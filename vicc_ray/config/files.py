"""Experiment files: YAML in with `extends` and `--set`, every mistake by name, the resolved YAML out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vicc_ray.config.experiment import FREE_FIELDS, PLACES, Experiment
from vicc_ray.errors import UserError

# Of a YAML file or value: a resolved experiment has about 200. A few lines of nested aliases can stand for billions.
MOST_VALUES = 10_000


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file with `path=value` overrides applied; UserError names file, field and remedy."""
    tree: dict[str, Any] = {}
    for layer in file_layers(path):
        _merge(tree, layer.settings)
    return make_experiment(_overridden(tree, overrides), str(path))


@dataclass(frozen=True)
class Layer:
    """Settings that come from one place: a file, a scale, or `--set`; `settings` as nested mappings."""

    source: str
    settings: dict[str, Any]


def file_layers(path: str | Path) -> list[Layer]:
    """An experiment file and those that it extends, each with its own settings alone; the last one counts most."""
    return _layers(Path(path), ())


def override_layer(overrides: Sequence[str], source: str = "--set") -> Layer:
    """`path=value` changes as a layer."""
    return Layer(source, _overridden({}, overrides))


def setting_in(tree: Mapping[str, Any], path: str) -> bool:
    """Whether nested settings have something at a dotted path."""
    inside: Any = tree
    for key in path.split("."):
        if not isinstance(inside, Mapping) or key not in inside:
            return False
        inside = inside[key]
    return True


def _overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for text in overrides:
        field, sign, value = text.partition("=")
        if not sign or not field:
            raise UserError(f"--set {text}: write it as path=value, for example --set optim.lr=0.3")
        _set(tree, field.split("."), _yaml_value(value, f"--set {field}"))
    return tree


def experiment_with(path: Path | None, overrides: Sequence[str]) -> Experiment:
    """As `load_experiment`; without a file, the defaults with the overrides applied."""
    return load_experiment(path, overrides) if path else make_experiment(_overridden({}, overrides), "--set")


def make_experiment(tree: Mapping[str, Any], source: str) -> Experiment:
    """The experiment of a tree of settings; UserError where a field is unknown or impossible."""
    try:
        return Experiment.model_validate(dict(tree))
    except ValidationError as error:
        # One line a field: a union reports every member that it tried, and the first says it best.
        by_field = {_field(problem): problem for problem in reversed(error.errors())}
        raise UserError("; ".join(_explain(problem, source) for problem in reversed(by_field.values()))) from None


def dump_experiment(experiment: Experiment) -> str:
    """Every setting as YAML that `load_experiment` reads back to an equal experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)


def with_settings(experiment: Experiment, settings: Mapping[str, Any], source: str) -> Experiment:
    """The experiment with some settings, {dotted path: value}, changed; UserError where one is refused."""
    tree = experiment.model_dump(mode="json")
    for path, value in settings.items():
        _set(tree, path.split("."), value)
    return make_experiment(tree, source)


def with_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """An experiment with `path=value` changes; UserError as `load_experiment`."""
    if not overrides:
        return experiment
    return make_experiment(_overridden(experiment.model_dump(mode="json"), overrides), "--set")


def without_places(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON without those that name files and folders (`Experiment.places`), for what leaves this machine."""
    kept = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    for field in PLACES:
        section, _, name = field.rpartition(".")
        inside = kept.get(section, {}) if section else kept
        inside.pop(name, None)
    return kept


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {dotted path: value}."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        rows |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return rows


def differences(old: Experiment, new: Experiment) -> list[str]:
    """Changes between two experiments that alter what is learnt, as 'path: was A, now B'."""
    before, after = (flatten(experiment.model_dump(mode="json")) for experiment in (old, new))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return [f"{key}: was {before.get(key)}, now {after.get(key)}" for key in keys if not is_free(key)]


def is_free(key: str) -> bool:
    """Whether a setting leaves what is learnt as it is."""
    return any(key == field or key.startswith(f"{field}.") for field in FREE_FIELDS)


def _layers(path: Path, seen: tuple[Path, ...]) -> list[Layer]:
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of an experiment file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; give the path of an experiment file in YAML") from None
    tree = _yaml_value(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds {type(tree).__name__}, not settings; write lines of 'name: value'")
    base = tree.pop("extends", None)
    below = [] if base is None else _layers(path.parent / str(base), (*seen, path.resolve()))
    return [*below, Layer(str(path), tree)]


def _yaml_value(text: str, source: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MOST_VALUES:
            raise UserError(
                f"{source}: holds more than {MOST_VALUES} values with its aliases (*name) written out; that is no experiment"
            )
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(
            f"{source}: is nested too deeply, or an alias (*name) holds itself; write its values out"
        ) from None
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds with every alias written out; RecursionError for one that holds itself."""
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in inner)
    return known[id(node)]


_Tree = TypeVar("_Tree", bound=dict[str, Any])


def _merge(base: _Tree, changes: Mapping[str, Any]) -> _Tree:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            tree[key] = child = {}
        tree = child
    tree[keys[-1]] = value


def _explain(problem: Any, source: str) -> str:
    field = _field(problem)
    location = field.split(".")
    if problem["type"] == "extra_forbidden":
        allowed = _names_at(location[:-1])
        near = difflib.get_close_matches(location[-1], allowed, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"allowed here: {', '.join(allowed)}"
        return f"{source}: {field} is not a setting; {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    came = problem.get("input")
    shown = "" if isinstance(came, (Mapping, BaseModel)) else f" (came: {came!r})"
    return f"{source}: {field + ': ' if field else ''}{message}{shown}"


def _field(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"] if not _is_union_tag(str(part)))


def _is_union_tag(part: str) -> bool:
    # pydantic adds the tried member of a union to the location, for example 'function-before[...]' or a class name
    return "[" in part or part in {"int", "bool", "tuple", "StreamLengths", "StreamCounts", "NamedTuple"}


def _names_at(location: Sequence[str]) -> list[str]:
    section: Any = Experiment
    for part in location:
        field = section.model_fields.get(part)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
    return list(section.model_fields)
