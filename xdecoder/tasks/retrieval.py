"""Vectors of images and captions whose dot product says how well they fit."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xdecoder.model import XDecoder
from xdecoder.queries import QuerySet
from xdecoder.tasks.base import full_precision
from xdecoder.text.prompts import sentence_embeddings

ImageSide = Literal["decoder", "backbone", "both"]


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


def _joined(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], dim=-1) * 0.5**0.5
