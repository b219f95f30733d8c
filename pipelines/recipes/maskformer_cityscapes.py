"""MaskFormer on Cityscapes, as published.

Source: arXiv 2107.06278; facebookresearch/MaskFormer, configs/cityscapes-19.
"""

from dataclasses import replace

from pipelines.config import OptimizerConfig, RunConfig
from pipelines.recipes.mask2former_cityscapes import mask2former_cityscapes_semantic
from xdecoder.mask_former.config import ResNetConfig, maskformer_losses
from xdecoder.mask_former.published import maskformer


def maskformer_cityscapes_semantic() -> RunConfig:
    """MaskFormer R101 with a plain pyramid on the 19 classes of Cityscapes, semantic.

    python -m pipelines.pretrain --recipe maskformer_cityscapes_semantic --init-from converted/r101

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: mIoU 78.5 in the paper; not yet run here. Batch statistics are shared by the ranks,
    which needs GPUs; on a CPU set model.backbone.norm=batch.
    """
    return replace(
        mask2former_cityscapes_semantic(),
        name="maskformer_cityscapes_semantic",
        model=replace(
            maskformer("r101", num_classes=19, has_encoder=False),
            backbone=ResNetConfig(depths=(3, 4, 23, 3), norm="sync"),
        ),
        losses=maskformer_losses("semantic"),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=1e-4, clip_norm=0.01),
    )
