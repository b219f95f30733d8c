"""Boxes with names, boxes of phrases, and both in one look at a picture.

An OpenSeeD has boxes of its own; those of an X-Decoder and a MaskFormer lie around their masks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xdecoder.batch import Vocabulary
from xdecoder.images import ImageArray, ImageFit
from xdecoder.model import XDecoder
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.postprocess import ImagePrediction, detections
from xdecoder.openseed.questions import best_of_phrases, clipped, has_area, see_texts
from xdecoder.postprocess import cut_masks
from xdecoder.tasks.open_vocabulary import Instance, Segmenter, vocabulary_of
from xdecoder.tasks.referring import Referring


class FoundBoxes(NamedTuple):
    """Boxes of things from the surest on, each with the place of its name in the vocabulary.

    Boxes lie inside the picture; their ends past the last pixel. masks: None where nobody asked.
    """

    scores: Float[Tensor, " n"]
    class_ids: Int[Tensor, " n"]
    boxes_xyxy_px: Float[Tensor, "n 4"]
    masks: Bool[Tensor, "n h w"] | None
    vocabulary: Vocabulary

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each box."""
        return tuple(self.vocabulary.names[index] for index in self.class_ids.tolist())


class FoundPhrases(NamedTuple):
    """The best box of each phrase, in the order of the phrases.

    scores: how well the phrase fits, 0..1; of an X-Decoder, how sure the mask is of itself. A box
    is zeros where nothing is meant. masks: None where nobody asked.
    """

    phrases: tuple[str, ...]
    scores: Float[Tensor, " p"]
    boxes_xyxy_px: Float[Tensor, "p 4"]
    masks: Bool[Tensor, "p h w"] | None


class Grounded(NamedTuple):
    """What names found, and what phrases found."""

    names: FoundBoxes
    phrases: FoundPhrases


@dataclass(frozen=True, kw_only=True)
class Detection:
    """The things in an image, as boxes.

    vocabulary: None for the names that the model was trained with; fit: None for the model's own.
    minimum_score: less sure boxes are left out. with_masks: also cut out what is in each box.
    """

    vocabulary: Vocabulary | None = None
    fit: ImageFit | None = None
    top_k: int = 100
    minimum_score: float = 0.3
    with_masks: bool = False

    def ask(self, model: Segmenter, image: ImageArray) -> FoundBoxes:
        vocabulary = vocabulary_of(model, self.vocabulary)
        if isinstance(model, OpenSeeD):
            seen = see_texts(model, image, vocabulary.names, fit=self.fit)
            return self.read(seen, vocabulary)
        found = Instance(
            vocabulary=vocabulary,
            fit=self.fit,
            top_k=self.top_k,
            minimum_score=self.minimum_score,
        ).ask(model, image)
        scores, class_ids, masks, boxes = found.instances
        return FoundBoxes(scores, class_ids, boxes, masks if self.with_masks else None, vocabulary)

    def read(self, seen: ImagePrediction, vocabulary: Vocabulary) -> FoundBoxes:
        """The answer from what an OpenSeeD saw; the names stand first among the texts."""
        found = detections(
            seen.of_texts(slice(0, len(vocabulary.names))),
            top_k=self.top_k,
            is_thing=vocabulary.is_thing,
            minimum_score=self.minimum_score,
        )
        boxes = clipped(found.boxes_xyxy_px, seen.size_hw)
        is_kept = has_area(boxes)
        masks = _masks(seen, found.query[is_kept]) if self.with_masks else None
        return FoundBoxes(
            found.scores[is_kept], found.class_ids[is_kept], boxes[is_kept], masks, vocabulary
        )


@dataclass(frozen=True, kw_only=True)
class ReferringDetection:
    """The box that each phrase means, all phrases in one look at the image.

    An OpenSeeD chooses its queries by all texts of a call together; each phrase then takes the one
    that it fits best, stuff included. fit, with_masks: as in `Detection`.
    """

    phrases: tuple[str, ...]
    fit: ImageFit | None = None
    with_masks: bool = False

    def ask(self, model: XDecoder | OpenSeeD, image: ImageArray) -> FoundPhrases:
        if isinstance(model, OpenSeeD) and self.phrases:
            return self.read(see_texts(model, image, (), self.phrases, fit=self.fit))
        found = Referring(phrases=self.phrases, fit=self.fit).ask(model, image)
        masks = found.masks if self.with_masks else None
        return FoundPhrases(found.phrases, found.scores, found.boxes_xyxy_px, masks)

    def read(self, seen: ImagePrediction) -> FoundPhrases:
        """The answer from what an OpenSeeD saw; the phrases stand last among the texts."""
        scores, queries = best_of_phrases(seen, len(self.phrases))
        boxes = clipped(seen.boxes_xyxy_px[queries], seen.size_hw)
        boxes = torch.where(has_area(boxes)[:, None], boxes, 0.0)
        masks = _masks(seen, queries) if self.with_masks else None
        return FoundPhrases(tuple(self.phrases), scores, boxes, masks)


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """Names and phrases together: every thing with a name, and the box that each phrase means.

    The fields are those of `Detection` and `ReferringDetection`. An OpenSeeD looks once.
    """

    phrases: tuple[str, ...]
    vocabulary: Vocabulary | None = None
    fit: ImageFit | None = None
    top_k: int = 100
    minimum_score: float = 0.3
    with_masks: bool = False

    def ask(self, model: XDecoder | OpenSeeD, image: ImageArray) -> Grounded:
        vocabulary = vocabulary_of(model, self.vocabulary)
        names = Detection(
            vocabulary=vocabulary,
            fit=self.fit,
            top_k=self.top_k,
            minimum_score=self.minimum_score,
            with_masks=self.with_masks,
        )
        phrases = ReferringDetection(phrases=self.phrases, fit=self.fit, with_masks=self.with_masks)
        if isinstance(model, OpenSeeD) and self.phrases:
            seen = see_texts(model, image, vocabulary.names, self.phrases, fit=self.fit)
            return Grounded(names.read(seen, vocabulary), phrases.read(seen))
        return Grounded(names.ask(model, image), phrases.ask(model, image))


def _masks(seen: ImagePrediction, queries: Int[Tensor, " n"]) -> Bool[Tensor, "n h w"]:
    cut = cut_masks(seen.masks, queries)
    return cut.regions[cut.place]
