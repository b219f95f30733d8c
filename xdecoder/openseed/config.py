"""What an OpenSeeD is, and how it is trained: frozen settings with units."""

import math
from dataclasses import dataclass, field
from typing import Literal

from xdecoder.config import (
    NUM_NORM_GROUPS,
    BackboneConfig,
    ConfigError,
    PixelDecoderConfig,
    TextConfig,
    tiny,
)
from xdecoder.losses.points import PointSampling
from xdecoder.mask_former.config import ResNetConfig, SwinConfig
from xdecoder.text.prompts import TEMPLATES


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """The levels that the encoder and the decoder read.

    encodes_finest: stride 4 is a level too (the released Swin-L); num_extra_levels: halvings after
    stride 32.
    """

    encodes_finest: bool = False
    num_extra_levels: int = 1


@dataclass(frozen=True, kw_only=True)
class BoxDecoderConfig:
    """The decoder and its queries.

    num_queries: chosen from the image; num_background: learned ones for stuff, 0 for the base
    variant (the decoupled one has 100).
    norms_twice: heads normalise states that are normalised already; the released weights need it.
    proposal_sizes: a proposal's side grows with the level's stride, or, as the released weights
    need it, shrinks with it.
    """

    num_layers: int = 9
    num_heads: int = 8
    ffn_dim: int = 2048
    num_points: int = 4
    num_queries: int = 300
    num_background: int = 0
    norms_twice: bool = False
    proposal_sizes: Literal["with_stride", "against_stride"] = "with_stride"


@dataclass(frozen=True, kw_only=True)
class OpenSeeDConfig:
    """A whole model; the defaults are near the released Swin-T, without its quirks.

    dim: width of pyramid and decoder; mask_dim: of mask features; text_dim: of the text encoder;
    shared_dim: of the space that names and queries are compared in.
    size_divisibility: images are padded right and bottom to a multiple of it, in pixels.
    """

    dim: int = 256
    mask_dim: int = 256
    text_dim: int = 512
    shared_dim: int = 512
    backbone: SwinConfig | ResNetConfig | BackboneConfig = field(default_factory=SwinConfig)
    pixel_decoder: PixelDecoderConfig = field(
        default_factory=lambda: PixelDecoderConfig(ffn_dim=2048, is_finest_first=True)
    )
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    decoder: BoxDecoderConfig = field(default_factory=BoxDecoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    initial_logit_scale: float = math.log(1 / 0.07)
    size_divisibility: int = 32

    def __post_init__(self) -> None:
        if self.pixel_decoder.kind != "msdeform":
            raise ConfigError(
                "model.pixel_decoder.kind must be msdeform for OpenSeeD; "
                f"got {self.pixel_decoder.kind}."
            )
        if not self.pixel_decoder.is_finest_first:
            raise ConfigError(
                "model.pixel_decoder.is_finest_first must be true for OpenSeeD, whose levels are "
                "counted from the finest; got false."
            )
        if self.dim % NUM_NORM_GROUPS:
            raise ConfigError(
                f"model.dim must be a multiple of {NUM_NORM_GROUPS} (groups of GroupNorm); "
                f"got {self.dim}."
            )
        widths = (
            ("pixel_decoder", self.pixel_decoder.num_heads, "dim", self.dim),
            ("decoder", self.decoder.num_heads, "dim", self.dim),
            ("text", self.text.num_heads, "text_dim", self.text_dim),
        )
        for part, num_heads, name, width in widths:
            if width % num_heads:
                raise ConfigError(
                    f"model.{part}.num_heads must divide model.{name}={width}; got {num_heads}."
                )


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """Targets that enter the decoder disturbed, to be restored.

    num_queries: about so many per image, in groups of one per target; 0 = off. box_noise: largest
    shift of an edge, as a share of the box.
    """

    num_queries: int = 100
    box_noise: float = 0.4


@dataclass(frozen=True, kw_only=True)
class AssistanceConfig:
    """Masks that the model decodes for boxes without masks, and then learns from.

    minimum_iou: of the box around the decoded mask and the given one. minimum_quality: mean
    probability of the pixels of the mask that lie in the given box; 0 = any, because early masks
    are never sure and later ones come from them.
    """

    is_on: bool = True
    minimum_iou: float = 0.7
    minimum_quality: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_iou <= 1 or not 0 <= self.minimum_quality <= 1:
            raise ConfigError(
                "losses.assistance.minimum_iou and minimum_quality must be in 0..1; "
                f"got {self.minimum_iou} and {self.minimum_quality}."
            )


@dataclass(frozen=True, kw_only=True)
class BoxLossConfig:
    """Weights of the terms of every prediction; matching costs weigh the same.

    splits_stuff: things are matched with the queries that come from the image, stuff with the
    learned ones, where the model has any. learns_conditioned_masks: disturbed targets are also
    decoded into their masks, where masks are known. templates: one is drawn for each name in each
    step.
    """

    label: float = 4.0
    mask: float = 5.0
    dice: float = 5.0
    box: float = 5.0
    giou: float = 2.0
    points: PointSampling = field(default_factory=PointSampling)
    templates: tuple[str, ...] = TEMPLATES
    splits_stuff: bool = True
    learns_conditioned_masks: bool = True
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    assistance: AssistanceConfig = field(default_factory=AssistanceConfig)


def small() -> OpenSeeDConfig:
    """A model for minutes on two CPU cores: images near 96x128 pixels, a dozen names."""
    return OpenSeeDConfig(
        dim=96,
        mask_dim=96,
        text_dim=96,
        shared_dim=96,
        backbone=tiny().backbone,
        pixel_decoder=PixelDecoderConfig(
            num_layers=2, num_heads=4, ffn_dim=192, is_finest_first=True
        ),
        decoder=BoxDecoderConfig(
            num_layers=3, num_heads=4, ffn_dim=256, num_queries=30, num_background=8
        ),
        text=TextConfig(num_layers=2, num_heads=4, context_length=24, num_merges=4000),
    )


def released(
    backbone: SwinConfig, *, is_decoupled: bool = False, context_length: int = 18
) -> OpenSeeDConfig:
    """The model of the released weights; Source: configs/openseed/*.yaml.

    The decoupled Swin-L reads stride 4 as a fifth level.
    """
    is_large = backbone.dim == 192
    return OpenSeeDConfig(
        backbone=backbone,
        pyramid=PyramidConfig(encodes_finest=is_large and is_decoupled),
        decoder=BoxDecoderConfig(
            num_background=100 if is_decoupled else 0,
            norms_twice=True,
            proposal_sizes="against_stride",
        ),
        text=TextConfig(context_length=context_length),
        initial_logit_scale=1.0,
    )
