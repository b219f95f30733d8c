"""A model from its settings: the one place where settings become modules."""

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from xdecoder.backbones import Backbone
from xdecoder.backbones.davit import davit_d3, davit_d5
from xdecoder.backbones.focal import focal_l, focal_t
from xdecoder.backbones.resnet import resnet50, resnet101
from xdecoder.backbones.swin import swin_b, swin_l, swin_s, swin_t
from xdecoder.backbones.timm_backbone import TimmBackbone
from xdecoder.config import BackboneConfig, ConfigError, ModelConfig, PixelDecoderConfig
from xdecoder.decoder import MaskedDecoder
from xdecoder.model import XDecoder
from xdecoder.pixel_decoder import FpnTransformer, MsDeform
from xdecoder.text.encoder import TextEncoder
from xdecoder.text.tokenizer import Tokenizer

_RESNETS: dict[str, Callable[..., nn.Module]] = {"r50": resnet50, "r101": resnet101}
# trunks of published models whose layers timm does not have; every other name is timm's
OWN_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "focal_t": focal_t,
    "focal_l": focal_l,
    "davit_d3": davit_d3,
    "davit_d5": davit_d5,
    "swin_t": swin_t,
    "swin_s": swin_s,
    "swin_b": swin_b,
    "swin_l": swin_l,
    **_RESNETS,
}


def build_model(config: ModelConfig, *, has_initial_weights: bool = True) -> XDecoder:
    """The model of `config`, initialised from torch's global generator.

    has_initial_weights: load the pretrained backbone that the settings name; off when a
    checkpoint follows anyway.
    """
    dim = config.dim
    backbone = build_backbone(config.backbone, has_initial_weights)
    out_dims = cast(Backbone, backbone).out_dims
    tokenizer = Tokenizer(
        context_length=config.text.context_length, num_merges=config.text.num_merges
    )
    return XDecoder(
        backbone=backbone,
        pixel_decoder=build_pixel_decoder(config.pixel_decoder, out_dims, dim=dim, mask_dim=dim),
        decoder=MaskedDecoder(
            dim,
            num_layers=config.decoder.num_layers,
            num_heads=config.decoder.num_heads,
            ffn_dim=config.decoder.ffn_dim,
            num_latents=config.decoder.num_latents,
            context_length=config.text.context_length,
            mask_resize=config.decoder.mask_resize,
            unmask_first_grounding_row=config.decoder.unmask_first_grounding_row,
        ),
        text_encoder=TextEncoder(
            dim,
            num_layers=config.text.num_layers,
            num_heads=config.text.num_heads,
            context_length=config.text.context_length,
            vocabulary_size=tokenizer.vocabulary_size,
        ),
        tokenizer=tokenizer,
        dim=dim,
        pixel_mean=config.backbone.pixel_mean,
        pixel_std=config.backbone.pixel_std,
        size_divisibility=config.size_divisibility,
        initial_logit_scale=config.initial_logit_scale,
        answers=config.answers,
    )


def build_backbone(config: BackboneConfig, has_initial_weights: bool) -> nn.Module:
    """The trunk of a name, with the pretrained weights that the settings ask for or random ones.

    Raises: ConfigError for weights that no package ships.
    """
    if config.name not in OWN_BACKBONES:
        return TimmBackbone(
            config.name,
            weights=config.weights if has_initial_weights else "random",
            freeze_norm=config.freeze_norm,
            drop_path=config.drop_path,
            has_checkpointing=config.has_checkpointing,
        )
    if config.weights != "random":
        raise ConfigError(
            f"model.backbone.weights must be 'random' for {config.name!r}, whose weights no "
            f"package ships; got {config.weights!r}. Convert published weights instead."
        )
    if config.name in _RESNETS:
        return _RESNETS[config.name](
            norm="frozen" if config.freeze_norm else "batch",
            num_frozen_parts=config.num_frozen_parts,
            has_checkpointing=config.has_checkpointing,
        )
    return OWN_BACKBONES[config.name](
        drop_path=config.drop_path, has_checkpointing=config.has_checkpointing
    )


def build_pixel_decoder(
    settings: PixelDecoderConfig, in_dims: Sequence[int], *, dim: int, mask_dim: int
) -> nn.Module:
    """What turns backbone maps of the given widths, fine to coarse, into a pyramid."""
    if settings.kind == "fpn_transformer":
        return FpnTransformer(
            in_dims,
            dim=dim,
            mask_dim=mask_dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            ffn_dim=settings.ffn_dim,
            dropout=settings.dropout,
        )
    return MsDeform(
        in_dims,
        dim=dim,
        mask_dim=mask_dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        ffn_dim=settings.ffn_dim,
        num_points=settings.num_points,
        is_finest_first=settings.is_finest_first,
    )
