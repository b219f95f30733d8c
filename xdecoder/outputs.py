"""The structured results that travel between the parts of the model.

Letters: B batch, R rows (all pixel queries of a layout, in its order), T text tokens, C channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xdecoder.queries import QueryLayout


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What the image side gives to the decoder.

    levels: coarse to fine (strides 32, 16, 8); mask_features: stride 4;
    pooled: mean of the last backbone map in the shared image-text space, un-normalised.
    """

    levels: tuple[Float[Tensor, "b c _h _w"], ...]
    mask_features: Float[Tensor, "b c h4 w4"]
    pooled: Float[Tensor, "b c"]


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Token and sentence vectors in the shared image-text space, un-normalised.

    tokens: every position, projected; sentence: the end-of-text token's row of `tokens`;
    is_padding: positions after the end-of-text token.
    """

    tokens: Float[Tensor, "n t c"]
    sentence: Float[Tensor, "n c"]
    is_padding: Bool[Tensor, "n t"]


@dataclass(frozen=True, kw_only=True)
class LayerPrediction:
    """What the heads say after one decoder layer.

    embeddings: rows in the shared image-text space, un-normalised (classes, phrases, retrieval);
    mask_embeddings: rows whose dot product with `mask_features` is a mask logit;
    caption_states: caption positions, whose dot product with the token table is a token logit.
    """

    embeddings: Float[Tensor, "b r c"]
    mask_embeddings: Float[Tensor, "b r c"]
    caption_states: Float[Tensor, "b t c"] | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderOutput:
    """One prediction from the learned queries and one after each layer, the last one last."""

    layers: tuple[LayerPrediction, ...]
    layout: QueryLayout
    mask_features: Float[Tensor, "b c h4 w4"]

    def mask_logits(self, layer: int, rows: slice) -> Float[Tensor, "b q h4 w4"]:
        """Mask logits at stride 4 of some rows of one prediction."""
        embeddings = self.layers[layer].mask_embeddings[:, rows]
        return torch.einsum("bqc,bchw->bqhw", embeddings, self.mask_features)  # [B, Q, H/4, W/4]
