"""Multi-scale deformable attention: see README.md in this folder for the mathematics."""

from kernels.msda.api import fused_deformable_attention, multi_scale_deformable_attention

__all__ = ["fused_deformable_attention", "multi_scale_deformable_attention"]
