"""An OpenSeeD's predictions for one image: maps, segments, instances and boxes.

Names compete only where pixels are given away: there, similarities are sharpened into shares.
Source: IDEA-Research/OpenSeeD, openseed_model.py (semantic, panoptic, instance inference).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xdecoder import full_size, postprocess
from xdecoder.full_size import FullSizeMasks
from xdecoder.openseed.boxes import xyxy
from xdecoder.openseed.outputs import BoxPrediction, OpenSeeDOutput
from xdecoder.postprocess import Instances, Panoptic, ResizeMode

# Source: PANO_TEMPERATURE of the released configurations
TEMPERATURE = 0.06


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """The last prediction for one image, at the size that the caller wants.

    scores: how well each of K names fits each query, 0..1 each on its own. num_foreground: the
    first queries; only they are objects.
    """

    scores: Float[Tensor, "q k"]
    boxes_xyxy_px: Float[Tensor, "q 4"]
    masks: FullSizeMasks
    num_foreground: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """The size that boxes and masks are at."""
        return self.masks.shape[1], self.masks.shape[2]

    def of_texts(self, texts: slice) -> "ImagePrediction":
        """The same about some of the texts."""
        return replace(self, scores=self.scores[:, texts])

    @property
    def shares(self) -> Float[Tensor, "q k1"]:
        """Scores as probabilities over the names, with a background at the end that never wins."""
        shares = (self.scores / TEMPERATURE).softmax(1)
        return torch.cat([shares, torch.zeros_like(shares[:, :1])], 1)


class Detections(NamedTuple):
    """Boxes with their names from the best to the worst, in pixels; query: the row they are of."""

    scores: Float[Tensor, " n"]
    class_ids: Int[Tensor, " n"]
    boxes_xyxy_px: Float[Tensor, "n 4"]
    query: Int[Tensor, " n"]


def image_prediction(
    output: OpenSeeDOutput,
    index: int,
    *,
    image_hw: tuple[int, int],
    out_hw: tuple[int, int],
    resize: ResizeMode = "bicubic_antialias",
) -> ImagePrediction:
    """What the model says of image `index`, its padding cut off, at `out_hw`.

    resize: how masks go from the size of the image to `out_hw`; up to there they grow bilinearly.
    """
    last = output.layers[-1]
    one = BoxPrediction(*(part[index : index + 1].float() for part in last))
    logits = torch.einsum(
        "qc,chw->qhw", one.mask_embeddings[0], output.mask_features[index].float()
    )
    masks = FullSizeMasks(
        logits,
        canvas_hw=output.canvas_hw,
        valid_hw=image_hw,
        out_hw=out_hw,
        mode=resize,
        canvas_mode="bilinear",
    )
    # boxes are shares of the padded image
    canvas = canvas_in_pixels(output.canvas_hw, image_hw=image_hw, out_hw=out_hw)
    boxes = xyxy(one.boxes_cxcywh01[0]) * logits.new_tensor(canvas)
    return ImagePrediction(
        scores=one.class_logits[0].sigmoid(),
        boxes_xyxy_px=boxes,
        masks=masks,
        num_foreground=output.num_foreground,
    )


def canvas_in_pixels(
    canvas_hw: tuple[int, int], *, image_hw: tuple[int, int], out_hw: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Width and height, twice, of a padded image whose unpadded part becomes `out_hw`."""
    width = canvas_hw[1] * out_hw[1] / image_hw[1]
    height = canvas_hw[0] * out_hw[0] / image_hw[0]
    return width, height, width, height


def semantic(prediction: ImagePrediction) -> Float[Tensor, "k h w"]:
    """How much each name speaks for each pixel."""
    return postprocess.semantic(prediction.shares, prediction.masks.whole())


def semantic_ids(prediction: ImagePrediction) -> Int[Tensor, "h w"]:
    """The name that speaks loudest for each pixel, as `semantic` scores them."""
    return full_size.semantic_ids(prediction.shares, prediction.masks)


def panoptic(
    prediction: ImagePrediction,
    *,
    is_thing: Sequence[bool],
    object_threshold: float = 0.25,
    overlap_threshold: float = 0.8,
) -> Panoptic:
    """Segments that do not overlap; queries take part whose best score passes the threshold."""
    is_kept = prediction.scores.max(1).values > object_threshold
    return postprocess.panoptic(
        prediction.shares[is_kept],
        prediction.masks.of(is_kept),
        is_thing=is_thing,
        object_threshold=-1.0,
        overlap_threshold=overlap_threshold,
    )


def detections(
    prediction: ImagePrediction,
    *,
    top_k: int = 100,
    is_thing: Sequence[bool] | None = None,
    minimum_score: float = 0.0,
) -> Detections:
    """The `top_k` best pairs of an object query and a name, then without stuff and faint ones."""
    scores = prediction.scores[: prediction.num_foreground]
    num_names = scores.shape[1]
    best, pairs = scores.flatten().topk(min(top_k, scores.numel()))
    queries, class_ids = pairs // num_names, pairs % num_names
    is_kept = best >= minimum_score
    if is_thing is not None:
        is_kept &= torch.tensor(list(is_thing), device=class_ids.device)[class_ids]
    queries = queries[is_kept]
    return Detections(best[is_kept], class_ids[is_kept], prediction.boxes_xyxy_px[queries], queries)


def instances(
    prediction: ImagePrediction,
    *,
    top_k: int = 100,
    is_thing: Sequence[bool] | None = None,
    minimum_score: float = 0.0,
) -> Instances:
    """Detections with masks; a score counts how sure the mask is of itself."""
    found = detections(prediction, top_k=top_k, is_thing=is_thing)
    cut = postprocess.cut_masks(prediction.masks, found.query)
    scores = found.scores * cut.quality[cut.place]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= minimum_score]
    return Instances(
        scores[order],
        found.class_ids[order],
        cut.regions[cut.place[order]],
        found.boxes_xyxy_px[order],
    )
