"""What MaskFormer and Mask2Former return."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class ClassPrediction(NamedTuple):
    """What the heads say after one layer; the last class is `no object`."""

    class_logits: Float[Tensor, "b q k1"]
    mask_embeddings: Float[Tensor, "b q m"]


@dataclass(frozen=True, kw_only=True)
class MaskOutput:
    """One prediction per layer, the last one last; Mask2Former has one before its layers as well.

    canvas_hw: size in pixels of the padded images, which the mask features cover.
    """

    layers: tuple[ClassPrediction, ...]
    mask_features: Float[Tensor, "b m h4 w4"]
    canvas_hw: tuple[int, int]

    def mask_logits(self, layer: int) -> Float[Tensor, "b q h4 w4"]:
        """Mask logits at stride 4 of one prediction."""
        embeddings = self.layers[layer].mask_embeddings
        return torch.einsum("bqc,bchw->bqhw", embeddings, self.mask_features)  # [B, Q, H/4, W/4]
