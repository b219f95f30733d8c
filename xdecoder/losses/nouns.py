"""Nouns of captions and latent queries: which query gets which, and the contrast of all.

Letters: L layers, B batch, Q queries, M segments and N texts of the whole batch, image by image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xdecoder.losses.contrastive import contrastive_terms, cosine, first_of_equals
from xdecoder.losses.matching import Matching, cheapest_pairs
from xdecoder.losses.world import World


@dataclass(frozen=True, kw_only=True)
class NamedVectors:
    """Sentence vectors of texts and the identity of each; equal ids mean the same thing."""

    vectors: Float[Tensor, "n c"]
    ids: Int[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class TextMatching:
    """Pairs of a latent query and a text, image after image, each in the order of its queries."""

    image_index: Int[Tensor, " p"]
    query_index: Int[Tensor, " p"]
    text_index: Int[Tensor, " p"]


@torch.no_grad()
def match_free_queries(
    embeddings: Float[Tensor, "b q c"],
    is_taken: Bool[Tensor, "b q"],
    texts: Float[Tensor, "n c"],
    counts: Sequence[int],
    scale: Float[Tensor, ""],
    label_cost: float,
) -> TextMatching:
    """The cheapest assignment of each image's texts to its queries that are not taken.

    A text is the likelier for a query the more it stands out among the texts of all images of the
    batch. Where an image has more texts than free queries, some texts get none.
    """
    probs = (scale * cosine(embeddings, texts)).softmax(-1).cpu()  # [B, Q, N]
    is_free = ~is_taken.cpu()
    pairs = []
    first = 0
    for image, count in enumerate(counts):
        free = is_free[image].nonzero().squeeze(1)
        rows, columns = cheapest_pairs(-label_cost * probs[image, free, first : first + count])
        pairs.append(torch.stack([torch.full_like(rows, image), free[rows], columns + first]))
        first += count
    image_index, query_index, text_index = torch.cat(pairs, dim=1).to(embeddings.device)
    return TextMatching(image_index=image_index, query_index=query_index, text_index=text_index)


def noun_terms(
    embeddings: Float[Tensor, "l b q c"],
    matching: Matching,
    classes: NamedVectors,
    nouns: NamedVectors,
    counts: Sequence[int],
    *,
    scale: Float[Tensor, ""],
    label_cost: float,
    region_share: float,
    cuts_noun_gradient: bool,
    world: World,
) -> Float[Tensor, " l"]:
    """Contrast of queries with the texts that they were given, over all processes, per layer.

    matching: of segments, whose class names `classes` holds; counts: nouns of each image.
    cuts_noun_gradient: queries that were given nouns learn nothing, as in the released program.
    Source: loss_captions of microsoft/X-Decoder, modeling/modules/criterion.py.
    """
    values = []
    for layer, rows in enumerate(embeddings):
        is_matched = matching.is_matched[layer]
        images = matching.image_index[is_matched]
        queries = matching.query_index[layer, is_matched]
        # where equal texts meet, the one of the first query counts
        order = (images * rows.shape[1] + queries).argsort()
        images, queries = images[order], queries[order]
        segments = is_matched.nonzero().squeeze(1)[order]
        is_taken = torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
        is_taken[images, queries] = True
        given = match_free_queries(rows, is_taken, nouns.vectors, counts, scale, label_cost)
        with_nouns = rows[given.image_index, given.query_index]
        if cuts_noun_gradient:
            with_nouns = with_nouns.detach()
        regions = torch.cat([with_nouns, rows[images, queries]])
        texts = torch.cat([nouns.vectors[given.text_index], classes.vectors[segments]])
        ids = torch.cat([nouns.ids[given.text_index], classes.ids[segments]])
        values.append(_contrast(regions, texts, ids, scale, region_share, world))
    return torch.stack(values)


def _contrast(
    regions: Tensor, texts: Tensor, ids: Tensor, scale: Tensor, region_share: float, world: World
) -> Tensor:
    regions, texts, ids = world.gather(regions), world.gather(texts), world.gather(ids)
    columns = first_of_equals(ids)
    is_same = ids[:, None] == ids[columns][None]
    return contrastive_terms(regions[None], texts[columns], is_same, scale, region_share)[0]
