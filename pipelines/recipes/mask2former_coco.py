"""Mask2Former on COCO 2017, as published.

Source: arXiv 2112.01527; facebookresearch/Mask2Former, configs/coco/*/maskformer2_*_50ep.yaml.
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

# 50 passes over 118k images, 16 in a step
_STEPS = 368_750


def mask2former_coco_panoptic() -> RunConfig:
    """Mask2Former R50 on COCO panoptic, 133 classes.

    python -m pipelines.convert R-50.pkl converted/r50
    python -m pipelines.prepare coco --root coco --split train=train2017 --out shards/coco \\
        --protect coco-2017-val
    python -m pipelines.pretrain --recipe mask2former_coco_panoptic --init-from converted/r50

    Hardware: 8 V100 in the paper. Time: not measured.
    Expected: PQ 51.9, AP 41.7, mIoU 61.7 on val2017 in the paper (Swin-T 53.2, S 54.6, B
    55.1); not yet run here. Other trunks: --set model.backbone.name=swin_t. Class names and their
    number are taken from the shards.
    """
    return RunConfig(
        name="mask2former_coco_panoptic",
        steps=_STEPS,
        deterministic=False,
        model=mask2former("r50"),
        losses=MaskLossConfig(),
        data=DataConfig(
            segmentation=SegmentationDataConfig(
                shards=("shards/coco",),
                size_hw=(1024, 1024),
                batch_size=16,
                max_phrases=0,
                augment=AugmentConfig(flip_prob=0.5, scale_range=(0.1, 2.0)),
            ),
            image_text=ImageTextDataConfig(batch_size=0),
            num_workers=8,
            protected=("coco-2017-val",),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.05, clip_norm=0.01),
        # 327,778 and 355,092 of 368,750 steps
        schedule=ScheduleConfig(kind="multistep", warmup_steps=10, milestones=(0.88889, 0.96296)),
        parallel=ParallelConfig(precision="bf16"),
        checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
        tracking=TrackingConfig(log_every=50, panels_every=5000, wandb="auto"),
        evaluation=EvaluationConfig(root="coco", split="val"),
    )


def mask2former_coco_panoptic_swin_l() -> RunConfig:
    """Mask2Former Swin-L with 200 queries on COCO panoptic, 100 epochs.

    python -m pipelines.pretrain --recipe mask2former_coco_panoptic_swin_l \\
        --init-from converted/swin_l_22k

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: PQ 57.8, AP 48.6, mIoU 67.4 on val2017 in the paper; not yet run here.
    """
    return replace(
        mask2former_coco_panoptic(),
        name="mask2former_coco_panoptic_swin_l",
        steps=2 * _STEPS,
        model=mask2former("swin_l"),
    )


def mask2former_coco_instance() -> RunConfig:
    """Mask2Former R50 on COCO's 80 things; stuff of panoptic shards is left out.

    python -m pipelines.pretrain --recipe mask2former_coco_instance --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: AP 43.7 on val2017 in the paper (Swin-T 45.0, L 50.1); not yet run here.
    """
    return replace(
        mask2former_coco_panoptic(),
        name="mask2former_coco_instance",
        model=mask2former("r50", num_classes=80),
        losses=MaskLossConfig(targets="instance"),
    )
