"""Pages of the reference that are made from the code: every setting, every verb with its options, the schema."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from vicc_ray.cli import app
from vicc_ray.config.published import published_settings
from vicc_ray.config.settings import Setting, experiment_schema, sections, settings

NOT_PUBLISHED = "-"


def write(folder: Path) -> None:
    """Write what `reference/settings.md` and `commands.md` include, and the schema, below the folder's `_build`."""
    texts = {
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        "extra/experiment.schema.json": json.dumps(experiment_schema(), indent=2) + "\n",
    }
    for name, text in texts.items():
        file = folder / "_build" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:  # Sphinx builds anew what is newer
            file.write_text(text, encoding="utf-8")


def settings_page() -> str:
    """Every setting: type, default, the published value, a sentence."""
    published = published_settings()
    parts: list[str] = []
    for path, section in sections():
        own = [one for one in settings() if one.path.rpartition(".")[0] == path]
        heading = f"## `{path}`" if path else "## The experiment itself"
        parts += [heading, (section.__doc__ or "").strip(), _table(own, published)] if own else []
    return "\n\n".join(parts) + "\n"


def _table(own: list[Setting], published: dict[str, Any]) -> str:
    rows = ["| setting | default | published | what it is |", "| --- | --- | --- | --- |"]
    for one in own:
        value = _value(published[one.path]) if one.path in published else NOT_PUBLISHED
        sentence = f"{_cell(one.description)}.<br>*{_cell(one.type)}*"
        rows.append(f"| `{one.path}` | {_value(one.default)} | {value} | {sentence} |")
    return "\n".join(rows)


def _value(value: Any) -> str:
    return "none" if value is None else f"`{_cell(value if isinstance(value, str) else json.dumps(_short(value)))}`"


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def commands_page() -> str:
    """Every verb with its arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = [part for name, verb in group.commands.items() for part in _verb(f"vicc {name}", verb)]
    return "\n\n".join(parts) + "\n"


def _verb(name: str, verb: Any) -> Iterator[str]:
    yield f"## {name}"
    yield " ".join((verb.help or "").split())
    if verb.epilog:
        yield f"```sh\n{verb.epilog.removeprefix('Example: ')}\n```"
    hints = typing.get_type_hints(inspect.unwrap(verb.callback)) if verb.callback else {}
    named = [one for one in verb.params if one.name != "help" and not getattr(one, "hidden", False)]
    rows = [_parameter(one, _choices(hints.get(one.name))) for one in named]
    if rows:
        yield "\n".join(["| argument or option | default | what it is |", "| --- | --- | --- |", *rows])
    for inner, command in getattr(verb, "commands", {}).items():
        yield from (
            part.replace("## ", "### ", 1) if part.startswith("## ") else part
            for part in _verb(f"{name} {inner}", command)
        )


def _choices(hint: Any) -> tuple[str, ...]:
    """The words that a parameter takes, where its type is a Literal."""
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _parameter(one: Any, choices: tuple[str, ...]) -> str:
    names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts)) + (
        f" *{one.metavar}*" if one.metavar else ""
    )
    if one.param_type_name == "argument":
        names = f"`{one.metavar or one.name.upper()}`"
    kind = f"<br>*{', '.join(f'`{choice}`' for choice in choices)}*" if choices else ""
    variable = f" Variable: `{one.envvar}`." if isinstance(one.envvar, str) else ""
    given = (
        "required"
        if one.required
        else ""
        if one.default in (None, False, ()) or callable(one.default)
        else f"`{one.default}`"
    )
    return f"| {names} | {given} | {_cell(one.help or '')}{kind}{variable} |"
