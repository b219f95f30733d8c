"""One pass over a split that fills every metric which its annotations allow."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipelines.data.coco import CocoRecord, CocoSplit
from pipelines.data.records import UNKNOWN_SIZE_HW
from pipelines.engine.distributed import ProcessPlace
from pipelines.errors import ConfigError, DataError
from pipelines.evaluation.answering_stage import AnsweringStage
from pipelines.evaluation.answers import Answers, ChunkAnswers, MemoryAnswers
from pipelines.evaluation.images import read_image
from pipelines.evaluation.naming_stage import NamingStage, PairVocabulary
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.predictors import predictor_of, stages_of
from pipelines.evaluation.provenance import file_hashes, protocols, tool_versions
from pipelines.evaluation.referring_stage import ReferringStage
from pipelines.evaluation.segmentation_stage import SegmentationStage
from pipelines.evaluation.sets import EvaluationData, coco_data
from pipelines.evaluation.stage import Stage
from pipelines.evaluation.text_stages import CaptionStage, RetrievalStage
from pipelines.families import TrainedModel

STAGES = ("segmentation", "referring", "captioning", "retrieval", "naming")
# asked for by name only: texts of other data sets are no questions
ANSWERING = "answering"


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
    data = coco_data(root, split)
    scores = score_split(predictor, data, options=options, stages=stages, is_quiet=is_quiet)
    return report_of(scores, data, options)


def score_split(
    predictor: Predictor,
    data: EvaluationData,
    *,
    options: EvaluationOptions,
    stages: Sequence[str] = STAGES,
    is_quiet: bool = False,
) -> SplitScores:
    """What `evaluate` measures, for any predictor, in one process."""
    answers, place = MemoryAnswers(), ProcessPlace()
    started = time.perf_counter()
    ask(predictor, data, options, stages, answers, place=place, is_quiet=is_quiet)
    scores = count(data, options, stages, answers)
    return replace(scores, seconds=time.perf_counter() - started)


def ask(
    predictor: Predictor,
    data: EvaluationData,
    options: EvaluationOptions,
    stages: Sequence[str],
    answers: Answers,
    *,
    place: ProcessPlace,
    is_quiet: bool,
) -> None:
    """Ask for every chunk of this rank that has no answers yet."""
    found = first_images(data.split, options.max_images)
    active = _stages(data, found, options, stages)
    with _progress(is_quiet or not place.is_main) as advance:
        for index, records in enumerate(_chunks(found.records, options.batch_size)):
            if index % place.world_size == place.rank and answers.read(index) is None:
                answers.write(index, _answers(active, predictor, records))
            advance(len(records), len(found.records))


def count(
    data: EvaluationData, options: EvaluationOptions, stages: Sequence[str], answers: Answers
) -> SplitScores:
    """The figures of answers to every chunk, in the order of the split.

    Raises:
        DataError: a chunk has no answers.
    """
    started = time.perf_counter()
    found = first_images(data.split, options.max_images)
    active = _stages(data, found, options, stages)
    for index, records in enumerate(_chunks(found.records, options.batch_size)):
        given = answers.read(index)
        if given is None:
            raise DataError(
                f"evaluate {data.name}: batch {index} must be answered by a rank; it is not. Do "
                "all ranks see the output folder?"
            )
        for stage in active:
            mine = [record for record in records if stage.wants(record)]
            for record, answer in zip(mine, given[stage.name], strict=True):
                stage.take(record, answer)
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


def report_of(
    scores: SplitScores, data: EvaluationData, options: EvaluationOptions
) -> dict[str, Any]:
    """The scores as JSON can hold them, with everything that decides what they mean."""
    return {
        **{key: value if math.isfinite(value) else None for key, value in scores.values.items()},
        "unit": "percent",
        "data_set": data.name,
        "root": str(data.root),
        "split": scores.split.name,
        "protocols": protocols(options),
        "versions": tool_versions(),
        "ground_truth": truth_hashes(data),
        "details": scores.details,
        "images": {str(key): value for key, value in sorted(scores.images.items())},
        "evaluation_seconds": round(scores.seconds, 2),
    }


def truth_hashes(data: EvaluationData) -> dict[str, str]:
    """SHA-256 of each annotation file, and one of all label pictures together."""
    return file_hashes(data.truth_files(), root=data.root, pictures=data.truth_pictures())


def first_images(split: CocoSplit, max_images: int) -> CocoSplit:
    """The split, cut to its first images; 0 = all."""
    if max_images <= 0 or max_images >= len(split.records):
        return split
    return replace(split, records=split.records[:max_images])


def _stages(
    data: EvaluationData, split: CocoSplit, options: EvaluationOptions, names: Sequence[str]
) -> list[Stage]:
    every = (*STAGES, ANSWERING)
    unknown = sorted(set(names) - set(every))
    if unknown:
        raise ConfigError(f"evaluation: stages must be among {list(every)}; got {unknown}.")
    controls = options.with_controls
    build: dict[str, Callable[[], Stage]] = {
        "segmentation": lambda: SegmentationStage(split, has_objects=data.has_objects),
        "referring": lambda: ReferringStage(
            split.records, protocol=options.refer_protocol, with_controls=controls
        ),
        "captioning": lambda: CaptionStage(
            split.records, with_controls=controls, java=options.java
        ),
        ANSWERING: lambda: AnsweringStage(split.records, with_controls=controls),
        "retrieval": lambda: RetrievalStage(
            pool=options.retrieval_pool,
            texts_per_image=options.texts_per_image,
            with_controls=controls,
        ),
    }
    active = [build[name]() for name in every if name in names and name in build]
    pairs = PairVocabulary.read(data.root) if "naming" in names else None
    return [*active, NamingStage(pairs)] if pairs else active


def _answers(
    stages: Sequence[Stage], predictor: Predictor, records: Sequence[CocoRecord]
) -> ChunkAnswers:
    wanted = [record for record in records if any(stage.wants(record) for stage in stages)]
    images = {record.image_id: _read(record) for record in wanted}
    answers: ChunkAnswers = {}
    for stage in stages:
        mine = [record for record in wanted if stage.wants(record)]
        pictures = [images[record.image_id] for record in mine]
        answers[stage.name] = stage.answers(predictor, pictures, mine) if mine else []
    return answers


def _read(record: CocoRecord) -> ImageArray:
    image = read_image(record.image_path, turn_upright=False)
    if record.size_hw not in (UNKNOWN_SIZE_HW, image.shape[:2]):
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

        def advance(amount: int, total: int) -> None:
            nonlocal done
            done += amount
            rate = done / max(time.perf_counter() - started, 1e-9)
            progress.update(task, completed=done, total=total, rate=rate)

        yield advance
