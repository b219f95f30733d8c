"""What a step computes, counted while it runs once: operations, kept bytes, trained values."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from xdecoder.batch import Batch
from xdecoder.losses.draws import Draws
from xdecoder.losses.matching import NonFiniteCostError
from xdecoder.tasks import MultiTask

# of one bilinear sample: four products and sums for each channel, and its attention weight
_SAMPLE_OPERATIONS = 10


def forward_flops(losses: MultiTask, batches: Sequence[Batch], seed: int) -> int:
    """Operations of one forward pass, our own operators and their losses included."""
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    # what cannot be trained on takes as many operations
    with counter, torch.no_grad(), suppress(NonFiniteCostError):
        losses(batches, Draws(seed, 0, 0))
    return counter.get_total_flops()


def _formulas() -> dict[Any, Callable[..., int]]:
    """Of the forward operators; each variant computes the same."""
    ops = torch.ops.xdecoder
    formulas: dict[Any, Callable[..., int]] = {}
    for name in ("msda", "msda_triton"):
        for form in ("forward", "fused_forward"):
            formulas[getattr(ops, f"{name}_{form}")] = _sampling_flops
    formulas[ops.mask_bits] = _product_flops
    formulas[ops.masked_xattn_forward] = _attention_flops
    return formulas


def _sampling_flops(*shapes: Any, out_shape: Any = None) -> int:
    # the last tensor is [B, Q, N, L, P], the first one [B, S, N, D]
    num_images, num_queries, num_heads, num_levels, num_points = shapes[-1]
    samples = num_images * num_queries * num_heads * num_levels * num_points
    return samples * shapes[0][-1] * _SAMPLE_OPERATIONS


def _product_flops(embed: Any, features: Any, *_args: Any, out_shape: Any = None) -> int:
    # [B, Q, C] x [B, C, S]
    return 2 * embed[0] * embed[1] * embed[2] * features[2]


def _attention_flops(q: Any, k: Any, *_args: Any, out_shape: Any = None) -> int:
    # [B, N, Q, D] with [B, N, K, D]: scores, then values
    return 4 * q[0] * q[1] * q[2] * q[3] * k[2]
