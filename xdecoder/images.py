"""Pixels to what a backbone reads."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def normalised(
    images: Float[Tensor, "b 3 h w"],
    valid_sizes_hw: Sequence[tuple[int, int]] | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size_divisibility: int,
    dtype: torch.dtype,
) -> Float[Tensor, "b 3 hp wp"]:
    """Images minus mean over deviation, then zeros right and bottom up to the divisibility.

    The arithmetic is at least float32. With `valid_sizes_hw` the padding that a batch already has
    becomes zero as well.
    """
    height, width = images.shape[2:]
    images = images.to(torch.promote_types(dtype, torch.float32))
    mean_, std_ = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    images = (images - mean_) / std_
    if valid_sizes_hw is not None:
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        sizes_hw = torch.tensor(list(valid_sizes_hw), device=images.device)  # [B, 2]
        is_valid_row = rows < sizes_hw[:, :1]  # [B, H]
        is_valid_column = columns < sizes_hw[:, 1:]  # [B, W]
        images = images * (is_valid_row[:, :, None] & is_valid_column[:, None])[:, None]
    divisor = size_divisibility
    images = F.pad(images, (0, -width % divisor, 0, -height % divisor))
    return images.to(dtype)
