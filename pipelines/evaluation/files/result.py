"""What scoring a pair of files gives, whatever the metric."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Values = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class FileScores:
    """The figures of one metric, in the units of its official tool (shares 0..1, CIDEr 0..10).

    values: flat, by our names; official: the same figures by the names that the official tool
    prints; truth_files, prediction_files: all that decided the numbers;
    per_class, per_item: figures of single classes, images, sentences or questions.
    skipped: metrics that could not be computed, with the reason; notes: what was put up with.
    """

    protocol: str
    values: Values
    official: Mapping[str, Any]
    truth_files: tuple[Path, ...]
    prediction_files: tuple[Path, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    per_class: Mapping[str, Values] = field(default_factory=dict)
    per_item: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
