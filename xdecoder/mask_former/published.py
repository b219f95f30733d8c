"""The models of the published weights, as settings.

Source: the configs folders of facebookresearch/MaskFormer and facebookresearch/Mask2Former.
"""

from typing import Literal

from xdecoder.config import BackboneConfig, PixelDecoderConfig
from xdecoder.mask_former.config import (
    MaskFormerConfig,
    QueryDecoderConfig,
    ResNetConfig,
    SwinConfig,
)

TrunkName = Literal["r50", "r101", "swin_t", "swin_s", "swin_b", "swin_l"]

# Source: MODEL.MASK_FORMER.DROPOUT of MaskFormer's configs
_DROPOUT = 0.1

# their sizes, which converted files are compared with
TRUNKS: dict[str, ResNetConfig | SwinConfig] = {
    "r50": ResNetConfig(),
    "r101": ResNetConfig(depths=(3, 4, 23, 3)),
    "swin_t": SwinConfig(),
    "swin_s": SwinConfig(depths=(2, 2, 18, 2)),
    "swin_b": SwinConfig(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=12),
    "swin_l": SwinConfig(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window=12),
}


def named_trunk(name: TrunkName) -> BackboneConfig:
    """A published trunk with what it was trained with: drop path, or frozen statistics."""
    if name in ("r50", "r101"):
        return BackboneConfig(name=name, freeze_norm=True)
    return BackboneConfig(name=name, drop_path=SwinConfig.drop_path)


def mask2former(trunk: TrunkName = "r50", *, num_classes: int = 133) -> MaskFormerConfig:
    """Mask2Former; the Swin-L models have 200 queries, the others 100.

    num_classes: 133 COCO panoptic, 80 COCO instance, 150 ADE20K, 19 Cityscapes.
    """
    num_queries = 200 if trunk == "swin_l" else 100
    return MaskFormerConfig(
        num_classes=num_classes,
        backbone=named_trunk(trunk),
        pixel_decoder=PixelDecoderConfig(kind="msdeform", num_layers=6, ffn_dim=1024),
        decoder=QueryDecoderConfig(kind="masked", num_layers=9, num_queries=num_queries),
    )


def maskformer(
    trunk: TrunkName = "r50", *, num_classes: int = 133, has_encoder: bool | None = None
) -> MaskFormerConfig:
    """MaskFormer with six decoder layers.

    has_encoder: six encoder layers on the coarsest map, as the panoptic ResNet models have; None:
    as published for COCO panoptic. ADE20K semantic models have none.
    """
    is_resnet = trunk in ("r50", "r101")
    has_encoder = is_resnet if has_encoder is None else has_encoder
    return MaskFormerConfig(
        num_classes=num_classes,
        backbone=named_trunk(trunk),
        pixel_decoder=PixelDecoderConfig(
            kind="fpn_transformer",
            num_layers=6 if has_encoder else 0,
            ffn_dim=2048,
            dropout=_DROPOUT,
        ),
        decoder=QueryDecoderConfig(
            kind="detr", num_layers=6, has_input_projection=not has_encoder, dropout=_DROPOUT
        ),
    )
