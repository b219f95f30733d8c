"""MaskFormer on ADE20K, as published.

Source: arXiv 2107.06278; facebookresearch/MaskFormer, configs/ade20k-150 and ade20k-150-panoptic.
"""

from dataclasses import replace

from pipelines.config import OptimizerConfig, RunConfig, ScheduleConfig
from pipelines.recipes.mask2former_ade20k import (
    mask2former_ade20k_panoptic,
    mask2former_ade20k_semantic,
)
from xdecoder.mask_former.config import maskformer_losses
from xdecoder.mask_former.published import maskformer


def maskformer_ade20k_semantic() -> RunConfig:
    """MaskFormer R50 with a plain pyramid on ADE20K's 150 classes, semantic.

    python -m pipelines.pretrain --recipe maskformer_ade20k_semantic --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: mIoU 44.5 in the paper (R101 45.5); not yet run here. Crops are those of Mask2Former,
    which took them over.
    """
    return replace(
        mask2former_ade20k_semantic(),
        name="maskformer_ade20k_semantic",
        model=maskformer("r50", num_classes=150, has_encoder=False),
        losses=maskformer_losses("semantic"),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=1e-4, clip_norm=0.01),
    )


def maskformer_ade20k_semantic_swin_t() -> RunConfig:
    """MaskFormer Swin-T on ADE20K's 150 classes, semantic.

    python -m pipelines.pretrain --recipe maskformer_ade20k_semantic_swin_t \\
        --init-from converted/swin_t

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: mIoU 46.7 in the paper; not yet run here.
    """
    return replace(
        mask2former_ade20k_semantic(),
        name="maskformer_ade20k_semantic_swin_t",
        model=maskformer("swin_t", num_classes=150),
        losses=maskformer_losses("semantic"),
        optimizer=OptimizerConfig(
            learning_rate=6e-5, weight_decay=0.01, backbone_multiplier=1.0, clip_norm=0.01
        ),
        schedule=ScheduleConfig(kind="poly", warmup_steps=1500),
    )


def maskformer_ade20k_panoptic() -> RunConfig:
    """MaskFormer R50 with six encoder layers on ADE20K's 150 classes, panoptic.

    python -m pipelines.pretrain --recipe maskformer_ade20k_panoptic --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: PQ 34.7 in the paper with object_threshold 0.7 (R101 35.7); not yet run here.
    """
    return replace(
        mask2former_ade20k_panoptic(),
        name="maskformer_ade20k_panoptic",
        steps=720_000,
        model=maskformer("r50", num_classes=150),
        losses=maskformer_losses(),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=1e-4, clip_norm=0.01),
    )
