"""Mask2Former on ADE20K, as published.

Source: arXiv 2112.01527; facebookresearch/Mask2Former, configs/ade20k/*/maskformer2_R50_*160k.yaml.
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
from xdecoder.mask_former.config import MaskLossConfig
from xdecoder.mask_former.published import mask2former

# 0.5 to 2 times the scale at which the shorter side has the length of the crop; ours is relative
# to the scale at which the longer side fits, which for pictures of 3 to 4 is three quarters of it
_SCALES = (0.667, 2.667)
# in place of an eighth of brightness and a half of contrast and saturation
_COLOURS = 0.3


def mask2former_ade20k_semantic() -> RunConfig:
    """Mask2Former R50 on ADE20K's 150 classes, semantic.

    python -m pipelines.pretrain --recipe mask2former_ade20k_semantic --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: mIoU 47.2 in the paper (Swin-T 47.7, S 51.3, B 53.9, L 56.1), the median of several
    runs; not yet run here. Swin-B and L are trained with crops of 640.
    """
    return RunConfig(
        name="mask2former_ade20k_semantic",
        steps=160_000,
        deterministic=False,
        model=mask2former("r50", num_classes=150),
        losses=MaskLossConfig(targets="semantic"),
        data=DataConfig(
            segmentation=_crops((512, 512)),
            image_text=ImageTextDataConfig(batch_size=0),
            num_workers=8,
            protected=("ade20k-val",),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.05, clip_norm=0.01),
        schedule=ScheduleConfig(kind="poly"),
        parallel=ParallelConfig(precision="bf16"),
        checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
        tracking=TrackingConfig(log_every=50, panels_every=5000, wandb="auto"),
        evaluation=EvaluationConfig(root="ade20k", split="val"),
    )


def mask2former_ade20k_panoptic() -> RunConfig:
    """Mask2Former R50 on ADE20K's 150 classes, panoptic.

    python -m pipelines.pretrain --recipe mask2former_ade20k_panoptic --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: PQ 39.7 in the paper (Swin-L 48.1); not yet run here.
    """
    base = mask2former_ade20k_semantic()
    return replace(
        base,
        name="mask2former_ade20k_panoptic",
        losses=MaskLossConfig(),
        data=replace(base.data, segmentation=_crops((640, 640))),
    )


def mask2former_ade20k_instance() -> RunConfig:
    """Mask2Former R50 on ADE20K's 100 things.

    python -m pipelines.pretrain --recipe mask2former_ade20k_instance --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: AP 26.4 in the paper (Swin-L with 200 queries 34.9); not yet run here.
    """
    base = mask2former_ade20k_semantic()
    return replace(
        base,
        name="mask2former_ade20k_instance",
        model=mask2former("r50", num_classes=100),
        losses=MaskLossConfig(targets="instance"),
        data=replace(base.data, segmentation=_crops((640, 640))),
    )


def _crops(size_hw: tuple[int, int]) -> SegmentationDataConfig:
    return SegmentationDataConfig(
        shards=("shards/ade20k",),
        size_hw=size_hw,
        batch_size=16,
        max_phrases=0,
        augment=AugmentConfig(flip_prob=0.5, scale_range=_SCALES, colour_strength=_COLOURS),
    )
