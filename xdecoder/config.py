"""What a model is: frozen settings, each with its meaning and unit."""

import math
from dataclasses import dataclass, field
from typing import Literal

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# GroupNorm of the pixel decoders of MaskFormer, Mask2Former and X-Decoder
NUM_NORM_GROUPS = 32
RESNETS = ("r50", "r101")
# stem, res2, res3, res4, res5
NUM_RESNET_PARTS = 5


class ConfigError(ValueError):
    """A setting that cannot be built; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The image trunk, by name.

    name: focal_t, focal_l, davit_d3, davit_d5, swin_t, swin_s, swin_b, swin_l, r50, r101 as
    published, or any timm model with maps at strides 4, 8, 16 and 32.
    weights: `random`; `package`, the ones that an installed Python package ships (only
    tf_efficientnet_lite0); `timm`, downloaded by timm.
    pixel_mean, pixel_std: of RGB in 0..255. freeze_norm: batch normalisation keeps its
    statistics, which small batches need. drop_path: probability at the last block.
    has_checkpointing: in training, blocks (of timm models often stages) run again in the backward
    pass instead of keeping their activations. num_frozen_parts: how many of stem, res2, res3,
    res4, res5 are not trained (r50 and r101 only).
    """

    name: str = "tf_efficientnet_lite0"
    weights: Literal["random", "package", "timm"] = "random"
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    freeze_norm: bool = False
    drop_path: float = 0.0
    has_checkpointing: bool = False
    num_frozen_parts: int = 0

    def __post_init__(self) -> None:
        is_resnet = self.name in RESNETS
        if self.num_frozen_parts and not is_resnet:
            raise ConfigError(
                f"model.backbone.num_frozen_parts must be 0 for {self.name!r}: only "
                f"{' and '.join(RESNETS)} have parts to freeze; got {self.num_frozen_parts}."
            )
        if not 0 <= self.num_frozen_parts <= NUM_RESNET_PARTS:
            raise ConfigError(
                f"model.backbone.num_frozen_parts must be in 0..{NUM_RESNET_PARTS} (stem, res2 to "
                f"res5); got {self.num_frozen_parts}."
            )
        if is_resnet and self.drop_path:
            raise ConfigError(
                f"model.backbone.drop_path must be 0 for {self.name!r}, which has no residual "
                f"branch to drop; got {self.drop_path}."
            )


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """How backbone maps become decoder levels and mask features.

    msdeform: deformable encoder over strides 32, 16, 8, one step of FPN to stride 4.
    fpn_transformer: plain encoder on stride 32, FPN over all strides.
    num_points: samples per head and level (msdeform only).
    is_finest_first: levels are counted from the finest, as weights of OpenSeeD do (msdeform only).
    dropout: of the encoder layers (fpn_transformer only; the published msdeform has none).
    """

    kind: Literal["msdeform", "fpn_transformer"] = "msdeform"
    num_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 1024
    num_points: int = 4
    is_finest_first: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1 or (self.dropout and self.kind == "msdeform"):
            raise ConfigError(
                "model.pixel_decoder.dropout must be in [0, 1), and 0 with msdeform, which has "
                f"none; got {self.dropout} with {self.kind!r}."
            )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The masked decoder.

    num_latents: object queries; the global query comes on top.
    mask_resize: how masks reach the size of a level before they become attention masks.
    unmask_first_grounding_row: the released X-Decoder frees one row of every attention mask, meant
    to be the global query, in fact the first grounding row. On only to run weights trained so.
    """

    num_layers: int = 9
    num_heads: int = 8
    ffn_dim: int = 2048
    num_latents: int = 100
    mask_resize: Literal["bilinear", "bicubic_antialias"] = "bilinear"
    unmask_first_grounding_row: bool = False


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder and its vocabulary.

    num_merges: how many merges of CLIP's byte-pair encoding are used, None for all 48894; the
    vocabulary has 514 entries more.
    """

    num_layers: int = 12
    num_heads: int = 8
    context_length: int = 77
    num_merges: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model; `dim` is the width of everything behind the backbone.

    initial_logit_scale: logarithm of the first similarity scale (released X-Decoder: 1.0).
    size_divisibility: images are padded right and bottom to a multiple of it, in pixels.
    answers: of the answer head, for visual questions; empty = there is no such head.
    """

    dim: int = 512
    size_divisibility: int = 32
    initial_logit_scale: float = math.log(1 / 0.07)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dim % NUM_NORM_GROUPS:
            raise ConfigError(
                f"model.dim must be a multiple of {NUM_NORM_GROUPS} (groups of GroupNorm); "
                f"got {self.dim}."
            )
        heads = {
            "pixel_decoder": self.pixel_decoder.num_heads,
            "decoder": self.decoder.num_heads,
            "text": self.text.num_heads,
        }
        for part, num_heads in heads.items():
            if self.dim % num_heads:
                raise ConfigError(
                    f"model.{part}.num_heads must divide model.dim={self.dim}; got {num_heads}."
                )
        if self.size_divisibility % 32:
            raise ConfigError(
                "model.size_divisibility must be a multiple of 32, the largest stride; "
                f"got {self.size_divisibility}."
            )


def tiny() -> ModelConfig:
    """A model for minutes on one CPU core: images near 96x128 pixels, a few hundred words."""
    return ModelConfig(
        dim=96,
        backbone=BackboneConfig(
            name="tf_efficientnet_lite0",
            weights="package",
            pixel_mean=(127.5, 127.5, 127.5),
            pixel_std=(127.5, 127.5, 127.5),
            freeze_norm=True,
        ),
        pixel_decoder=PixelDecoderConfig(num_layers=2, num_heads=4, ffn_dim=192),
        decoder=DecoderConfig(num_layers=4, num_heads=4, ffn_dim=256, num_latents=20),
        text=TextConfig(num_layers=3, num_heads=4, context_length=40, num_merges=4000),
    )


def released(backbone: Literal["focal_t", "focal_l", "davit_d3", "davit_d5"]) -> ModelConfig:
    """The model of the released X-Decoder weights; Source: configs/xdecoder/*.yaml."""
    return ModelConfig(
        initial_logit_scale=1.0,
        backbone=BackboneConfig(name=backbone, drop_path=0.3),
        pixel_decoder=PixelDecoderConfig(kind="fpn_transformer", ffn_dim=2048),
        decoder=DecoderConfig(
            num_latents=100 if backbone == "focal_t" else 200,
            mask_resize="bicubic_antialias",
            unmask_first_grounding_row=True,
        ),
    )
