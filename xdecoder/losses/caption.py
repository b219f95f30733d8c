"""Next-token cross-entropy."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def next_tokens(
    token_ids: Int[Tensor, "b t"], is_padding: Bool[Tensor, "b t"]
) -> tuple[Int[Tensor, "b t1"], Bool[Tensor, "b t1"]]:
    """What rows 0..T-2 must say, and where that is part of the text (its end included)."""
    return token_ids[:, 1:], ~is_padding[:, 1:]


def caption_terms(
    states: Float[Tensor, "l b t c"],
    token_table: Float[Tensor, "v c"],
    token_ids: Int[Tensor, "b t"],
    is_padding: Bool[Tensor, "b t"],
) -> Float[Tensor, " l"]:
    """Sum of the cross-entropy of row t against token t+1, per layer.

    Logits are made only for rows that have a next token; the vocabulary is the largest factor.
    """
    targets, is_target = next_tokens(token_ids, is_padding)
    rows = states[:, :, :-1][:, is_target]  # [L, N, C]
    logits = rows @ token_table.T  # [L, N, V]
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets[is_target].repeat(len(states)), reduction="none"
    )
    return losses.reshape(len(states), -1).sum(1)
