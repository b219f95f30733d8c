"""Renaming of state dicts by tables, with every key accounted for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


class CheckpointError(ValueError):
    """Weights that do not fit; the message lists the keys."""


@dataclass(frozen=True)
class Rule:
    """Their name (a full-match pattern), our name (with its groups), and what changes.

    transpose: a matrix that they multiply from the right is the weight of a linear layer.
    vector: a scalar becomes a vector of one. drop: not a weight; `ours` says why.
    """

    theirs: str
    ours: str
    change: Literal["same", "transpose", "vector", "drop"] = "same"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Our state dict, and one line per key of theirs: (their name, our name or reason, change)."""

    state: dict[str, Tensor]
    report: tuple[tuple[str, str, str], ...]


def prefixed(theirs: str, ours: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a part, as they read inside a whole."""
    return tuple(
        Rule(
            re.escape(theirs) + rule.theirs,
            rule.ours if rule.change == "drop" else ours + rule.ours,
            rule.change,
        )
        for rule in rules
    )


def convert(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> Conversion:
    """Our names and shapes for every tensor of `state`.

    Raises: CheckpointError listing the keys that no rule explains, or that meet in one name.
    """
    compiled = [(re.compile(rule.theirs), rule) for rule in rules]
    ours: dict[str, Tensor] = {}
    report: list[tuple[str, str, str]] = []
    problems = []
    for key, tensor in state.items():
        match = next(((m, rule) for p, rule in compiled if (m := p.fullmatch(key))), None)
        if match is None:
            problems.append(f"{key} {list(tensor.shape)}: no rule")
            continue
        found, rule = match
        if rule.change == "drop":
            report.append((key, rule.ours, rule.change))
            continue
        name = found.expand(rule.ours)
        if name in ours:
            problems.append(f"{key}: {name} is taken")
        ours[name] = _changed(tensor, rule)
        report.append((key, name, rule.change))
    if problems:
        raise CheckpointError(
            f"convert: every key must be explained; {len(problems)} of {len(state)} are not: "
            f"{'; '.join(problems[:10])}. Check that this is the model the rules are for."
        )
    return Conversion(state=ours, report=tuple(report))


def _changed(tensor: Tensor, rule: Rule) -> Tensor:
    if rule.change == "transpose":
        return tensor.t().contiguous()
    if rule.change == "vector":
        return tensor.reshape(1)
    return tensor
