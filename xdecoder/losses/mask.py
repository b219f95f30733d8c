"""Binary cross-entropy and dice of masks read at points."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Num, Shaped
from torch import Tensor

from xdecoder.losses.draws import UniformSource
from xdecoder.losses.points import PointSampling, sample_points, uncertain_points


class MaskTerms(NamedTuple):
    """Binary cross-entropy and dice, one number per mask and map (or per pair)."""

    bce: Float[Tensor, "..."]
    dice: Float[Tensor, "..."]


def softplus(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 + exp(x)), from functions that are vectorised on the CPU (8 times faster there).

    With the absolute value the logarithm's argument lies in 0.5..1, so nothing overflows, and the
    derivative at 0 is the exact 0.5.
    """
    magnitude = logits.abs()
    return 0.5 * (logits + magnitude) - magnitude.sigmoid().log()


def point_terms(logits: Float[Tensor, "*m p"], targets: Float[Tensor, "*#m p"]) -> MaskTerms:
    """Mean cross-entropy over the points, and 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)."""
    # cross-entropy of a logit x with a target t is softplus(x) - x t
    bce = (softplus(logits) - logits * targets).mean(-1)
    probs = logits.sigmoid()
    overlap = 2.0 * (probs * targets).sum(-1)
    return MaskTerms(bce, 1.0 - (overlap + 1.0) / (probs.sum(-1) + targets.sum(-1) + 1.0))


def pairwise_terms(logits: Float[Tensor, "*b q p"], targets: Float[Tensor, "*b m p"]) -> MaskTerms:
    """`point_terms` of every query with every target, [..., Q, M], by two matrix products."""
    transposed = targets.transpose(-1, -2)
    bce = (softplus(logits).sum(-1, keepdim=True) - logits @ transposed) / logits.shape[-1]
    probs = logits.sigmoid()
    total = probs.sum(-1).unsqueeze(-1) + targets.sum(-1).unsqueeze(-2)  # [..., Q, M]
    return MaskTerms(bce, 1.0 - (2.0 * probs @ transposed + 1.0) / (total + 1.0))


def sampled_mask_terms(
    logits: Float[Tensor, "m k h w"],
    targets: Shaped[Tensor, "m ht wt"],
    draws: UniformSource,
    sampling: PointSampling,
) -> MaskTerms:
    """Terms [M, K] of the k maps of each mask at points where they are uncertain.

    `logits` and `targets` cover the same area of the image at any two resolutions.
    """
    num_masks, num_maps = logits.shape[:2]
    # maps that share their points are read together, as channels
    num_shared = num_maps if sampling.is_shared_by_layers else 1
    deciding = logits[:, num_shared - 1 :: num_shared]
    points = uncertain_points(deciding, draws, sampling)  # [M, K / shared, P, 2]
    maps = logits.reshape(-1, num_shared, *logits.shape[2:])
    predicted = sample_points(maps, points.flatten(0, 1))  # [M * K / shared, shared, P]
    actual = sample_points(targets.unsqueeze(1).to(logits.dtype), points.flatten(1, 2))
    actual = actual.reshape(len(maps), 1, sampling.num_points)
    terms = point_terms(predicted, actual)
    shape = (num_masks, num_maps)
    return MaskTerms(terms.bce.reshape(shape), terms.dice.reshape(shape))


def pad_masks(masks: Num[Tensor, "m h w"], size_hw: tuple[int, int]) -> Num[Tensor, "m hp wp"]:
    """Masks with zeros to the right and below, up to a size."""
    missing_h, missing_w = size_hw[0] - masks.shape[1], size_hw[1] - masks.shape[2]
    if missing_h == 0 and missing_w == 0:
        return masks
    if missing_h < 0 or missing_w < 0:
        raise ValueError(
            f"pad_masks: masks must fit into {size_hw[0]}x{size_hw[1]} (height x width); got "
            f"{masks.shape[1]}x{masks.shape[2]}. Pad masks as their images are padded."
        )
    return F.pad(masks, (0, missing_w, 0, missing_h))


def mask_iou(
    first: Shaped[Tensor, "m h w"], second: Shaped[Tensor, "n h w"]
) -> Float[Tensor, "m n"]:
    """Intersection over union of every pair; 0 where both are empty."""
    left, right = first.flatten(1).float(), second.flatten(1).float()
    intersection = left @ right.T
    union = left.sum(1)[:, None] + right.sum(1)[None] - intersection
    return intersection / union.clamp(min=1.0)
