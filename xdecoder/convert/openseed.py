"""Names of the released OpenSeeD.

Source: IDEA-Research/OpenSeeD; the names of its own state dict. Files that its trainer saved have
the prefix `model.`.
"""

from xdecoder.convert.backbones import SWIN
from xdecoder.convert.rules import Rule, prefixed
from xdecoder.convert.xdecoder import MSDEFORM, TEXT_ENCODER

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
