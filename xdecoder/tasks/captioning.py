"""Captions, one token after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xdecoder.caption_stream import CaptionStream
from xdecoder.images import ImageArray, ImageFit
from xdecoder.losses.caption import next_tokens
from xdecoder.model import XDecoder
from xdecoder.outputs import ImageFeatures
from xdecoder.queries import QuerySet, TextQueries
from xdecoder.tasks.caption_search import beam_search, greedy


class Caption(NamedTuple):
    """A caption, and the logarithm of its probability over all its tokens, its end included."""

    text: str
    log_prob: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Captioning:
    """One sentence about an image.

    num_beams: 1 takes the likeliest token at every step. max_tokens, fit: None for the model's own.
    """

    num_beams: int = 1
    max_tokens: int | None = None
    fit: ImageFit | None = None

    def ask(self, model: XDecoder, image: ImageArray) -> Caption:
        own = model.prediction
        pixels = (self.fit or own.text).pixels(image)
        features = model.encode_images(pixels[None].to(model.token_table.device))
        limit = own.max_caption_tokens if self.max_tokens is None else self.max_tokens
        found = generate(model, features, max_tokens=limit, num_beams=self.num_beams)[0]
        return finished(found, ends_at_full_stop=own.ends_at_full_stop)


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
    features = model.encode_images(images.to(model.token_table.device), valid_sizes_hw)
    return [found.text for found in generate(model, features, max_tokens=max_tokens)]


@torch.no_grad()
def generate(
    model: XDecoder,
    features: ImageFeatures,
    *,
    max_tokens: int,
    num_beams: int = 1,
    may_look: Bool[Tensor, "b h w"] | None = None,
) -> list[Caption]:
    """One caption for each image: greedy with one beam, otherwise the best that beams find.

    may_look: pixels of the padded images that the caption is about, everything without it.
    Raises: ValueError without a token or a beam to take.
    """
    if max_tokens < 1 or num_beams < 1:
        raise ValueError(
            "captioning: max_tokens and num_beams must be at least 1; "
            f"got {max_tokens} and {num_beams}."
        )
    # the start takes one place of the context
    max_tokens = min(max_tokens, model.tokenizer.context_length - 1)
    stream = CaptionStream(
        model, features, max_tokens=max_tokens, num_beams=num_beams, may_look=may_look
    )
    num_images = features.mask_features.shape[0]
    found = (
        greedy(stream, model.tokenizer, num_images, max_tokens)
        if num_beams == 1
        else beam_search(stream, model.tokenizer, num_images, max_tokens, num_beams)
    )
    return [
        Caption(text=model.tokenizer.decode(ids), log_prob=log_prob, num_tokens=len(ids))
        for ids, log_prob in found
    ]


def finished(caption: Caption, *, ends_at_full_stop: bool) -> Caption:
    """The caption, or only its first sentence; its log probability stays that of the whole."""
    if not ends_at_full_stop:
        return caption
    sentence, stop, _ = caption.text.partition(".")
    return caption._replace(text=sentence + stop)


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
