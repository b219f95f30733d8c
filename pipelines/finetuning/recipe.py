"""A task and a start to a run."""

import math
from dataclasses import replace
from typing import Any

from pipelines.config import (
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
)
from pipelines.data.config import (
    AugmentConfig,
    DataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from pipelines.errors import ConfigError
from pipelines.finetuning.data import num_samples
from pipelines.finetuning.start import Start
from pipelines.finetuning.tasks import FinetuneTask, Schedule
from xdecoder.config import ModelConfig
from xdecoder.openseed.config import BoxLossConfig, OpenSeeDConfig
from xdecoder.tasks.config import LayeredWeight, LossConfig

# how often a run is saved and logged, in parts of its length
_NUM_CHECKPOINTS, _NUM_LOG_LINES = 10, 100
# of a run that nobody has counted the samples of yet
_STEPS_WITHOUT_DATA = 1
_THRESHOLD = "object_threshold"


def finetuning(
    task: FinetuneTask,
    start: Start,
    *,
    shards: tuple[str, ...] = (),
    answers: tuple[str, ...] = (),
) -> RunConfig:
    """The run that a task asks for.

    From a run of ours, image sizes, batches, precision and everything about the optimizer but the
    learning rate's course stay as that run had them: what suits a tiny model is not what suits the
    paper's. From converted weights, all is the paper's. Without shards the length is not known and
    is one step. answers: of the answer head, for visual questions.

    Raises:
        ConfigError: an OpenSeeD is asked to learn anything but segments.
    """
    if isinstance(start.model, OpenSeeDConfig) and task.kind != "segmentation":
        raise ConfigError(
            f"finetune: --task {task.name} needs an X-Decoder; {start.folder} holds an OpenSeeD, "
            "which is fine-tuned on panoptic, instance and semantic segmentation only."
        )
    base = _published(task.schedule, start.model) if start.run is None else start.run
    is_text = task.kind in ("captioning", "retrieval", "answering")
    data = _data(base.data, is_text=is_text, shards=shards)
    batch_size = data.image_text.batch_size if is_text else data.segmentation.batch_size
    trained = "image_text" if is_text else "segmentation"
    steps = _STEPS_WITHOUT_DATA
    if shards:
        count = num_samples(shards, data.split, trained, is_by_text=task.kind == "answering")
        steps = math.ceil(task.schedule.epochs * count / batch_size)
    return replace(
        base,
        name=f"finetune-{task.name}",
        output_dir="",
        steps=steps,
        init_from=str(start.folder),
        model=_with_answers(start.model, answers),
        losses=_losses(task, base.losses),
        data=data,
        schedule=ScheduleConfig(kind="multistep", milestones=task.schedule.milestones),
        checkpoint=replace(base.checkpoint, every_steps=max(1, steps // _NUM_CHECKPOINTS)),
        tracking=replace(base.tracking, log_every=max(1, steps // _NUM_LOG_LINES), panels_every=0),
        evaluation=EvaluationConfig(),
    )


def protocol_settings(task: FinetuneTask, start: Start) -> dict[str, Any]:
    """What a task's protocol changes in the evaluation of a start.

    A run of ours keeps its own image sizes, converted weights are asked as the paper asks. An
    OpenSeeD keeps its threshold, which is one of similarities and not of shares.
    """
    if start.run is not None:
        return {}
    kept = isinstance(start.model, OpenSeeDConfig)
    return {key: each for key, each in task.settings.items() if not kept or key != _THRESHOLD}


def _with_answers(
    model: ModelConfig | OpenSeeDConfig, answers: tuple[str, ...]
) -> ModelConfig | OpenSeeDConfig:
    return replace(model, answers=answers) if isinstance(model, ModelConfig) and answers else model


def _published(schedule: Schedule, model: ModelConfig | OpenSeeDConfig) -> RunConfig:
    """The paper's run, for converted weights; an OpenSeeD has X-Decoder's schedules."""
    reads_captions = isinstance(model, ModelConfig)
    return RunConfig(
        name="published",
        steps=_STEPS_WITHOUT_DATA,
        deterministic=False,
        model=model,
        losses=LossConfig() if reads_captions else BoxLossConfig(),
        data=DataConfig(
            segmentation=SegmentationDataConfig(
                size_hw=schedule.size_hw,
                batch_size=schedule.batch_size,
                augment=AugmentConfig(flip_prob=0.5, scale_range=schedule.scale_range),
            ),
            image_text=ImageTextDataConfig(
                size_hw=schedule.size_hw,
                batch_size=schedule.batch_size if reads_captions else 0,
                augment=AugmentConfig(flip_prob=0.0),
            ),
            num_workers=8,
        ),
        optimizer=OptimizerConfig(
            learning_rate=schedule.learning_rate,
            backbone_multiplier=schedule.backbone_multiplier,
            text_multiplier=schedule.backbone_multiplier,
        ),
        parallel=ParallelConfig(precision="bf16"),
        checkpoint=CheckpointConfig(keep_last=2),
        tracking=TrackingConfig(wandb="auto"),
    )


def _data(base: DataConfig, *, is_text: bool, shards: tuple[str, ...]) -> DataConfig:
    """One kind of batch only; the others have none."""
    segmentation = replace(base.segmentation, shards=shards, weights=())
    image_text = replace(base.image_text, shards=shards, weights=())
    if is_text:
        segmentation = replace(segmentation, batch_size=0)
    else:
        image_text = replace(image_text, batch_size=0)
    return replace(
        base,
        segmentation=segmentation,
        detection=replace(base.detection, shards=(), weights=(), batch_size=0),
        image_text=image_text,
        split="train",
        protected=(),
    )


def _losses(task: FinetuneTask, base: object) -> LossConfig | BoxLossConfig:
    """The losses of the start, without those that the task has no use for."""
    if isinstance(base, BoxLossConfig):
        return base
    losses = base if isinstance(base, LossConfig) else LossConfig()
    off = LayeredWeight(weight=0.0)
    if task.kind == "captioning":
        return replace(losses, retrieval=off, retrieval_alignment=0.0, retrieval_backbone=0.0)
    if task.kind == "retrieval":
        return replace(losses, captioning=off)
    return losses
