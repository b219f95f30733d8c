"""Segmentation, grounding and region-text losses; open-vocabulary segmentation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xdecoder.batch import PhraseTargets, SegmentationBatch
from xdecoder.losses.contrastive import (
    contrastive_terms,
    cosine,
    first_of_equals,
    similarity_scale,
    text_ids,
)
from xdecoder.losses.criterion import (
    describe_segments,
    grounding_terms,
    label_terms,
    label_weight,
    matched_mask_terms,
    matched_rows,
)
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.mask import pad_masks
from xdecoder.losses.matching import Matching, MatchingCosts, match, pad_targets
from xdecoder.losses.points import PointSampling, sample_points
from xdecoder.losses.world import World
from xdecoder.model import XDecoder
from xdecoder.outputs import DecoderOutput
from xdecoder.postprocess import ResizeMode
from xdecoder.queries import QuerySet
from xdecoder.tasks.base import (
    Counts,
    divisors,
    full_precision,
    keyed,
    stacked,
    without_autocast,
)
from xdecoder.tasks.config import GroundingWeights, MaskWeights, RegionTextWeights
from xdecoder.tasks.masks import canvas_size_hw, image_masks
from xdecoder.tasks.texts import EncodedTexts, draw_class_prompts, draw_phrases, encode_distinct
from xdecoder.text.prompts import BACKGROUND, PLAIN_TEMPLATES, class_embeddings

# keeps segments of different processes apart; no batch of one process has as many
SEGMENTS_PER_PROCESS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Regions:
    """Masks of all images one after another, at the size of the canvas, read at points too."""

    masks: Bool[Tensor, "m h w"]
    counts: tuple[int, ...]
    points: Float[Tensor, "b m p"]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What the terms of one step share."""

    model: XDecoder
    output: DecoderOutput
    texts: EncodedTexts
    draws: UniformSource
    divide: dict[str, Tensor]

    @cached_property
    def mask_features(self) -> Float[Tensor, "b c h w"]:
        return full_precision(self.output.mask_features)

    def keyed(self, term: str, values: Tensor, weight: float) -> dict[str, Tensor]:
        return keyed("segmentation", term, values, weight, len(self.output.layers))


