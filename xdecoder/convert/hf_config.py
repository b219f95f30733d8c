"""HuggingFace's `config.json` of MaskFormer and Mask2Former, read and written."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xdecoder.config import BackboneConfig
from xdecoder.convert.hf_mask_former import (
    MASK2FORMER_RESNET,
    MASK2FORMER_SWIN,
    MASKFORMER_RESNET,
    MASKFORMER_SWIN,
)
from xdecoder.convert.pairs import Pair
from xdecoder.convert.rules import CheckpointError
from xdecoder.mask_former.config import MaskFormerConfig, ResNetConfig, SwinConfig
from xdecoder.mask_former.published import TRUNKS

# (is it Mask2Former, is the trunk a Swin)
_TABLES = {
    (True, True): MASK2FORMER_SWIN,
    (True, False): MASK2FORMER_RESNET,
    (False, True): MASKFORMER_SWIN,
    (False, False): MASKFORMER_RESNET,
}
_TRUNKS = {"swin": True, "maskformer-swin": True, "resnet": False}
_STAGES = ("stage1", "stage2", "stage3", "stage4")


def table_for(theirs: Mapping[str, Any]) -> tuple[Pair, ...]:
    """The table of names that fits a `config.json`.

    Raises: CheckpointError for another kind of model or trunk.
    """
    kind, trunk = theirs.get("model_type"), theirs.get("backbone_config", {}).get("model_type")
    if kind not in ("maskformer", "mask2former") or trunk not in _TRUNKS:
        raise CheckpointError(
            "convert: config.json must describe a maskformer or mask2former with a swin or resnet "
            f"trunk; got {kind!r} with {trunk!r}. Other models are not supported."
        )
    return _TABLES[kind == "mask2former", _TRUNKS[trunk]]


def class_names(theirs: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes in the order of their ids; none where the file only numbers them."""
    labels = {int(i): str(name) for i, name in theirs.get("id2label", {}).items()}
    names = tuple(labels[i] for i in sorted(labels))
    is_numbered = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    is_list = sorted(labels) == list(range(len(labels))) and len(set(names)) == len(names)
    return () if is_numbered or not is_list else names


def num_heads(theirs: Mapping[str, Any]) -> int:
    """Heads of the decoder (and of Mask2Former's encoder), which no shape tells."""
    if theirs["model_type"] == "mask2former":
        return int(theirs["num_attention_heads"])
    return int(theirs["decoder_config"]["decoder_attention_heads"])


def table_of(config: MaskFormerConfig) -> tuple[Pair, ...]:
    """The table of names that a model of ours is written with."""
    is_masked = config.decoder.kind == "masked"
    return _TABLES[is_masked, isinstance(_sized(config.backbone), SwinConfig)]


def write_config(config: MaskFormerConfig) -> dict[str, Any]:
    """A `config.json` that transformers builds the same model from.

    Raises: CheckpointError for models that it has no class for.
    """
    pixels, decoder = config.pixel_decoder, config.decoder
    is_masked = decoder.kind == "masked"
    if is_masked != (pixels.kind == "msdeform") or (not is_masked and pixels.num_layers):
        raise CheckpointError(
            "convert: transformers has Mask2Former with msdeform and MaskFormer with a plain "
            f"pyramid; got {decoder.kind!r} on {pixels.kind!r} with {pixels.num_layers} layers. "
            "Keep our own layout for this model."
        )
    names = config.class_names or [f"LABEL_{i}" for i in range(config.num_classes)]
    labels = {str(i): name for i, name in enumerate(names)}
    shared = {
        "backbone_config": _trunk_config(_sized(config.backbone), is_masked=is_masked),
        "id2label": labels,
        "label2id": {name: int(i) for i, name in labels.items()},
        "mask_feature_size": config.mask_dim,
        "no_object_weight": 0.1,
        "dtype": "float32",
    }
    return shared | (_mask2former(config) if is_masked else _maskformer(config))


def _mask2former(config: MaskFormerConfig) -> dict[str, Any]:
    pixels, decoder = config.pixel_decoder, config.decoder
    return {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "feature_size": config.pixel_dim,
        "hidden_dim": decoder.dim,
        "encoder_layers": pixels.num_layers,
        "encoder_feedforward_dim": pixels.ffn_dim,
        # theirs counts the prediction before the first layer
        "decoder_layers": decoder.num_layers + 1,
        "dim_feedforward": decoder.ffn_dim,
        "num_attention_heads": decoder.num_heads,
        "num_queries": decoder.num_queries,
        "dropout": 0.0,
    }


def _maskformer(config: MaskFormerConfig) -> dict[str, Any]:
    decoder = config.decoder
    return {
        "model_type": "maskformer",
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "fpn_feature_size": config.pixel_dim,
        "decoder_config": {
            "model_type": "detr",
            "d_model": decoder.dim,
            "decoder_layers": decoder.num_layers,
            "decoder_ffn_dim": decoder.ffn_dim,
            "decoder_attention_heads": decoder.num_heads,
            "encoder_attention_heads": decoder.num_heads,
            "num_queries": decoder.num_queries,
        },
    }


def _sized(backbone: SwinConfig | ResNetConfig | BackboneConfig) -> SwinConfig | ResNetConfig:
    if not isinstance(backbone, BackboneConfig):
        return backbone
    if backbone.name not in TRUNKS:
        raise CheckpointError(
            f"convert: HuggingFace's layout has trunks {', '.join(TRUNKS)} here; got "
            f"{backbone.name!r}. Keep our own layout for this model."
        )
    sized = TRUNKS[backbone.name]
    if isinstance(sized, SwinConfig):
        return replace(sized, drop_path=backbone.drop_path)
    return sized


def _trunk_config(backbone: SwinConfig | ResNetConfig, *, is_masked: bool) -> dict[str, Any]:
    if isinstance(backbone, SwinConfig):
        return {
            "model_type": "swin" if is_masked else "maskformer-swin",
            "embed_dim": backbone.dim,
            "depths": list(backbone.depths),
            "num_heads": list(backbone.num_heads),
            "window_size": backbone.window,
            "drop_path_rate": backbone.drop_path,
            "out_features": list(_STAGES),
        }
    return {
        "model_type": "resnet",
        "depths": list(backbone.depths),
        "layer_type": "bottleneck",
        "out_features": list(_STAGES),
    }
