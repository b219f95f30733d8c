"""Settings to modules."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from xdecoder.backbones import Backbone
from xdecoder.backbones.resnet import ResNetBackbone
from xdecoder.backbones.swin import SwinBackbone
from xdecoder.build import build_backbone, build_pixel_decoder
from xdecoder.config import BackboneConfig
from xdecoder.mask_former.config import (
    DECODER_STRIDES,
    MaskFormerConfig,
    ResNetConfig,
    SwinConfig,
)
from xdecoder.mask_former.decoders import DetrDecoder, MaskedQueryDecoder
from xdecoder.mask_former.model import MaskFormer, MaskHead


def build_mask_former(config: MaskFormerConfig, *, has_initial_weights: bool = True) -> MaskFormer:
    """The model of `config`, initialised from torch's global generator.

    has_initial_weights: load the pretrained trunk that the settings name; off when a checkpoint
    follows anyway.
    """
    backbone = build_trunk(config.backbone, has_initial_weights)
    return MaskFormer(
        backbone=backbone,
        head=build_head(config, cast(Backbone, backbone).out_dims),
        num_classes=config.num_classes,
        num_queries=config.decoder.num_queries,
        pixel_mean=config.backbone.pixel_mean,
        pixel_std=config.backbone.pixel_std,
        size_divisibility=config.size_divisibility,
        class_names=config.class_names,
        is_thing=config.is_thing,
    )


def build_head(config: MaskFormerConfig, in_dims: Sequence[int]) -> MaskHead:
    """Everything behind backbone maps of the given widths, fine to coarse."""
    return MaskHead(
        pixel_decoder=build_pixel_decoder(
            config.pixel_decoder, in_dims, dim=config.pixel_dim, mask_dim=config.mask_dim
        ),
        decoder=_build_decoder(config, in_dims),
    )


def build_trunk(
    config: SwinConfig | ResNetConfig | BackboneConfig, has_initial_weights: bool
) -> nn.Module:
    """The trunk of `config`, whose maps have strides 4 to 32."""
    if isinstance(config, BackboneConfig):
        return build_backbone(config, has_initial_weights)
    if isinstance(config, SwinConfig):
        return SwinBackbone(
            config.dim,
            depths=config.depths,
            num_heads=config.num_heads,
            window=config.window,
            drop_path=config.drop_path,
        )
    return ResNetBackbone(
        depths=config.depths, norm=config.norm, num_frozen_parts=config.num_frozen_parts
    )


def _build_decoder(config: MaskFormerConfig, in_dims: Sequence[int]) -> nn.Module:
    settings, pixels = config.decoder, config.pixel_decoder
    if settings.kind == "masked":
        return MaskedQueryDecoder(
            [config.pixel_dim] * len(settings.level_order),
            dim=settings.dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            ffn_dim=settings.ffn_dim,
            num_queries=settings.num_queries,
            num_classes=config.num_classes,
            mask_dim=config.mask_dim,
            has_input_projection=settings.has_input_projection,
            level_order=[DECODER_STRIDES.index(stride) for stride in settings.level_order],
        )
    reads_backbone = pixels.kind == "fpn_transformer" and pixels.num_layers == 0
    return DetrDecoder(
        in_dims[-1] if reads_backbone else config.pixel_dim,
        dim=settings.dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        ffn_dim=settings.ffn_dim,
        num_queries=settings.num_queries,
        num_classes=config.num_classes,
        mask_dim=config.mask_dim,
        has_input_projection=settings.has_input_projection,
        dropout=settings.dropout,
    )
