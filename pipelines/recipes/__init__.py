"""Runs as typed functions; `--recipe NAME` calls one of them."""

from collections.abc import Callable

from pipelines.config import RunConfig
from pipelines.recipes.coco_mini import coco_mini
from pipelines.recipes.scenes import scenes
from pipelines.recipes.xdecoder_focal_t import xdecoder_focal_t_pretrain

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "scenes": scenes,
    "coco_mini": coco_mini,
    "xdecoder_focal_t_pretrain": xdecoder_focal_t_pretrain,
}
