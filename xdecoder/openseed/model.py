"""The model: an image side, a text side, and a decoder of boxes and masks over both."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xdecoder.images import Picture, normalised, rgb_pixels
from xdecoder.openseed.decoder import BoxDecoder, Names
from xdecoder.openseed.denoising import Conditions
from xdecoder.openseed.outputs import OpenSeeDOutput
from xdecoder.outputs import TextFeatures
from xdecoder.pixel_decoder import Pyramid
from xdecoder.prediction import AnswerT, PredictionConfig, Question, check_answered
from xdecoder.text.encoder import TextEncoder
from xdecoder.text.prompts import ClassEmbeddingCache
from xdecoder.text.tokenizer import Tokenizer


class OpenSeeD(nn.Module):
    """Images and names in, boxes and masks with their names out.

    `logit_scale` is the logarithm of the similarity scale, of shape [1] because optimizer shards
    cannot hold scalars. `prediction` is how the weights want to be asked; `class_embeddings` keeps
    vectors of names until the text encoder changes.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        decoder: BoxDecoder,
        text_encoder: TextEncoder,
        tokenizer: Tokenizer,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        initial_logit_scale: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.logit_scale = nn.Parameter(torch.full((1,), initial_logit_scale))
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.size_divisibility = size_divisibility
        self.prediction = PredictionConfig()
        self.class_embeddings = ClassEmbeddingCache()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, ema: bool = True) -> "OpenSeeD":
        """As `XDecoder.from_pretrained`, for OpenSeeD."""
        # the loader builds models, so it cannot be imported before there are any
        from xdecoder.pretrained import expected, load_pretrained

        return expected(load_pretrained(path, ema=ema), cls, path)

    @torch.no_grad()
    def predict(self, image: Picture, question: Question["OpenSeeD", AnswerT]) -> AnswerT:
        """The answer to a question about one picture, at its upright size."""
        check_answered(self, question)
        return question.ask(self, rgb_pixels(image))

    def encode_images(
        self,
        images: Float[Tensor, "b 3 h w"],
        valid_sizes_hw: Sequence[tuple[int, int]] | None = None,
    ) -> Pyramid:
        """Levels and mask features of RGB images in 0..255."""
        pixels = normalised(
            images,
            valid_sizes_hw,
            mean=self.pixel_mean,
            std=self.pixel_std,
            size_divisibility=self.size_divisibility,
            dtype=self.text_encoder.positions.dtype,
        )
        return self.pixel_decoder(self.backbone(pixels))

    def encode_text(self, token_ids: Int[Tensor, "n t"]) -> TextFeatures:
        """Token and sentence vectors of texts as `tokenizer` writes them, from any device."""
        return self.text_encoder(token_ids.to(self.text_encoder.positions.device))

    def decode(
        self,
        pyramid: Pyramid,
        class_embeddings: Float[Tensor, "k d"],
        *,
        conditions: Conditions | None = None,
        num_queries: int | None = None,
    ) -> OpenSeeDOutput:
        """Predictions for K names given as unit vectors; see `BoxDecoder.forward`."""
        height, width = pyramid.mask_features.shape[2:]
        return self.decoder(
            pyramid,
            Names(embeddings=class_embeddings, logit_scale=self.logit_scale),
            canvas_hw=(4 * height, 4 * width),
            conditions=conditions,
            num_queries=num_queries,
        )
