"""Runs as typed functions; `--recipe NAME` calls one of them."""

from collections.abc import Callable

from pipelines.config import RunConfig
from pipelines.recipes.coco_mini import coco_mini
from pipelines.recipes.mask2former_ade20k import (
    mask2former_ade20k_instance,
    mask2former_ade20k_panoptic,
    mask2former_ade20k_semantic,
)
from pipelines.recipes.mask2former_cityscapes import (
    mask2former_cityscapes_instance,
    mask2former_cityscapes_panoptic,
    mask2former_cityscapes_semantic,
)
from pipelines.recipes.mask2former_coco import (
    mask2former_coco_instance,
    mask2former_coco_panoptic,
    mask2former_coco_panoptic_swin_l,
)
from pipelines.recipes.maskformer_ade20k import (
    maskformer_ade20k_panoptic,
    maskformer_ade20k_semantic,
    maskformer_ade20k_semantic_swin_t,
)
from pipelines.recipes.maskformer_cityscapes import maskformer_cityscapes_semantic
from pipelines.recipes.maskformer_coco import (
    maskformer_coco_panoptic,
    maskformer_coco_panoptic_swin_t,
)
from pipelines.recipes.openseed_scenes import openseed_scenes
from pipelines.recipes.openseed_swin import openseed_swin_l, openseed_swin_t
from pipelines.recipes.scenes import scenes
from pipelines.recipes.xdecoder_focal_t import xdecoder_focal_t_pretrain

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "scenes": scenes,
    "coco_mini": coco_mini,
    "mask2former_ade20k_instance": mask2former_ade20k_instance,
    "mask2former_ade20k_panoptic": mask2former_ade20k_panoptic,
    "mask2former_ade20k_semantic": mask2former_ade20k_semantic,
    "mask2former_cityscapes_instance": mask2former_cityscapes_instance,
    "mask2former_cityscapes_panoptic": mask2former_cityscapes_panoptic,
    "mask2former_cityscapes_semantic": mask2former_cityscapes_semantic,
    "mask2former_coco_instance": mask2former_coco_instance,
    "mask2former_coco_panoptic": mask2former_coco_panoptic,
    "mask2former_coco_panoptic_swin_l": mask2former_coco_panoptic_swin_l,
    "maskformer_ade20k_panoptic": maskformer_ade20k_panoptic,
    "maskformer_ade20k_semantic": maskformer_ade20k_semantic,
    "maskformer_ade20k_semantic_swin_t": maskformer_ade20k_semantic_swin_t,
    "maskformer_cityscapes_semantic": maskformer_cityscapes_semantic,
    "maskformer_coco_panoptic": maskformer_coco_panoptic,
    "maskformer_coco_panoptic_swin_t": maskformer_coco_panoptic_swin_t,
    "openseed_scenes": openseed_scenes,
    "openseed_swin_l": openseed_swin_l,
    "openseed_swin_t": openseed_swin_t,
    "xdecoder_focal_t_pretrain": xdecoder_focal_t_pretrain,
}
