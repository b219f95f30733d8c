"""Semantic, instance and panoptic segmentation with names that the question brings."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from xdecoder import postprocess
from xdecoder.batch import Vocabulary
from xdecoder.full_size import semantic_ids
from xdecoder.images import ImageArray, ImageFit
from xdecoder.mask_former import task as mask_former
from xdecoder.mask_former.model import MaskFormer
from xdecoder.model import XDecoder
from xdecoder.openseed import postprocess as openseed
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.questions import clipped, see_texts
from xdecoder.postprocess import Instances, PanopticSegment
from xdecoder.tasks import segmentation
from xdecoder.tasks.segmentation import SeenSegments
from xdecoder.text.prompts import BACKGROUND, plain_name

Segmenter = XDecoder | MaskFormer | OpenSeeD


class SemanticMap(NamedTuple):
    """The class of each pixel, a place in the vocabulary."""

    class_ids: Int[Tensor, "h w"]
    vocabulary: Vocabulary


class FoundInstances(NamedTuple):
    """Instances from the surest on, with their boxes: the model's own, or those of the masks."""

    instances: Instances
    vocabulary: Vocabulary


class PanopticMap(NamedTuple):
    """Segment ids per pixel (0 where there is none), and what they are."""

    ids: Int[Tensor, "h w"]
    segments: tuple[PanopticSegment, ...]
    vocabulary: Vocabulary


@dataclass(frozen=True, kw_only=True)
class Semantic:
    """Which class each pixel is of.

    vocabulary: None for the names that the model was trained with; fit: None for the model's own.
    """

    vocabulary: Vocabulary | None = None
    fit: ImageFit | None = None

    def ask(self, model: Segmenter, image: ImageArray) -> SemanticMap:
        vocabulary = vocabulary_of(model, self.vocabulary)
        if isinstance(model, OpenSeeD):
            seen = see_texts(model, image, vocabulary.names, fit=self.fit)
            return SemanticMap(openseed.semantic_ids(seen), vocabulary)
        result = _segmented(model, image, vocabulary, self.fit)
        return SemanticMap(semantic_ids(result.class_probs, result.masks), vocabulary)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The things in an image, one by one.

    minimum_score: less sure instances are left out. The other fields are as in `Semantic`.
    """

    vocabulary: Vocabulary | None = None
    fit: ImageFit | None = None
    top_k: int = 100
    minimum_score: float = 0.3

    def ask(self, model: Segmenter, image: ImageArray) -> FoundInstances:
        vocabulary = vocabulary_of(model, self.vocabulary)
        if isinstance(model, OpenSeeD):
            found = openseed.instances(
                see_texts(model, image, vocabulary.names, fit=self.fit),
                top_k=self.top_k,
                is_thing=vocabulary.is_thing,
                minimum_score=self.minimum_score,
            )
            boxes = clipped(found.boxes_xyxy_px, (image.shape[0], image.shape[1]))
            found = found._replace(boxes_xyxy_px=boxes)
        else:
            result = _segmented(model, image, vocabulary, self.fit)
            found = postprocess.instances(
                result.class_probs,
                result.masks,
                top_k=self.top_k,
                is_thing=vocabulary.is_thing,
                minimum_score=self.minimum_score,
            )
        has_pixel = found.masks.flatten(1).any(1)
        return FoundInstances(Instances(*(part[has_pixel] for part in found)), vocabulary)


@dataclass(frozen=True, kw_only=True)
class Panoptic:
    """Things one by one and stuff by class, without overlap.

    object_threshold, overlap_threshold: as in `postprocess.panoptic`, None for the model's own.
    The other fields are as in `Semantic`.
    """

    vocabulary: Vocabulary | None = None
    fit: ImageFit | None = None
    object_threshold: float | None = None
    overlap_threshold: float | None = None

    def ask(self, model: Segmenter, image: ImageArray) -> PanopticMap:
        vocabulary, own = vocabulary_of(model, self.vocabulary), model.prediction
        object_threshold = _given(self.object_threshold, own.object_threshold)
        overlap_threshold = _given(self.overlap_threshold, own.overlap_threshold)
        if isinstance(model, OpenSeeD):
            found = openseed.panoptic(
                see_texts(model, image, vocabulary.names, fit=self.fit),
                is_thing=vocabulary.is_thing,
                object_threshold=object_threshold,
                overlap_threshold=overlap_threshold,
            )
        else:
            result = _segmented(model, image, vocabulary, self.fit)
            found = postprocess.panoptic(
                result.class_probs,
                result.masks,
                is_thing=vocabulary.is_thing,
                object_threshold=object_threshold,
                overlap_threshold=overlap_threshold,
                keeps_faint_pixels=own.keeps_faint_pixels,
            )
        return PanopticMap(found.ids, found.segments, vocabulary)


def own_vocabulary(model: Segmenter) -> Vocabulary:
    """The names that the model was trained with, none where they are not known."""
    if isinstance(model, MaskFormer):
        is_thing = model.is_thing or (True,) * len(model.class_names)
        return Vocabulary(names=model.class_names, is_thing=is_thing)
    return model.prediction.vocabulary or Vocabulary(names=(), is_thing=())


def vocabulary_of(model: Segmenter, asked: Vocabulary | None) -> Vocabulary:
    """The names that were asked for, else those that the model was trained with.

    Raises: ValueError without any names, and where a model of fixed classes does not know one.
    """
    vocabulary = asked or own_vocabulary(model)
    if not vocabulary.names:
        raise ValueError(
            "segmentation: needs names to look for; got none, and the model was saved without "
            'those of its training. Pass a vocabulary, for example Vocabulary.of("dog", "sky").'
        )
    if isinstance(model, MaskFormer):
        class_columns(model, vocabulary.names)
    return vocabulary


def class_columns(model: MaskFormer, names: Sequence[str]) -> list[int]:
    """The place of each name among the classes of a model that has a fixed list.

    Raises: ValueError for a name that is not in it, with the nearest one that is.
    """
    place_of = {plain_name(name): place for place, name in enumerate(model.class_names)}
    place_of |= {name: place for place, name in enumerate(model.class_names)}
    for name in names:
        if name not in place_of and plain_name(name) not in place_of:
            near = difflib.get_close_matches(name, place_of, n=1, cutoff=0.0)
            raise ValueError(
                f"segmentation: this model finds only its own {len(model.class_names)} classes; "
                f"{name!r} is none of them{f', the nearest is {near[0]!r}' if near else ''}. "
                "Leave it out, or ask an X-Decoder or an OpenSeeD."
            )
    return [place_of.get(name, place_of.get(plain_name(name), -1)) for name in names]


def _segmented(
    model: XDecoder | MaskFormer, image: ImageArray, vocabulary: Vocabulary, fit: ImageFit | None
) -> SeenSegments:
    own, size_hw = model.prediction, (image.shape[0], image.shape[1])
    pixels = (fit or own.segmentation).pixels(image)
    if isinstance(model, MaskFormer):
        found = mask_former.predict(model, pixels, size_hw)
        columns = [*class_columns(model, vocabulary.names), model.num_classes]
        return SeenSegments(found.class_probs[:, columns], found.masks)
    names = [*vocabulary.names, BACKGROUND]
    return segmentation.see_segments(
        model,
        pixels,
        model.class_embeddings(model, names, templates=own.templates),
        size_hw,
        has_global_query=own.has_global_query,
        resize=own.mask_resize,
    )


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
