"""Captions, one token after another."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xdecoder.losses.caption import next_tokens
from xdecoder.model import XDecoder
from xdecoder.outputs import ImageFeatures
from xdecoder.queries import QuerySet, TextQueries


class TokenAccuracy(NamedTuple):
    """How many next tokens were the likeliest ones, of how many (ends of texts included)."""

    num_correct: int
    num_tokens: int


@torch.no_grad()
def predict(
    model: XDecoder,
    images: Float[Tensor, "b 3 h w"],
    max_tokens: int,
    *,
    valid_sizes_hw: Sequence[tuple[int, int]] | None = None,
) -> list[str]:
    """The likeliest token at every step, until the end of the text or `max_tokens` tokens."""
    device = model.token_table.device
    features = model.encode_images(images.to(device), valid_sizes_hw)
    tokenizer = model.tokenizer
    ids = torch.full((len(images), 1), tokenizer.start_id, dtype=torch.long, device=device)
    is_ended = torch.zeros(len(images), dtype=torch.bool, device=device)
    for _ in range(min(max_tokens, tokenizer.context_length - 1)):
        token = _token_logits(model, features, ids)[:, -1].argmax(-1)  # [B]
        # what a caption says after its end is cut off below
        ids = torch.cat([ids, token[:, None]], dim=1)  # [B, T+1]
        is_ended |= token == tokenizer.end_id
        if bool(is_ended.all()):
            break
    return [tokenizer.decode(row) for row in ids]


@torch.no_grad()
def token_accuracy(
    model: XDecoder,
    images: Float[Tensor, "b 3 h w"],
    captions: Sequence[str],
    *,
    valid_sizes_hw: Sequence[tuple[int, int]] | None = None,
) -> TokenAccuracy:
    """Right next tokens when the true caption comes before each (one caption per image)."""
    device = model.token_table.device
    ids = model.tokenizer(captions).to(device)
    features = model.encode_images(images.to(device), valid_sizes_hw)
    # the end of a text is its first largest id
    is_padding = torch.arange(ids.shape[1], device=device)[None] > ids.argmax(1)[:, None]
    targets, is_target = next_tokens(ids, is_padding)
    is_right = _token_logits(model, features, ids)[:, :-1].argmax(-1) == targets
    return TokenAccuracy(int((is_right & is_target).sum()), int(is_target.sum()))


def _token_logits(
    model: XDecoder, features: ImageFeatures, ids: Int[Tensor, "b t"]
) -> Float[Tensor, "b t v"]:
    """Row t scores the token after t; it depends on tokens up to t only."""
    tokens = model.encode_text(ids).tokens
    is_padding = torch.zeros_like(ids, dtype=torch.bool)
    queries = QuerySet(caption=TextQueries(tokens=tokens, is_padding=is_padding))
    states = model.decode(features, queries).layers[-1].caption_states
    assert states is not None
    return states @ model.token_table.T
