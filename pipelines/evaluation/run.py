"""One pass over a split that fills every metric which its annotations allow."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipelines.data.coco import CocoFolder, CocoRecord, CocoSplit
from pipelines.errors import ConfigError, DataError
from pipelines.evaluation.images import read_image
from pipelines.evaluation.naming_stage import META_FILE, NamingStage, PairVocabulary
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.predictors import predictor_of, stages_of
from pipelines.evaluation.provenance import file_hashes, protocols, tool_versions
from pipelines.evaluation.referring_stage import ReferringStage
from pipelines.evaluation.segmentation_stage import SegmentationStage
from pipelines.evaluation.text_stages import CaptionStage, RetrievalStage
from pipelines.families import TrainedModel

STAGES = ("segmentation", "referring", "captioning", "retrieval", "naming")


class Stage(Protocol):
    """Metrics of one task: takes images with their records, then gives values and details."""

    name: str

    def wants(self, record: CocoRecord) -> bool:
        """Whether the image has what the metrics need."""
        ...

    def add(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> None:
        """Predict and take some images."""
        ...

    def result(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Percentages by key, and details such as counts."""
        ...

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id, to find good and bad ones."""
        ...


@dataclass(frozen=True, kw_only=True)
class SplitScores:
    """Everything measured on a split: percentages by key, details, and figures by image."""

    split: CocoSplit
    values: dict[str, float]
    details: dict[str, Any]
    images: dict[int, dict[str, float]]
    stages: tuple[Stage, ...]
    seconds: float


def evaluate(
    model: TrainedModel,
    root: Path,
    split: str,
    *,
    options: EvaluationOptions,
    stages: Sequence[str] = STAGES,
    is_quiet: bool = False,
) -> dict[str, Any]:
    """Metrics of a model on a split of a COCO-format folder, in percent, with their protocols.

    A metric whose annotations the split lacks is absent; with all stages asked for, so are those
    that the model cannot answer. Flat keys are the metrics; "details"
    holds counts and figures by class, "images" figures by image, "ground_truth" hashes.

    Raises:
        DataError: files are missing or damaged; the message names them.
    """
    predictor = predictor_of(model.eval(), options=options)
    stages = stages_of(model, STAGES) if tuple(stages) == STAGES else stages
    scores = score_split(predictor, root, split, options=options, stages=stages, is_quiet=is_quiet)
    return report_of(scores, root, options)


def score_split(
    predictor: Predictor,
    root: Path,
    split: str,
    *,
    options: EvaluationOptions,
    stages: Sequence[str] = STAGES,
    is_quiet: bool = False,
) -> SplitScores:
    """What `evaluate` measures, for any predictor."""
    started = time.perf_counter()
    folder = CocoFolder(root)
    found = _first_images(folder.split(split), options.max_images)
    active = _stages(folder.root, found, options, stages)
    with _progress(is_quiet) as advance:
        for records in _chunks(found.records, options.batch_size):
            _add(active, predictor, records)
            advance(len(records), len(found.records))
    values: dict[str, float] = {}
    details: dict[str, Any] = {"num_images": len(found.records)}
    for stage in active:
        more_values, more_details = stage.result()
        values |= more_values
        details |= more_details
    return SplitScores(
        split=found,
        values=values,
        details=details,
        images=_by_image(active),
        stages=tuple(active),
        seconds=time.perf_counter() - started,
    )


def report_of(scores: SplitScores, root: Path, options: EvaluationOptions) -> dict[str, Any]:
    """The scores as JSON can hold them, with everything that decides what they mean."""
    others = (root / META_FILE, root / "refs" / "instances.json")
    truth = [*scores.split.annotation_files, *(path for path in others if path.is_file())]
    return {
        **{key: value if math.isfinite(value) else None for key, value in scores.values.items()},
        "unit": "percent",
        "root": str(root),
        "split": scores.split.name,
        "protocols": protocols(options),
        "versions": tool_versions(),
        "ground_truth": file_hashes(truth, root=root),
        "details": scores.details,
        "images": {str(key): value for key, value in sorted(scores.images.items())},
        "evaluation_seconds": round(scores.seconds, 2),
    }


def _first_images(split: CocoSplit, max_images: int) -> CocoSplit:
    if max_images <= 0 or max_images >= len(split.records):
        return split
    return CocoSplit(
        name=split.name,
        records=split.records[:max_images],
        panoptic_categories=split.panoptic_categories,
        instance_categories=split.instance_categories,
        annotation_files=split.annotation_files,
    )


def _stages(
    root: Path, split: CocoSplit, options: EvaluationOptions, names: Sequence[str]
) -> list[Stage]:
    unknown = sorted(set(names) - set(STAGES))
    if unknown:
        raise ConfigError(f"evaluation: stages must be among {list(STAGES)}; got {unknown}.")
    controls = options.with_controls
    build: dict[str, Callable[[], Stage]] = {
        "segmentation": lambda: SegmentationStage(split),
        "referring": lambda: ReferringStage(split.records, with_controls=controls),
        "captioning": lambda: CaptionStage(
            split.records, with_controls=controls, java=options.java
        ),
        "retrieval": lambda: RetrievalStage(pool=options.retrieval_pool, with_controls=controls),
    }
    active = [build[name]() for name in STAGES if name in names and name in build]
    pairs = PairVocabulary.read(root) if "naming" in names else None
    return [*active, NamingStage(pairs)] if pairs else active


def _add(stages: Sequence[Stage], predictor: Predictor, records: Sequence[CocoRecord]) -> None:
    wanted = [record for record in records if any(stage.wants(record) for stage in stages)]
    images = {record.image_id: _read(record) for record in wanted}
    for stage in stages:
        mine = [record for record in wanted if stage.wants(record)]
        if mine:
            stage.add(predictor, [images[record.image_id] for record in mine], mine)


def _read(record: CocoRecord) -> ImageArray:
    image = read_image(record.image_path, turn_upright=False)
    if image.shape[:2] != record.size_hw:
        raise DataError(
            f"{record.image_path}: must be {record.size_hw[0]}x{record.size_hw[1]} as annotated; "
            f"got {image.shape[0]}x{image.shape[1]}. Fetch the original file."
        )
    return image


def _chunks(records: Sequence[CocoRecord], size: int) -> Iterator[Sequence[CocoRecord]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


def _by_image(stages: Sequence[Stage]) -> dict[int, dict[str, float]]:
    images: dict[int, dict[str, float]] = {}
    named = [item for stage in stages for item in stage.by_image().items()]
    for name, values in named:
        for image_id, value in values.items():
            if math.isfinite(value):
                images.setdefault(image_id, {})[name] = value
    return images


@contextlib.contextmanager
def _progress(is_quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left; nothing when quiet or when nobody watches."""
    started, done = time.perf_counter(), 0
    with Progress(
        TextColumn("evaluate"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images  {task.fields[rate]:.1f}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=is_quiet or not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("evaluate", total=None, rate=0.0)

        def advance(count: int, total: int) -> None:
            nonlocal done
            done += count
            rate = done / max(time.perf_counter() - started, 1e-9)
            progress.update(task, completed=done, total=total, rate=rate)

        yield advance
