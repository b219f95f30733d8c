"""Losses of all predictions of an OpenSeeD: names, boxes and, where there are any, masks.

Source: IDEA-Research/OpenSeeD, openseed/modules/criterion.py and matcher.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from xdecoder.losses.dense_mask import focal_parts
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.mask import pairwise_terms, sampled_mask_terms
from xdecoder.losses.matching import Matching, assign, pad_targets
from xdecoder.losses.points import sample_points
from xdecoder.mask_former.criterion import pair_order
from xdecoder.openseed.boxes import generalised_iou, xyxy
from xdecoder.openseed.config import BoxLossConfig
from xdecoder.openseed.denoising import Conditions
from xdecoder.openseed.outputs import BoxPrediction, OpenSeeDOutput
from xdecoder.openseed.targets import BoxedTargets
from xdecoder.tasks.base import full_precision

_ALPHA, _COST_EPS = 0.25, 1e-6
# what a pair costs that must not come together
FORBIDDEN = 1e4
# a logit that costs nothing outside of a mask, and is never among the uncertain ones
_SURELY_OUTSIDE = -20.0


class BoxTerms(NamedTuple):
    """Unweighted sums of one prediction; mask and dice are None without masks."""

    label: Tensor
    box: Tensor
    giou: Tensor
    mask: Tensor | None
    dice: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Queries and the targets that they answer for, by image and then by query."""

    image_index: Int[Tensor, " n"]
    query_index: Int[Tensor, " n"]
    target: Int[Tensor, " n"]


class Named(NamedTuple):
    """The terms of one prediction and their matching, under the prediction's name.

    Names: `final`, `aux0` (before the layers) and so on, `selected`; with `/dn`, of disturbed
    targets. complaint: why the terms must not be trained on, else empty.
    """

    name: str
    terms: BoxTerms
    pairs: Pairs
    complaint: str = ""


def box_losses(
    output: OpenSeeDOutput,
    targets: BoxedTargets,
    draws: UniformSource,
    config: BoxLossConfig,
    *,
    conditions: Conditions | None = None,
    num_thing_queries: int | None = None,
) -> Iterator[Named]:
    """The terms of every prediction, in the order in which they draw their points.

    The last prediction first, then the others in order, at last the selected queries; disturbed
    targets after the prediction that they came with. num_thing_queries: the first queries may only
    be given to things, the others only to stuff; None: no such rule. Sums are over targets; what
    they are divided by is the caller's.
    """
    last = len(output.layers) - 1
    for layer in (last, *range(last)):
        name = "final" if layer == last else f"aux{layer}"
        yield _matched(
            name, output, output.layers[layer], targets, draws, config, num_thing_queries
        )
        if conditions is not None:
            given = output.denoised[layer]
            yield _restored(f"{name}/dn", output, given, targets, conditions, draws, config)
    selected = output.selected
    yield _matched("selected", output, selected, targets, draws, config, num_thing_queries)


def _matched(
    name: str,
    output: OpenSeeDOutput,
    prediction: BoxPrediction,
    targets: BoxedTargets,
    draws: UniformSource,
    config: BoxLossConfig,
    num_thing_queries: int | None,
) -> Named:
    prediction = BoxPrediction(*(full_precision(part) for part in prediction))
    cost = _cost(output, prediction, targets, draws, config)
    if num_thing_queries is not None:
        cost = _forbid(cost, targets, num_thing_queries)
    complaint = _complaint(name, cost, prediction)
    pairs = _assigned(cost, targets)
    label = _label_sum(prediction.class_logits, pairs, targets.class_ids[pairs.target])
    terms = _pair_terms(label, output, prediction, pairs, targets, draws, config)
    return Named(name, terms, pairs, complaint)


