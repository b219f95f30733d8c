"""Names of MaskFormer and Mask2Former as detectron2 saves them, older layouts included.

Source: facebookresearch/MaskFormer and facebookresearch/Mask2Former; the names of their state
dicts. Files from before their version 2 lack `pixel_decoder.` and call query contents
`static_query`.
"""

from xdecoder.convert.rules import Rule, prefixed
from xdecoder.convert.xdecoder import DECODER, FPN_TRANSFORMER, MSDEFORM

_DETR_LAYER = r"transformer\.decoder\.layers\.(\d+)\."

_HEADS = (
    Rule(r"class_embed\.(weight|bias)", r"heads.class_projection.\1"),
    Rule(r"mask_embed\.layers\.(\d+)\.(weight|bias)", r"heads.mask_mlp.layers.\1.\2"),
)

DETR_DECODER = (
    Rule(r"input_proj\.(weight|bias)", r"input_projection.\1"),
    Rule(r"query_embed\.weight", "query_positions.weight"),
    *(
        rule
        for theirs, ours in (("self_attn", "self_attention"), ("multihead_attn", "cross_attention"))
        for rule in (
            Rule(
                _DETR_LAYER + theirs + r"\.in_proj_(weight|bias)", rf"layers.\1.{ours}.in_proj.\2"
            ),
            Rule(
                _DETR_LAYER + theirs + r"\.out_proj\.(weight|bias)",
                rf"layers.\1.{ours}.out_proj.\2",
            ),
        )
    ),
    Rule(_DETR_LAYER + r"norm1\.(weight|bias)", r"layers.\1.self_norm.\2"),
    Rule(_DETR_LAYER + r"norm2\.(weight|bias)", r"layers.\1.cross_norm.\2"),
    Rule(_DETR_LAYER + r"norm3\.(weight|bias)", r"layers.\1.ffn_norm.\2"),
    Rule(_DETR_LAYER + r"(linear[12]\.(?:weight|bias))", r"layers.\1.ffn.\2"),
    Rule(r"transformer\.decoder\.norm\.(weight|bias)", r"heads.norm.\1"),
    *_HEADS,
)

MASKED_DECODER = (
    Rule(r"input_proj\.(\d+)\.(weight|bias)", r"input_projections.\1.\2"),
    Rule(r"static_query\.weight", "query_content.weight"),
    *_HEADS,
    *DECODER,
)


def head_rules(*, is_masked: bool) -> tuple[Rule, ...]:
    """Rules of a head: `pixel_decoder.*` and `predictor.*`."""
    if is_masked:
        return (
            *prefixed("pixel_decoder.", "pixel_decoder.", MSDEFORM),
            *prefixed("predictor.", "decoder.", MASKED_DECODER),
        )
    return (
        *prefixed("pixel_decoder.", "pixel_decoder.", FPN_TRANSFORMER),
        *prefixed("predictor.", "decoder.", DETR_DECODER),
    )


def detectron2_rules(backbone: tuple[Rule, ...], *, is_masked: bool) -> tuple[Rule, ...]:
    """Rules of a whole file with the given trunk, in the newer and the older layout."""
    pixel_decoder = MSDEFORM if is_masked else FPN_TRANSFORMER
    return (
        *prefixed("backbone.", "backbone.", backbone),
        *prefixed("sem_seg_head.", "head.", head_rules(is_masked=is_masked)),
        *prefixed("sem_seg_head.", "head.pixel_decoder.", pixel_decoder),
        Rule(r"criterion\.empty_weight", "derived: class weights of the loss", "drop"),
    )
