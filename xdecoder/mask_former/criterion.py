"""Losses of all predictions of a MaskFormer or Mask2Former."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xdecoder.batch import SegmentTargets
from xdecoder.losses.criterion import label_terms, matched_maps
from xdecoder.losses.dense_mask import dense_mask_terms, pairwise_pixel_terms, shrunk_masks
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.mask import pad_masks, pairwise_terms, sampled_mask_terms
from xdecoder.losses.matching import Matching, MatchingCosts, match, pad_targets
from xdecoder.losses.points import sample_points
from xdecoder.mask_former.config import MaskLossConfig
from xdecoder.mask_former.outputs import MaskOutput
from xdecoder.tasks.base import full_precision


class MaskLosses(NamedTuple):
    """Unweighted terms of every prediction in the order of its layers, and their matchings."""

    ce: Float[Tensor, " l"]
    mask: Float[Tensor, " l"]
    dice: Float[Tensor, " l"]
    matchings: tuple[Matching, ...]


@dataclass(frozen=True, kw_only=True)
class _Targets:
    """Segments of all images one after another, at the size of the canvas."""

    masks: Bool[Tensor, "m h w"]
    class_ids: Int[Tensor, " m"]
    counts: tuple[int, ...]
    image_index: Int[Tensor, " m"]


def mask_losses(
    output: MaskOutput,
    segments: Sequence[SegmentTargets],
    draws: UniformSource,
    config: MaskLossConfig,
    divide: Mapping[str, Tensor | float],
) -> MaskLosses:
    """Terms of every prediction; the last one draws its points first, then the others in order.

    divide: what sums are divided by: `label_weight` and `segments`.
    Source: SetCriterion.forward in criterion.py of MaskFormer and Mask2Former.
    """
    targets = _targets(segments, output.canvas_hw)
    num_layers = len(output.layers)
    found: dict[int, tuple[Tensor, Tensor, Tensor, Matching]] = {}
    for layer in (num_layers - 1, *range(num_layers - 1)):
        found[layer] = _layer_losses(output, layer, targets, draws, config)
    labels, masks, dices, matchings = zip(*(found[i] for i in range(num_layers)), strict=True)
    return MaskLosses(
        torch.stack(labels) / divide["label_weight"],
        torch.stack(masks) / divide["segments"],
        torch.stack(dices) / divide["segments"],
        matchings,
    )


def _layer_losses(
    output: MaskOutput,
    layer: int,
    targets: _Targets,
    draws: UniformSource,
    config: MaskLossConfig,
) -> tuple[Tensor, Tensor, Tensor, Matching]:
    prediction = output.layers[layer]
    log_probs = full_precision(prediction.class_logits).log_softmax(2)[None]  # [1, B, Q, K+1]
    embeddings = full_precision(prediction.mask_embeddings)[None]  # [1, B, Q, M]
    features = full_precision(output.mask_features)
    point_features, point_targets = _compared_places(features, targets, draws, config)
    padded_ids = pad_targets(targets.class_ids, targets.counts)[None, :, None]  # [1, B, 1, M]
    shape = (*log_probs.shape[:3], padded_ids.shape[3])
    matching = match(
        label_probs=log_probs.detach().exp().gather(3, padded_ids.expand(shape)),
        mask_embeddings=embeddings.detach(),
        point_features=point_features,
        point_targets=point_targets,
        counts=targets.counts,
        costs=MatchingCosts(label=config.ce, bce=config.mask, dice=config.dice),
        pairwise=pairwise_terms if config.kind == "points" else pairwise_pixel_terms,
    )
    label = label_terms(log_probs, targets.class_ids, matching, config.background)[0]
    maps = matched_maps(embeddings, features, matching, targets.counts)[:, 0]  # [M, h, w]
    order = pair_order(matching)
    maps, masks = maps[order], targets.masks[order]
    if config.kind == "points":
        terms = sampled_mask_terms(maps[:, None], masks, draws, config.points)
    else:
        terms = dense_mask_terms(maps, masks)
    return label, terms.bce.sum(), terms.dice.sum(), matching


def pair_order(matching: Matching) -> Int[Tensor, " n"]:
    """Targets that have a query, by image and then by query.

    That is the order of the official pairs, so that equal draws fall to equal pairs.
    """
    is_matched, queries = matching.is_matched[0], matching.query_index[0]
    key = matching.image_index * (queries.max() + 1 if len(queries) else 1) + queries
    order = key.argsort(stable=True)
    return order[is_matched[order]]


def _compared_places(
    features: Float[Tensor, "b c h w"],
    targets: _Targets,
    draws: UniformSource,
    config: MaskLossConfig,
) -> tuple[Float[Tensor, "b c p"], Float[Tensor, "b m p"]]:
    """Where queries are matched: mask features and targets at fresh points, or at every pixel."""
    features = features.detach()
    if config.kind == "dense":
        size_hw = (features.shape[2], features.shape[3])
        small = shrunk_masks(targets.masks, size_hw).to(features.dtype)
        return features.flatten(2), pad_targets(small.flatten(1), targets.counts)
    num_points = config.points.num_for_matching
    points = torch.cat([draws.uniform(1, num_points, 2) for _ in features]).to(features.device)
    masks = targets.masks[:, None].to(features.dtype)
    at_points = sample_points(masks, points[targets.image_index])[:, 0]  # [M, P]
    return sample_points(features, points), pad_targets(at_points, targets.counts)


def _targets(segments: Sequence[SegmentTargets], canvas_hw: tuple[int, int]) -> _Targets:
    counts = tuple(len(image.class_ids) for image in segments)
    masks = pad_masks(torch.cat([image.masks for image in segments]), canvas_hw)
    image_index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return _Targets(
        masks=masks,
        class_ids=torch.cat([image.class_ids for image in segments]),
        counts=counts,
        image_index=image_index.to(masks.device),
    )
