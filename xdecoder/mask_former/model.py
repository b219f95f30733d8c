"""The model: a backbone, and a head that turns its maps into classes and masks."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xdecoder.images import Picture, normalised, rgb_pixels
from xdecoder.mask_former.outputs import MaskOutput
from xdecoder.pixel_decoder import Pyramid
from xdecoder.prediction import AnswerT, PredictionConfig, Question, check_answered


class MaskHead(nn.Module):
    """A pixel decoder and a decoder of queries."""

    def __init__(self, *, pixel_decoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder

    def forward(
        self, maps: Sequence[Float[Tensor, "b _c _h _w"]], canvas_hw: tuple[int, int]
    ) -> MaskOutput:
        """Predictions from backbone maps, fine to coarse (strides 4 to 32)."""
        pyramid = self.pixel_decoder(maps)
        return MaskOutput(
            layers=self.decoder(pyramid), mask_features=pyramid.mask_features, canvas_hw=canvas_hw
        )


class MaskFormer(nn.Module):
    """Images in, one prediction per layer out; MaskFormer or Mask2Former by its head.

    num_classes: without `no object`, which is the last column of the class logits.
    class_names, is_thing: what the columns mean; empty where nobody has said so.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: MaskHead,
        num_classes: int,
        num_queries: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        class_names: Sequence[str] = (),
        is_thing: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_classes, self.num_queries = num_classes, num_queries
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.size_divisibility = size_divisibility
        self.class_names, self.is_thing = tuple(class_names), tuple(is_thing)
        self.prediction = PredictionConfig()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, ema: bool = True) -> "MaskFormer":
        """As `XDecoder.from_pretrained`, for MaskFormer and Mask2Former."""
        # the loader builds models, so it cannot be imported before there are any
        from xdecoder.pretrained import expected, load_pretrained

        return expected(load_pretrained(path, ema=ema), cls, path)

    @torch.no_grad()
    def predict(self, image: Picture, question: Question["MaskFormer", AnswerT]) -> AnswerT:
        """The answer to a question about segments, at the picture's upright size."""
        check_answered(self, question)
        return question.ask(self, rgb_pixels(image))

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        valid_sizes_hw: Sequence[tuple[int, int]] | None = None,
    ) -> MaskOutput:
        """Predictions of RGB images in 0..255; padding of a batch becomes zero where it is told."""
        pixels = self._pixels(images, valid_sizes_hw)
        return self.head(self.backbone(pixels), (pixels.shape[2], pixels.shape[3]))

    def encode_images(
        self,
        images: Float[Tensor, "b 3 h w"],
        valid_sizes_hw: Sequence[tuple[int, int]] | None = None,
    ) -> Pyramid:
        """The maps that the decoder of queries reads, without asking it."""
        pyramid: Pyramid = self.head.pixel_decoder(
            self.backbone(self._pixels(images, valid_sizes_hw))
        )
        return pyramid

    def _pixels(
        self, images: Tensor, valid_sizes_hw: Sequence[tuple[int, int]] | None
    ) -> Float[Tensor, "b 3 hp wp"]:
        return normalised(
            images,
            valid_sizes_hw,
            mean=self.pixel_mean,
            std=self.pixel_std,
            size_divisibility=self.size_divisibility,
            dtype=next(self.head.parameters()).dtype,
        )
