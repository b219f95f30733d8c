"""Names of the released OpenSeeD, and the model that a file holds.

Source: IDEA-Research/OpenSeeD; the names of its own state dict. Files that its trainer saved have
the prefix `model.`. The released program loads what fits and skips the rest in silence.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from xdecoder.config import PixelDecoderConfig, TextConfig
from xdecoder.convert.backbones import SWIN
from xdecoder.convert.inference import NUM_HEADS, count_layers, infer_backbone
from xdecoder.convert.rules import CheckpointError, Conversion, Rule, convert, prefixed
from xdecoder.convert.xdecoder import MSDEFORM, TEXT_ENCODER
from xdecoder.mask_former.config import SwinConfig
from xdecoder.openseed.config import BoxDecoderConfig, OpenSeeDConfig, PyramidConfig
from xdecoder.text.tokenizer import NUM_BYTE_SYMBOLS, NUM_MERGES

_LAYER = r"decoder\.layers\.(\d+)\."
_SAME_MLP = "a copy of decoder.bbox_embed.0, which all layers share"

BOX_DECODER = (
    Rule(r"enc_output\.(weight|bias)", r"proposal_projection.\1"),
    Rule(r"enc_output_norm\.(weight|bias)", r"proposal_norm.\1"),
    Rule(r"lang_mapper", "name_projection.weight", "transpose"),
    Rule(r"query_feat\.weight", "background_content.weight"),
    Rule(r"query_embed\.weight", "background_boxes.weight"),
    Rule(r"class_embed", "heads.class_projection.weight", "transpose"),
    Rule(r"decoder_norm\.(weight|bias)", r"heads.norm.\1"),
    Rule(r"decoder\.norm\.(?:weight|bias)", "a copy of decoder_norm", "drop"),
    Rule(r"mask_embed\.layers\.(\d+)\.(weight|bias)", r"heads.mask_mlp.layers.\1.\2"),
    Rule(r"decoder\.bbox_embed\.0\.layers\.(\d+)\.(weight|bias)", r"heads.box_mlp.layers.\1.\2"),
    Rule(r"decoder\.bbox_embed\.[1-9]\d*\.layers\.\d+\.(?:weight|bias)", _SAME_MLP, "drop"),
    Rule(r"_?bbox_embed\.(?:\d+\.)?layers\.\d+\.(?:weight|bias)", _SAME_MLP, "drop"),
    Rule(r"decoder\.ref_point_head\.layers\.(\d+)\.(weight|bias)", r"position_mlp.layers.\1.\2"),
    Rule(_LAYER + r"self_attn\.in_proj_(weight|bias)", r"layers.\1.self_attention.in_proj.\2"),
    Rule(_LAYER + r"self_attn\.out_proj\.(weight|bias)", r"layers.\1.self_attention.out_proj.\2"),
    Rule(
        _LAYER
        + r"cross_attn\.((?:sampling_offsets|attention_weights|value_proj|output_proj)\.\w+)",
        r"layers.\1.cross_attention.\2",
    ),
    # theirs are numbered in another order than they follow each other
    Rule(_LAYER + r"norm2\.(weight|bias)", r"layers.\1.self_norm.\2"),
    Rule(_LAYER + r"norm1\.(weight|bias)", r"layers.\1.cross_norm.\2"),
    Rule(_LAYER + r"norm3\.(weight|bias)", r"layers.\1.ffn_norm.\2"),
    Rule(_LAYER + r"(linear[12]\.(?:weight|bias))", r"layers.\1.ffn.\2"),
)

_PREDICTOR = "sem_seg_head.predictor."

OPENSEED = (
    *prefixed("backbone.", "backbone.", SWIN),
    *prefixed("sem_seg_head.pixel_decoder.", "pixel_decoder.", MSDEFORM),
    *prefixed(_PREDICTOR + "lang_encoder.", "text_encoder.", TEXT_ENCODER),
    Rule(r"sem_seg_head\.predictor\.lang_encoder\.logit_scale", "logit_scale", "vector"),
    *prefixed(_PREDICTOR, "decoder.", BOX_DECODER),
    Rule(r"criterion\w*\.empty_weight", "derived: class weights of the loss", "drop"),
)

_PREFIX = "model."
_MARK = _PREDICTOR + "lang_mapper"
# names of copies, and where the weight is that they copy
_COPIES = (
    (re.compile(r"(decoder\.|_?)bbox_embed\.(?:\d+\.)?layers"), "decoder.bbox_embed.0.layers"),
    (re.compile(r"decoder\.norm\."), "decoder_norm."),
)
_PIXELS, _LAYER_0 = "pixel_decoder.", "decoder.layers.0."
# levels from the trunk before stride 4 is one, and what the vocabulary has beside merges
_NUM_TRUNK_LEVELS, _NUM_OTHER_TOKENS = 3, NUM_BYTE_SYMBOLS + 2


def is_openseed(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of an OpenSeeD, with or without its trainer's prefix."""
    return _MARK in state or _PREFIX + _MARK in state


