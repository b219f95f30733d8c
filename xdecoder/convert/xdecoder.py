"""Names of the released X-Decoder, part by part.

Source: microsoft/X-Decoder, branch v2.0; the names of its own state dict.
"""

from xdecoder.convert.rules import Rule, prefixed

_ATTENTION = (
    Rule(r"in_proj_(weight|bias)", r"in_proj.\1"),
    Rule(r"out_proj\.(weight|bias)", r"out_proj.\1"),
)


def _with_layer(theirs: str, ours: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of a numbered layer; the number is the first group of `theirs`."""
    return tuple(
        Rule(theirs + rule.theirs, ours + rule.ours.replace(r"\1", r"\2"), rule.change)
        for rule in rules
    )


def _normed_conv(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{theirs}\.weight", f"{ours}.conv.weight"),
        Rule(rf"{theirs}\.norm\.(weight|bias)", rf"{ours}.norm.\1"),
    )


_ENCODER_FFN = (
    Rule(r"(linear[12]\.(?:weight|bias))", r"ffn.\1"),
    Rule(r"norm1\.(weight|bias)", r"attention_norm.\1"),
    Rule(r"norm2\.(weight|bias)", r"ffn_norm.\1"),
)
_ENCODER_LAYER = r"transformer\.encoder\.layers\.(\d+)\."

FPN_TRANSFORMER = (
    Rule(r"input_proj\.(weight|bias)", r"input_projection.\1"),
    *_with_layer(_ENCODER_LAYER + r"self_attn\.", r"encoder.\1.attention.", _ATTENTION),
    *_with_layer(_ENCODER_LAYER, r"encoder.\1.", _ENCODER_FFN),
    *_normed_conv("layer_4", "top"),
    *_normed_conv("adapter_3", "steps.0.lateral"),
    *_normed_conv("layer_3", "steps.0.output"),
    *_normed_conv("adapter_2", "steps.1.lateral"),
    *_normed_conv("layer_2", "steps.1.output"),
    *_normed_conv("adapter_1", "steps.2.lateral"),
    *_normed_conv("layer_1", "steps.2.output"),
    Rule(r"mask_features\.(weight|bias)", r"mask_projection.\1"),
)

MSDEFORM = (
    Rule(r"input_proj\.(\d+)\.0\.(weight|bias)", r"input_projections.\1.conv.\2"),
    Rule(r"input_proj\.(\d+)\.1\.(weight|bias)", r"input_projections.\1.norm.\2"),
    Rule(r"transformer\.level_embed", "level_embedding.weight"),
    *_with_layer(
        _ENCODER_LAYER + r"self_attn\.",
        r"encoder.\1.attention.",
        (
            Rule(
                r"((?:sampling_offsets|attention_weights|value_proj|output_proj)\.(?:weight|bias))",
                r"\1",
            ),
        ),
    ),
    *_with_layer(_ENCODER_LAYER, r"encoder.\1.", _ENCODER_FFN),
    *_normed_conv("adapter_1", "step.lateral"),
    *_normed_conv("layer_1", "step.output"),
    Rule(r"mask_features\.(weight|bias)", r"mask_projection.\1"),
)

_NORM = Rule(r"norm\.(weight|bias)", r"norm.\1")

DECODER = (
    Rule(r"query_feat\.weight", "query_content.weight"),
    Rule(r"query_embed\.weight", "query_positions.weight"),
    Rule(r"level_embed\.weight", "level_embedding.weight"),
    Rule(r"pos_embed_caping\.weight", "caption_positions.weight"),
    *_with_layer(
        r"transformer_cross_attention_layers\.(\d+)\.multihead_attn\.",
        r"layers.\1.cross_attention.",
        _ATTENTION,
    ),
    *_with_layer(r"transformer_cross_attention_layers\.(\d+)\.", r"layers.\1.cross_", (_NORM,)),
    *_with_layer(
        r"transformer_self_attention_layers\.(\d+)\.self_attn\.",
        r"layers.\1.self_attention.",
        _ATTENTION,
    ),
    *_with_layer(r"transformer_self_attention_layers\.(\d+)\.", r"layers.\1.self_", (_NORM,)),
    *_with_layer(r"transformer_ffn_layers\.(\d+)\.", r"layers.\1.ffn_", (_NORM,)),
    Rule(r"transformer_ffn_layers\.(\d+)\.(linear[12]\.(?:weight|bias))", r"layers.\1.ffn.\2"),
    Rule(r"decoder_norm\.(weight|bias)", r"heads.norm.\1"),
    Rule(r"mask_embed\.layers\.(\d+)\.(weight|bias)", r"heads.mask_mlp.layers.\1.\2"),
    Rule(r"class_embed", "heads.class_projection.weight", "transpose"),
    Rule(r"caping_embed", "heads.caption_projection.weight", "transpose"),
    Rule(r"self_attn_mask", "derived: the visibility table of xdecoder/queries.py", "drop"),
    # of the file for visual question answering alone
    Rule(r"vqa_classifier\.\d+\.\w+", "unused: answers to questions, no task of ours", "drop"),
    Rule(r"query_feat_caping\.weight", "unused: content of question queries", "drop"),
)

_BLOCK = r"lang_encoder\.resblocks\.(\d+)\."

TEXT_ENCODER = (
    Rule(r"lang_proj", "projection.weight", "transpose"),
    Rule(r"lang_encoder\.positional_embedding", "positions"),
    Rule(r"lang_encoder\.token_embedding\.weight", "token_embedding.weight"),
    *_with_layer(_BLOCK + r"attn\.", r"blocks.\1.attention.", _ATTENTION),
    *_with_layer(
        _BLOCK,
        r"blocks.\1.",
        (
            Rule(r"ln_1\.(weight|bias)", r"norm1.\1"),
            Rule(r"ln_2\.(weight|bias)", r"norm2.\1"),
            Rule(r"mlp\.c_fc\.(weight|bias)", r"linear1.\1"),
            Rule(r"mlp\.c_proj\.(weight|bias)", r"linear2.\1"),
        ),
    ),
    Rule(r"lang_encoder\.ln_final\.(weight|bias)", r"norm.\1"),
)

_PREDICTOR = "sem_seg_head.predictor."

HEAD = (
    *prefixed("sem_seg_head.pixel_decoder.", "pixel_decoder.", FPN_TRANSFORMER),
    *prefixed(_PREDICTOR, "decoder.", DECODER),
    *prefixed(_PREDICTOR + "lang_encoder.", "text_encoder.", TEXT_ENCODER),
    Rule(r"sem_seg_head\.predictor\.lang_encoder\.logit_scale", "logit_scale", "vector"),
    Rule(r"backbone_proj", "image_projection.weight", "transpose"),
    Rule(r"criterion\.empty_weight", "derived: class weights of the loss", "drop"),
)

_FOCAL_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."

FOCAL = (
    Rule(r"patch_embed\.proj\.(weight|bias)", r"embeddings.0.conv.\1"),
    Rule(r"patch_embed\.norm\.(weight|bias)", r"embeddings.0.norm.\1"),
    *(
        rule
        for i in range(3)
        for rule in (
            Rule(rf"layers\.{i}\.downsample\.proj\.(weight|bias)", rf"embeddings.{i + 1}.conv.\1"),
            Rule(rf"layers\.{i}\.downsample\.norm\.(weight|bias)", rf"embeddings.{i + 1}.norm.\1"),
        )
    ),
    Rule(_FOCAL_BLOCK + r"dw([12])\.(weight|bias)", r"stages.\1.\2.conv\3.\4"),
    Rule(_FOCAL_BLOCK + r"gamma_([12])", r"stages.\1.\2.scale\3"),
    Rule(_FOCAL_BLOCK + r"norm([12])\.(weight|bias)", r"stages.\1.\2.norm\3.\4"),
    Rule(_FOCAL_BLOCK + r"mlp\.fc([12])\.(weight|bias)", r"stages.\1.\2.mlp.linear\3.\4"),
    Rule(
        _FOCAL_BLOCK + r"modulation\.f\.(weight|bias)",
        r"stages.\1.\2.modulation.input_projection.\3",
    ),
    Rule(
        _FOCAL_BLOCK + r"modulation\.focal_layers\.(\d+)\.0\.weight",
        r"stages.\1.\2.modulation.contexts.\3.weight",
    ),
    Rule(_FOCAL_BLOCK + r"modulation\.h\.(weight|bias)", r"stages.\1.\2.modulation.modulator.\3"),
    Rule(
        _FOCAL_BLOCK + r"modulation\.proj\.(weight|bias)",
        r"stages.\1.\2.modulation.output_projection.\3",
    ),
    Rule(r"norm(\d)\.(weight|bias)", r"norms.\1.\2"),
)


def davit(depths: tuple[int, ...]) -> tuple[Rule, ...]:
    """Rules of a DaViT trunk; a unit of theirs holds two blocks of ours."""
    return (
        Rule(r"convs\.(\d+)\.proj\.(weight|bias)", r"embeddings.\1.conv.\2"),
        Rule(r"convs\.(\d+)\.norm\.(weight|bias)", r"embeddings.\1.norm.\2"),
        *(
            rule
            for stage, depth in enumerate(depths)
            for unit in range(depth)
            for i, kind in enumerate(("spatial_block", "channel_block"))
            for rule in _davit_block(
                rf"blocks\.{stage}\.{unit}\.{kind}\.", f"stages.{stage}.{2 * unit + i}."
            )
        ),
    )


def _davit_block(theirs: str, ours: str) -> tuple[Rule, ...]:
    attention = theirs + r"(?:window|channel)_attn\."
    return (
        Rule(theirs + r"conv([12])\.fn\.dw\.(weight|bias)", ours + r"conv\1.\2"),
        Rule(attention + r"norm\.(weight|bias)", ours + r"attention_norm.\1"),
        Rule(attention + r"fn\.qkv\.(weight|bias)", ours + r"attention.qkv.\1"),
        Rule(attention + r"fn\.proj\.(weight|bias)", ours + r"attention.output_projection.\1"),
        Rule(theirs + r"ffn\.norm\.(weight|bias)", ours + r"mlp_norm.\1"),
        Rule(theirs + r"ffn\.fn\.net\.fc1\.(weight|bias)", ours + r"mlp.0.\1"),
        Rule(theirs + r"ffn\.fn\.net\.fc2\.(weight|bias)", ours + r"mlp.2.\1"),
    )


def model_rules(backbone: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of a whole model with the given trunk."""
    return (*HEAD, *prefixed("backbone.", "backbone.", backbone))
