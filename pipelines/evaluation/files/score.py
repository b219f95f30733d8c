"""The metrics that files can be scored by, and the report of one pair of files."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.evaluation.files import (
    captions,
    detection,
    panoptic,
    referring,
    retrieval,
    semantic,
    vqa,
)
from pipelines.evaluation.files.result import FileScores
from pipelines.evaluation.protocols import REFER_PER_SENTENCE, REFER_PROTOCOLS
from pipelines.evaluation.provenance import digest_of_file, digest_of_files, tool_versions

METRICS = ("panoptic", "instance", "box", "semantic", "referring", "caption", "retrieval", "vqa")
FORMATS = "\n\n".join(
    module.FORMAT for module in (panoptic, detection, semantic, referring, captions, retrieval, vqa)
)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What decides a score besides the two files; each metric reads what concerns it."""

    predictions_folder: Path | None = None
    truth_folder: Path | None = None
    ignore: tuple[int, ...] = semantic.DEFAULT_IGNORE
    num_classes: int | None = None
    split: str | None = None
    protocol: str = REFER_PER_SENTENCE
    java: str = "auto"
    texts_per_image: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in REFER_PROTOCOLS:
            raise ConfigError(
                f"evaluate: protocol must be one of {list(REFER_PROTOCOLS)}; got {self.protocol!r}."
            )


def score_files(
    metric: str, *, predictions: Path, truth: Path, options: FileOptions | None = None
) -> dict[str, Any]:
    """The report of a metric as JSON can hold it: figures first, then where they come from.

    Raises:
        ConfigError: there is no such metric.
        DataError: a file is missing or damaged, or predictions and truth do not fit together.
    """
    if metric not in METRICS:
        raise ConfigError(f"evaluate: metric must be one of {list(METRICS)}; got {metric!r}.")
    scores = _scorers(predictions, truth, options or FileOptions())[metric]()
    return {
        "metric": metric,
        **{key: _finite(value) for key, value in scores.values.items()},
        "unit": "of the official tool: shares 0..1, CIDEr 0..10",
        "official": _all_finite(scores.official),
        "protocol": scores.protocol,
        "details": dict(scores.details),
        "skipped": dict(scores.skipped),
        "notes": list(scores.notes),
        "versions": tool_versions(),
        "ground_truth": _origin(truth, scores.truth_files),
        "predictions": _origin(predictions, scores.prediction_files),
        "per_class": _all_finite(scores.per_class),
        "per_item": _all_finite(scores.per_item),
    }


def _scorers(
    predictions: Path, truth: Path, options: FileOptions
) -> dict[str, Callable[[], FileScores]]:
    return {
        "panoptic": lambda: panoptic.score_panoptic_files(
            predictions=predictions,
            truth=truth,
            predictions_folder=options.predictions_folder,
            truth_folder=options.truth_folder,
        ),
        "instance": lambda: detection.score_detection_files(
            predictions=predictions, truth=truth, metric="instance"
        ),
        "box": lambda: detection.score_detection_files(
            predictions=predictions, truth=truth, metric="box"
        ),
        "semantic": lambda: semantic.score_semantic_files(
            predictions=predictions,
            truth=truth,
            ignore=options.ignore,
            num_classes=options.num_classes,
        ),
        "referring": lambda: referring.score_referring_files(
            predictions=predictions, truth=truth, split=options.split, protocol=options.protocol
        ),
        "caption": lambda: captions.score_caption_files(
            predictions=predictions, truth=truth, java=options.java
        ),
        "retrieval": lambda: retrieval.score_retrieval_files(
            predictions=predictions,
            truth=truth,
            split=options.split,
            texts_per_image=options.texts_per_image,
        ),
        "vqa": lambda: vqa.score_vqa_files(predictions=predictions, truth=truth),
    }


def _origin(path: Path, files: tuple[Path, ...]) -> dict[str, Any]:
    """One hash over the content of all files that were read, in their order."""
    digest = digest_of_file(files[0]) if len(files) == 1 else digest_of_files(files)
    return {"path": str(path), "sha256": digest, "num_files": len(files)}


def _all_finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {str(key): _all_finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_all_finite(value) for value in values]
    return _finite(values)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
