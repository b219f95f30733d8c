"""What evaluation asks of a model: answers at the original size of each image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from xdecoder.batch import Vocabulary

ImageArray = UInt8[np.ndarray, "h w 3"]


class FoundInstance(NamedTuple):
    """One object of a class, with how sure the model is."""

    class_id: int
    score: float
    region: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class FoundSegments:
    """Everything that is seen in one image; classes are places in the vocabulary.

    segment_ids: 0 where there is nothing; classes, scores: of each id that occurs;
    semantic: class of each pixel; instances: from the surest on.
    """

    segment_ids: Int[np.ndarray, "h w"]
    classes: dict[int, int]
    scores: dict[int, float]
    semantic: Int[np.ndarray, "h w"]
    instances: tuple[FoundInstance, ...]


class NamedRegions(NamedTuple):
    """Regions that the model sees, and the similarity of each with each text."""

    regions: Bool[np.ndarray, "q h w"]
    similarity: Float[np.ndarray, "q t"]


class Predictor(Protocol):
    """A model with its way of resizing; images are RGB 0..255 at their original size."""

    def segment(self, images: Sequence[ImageArray], vocabulary: Vocabulary) -> list[FoundSegments]:
        """Segments, semantic map and instances of each image."""
        ...

    def refer(self, image: ImageArray, phrases: Sequence[str]) -> list[Bool[np.ndarray, "h w"]]:
        """The region that each phrase means, every phrase on its own."""
        ...

    def caption(self, images: Sequence[ImageArray]) -> list[str]:
        """One sentence about each image."""
        ...

    def answer(self, image: ImageArray, questions: Sequence[str]) -> list[str]:
        """The answer to each question about an image."""
        ...

    def caption_hits(
        self, images: Sequence[ImageArray], captions: Sequence[str]
    ) -> tuple[int, int]:
        """How many tokens of given captions are predicted from those before, and of how many."""
        ...

    def embed_images(self, images: Sequence[ImageArray]) -> Float[np.ndarray, "n c"]:
        """Unit vectors to compare with those of texts."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Unit vectors to compare with those of images."""
        ...

    def name_regions(self, image: ImageArray, texts: Sequence[str]) -> NamedRegions:
        """Regions of one image, and which texts they are like."""
        ...
