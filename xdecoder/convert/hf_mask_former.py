"""Names of MaskFormer and Mask2Former as HuggingFace's files have them, read and written.

Source: the files that transformers 5 saves. What it keeps in memory is named differently.
"""

from xdecoder.convert.pairs import Pair, Unused, pair

_QKV = ("query", "key", "value")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def _swin(prefix: str, norms: tuple[Pair, ...]) -> tuple[Pair, ...]:
    block, ours = prefix + "encoder.layers.{i}.blocks.{j}.", "backbone.stages.{i}.blocks.{j}."
    downsample = tuple(
        each
        for i in range(3)
        for each in (
            pair(
                f"backbone.embeddings.{i + 1}.norm.{{p}}",
                f"{prefix}encoder.layers.{i}.downsample.norm.{{p}}",
            ),
            pair(
                f"backbone.embeddings.{i + 1}.projection.weight",
                f"{prefix}encoder.layers.{i}.downsample.reduction.weight",
            ),
        )
    )
    return (
        pair(
            "backbone.embeddings.0.conv.{p}", prefix + "embeddings.patch_embeddings.projection.{p}"
        ),
        pair("backbone.embeddings.0.norm.{p}", prefix + "embeddings.norm.{p}"),
        *downsample,
        pair(ours + "norm1.{p}", block + "layernorm_before.{p}"),
        pair(ours + "norm2.{p}", block + "layernorm_after.{p}"),
        pair(ours + "attention.qkv.{p}", *(f"{block}attention.self.{name}.{{p}}" for name in _QKV)),
        pair(ours + "attention.output_projection.{p}", block + "attention.output.dense.{p}"),
        pair(ours + "attention.offset_bias", block + "attention.self.relative_position_bias_table"),
        pair(ours + "mlp.0.{p}", block + "intermediate.dense.{p}"),
        pair(ours + "mlp.2.{p}", block + "output.dense.{p}"),
        *norms,
    )


def _resnet(prefix: str) -> tuple[Pair, ...]:
    norm = ".normalization.{p}"
    pairs = [
        pair("backbone.stem.0.weight", prefix + "embedder.embedder.convolution.weight"),
        pair("backbone.stem.1.{p}", prefix + "embedder.embedder" + norm),
    ]
    for stage in range(4):
        ours, theirs = f"backbone.res{stage + 2}.{{i}}.", f"{prefix}encoder.stages.{stage}."
        layer = theirs + "layers.{i}."
        for conv in range(3):
            pairs += [
                pair(f"{ours}conv{conv + 1}.weight", f"{layer}layer.{conv}.convolution.weight"),
                pair(f"{ours}bn{conv + 1}.{{p}}", f"{layer}layer.{conv}{norm}"),
            ]
        pairs += [
            pair(ours + "downsample.0.weight", layer + "shortcut.convolution.weight"),
            pair(ours + "downsample.1.{p}", layer + "shortcut" + norm),
        ]
    return tuple(pairs)


def _attention(ours: str, theirs: str, *, is_split: bool = True) -> tuple[Pair, ...]:
    if is_split:
        joined = pair(ours + "in_proj.{p}", *(f"{theirs}{name}.{{p}}" for name in _PROJECTIONS))
        return (joined, pair(ours + "out_proj.{p}", theirs + "out_proj.{p}"))
    return (
        pair(ours + "in_proj.{p}", theirs + "in_proj_{p}"),
        pair(ours + "out_proj.{p}", theirs + "out_proj.{p}"),
    )


def _feed_forward(ours: str, theirs: str) -> tuple[Pair, ...]:
    return (
        pair(ours + "ffn.linear1.{p}", theirs + "fc1.{p}"),
        pair(ours + "ffn.linear2.{p}", theirs + "fc2.{p}"),
        pair(ours + "ffn_norm.{p}", theirs + "final_layer_norm.{p}"),
    )


_PIXELS = "model.pixel_level_module.decoder."
_ENCODER, _OUR_ENCODER = _PIXELS + "encoder.layers.{i}.", "head.pixel_decoder.encoder.{i}."
_LAYER, _OUR_LAYER = "model.transformer_module.decoder.layers.{i}.", "head.decoder.layers.{i}."

_MSDEFORM = (
    pair(
        "head.pixel_decoder.input_projections.{i}.conv.{p}", _PIXELS + "input_projections.{i}.0.{p}"
    ),
    pair(
        "head.pixel_decoder.input_projections.{i}.norm.{p}", _PIXELS + "input_projections.{i}.1.{p}"
    ),
    pair("head.pixel_decoder.level_embedding.weight", _PIXELS + "level_embed"),
    *(
        pair(_OUR_ENCODER + f"attention.{name}.{{p}}", _ENCODER + f"self_attn.{name}.{{p}}")
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    ),
    pair(_OUR_ENCODER + "attention_norm.{p}", _ENCODER + "self_attn_layer_norm.{p}"),
    *_feed_forward(_OUR_ENCODER, _ENCODER),
    pair("head.pixel_decoder.step.lateral.conv.weight", _PIXELS + "adapter_1.0.weight"),
    pair("head.pixel_decoder.step.lateral.norm.{p}", _PIXELS + "adapter_1.1.{p}"),
    pair("head.pixel_decoder.step.output.conv.weight", _PIXELS + "layer_1.0.weight"),
    pair("head.pixel_decoder.step.output.norm.{p}", _PIXELS + "layer_1.1.{p}"),
    pair("head.pixel_decoder.mask_projection.{p}", _PIXELS + "mask_projection.{p}"),
)

