"""MaskFormer on COCO 2017, as published.

Source: arXiv 2107.06278; facebookresearch/MaskFormer, configs/coco-panoptic.
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
from xdecoder.mask_former.config import maskformer_losses
from xdecoder.mask_former.published import maskformer

# two thirds of 554,400 steps
_MILESTONES = (0.66667,)


def maskformer_coco_panoptic() -> RunConfig:
    """MaskFormer R50 with six encoder layers on COCO panoptic, 300 epochs.

    python -m pipelines.pretrain --recipe maskformer_coco_panoptic --init-from converted/r50

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: PQ 46.5 on val2017 in the paper (R101 47.6); not yet run here. Images are jittered in
    scale where the paper resizes the shorter side to 480..800 and crops half of them.
    """
    return RunConfig(
        name="maskformer_coco_panoptic",
        steps=554_400,
        deterministic=False,
        model=maskformer("r50"),
        losses=maskformer_losses(),
        data=DataConfig(
            segmentation=SegmentationDataConfig(
                shards=("shards/coco",),
                size_hw=(1024, 1024),
                batch_size=64,
                max_phrases=0,
                augment=AugmentConfig(flip_prob=0.5, scale_range=(0.6, 1.6)),
            ),
            image_text=ImageTextDataConfig(batch_size=0),
            num_workers=8,
            protected=("coco-2017-val",),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=1e-4, clip_norm=0.01),
        schedule=ScheduleConfig(kind="multistep", warmup_steps=10, milestones=_MILESTONES),
        parallel=ParallelConfig(precision="bf16"),
        checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
        tracking=TrackingConfig(log_every=50, panels_every=5000, wandb="auto"),
        evaluation=EvaluationConfig(root="coco", split="val"),
    )


def maskformer_coco_panoptic_swin_t() -> RunConfig:
    """MaskFormer Swin-T with a plain pyramid on COCO panoptic, 300 epochs.

    python -m pipelines.pretrain --recipe maskformer_coco_panoptic_swin_t \\
        --init-from converted/swin_t

    Hardware: GPUs that hold the batch together. Time: not measured.
    Expected: PQ 47.7 on val2017 in the paper; not yet run here. The backbone learns as fast as the
    rest.
    """
    return replace(
        maskformer_coco_panoptic(),
        name="maskformer_coco_panoptic_swin_t",
        model=maskformer("swin_t"),
        optimizer=OptimizerConfig(
            learning_rate=6e-5, weight_decay=0.01, backbone_multiplier=1.0, clip_norm=0.01
        ),
        schedule=ScheduleConfig(kind="multistep", warmup_steps=1500, milestones=_MILESTONES),
    )
