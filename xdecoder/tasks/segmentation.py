"""Open-vocabulary segmentation of an image, and what each of its regions says."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xdecoder.full_size import FullSizeMasks
from xdecoder.losses.contrastive import cosine
from xdecoder.model import XDecoder
from xdecoder.postprocess import ResizeMode
from xdecoder.queries import QuerySet
from xdecoder.tasks.base import full_precision
from xdecoder.tasks.masks import full_size_masks, image_masks
from xdecoder.text.prompts import BACKGROUND, PLAIN_TEMPLATES, class_embeddings


class SegmentationResult(NamedTuple):
    """Class probabilities (background last) and mask logits of the object queries."""

    class_probs: Float[Tensor, "q k1"]
    mask_logits: Float[Tensor, "q h w"]


class SeenSegments(NamedTuple):
    """The same, with masks that are made when they are asked for."""

    class_probs: Float[Tensor, "q k1"]
    masks: FullSizeMasks


class RegionEmbeddings(NamedTuple):
    """Unit vectors in the image-text space and mask logits of the object queries."""

    embeddings: Float[Tensor, "q c"]
    mask_logits: Float[Tensor, "q h w"]


def encode_vocabulary(
    model: XDecoder, names: Sequence[str], *, templates: Sequence[str] = PLAIN_TEMPLATES
) -> Float[Tensor, "k1 c"]:
    """Unit vectors of the names and, last, of the background; reusable for many images."""
    return class_embeddings(model, [*names, BACKGROUND], templates=templates)


@torch.no_grad()
def predict(
    model: XDecoder,
    image: Float[Tensor, "3 h w"],
    vocabulary: Sequence[str],
    out_size_hw: tuple[int, int],
    *,
    templates: Sequence[str] = PLAIN_TEMPLATES,
    class_vectors: Float[Tensor, "k1 c"] | None = None,
    has_global_query: bool = False,
    resize: ResizeMode = "bilinear",
) -> SegmentationResult:
    """Probabilities and masks of one RGB image in 0..255, for any vocabulary.

    class_vectors: `encode_vocabulary` of the same names, when many images share them;
    has_global_query: segment with the global query as well, as the released X-Decoder does.
    """
    if class_vectors is None:
        class_vectors = encode_vocabulary(model, vocabulary, templates=templates)
    seen = see_segments(
        model,
        image,
        class_vectors,
        out_size_hw,
        has_global_query=has_global_query,
        resize=resize,
    )
    return SegmentationResult(seen.class_probs, seen.masks.whole())


@torch.no_grad()
def see_segments(
    model: XDecoder,
    image: Float[Tensor, "3 h w"],
    class_vectors: Float[Tensor, "k1 c"],
    out_size_hw: tuple[int, int],
    *,
    has_global_query: bool,
    resize: ResizeMode,
) -> SeenSegments:
    """What `predict` says, each mask made when it is asked for."""
    output = model(image[None].to(class_vectors.device), QuerySet())
    rows = output.layout.objects if has_global_query else output.layout.latents
    embeddings = full_precision(output.layers[-1].embeddings[0, rows])
    probs = (model.logit_scale.exp() * cosine(embeddings, class_vectors)).softmax(-1)
    masks = full_size_masks(
        output,
        rows,
        image_hw=(image.shape[1], image.shape[2]),
        out_hw=out_size_hw,
        resize=resize,
    )
    return SeenSegments(probs, masks)


@torch.no_grad()
def region_embeddings(
    model: XDecoder,
    image: Float[Tensor, "3 h w"],
    out_size_hw: tuple[int, int] | None = None,
) -> RegionEmbeddings:
    """What each latent query says about its region; masks at the image's size by default."""
    output = model(image[None].to(model.token_table.device), QuerySet())
    rows = output.layout.latents
    embeddings = F.normalize(full_precision(output.layers[-1].embeddings[0, rows]), dim=-1)
    image_hw = (image.shape[1], image.shape[2])
    masks = image_masks(output, rows, image_hw=image_hw, out_hw=out_size_hw or image_hw)
    return RegionEmbeddings(embeddings, masks)
