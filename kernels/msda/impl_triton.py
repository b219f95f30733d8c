"""Triton kernels of multi-scale deformable attention, and their launchers.

One program: one image, one head, a block of queries; it loops over levels and points and holds
[queries, head dim] tiles. Arithmetic and accumulation are float32; grad_value is accumulated in
a float32 buffer with relaxed atomics and converted once.

    FORM 0: points xy01 and weights     FORM 2: offsets around points   FORM 4: around boxes
"""

# kernels of Triton take pointers that have no Python type
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# elements of a [queries, head dim] tile: 8 per thread at 4 warps, two 16-byte float32 loads
_TILE_ELEMENTS = 1024
_NUM_WARPS = 4


@triton.jit
def _pixel_coordinates(
    samples_ptr, sample, reference_ptr, width, height, is_query, FORM: tl.constexpr, P: tl.constexpr
):
    # pixel = point * size - 0.5; returns the slopes d pixel / d sample as well
    first = tl.load(samples_ptr + 2 * sample, mask=is_query, other=0.0).to(tl.float32)
    second = tl.load(samples_ptr + 2 * sample + 1, mask=is_query, other=0.0).to(tl.float32)
    if FORM == 0:
        nothing = tl.zeros_like(first)
        return first * width - 0.5, second * height - 0.5, nothing + width, nothing + height
    centre_x = tl.load(reference_ptr, mask=is_query, other=0.0).to(tl.float32)
    centre_y = tl.load(reference_ptr + 1, mask=is_query, other=0.0).to(tl.float32)
    if FORM == 2:
        x = centre_x * width + first - 0.5
        y = centre_y * height + second - 0.5
        return x, y, tl.zeros_like(first) + 1.0, tl.zeros_like(first) + 1.0
    extent_x = tl.load(reference_ptr + 2, mask=is_query, other=0.0).to(tl.float32)
    extent_y = tl.load(reference_ptr + 3, mask=is_query, other=0.0).to(tl.float32)
    slope_x = extent_x * width * (0.5 / P)
    slope_y = extent_y * height * (0.5 / P)
    x = centre_x * width + first * slope_x - 0.5
    y = centre_y * height + second * slope_y - 0.5
    return x, y, slope_x, slope_y


@triton.jit
def _corners(x, y, width, height, is_query):
    # a coordinate that is not finite fails every comparison and must not be converted
    is_inside = (x > -1.0) & (x < width) & (y > -1.0) & (y < height) & is_query
    x = tl.where(is_inside, x, 0.0)
    y = tl.where(is_inside, y, 0.0)
    x_floor = tl.floor(x)
    y_floor = tl.floor(y)
    x0 = x_floor.to(tl.int32)
    y0 = y_floor.to(tl.int32)
    has_left = is_inside & (x0 >= 0)
    has_right = is_inside & (x0 + 1 < width)
    has_upper = y0 >= 0
    has_lower = y0 + 1 < height
    return x0, y0, x - x_floor, y - y_floor, has_left, has_right, has_upper, has_lower


