"""The settings of a MaskFormer or Mask2Former, read off the names and shapes of its weights."""

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from xdecoder.config import PixelDecoderConfig
from xdecoder.mask_former.config import (
    MaskFormerConfig,
    QueryDecoderConfig,
    ResNetConfig,
    SwinConfig,
)

# no shape tells it; every published model has 8
NUM_HEADS = 8
_NUM_LEVELS = 3
_PIXELS, _DECODER = "head.pixel_decoder.", "head.decoder."


def infer_config(
    state: Mapping[str, Tensor],
    *,
    num_pixel_heads: int = NUM_HEADS,
    num_heads: int = NUM_HEADS,
    size_divisibility: int = 32,
    class_names: Sequence[str] = (),
) -> MaskFormerConfig:
    """The model that a state dict under our names belongs to.

    class_names: what the source calls its classes; left out where it calls another number of them.
    """
    classes = state[_DECODER + "heads.class_projection.weight"]
    mask_projection = state[_PIXELS + "mask_projection.weight"]
    num_layers = count_layers(state, _DECODER + r"layers\.(\d+)\.")
    is_masked = _DECODER + "query_content.weight" in state
    dim = classes.shape[1]
    pixel_dim = mask_projection.shape[1]
    projections = [key for key in state if key.startswith(_DECODER + "input_projection")]
    num_classes = classes.shape[0] - 1
    return MaskFormerConfig(
        num_classes=num_classes,
        class_names=tuple(class_names) if len(class_names) == num_classes else (),
        backbone=infer_backbone(state),
        pixel_decoder=_infer_pixel_decoder(state, num_pixel_heads),
        decoder=QueryDecoderConfig(
            kind="masked" if is_masked else "detr",
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            ffn_dim=state[_DECODER + "layers.0.ffn.linear1.weight"].shape[0],
            num_queries=state[_DECODER + "query_positions.weight"].shape[0],
            has_input_projection=bool(projections),
        ),
        pixel_dim=pixel_dim,
        mask_dim=mask_projection.shape[0],
        size_divisibility=size_divisibility,
    )


def _infer_pixel_decoder(state: Mapping[str, Tensor], num_heads: int) -> PixelDecoderConfig:
    num_layers = count_layers(state, _PIXELS + r"encoder\.(\d+)\.")
    offsets = state.get(_PIXELS + "encoder.0.attention.sampling_offsets.weight")
    width = state.get(_PIXELS + "encoder.0.ffn.linear1.weight")
    settings = PixelDecoderConfig(
        kind="msdeform" if offsets is not None else "fpn_transformer",
        num_layers=num_layers,
        num_heads=num_heads,
        ffn_dim=PixelDecoderConfig.ffn_dim if width is None else width.shape[0],
        num_points=PixelDecoderConfig.num_points
        if offsets is None
        else offsets.shape[0] // (2 * _NUM_LEVELS * num_heads),
    )
    return settings


def infer_backbone(state: Mapping[str, Tensor]) -> SwinConfig | ResNetConfig:
    """The trunk that weights under our names belong to."""
    if "backbone.stem.0.weight" in state:
        stages = [count_layers(state, rf"backbone\.res{stage}\.(\d+)\.") for stage in (2, 3, 4, 5)]
        return ResNetConfig(depths=(stages[0], stages[1], stages[2], stages[3]))
    depths = [count_layers(state, rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in range(4)]
    tables = [state[f"backbone.stages.{i}.blocks.0.attention.offset_bias"] for i in range(4)]
    heads = [table.shape[1] for table in tables]
    return SwinConfig(
        dim=state["backbone.embeddings.0.conv.weight"].shape[0],
        depths=(depths[0], depths[1], depths[2], depths[3]),
        num_heads=(heads[0], heads[1], heads[2], heads[3]),
        window=(math.isqrt(tables[0].shape[0]) + 1) // 2,
    )


def count_layers(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern's group finds at the start of a name."""
    found = (re.match(pattern, key) for key in state)
    return max((int(match.group(1)) + 1 for match in found if match), default=0)
