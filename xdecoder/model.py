"""The model: an image side, a text side, and one decoder over both."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xdecoder.answers import AnswerHead
from xdecoder.backbones import Backbone
from xdecoder.decoder import MaskedDecoder
from xdecoder.images import Picture, normalised, rgb_pixels
from xdecoder.outputs import DecoderOutput, ImageFeatures, TextFeatures
from xdecoder.prediction import AnswerT, PredictionConfig, Question, Search, check_answered
from xdecoder.queries import QuerySet
from xdecoder.text.encoder import TextEncoder
from xdecoder.text.prompts import ClassEmbeddingCache
from xdecoder.text.tokenizer import Tokenizer


class XDecoder(nn.Module):
    """Images and queries in, one prediction per decoder layer out.

    `logit_scale` is the logarithm of the similarity scale, of shape [1] because optimizer shards
    cannot hold scalars. `prediction` is how the weights want to be asked; `class_embeddings` keeps
    vectors of class names until the text encoder changes. `answers` are those that its answer head
    chooses from; most models have none.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pixel_decoder: nn.Module,
        decoder: MaskedDecoder,
        text_encoder: TextEncoder,
        tokenizer: Tokenizer,
        dim: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        initial_logit_scale: float,
        answers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_projection = nn.Linear(cast(Backbone, backbone).out_dims[-1], dim, bias=False)
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.logit_scale = nn.Parameter(torch.full((1,), initial_logit_scale))
        self.size_divisibility = size_divisibility
        # not buffers, which would lose digits in a 16-bit model
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.answers = tuple(answers)
        self.answer_places = {answer: place for place, answer in enumerate(self.answers)}
        self.answer_head = (
            AnswerHead(dim, context_length=tokenizer.context_length, num_answers=len(self.answers))
            if answers
            else None
        )
        self.prediction = PredictionConfig()
        self.class_embeddings = ClassEmbeddingCache()
        nn.init.trunc_normal_(self.image_projection.weight, std=0.02)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, ema: bool = True) -> "XDecoder":
        """The model of a run, checkpoint or converted folder, in evaluation mode on the CPU.

        ema: its averaged weights, where they were kept.
        Raises: CheckpointError for a folder without a whole X-Decoder.
        """
        # the loader builds models, so it cannot be imported before there are any
        from xdecoder.pretrained import expected, load_pretrained

        return expected(load_pretrained(path, ema=ema), cls, path)

    @overload
    def predict(self, image: Picture, question: Question["XDecoder", AnswerT]) -> AnswerT: ...

    @overload
    def predict(
        self, image: Sequence[Picture], question: Search["XDecoder", AnswerT]
    ) -> AnswerT: ...

    @torch.no_grad()
    def predict(self, image, question):  # type: ignore[no-untyped-def]
        """The answer to a question about one picture, or about several for a search.

        A picture is a Pillow image of any mode or a uint8 array; answers have its upright size.
        """
        check_answered(self, question)
        if isinstance(image, list | tuple):
            return question.ask(self, [rgb_pixels(each) for each in image])
        return question.ask(self, rgb_pixels(image))

    @property
    def token_table(self) -> Float[Tensor, "v c"]:
        """Vectors of the vocabulary; a caption state times it gives token logits."""
        return self.text_encoder.token_embedding.weight

    def forward(self, images: Float[Tensor, "b 3 h w"], queries: QuerySet) -> DecoderOutput:
        """`decode` of `encode_images`."""
        return self.decode(self.encode_images(images), queries)

    def encode_images(
        self,
        images: Float[Tensor, "b 3 h w"],
        valid_sizes_hw: Sequence[tuple[int, int]] | None = None,
    ) -> ImageFeatures:
        """Levels, mask features and pooled vectors of RGB images in 0..255.

        Images are normalised, then padded right and bottom with zeros to the size divisibility.
        With `valid_sizes_hw` the padding that a batch already has becomes zero as well.
        """
        maps = self.backbone(
            normalised(
                images,
                valid_sizes_hw,
                mean=self.pixel_mean,
                std=self.pixel_std,
                size_divisibility=self.size_divisibility,
                dtype=self.token_table.dtype,
            )
        )
        pyramid = self.pixel_decoder(maps)
        return ImageFeatures(
            levels=pyramid.levels,
            mask_features=pyramid.mask_features,
            pooled=self.image_projection(maps[-1].mean((2, 3))),
        )

    def encode_text(self, token_ids: Int[Tensor, "n t"]) -> TextFeatures:
        """Token and sentence vectors of texts as `tokenizer` writes them, from any device."""
        return self.text_encoder(token_ids.to(self.token_table.device))

    def decode(self, features: ImageFeatures, queries: QuerySet) -> DecoderOutput:
        """Predictions of the learned queries and of every layer."""
        return self.decoder(features, queries)