_FPN_LAYER, _OUR_STEP = _PIXELS + "fpn.layers.{i}.", "head.pixel_decoder.steps.{i}."

_FPN = (
    pair("head.pixel_decoder.top.conv.weight", _PIXELS + "fpn.stem.0.weight"),
    pair("head.pixel_decoder.top.norm.{p}", _PIXELS + "fpn.stem.1.{p}"),
    pair(_OUR_STEP + "lateral.conv.weight", _FPN_LAYER + "proj.0.weight"),
    pair(_OUR_STEP + "lateral.norm.{p}", _FPN_LAYER + "proj.1.{p}"),
    pair(_OUR_STEP + "output.conv.weight", _FPN_LAYER + "block.0.weight"),
    pair(_OUR_STEP + "output.norm.{p}", _FPN_LAYER + "block.1.{p}"),
    pair("head.pixel_decoder.mask_projection.{p}", _PIXELS + "mask_projection.{p}"),
)

_MASKED_DECODER = (
    *_attention(_OUR_LAYER + "self_attention.", _LAYER + "self_attn."),
    *_attention(_OUR_LAYER + "cross_attention.", _LAYER + "cross_attn.", is_split=False),
    pair(_OUR_LAYER + "self_norm.{p}", _LAYER + "self_attn_layer_norm.{p}"),
    pair(_OUR_LAYER + "cross_norm.{p}", _LAYER + "cross_attn_layer_norm.{p}"),
    *_feed_forward(_OUR_LAYER, _LAYER),
    pair("head.decoder.heads.norm.{p}", "model.transformer_module.decoder.layernorm.{p}"),
    pair(
        "head.decoder.heads.mask_mlp.layers.{i}.{p}",
        "model.transformer_module.decoder.mask_predictor.mask_embedder.{i}.0.{p}",
    ),
    pair("head.decoder.query_content.weight", "model.transformer_module.queries_features.weight"),
    pair("head.decoder.query_positions.weight", "model.transformer_module.queries_embedder.weight"),
    pair("head.decoder.level_embedding.weight", "model.transformer_module.level_embed.weight"),
    pair(
        "head.decoder.input_projections.{i}.{p}",
        "model.transformer_module.input_projections.{i}.{p}",
    ),
    pair("head.decoder.heads.class_projection.{p}", "class_predictor.{p}"),
)

_DETR_DECODER = (
    *_attention(_OUR_LAYER + "self_attention.", _LAYER + "self_attn."),
    *_attention(_OUR_LAYER + "cross_attention.", _LAYER + "encoder_attn."),
    pair(_OUR_LAYER + "self_norm.{p}", _LAYER + "self_attn_layer_norm.{p}"),
    pair(_OUR_LAYER + "cross_norm.{p}", _LAYER + "encoder_attn_layer_norm.{p}"),
    *_feed_forward(_OUR_LAYER, _LAYER),
    pair("head.decoder.heads.norm.{p}", "model.transformer_module.decoder.layernorm.{p}"),
    pair("head.decoder.heads.mask_mlp.layers.{i}.{p}", "mask_embedder.{i}.0.{p}"),
    pair("head.decoder.query_positions.weight", "model.transformer_module.queries_embedder.weight"),
    pair("head.decoder.input_projection.{p}", "model.transformer_module.input_projection.{p}"),
    pair("head.decoder.heads.class_projection.{p}", "class_predictor.{p}"),
)

_TRUNK = "model.pixel_level_module.encoder."
_MASKFORMER_TRUNK = _TRUNK + "model."

MASK2FORMER_SWIN = (
    *_swin(
        _TRUNK,
        tuple(
            pair(f"backbone.norms.{i}.{{p}}", f"{_TRUNK}hidden_states_norms.stage{i + 1}.{{p}}")
            for i in range(4)
        ),
    ),
    *_MSDEFORM,
    *_MASKED_DECODER,
)
MASKFORMER_SWIN = (
    *_swin(
        _MASKFORMER_TRUNK,
        (pair("backbone.norms.{i}.{p}", _TRUNK + "hidden_states_norms.{i}.{p}"),),
    ),
    *_FPN,
    *_DETR_DECODER,
)
MASKFORMER_RESNET = (*_resnet(_TRUNK), *_FPN, *_DETR_DECODER)
MASK2FORMER_RESNET = (*_resnet(_TRUNK), *_MSDEFORM, *_MASKED_DECODER)

UNUSED = (
    Unused("criterion.empty_weight", "derived: class weights of the loss"),
    Unused(_TRUNK + "layernorm.{p}", "unused: norm of a classifier"),
    Unused(_TRUNK + "swin.layernorm.{p}", "unused: norm of a classifier"),
    Unused(_MASKFORMER_TRUNK + "layernorm.{p}", "unused: norm of a classifier"),
    Unused(
        _MASKFORMER_TRUNK + "encoder.layers.{i}.blocks.{j}.attention.self.relative_position_index",
        "derived: offsets between the places of a window",
    ),
    Unused(_TRUNK + "embedder.embedder.normalization.num_batches_tracked", "unused: a counter"),
    Unused(
        _TRUNK + "encoder.stages.{i}.layers.{j}.shortcut.normalization.num_batches_tracked",
        "unused: a counter",
    ),
    *(
        Unused(
            _TRUNK
            + f"encoder.stages.{{i}}.layers.{{j}}.layer.{conv}.normalization.num_batches_tracked",
            "unused: a counter",
        )
        for conv in range(3)
    ),
)
