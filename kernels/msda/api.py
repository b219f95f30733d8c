"""The two public forms of multi-scale deformable attention: contract, checks, choice."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._checks import check_dtype, check_num_dims, check_same_device, check_shape
from kernels._select import choose_backend
from kernels.msda import backends, register
from kernels.msda.reference import reference_attention, reference_fused_attention

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def multi_scale_deformable_attention(
    value: Float[Tensor, "b s n d"],
    level_sizes_hw: Sequence[tuple[int, int]],
    points_xy01: Float[Tensor, "b q n l p 2"],
    weights: Float[Tensor, "b q n l p"],
    *,
    backend: str | None = None,
) -> Float[Tensor, "b q n*d"]:
    """Bilinear samples of every level at the points, summed with the weights.

    `value` holds the levels flattened one after another (row by row). A point (x, y) in 0..1
    lies at pixel (x * W - 0.5, y * H - 0.5) of its level; what lies outside counts as zero.
    With bfloat16 or float16 values the arithmetic stays float32: keep the points float32, as
    16-bit points are off by pixels before they arrive here. Gradients flow to value, points
    and weights.

    Raises:
        ValueError: a shape or device does not fit, or `backend` is not a name.
        TypeError: a dtype is not floating, or float64 is mixed with another.
        BackendUnavailable: `backend` cannot run this call.

    Source: Deformable DETR (arXiv 2010.04159), section 4.1, equation 3.
    """
    op = "multi_scale_deformable_attention"
    levels = _checked_levels(op, value, level_sizes_hw)
    num_images, _, num_heads, _ = value.shape
    _check_tensor(op, "points_xy01", points_xy01, value, axes="B, Q, N, L, P, 2")
    num_queries, num_points = (
        points_xy01.shape[1],
        _check_num_points(op, "points_xy01", points_xy01),
    )
    sizes = (num_images, num_queries, num_heads, len(levels), num_points)
    check_shape(op, "points_xy01", points_xy01, axes="B, Q, N, L, P, 2", sizes=(*sizes, 2))
    _check_tensor(op, "weights", weights, value, axes="B, Q, N, L, P")
    check_shape(op, "weights", weights, axes="B, Q, N, L, P", sizes=sizes)
    chosen = _choose(op, value, len(levels), num_points, backend)
    if chosen == "reference":
        return reference_attention(value, levels, points_xy01, weights)
    samples = _native_samples(chosen, value, points_xy01, weights)
    return register.FORWARD[chosen](value, _flat(levels), *samples)


def fused_deformable_attention(
    value: Float[Tensor, "b s n d"],
    level_sizes_hw: Sequence[tuple[int, int]],
    reference: Float[Tensor, "b q l r"],
    offsets: Float[Tensor, "b q n l p 2"],
    logits: Float[Tensor, "b q n l p"],
    *,
    backend: str | None = None,
) -> Float[Tensor, "b q n*d"]:
    """The same attention with softmax and point arithmetic inside; no points are stored.

    The weights are the softmax of `logits` over levels and points together. `reference` holds
    points xy01 (r = 2: point = reference + offset / (W, H) of the level) or boxes cxcywh01
    (r = 4: point = centre + offset / P * size / 2). Gradients flow to all four tensors.

    Raises:
        ValueError: a shape or device does not fit, or `backend` is not a name.
        TypeError: a dtype is not floating, or float64 is mixed with another.
        BackendUnavailable: `backend` cannot run this call.

    Source: Deformable DETR (arXiv 2010.04159), appendix A.3.
    """
    op = "fused_deformable_attention"
    levels = _checked_levels(op, value, level_sizes_hw)
    num_images, _, num_heads, _ = value.shape
    _check_tensor(op, "offsets", offsets, value, axes="B, Q, N, L, P, 2")
    num_queries, num_points = offsets.shape[1], _check_num_points(op, "offsets", offsets)
    sizes = (num_images, num_queries, num_heads, len(levels), num_points)
    check_shape(op, "offsets", offsets, axes="B, Q, N, L, P, 2", sizes=(*sizes, 2))
    _check_tensor(op, "logits", logits, value, axes="B, Q, N, L, P")
    check_shape(op, "logits", logits, axes="B, Q, N, L, P", sizes=sizes)
    _check_tensor(op, "reference", reference, value, axes="B, Q, L, 2 or 4")
    coordinates = 4 if reference.shape[3] == 4 else 2
    reference_sizes = (num_images, num_queries, len(levels), coordinates)
    check_shape(op, "reference", reference, axes="B, Q, L, 2 or 4", sizes=reference_sizes)
    chosen = _choose(op, value, len(levels), num_points, backend)
    if chosen == "reference":
        return reference_fused_attention(value, levels, reference, offsets, logits)
    samples = _native_samples(chosen, value, reference, offsets, logits)
    return register.FUSED_FORWARD[chosen](value, _flat(levels), *samples)


def _choose(op: str, value: Tensor, num_levels: int, num_points: int, backend: str | None) -> str:
    call = backends.Call(
        device=value.device,
        dtype=value.dtype,
        num_pixels=value.shape[1],
        num_heads=value.shape[2],
        head_dim=value.shape[3],
        num_levels=num_levels,
        num_points=num_points,
        is_deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return choose_backend(op, backends.candidates(call), backend)


def _native_samples(backend: str, value: Tensor, *samples: Tensor) -> tuple[Tensor, ...]:
    # the C++ kernels read all but the values in the type of the arithmetic
    if backend != "cpu":
        return samples
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    return tuple(tensor.to(exact) for tensor in samples)


def _flat(levels: Sequence[tuple[int, int]]) -> list[int]:
    return [size for level in levels for size in level]


def _checked_levels(
    op: str, value: Tensor, level_sizes_hw: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    check_num_dims(op, "value", value, axes="B, S, N, D")
    check_dtype(op, "value", value, _DTYPES)
    if value.shape[2] < 1 or value.shape[3] < 1:
        raise ValueError(
            f"{op}: value must be [B, S, N, D] with N >= 1 heads of D >= 1 channels; "
            f"got {[int(size) for size in value.shape]}. Split the channels into heads."
        )
    levels = [(height, width) for height, width in level_sizes_hw]
    if not levels or any(height < 1 or width < 1 for height, width in levels):
        raise ValueError(
            f"{op}: level_sizes_hw must be one (height, width) >= (1, 1) per level; got {levels}."
        )
    num_pixels = sum(height * width for height, width in levels)
    if value.shape[1] != num_pixels:
        raise ValueError(
            f"{op}: value must have S = {num_pixels} pixels, the sum of H * W over "
            f"level_sizes_hw = {levels}; got {value.shape[1]}. Flatten the same levels."
        )
    return levels


def _check_num_points(op: str, name: str, tensor: Tensor) -> int:
    if tensor.shape[4] < 1:
        raise ValueError(
            f"{op}: {name} must have P >= 1 points per level (dimension 4); "
            f"got {[int(size) for size in tensor.shape]}. Pass at least one point."
        )
    return tensor.shape[4]


def _check_tensor(op: str, name: str, tensor: Tensor, value: Tensor, *, axes: str) -> None:
    check_num_dims(op, name, tensor, axes=axes)
    check_same_device(op, name, tensor, "value", value)
    is_double = value.dtype == torch.float64
    wanted = (torch.float64,) if is_double else (torch.float32, torch.bfloat16, torch.float16)
    check_dtype(op, name, tensor, wanted)