def read_openseed(state: Mapping[str, Tensor]) -> tuple[OpenSeeDConfig, Conversion]:
    """The model that a file holds, its sizes read off the shapes, and its weights.

    Raises: CheckpointError for names that no rule explains, copies that differ from what they copy,
    or a file that lacks what tells a size.
    """
    prefix = "" if _MARK in state else _PREFIX
    conversion = convert(state, prefixed(prefix, "", OPENSEED))
    _check_copies(state, prefix + _PREDICTOR)
    return infer_openseed(conversion.state), conversion


def infer_openseed(state: Mapping[str, Tensor]) -> OpenSeeDConfig:
    """The model that weights under our names belong to; it behaves as the released one does.

    No shape tells the number of attention heads or of queries from the image: they are as released.

    Raises: CheckpointError for weights that lack what tells a size.
    """
    _shape(state, "backbone.embeddings.0.conv.weight", 4)
    backbone = infer_backbone(state)
    assert isinstance(backbone, SwinConfig)
    num_levels = _shape(state, _PIXELS + "level_embedding.weight", 2)[0]
    encodes_finest = (
        _shape(state, _PIXELS + "input_projections.0.conv.weight", 4)[1] == backbone.dim
    )
    mask_dim, dim = _shape(state, _PIXELS + "mask_projection.weight", 4)[:2]
    points = _shape(state, _PIXELS + "encoder.0.attention.attention_weights.weight", 2)[0]
    return OpenSeeDConfig(
        dim=dim,
        mask_dim=mask_dim,
        text_dim=_shape(state, "text_encoder.token_embedding.weight", 2)[1],
        shared_dim=_shape(state, "text_encoder.projection.weight", 2)[0],
        backbone=backbone,
        pixel_decoder=PixelDecoderConfig(
            num_layers=count_layers(state, r"pixel_decoder\.encoder\.(\d+)\."),
            num_heads=NUM_HEADS,
            ffn_dim=_shape(state, _PIXELS + "encoder.0.ffn.linear1.weight", 2)[0],
            num_points=points // (NUM_HEADS * num_levels),
            is_finest_first=True,
        ),
        pyramid=PyramidConfig(
            encodes_finest=encodes_finest,
            num_extra_levels=num_levels - _NUM_TRUNK_LEVELS - encodes_finest,
        ),
        decoder=_infer_decoder(state, num_levels),
        text=_infer_text(state),
        initial_logit_scale=1.0,
    )


def _infer_decoder(state: Mapping[str, Tensor], num_levels: int) -> BoxDecoderConfig:
    background = state.get("decoder.background_content.weight")
    points = _shape(state, _LAYER_0 + "cross_attention.attention_weights.weight", 2)[0]
    return BoxDecoderConfig(
        num_layers=count_layers(state, r"decoder\.layers\.(\d+)\."),
        num_heads=NUM_HEADS,
        ffn_dim=_shape(state, _LAYER_0 + "ffn.linear1.weight", 2)[0],
        num_points=points // (NUM_HEADS * num_levels),
        num_background=0 if background is None else len(background),
        norms_twice=True,
        proposal_sizes="against_stride",
    )


def _infer_text(state: Mapping[str, Tensor]) -> TextConfig:
    vocabulary_size = _shape(state, "text_encoder.token_embedding.weight", 2)[0]
    num_merges = vocabulary_size - _NUM_OTHER_TOKENS
    return TextConfig(
        num_layers=count_layers(state, r"text_encoder\.blocks\.(\d+)\."),
        num_heads=NUM_HEADS,
        context_length=_shape(state, "text_encoder.positions", 2)[0],
        num_merges=None if num_merges == NUM_MERGES else num_merges,
    )


def _shape(state: Mapping[str, Tensor], name: str, num_dims: int) -> torch.Size:
    found = list(state[name].shape) if name in state else None
    if found is None or len(found) != num_dims:
        raise CheckpointError(
            f"convert: an OpenSeeD file must have {name} with {num_dims} dimensions, which tells a "
            f"size of the model; got {found or 'none'}. Check that the file is complete."
        )
    return state[name].shape


def _check_copies(state: Mapping[str, Tensor], prefix: str) -> None:
    """Return if every weight that is stored several times is the same everywhere.

    Raises: CheckpointError listing the copies that are not.
    """
    different = []
    for key, tensor in state.items():
        for pattern, original in _COPIES:
            name = key.removeprefix(prefix)
            source = prefix + pattern.sub(original, name, count=1)
            if pattern.match(name) and source in state and not torch.equal(tensor, state[source]):
                different.append(key)
    if different:
        raise CheckpointError(
            f"convert: {len(different)} weights of an OpenSeeD file must equal the one that all "
            f"layers share; they do not: {', '.join(different[:5])}. This is another model."
        )
