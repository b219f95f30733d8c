"""Queries from the image: each place of each level proposes a box, the most nameable are kept."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# sides of proposals at the first level of the count, and the places whose box is kept off edges.
# Source: IDEA-Research/OpenSeeD, gen_encoder_output_proposals
_FIRST_SIDE01 = 0.05
_MARGIN01 = 0.01


def proposals(
    level_sizes_hw: Sequence[tuple[int, int]],
    *,
    sizes: Literal["with_stride", "against_stride"],
    like: Tensor,
) -> tuple[Float[Tensor, "s 4"], Bool[Tensor, " s"]]:
    """A box around each place, as logits of centre and size, and whether it may be chosen.

    Levels come coarse to fine. Boxes that may not be chosen are infinite. They are at least
    float32: 16 bits would be off by pixels.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    boxes = []
    for level, (height, width) in enumerate(level_sizes_hw):
        power = level if sizes == "against_stride" else len(level_sizes_hw) - 1 - level
        y01 = (torch.arange(height, device=like.device, dtype=dtype) + 0.5) / height
        x01 = (torch.arange(width, device=like.device, dtype=dtype) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y01, x01, indexing="ij")
        side = torch.full_like(grid_x, _FIRST_SIDE01 * 2.0**power)
        boxes.append(torch.stack([grid_x, grid_y, side, side], -1).flatten(0, 1))  # [H*W, 4]
    boxes01 = torch.cat(boxes)
    is_valid = ((boxes01 > _MARGIN01) & (boxes01 < 1 - _MARGIN01)).all(-1)
    logits = (boxes01 / (1 - boxes01)).log()
    return logits.masked_fill(~is_valid[:, None], float("inf")), is_valid


def most_nameable(
    class_logits: Float[Tensor, "b s k"], is_valid: Bool[Tensor, " s"], count: int
) -> Int[Tensor, "b q"]:
    """Index [B, Q] of the places whose best name is the likeliest, the best first.

    An image with fewer valid places than `count` gives invalid ones last.
    Raises: ValueError where the image has fewer places than `count`.
    """
    if class_logits.shape[1] < count:
        raise ValueError(
            f"most_nameable: the pyramid must have at least {count} places "
            f"(model.decoder.num_queries); got {class_logits.shape[1]}. Enlarge the image or ask "
            "for fewer queries."
        )
    best = class_logits.max(-1).values.masked_fill(~is_valid, float("-inf"))
    return best.topk(count, dim=1).indices
