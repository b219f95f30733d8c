"""What OpenSeeD returns. Letters: B batch, Q queries, K class names, M mask width."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class BoxPrediction(NamedTuple):
    """What the heads say of each query: similarity to each name, a box, a mask vector."""

    class_logits: Float[Tensor, "b q k"]
    boxes_cxcywh01: Float[Tensor, "b q 4"]
    mask_embeddings: Float[Tensor, "b q m"]

    def rows(self, rows: slice) -> "BoxPrediction":
        """The same of some queries."""
        return BoxPrediction(
            self.class_logits[:, rows], self.boxes_cxcywh01[:, rows], self.mask_embeddings[:, rows]
        )


@dataclass(frozen=True, kw_only=True)
class OpenSeeDOutput:
    """One prediction before the layers and one after each, the last one last.

    selected: of the queries as they were chosen, before the decoder; denoised: of the disturbed
    targets, one per entry of `layers`, empty without denoising.
    num_foreground: the first queries come from the image, the others are learned.
    canvas_hw: size in pixels of the padded images, which the mask features cover.
    """

    selected: BoxPrediction
    layers: tuple[BoxPrediction, ...]
    denoised: tuple[BoxPrediction, ...]
    mask_features: Float[Tensor, "b m h4 w4"]
    num_foreground: int
    canvas_hw: tuple[int, int]

    def mask_logits(self, prediction: BoxPrediction) -> Float[Tensor, "b q h4 w4"]:
        """Mask logits at stride 4 of one prediction."""
        return torch.einsum("bqc,bchw->bqhw", prediction.mask_embeddings, self.mask_features)
