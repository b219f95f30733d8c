"""Settings to modules."""

from collections.abc import Sequence
from typing import cast

from xdecoder.backbones import Backbone
from xdecoder.mask_former.build import build_trunk
from xdecoder.openseed.config import OpenSeeDConfig
from xdecoder.openseed.decoder import BoxDecoder
from xdecoder.openseed.model import OpenSeeD
from xdecoder.pixel_decoder import MsDeform
from xdecoder.text.encoder import TextEncoder
from xdecoder.text.tokenizer import Tokenizer


def build_openseed(config: OpenSeeDConfig, *, has_initial_weights: bool = True) -> OpenSeeD:
    """The model of `config`, initialised from torch's global generator.

    has_initial_weights: load the pretrained trunk that the settings name; off when a checkpoint
    follows anyway.
    """
    backbone = build_trunk(config.backbone, has_initial_weights)
    tokenizer = Tokenizer(
        context_length=config.text.context_length, num_merges=config.text.num_merges
    )
    return OpenSeeD(
        backbone=backbone,
        pixel_decoder=_build_pixel_decoder(config, cast(Backbone, backbone).out_dims),
        decoder=_build_decoder(config),
        text_encoder=TextEncoder(
            config.text_dim,
            num_layers=config.text.num_layers,
            num_heads=config.text.num_heads,
            context_length=config.text.context_length,
            vocabulary_size=tokenizer.vocabulary_size,
            out_dim=config.shared_dim,
        ),
        tokenizer=tokenizer,
        pixel_mean=config.backbone.pixel_mean,
        pixel_std=config.backbone.pixel_std,
        size_divisibility=config.size_divisibility,
        initial_logit_scale=config.initial_logit_scale,
    )


def _build_pixel_decoder(config: OpenSeeDConfig, in_dims: Sequence[int]) -> MsDeform:
    settings, pyramid = config.pixel_decoder, config.pyramid
    return MsDeform(
        in_dims,
        dim=config.dim,
        mask_dim=config.mask_dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        ffn_dim=settings.ffn_dim,
        num_points=settings.num_points,
        is_finest_first=settings.is_finest_first,
        encodes_finest=pyramid.encodes_finest,
        num_extra_levels=pyramid.num_extra_levels,
    )


def _build_decoder(config: OpenSeeDConfig) -> BoxDecoder:
    settings, pyramid = config.decoder, config.pyramid
    return BoxDecoder(
        config.dim,
        shared_dim=config.shared_dim,
        mask_dim=config.mask_dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        num_levels=3 + pyramid.encodes_finest + pyramid.num_extra_levels,
        num_points=settings.num_points,
        ffn_dim=settings.ffn_dim,
        num_queries=settings.num_queries,
        num_background=settings.num_background,
        norms_twice=settings.norms_twice,
        proposal_sizes=settings.proposal_sizes,
    )
