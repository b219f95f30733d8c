"""A model with a fixed list of classes as evaluation and prediction use it: it segments, only."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.data.coco import Category
from pipelines.errors import ConfigError
from pipelines.evaluation.images import pixels_at
from pipelines.evaluation.model_predictor import found_instances
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictor import FoundSegments, ImageArray, SegmentsOnly
from xdecoder import postprocess
from xdecoder.batch import Vocabulary
from xdecoder.full_size import semantic_ids
from xdecoder.mask_former.model import MaskFormer
from xdecoder.mask_former.task import predict


class MaskPredictor(SegmentsOnly):
    """A `Predictor` around MaskFormer or Mask2Former in evaluation mode.

    A vocabulary chooses among the model's classes by name, in any order; names that the model does
    not have are never found. Images are fitted into `options.size_hw`, keeping their shape.
    """

    def __init__(self, model: MaskFormer, *, options: EvaluationOptions) -> None:
        self._model = model
        self._options = options

    @property
    def kind(self) -> str:
        """What the model is."""
        return "a model with a fixed list of classes"

    def segment(self, images: Sequence[ImageArray], vocabulary: Vocabulary) -> list[FoundSegments]:
        """Segments, semantic map and instances of each image.

        Raises:
            ConfigError: the model has none of the vocabulary's classes.
        """
        columns = known_classes(self._model.class_names, vocabulary.names)
        return [self._segment(image, vocabulary, columns) for image in images]

    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, columns: Sequence[int]
    ) -> FoundSegments:
        options = self._options
        size_hw = (image.shape[0], image.shape[1])
        result = predict(self._model, pixels_at(image, options.input_hw(size_hw)), size_hw)
        probs = _probs_of(result.class_probs, columns)
        panoptic = postprocess.panoptic(
            probs,
            result.masks,
            is_thing=vocabulary.is_thing,
            object_threshold=options.object_threshold,
            overlap_threshold=options.overlap_threshold,
            keeps_faint_pixels=options.keeps_faint_pixels,
        )
        found = postprocess.instances(
            probs,
            result.masks,
            top_k=options.max_instances,
            is_thing=vocabulary.is_thing,
            # classes that the model does not have score 0
            minimum_score=max(options.minimum_score, torch.finfo(probs.dtype).tiny),
        )
        return FoundSegments(
            segment_ids=panoptic.ids.cpu().numpy().astype(np.int64),
            classes={segment.id: segment.class_id for segment in panoptic.segments},
            scores={segment.id: segment.score for segment in panoptic.segments},
            semantic=semantic_ids(probs, result.masks).cpu().numpy(),
            instances=found_instances(found),
        )


def known_classes(class_names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The place of each wanted name in a list of classes, -1 where it has none.

    Names may be written as in COCO's files or as `Category.prompt` shortens them.

    Raises:
        ConfigError: not one of the names is known.
    """
    place_of = {_short(name): place for place, name in enumerate(class_names)}
    place_of |= {name: place for place, name in enumerate(class_names)}
    places = [place_of.get(name, place_of.get(_short(name), -1)) for name in wanted]
    if all(place < 0 for place in places):
        raise ConfigError(
            f"the model must know one of the {len(wanted)} classes asked for; it has "
            f"{len(class_names)} of its own: {', '.join(class_names[:5]) or 'none with a name'}. "
            "Name some of these."
        )
    return places


def _short(name: str) -> str:
    return Category(id=0, name=name, is_thing=True).prompt


def _probs_of(class_probs: Float[Tensor, "q k1"], columns: Sequence[int]) -> Float[Tensor, "q v1"]:
    """Probabilities of the wanted classes and, last, of `no object`; 0 for unknown ones."""
    index = torch.tensor([*columns, class_probs.shape[1] - 1], device=class_probs.device)
    return torch.where(index >= 0, class_probs[:, index.clamp(min=0)], 0.0)