@triton.jit
def _row(rows_ptr, pixel, columns, is_used, STRIDE: tl.constexpr, D: tl.constexpr):
    offsets = pixel[:, None] * STRIDE + columns[None, :]
    mask = is_used[:, None] & (columns[None, :] < D)
    return tl.load(rows_ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _add_row(rows_ptr, pixel, columns, row, is_used, STRIDE: tl.constexpr, D: tl.constexpr):
    offsets = pixel[:, None] * STRIDE + columns[None, :]
    mask = is_used[:, None] & (columns[None, :] < D)
    tl.atomic_add(rows_ptr + offsets, row, mask=mask, sem="relaxed")


@triton.jit
def _softmax_tile(logits_ptr, row, is_query, SAMPLES: tl.constexpr, BLOCK_SAMPLES: tl.constexpr):
    columns = tl.arange(0, BLOCK_SAMPLES)
    mask = is_query[:, None] & (columns[None, :] < SAMPLES)
    pointers = logits_ptr + row[:, None] * SAMPLES + columns[None, :]
    # rows of queries that do not exist hold zeros, so that their sums are not NaN
    logits = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    logits = tl.where(columns[None, :] < SAMPLES, logits, float("-inf"))
    largest = tl.max(logits, axis=1)
    powers = tl.exp(logits - largest[:, None])
    total = tl.sum(powers, axis=1)
    return powers / total[:, None], largest, total


@triton.jit
def _sample_weight(weights_ptr, sample, is_query, largest, total, FORM: tl.constexpr):
    weight = tl.load(weights_ptr + sample, mask=is_query, other=0.0).to(tl.float32)
    if FORM == 0:
        return weight
    return tl.exp(weight - largest) / total


@triton.jit
def _msda_forward_kernel(
    value_ptr, levels_ptr, reference_ptr, samples_ptr, weights_ptr, output_ptr,
    num_pixels, num_queries,
    N: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, FORM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = queries < num_queries
    columns = tl.arange(0, BLOCK_D)
    query_row = image * num_queries + queries
    row = query_row * N + head
    rows_ptr = value_ptr + image * num_pixels * (N * D) + head * D
    largest = tl.zeros([BLOCK_Q], tl.float32)
    total = largest
    if FORM != 0:
        _probs, largest, total = _softmax_tile(weights_ptr, row, is_query, L * P, BLOCK_SAMPLES)
    output = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for level in range(L):
        height = tl.load(levels_ptr + 3 * level)
        width = tl.load(levels_ptr + 3 * level + 1)
        start = tl.load(levels_ptr + 3 * level + 2)
        reference = reference_ptr + (query_row * L + level) * FORM
        for point in tl.static_range(P):
            sample = row * (L * P) + level * P + point
            x, y, _slope_x, _slope_y = _pixel_coordinates(
                samples_ptr, sample, reference, width, height, is_query, FORM, P
            )
            weight = _sample_weight(weights_ptr, sample, is_query, largest, total, FORM)
            x0, y0, fx, fy, left, right, upper, lower = _corners(x, y, width, height, is_query)
            # a point inside has a left or a right column; one outside counts nothing, even NaN
            weight = tl.where(left | right, weight, 0.0)
            pixel = start + y0 * width + x0
            wx = weight * fx
            w_left = weight - wx
            output += (
                _row(rows_ptr, pixel, columns, left & upper, N * D, D)
                * (w_left * (1 - fy))[:, None]
            )
            output += (
                _row(rows_ptr, pixel + 1, columns, right & upper, N * D, D)
                * (wx * (1 - fy))[:, None]
            )
            output += (
                _row(rows_ptr, pixel + width, columns, left & lower, N * D, D)
                * (w_left * fy)[:, None]
            )
            output += (
                _row(rows_ptr, pixel + width + 1, columns, right & lower, N * D, D)
                * (wx * fy)[:, None]
            )
    mask = is_query[:, None] & (columns[None, :] < D)
    pointers = output_ptr + row[:, None] * D + columns[None, :]
    tl.store(pointers, output.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _corner_backward(
    rows_ptr, grad_rows_ptr, pixel, columns, grad, weight, is_used,
    STRIDE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    # <grad_output, row> of one corner, and the corner's share of grad_value
    row = _row(rows_ptr, pixel, columns, is_used, STRIDE, D)
    _add_row(grad_rows_ptr, pixel, columns, grad * weight[:, None], is_used, STRIDE, D)
    return tl.sum(row * grad, axis=1)


@triton.jit
def _msda_backward_kernel(
    grad_output_ptr, value_ptr, levels_ptr, reference_ptr, samples_ptr, weights_ptr,
    grad_value_ptr, grad_reference_ptr, grad_samples_ptr, grad_weights_ptr,
    num_pixels, num_queries,
    N: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, FORM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = queries < num_queries
    columns = tl.arange(0, BLOCK_D)
    query_row = image * num_queries + queries
    row = query_row * N + head
    rows_ptr = value_ptr + image * num_pixels * (N * D) + head * D
    grad_rows_ptr = grad_value_ptr + image * num_pixels * (N * D) + head * D
    grad_pointers = grad_output_ptr + row[:, None] * D + columns[None, :]
    grad_mask = is_query[:, None] & (columns[None, :] < D)
    grad = tl.load(grad_pointers, mask=grad_mask, other=0.0).to(tl.float32)
    sample_columns = tl.arange(0, BLOCK_SAMPLES)
    largest = tl.zeros([BLOCK_Q], tl.float32)
    total = largest
    probs = tl.zeros([BLOCK_Q, BLOCK_SAMPLES], tl.float32)
    grad_weights = tl.zeros([BLOCK_Q, BLOCK_SAMPLES], tl.float32)
    if FORM != 0:
        probs, largest, total = _softmax_tile(weights_ptr, row, is_query, L * P, BLOCK_SAMPLES)
    for level in range(L):
        height = tl.load(levels_ptr + 3 * level)
        width = tl.load(levels_ptr + 3 * level + 1)
        start = tl.load(levels_ptr + 3 * level + 2)
        reference = reference_ptr + (query_row * L + level) * FORM
        sum_x = tl.zeros([BLOCK_Q], tl.float32)
        sum_y = sum_x
        sum_w = sum_x
        sum_h = sum_x
        for point in tl.static_range(P):
            sample = row * (L * P) + level * P + point
            x, y, slope_x, slope_y = _pixel_coordinates(
                samples_ptr, sample, reference, width, height, is_query, FORM, P
            )
            weight = _sample_weight(weights_ptr, sample, is_query, largest, total, FORM)
            x0, y0, fx, fy, left, right, upper, lower = _corners(x, y, width, height, is_query)
            # a point inside has a left or a right column; one outside counts nothing, even NaN
            weight = tl.where(left | right, weight, 0.0)
            pixel = start + y0 * width + x0
            wx = weight * fx
            w_left = weight - wx
            d0 = _corner_backward(
                rows_ptr, grad_rows_ptr, pixel, columns, grad, w_left * (1 - fy),
                left & upper, N * D, D,
            )  # fmt: skip
            d1 = _corner_backward(
                rows_ptr, grad_rows_ptr, pixel + 1, columns, grad, wx * (1 - fy),
                right & upper, N * D, D,
            )  # fmt: skip
            d2 = _corner_backward(
                rows_ptr, grad_rows_ptr, pixel + width, columns, grad, w_left * fy,
                left & lower, N * D, D,
            )  # fmt: skip
            d3 = _corner_backward(
                rows_ptr, grad_rows_ptr, pixel + width + 1, columns, grad, wx * fy,
                right & lower, N * D, D,
            )  # fmt: skip
            grad_weight = (1 - fy) * ((1 - fx) * d0 + fx * d1) + fy * ((1 - fx) * d2 + fx * d3)
            grad_x = weight * ((1 - fy) * (d1 - d0) + fy * (d3 - d2))
            grad_y = weight * ((1 - fx) * (d2 - d0) + fx * (d3 - d1))
            is_column = sample_columns[None, :] == level * P + point
            grad_weights = tl.where(is_column, grad_weight[:, None], grad_weights)
            stored_x = (grad_x * slope_x).to(grad_samples_ptr.dtype.element_ty)
            stored_y = (grad_y * slope_y).to(grad_samples_ptr.dtype.element_ty)
            tl.store(grad_samples_ptr + 2 * sample, stored_x, mask=is_query)
            tl.store(grad_samples_ptr + 2 * sample + 1, stored_y, mask=is_query)
            if FORM != 0:
                sum_x += grad_x
                sum_y += grad_y
            if FORM == 4:
                offset_x = tl.load(samples_ptr + 2 * sample, mask=is_query, other=0.0)
                offset_y = tl.load(samples_ptr + 2 * sample + 1, mask=is_query, other=0.0)
                sum_w += grad_x * offset_x.to(tl.float32) * (0.5 / P)
                sum_h += grad_y * offset_y.to(tl.float32) * (0.5 / P)
        if FORM != 0:
            # one slot per head: the sum over heads has a fixed order
            slot = grad_reference_ptr + (row * L + level) * FORM
            tl.store(slot, sum_x * width, mask=is_query)
            tl.store(slot + 1, sum_y * height, mask=is_query)
            if FORM == 4:
                tl.store(slot + 2, sum_w * width, mask=is_query)
                tl.store(slot + 3, sum_h * height, mask=is_query)
    if FORM != 0:
        mean = tl.sum(probs * grad_weights, axis=1)
        grad_weights = probs * (grad_weights - mean[:, None])
    mask = is_query[:, None] & (sample_columns[None, :] < L * P)
    pointers = grad_weights_ptr + row[:, None] * (L * P) + sample_columns[None, :]
    tl.store(pointers, grad_weights.to(grad_weights_ptr.dtype.element_ty), mask=mask)


def launch_options(head_dim: int, num_samples: int) -> dict[str, int]:
    """Tile sizes: powers of two, 1024 elements per [queries, head dim] tile."""
    block_d = triton.next_power_of_2(head_dim)
    return {
        "BLOCK_Q": max(2, min(64, _TILE_ELEMENTS // block_d)),
        "BLOCK_D": block_d,
        "BLOCK_SAMPLES": triton.next_power_of_2(num_samples),
    }


def forward(
    value: Tensor, level_sizes_hw: Sequence[int], reference: Tensor | None, samples: Tensor,
    weights: Tensor,
) -> Tensor:  # fmt: skip
    """The attention output [B, Q, N*D]; `reference` is None for points and weights."""
    value, samples, weights = value.contiguous(), samples.contiguous(), weights.contiguous()
    reference = value if reference is None else reference.contiguous()
    output, sizes, grid = _prepare(value, weights)
    if output.numel() == 0:
        return output
    levels = _level_table(tuple(level_sizes_hw), value.device)
    form = 0 if reference is value else reference.shape[3]
    with _device_of(value):
        _msda_forward_kernel[grid](
            value, levels, reference, samples, weights, output,
            value.shape[1], weights.shape[1],
            **sizes, FORM=form, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return output


def backward(
    grad_output: Tensor, value: Tensor, level_sizes_hw: Sequence[int], reference: Tensor | None,
    samples: Tensor, weights: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of value, reference (None for points), samples and weights."""
    value, samples, weights = value.contiguous(), samples.contiguous(), weights.contiguous()
    grad_output = grad_output.contiguous()
    _, sizes, grid = _prepare(value, weights)
    form = 0 if reference is None else reference.shape[3]
    num_images, num_queries, num_heads, num_levels, _ = weights.shape
    grad_value = torch.zeros_like(value, dtype=torch.float32)
    grad_samples, grad_weights = torch.empty_like(samples), torch.empty_like(weights)
    partial_shape = (num_images, num_queries, num_heads, num_levels, form)
    grad_partial = value.new_empty(partial_shape, dtype=torch.float32)
    if weights.numel() > 0:
        levels = _level_table(tuple(level_sizes_hw), value.device)
        with _device_of(value):
            _msda_backward_kernel[grid](
                grad_output, value, levels,
                value if reference is None else reference.contiguous(),
                samples, weights, grad_value, grad_partial, grad_samples, grad_weights,
                value.shape[1], num_queries,
                **sizes, FORM=form, num_warps=_NUM_WARPS,
            )  # fmt: skip
    grad_reference = None if reference is None else grad_partial.sum(2).to(reference.dtype)
    return grad_value.to(value.dtype), grad_reference, grad_samples, grad_weights


def _prepare(value: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, int], tuple[int, int, int]]:
    num_images, num_queries, num_heads, num_levels, num_points = weights.shape
    head_dim = value.shape[3]
    options = launch_options(head_dim, num_levels * num_points)
    sizes = {"N": num_heads, "D": head_dim, "L": num_levels, "P": num_points, **options}
    output = value.new_empty((num_images, num_queries, num_heads * head_dim))
    grid = (triton.cdiv(num_queries, options["BLOCK_Q"]), num_heads, num_images)
    return output, sizes, grid


@lru_cache(maxsize=256)
def _level_table(level_sizes_hw: tuple[int, ...], device: torch.device) -> Tensor:
    rows, start = [], 0
    for height, width in zip(level_sizes_hw[::2], level_sizes_hw[1::2], strict=True):
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _device_of(tensor: Tensor) -> torch.cuda.device:
    # a negative index makes the guard do nothing, as the interpreter needs
    return torch.cuda.device(tensor.device.index if tensor.is_cuda else -1)
