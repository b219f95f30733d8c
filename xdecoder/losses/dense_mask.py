"""Focal and dice terms of masks at every pixel, as MaskFormer trains with.

`MaskTerms.bce` holds the focal term, which takes the place of the cross-entropy.
Source: facebookresearch/MaskFormer, mask_former/modeling/criterion.py and matcher.py.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from xdecoder.losses.mask import MaskTerms, softplus

# Source: sigmoid_focal_loss in criterion.py
ALPHA = 0.25
# pixels of all maps together that are compared at once: memory stays flat with many objects
CHUNK_PIXELS = 1 << 25


def focal_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The focal term of each pixel if its target is 1, and if it is 0; gamma is 2."""
    probs = logits.sigmoid()
    if_one = ALPHA * (1.0 - probs).square() * softplus(-logits)
    if_zero = (1.0 - ALPHA) * probs.square() * softplus(logits)
    return if_one, if_zero


def pixel_terms(logits: Float[Tensor, "m p"], targets: Float[Tensor, "m p"]) -> MaskTerms:
    """Mean focal term over the pixels, and 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)."""
    if_one, if_zero = focal_parts(logits)
    focal = (if_one * targets + if_zero * (1.0 - targets)).mean(-1)
    probs = logits.sigmoid()
    overlap = 2.0 * (probs * targets).sum(-1)
    return MaskTerms(focal, 1.0 - (overlap + 1.0) / (probs.sum(-1) + targets.sum(-1) + 1.0))


def pairwise_pixel_terms(
    logits: Float[Tensor, "*b q p"], targets: Float[Tensor, "*b m p"]
) -> MaskTerms:
    """`pixel_terms` of every query with every target, [..., Q, M]."""
    transposed = targets.transpose(-1, -2)
    if_one, if_zero = focal_parts(logits)
    focal = (if_one @ transposed + if_zero @ (1.0 - transposed)) / logits.shape[-1]
    probs = logits.sigmoid()
    total = probs.sum(-1).unsqueeze(-1) + targets.sum(-1).unsqueeze(-2)  # [..., Q, M]
    return MaskTerms(focal, 1.0 - (2.0 * probs @ transposed + 1.0) / (total + 1.0))


def dense_mask_terms(
    logits: Float[Tensor, "m h w"], targets: Shaped[Tensor, "m ht wt"]
) -> MaskTerms:
    """Terms [M] of mask logits, brought to the size of their targets."""
    height, width = targets.shape[1:]
    step = max(1, CHUNK_PIXELS // max(1, height * width))
    parts = [
        _upsampled_terms(logits[start : start + step], targets[start : start + step])
        for start in range(0, len(logits), step)
    ]
    if not parts:
        nothing = logits.flatten(1).sum(1)
        return MaskTerms(nothing, nothing)
    return MaskTerms(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _upsampled_terms(logits: Tensor, targets: Tensor) -> MaskTerms:
    maps = F.interpolate(logits[:, None], size=targets.shape[1:], mode="bilinear")
    return pixel_terms(maps.flatten(1), targets.flatten(1).to(logits.dtype))


def shrunk_masks(
    masks: Bool[Tensor, "m h w"], size_hw: tuple[int, int]
) -> Float[Tensor, "m h4 w4"]:
    """Masks at the size of predictions; every pixel is the nearest one above and left."""
    return F.interpolate(masks[:, None].float(), size=size_hw, mode="nearest")[:, 0]
