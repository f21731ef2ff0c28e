"""Values of settings that are more than a number or a word: lengths, worker ranges, search ranges, budgets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from vicc_ray.errors import UserError


class Section(BaseModel):
    """A group of settings; an unknown name in it is an error, a value never changes after the checks."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


_UNITS = {"epoch": "epochs", "sample": "samples", "step": "steps", "percent": "%", "%": "%"}
_UNITS |= {unit: unit for unit in _UNITS.values()}


class Duration(NamedTuple):
    """A length of training in the unit it was written in: epochs, samples, steps, or % of the whole it is part of."""

    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"

    def steps(self, *, steps_per_epoch: int, global_batch: int, whole: int | None = None) -> int:
        """This length in optimiser steps, rounded to the nearest whole step (a positive length is at least one).

        `whole` is the number of steps that 100 % stands for; UserError where a percentage has no whole.
        """
        if self.unit == "%" and whole is None:
            raise UserError(f"'{self}' is a share of nothing here; write it in epochs, samples or steps")
        scale = {"epochs": steps_per_epoch, "samples": 1 / global_batch, "steps": 1, "%": (whole or 0) / 100}[self.unit]
        return max(round(self.value * scale), int(self.value > 0))


def parse_cadence(value: Any) -> Duration:
    """As `parse_duration`, also '5 minutes': how often something is done, where time may count."""
    if isinstance(value, Duration):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*min(?:utes?)?\s*", str(value).lower())
    if match:
        return Duration(float(match[1]), "minutes")
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError(
            "it needs a number and a unit: '5 minutes', '1 epochs', '5000 samples', '50 steps' or '10 %'"
        ) from None


def parse_duration(value: Any) -> Duration:
    """'30 epochs', '5000 samples', '50 steps', '10 %' or 0 as a Duration; ValueError says what is allowed."""
    if isinstance(value, Duration):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z%]*)\s*", str(value).lower())
    if match and (match[2] in _UNITS or float(match[1]) == 0):
        return Duration(float(match[1]), _UNITS.get(match[2], "steps"))
    raise ValueError("a length needs a number and a unit: '30 epochs', '5000 samples', '50 steps' or '10 %'")


def _number_and_unit(title: str, units: str) -> dict[str, Any]:
    """JSON Schema of a number with a unit, or of 0."""
    written = {"type": "string", "pattern": rf"^\s*([0-9]*\.?[0-9]+\s*({units})|0*\.?0+)\s*$"}
    return {"title": title, "anyOf": [written, {"const": 0}]}


_TRAINING_UNITS = "epochs?|samples?|steps?|percent|%"
# `title` is what the reference calls the type.
LENGTH_SCHEMA = _number_and_unit("length: '30 epochs', '5000 samples', '50 steps' or '10 %'", _TRAINING_UNITS)
CADENCE_SCHEMA = _number_and_unit(
    "how often: '5 minutes', '1 epochs', '5000 samples', '50 steps' or '10 %'", f"min(utes?)?|{_TRAINING_UNITS}"
)
Length = Annotated[
    Duration, BeforeValidator(parse_duration), PlainSerializer(str), WithJsonSchema(LENGTH_SCHEMA, mode="validation")
]
Cadence = Annotated[
    Duration, BeforeValidator(parse_cadence), PlainSerializer(str), WithJsonSchema(CADENCE_SCHEMA, mode="validation")
]


