"""Sweeps: every combination of the values asked for, each a run of its own."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One run of a sweep.

    label: of its folder, empty for a run that is no sweep. words: what it adds to the command.
    """

    label: str = ""
    words: tuple[str, ...] = ()


def sweep_points(sweeps: Sequence[str]) -> tuple[SweepPoint, ...]:
    """The points of `path=value,value` assignments, the last path changing fastest.

    Values are split at commas outside of brackets. Without assignments there is one point.

    Raises:
        ConfigError: an assignment has no values, or two points would share a folder.
    """
    axes = [_axis(sweep) for sweep in sweeps]
    points = tuple(_point(assignments) for assignments in itertools.product(*axes))
    labels = [point.label for point in points]
    if len(set(labels)) < len(labels):
        raise ConfigError(
            f"--sweep: every run needs a folder of its own; got {', '.join(labels)}. "
            "Remove values that are asked for twice."
        )
    return points


def _axis(sweep: str) -> list[tuple[str, str]]:
    path, _, text = sweep.partition("=")
    values = [value.strip() for value in re.split(r",(?![^(\[]*[)\]])", text)]
    if not path or not all(values):
        raise ConfigError(
            f"--sweep: must be PATH=VALUE,VALUE; got {sweep!r}. "
            "For example --sweep optimizer.learning_rate=1e-4,3e-4."
        )
    return [(path, value) for value in values]


def _point(assignments: Sequence[tuple[str, str]]) -> SweepPoint:
    words = [word for path, value in assignments for word in ("--set", f"{path}={value}")]
    parts = [f"{path.rpartition('.')[2]}={value}" for path, value in assignments]
    return SweepPoint(label=re.sub(r"[^\w.=+-]+", "_", ",".join(parts)), words=tuple(words))
