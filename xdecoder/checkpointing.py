"""Activation checkpointing: keep what enters a block, compute the rest again in the backward."""

from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from xdecoder.backbones.timm_backbone import TimmBackbone
from xdecoder.decoder import MaskedLayer
from xdecoder.mask_former.decoders import DetrLayer
from xdecoder.openseed.decoder import DeformableBoxLayer
from xdecoder.pixel_decoder import DeformableEncoderLayer, EncoderLayer
from xdecoder.text.encoder import TextBlock

_BLOCKS = (
    EncoderLayer,
    DeformableEncoderLayer,
    MaskedLayer,
    DetrLayer,
    DeformableBoxLayer,
    # an OpenSeeD reads hundreds of names in every step
    TextBlock,
)


def checkpoint_activations(model: nn.Module) -> int:
    """How many blocks of a model now run again in the backward pass, in training.

    The blocks of the trunk where it can, every layer of the text encoder, of the pixel decoder's
    encoder and of the decoder. Losses and gradients stay what they are; random numbers are drawn
    again alike.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, TimmBackbone):
            cast(Any, module.trunk).set_grad_checkpointing(True)
            count += 1
        elif hasattr(module, "has_checkpointing"):
            module.has_checkpointing = True  # type: ignore[assignment]
            count += 1
        elif isinstance(module, _BLOCKS):
            _run_again(module)
            count += 1
    return count


def _run_again(block: nn.Module) -> None:
    once = block.forward

    def forward(*inputs: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(once, *inputs, use_reentrant=False)
        return once(*inputs)

    # of this object alone; the module's hooks, such as those of ZeRO-3, stay around it
    block.forward = forward
