"""Schemas, shape functions and gradients of the masked cross-attention operators.

The CPU implementations come from the C++ library, the CUDA ones from Triton.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from kernels.masked_xattn.reference import TILE_KEYS, TILE_ROWS, num_words

_library = torch.library.Library("xdecoder", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)

_library.define(
    "resize_features(Tensor features, SymInt height, SymInt width, bool is_bicubic) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "mask_bits(Tensor mask_embed, Tensor features, int num_unmasked_rows)"
    " -> (Tensor bits, Tensor row_any, Tensor tile_any)",
    tags=_TAGS,
)
_library.define(
    "masked_xattn_forward(Tensor q, Tensor k, Tensor v, Tensor bits, Tensor row_any)"
    " -> (Tensor out, Tensor lse)",
    tags=_TAGS,
)
_library.define(
    "masked_xattn_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,"
    " Tensor bits, Tensor row_any) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    tags=_TAGS,
)


@torch.library.register_fake("xdecoder::resize_features", lib=_library)
def _fake_resize(features: Tensor, height: int, width: int, is_bicubic: bool) -> Tensor:
    return features.new_empty((*features.shape[:2], height, width))


@torch.library.register_fake("xdecoder::mask_bits", lib=_library)
def _fake_mask_bits(
    mask_embed: Tensor, features: Tensor, num_unmasked_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_rows = mask_embed.shape[0], mask_embed.shape[1] + num_unmasked_rows
    num_keys = features.shape[2]
    row_tiles = (num_rows + TILE_ROWS - 1) // TILE_ROWS
    key_tiles = (num_keys + TILE_KEYS - 1) // TILE_KEYS
    return (
        mask_embed.new_empty((batch, num_rows, num_words(num_keys)), dtype=torch.int32),
        mask_embed.new_empty((batch, num_rows), dtype=torch.bool),
        mask_embed.new_empty((batch, row_tiles, key_tiles), dtype=torch.bool),
    )


@torch.library.register_fake("xdecoder::masked_xattn_forward", lib=_library)
def _fake_forward(
    q: Tensor, k: Tensor, v: Tensor, bits: Tensor, row_any: Tensor
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("xdecoder::masked_xattn_backward", lib=_library)
def _fake_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bits: Tensor,
    row_any: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bits, row_any = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, bits, row_any)


def _backward(
    ctx: Any, grad_out: Tensor, _grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, None, None]:
    q, k, v, out, lse, bits, row_any = ctx.saved_tensors
    grads = torch.ops.xdecoder.masked_xattn_backward(
        grad_out.contiguous(), q, k, v, out, lse, bits, row_any
    )
    return *grads, None, None


torch.library.register_autograd(
    "xdecoder::masked_xattn_forward", _backward, setup_context=_save, lib=_library
)


# imported on the first launch: triton is not needed by any other backend
def _triton_mask_bits(
    mask_embed: Tensor, features: Tensor, num_unmasked_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    from kernels.masked_xattn import impl_triton

    return impl_triton.mask_bits(mask_embed, features, num_unmasked_rows)


def _triton_forward(
    q: Tensor, k: Tensor, v: Tensor, bits: Tensor, row_any: Tensor
) -> tuple[Tensor, Tensor]:
    from kernels.masked_xattn import impl_triton

    return impl_triton.forward(q, k, v, bits, row_any)


def _triton_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bits: Tensor,
    row_any: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from kernels.masked_xattn import impl_triton

    return impl_triton.backward(grad_out, q, k, v, out, lse, bits, row_any)


_library.impl("mask_bits", _triton_mask_bits, "CUDA")
_library.impl("masked_xattn_forward", _triton_forward, "CUDA")
_library.impl("masked_xattn_backward", _triton_backward, "CUDA")

# the reason why there is no Triton backend, or None
WHY_NO_TRITON = None if find_spec("triton") else "the package triton is not installed."
