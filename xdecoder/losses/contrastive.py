"""Contrastive terms between image-side and text-side vectors."""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def stable_hash(text: str) -> int:
    """A 63-bit number that equal texts share on every rank and in every run."""
    digest = hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def text_ids(texts: Sequence[str], device: torch.device | None = None) -> Int[Tensor, " n"]:
    """`stable_hash` of each text."""
    return torch.tensor([stable_hash(text) for text in texts], dtype=torch.long, device=device)


def similarity_scale(logit_scale: Float[Tensor, "..."], limit: float) -> Float[Tensor, ""]:
    """The factor on cosines: exp of the learned number, at most `limit`."""
    return logit_scale.exp().clamp(max=limit).reshape(())


def cosine(
    first: Float[Tensor, "*b n c"], second: Float[Tensor, "*b m c"]
) -> Float[Tensor, "*b n m"]:
    """Cosine of every pair of rows."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).transpose(-1, -2)


def first_of_equals(ids: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Indices of the ids that did not occur before, in order."""
    occurred = (ids[:, None] == ids[None]).tril(diagonal=-1).any(1)
    return (~occurred).nonzero().squeeze(1)


def contrastive_terms(
    first: Float[Tensor, "l n c"],
    second: Float[Tensor, "m c"],
    is_positive: Bool[Tensor, "n m"],
    scale: Float[Tensor, ""],
    first_weight: float = 0.5,
) -> Float[Tensor, " l"]:
    """Cross-entropy in both directions per layer; a row's positives share its target equally.

    first_weight: share of the direction in which rows of `first` look for rows of `second`. Equal
    texts belong into `second` once (`first_of_equals`), or they compete with each other.
    Zero (with a gradient path) when there are no rows.
    """
    logits = scale * cosine(first, second)  # [L, N, M]
    forward = _soft_cross_entropy(logits, is_positive)
    backward = _soft_cross_entropy(logits.transpose(1, 2), is_positive.T)
    return first_weight * forward + (1.0 - first_weight) * backward


def alignment_terms(
    latents: Float[Tensor, "l b q c"],
    tokens: Float[Tensor, "b t c"],
    is_padding: Bool[Tensor, "b t"],
    scale: Float[Tensor, ""],
    image_share: float = 0.7,
) -> Float[Tensor, " l"]:
    """Contrast between an image's latent queries and the caption tokens of this process, per layer.

    An image looks for its own tokens, the later the more (a token knows those before it); a token
    looks for its image with a target as large as its part in the image's.
    Source: image-text retrieval loss of microsoft/X-Decoder, modeling/modules/criterion.py.
    """
    is_token = ~is_padding
    place = is_token.cumsum(1) * is_token
    parts = place / place.sum(1, keepdim=True).clamp(min=1)  # [B, T]
    own = torch.eye(len(tokens), device=tokens.device).unsqueeze(2)
    targets = (own * parts)[:, is_token]  # [B, tokens of all captions]
    # the mean cosine over the latents is the dot product with their mean direction
    directions = F.normalize(latents, dim=-1).mean(2)  # [L, B, C]
    logits = scale * directions @ F.normalize(tokens[is_token], dim=-1).T
    forward = -(logits.log_softmax(2) * targets).sum((1, 2)) / len(tokens)
    backward = -(logits.log_softmax(1) * targets).sum((1, 2)) / max(targets.shape[1], 1)
    return image_share * forward + (1.0 - image_share) * backward


def _soft_cross_entropy(
    logits: Float[Tensor, "l n m"], is_positive: Bool[Tensor, "n m"]
) -> Float[Tensor, " l"]:
    """Mean over rows of the cross-entropy with the target spread evenly over the positives."""
    targets = is_positive / is_positive.sum(1, keepdim=True).clamp(min=1)
    return -(logits.log_softmax(2) * targets).sum((1, 2)) / max(len(is_positive), 1)
