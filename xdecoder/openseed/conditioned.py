"""Boxes and names in, masks out: what detection data lacks, decoded by the model itself.

The released program has neither part. Conditioned mask decoding: a target's name and box, as a
query, are decoded into its mask; it is learnt where masks are known. Online mask assistance: the
masks decoded so for boxes without masks supervise, as far as they fit.
Source: arXiv 2303.08131, sections 3.3 and 3.4; the cut to the box and the two measures of fitness
are ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from xdecoder.openseed.boxes import intersection_over_union, xyxy
from xdecoder.openseed.config import AssistanceConfig
from xdecoder.openseed.denoising import conditions
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.targets import BoxedTargets
from xdecoder.pixel_decoder import Pyramid
from xdecoder.postprocess import boxes_from_masks, mask_quality


class ConditionedMasks(NamedTuple):
    """Masks of given boxes, image after image: logits at stride 4, and how well the name fits."""

    mask_logits: Float[Tensor, "m h4 w4"]
    scores: Float[Tensor, " m"]


def conditioned_masks(
    model: OpenSeeD,
    pyramid: Pyramid,
    class_embeddings: Float[Tensor, "k d"],
    class_ids: Sequence[Int[Tensor, " _m"]],
    boxes_cxcywh01: Sequence[Float[Tensor, "_m 4"]],
    *,
    num_queries: int | None = None,
) -> ConditionedMasks:
    """The masks that the model gives to named boxes, which are shares of the padded image.

    num_queries: as in `BoxDecoder.forward`.
    """
    given = conditions(class_ids, boxes_cxcywh01, num_groups=1)
    features = pyramid.mask_features
    output = model.decode(pyramid, class_embeddings, conditions=given, num_queries=num_queries)
    last = output.denoised[-1]
    rows = (given.image_index, given.place)
    embeddings = last.mask_embeddings[rows].split([len(ids) for ids in class_ids])
    masks = [
        torch.einsum("mc,chw->mhw", image_rows, map_)
        for image_rows, map_ in zip(embeddings, features, strict=True)
    ]
    own = torch.cat(list(class_ids))
    scores = last.class_logits[rows].sigmoid().gather(1, own[:, None])[:, 0]
    return ConditionedMasks(torch.cat(masks), scores)


@torch.no_grad()
def assisted(
    model: OpenSeeD,
    pyramid: Pyramid,
    class_embeddings: Float[Tensor, "k d"],
    targets: BoxedTargets,
    config: AssistanceConfig,
    canvas_hw: tuple[int, int],
) -> BoxedTargets:
    """The targets with the masks that the model decodes for them, where these are good enough.

    A mask counts if the box around it is nearly the given one (and, if asked for, if it is sure of
    itself); how well the name fits says nothing, because the query is made of the name. Such a mask
    is cut to its box, outside of which there is nothing of the target. In a box whose mask does not
    count nobody knows whose a pixel is, so it is unknown to the other targets of the image: as a
    piece of their outside it would teach that what has no masks yet has none.
    """
    found = conditioned_masks(
        model,
        pyramid,
        class_embeddings,
        targets.per_image(targets.class_ids),
        targets.per_image(targets.boxes_cxcywh01),
    )
    height, width = canvas_hw
    size_px = targets.boxes_cxcywh01.new_tensor([width, height, width, height])
    boxes_px = xyxy(targets.boxes_cxcywh01) * size_px
    maps = found.mask_logits[:, None].float()  # [M, 1, H/4, W/4]
    logits = F.interpolate(maps, size=canvas_hw, mode="bilinear")[:, 0]
    fit = intersection_over_union(boxes_from_masks(logits > 0), boxes_px)
    is_inside = inside_boxes(boxes_px, canvas_hw)
    logits = logits.masked_fill(~is_inside, float("-inf"))
    masks: Bool[Tensor, "m h w"] = logits > 0
    is_good = (fit >= config.minimum_iou) & (mask_quality(logits) >= config.minimum_quality)
    return replace(
        targets,
        masks=masks,
        has_mask=is_good,
        is_unknown=_in_boxes_without(is_good, is_inside, targets) & ~masks,
    )


def _in_boxes_without(
    is_good: Bool[Tensor, " m"], is_inside: Bool[Tensor, "m h w"], targets: BoxedTargets
) -> Bool[Tensor, "m h w"]:
    """Which pixels lie, in each target's image, in a box whose mask is not good."""
    images = zip(targets.per_image(is_inside), targets.per_image(is_good), strict=True)
    return torch.cat([boxes[~good].any(0).expand(len(good), -1, -1) for boxes, good in images])


def inside_boxes(
    boxes_xyxy_px: Float[Tensor, "m 4"], size_hw: tuple[int, int]
) -> Bool[Tensor, "m h w"]:
    """Which pixels have their centre in each box."""
    first, last = boxes_xyxy_px[:, :2], boxes_xyxy_px[:, 2:]
    in_axis = []
    for axis, length in ((1, size_hw[0]), (0, size_hw[1])):
        centres = torch.arange(length, device=boxes_xyxy_px.device) + 0.5
        in_axis.append((centres >= first[:, axis, None]) & (centres <= last[:, axis, None]))
    rows, columns = in_axis
    return rows[:, :, None] & columns[:, None]
