"""Split rules: which videos train and which are queries, said in one line."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

from vicc_ray.data.layouts.candidates import Candidate, shown
from vicc_ray.errors import UserError

SPLIT_SYNTAX = (
    "a split rule is 'random:FRACTION[:SEED]', or 'NAME: CONDITION; NAME: CONDITION' with the conditions "
    "'group odd', 'group even', 'group 1,4,7-9' and 'rest', e.g. 'train: group odd; query: group even'"
)


def assign_splits(candidates: Sequence[Candidate], rule: str) -> list[Candidate]:
    """Give every candidate its split by a rule, whatever split it had.

    `train: group odd; query: group even`: the first clause that holds names the split; a group's number is the last
    run of digits in its name (g07 -> 7). `random:0.2[:SEED]`: whole groups go to `query` until it has at least that
    share of the videos, in an order that only the seed and the groups' names decide; a video without a group is one,
    called by its file's name, or where several share that by its path below their common folder.

    Raises `UserError` for a rule that cannot be read, or that leaves videos without a split, or a split without videos.
    """
    text = rule.strip()
    placed = _random_split(candidates, text) if text.startswith("random") else _clause_split(candidates, text)
    return [replace(candidate, split=split) for candidate, split in zip(candidates, placed, strict=True)]


def _random_split(candidates: Sequence[Candidate], rule: str) -> list[str]:
    parsed = re.fullmatch(r"random:\s*(\d*\.?\d+)(?::(\d+))?", rule)
    if not parsed or not 0 < float(parsed[1]) < 1:
        raise UserError(f"split rule '{rule}': {SPLIT_SYNTAX}; FRACTION lies between 0 and 1")
    fraction, seed = float(parsed[1]), int(parsed[2] or 0)
    groups = _groups(candidates)
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: blake2b(f"{seed}:{group}".encode("utf-8", "surrogateescape")).digest())
    query: set[str] = set()
    videos = 0
    for group in order:
        if videos >= fraction * len(candidates):
            break
        query.add(group)
        videos += sizes[group]
    if len(query) == len(order):
        raise UserError(f"split rule '{rule}': {len(order)} group(s) cannot be parted without splitting one")
    return ["query" if group in query else "train" for group in groups]


def _groups(candidates: Sequence[Candidate]) -> list[str]:
    """The group of each video, by a name that does not change where the whole data set is moved."""
    bases = Counter(posixpath.basename(candidate.path) for candidate in candidates if not candidate.group)
    shared = [c.path for c in candidates if not c.group and bases[posixpath.basename(c.path)] > 1]
    top = len(posixpath.commonprefix([posixpath.dirname(path).split("/") for path in shared])) if shared else 0
    groups = []
    for candidate in candidates:
        base = posixpath.basename(candidate.path)
        alone = "/".join(candidate.path.split("/")[top:]) if bases[base] > 1 else base
        # A group may have the name of a file.
        groups.append(f"group {candidate.group}" if candidate.group in bases else candidate.group or alone)
    return groups


def _clause_split(candidates: Sequence[Candidate], rule: str) -> list[str]:
    clauses = [_parse_clause(clause, rule) for clause in rule.split(";") if clause.strip()]
    if not clauses:
        raise UserError(f"split rule '{rule}': {SPLIT_SYNTAX}")
    placed = []
    for candidate in candidates:
        number = _group_number(candidate.group)
        name = next((name for name, holds in clauses if holds(number)), None)
        if name is None:
            group = f"group '{candidate.group}'" if candidate.group else "no group"
            raise UserError(
                f"split rule '{rule}': no clause holds for {shown(candidate.path)} ({group}); end it with 'NAME: rest'"
            )
        placed.append(name)
    empty = sorted({name for name, _ in clauses} - set(placed))
    if empty:
        raise UserError(f"split rule '{rule}': no video falls into '{', '.join(empty)}'")
    return placed


def _group_number(group: str | None) -> int | None:
    digits = re.findall(r"\d+", group or "")
    return int(digits[-1]) if digits else None


def _parse_clause(clause: str, rule: str) -> tuple[str, Callable[[int | None], bool]]:
    parsed = re.fullmatch(r"\s*([\w.-]+)\s*:\s*(?:group\s+(odd|even|[\d,\s-]+)|(rest))\s*", clause)
    if not parsed:
        raise UserError(f"split rule '{rule}': cannot read '{clause.strip()}'; {SPLIT_SYNTAX}")
    name, which, rest = parsed.groups()
    if rest:
        return name, lambda number: True
    if which in ("odd", "even"):
        return name, lambda number: number is not None and number % 2 == (which == "odd")
    numbers: set[int] = set()
    for part in which.split(","):
        bounds = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not bounds:
            raise UserError(f"split rule '{rule}': cannot read the groups '{which.strip()}'; {SPLIT_SYNTAX}")
        numbers.update(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1))
    return name, lambda number: number in numbers
