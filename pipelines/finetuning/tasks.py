"""The downstream tasks that `python -m pipelines.finetune` knows, as data.

Source of schedules: arXiv 2212.11270 appendix A. What it does not say (referring expressions after
the number of epochs, Cityscapes, custom data) follows generic segmentation and is marked so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.errors import ConfigError

Kind = Literal["segmentation", "referring", "captioning", "retrieval", "answering"]


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a task's data may be: a source of `pipelines.prepare`, and its splits."""

    source: str
    train: tuple[str, ...] = ("train",)
    val: str = "val"
    split_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a task is trained; sizes are those of its images, in pixels.

    batch_size: images in a step, all ranks together. milestones: shares of the run at which the
    learning rate falls to a tenth.
    """

    epochs: int = 24
    batch_size: int = 32
    learning_rate: float = 1e-4
    backbone_multiplier: float = 0.1
    size_hw: tuple[int, int] = (1024, 1024)
    scale_range: tuple[float, float] = (0.1, 2.0)
    milestones: tuple[float, ...] = (21 / 24, 23 / 24)


@dataclass(frozen=True, kw_only=True)
class FinetuneTask:
    """One downstream task.

    locations: the first whose files are there is taken. metric: of the report, the one that papers
    print. settings: of the evaluation, as its protocol fixes them. protect: evaluation sets whose
    images training must not see. has_objects: whether the truth tells objects of a class apart.
    """

    name: str
    description: str
    kind: Kind
    locations: tuple[Location, ...]
    schedule: Schedule
    stages: tuple[str, ...]
    metric: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    protect: tuple[str, ...] = ()
    has_objects: bool = True


# a folder in COCO's format stands in for any data set with the same kind of annotation
_OWN = Location(source="coco")
_REFER_SIZE = {"shorter_px": 512, "longest_px": 1024}
_PAIRS = {"is_squashed": True, "retrieval_pool": 0}


def _refer(name: str, source: str, split_by: str) -> FinetuneTask:
    return FinetuneTask(
        name=name,
        description=f"masks of phrases: {source}, split by {split_by}",
        kind="referring",
        locations=(Location(source=source, split_by=split_by), _OWN),
        # the batch is generic segmentation's: the paper's is not known
        schedule=Schedule(),
        stages=("referring",),
        metric="refer_ciou",
        settings=_REFER_SIZE,
        # split by objects, not by images
        protect=() if split_by == "google" else (f"{source}-{split_by}-val",),
    )


def _ade(kind: str, source: str, metric: str, *, has_objects: bool = True) -> FinetuneTask:
    return FinetuneTask(
        name=f"ade20k-{kind}",
        description=f"{kind} segmentation of ADE20K, 150 classes",
        kind="segmentation",
        locations=(Location(source=source),),
        schedule=Schedule(batch_size=64, size_hw=(640, 640), scale_range=(0.5, 2.0)),
        stages=("segmentation",),
        metric=metric,
        settings={"shorter_px": 640, "longest_px": 2560},
        has_objects=has_objects,
    )


def _cityscapes(kind: str, metric: str) -> FinetuneTask:
    return FinetuneTask(
        name=f"cityscapes-{kind}",
        description=f"{kind} segmentation of street scenes, 19 classes",
        kind="segmentation",
        locations=(Location(source="cityscapes"),),
        # the schedule is generic segmentation's; the crop is Mask2Former's
        schedule=Schedule(size_hw=(512, 1024), scale_range=(0.5, 2.0)),
        stages=("segmentation",),
        metric=metric,
        settings={"shorter_px": 1024, "longest_px": 2048},
    )


def _coco(kind: str, metric: str) -> FinetuneTask:
    source = "coco-panoptic" if kind == "panoptic" else "coco-instances"
    return FinetuneTask(
        name=f"coco-{kind}",
        description=f"{kind} segmentation of COCO 2017",
        kind="segmentation",
        locations=(Location(source=source),),
        schedule=Schedule(),
        stages=("segmentation",),
        metric=metric,
        settings={"shorter_px": 800, "longest_px": 1333, "object_threshold": 0.8},
    )


_RETRIEVAL = Schedule(
    epochs=10, batch_size=2048, learning_rate=3e-5, size_hw=(384, 384), scale_range=(1.0, 1.0)
)

TASKS: tuple[FinetuneTask, ...] = (
    _refer("refcoco", "refcoco", "unc"),
    _refer("refcoco+", "refcoco+", "unc"),
    _refer("refcocog", "refcocog", "umd"),
    _refer("refcocog-google", "refcocog", "google"),
    _ade("semantic", "ade20k-150", "miou", has_objects=False),
    _ade("instance", "ade20k-150-instance", "ap"),
    _ade("panoptic", "ade20k-150-panoptic", "pq"),
    _cityscapes("semantic", "miou"),
    _cityscapes("instance", "ap"),
    _cityscapes("panoptic", "pq"),
    _coco("panoptic", "pq"),
    _coco("instance", "ap"),
    FinetuneTask(
        name="coco-captions",
        description="one sentence for a photograph: COCO, Karpathy's split",
        kind="captioning",
        locations=(
            Location(source="coco-karpathy", train=("train", "restval"), val="test"),
            Location(source="coco-captions"),
        ),
        schedule=Schedule(
            epochs=10,
            batch_size=256,
            learning_rate=2e-5,
            size_hw=(480, 480),
            scale_range=(1.0, 1.0),
        ),
        stages=("captioning",),
        metric="cider",
        settings={"is_squashed": True},
    ),
    FinetuneTask(
        name="coco-retrieval",
        description="photographs and sentences that belong together: COCO, Karpathy's split",
        kind="retrieval",
        locations=(
            Location(source="coco-karpathy", train=("train", "restval"), val="test"),
            Location(source="coco-captions"),
        ),
        schedule=_RETRIEVAL,
        stages=("retrieval",),
        metric="retrieval_r1",
        settings=_PAIRS,
    ),
    FinetuneTask(
        name="flickr30k-retrieval",
        description="photographs and sentences that belong together: Flickr30k",
        kind="retrieval",
        locations=(Location(source="flickr30k", val="test"), Location(source="coco-captions")),
        schedule=_RETRIEVAL,
        stages=("retrieval",),
        metric="retrieval_r1",
        settings={**_PAIRS, "texts_per_image": 5},
    ),
    FinetuneTask(
        name="vqav2",
        description="questions about photographs: VQA v2, one of the usual answers",
        kind="answering",
        locations=(Location(source="vqav2"),),
        schedule=Schedule(epochs=10, batch_size=256, size_hw=(640, 640), scale_range=(1.0, 1.0)),
        stages=("answering",),
        metric="vqa_accuracy",
        settings={"is_squashed": True},
    ),
    FinetuneTask(
        name="custom",
        description="your own folder in COCO's format: train and val, panoptic or instances",
        kind="segmentation",
        locations=(_OWN,),
        # the schedule is generic segmentation's
        schedule=Schedule(),
        stages=("segmentation",),
        metric="pq",
    ),
)


def task_named(name: str) -> FinetuneTask:
    """The task of this name.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    tasks = {task.name: task for task in TASKS}
    if name not in tasks:
        raise ConfigError(
            f"finetune: --task must be one of {', '.join(tasks)}; got {name!r}. "
            "`--task list` describes them."
        )
    return tasks[name]
