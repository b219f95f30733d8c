"""Multi-scale deformable attention in plain PyTorch: the specification of every other backend."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# any grid coordinate that lies outside every image by more than one pixel
_FAR_OUTSIDE = -4.0


def reference_attention(
    value: Tensor, level_sizes_hw: Sequence[tuple[int, int]], points_xy01: Tensor, weights: Tensor
) -> Tensor:
    """The attention output [B, Q, N*D] in value's dtype; arithmetic in float32 or float64.

    A point that is not finite, or a pixel or more outside the image, contributes exactly
    nothing, whatever the values are, and gets zero gradients.
    """
    exact = _arithmetic_dtype(value)
    points, attention = points_xy01.to(exact), weights.to(exact)
    num_images, _, num_heads, head_dim = value.shape
    num_queries = points.shape[1]
    output = value.new_zeros((num_images * num_heads, head_dim, num_queries), dtype=exact)
    starts = _level_starts(level_sizes_hw)
    for level, (height, width) in enumerate(level_sizes_hw):
        start = starts[level]
        image = value[:, start : start + height * width].to(exact).permute(0, 2, 3, 1)
        image = image.reshape(num_images * num_heads, head_dim, height, width)  # [B*N, D, H, W]
        is_inside = _is_inside(points[:, :, :, level], height, width)  # [B, Q, N, P]
        grid = torch.where(is_inside[..., None], points[:, :, :, level] * 2 - 1, _FAR_OUTSIDE)
        grid = grid.transpose(1, 2).flatten(0, 1)  # [B*N, Q, P, 2]
        samples = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
        level_weights = torch.where(is_inside, attention[:, :, :, level], 0.0)
        level_weights = level_weights.transpose(1, 2).flatten(0, 1)[:, None]  # [B*N, 1, Q, P]
        output = output + (samples * level_weights).sum(-1)  # [B*N, D, Q]
    output = output.reshape(num_images, num_heads * head_dim, num_queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()  # [B, Q, N*D]


def reference_fused_attention(
    value: Tensor,
    level_sizes_hw: Sequence[tuple[int, int]],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """The attention output [B, Q, N*D] from reference points or boxes, offsets and logits."""
    exact = _arithmetic_dtype(value)
    points = sampling_points(level_sizes_hw, reference.to(exact), offsets.to(exact))
    weights = logits.to(exact).flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])
    return reference_attention(value, level_sizes_hw, points, weights)


def sampling_points(
    level_sizes_hw: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor
) -> Tensor:
    """Points [B, Q, N, L, P, 2] (xy, 0..1) from reference points xy01 or boxes cxcywh01.

    Around points the offsets are pixels of each level; around boxes, half box sizes over P.
    """
    around = reference[:, :, None, :, None, :]  # [B, Q, 1, L, 1, 2|4]
    if reference.shape[-1] == 2:
        sizes_wh = [(float(width), float(height)) for height, width in level_sizes_hw]
        scale = offsets.new_tensor(sizes_wh)[None, None, None, :, None, :]  # [1, 1, 1, L, 1, 2]
        return around + offsets / scale
    num_points = offsets.shape[-2]
    return around[..., :2] + offsets / num_points * around[..., 2:] * 0.5


def _arithmetic_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _level_starts(level_sizes_hw: Sequence[tuple[int, int]]) -> list[int]:
    starts = [0]
    for height, width in level_sizes_hw:
        starts.append(starts[-1] + height * width)
    return starts


def _is_inside(points: Tensor, height: int, width: int) -> Tensor:
    # pixel centres lie at (index + 0.5) / size, so a corner is read for -1 < pixel < size
    x = points[..., 0] * width - 0.5
    y = points[..., 1] * height - 0.5
    return (x > -1) & (x < width) & (y > -1) & (y < height)
