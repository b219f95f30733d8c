"""Loss settings to tasks."""

from typing import Any

from xdecoder.losses.world import World
from xdecoder.model import XDecoder
from xdecoder.tasks.base import Task
from xdecoder.tasks.config import LossConfig
from xdecoder.tasks.image_text import ImageTextTask
from xdecoder.tasks.segmentation_losses import SegmentationTask


def build_tasks(config: LossConfig, world: World | None = None) -> tuple[Task[XDecoder, Any], ...]:
    """The tasks of joint pretraining, in the order of their batches in a step."""
    released = config.released
    world = world or World(keeps_local_gradient=released.keeps_local_gradient)
    return (
        SegmentationTask(
            matching=config.matching,
            points=config.points,
            mask=config.mask,
            grounding=config.grounding,
            region_text=config.region_text,
            nouns=config.nouns,
            released=released,
            scale_limit=config.scale_limit,
            templates=config.templates,
            world=world,
        ),
        ImageTextTask(
            captioning=config.captioning,
            retrieval=config.retrieval,
            retrieval_alignment=config.retrieval_alignment,
            retrieval_backbone=config.retrieval_backbone,
            released=released,
            scale_limit=config.scale_limit,
            world=world,
        ),
    )
