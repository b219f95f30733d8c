"""Operators: tensors in, tensors out, one function each, several backends behind it."""

from kernels.errors import BackendUnavailable
from kernels.masked_xattn import (
    MaskBits,
    exact_mask_bits,
    mask_bits,
    masked_cross_attention,
    pack_mask_bits,
    resize_mask_features,
)
from kernels.msda import fused_deformable_attention, multi_scale_deformable_attention

__all__ = [
    "BackendUnavailable",
    "MaskBits",
    "exact_mask_bits",
    "fused_deformable_attention",
    "mask_bits",
    "masked_cross_attention",
    "multi_scale_deformable_attention",
    "pack_mask_bits",
    "resize_mask_features",
]
