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


def contrastive_terms(
    first: Float[Tensor, "l n c"],
    second: Float[Tensor, "*k n c"],
    is_positive: Bool[Tensor, "n n"],
    scale: Float[Tensor, ""],
    first_weight: float = 0.5,
) -> Float[Tensor, " l"]:
    """Cross-entropy in both directions per layer; a row's positives share its target equally.

    first_weight: share of the direction in which rows of `first` look for rows of `second`.
    Zero (with a gradient path) when there are no rows.
    """
    logits = scale * cosine(first, second)  # [L, N, N]
    forward = _soft_cross_entropy(logits, is_positive)
    backward = _soft_cross_entropy(logits.transpose(1, 2), is_positive.T)
    count = max(is_positive.shape[0], 1)
    return (first_weight * forward + (1.0 - first_weight) * backward) / count


def _soft_cross_entropy(
    logits: Float[Tensor, "l n m"], is_positive: Bool[Tensor, "n m"]
) -> Float[Tensor, " l"]:
    """Sum over rows of the cross-entropy with the target spread evenly over the positives."""
    targets = is_positive / is_positive.sum(1, keepdim=True).clamp(min=1)
    return -(logits.log_softmax(2) * targets).sum((1, 2))
