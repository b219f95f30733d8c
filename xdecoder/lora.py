"""Low-rank additions to linear layers (arXiv 2106.09685): added by peft, merged by names.

A model with additions trains nothing else. Its weights are saved as they are, under peft's names;
whoever reads them into a plain model adds the products to the matrices first.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from xdecoder.config import ConfigError

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."
# a buffer of the whole model: what products are multiplied by
_SCALE = "lora_scale"
# layers that read slices of their weight, which additions would not reach
_SLICED = "in_proj"


def add_lora(model: nn.Module, *, rank: int, alpha: int, targets: tuple[str, ...]) -> None:
    """Give the linear layers of these names additions of a rank, and freeze everything else.

    The products are multiplied by alpha / rank and start at zero.

    Raises:
        ConfigError: peft is not installed, or no linear layer has such a name, or one of them reads
            slices of its weight.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "lora.rank must be 0 where peft is not installed; install the extra `lora`."
        ) from error
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = sorted(name for name in linear if name.rpartition(".")[2] in targets)
    if not found or _SLICED in targets:
        known = sorted({name.rpartition(".")[2] for name in linear} - {_SLICED})
        raise ConfigError(f"lora.targets must be among {', '.join(known)}; got {targets}.")
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=found, lora_dropout=0.0)
    peft.inject_adapter_in_model(settings, model)
    model.register_buffer(_SCALE, torch.tensor([alpha / rank]))


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model; unchanged where there are no additions."""
    if _SCALE not in weights:
        return dict(weights)
    scale = weights[_SCALE]
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name == _SCALE or name.endswith((_A, _B)):
            continue
        layer, is_base, part = name.partition(_BASE)
        if is_base and part == "weight":
            product = weights[layer + _B].float() @ weights[layer + _A].float()
            tensor = (tensor.float() + scale * product).to(tensor.dtype)
        plain[f"{layer}.{part}" if is_base else name] = tensor
    return plain
