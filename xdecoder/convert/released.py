"""Files of the released X-Decoder: which model they hold, whole or only what training starts from.

The released programs match names and shapes and skip the rest silently; here every name has a
rule, and a file whose trunk or queries are of another size is recognised by its shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from xdecoder.config import ModelConfig, released
from xdecoder.convert.rules import CheckpointError, Conversion, Rule, convert
from xdecoder.convert.trunks import without_never_there
from xdecoder.convert.xdecoder import FOCAL, davit, model_rules

Trunk = Literal["focal_t", "focal_l", "davit_d3", "davit_d5"]
_DAVIT = davit((1, 1, 9, 1))
# the first convolution of each trunk: its name and width
_FIRST_LAYERS: dict[tuple[str, int], tuple[Trunk, tuple[Rule, ...]]] = {
    ("backbone.patch_embed.proj.weight", 96): ("focal_t", FOCAL),
    ("backbone.patch_embed.proj.weight", 192): ("focal_l", FOCAL),
    ("backbone.convs.0.proj.weight", 128): ("davit_d3", _DAVIT),
    ("backbone.convs.0.proj.weight", 256): ("davit_d5", _DAVIT),
}
_QUERIES = "sem_seg_head.predictor.query_feat.weight"
# parts that may stand alone in a file of initial weights, each complete if it is there
_INITIAL_PARTS = ("backbone.", "text_encoder.")


@dataclass(frozen=True, kw_only=True)
class Released:
    """A released file under our names.

    is_initial: image and text trunks only, which training starts from (UniCL).
    """

    config: ModelConfig
    conversion: Conversion
    is_initial: bool


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of an X-Decoder: a text encoder or one of its trunks."""
    return any(".lang_encoder." in key for key in state) or _first_layer(state) is not None


def read_released(state: Mapping[str, Tensor]) -> Released:
    """The model of a file, and its weights under our names.

    Raises: CheckpointError for another trunk, or names that no rule explains.
    """
    found = _first_layer(state)
    if found is None:
        first = {name: list(state[name].shape) for name, _ in _FIRST_LAYERS if name in state}
        raise CheckpointError(
            f"convert: an X-Decoder file must have the trunk of {', '.join(get_args(Trunk))}, told "
            f"by the width of its first layer; got {first or 'none of their first layers'}. "
            "Weights of another size were not released; train them here."
        )
    name, rules = found
    conversion = convert(state, model_rules(rules))
    config = released(name)
    if _QUERIES in state:
        # the last one is the global query; one Focal-L file has half as many as the others
        num_latents = len(state[_QUERIES]) - 1
        config = replace(config, decoder=replace(config.decoder, num_latents=num_latents))
    return Released(config=config, conversion=conversion, is_initial=_QUERIES not in state)


def incomplete_parts(names: Mapping[str, Tensor], missing: list[str]) -> list[str]:
    """Missing names of parts that initial weights have begun."""
    begun = [part for part in _INITIAL_PARTS if any(name.startswith(part) for name in names)]
    return without_never_there([name for name in missing if name.startswith(tuple(begun))])


def _first_layer(state: Mapping[str, Tensor]) -> tuple[Trunk, tuple[Rule, ...]] | None:
    for (name, width), found in _FIRST_LAYERS.items():
        # a Swin trunk has the same name and width, with patches of 4 pixels
        if name in state and tuple(state[name].shape) == (width, 3, 7, 7):
            return found
    return None
