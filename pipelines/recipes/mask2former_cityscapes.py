"""Mask2Former on Cityscapes, as published.

Source: arXiv 2112.01527; facebookresearch/Mask2Former, configs/cityscapes/*/maskformer2_R50_*.yaml.
"""

from dataclasses import replace

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
from xdecoder.mask_former.config import MaskLossConfig, ResNetConfig
from xdecoder.mask_former.published import mask2former

# in place of an eighth of brightness and a half of contrast and saturation
_COLOURS = 0.3


def mask2former_cityscapes_panoptic() -> RunConfig:
    """Mask2Former R50 on the 19 classes of Cityscapes, panoptic.

    python -m pipelines.pretrain --recipe mask2former_cityscapes_panoptic --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: PQ 62.1, AP 37.3, mIoU 77.5 in the paper (Swin-T 63.9, L 66.6), the median of several
    runs; not yet run here. Batch statistics are shared by the ranks, which needs GPUs; on a CPU set
    model.backbone.norm=batch.
    """
    return RunConfig(
        name="mask2former_cityscapes_panoptic",
        steps=90_000,
        deterministic=False,
        model=replace(mask2former("r50", num_classes=19), backbone=ResNetConfig(norm="sync")),
        losses=MaskLossConfig(),
        data=DataConfig(
            segmentation=SegmentationDataConfig(
                shards=("shards/cityscapes",),
                size_hw=(512, 1024),
                batch_size=16,
                max_phrases=0,
                # pictures of 1024x2048 at 0.5 to 2 times their size; half of it just fits
                augment=AugmentConfig(
                    flip_prob=0.5, scale_range=(1.0, 4.0), colour_strength=_COLOURS
                ),
            ),
            image_text=ImageTextDataConfig(batch_size=0),
            num_workers=8,
            protected=("cityscapes-val",),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.05, clip_norm=0.01),
        schedule=ScheduleConfig(kind="poly"),
        parallel=ParallelConfig(precision="bf16"),
        checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
        tracking=TrackingConfig(log_every=50, panels_every=5000, wandb="auto"),
        evaluation=EvaluationConfig(root="cityscapes", split="val"),
    )


def mask2former_cityscapes_instance() -> RunConfig:
    """Mask2Former R50 on the 8 things of Cityscapes.

    python -m pipelines.pretrain --recipe mask2former_cityscapes_instance --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: AP 37.4 in the paper (Swin-L 43.7); not yet run here.
    """
    return replace(
        mask2former_cityscapes_panoptic(),
        name="mask2former_cityscapes_instance",
        model=replace(mask2former("r50", num_classes=8), backbone=ResNetConfig(norm="sync")),
        losses=MaskLossConfig(targets="instance"),
    )


def mask2former_cityscapes_semantic() -> RunConfig:
    """Mask2Former R50 on the 19 classes of Cityscapes, semantic.

    python -m pipelines.pretrain --recipe mask2former_cityscapes_semantic --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: mIoU 79.4 in the paper (Swin-T 82.1, L 83.3); not yet run here.
    """
    return replace(
        mask2former_cityscapes_panoptic(),
        name="mask2former_cityscapes_semantic",
        losses=MaskLossConfig(targets="semantic"),
    )
