"""Two-way renaming: tables of name templates that read one layout and write it back.

`{i}` and `{j}` stand for numbers, `{p}` for the last part of a name. One tensor of ours may be
several of theirs, joined along the first dimension in that order.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xdecoder.convert.rules import CheckpointError, Conversion

_PLACES = {"{i}": r"(?P<i>\d+)", "{j}": r"(?P<j>\d+)", "{p}": r"(?P<p>\w+)"}


@dataclass(frozen=True)
class Pair:
    """A name of ours and the names of the equal parts of it in another layout."""

    ours: str
    theirs: tuple[str, ...]


@dataclass(frozen=True)
class Unused:
    """A name of theirs that is no weight of ours, and why."""

    theirs: str
    reason: str


def pair(ours: str, *theirs: str) -> Pair:
    """A pair of templates."""
    return Pair(ours, theirs)


def read_pairs(
    state: Mapping[str, Tensor], pairs: Sequence[Pair], unused: Sequence[Unused]
) -> Conversion:
    """Our state dict from theirs.

    Raises: CheckpointError listing keys that no template explains, and incomplete joins.
    """
    compiled = [
        (_pattern(theirs), pair_, part)
        for pair_ in pairs
        for part, theirs in enumerate(pair_.theirs)
    ]
    dropped = [(_pattern(each.theirs), each.reason) for each in unused]
    parts: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    report, problems = [], []
    for key, tensor in state.items():
        reason = next((reason for p, reason in dropped if p.fullmatch(key)), None)
        if reason is not None:
            report.append((key, reason, "drop"))
            continue
        found = next(((m, pair_, n) for p, pair_, n in compiled if (m := p.fullmatch(key))), None)
        if found is not None:
            match, pair_, part = found
            name = pair_.ours.format(**match.groupdict())
            parts.setdefault(name, {})[part] = tensor
            counts[name] = len(pair_.theirs)
            report.append((key, name, "same" if counts[name] == 1 else f"part {part + 1}"))
        else:
            problems.append(f"{key} {list(tensor.shape)}: no rule")
    problems += [f"{name}: a part is missing" for name in parts if len(parts[name]) < counts[name]]
    if problems:
        raise CheckpointError(
            f"convert: every key must be explained; {len(problems)} of {len(state)} are not: "
            f"{'; '.join(problems[:10])}. Check that this is the model the rules are for."
        )
    ours = {name: _joined([found[n] for n in sorted(found)]) for name, found in parts.items()}
    return Conversion(state=ours, report=tuple(report))


def write_pairs(state: Mapping[str, Tensor], pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Their state dict from ours.

    Raises: CheckpointError listing our keys that their layout has no name for.
    """
    compiled = [(_pattern(each.ours), each) for each in pairs]
    theirs: dict[str, Tensor] = {}
    problems = []
    for key, tensor in state.items():
        found = next(((m, each) for p, each in compiled if (m := p.fullmatch(key))), None)
        if found is None:
            problems.append(key)
            continue
        match, each = found
        names = [name.format(**match.groupdict()) for name in each.theirs]
        theirs |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    if problems:
        raise CheckpointError(
            f"convert: the other layout must have a name for every weight; none for "
            f"{', '.join(problems[:10])}. HuggingFace's MaskFormer has no transformer in its pixel "
            "decoder, for example; keep our own layout for such models."
        )
    return {name: tensor.contiguous() for name, tensor in theirs.items()}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for place, group in _PLACES.items():
        pattern = pattern.replace(re.escape(place), group)
    return re.compile(pattern)
