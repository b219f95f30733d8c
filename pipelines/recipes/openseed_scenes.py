"""OpenSeeD on the embedded scenes: masks of some images, boxes of others, in one step."""

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
    DetectionDataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from xdecoder.losses.points import PointSampling
from xdecoder.openseed.config import BoxLossConfig, DenoisingConfig, small
from xdecoder.text.prompts import PLAIN_TEMPLATES


def openseed_scenes() -> RunConfig:
    """A small OpenSeeD on procedural scenes of 96x128 pixels.

    python -m pipelines.prepare scenes --out data/scenes
    python -m pipelines.prepare coco --root data/scenes --out data/scenes/shards
    python -m pipelines.prepare scenes --seed 1 --num-val 0 --num-zeroshot 0 --out data/boxes
    python -m pipelines.prepare coco --root data/boxes --out data/boxes/shards
    python -m pipelines.pretrain --recipe openseed_scenes

    Of the second folder only boxes are read, as if nobody had drawn masks.

    Hardware: one CPU core. Time: 4 to 13 minutes on a shared one.
    Expected: benchmarks/boxes_to_masks.py trains it on masks of three shapes and boxes of six, with
    1000 scenes each: mask AP 51 and box AP 64 on shapes with masks, 17 and 61 on the others, means
    of three seeds on 200 unseen scenes.
    """
    # colour words matter here, so colours stay as they are
    augment = AugmentConfig(flip_prob=0.5)
    return RunConfig(
        name="openseed_scenes",
        steps=400,
        model=small(),
        losses=BoxLossConfig(
            points=PointSampling(num_points=320, num_matching_points=256),
            templates=PLAIN_TEMPLATES,
            denoising=DenoisingConfig(num_queries=24),
        ),
        data=DataConfig(
            segmentation=SegmentationDataConfig(
                shards=("data/scenes/shards",), batch_size=6, max_phrases=0, augment=augment
            ),
            detection=DetectionDataConfig(
                shards=("data/boxes/shards",), batch_size=6, augment=augment
            ),
            image_text=ImageTextDataConfig(batch_size=0),
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            backbone_multiplier=0.3,
            text_multiplier=1.0,
            ema_decay=0.995,
        ),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=20),
        checkpoint=CheckpointConfig(every_steps=100),
        tracking=TrackingConfig(log_every=10, panels_every=200),
        evaluation=EvaluationConfig(root="data/scenes", split="val"),
    )
