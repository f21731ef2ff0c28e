"""What may follow a word of the command line, for the shells' completion: read from files and settings, nothing is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

Words = list[tuple[str, str]]  # a word and what it stands for, which zsh and fish show beside it


def experiments(incomplete: str) -> Words:
    """The shipped experiments, and experiment files of this folder; paths are left to the shell."""
    if "/" in incomplete:
        return []
    from vicc_ray.config.published import shipped_experiment

    shipped = [(file.stem, _head(file)) for file in sorted(shipped_experiment("quickstart").parent.glob("*.yaml"))]
    here = [(file.name, "a file of this folder") for pattern in ("*.yaml", "*.yml") for file in Path().glob(pattern)]
    return [(word, text) for word, text in [*shipped, *sorted(here)] if word.startswith(incomplete)]


def runs(incomplete: str) -> Words:
    """The run folders below ./runs, or below the folder that is being written."""
    folder = Path(incomplete.rpartition("/")[0]) if "/" in incomplete else Path("runs")
    found = sorted(file.parent for name in ("config.yaml", "sweep.yaml") for file in folder.glob(f"*/{name}"))
    words = [(str(run), "a sweep" if (run / "sweep.yaml").is_file() else "a run") for run in found]
    return [(word, text) for word, text in words if word.startswith(incomplete)]


def settings(incomplete: str) -> Words:
    """Settings as `optim.lr=`; once the name is whole, the values that are known of it.

    A setting stands there twice, without a value and with its default: where a single word is left, a shell takes it for finished
    and begins the next.
    """
    from vicc_ray.config import Experiment, flatten
    from vicc_ray.config.values import Section

    name, sign, value = incomplete.partition("=")
    defaults = flatten(Experiment().model_dump(mode="json"))
    found: Words = []
    for path, field in _fields(Experiment, Section, defaults):
        values = _values(field, defaults.get(path))
        if sign and path == name:
            return [(f"{path}={one}", text) for one, text in values if one.startswith(value)]
        if not sign and path.startswith(name):
            found += [(f"{path}=", field.description or ""), *((f"{path}={one}", text) for one, text in values[:1])]
    return found


def encoders(incomplete: str) -> Words:
    """Names that encoders of runs in ./runs have."""
    names = {file.stem for file in Path("runs").glob("*/encoders/*.safetensors")}
    return [(name, "an encoder") for name in sorted(names) if name.startswith(incomplete)]


def _head(file: Path) -> str:
    """The first line of a file's comment."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = next(lines, "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _fields(model: Any, section: type, defaults: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings below a section, by their dotted paths; a section with a value of its own, such as 2 workers, is one."""
    for name, field in model.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
        inner = kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], section) else None
        if inner is not None and defaults.get(f"{prefix}{name}") is None:
            yield from _fields(inner, section, defaults, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _values(field: Any, default: Any) -> Words:
    """The default first, where there is one, then the others where they are but a few; nothing that a shell would take apart."""
    allowed = [one for part in (field.annotation, *get_args(field.annotation)) for one in _choices(part)]
    first = [] if default is None else [json.dumps(default, separators=(",", ":")).strip('"')]
    words = dict.fromkeys([*first, *(json.dumps(one).strip('"') for one in allowed)])
    return [(word, "default" if word in first else "") for word in words if not set(word) & set(" \t\n{}[]")]


def _choices(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    return (True, False) if kind is bool else ()
