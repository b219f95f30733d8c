"""What evaluation asks of a model: answers at the original size of each image."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pipelines.errors import ConfigError
from xdecoder.batch import Vocabulary

ImageArray = UInt8[np.ndarray, "h w 3"]


class FoundInstance(NamedTuple):
    """One object of a class, with how sure the model is."""

    class_id: int
    score: float
    region: Bool[np.ndarray, "h w"]


class FoundBox(NamedTuple):
    """One object of a class as a box, in pixels of the image, with how sure the model is."""

    class_id: int
    score: float
    box_xywh_px: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class FoundSegments:
    """Everything that is seen in one image; classes are places in the vocabulary.

    segment_ids: 0 where there is nothing; classes, scores: of each id that occurs;
    semantic: class of each pixel; instances, boxes: from the surest on. boxes: None of a model
    that has none but those around its instances.
    """

    segment_ids: Int[np.ndarray, "h w"]
    classes: dict[int, int]
    scores: dict[int, float]
    semantic: Int[np.ndarray, "h w"]
    instances: tuple[FoundInstance, ...]
    boxes: tuple[FoundBox, ...] | None = None


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


class SegmentsOnly(ABC):
    """A predictor whose model segments, and refuses what it cannot answer."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What the model is, as the beginning of a sentence."""

    @abstractmethod
    def segment(self, images: Sequence[ImageArray], vocabulary: Vocabulary) -> list[FoundSegments]:
        """Segments, semantic map and instances of each image."""

    def refer(self, image: ImageArray, phrases: Sequence[str]) -> list[Bool[np.ndarray, "h w"]]:
        """Nothing: the model reads no phrases."""
        self._refuse("phrases")

    def caption(self, images: Sequence[ImageArray]) -> list[str]:
        """Nothing: the model writes no text."""
        self._refuse("captions")

    def answer(self, image: ImageArray, questions: Sequence[str]) -> list[str]:
        """Nothing: the model reads no questions."""
        self._refuse("questions")

    def caption_hits(
        self, images: Sequence[ImageArray], captions: Sequence[str]
    ) -> tuple[int, int]:
        """Nothing: the model writes no text."""
        self._refuse("captions")

    def embed_images(self, images: Sequence[ImageArray]) -> Float[np.ndarray, "n c"]:
        """Nothing: the model has no space for whole images."""
        self._refuse("retrieval")

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Nothing: the model has no space for whole images."""
        self._refuse("retrieval")

    def name_regions(self, image: ImageArray, texts: Sequence[str]) -> NamedRegions:
        """Nothing: the model has no vectors of regions without names."""
        self._refuse("free names")

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{self.kind} knows no {what}; it segments. Ask for panoptic, "
            "semantic or instance, and evaluate with --stages segmentation."
        )
