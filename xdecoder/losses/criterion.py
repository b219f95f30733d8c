"""Terms that compare matched queries with their targets, for all decoder layers at once.

Letters: L layers, B batch, Q queries, M targets of the whole batch (image after image).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from xdecoder.losses.draws import UniformSource
from xdecoder.losses.mask import MaskTerms, mask_iou, sampled_mask_terms
from xdecoder.losses.matching import Matching
from xdecoder.losses.points import PointSampling


def label_terms(
    log_probs: Float[Tensor, "l b q k"],
    class_ids: Int[Tensor, " m"],
    matching: Matching,
    background_weight: float,
) -> Float[Tensor, " l"]:
    """Weighted sum of the classification cross-entropy per layer; the last class is background.

    The sum of the weights that belongs below it is `label_weight`.
    """
    num_layers, num_images, num_queries, num_classes = log_probs.shape
    targets = class_ids.new_full((num_layers, num_images, num_queries), num_classes - 1)
    layers, columns = matching.is_matched.nonzero(as_tuple=True)
    images = matching.image_index[columns]
    targets[layers, images, matching.query_index[layers, columns]] = class_ids[columns]
    weights = log_probs.new_ones(num_classes)
    weights[-1] = background_weight
    chosen = log_probs.gather(3, targets.unsqueeze(3)).squeeze(3)  # [L, B, Q]
    return -(chosen * weights[targets]).sum((1, 2))


def label_weight(counts: Sequence[int], num_queries: int, background_weight: float) -> float:
    """Sum of the weights in `label_terms`, known before the model runs."""
    num_matched = sum(min(count, num_queries) for count in counts)
    return num_matched + background_weight * (len(counts) * num_queries - num_matched)


def matched_rows(rows: Float[Tensor, "l b q c"], matching: Matching) -> Float[Tensor, "m l c"]:
    """The row of the query that each target was given, in every layer."""
    layers = torch.arange(len(rows), device=rows.device)[:, None]
    return rows[layers, matching.image_index[None], matching.query_index].transpose(0, 1)


def matched_maps(
    mask_embeddings: Float[Tensor, "l b q c"],
    mask_features: Float[Tensor, "b c h w"],
    matching: Matching,
    counts: Sequence[int],
) -> Float[Tensor, "m l h w"]:
    """The mask logits of the query that each target was given, in every layer."""
    rows = matched_rows(mask_embeddings, matching)  # [M, L, C]
    # mask maps are made for matched queries only, image by image, never for all queries
    maps = [
        image_rows @ features.flatten(1)
        for image_rows, features in zip(rows.split(list(counts)), mask_features, strict=True)
    ]
    return torch.cat(maps).unflatten(2, mask_features.shape[2:])  # [M, L, h, w]


def matched_mask_terms(
    mask_embeddings: Float[Tensor, "l b q c"],
    mask_features: Float[Tensor, "b c h w"],
    targets: Shaped[Tensor, "m ht wt"],
    matching: Matching,
    counts: Sequence[int],
    draws: UniformSource,
    sampling: PointSampling,
    *,
    is_in_query_order: bool = False,
) -> MaskTerms:
    """Cross-entropy and dice [M, L] of each target's mask; zero where it has no query.

    is_in_query_order: for a single layer; points are drawn for masks in the order of their
    queries, and only for targets that have one, as the released programs draw them.
    """
    logits = matched_maps(mask_embeddings, mask_features, matching, counts)
    if is_in_query_order:
        return _terms_in_query_order(logits, targets, matching, draws, sampling)
    terms = sampled_mask_terms(logits, targets, draws, sampling)
    is_matched = matching.is_matched.T
    return MaskTerms(terms.bce * is_matched, terms.dice * is_matched)


def _terms_in_query_order(
    logits: Float[Tensor, "m 1 h w"],
    targets: Shaped[Tensor, "m ht wt"],
    matching: Matching,
    draws: UniformSource,
    sampling: PointSampling,
) -> MaskTerms:
    matched = matching.is_matched[0].nonzero().squeeze(1)
    queries = matching.query_index[0, matched]
    # image by image, and within an image query by query
    largest = queries.max() + 1 if len(queries) else 1
    matched = matched[(matching.image_index[matched] * largest + queries).argsort()]
    terms = sampled_mask_terms(logits[matched], targets[matched], draws, sampling)
    empty = logits.new_zeros(len(logits), 1)
    return MaskTerms(*(empty.index_put((matched,), part) for part in terms))


def grounding_terms(
    similarities: Float[Tensor, "m l q"], matching: Matching, text_ids: Int[Tensor, " m"]
) -> Float[Tensor, "m l"]:
    """Cross-entropy of each phrase over the grounding queries of its image.

    Phrases of an image with equal texts share the queries that they were given.
    """
    query_index = matching.query_index.T.unsqueeze(0)  # [1, M, L]
    num_phrases, num_layers = similarities.shape[:2]
    log_probs = similarities.log_softmax(2).transpose(1, 2)  # [M, Q, L]
    # entry [p, p', l]: what phrase p gives to the query of phrase p'
    crossed = log_probs.gather(1, query_index.expand(num_phrases, -1, num_layers))
    is_same = (text_ids[:, None] == text_ids[None]) & (
        matching.image_index[:, None] == matching.image_index[None]
    )
    shares = is_same.unsqueeze(2) & matching.is_matched.T.unsqueeze(0)  # [M, M, L]
    return -(crossed * shares).sum(1) / shares.sum(1).clamp(min=1)


class RegionPairs(NamedTuple):
    """Which phrase describes which segment, as indices into the targets of the whole batch."""

    segment: Int[Tensor, " n"]
    phrase: Int[Tensor, " n"]


def describe_segments(
    segment_masks: Sequence[Bool[Tensor, "_m h w"]],
    phrase_masks: Sequence[Bool[Tensor, "_p h w"]],
    minimum_iou: float,
) -> RegionPairs:
    """The segment that each phrase's mask covers; phrases that cover no single one are left out."""
    segments, phrases = [], []
    first_segment = first_phrase = 0
    for masks, described in zip(segment_masks, phrase_masks, strict=True):
        if len(masks) and len(described):
            iou, best = mask_iou(described, masks).max(1)
            index = (iou >= minimum_iou).nonzero().squeeze(1)
            segments.append(best[index] + first_segment)
            phrases.append(index + first_phrase)
        first_segment += len(masks)
        first_phrase += len(described)
    if not segments:
        empty = torch.zeros(0, dtype=torch.long, device=segment_masks[0].device)
        return RegionPairs(empty, empty)
    return RegionPairs(torch.cat(segments), torch.cat(phrases))
