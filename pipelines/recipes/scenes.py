"""The embedded default: procedural scenes, every task, minutes on a laptop."""

from pipelines.config import (
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
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
from xdecoder.config import tiny
from xdecoder.losses.points import PointSampling
from xdecoder.tasks.config import LayeredWeight, LossConfig, NounWeights


def scenes() -> RunConfig:
    """A tiny model on procedural scenes of 96x128 pixels.

    python -m pipelines.prepare scenes --out data/scenes
    python -m pipelines.prepare coco --root data/scenes --out data/scenes/shards
    python -m pipelines.pretrain --recipe scenes

    Hardware: 2 CPU cores. Time: 7 minutes with two ranks.
    Expected: on 200 unseen scenes, over three seeds of `make demo`, PQ 81 (things 68, stuff 97),
    referring cIoU 57, R@1 of 100 images 76, 60 to 87 % of new pairs named.
    """
    shards = ("data/scenes/shards",)
    # colour words matter here, so colours stay as they are
    augment = AugmentConfig(flip_prob=0.5)
    return RunConfig(
        name="scenes",
        steps=1000,
        model=tiny(),
        losses=LossConfig(
            points=PointSampling(num_points=768),
            captioning=LayeredWeight(weight=8.0),
            retrieval=LayeredWeight(weight=4.0),
            # every noun of a scene's captions is the name of a class
            nouns=NounWeights(weight=0.0),
        ),
        data=DataConfig(
            segmentation=SegmentationDataConfig(shards=shards, batch_size=8, augment=augment),
            # half the size, as X-Decoder reads pairs at 224 pixels and segments at 1024
            image_text=ImageTextDataConfig(
                shards=shards, batch_size=16, size_hw=(48, 64), augment=augment
            ),
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            backbone_multiplier=0.3,
            text_multiplier=1.0,
            ema_decay=0.998,
        ),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=20),
        checkpoint=CheckpointConfig(every_steps=100),
        tracking=TrackingConfig(log_every=10, panels_every=250),
        evaluation=EvaluationConfig(root="data/scenes", split="val"),
    )
