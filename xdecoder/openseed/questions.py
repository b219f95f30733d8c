"""An OpenSeeD asked about one picture: with names, with phrases, or with boxes that want masks.

A phrase is a name in its own words: what the text encoder reads is the phrase alone, where a name
stands in templates. The original has no phrases; that they are asked so is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xdecoder.full_size import FullSizeMasks
from xdecoder.images import ImageArray, ImageFit
from xdecoder.openseed.boxes import cxcywh
from xdecoder.openseed.conditioned import conditioned_masks, inside_boxes
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.postprocess import ImagePrediction, canvas_in_pixels, image_prediction
from xdecoder.pixel_decoder import Pyramid
from xdecoder.postprocess import ResizeMode, mask_quality
from xdecoder.text.prompts import PLAIN_TEMPLATES, sentence_embeddings

Box = tuple[float, float, float, float]


class FoundMasks(NamedTuple):
    """The mask of each given box, in their order; scores: how sure each is of itself, 0..1."""

    names: tuple[str, ...]
    boxes_xyxy_px: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]


@dataclass(frozen=True, kw_only=True)
class MasksOfBoxes:
    """The masks of boxes that somebody drew, each with the name of what is inside.

    boxes_xyxy_px: in pixels of the upright picture, ends past the last pixel; what lies outside is
    cut off, and so is what a mask has outside of its box. fit: None for the model's own. All boxes
    of a call see each other.
    """

    boxes_xyxy_px: tuple[Box, ...]
    names: tuple[str, ...]
    fit: ImageFit | None = None

    def __post_init__(self) -> None:
        if len(self.boxes_xyxy_px) != len(self.names):
            raise ValueError(
                "MasksOfBoxes: each box must have a name; got "
                f"{len(self.boxes_xyxy_px)} boxes and {len(self.names)} names."
            )

    def ask(self, model: OpenSeeD, image: ImageArray) -> FoundMasks:
        """Raises: ValueError for a box that has no pixel of the picture."""
        size_hw = (image.shape[0], image.shape[1])
        given = torch.tensor(self.boxes_xyxy_px, dtype=torch.float32).reshape(-1, 4)
        boxes = clipped(given, size_hw)
        for place in (~has_area(boxes)).nonzero()[:, 0].tolist():
            raise ValueError(
                f"MasksOfBoxes: box {place} must be x, y, x, y with an area inside the picture of "
                f"{size_hw[1]} x {size_hw[0]} pixels; got {self.boxes_xyxy_px[place]}."
            )
        if not self.names:
            return FoundMasks((), boxes, boxes.new_zeros(0), torch.zeros(0, *size_hw) > 0)
        return self._decoded(model, image, boxes.to(model.logit_scale.device), size_hw)

    def _decoded(
        self, model: OpenSeeD, image: ImageArray, boxes: Tensor, size_hw: tuple[int, int]
    ) -> FoundMasks:
        own = model.prediction
        looked = look(model, (self.fit or own.segmentation).pixels(image))
        canvas = canvas_in_pixels(looked.canvas_hw, image_hw=looked.image_hw, out_hw=size_hw)
        shares = boxes / boxes.new_tensor(canvas)
        distinct = tuple(dict.fromkeys(self.names))
        ids = torch.tensor([distinct.index(name) for name in self.names], device=boxes.device)
        found = conditioned_masks(
            model,
            looked.pyramid,
            name_vectors(model, distinct),
            [ids],
            [cxcywh(shares)],
            num_queries=looked.num_queries(model),
        )
        masks = FullSizeMasks(
            found.mask_logits.float(),
            canvas_hw=looked.canvas_hw,
            valid_hw=looked.image_hw,
            out_hw=size_hw,
            mode=own.mask_resize,
            canvas_mode="bilinear",
        )
        regions = torch.zeros(masks.shape, dtype=torch.bool, device=boxes.device)
        scores = boxes.new_zeros(len(boxes))
        for row, box in enumerate(boxes):
            is_inside = inside_boxes(box[None], size_hw)
            logits = masks[row].masked_fill(~is_inside, float("-inf"))
            regions[row], scores[row] = logits[0] > 0, mask_quality(logits)[0]
        return FoundMasks(self.names, boxes, scores, regions)


def name_vectors(model: OpenSeeD, names: Sequence[str]) -> Float[Tensor, "k d"]:
    """Unit vectors of names in the model's own templates, kept for the next picture."""
    return model.class_embeddings(model, names, templates=model.prediction.templates)


