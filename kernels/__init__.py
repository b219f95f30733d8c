"""Operators: tensors in, tensors out, one function each, several backends behind it."""

from kernels.errors import BackendUnavailable
from kernels.msda import fused_deformable_attention, multi_scale_deformable_attention

__all__ = [
    "BackendUnavailable",
    "fused_deformable_attention",
    "multi_scale_deformable_attention",
]
