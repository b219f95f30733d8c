"""Referring segmentation: the mask of what a phrase names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xdecoder.images import ImageArray, ImageFit
from xdecoder.losses.contrastive import cosine
from xdecoder.model import XDecoder
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.questions import best_of_phrases, see_texts
from xdecoder.outputs import ImageFeatures
from xdecoder.postprocess import ResizeMode, boxes_from_masks, cut_masks, mask_quality
from xdecoder.queries import QuerySet
from xdecoder.tasks.base import full_precision
from xdecoder.tasks.masks import image_masks
from xdecoder.tasks.texts import EncodedTexts, encode_distinct

# phrases decoded at once when each is asked alone
PHRASES_PER_CALL = 32


class FoundRegions(NamedTuple):
    """The region of each phrase, in the order of the phrases, and the box around it.

    scores: mean mask probability inside; 0 where a phrase has no pixel.
    """

    phrases: tuple[str, ...]
    masks: Bool[Tensor, "p h w"]
    scores: Float[Tensor, " p"]
    boxes_xyxy_px: Float[Tensor, "p 4"]


@dataclass(frozen=True, kw_only=True)
class Referring:
    """What each phrase means, all phrases in one pass over the image.

    is_joint: the phrases see each other, as the released X-Decoder asks them; None and fit=None:
    as the model is used to. An OpenSeeD gives each phrase the mask of the query that it fits best.
    """

    phrases: tuple[str, ...]
    fit: ImageFit | None = None
    is_joint: bool | None = None

    def ask(self, model: XDecoder | OpenSeeD, image: ImageArray) -> FoundRegions:
        if isinstance(model, OpenSeeD):
            return self._of_best_queries(model, image)
        own, size_hw = model.prediction, (image.shape[0], image.shape[1])
        logits = predict(
            model,
            (self.fit or own.referring).pixels(image),
            self.phrases,
            size_hw,
            is_joint=own.asks_phrases_together if self.is_joint is None else self.is_joint,
            resize=own.mask_resize,
        )
        masks = logits > 0
        return FoundRegions(
            tuple(self.phrases), masks, mask_quality(logits), boxes_from_masks(masks)
        )

    def _of_best_queries(self, model: OpenSeeD, image: ImageArray) -> FoundRegions:
        if not self.phrases:
            none = torch.zeros(0, image.shape[0], image.shape[1], dtype=torch.bool)
            return FoundRegions((), none, torch.zeros(0), boxes_from_masks(none))
        seen = see_texts(model, image, (), self.phrases, fit=self.fit or model.prediction.referring)
        cut = cut_masks(seen.masks, best_of_phrases(seen, len(self.phrases))[1])
        masks = cut.regions[cut.place]
        return FoundRegions(
            tuple(self.phrases), masks, cut.quality[cut.place], boxes_from_masks(masks)
        )


@torch.no_grad()
def predict(
    model: XDecoder,
    image: Float[Tensor, "3 h w"],
    phrases: Sequence[str],
    out_size_hw: tuple[int, int],
    *,
    is_joint: bool = False,
    resize: ResizeMode = "bilinear",
) -> Float[Tensor, "p h w"]:
    """Mask logits of each phrase: those of the grounding query most similar to it.

    Each phrase is asked alone, so its mask does not depend on the others; with `is_joint` all
    tokens enter together, as the released X-Decoder asks them. The image is encoded once.
    """
    if not phrases:
        return image.new_zeros(0, *out_size_hw)
    features = model.encode_images(image[None].to(model.token_table.device))
    texts = encode_distinct(model, phrases)
    image_hw = (image.shape[1], image.shape[2])
    groups = [list(phrases)] if is_joint else [[phrase] for phrase in phrases]
    masks = []
    for start in range(0, len(groups), PHRASES_PER_CALL):
        part = groups[start : start + PHRASES_PER_CALL]
        masks += _decode(model, features, texts, part, image_hw, out_size_hw, resize)
    return torch.cat(masks)


def _decode(
    model: XDecoder,
    features: ImageFeatures,
    texts: EncodedTexts,
    groups: Sequence[Sequence[str]],
    image_hw: tuple[int, int],
    out_hw: tuple[int, int],
    resize: ResizeMode,
) -> list[Tensor]:
    """One mask [phrases of the group, h, w] per group of phrases that are asked together."""
    queries = QuerySet(grounding=texts.grounding(groups))
    output = model.decode(_repeated(features, len(groups)), queries)
    rows = output.layout.grounding
    masks = []
    for index, phrases in enumerate(groups):
        embeddings = full_precision(output.layers[-1].embeddings[index, rows])  # [G, C]
        best = cosine(embeddings, texts.sentences(phrases)).argmax(0) + rows.start
        masks += [
            image_masks(
                output,
                slice(row, row + 1),
                image_hw=image_hw,
                out_hw=out_hw,
                resize=resize,
                batch_index=index,
            )
            for row in best.tolist()
        ]
    return masks


def _repeated(features: ImageFeatures, count: int) -> ImageFeatures:
    """The features of one image as a batch, without copies."""
    return ImageFeatures(
        levels=tuple(level.expand(count, -1, -1, -1) for level in features.levels),
        mask_features=features.mask_features.expand(count, -1, -1, -1),
        pooled=features.pooled.expand(count, -1),
    )