class WorkerRange(Section):
    """Training starts with `min` workers and uses up to `max` as nodes come and go."""

    min: int = Field(..., ge=1)
    max: int = Field(..., ge=1)

    @model_validator(mode="after")
    def _check(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


def _parse_workers(value: Any) -> WorkerRange:
    if isinstance(value, WorkerRange):
        return value
    if isinstance(value, Mapping):
        if set(value) != {"min", "max"}:
            raise ValueError("write a number of workers, or {min: 2, max: 8}")
        try:
            return WorkerRange(min=value["min"], max=value["max"])
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("write a number of workers from 1 up, or {min: 2, max: 8}")
    return WorkerRange(min=value, max=value)


def _dump_workers(value: WorkerRange) -> int | dict[str, int]:
    return value.min if value.min == value.max else {"min": value.min, "max": value.max}


_COUNT = {"type": "integer", "minimum": 1}
_FROM_TO = {"min": _COUNT, "max": _COUNT}
WORKERS_SCHEMA = {
    "title": "number of workers, or {min: 2, max: 8}",
    "anyOf": [
        _COUNT,
        {"type": "object", "properties": _FROM_TO, "required": ["min", "max"], "additionalProperties": False},
    ],
}
Workers = Annotated[
    WorkerRange,
    PlainValidator(_parse_workers),
    PlainSerializer(_dump_workers),
    WithJsonSchema(WORKERS_SCHEMA, mode="validation"),
]
RANGES = {"log": 2, "uniform": 2, "int": 2, "log_int": 2, "choice": None}  # kind -> how many values it takes


class Range(NamedTuple):
    """The values that a sweep tries of one setting: between two bounds (both included), or one of several."""

    kind: str
    values: tuple[Any, ...]


def _parse_range(value: Any) -> Range:
    if isinstance(value, Range):
        return value
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in RANGES:
        raise ValueError(
            "write {log: [0.03, 0.3]}, {uniform: [0.5, 1]}, {int: [1, 5]}, {log_int: [64, 3000]} or {choice: [a, b, c]}"
        )
    kind, values = next(iter(value.items()))
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{kind} needs a list of values")
    if kind == "choice":
        if len({repr(one) for one in values}) != len(values):
            raise ValueError("choice names a value twice")
        return Range(kind, tuple(values))
    whole = kind in ("int", "log_int")
    if len(values) != 2 or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in values):
        raise ValueError(f"{kind} needs two numbers, the lowest and the highest value")
    if whole and any(not isinstance(one, int) for one in values):
        raise ValueError(f"{kind} needs two whole numbers")
    low, high = values
    if not low < high:
        raise ValueError(f"{kind} needs its lowest value first: {low} is not below {high}")
    if kind.startswith("log") and low <= 0:
        raise ValueError(f"{kind} needs values above 0")
    return Range(kind, (low, high) if whole else (float(low), float(high)))


def _dump_range(value: Range) -> dict[str, list[Any]]:
    return {value.kind: list(value.values)}


def _bounds(kind: str) -> dict[str, Any]:
    number = {"type": "integer" if kind in ("int", "log_int") else "number"}
    return {"type": "array", "items": number, "minItems": 2, "maxItems": 2}


RANGE_SCHEMA = {
    "title": "{log, uniform, int or log_int: [low, high]} or {choice: [a, b, c]}",
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
    "properties": {
        kind: {"type": "array", "minItems": 1} if count is None else _bounds(kind) for kind, count in RANGES.items()
    },
}
SpaceRange = Annotated[
    Range,
    PlainValidator(_parse_range),
    PlainSerializer(_dump_range),
    WithJsonSchema(RANGE_SCHEMA, mode="validation"),
]


class Budget(NamedTuple):
    """How much a sweep may spend; its unit is trials, hours or device-hours."""

    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"


def parse_budget(value: Any) -> Budget:
    """'12 trials', '2 hours' or '4 device-hours' as a Budget; ValueError says what is allowed."""
    if isinstance(value, Budget):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(trial|hour|device-hour)s?\s*", str(value).lower())
    if not match or float(match[1]) <= 0 or (match[2] == "trial" and float(match[1]) % 1):
        raise ValueError("a budget is written '12 trials', '2 hours' or '4 device-hours'")
    return Budget(float(match[1]), f"{match[2]}s")


BUDGET_SCHEMA = {
    "title": "'12 trials', '2 hours' or '4 device-hours'",
    "type": "string",
    "pattern": r"^\s*[0-9]*\.?[0-9]+\s*(trial|hour|device-hour)s?\s*$",
}