def _restored(
    name: str,
    output: OpenSeeDOutput,
    prediction: BoxPrediction,
    targets: BoxedTargets,
    conditions: Conditions,
    draws: UniformSource,
    config: BoxLossConfig,
) -> Named:
    """Terms of disturbed targets, whose queries are known; only these count for their names."""
    prediction = BoxPrediction(*(full_precision(part) for part in prediction))
    order = conditions.image_index.argsort(stable=True)
    pairs = Pairs(
        image_index=conditions.image_index[order],
        query_index=conditions.place[order],
        target=conditions.target[order],
    )
    logits = prediction.class_logits[pairs.image_index, pairs.query_index]  # [N, K]
    label = _one_hot_focal(logits, targets.class_ids[pairs.target]).mean(1).sum()
    label = label * conditions.count
    if not config.learns_conditioned_masks:
        targets = replace(targets, masks=None, has_mask=None, is_unknown=None)
    return Named(name, _pair_terms(label, output, prediction, pairs, targets, draws, config), pairs)


@torch.no_grad()
def _cost(
    output: OpenSeeDOutput,
    prediction: BoxPrediction,
    targets: BoxedTargets,
    draws: UniformSource,
    config: BoxLossConfig,
) -> Float[Tensor, "b q m"]:
    """What it costs to give a target to a query, targets padded to the most of an image."""
    ids = pad_targets(targets.class_ids, targets.counts)[:, None]  # [B, 1, M]
    boxes = pad_targets(targets.boxes_cxcywh01, targets.counts)[:, None]  # [B, 1, M, 4]
    probs = prediction.class_logits.sigmoid()
    if_one = _ALPHA * (1 - probs).square() * -(probs + _COST_EPS).log()
    if_zero = (1 - _ALPHA) * probs.square() * -(1 - probs + _COST_EPS).log()
    label = (if_one - if_zero).gather(2, ids.expand(-1, probs.shape[1], -1))
    predicted = prediction.boxes_cxcywh01[:, :, None]  # [B, Q, 1, 4]
    distance = (predicted - boxes).abs().sum(-1)
    overlap = generalised_iou(xyxy(predicted), xyxy(boxes))
    cost = config.label * label + config.box * distance - config.giou * overlap
    if targets.masks is None:
        return cost
    return cost + _mask_cost(output, prediction, targets, draws, config)


def _mask_cost(
    output: OpenSeeDOutput,
    prediction: BoxPrediction,
    targets: BoxedTargets,
    draws: UniformSource,
    config: BoxLossConfig,
) -> Float[Tensor, "b q m"]:
    assert targets.masks is not None
    features = full_precision(output.mask_features)
    num_points = config.points.num_for_matching
    points = torch.cat([draws.uniform(1, num_points, 2) for _ in features]).to(features)
    masks = targets.masks[:, None].to(features.dtype)
    at_points = sample_points(masks, points[targets.image_index])[:, 0]  # [M, P]
    logits = prediction.mask_embeddings @ sample_points(features, points)  # [B, Q, P]
    terms = pairwise_terms(logits, pad_targets(at_points, targets.counts))
    cost = config.mask * terms.bce + config.dice * terms.dice
    if targets.has_mask is None:
        return cost
    return cost * pad_targets(targets.has_mask, targets.counts)[:, None]


def _forbid(
    cost: Float[Tensor, "b q m"], targets: BoxedTargets, num_thing_queries: int
) -> Float[Tensor, "b q m"]:
    is_thing = pad_targets(targets.is_thing, targets.counts)[:, None]  # [B, 1, M]
    queries = torch.arange(cost.shape[1], device=cost.device)
    is_for_things = (queries < num_thing_queries)[None, :, None]
    return torch.where(is_thing == is_for_things, cost, FORBIDDEN)


def _complaint(name: str, cost: Tensor, prediction: BoxPrediction) -> str:
    if torch.isfinite(cost).all():
        return ""
    parts = prediction._asdict().items()
    bad = [part for part, tensor in parts if not torch.isfinite(tensor).all()]
    return (
        f"box_losses: matching costs must be finite; prediction {name} has inf or nan in "
        f"{', '.join(bad) or 'the mask features or the targets'}. Lower the learning rate or look "
        "at the last batch."
    )


