"""Every setting of an experiment as data: for the reference, for `vicc config`, and as a JSON Schema that editors read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from vicc_ray.config.experiment import Experiment
from vicc_ray.config.values import RANGE_SCHEMA, Budget, Duration, Section, WorkerRange
from vicc_ray.extensions import BACKBONES, FLOW_ALGORITHMS, OBJECTIVES, SINKS, Extensions

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Settings whose values are names of extensions: those of this installation, or package.module:Name.
NAMED = {
    ("ModelConfig", "backbone"): BACKBONES,
    ("ObjectiveConfig", "name"): OBJECTIVES,
    ("FlowConfig", "algorithm"): FLOW_ALGORITHMS,
}
Schema = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        path: dotted, as `--set` takes it.
        type: what it may be, in words.
        default: as JSON, as an experiment file would have it.
        description: a sentence.
    """

    path: str
    type: str
    default: Any
    description: str


def sections() -> Iterator[tuple[str, type[Section]]]:
    """(dotted path, class) of each group of settings, the experiment's own ('') first; in the order of the files."""
    yield "", Experiment
    yield from _sections_in(Experiment, "")


def _sections_in(section: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    for name, field in section.model_fields.items():
        inner = _section_of(field)
        if inner is not None:
            yield f"{prefix}{name}", inner
            yield from _sections_in(inner, f"{prefix}{name}.")


def _section_of(field: FieldInfo) -> type[Section] | None:
    """The group that a field holds, or may hold beside None; None for a field that is a setting of its own."""
    for one in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if isinstance(one, type) and issubclass(one, Section) and one is not WorkerRange:
            return None if one.__name__ in ("StreamLengths", "StreamCounts") else one
    return None


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the files."""
    schema = experiment_schema()
    found = []
    for prefix, section in sections():
        properties = _definition(section, schema)["properties"]
        for name, field in section.model_fields.items():
            if _section_of(field) is None:
                path = f"{prefix}.{name}" if prefix else name
                default = _as_json(field.get_default(call_default_factory=True))
                found.append(
                    Setting(path, type_in_words(properties[name], schema), default, properties[name]["description"])
                )
    return tuple(found)


def experiment_schema() -> Schema:
    """JSON Schema (2020-12) of an experiment file. What only the program can check, such as two settings together, it lets pass."""
    schema = Experiment.model_json_schema(schema_generator=_Generator)
    for _, section in sections():
        properties = _definition(section, schema)["properties"]
        for name in section.model_fields:
            properties[name].setdefault("description", _description(section, name))
            known = NAMED.get((section.__name__, name))
            if known is not None:
                properties[name] |= {"anyOf": _names(known)}
    _definition_named("TrainConfig", schema)["properties"]["sinks"]["propertyNames"] = {"anyOf": _names(SINKS)}
    first = "|".join(Experiment.model_fields)
    space = _definition_named("SearchConfig", schema)["properties"]["space"]
    space |= {"propertyNames": {"pattern": rf"^({first})(\.|$)"}, "additionalProperties": RANGE_SCHEMA}
    schema["properties"] = {
        "extends": {"type": "string", "description": "another experiment file that this one changes, beside it"}
    } | schema["properties"]
    return {"$schema": DIALECT} | schema | {"title": "Experiment of vicc_ray"}


class _Generator(GenerateJsonSchema):
    """Defaults as a file would have them, and no titles but those of `config.values`."""

    def encode_default(self, dft: Any) -> Any:
        """As the experiment file writes it."""
        return _as_json(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never: a name in capitals says nothing."""
        return False


def _as_json(value: Any) -> Any:
    if isinstance(value, Duration | Budget):
        return str(value)
    if isinstance(value, WorkerRange):
        return value.min if value.min == value.max else {"min": value.min, "max": value.max}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_as_json(one) for one in value] if isinstance(value, tuple) else value


def _description(section: type[Section], name: str) -> str:
    """Of a setting: its own, or that of the class that it was inherited from. Of a group: its class's first sentence."""
    for parent in section.__mro__:
        field = getattr(parent, "model_fields", {}).get(name)
        if field is not None and field.description:
            return str(field.description)
    inner = _section_of(section.model_fields[name])
    return (inner.__doc__ or "").split("\n")[0] if inner else ""


def _names(known: Extensions) -> list[Schema]:
    return [{"enum": list(known.names())}, {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"}]


def _definition(section: type[Section], schema: Schema) -> Schema:
    return schema if section is Experiment else _definition_named(section.__name__, schema)


def _definition_named(name: str, schema: Schema) -> Schema:
    found: Schema = schema["$defs"][name]
    return found


def type_in_words(schema: Mapping[str, Any], whole: Schema) -> str:
    """What a value may be: 'whole number, at least 1', '`fp32` or `bf16`', 'list of 2: number and number', ..."""
    if "$ref" in schema:
        section = _definition_named(schema["$ref"].rpartition("/")[2], whole)  # whose title is the name of a class
        return type_in_words({key: value for key, value in section.items() if key != "title"}, whole)
    if "title" in schema:
        return str(schema["title"])
    if "anyOf" in schema:
        return " or ".join(type_in_words(one, whole) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    return _KINDS[schema.get("type", "")](schema, whole)


def _number(word: str, schema: Mapping[str, Any]) -> str:
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    # Of a float's bound 0, pydantic 2.10 gives 0.0 and later versions 0.
    shown = {
        key: int(schema[key]) if schema[key] == int(schema[key]) else schema[key] for key in bounds if key in schema
    }
    return ", ".join([word, *(f"{text} {shown[key]}" for key, text in bounds.items() if key in shown)])


def _list(schema: Mapping[str, Any], whole: Schema) -> str:
    if "prefixItems" in schema:
        each = {type_in_words(one, whole): None for one in schema["prefixItems"]}
        return f"list of {len(schema['prefixItems'])}: {', '.join(each)}"
    return f"list of: {type_in_words(schema['items'], whole)}"


def _mapping(schema: Mapping[str, Any], whole: Schema) -> str:
    if schema.get("properties"):
        inner = (f"{name}: {type_in_words(one, whole)}" for name, one in schema["properties"].items())
        return f"{{{', '.join(inner)}}}"
    values = schema.get("additionalProperties", True)
    return f"{{name: {type_in_words(values, whole) if isinstance(values, dict) else 'value'}}}"


_KINDS = {
    "": lambda schema, whole: "anything",
    "null": lambda schema, whole: "none",
    "boolean": lambda schema, whole: "true or false",
    "string": lambda schema, whole: "package.module:Name" if "\\w.]*:" in schema.get("pattern", "") else "text",
    "integer": lambda schema, whole: _number("whole number", schema),
    "number": lambda schema, whole: _number("number", schema),
    "array": _list,
    "object": _mapping,
}
