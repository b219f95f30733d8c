"""An OpenSeeD as evaluation uses it: segments, boxes of its own, and what phrases mean."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipelines.evaluation.images import pixels_at
from pipelines.evaluation.model_predictor import found_instances
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictor import FoundBox, FoundSegments, ImageArray, SegmentsOnly
from xdecoder.batch import Vocabulary
from xdecoder.openseed import postprocess as openseed
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.postprocess import ImagePrediction
from xdecoder.openseed.questions import (
    Look,
    best_of_phrases,
    clipped,
    has_area,
    look,
    phrase_vectors,
    see,
)
from xdecoder.postprocess import cut_masks


class BoxPredictor(SegmentsOnly):
    """A `Predictor` around an OpenSeeD in evaluation mode, one image at a time.

    Boxes are cut to the image; `options.box_score` says whether their masks count for scores.
    """

    def __init__(self, model: OpenSeeD, *, options: EvaluationOptions) -> None:
        self._model = model
        self._options = options

    @property
    def kind(self) -> str:
        """What the model is."""
        return "an OpenSeeD"

    def segment(self, images: Sequence[ImageArray], vocabulary: Vocabulary) -> list[FoundSegments]:
        """Segments, semantic map, instances and boxes of each image."""
        model, templates = self._model, self._options.templates
        vectors = model.class_embeddings(model, vocabulary.names, templates=templates)
        return [
            self._segment(self._seen(image, self._look(image), vectors), vocabulary)
            for image in images
        ]

    @torch.no_grad()
    def refer(self, image: ImageArray, phrases: Sequence[str]) -> list[Bool[np.ndarray, "h w"]]:
        """The region of the query that each phrase fits best; every phrase on its own."""
        looked, regions = self._look(image), []
        for phrase in phrases:
            seen = self._seen(image, looked, phrase_vectors(self._model, [phrase]))
            queries = best_of_phrases(seen, 1)[1]
            regions.append(cut_masks(seen.masks, queries).regions[0].cpu().numpy())
        return regions

    def _look(self, image: ImageArray) -> Look:
        size_hw = self._options.input_hw((image.shape[0], image.shape[1]))
        return look(self._model, pixels_at(image, size_hw))

    def _seen(
        self, image: ImageArray, looked: Look, texts: Float[Tensor, "k d"]
    ) -> ImagePrediction:
        size_hw = (image.shape[0], image.shape[1])
        return see(self._model, looked, texts, size_hw, resize=self._options.resize)

    def _segment(self, seen: ImagePrediction, vocabulary: Vocabulary) -> FoundSegments:
        options = self._options
        panoptic = openseed.panoptic(
            seen,
            is_thing=vocabulary.is_thing,
            object_threshold=options.object_threshold,
            overlap_threshold=options.overlap_threshold,
        )
        instances = openseed.instances(
            seen,
            top_k=options.max_instances,
            is_thing=vocabulary.is_thing,
            minimum_score=options.minimum_score,
        )
        boxes: openseed.Detections | openseed.Instances = instances
        if options.box_score == "name":
            boxes = openseed.detections(
                seen,
                top_k=options.max_instances,
                is_thing=vocabulary.is_thing,
                minimum_score=options.minimum_score,
            )
        return FoundSegments(
            segment_ids=panoptic.ids.cpu().numpy().astype(np.int64),
            classes={segment.id: segment.class_id for segment in panoptic.segments},
            scores={segment.id: segment.score for segment in panoptic.segments},
            semantic=openseed.semantic_ids(seen).cpu().numpy(),
            instances=found_instances(instances),
            boxes=_found_boxes(boxes, seen.size_hw),
        )


def _found_boxes(
    found: openseed.Detections | openseed.Instances, size_hw: tuple[int, int]
) -> tuple[FoundBox, ...]:
    boxes = clipped(found.boxes_xyxy_px, size_hw)
    kept = has_area(boxes)
    corners = boxes[kept].double().tolist()
    sizes = [(x, y, right - x, bottom - y) for x, y, right, bottom in corners]
    ids, scores = found.class_ids[kept].tolist(), found.scores[kept].tolist()
    return tuple(FoundBox(*each) for each in zip(ids, scores, sizes, strict=True))
