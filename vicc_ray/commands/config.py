"""`vicc config`: an experiment as it is resolved, with where each value comes from, and the schema that editors read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from vicc_ray.config import (
    Experiment,
    Layer,
    experiment_with,
    file_layers,
    override_layer,
    setting_in,
)
from vicc_ray.config.published import experiment_file
from vicc_ray.config.settings import sections, settings
from vicc_ray.runs.scale import Scale, scale_changes

DEFAULT = "default"
WIDEST = 40  # column of the comments, where the values allow it


def resolve(path: Path | None, overrides: Sequence[str], scale: Scale) -> tuple[Experiment, dict[str, str]]:
    """An experiment file (None: the defaults) with its changes, and {dotted setting: where its value comes from}.

    A source is a file of the chain of `extends`, `--scale smoke`, `--set` or `default`. UserError as `load_experiment`.
    """
    file = path and experiment_file(str(path))
    scaled = scale_changes(file, overrides, scale)
    layers: list[Layer] = [] if file is None else file_layers(file)
    layers += [override_layer(scaled, f"--scale {scale}"), override_layer(overrides)]
    experiment = experiment_with(file, [*scaled, *overrides])
    origins = {
        setting.path: next(
            (" ".join(one.source.split()) for one in reversed(layers) if setting_in(one.settings, setting.path)),
            DEFAULT,
        )
        for setting in settings()
    }
    return experiment, origins


def shown(experiment: Experiment, origins: dict[str, str]) -> str:
    """The experiment as YAML, a line a setting with its source behind it; reads back to an equal experiment."""
    lines = list(_lines(experiment.model_dump(mode="json"), origins))
    column = min(max(len(text) for text, _ in lines), WIDEST)
    return "".join(f"{text.ljust(column)}  # {source}\n" if source else f"{text}\n" for text, source in lines)


def sources_json(experiment: Experiment, origins: dict[str, str]) -> dict[str, Any]:
    """{"experiment": nested settings, "sources": {dotted setting: source}}."""
    return {"experiment": experiment.model_dump(mode="json"), "sources": origins}


def _lines(tree: dict[str, Any], origins: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(YAML of a line, source of its value); headings of sections have none."""
    known = dict(sections())
    for path, section in known.items():
        depth = path.count(".") + bool(path)
        values: Any = tree
        for key in path.split(".") if path else ():
            values = values and values[key]
        if values is None:  # no sweep
            yield f"{path}:", DEFAULT
            continue
        if path:
            yield f"{'  ' * (depth - 1)}{path.rpartition('.')[2]}:", ""
        for name in section.model_fields:
            setting = f"{path}.{name}" if path else name
            if setting in origins:
                yield f"{'  ' * depth}{name}: {_flow(values[name])}", origins[setting]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**31)
    return str(text).removesuffix("\n").removesuffix("\n...")
