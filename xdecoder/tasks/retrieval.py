"""Vectors of images and captions whose dot product says how well they fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xdecoder.images import ImageArray, ImageFit
from xdecoder.model import XDecoder
from xdecoder.queries import QuerySet
from xdecoder.tasks.base import full_precision
from xdecoder.text.prompts import sentence_embeddings

ImageSide = Literal["decoder", "backbone", "both"]


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The vector of one image, to compare with `text_embeddings`; for an index of many.

    fit: None for the model's own.
    """

    side: ImageSide = "both"
    fit: ImageFit | None = None

    def ask(self, model: XDecoder, image: ImageArray) -> Float[Tensor, " c"]:
        pixels = (self.fit or model.prediction.text).pixels(image)
        return image_embeddings(model, pixels[None], side=self.side)[0]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How well each text fits each image, as cosines [texts, images]; for a few images."""

    texts: tuple[str, ...]
    side: ImageSide = "both"
    fit: ImageFit | None = None

    def ask(self, model: XDecoder, image: Sequence[ImageArray]) -> Float[Tensor, "t n"]:
        embedding = Embedding(side=self.side, fit=self.fit)
        vectors = torch.stack([embedding.ask(model, each) for each in image])
        return text_embeddings(model, self.texts, side=self.side) @ vectors.T


@torch.no_grad()
def image_embeddings(
    model: XDecoder,
    images: Float[Tensor, "b 3 h w"],
    *,
    side: ImageSide = "both",
    valid_sizes_hw: Sequence[tuple[int, int]] | None = None,
) -> Float[Tensor, "b c"]:
    """Unit vectors from the global query, from the pooled backbone map, or from both.

    With both, the dot product with `text_embeddings` of both is the mean of the two cosines,
    which is how the released X-Decoder ranks.
    """
    features = model.encode_images(images.to(model.token_table.device), valid_sizes_hw)
    pooled = F.normalize(full_precision(features.pooled), dim=-1)
    if side == "backbone":
        return pooled
    output = model.decode(features, QuerySet())
    rows = output.layers[-1].embeddings[:, output.layout.global_query]
    decoded = F.normalize(full_precision(rows.squeeze(1)), dim=-1)
    return decoded if side == "decoder" else _joined(decoded, pooled)


@torch.no_grad()
def text_embeddings(
    model: XDecoder, captions: Sequence[str], *, side: ImageSide = "both"
) -> Float[Tensor, "n c"]:
    """Unit vectors of captions, to go with `image_embeddings` of the same side."""
    vectors = full_precision(sentence_embeddings(model, captions))
    return _joined(vectors, vectors) if side == "both" else vectors


def decoder_side(vectors: Float[Tensor, "n c2"]) -> Float[Tensor, "n c"]:
    """The unit vectors of the global query that `image_embeddings` of both sides holds."""
    return F.normalize(vectors[:, : vectors.shape[1] // 2], dim=-1)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], dim=-1) * 0.5**0.5
