"""Operators `xdecoder::msda_*`: schemas, shapes for tracing, and gradients.

Each form is registered twice: `msda_*` has its kernels in the compiled libraries (C++ for
tensors on the CPU, CUDA for tensors on a GPU), `msda_triton_*` launches Triton.
`register_autograd` makes the one autograd.Function of each operator.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SCHEMAS = (
    "{}_forward(Tensor value, SymInt[] level_sizes_hw, Tensor points_xy01, Tensor weights) "
    "-> Tensor",
    "{}_backward(Tensor grad_output, Tensor value, SymInt[] level_sizes_hw, Tensor points_xy01, "
    "Tensor weights, bool deterministic) -> (Tensor, Tensor, Tensor)",
    "{}_fused_forward(Tensor value, SymInt[] level_sizes_hw, Tensor reference, Tensor offsets, "
    "Tensor logits) -> Tensor",
    "{}_fused_backward(Tensor grad_output, Tensor value, SymInt[] level_sizes_hw, "
    "Tensor reference, Tensor offsets, Tensor logits, bool deterministic) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
_LIBRARY = torch.library.Library("xdecoder", "FRAGMENT")


def _fake_forward(value: Tensor, level_sizes_hw: Sequence[int], *samples: Tensor) -> Tensor:
    # the last tensor, weights or logits, is [B, Q, N, L, P]
    num_images, num_queries, num_heads = samples[-1].shape[:3]
    return value.new_empty((num_images, num_queries, num_heads * value.shape[3]))


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    level_sizes_hw: Sequence[int],
    *samples_and_flag: Any,
) -> tuple[Tensor, ...]:
    inputs = (value, *samples_and_flag[:-1])
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.level_sizes_hw, *samples = inputs
    ctx.save_for_backward(value, *samples)


def _register(family: str) -> None:
    for schema in _SCHEMAS:
        _LIBRARY.define(schema.format(family))
    for form in (family, f"{family}_fused"):
        backward_op = getattr(torch.ops.xdecoder, f"{form}_backward").default

        def backward(ctx: Any, grad_output: Tensor, op: Any = backward_op) -> tuple[Any, ...]:
            value, *samples = ctx.saved_tensors
            deterministic = torch.are_deterministic_algorithms_enabled()
            sizes = ctx.level_sizes_hw
            grad_value, *grads = op(grad_output, value, sizes, *samples, deterministic)
            return grad_value, None, *grads

        torch.library.register_fake(f"xdecoder::{form}_forward", _fake_forward, lib=_LIBRARY)
        torch.library.register_fake(f"xdecoder::{form}_backward", _fake_backward, lib=_LIBRARY)
        torch.library.register_autograd(
            f"xdecoder::{form}_forward", backward, setup_context=_save_inputs, lib=_LIBRARY
        )


def _triton_forward(value: Tensor, level_sizes_hw: Sequence[int], *samples: Tensor) -> Tensor:
    # imported on the first launch: triton is not needed by any other backend
    from kernels.msda import impl_triton

    reference = samples[0] if len(samples) == 3 else None
    return impl_triton.forward(value, level_sizes_hw, reference, samples[-2], samples[-1])


def _triton_backward(
    grad_output: Tensor,
    value: Tensor,
    level_sizes_hw: Sequence[int],
    *samples_and_flag: Any,
) -> tuple[Tensor, ...]:
    from kernels.msda import impl_triton

    *samples, deterministic = samples_and_flag
    if deterministic and not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(
            "msda: the Triton backward adds with atomics, but deterministic algorithms are "
            "required. Use backend='cuda', or torch.use_deterministic_algorithms(False)."
        )
    reference = samples[0] if len(samples) == 3 else None
    grads = impl_triton.backward(
        grad_output, value, level_sizes_hw, reference, samples[-2], samples[-1]
    )
    return tuple(grad for grad in grads if grad is not None)


_register("msda")
_register("msda_triton")
for _form in ("msda_triton", "msda_triton_fused"):
    # CPU: the interpreter of Triton
    for _key in ("CUDA", "CPU"):
        _LIBRARY.impl(f"{_form}_forward", _triton_forward, _key)
        _LIBRARY.impl(f"{_form}_backward", _triton_backward, _key)

_OPS = torch.ops.xdecoder
FORWARD = {"cpu": _OPS.msda_forward, "cuda": _OPS.msda_forward, "triton": _OPS.msda_triton_forward}
FUSED_FORWARD = {
    "cpu": _OPS.msda_fused_forward,
    "cuda": _OPS.msda_fused_forward,
    "triton": _OPS.msda_triton_fused_forward,
}