def phrase_vectors(model: OpenSeeD, phrases: Sequence[str]) -> Float[Tensor, "p d"]:
    """Unit vectors of phrases, each in its own words and with one full stop."""
    template = PLAIN_TEMPLATES[0]
    return sentence_embeddings(model, [template.format(each.rstrip(" .")) for each in phrases])


def see_texts(
    model: OpenSeeD,
    image: ImageArray,
    names: Sequence[str],
    phrases: Sequence[str] = (),
    *,
    fit: ImageFit | None = None,
) -> ImagePrediction:
    """What the model sees of the names and, after them, of the phrases, at the picture's size."""
    own = model.prediction
    vectors = [name_vectors(model, names)] if names else []
    vectors += [phrase_vectors(model, phrases)] if phrases else []
    looked = look(model, (fit or own.segmentation).pixels(image))
    size_hw = (image.shape[0], image.shape[1])
    return see(model, looked, torch.cat(vectors), size_hw, resize=own.mask_resize)


class Look(NamedTuple):
    """What the image side makes of a picture, and the size at which it saw it."""

    pyramid: Pyramid
    image_hw: tuple[int, int]

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """The size with the padding that the model added."""
        height, width = self.pyramid.mask_features.shape[2:]
        return 4 * height, 4 * width

    def num_queries(self, model: OpenSeeD) -> int:
        """As many as the model has, or as the picture has places, where these are fewer."""
        places = sum(level.shape[2] * level.shape[3] for level in self.pyramid.levels)
        return min(model.decoder.num_queries, places)


@torch.no_grad()
def look(model: OpenSeeD, pixels: Float[Tensor, "3 h w"]) -> Look:
    """What `see` reads of RGB pixels in 0..255, whatever the texts."""
    pyramid = model.encode_images(pixels[None].to(model.logit_scale.device))
    return Look(pyramid, (pixels.shape[1], pixels.shape[2]))


@torch.no_grad()
def see(
    model: OpenSeeD,
    looked: Look,
    texts: Float[Tensor, "k d"],
    out_hw: tuple[int, int],
    *,
    resize: ResizeMode,
) -> ImagePrediction:
    """What the model says when asked for some texts, at `out_hw`."""
    output = model.decode(looked.pyramid, texts, num_queries=looked.num_queries(model))
    return image_prediction(output, 0, image_hw=looked.image_hw, out_hw=out_hw, resize=resize)


def best_of_phrases(
    seen: ImagePrediction, num_phrases: int
) -> tuple[Float[Tensor, " p"], Int[Tensor, " p"]]:
    """The best score of each phrase, which stand last among the texts, and the query that has it.

    Learned queries take part: a phrase may mean stuff. Scores are 0 where no box is in the picture.
    """
    first = seen.scores.shape[1] - num_phrases
    is_outside = ~has_area(clipped(seen.boxes_xyxy_px, seen.size_hw))
    scores, queries = seen.scores[:, first:].masked_fill(is_outside[:, None], 0.0).max(0)
    return scores, queries


def clipped(boxes_xyxy_px: Float[Tensor, "n 4"], size_hw: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """The parts of boxes that lie in a picture of this size."""
    height, width = size_hw
    return boxes_xyxy_px.clamp(min=0).minimum(boxes_xyxy_px.new_tensor([width, height] * 2))


def has_area(boxes_xyxy_px: Float[Tensor, "n 4"]) -> Bool[Tensor, " n"]:
    """Which boxes are wider and higher than nothing; one that is no number is not."""
    return (boxes_xyxy_px[:, 2:] > boxes_xyxy_px[:, :2]).all(1)
