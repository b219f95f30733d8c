"""What a MaskFormer or Mask2Former is, and how it is trained: frozen settings with units."""

from dataclasses import dataclass, field
from typing import Literal

from xdecoder.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NUM_NORM_GROUPS,
    BackboneConfig,
    ConfigError,
    PixelDecoderConfig,
)
from xdecoder.losses.points import PointSampling

TargetKind = Literal["panoptic", "instance", "semantic"]
# of the maps that a pixel decoder hands on, coarse to fine
DECODER_STRIDES = (32, 16, 8)


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """A Swin trunk of any size; the defaults are Swin-T.

    window: side in places. drop_path: probability at the last block.
    pixel_mean, pixel_std: of RGB in 0..255.
    """

    dim: int = 96
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.3
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet of bottlenecks; the defaults are ResNet-50.

    norm: `frozen` for COCO and ADE20K, `sync` for Cityscapes.
    num_frozen_parts: how many of stem, res2 ... res5 are not trained.
    pixel_mean, pixel_std: of RGB in 0..255.
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    norm: Literal["frozen", "batch", "sync"] = "frozen"
    num_frozen_parts: int = 0
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class QueryDecoderConfig:
    """The decoder and its queries.

    detr: every query sees the whole map at stride 32, content starts at zeros (MaskFormer).
    masked: queries see three levels where their masks are (Mask2Former).
    has_input_projection: of maps whose width is the decoder's already; other maps always have one.
    level_order: strides of the maps that layers look at in turn, masked decoders only; the order is
    part of what the weights mean.
    dropout: of attention and feed-forward, detr decoders only (Mask2Former has none).
    """

    kind: Literal["detr", "masked"] = "masked"
    dim: int = 256
    num_layers: int = 9
    num_heads: int = 8
    ffn_dim: int = 2048
    num_queries: int = 100
    has_input_projection: bool = False
    level_order: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.level_order or not set(self.level_order) <= set(DECODER_STRIDES):
            raise ConfigError(
                f"model.decoder.level_order must list strides among {DECODER_STRIDES}; "
                f"got {self.level_order}."
            )
        if not 0 <= self.dropout < 1 or (self.dropout and self.kind == "masked"):
            raise ConfigError(
                "model.decoder.dropout must be in [0, 1), and 0 in a masked decoder, which has "
                f"none; got {self.dropout} with {self.kind!r}."
            )


@dataclass(frozen=True, kw_only=True)
class MaskFormerConfig:
    """A whole model; the defaults are Mask2Former R50 for COCO panoptic.

    class_names, is_thing: of the classes, in the order of the class logits; empty = taken from the
    data when training starts. backbone: a trunk by its sizes, or any trunk by its name.
    pixel_decoder: `fpn_transformer` without layers is MaskFormer's plain pyramid.
    pixel_dim, mask_dim: widths of the pyramid and of the mask features.
    size_divisibility: images are padded right and bottom to a multiple of it, in pixels.
    """

    num_classes: int = 133
    class_names: tuple[str, ...] = ()
    is_thing: tuple[bool, ...] = ()
    backbone: SwinConfig | ResNetConfig | BackboneConfig = field(default_factory=ResNetConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    decoder: QueryDecoderConfig = field(default_factory=QueryDecoderConfig)
    pixel_dim: int = 256
    mask_dim: int = 256
    size_divisibility: int = 32

    def __post_init__(self) -> None:
        if self.pixel_dim % NUM_NORM_GROUPS:
            raise ConfigError(
                f"model.pixel_dim must be a multiple of {NUM_NORM_GROUPS} (groups of GroupNorm); "
                f"got {self.pixel_dim}."
            )
        heads = (
            ("pixel_decoder", self.pixel_decoder.num_heads, "pixel_dim", self.pixel_dim),
            ("decoder", self.decoder.num_heads, "decoder.dim", self.decoder.dim),
        )
        for part, num_heads, name, dim in heads:
            if dim % num_heads:
                raise ConfigError(
                    f"model.{part}.num_heads must divide model.{name}={dim}; got {num_heads}."
                )
        if self.num_classes < 1 or self.size_divisibility < 1:
            raise ConfigError(
                "model.num_classes and model.size_divisibility must be at least 1; "
                f"got {self.num_classes} and {self.size_divisibility}."
            )
        for name in ("class_names", "is_thing"):
            entries = getattr(self, name)
            if entries and len(entries) != self.num_classes:
                raise ConfigError(
                    f"model.{name} must be empty or have model.num_classes={self.num_classes} "
                    f"entries; got {len(entries)}. Set model.num_classes to that."
                )


@dataclass(frozen=True, kw_only=True)
class MaskLossConfig:
    """Weights of the terms of every prediction; matching costs weigh the same.

    targets: what one query should find: a segment as annotated, a thing, or all of a class.
    kind: `points` compares masks at sampled points (Mask2Former; cross-entropy and dice),
    `dense` at every pixel (MaskFormer; focal and dice).
    background: weight of the no-object class inside the cross-entropy.
    """

    targets: TargetKind = "panoptic"
    kind: Literal["points", "dense"] = "points"
    ce: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    background: float = 0.1
    points: PointSampling = field(default_factory=PointSampling)


def maskformer_losses(targets: TargetKind = "panoptic") -> MaskLossConfig:
    """The weights that MaskFormer was trained with. Source: mask_former/config.py, COCO configs."""
    return MaskLossConfig(targets=targets, kind="dense", ce=1.0, mask=20.0, dice=1.0)
