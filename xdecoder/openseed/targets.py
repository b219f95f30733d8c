"""What OpenSeeD learns from: boxes with names, and masks where there are any."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BoxedTargets:
    """The targets of all images, one image after another.

    masks: at the size of the canvas; None where a batch has boxes only. is_thing: of each target.
    has_mask: targets whose mask counts, None for all. is_unknown: pixels, of each target, of which
    nobody knows whose they are, None for nowhere.
    """

    counts: tuple[int, ...]
    class_ids: Int[Tensor, " m"]
    boxes_cxcywh01: Float[Tensor, "m 4"]
    is_thing: Bool[Tensor, " m"]
    masks: Bool[Tensor, "m h w"] | None = None
    has_mask: Bool[Tensor, " m"] | None = None
    is_unknown: Bool[Tensor, "m h w"] | None = None

    @property
    def image_index(self) -> Int[Tensor, " m"]:
        """Which image each target is in."""
        images = torch.arange(len(self.counts), device=self.class_ids.device)
        counts = torch.tensor(self.counts, device=images.device)
        return torch.repeat_interleave(images, counts)

    def per_image(self, rows: Tensor) -> Sequence[Tensor]:
        """Rows of all targets, split into images."""
        return rows.split(list(self.counts))