@dataclass(frozen=True, kw_only=True)
class SegmentationTask:
    """Latent queries find the segments and their names; grounding queries find phrases."""

    matching: MatchingCosts
    points: PointSampling
    mask: MaskWeights
    grounding: GroundingWeights
    region_text: RegionTextWeights
    scale_limit: float
    templates: tuple[str, ...]
    world: World
    name: ClassVar[str] = "segmentation"

    def counts(self, model: XDecoder, batch: SegmentationBatch) -> dict[str, float]:
        per_image = [len(segments.class_ids) for segments in batch.segments]
        weight = label_weight(per_image, model.decoder.num_latents, self.mask.background)
        return {
            "segmentation/label_weight": weight,
            "segmentation/segments": float(sum(per_image)),
            "segmentation/phrase_images": float(sum(bool(p.phrases) for p in batch.phrases)),
        }

    def losses(
        self,
        model: XDecoder,
        batch: SegmentationBatch,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        own = self.counts(model, batch)
        counts = {key: counts[key] for key in own} if counts else own
        prompts = draw_class_prompts(batch.vocabulary.names, self.templates, draws)
        phrases = draw_phrases(batch.phrases, self.grounding.max_phrases, draws)
        texts = encode_distinct(model, [*prompts, *(t for p in phrases for t in p.phrases)])
        queries = QuerySet(grounding=texts.grounding([p.phrases for p in phrases]))
        output = model.decode(model.encode_images(batch.images, batch.valid_sizes_hw), queries)
        with without_autocast(batch.images.device):
            divide = divisors(counts, self.world, batch.images.device)
            return self._terms(
                _Step(model=model, output=output, texts=texts, draws=draws, divide=divide),
                batch,
                prompts,
                phrases,
            )

    def _terms(
        self,
        step: _Step,
        batch: SegmentationBatch,
        prompts: Sequence[str],
        phrases: Sequence[PhraseTargets],
    ) -> dict[str, Tensor]:
        points = step.draws.uniform(len(batch.images), self.points.num_for_matching, 2)
        points = points.to(step.mask_features)
        point_features = sample_points(step.mask_features.detach(), points)
        canvas_hw = canvas_size_hw(step.output)
        segments = _regions([s.masks for s in batch.segments], points, canvas_hw)
        described = _regions([p.masks for p in phrases], points, canvas_hw)
        class_ids = torch.cat([s.class_ids for s in batch.segments])
        terms, matching = self._segment_terms(step, point_features, segments, class_ids, prompts)
        terms |= self._grounding_terms(step, point_features, described, phrases)
        return terms | self._region_text_terms(step, matching, segments, described, phrases)

    def _segment_terms(
        self,
        step: _Step,
        point_features: Float[Tensor, "b c p"],
        segments: _Regions,
        class_ids: Int[Tensor, " m"],
        prompts: Sequence[str],
    ) -> tuple[dict[str, Tensor], Matching]:
        output, rows = step.output, step.output.layout.latents
        embeddings = stacked(output, "embeddings", rows, len(output.layers))
        classes = step.texts.sentences(prompts)
        # class logits have no limit on their scale, in training and in evaluation
        logits = step.model.logit_scale.exp() * cosine(embeddings, classes)  # [L, B, Q, K+1]
        log_probs = logits.log_softmax(3)
        mask_embeddings = stacked(output, "mask_embeddings", rows, len(output.layers))
        padded_ids = pad_targets(class_ids, segments.counts)[None, :, None]  # [1, B, 1, M]
        shape = (*log_probs.shape[:3], padded_ids.shape[3])
        matching = match(
            label_probs=log_probs.detach().exp().gather(3, padded_ids.expand(shape)),
            mask_embeddings=mask_embeddings.detach(),
            point_features=point_features,
            point_targets=segments.points,
            counts=segments.counts,
            costs=self.matching,
        )
        label = label_terms(log_probs, class_ids, matching, self.mask.background)
        masks = matched_mask_terms(
            mask_embeddings,
            step.mask_features,
            segments.masks,
            matching,
            segments.counts,
            step.draws,
            self.points,
        )
        label = label / step.divide["segmentation/label_weight"]
        count = step.divide["segmentation/segments"]
        terms = step.keyed("mask_ce", label, self.mask.ce)
        terms |= step.keyed("mask_bce", masks.bce.sum(0) / count, self.mask.bce)
        terms |= step.keyed("mask_dice", masks.dice.sum(0) / count, self.mask.dice)
        return terms, matching

    def _grounding_terms(
        self,
        step: _Step,
        point_features: Float[Tensor, "b c p"],
        described: _Regions,
        phrases: Sequence[PhraseTargets],
    ) -> dict[str, Tensor]:
        """Means over the phrases of an image, then over the images that have phrases."""
        output, weights = step.output, self.grounding
        rows = output.layout.grounding
        embeddings = stacked(output, "embeddings", rows, weights.num_layers)
        mask_embeddings = stacked(output, "mask_embeddings", rows, weights.num_layers)
        texts = [text for targets in phrases for text in targets.phrases]
        sentences = pad_targets(step.texts.sentences(texts), described.counts)  # [B, P, C]
        scale = similarity_scale(step.model.logit_scale, self.scale_limit)
        similarities = scale * cosine(embeddings, sentences)  # [L, B, Q, P]
        matching = match(
            label_probs=similarities.detach().softmax(2),
            mask_embeddings=mask_embeddings.detach(),
            point_features=point_features,
            point_targets=described.points,
            counts=described.counts,
            costs=self.matching,
        )
        slots = torch.cat([torch.arange(count) for count in described.counts])
        flat = similarities[:, matching.image_index, :, slots.to(matching.image_index.device)]
        ce = grounding_terms(flat, matching, text_ids(texts, flat.device))
        masks = matched_mask_terms(
            mask_embeddings,
            step.mask_features,
            described.masks,
            matching,
            described.counts,
            step.draws,
            self.points,
        )
        share = _shares(described.counts, ce) / step.divide["segmentation/phrase_images"]
        terms = step.keyed("grounding_ce", share @ ce, weights.ce)
        terms |= step.keyed("grounding_bce", share @ masks.bce, weights.bce)
        return terms | step.keyed("grounding_dice", share @ masks.dice, weights.dice)

    def _region_text_terms(
        self,
        step: _Step,
        matching: Matching,
        segments: _Regions,
        described: _Regions,
        phrases: Sequence[PhraseTargets],
    ) -> dict[str, Tensor]:
        """Segments against phrases of all processes; any phrase of a segment is right for it."""
        weights, output = self.region_text, step.output
        pairs = describe_segments(
            segments.masks.split(list(segments.counts)),
            described.masks.split(list(described.counts)),
            weights.minimum_iou,
        )
        has_query = matching.is_matched.all(0)[pairs.segment]
        segment, phrase = pairs.segment[has_query], pairs.phrase[has_query]
        texts = [text for targets in phrases for text in targets.phrases]
        sentences = step.texts.sentences(texts)[phrase]
        embeddings = stacked(output, "embeddings", output.layout.latents, weights.num_layers)
        regions = matched_rows(embeddings, matching.last(len(embeddings)))[segment]  # [N, L, C]
        world = self.world
        words = world.gather(text_ids(texts, segment.device)[phrase])
        places = world.gather(segment + world.rank * SEGMENTS_PER_PROCESS)
        columns = first_of_equals(words)
        # a region's right answers are all texts that were paired with its segment
        is_paired = (places[:, None] == places[None]).float() @ (
            words[:, None] == words[columns][None]
        ).float()
        values = contrastive_terms(
            world.gather(regions).transpose(0, 1),
            world.gather(sentences)[columns],
            is_paired > 0,
            similarity_scale(step.model.logit_scale, self.scale_limit),
            weights.region_share,
        )
        return step.keyed("region_text", values, weights.weight)


def _regions(
    masks: Sequence[Bool[Tensor, "_m h w"]],
    points_xy01: Float[Tensor, "b p 2"],
    canvas_hw: tuple[int, int],
) -> _Regions:
    counts = tuple(len(image) for image in masks)
    flat = pad_masks(torch.cat(list(masks)), canvas_hw)
    image_index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    at_points = sample_points(
        flat.unsqueeze(1).to(points_xy01.dtype), points_xy01[image_index.to(flat.device)]
    )
    return _Regions(masks=flat, counts=counts, points=pad_targets(at_points.squeeze(1), counts))


def _shares(counts: Sequence[int], like: Tensor) -> Float[Tensor, " m"]:
    """One over the number of targets of the image, for each target."""
    shares = [1.0 / count for count in counts for _ in range(count)]
    return torch.tensor(shares, dtype=like.dtype, device=like.device)


class SegmentationResult(NamedTuple):
    """Class probabilities (background last) and mask logits of the object queries."""

    class_probs: Float[Tensor, "q k1"]
    mask_logits: Float[Tensor, "q h w"]


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
    output = model(image[None].to(class_vectors.device), QuerySet())
    rows = output.layout.objects if has_global_query else output.layout.latents
    embeddings = full_precision(output.layers[-1].embeddings[0, rows])
    probs = (model.logit_scale.exp() * cosine(embeddings, class_vectors)).softmax(-1)
    image_hw = (image.shape[1], image.shape[2])
    masks = image_masks(output, rows, image_hw=image_hw, out_hw=out_size_hw, resize=resize)
    return SegmentationResult(probs, masks)


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