def _assigned(cost: Float[Tensor, "b q m"], targets: BoxedTargets) -> Pairs:
    total = sum(targets.counts)
    query_index = torch.zeros(total, dtype=torch.long)
    is_matched = torch.zeros(total, dtype=torch.bool)
    assign(cost.cpu(), targets.counts, query_index, is_matched)
    device = cost.device
    matching = Matching(
        image_index=targets.image_index,
        query_index=query_index.to(device)[None],
        is_matched=is_matched.to(device)[None],
    )
    order = pair_order(matching)
    return Pairs(
        image_index=matching.image_index[order],
        query_index=matching.query_index[0, order],
        target=order,
    )


def _label_sum(
    logits: Float[Tensor, "b q k"], pairs: Pairs, class_ids: Int[Tensor, " n"]
) -> Tensor:
    """Focal terms of all queries and names; queries without a target have none of the names."""
    if_one, if_zero = focal_parts(logits)
    rows = (pairs.image_index, pairs.query_index, class_ids)
    return if_zero.sum() + (if_one - if_zero)[rows].sum()


def _one_hot_focal(
    logits: Float[Tensor, "n k"], class_ids: Int[Tensor, " n"]
) -> Float[Tensor, "n k"]:
    if_one, if_zero = focal_parts(logits)
    is_own: Bool[Tensor, "n k"] = (
        torch.arange(logits.shape[1], device=logits.device)[None] == class_ids[:, None]
    )
    return torch.where(is_own, if_one, if_zero)


def _pair_terms(
    label: Tensor,
    output: OpenSeeDOutput,
    prediction: BoxPrediction,
    pairs: Pairs,
    targets: BoxedTargets,
    draws: UniformSource,
    config: BoxLossConfig,
) -> BoxTerms:
    rows = (pairs.image_index, pairs.query_index)
    boxes = prediction.boxes_cxcywh01[rows]  # [N, 4]
    wanted = targets.boxes_cxcywh01[pairs.target]
    distance = (boxes - wanted).abs().sum()
    giou = (1 - generalised_iou(xyxy(boxes), xyxy(wanted))).sum()
    if targets.masks is None:
        # every parameter has a gradient also in a step without masks
        nothing = 0.0 * (prediction.mask_embeddings.sum() + output.mask_features.sum())
        return BoxTerms(label + nothing, distance, giou, None, None)
    # pairs come image by image
    per_image = torch.bincount(pairs.image_index, minlength=len(targets.counts)).tolist()
    features = full_precision(output.mask_features)
    maps = torch.cat(
        [
            torch.einsum("nc,chw->nhw", embeddings, map_)
            for embeddings, map_ in zip(
                prediction.mask_embeddings[rows].split(per_image), features, strict=True
            )
        ]
    )
    masks = targets.masks[pairs.target]
    if targets.is_unknown is not None:
        maps = _silenced(maps, masks, targets.is_unknown[pairs.target])
    terms = sampled_mask_terms(maps[:, None], masks, draws, config.points)
    counts = 1.0 if targets.has_mask is None else targets.has_mask[pairs.target][:, None]
    return BoxTerms(label, distance, giou, (terms.bce * counts).sum(), (terms.dice * counts).sum())


def _silenced(
    maps: Float[Tensor, "n h4 w4"],
    masks: Bool[Tensor, "n h w"],
    is_unknown: Bool[Tensor, "n h w"],
) -> Float[Tensor, "n h4 w4"]:
    """The maps as if they were right about unknown pixels."""
    size_hw = maps.shape[1:]
    own = F.adaptive_max_pool2d(masks[:, None].to(maps.dtype), size_hw)
    # a reading between two pixels is of both
    is_near = F.max_pool2d(own, kernel_size=3, stride=1, padding=1) > 0
    unknown = F.adaptive_max_pool2d(is_unknown[:, None].to(maps.dtype), size_hw) > 0
    return maps.masked_fill((unknown & ~is_near)[:, 0], _SURELY_OUTSIDE)
