"""Masked cross-attention without a dense mask; see README.md here."""

from kernels.masked_xattn.api import (
    MaskBits,
    exact_mask_bits,
    mask_bits,
    masked_cross_attention,
    pack_mask_bits,
    resize_mask_features,
)

__all__ = [
    "MaskBits",
    "exact_mask_bits",
    "mask_bits",
    "masked_cross_attention",
    "pack_mask_bits",
    "resize_mask_features",
]
