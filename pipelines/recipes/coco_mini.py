"""Real photographs, few and small, so that the whole line can be tried without a GPU."""

from dataclasses import replace

from pipelines.config import EvaluationConfig, RunConfig
from pipelines.data.config import (
    AugmentConfig,
    DataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from pipelines.recipes.scenes import scenes
from xdecoder.config import tiny
from xdecoder.tasks.config import LossConfig, NounWeights


def coco_mini() -> RunConfig:
    """The tiny model on some hundred COCO photographs at 192x256 pixels.

    python -m pipelines.prepare coco --root data/coco_mini --out data/coco_mini/shards
    python -m pipelines.pretrain --recipe coco_mini

    Hardware: 2 CPU cores. Time: minutes, for a line that works and not for a good model.
    Expected: not yet run.
    """
    shards, size_hw = ("data/coco_mini/shards",), (192, 256)
    augment = AugmentConfig(flip_prob=0.5, scale_range=(0.8, 1.5))
    base = scenes()
    assert isinstance(base.losses, LossConfig)
    return replace(
        base,
        name="coco_mini",
        steps=400,
        data=DataConfig(
            segmentation=SegmentationDataConfig(
                shards=shards, batch_size=4, size_hw=size_hw, augment=augment
            ),
            image_text=ImageTextDataConfig(shards=shards, batch_size=8, size_hw=(96, 128)),
        ),
        model=replace(tiny(), text=replace(tiny().text, num_merges=None)),
        # captions of photographs name more than the classes do
        losses=replace(base.losses, nouns=NounWeights()),
        evaluation=EvaluationConfig(root="data/coco_mini", split="val"),
    )
