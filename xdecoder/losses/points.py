"""Masks read at points instead of at every pixel."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xdecoder.losses.draws import UniformSource


@dataclass(frozen=True, kw_only=True)
class PointSampling:
    """How many points stand for a mask, and how they are chosen.

    num_points: points per mask; oversample: candidates per point; importance: share of the
    points that are the most uncertain candidates, the rest is uniform.
    is_shared_by_layers: a mask's points are where its last prediction is uncertain, and all
    decoder layers are compared there; otherwise every layer has points of its own, as in
    Mask2Former, which costs a selection per layer.
    num_matching_points: uniform points at which queries are matched; None for `num_points`.
    """

    num_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    is_shared_by_layers: bool = False
    num_matching_points: int | None = None

    def __post_init__(self) -> None:
        if self.num_points < 1 or self.oversample < 1 or not 0 <= self.importance <= 1:
            raise ValueError(
                "PointSampling: num_points must be at least 1, oversample at least 1 and "
                f"importance within 0..1; got {self.num_points}, {self.oversample}, "
                f"{self.importance}."
            )

    @property
    def num_for_matching(self) -> int:
        return self.num_matching_points or self.num_points

    @property
    def num_candidates(self) -> int:
        return int(self.num_points * self.oversample)

    @property
    def num_important(self) -> int:
        return int(self.num_points * self.importance)


def sample_points(
    maps: Float[Tensor, "n k h w"], points_xy01: Float[Tensor, "n p 2"]
) -> Float[Tensor, "n k p"]:
    """Bilinear readings of maps at points; pixel centres at (i + 0.5) / size, zero outside."""
    grid = (2.0 * points_xy01 - 1.0).unsqueeze(2).to(maps.dtype)  # [N, P, 1, 2]
    return F.grid_sample(maps, grid, align_corners=False).squeeze(3)  # [N, K, P]


def uncertain_points(
    logits: Float[Tensor, "m k h w"], draws: UniformSource, sampling: PointSampling
) -> Float[Tensor, "m k p 2"]:
    """Points where a mask is undecided, and some anywhere; xy in 0..1, without gradient.

    The k maps of a mask (one per decoder layer) choose among the same candidates.
    Source: PointRend, and criterion.py of facebookresearch/Mask2Former.
    """
    num_masks, num_maps = logits.shape[:2]
    candidates = draws.uniform(num_masks, sampling.num_candidates, 2).to(logits)
    fresh = draws.uniform(num_masks, sampling.num_points - sampling.num_important, 2).to(logits)
    with torch.no_grad():
        certainty = sample_points(logits.detach(), candidates).abs_()  # [M, K, candidates]
        chosen = certainty.topk(sampling.num_important, dim=2, largest=False, sorted=False).indices
        index = chosen.flatten(1).unsqueeze(2).expand(-1, -1, 2)  # [M, K*important, 2]
        important = candidates.gather(1, index).unflatten(1, (num_maps, sampling.num_important))
        fresh = fresh.unsqueeze(1).expand(-1, num_maps, -1, -1)
        return torch.cat([important, fresh], dim=2)  # [M, K, P, 2]
