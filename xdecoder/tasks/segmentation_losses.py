"""Losses of segments, phrases and caption nouns, of one decoder run.

      class names ---> latent queries <--- nouns of a caption
                           |   matched with segments: mask_ce, mask_bce, mask_dice
                           |   the others, with nouns: nouns
phrases ---> grounding queries, matched with their regions: grounding_ce, _bce, _dice
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from xdecoder.batch import SegmentationBatch
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
from xdecoder.losses.matching import Matching, MatchingCosts, match, pad_targets, usable
from xdecoder.losses.nouns import NamedVectors, noun_terms
from xdecoder.losses.points import PointSampling
from xdecoder.losses.world import World
from xdecoder.model import XDecoder
from xdecoder.queries import QuerySet
from xdecoder.tasks.base import Counts, divisors, without_autocast
from xdecoder.tasks.config import (
    GroundingWeights,
    MaskWeights,
    NounWeights,
    RegionTextWeights,
    ReleasedBehaviour,
)
from xdecoder.tasks.masks import canvas_size_hw
from xdecoder.tasks.questions import AskedRegions, Questions, draw_questions
from xdecoder.tasks.step import Regions, Step
from xdecoder.tasks.texts import encode_distinct

# keeps segments of different processes apart; no batch of one process has as many
SEGMENTS_PER_PROCESS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SegmentationTask:
    """Latent queries find the segments and their names; grounding queries find phrases."""

    matching: MatchingCosts
    points: PointSampling
    mask: MaskWeights
    grounding: GroundingWeights
    region_text: RegionTextWeights
    nouns: NounWeights
    released: ReleasedBehaviour
    scale_limit: float
    templates: tuple[str, ...]
    world: World
    name: ClassVar[str] = "segmentation"

    def counts(self, model: XDecoder, batch: SegmentationBatch) -> dict[str, float]:
        per_image = [len(segments.class_ids) for segments in batch.segments]
        weight = label_weight(per_image, model.decoder.num_latents, self.mask.background)
        is_asked = [
            bool(phrases.phrases) or (self.grounding.asks_classes and count > 0)
            for phrases, count in zip(batch.phrases, per_image, strict=True)
        ]
        return {
            "segmentation/label_weight": weight,
            "segmentation/segments": float(sum(per_image)),
            "segmentation/phrase_images": float(sum(is_asked)),
        }

    def losses(
        self,
        model: XDecoder,
        batch: SegmentationBatch,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        questions = draw_questions(
            batch,
            draws,
            grounding=self.grounding,
            templates=self.templates,
            has_nouns=self.nouns.weight > 0,
        )
        return self.losses_of(model, batch, questions, draws, counts)

    def losses_of(
        self,
        model: XDecoder,
        batch: SegmentationBatch,
        questions: Questions,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        """`losses` with texts that are drawn already."""
        texts = encode_distinct(model, questions.texts())
        grounding = texts.grounding(
            [asked.distinct_texts() for asked in questions.asked],
            shows_padding=self.released.shows_padded_tokens,
        )
        features = model.encode_images(batch.images, batch.valid_sizes_hw)
        output = model.decode(features, QuerySet(grounding=grounding))
        with without_autocast(batch.images.device):
            step = Step(
                output=output,
                texts=texts,
                draws=draws,
                points=self.points,
                is_drawn_per_prediction=self.released.draws_per_prediction,
                divide=self._divisors(model, batch, counts),
                logit_scale=model.logit_scale,
                scale=similarity_scale(model.logit_scale, self.scale_limit),
            )
            return self._terms(step, batch, questions)

    def _divisors(
        self, model: XDecoder, batch: SegmentationBatch, counts: Counts | None
    ) -> dict[str, Tensor]:
        own, device = self.counts(model, batch), batch.images.device
        if not self.released.normalises_locally:
            counts = {key: counts[key] for key in own} if counts else own
            return divisors(counts, self.world, device)
        # only the number of segments is that of all processes, and at least 1
        shared = divisors(own, self.world, device)["segmentation/segments"].clamp(min=1)
        return {
            "segmentation/label_weight": torch.tensor(
                own["segmentation/label_weight"], device=device
            ),
            "segmentation/segments": shared,
            "segmentation/phrase_images": torch.tensor(float(len(batch.keys)), device=device),
        }

    def _terms(
        self, step: Step, batch: SegmentationBatch, questions: Questions
    ) -> dict[str, Tensor]:
        canvas_hw = canvas_size_hw(step.output)
        segments = Regions.of([s.masks for s in batch.segments], canvas_hw)
        described = Regions.of([a.masks for a in questions.asked], canvas_hw)
        class_ids = torch.cat([s.class_ids for s in batch.segments])
        terms: dict[str, Tensor] = {}
        for predictions in step.groups():
            added, matching = self._segment_terms(
                step, predictions, segments, class_ids, questions.prompts
            )
            terms |= added
            terms |= self._noun_terms(step, predictions, matching, class_ids, questions)
            terms |= self._grounding_terms(step, predictions, described, questions.asked)
            terms |= self._region_text_terms(step, predictions, matching, segments, questions.asked)
        return usable(terms, step.complaints)

    def _segment_terms(
        self,
        step: Step,
        predictions: range,
        segments: Regions,
        class_ids: Tensor,
        prompts: Sequence[str],
    ) -> tuple[dict[str, Tensor], Matching]:
        rows = step.output.layout.latents
        classes = step.texts.sentences(prompts)
        # class logits have no limit on their scale, in training and in evaluation
        embeddings = step.stacked("embeddings", rows, predictions)
        logits = step.logit_scale.exp() * cosine(embeddings, classes)  # [L, B, Q, K+1]
        log_probs = logits.log_softmax(3)
        mask_embeddings = step.stacked("mask_embeddings", rows, predictions)
        padded_ids = pad_targets(class_ids, segments.counts)[None, :, None]  # [1, B, 1, M]
        shape = (*log_probs.shape[:3], padded_ids.shape[3])
        points, point_features = step.matching_points()
        matching = match(
            label_probs=log_probs.detach().exp().gather(3, padded_ids.expand(shape)),
            mask_embeddings=mask_embeddings.detach(),
            point_features=point_features,
            point_targets=segments.at(points),
            counts=segments.counts,
            costs=self.matching,
        )
        step.complaints.append(matching.complaint)
        label = label_terms(log_probs, class_ids, matching, self.mask.background)
        masks = matched_mask_terms(
            mask_embeddings,
            step.mask_features,
            segments.masks,
            matching,
            segments.counts,
            step.draws,
            self.points,
            is_in_query_order=step.is_drawn_per_prediction,
        )
        label = label / step.divide["segmentation/label_weight"]
        count = step.divide["segmentation/segments"]
        terms = step.keyed("mask_ce", label, self.mask.ce, predictions)
        terms |= step.keyed("mask_bce", masks.bce.sum(0) / count, self.mask.bce, predictions)
        terms |= step.keyed("mask_dice", masks.dice.sum(0) / count, self.mask.dice, predictions)
        return terms, matching

    def _noun_terms(
        self,
        step: Step,
        predictions: range,
        matching: Matching,
        class_ids: Tensor,
        questions: Questions,
    ) -> dict[str, Tensor]:
        """Latent queries against nouns, captions and the names of segments."""
        weights = self.nouns
        predictions = step.last_of(predictions, weights.num_layers)
        if not predictions or weights.weight == 0:
            return {}
        device = class_ids.device
        texts = [text for nouns in questions.nouns for text in nouns.texts]
        ids = [number for nouns in questions.nouns for number in nouns.ids]
        means = torch.tensor(questions.class_ids, dtype=torch.long, device=device)
        values = noun_terms(
            step.stacked("embeddings", step.output.layout.latents, predictions),
            matching.last(len(predictions)),
            NamedVectors(
                vectors=step.texts.sentences(questions.prompts)[class_ids], ids=means[class_ids]
            ),
            NamedVectors(
                vectors=step.texts.sentences(texts),
                ids=torch.tensor(ids, dtype=torch.long, device=device),
            ),
            [len(nouns.texts) for nouns in questions.nouns],
            scale=step.scale,
            label_cost=self.matching.label,
            region_share=weights.region_share,
            cuts_noun_gradient=self.released.cuts_noun_gradient,
            world=self.world,
        )
        return step.keyed("nouns", values, weights.weight, predictions)

    def _grounding_terms(
        self,
        step: Step,
        predictions: range,
        described: Regions,
        asked: Sequence[AskedRegions],
    ) -> dict[str, Tensor]:
        """Means over the phrases of an image, then over the images that have phrases."""
        weights, rows = self.grounding, step.output.layout.grounding
        predictions = step.last_of(predictions, weights.num_layers)
        if not predictions:
            return {}
        embeddings = step.stacked("embeddings", rows, predictions)
        mask_embeddings = step.stacked("mask_embeddings", rows, predictions)
        sentences = step.texts.sentences([text for each in asked for text in each.texts])
        padded = pad_targets(sentences, described.counts)  # [B, P, C]
        similarities = step.scale * cosine(embeddings, padded)  # [L, B, Q, P]
        points, point_features = step.matching_points()
        matching = match(
            label_probs=similarities.detach().softmax(2),
            mask_embeddings=mask_embeddings.detach(),
            point_features=point_features,
            point_targets=described.at(points),
            counts=described.counts,
            costs=self.matching,
        )
        step.complaints.append(matching.complaint)
        slots = torch.cat([torch.arange(count) for count in described.counts])
        flat = similarities[:, matching.image_index, :, slots.to(matching.image_index.device)]
        ids = [number for each in asked for number in each.ids]
        ce = grounding_terms(flat, matching, torch.tensor(ids, device=flat.device).long())
        masks = matched_mask_terms(
            mask_embeddings,
            step.mask_features,
            described.masks,
            matching,
            described.counts,
            step.draws,
            self.points,
            is_in_query_order=step.is_drawn_per_prediction,
        )
        label_share, mask_share = self._phrase_shares(step, asked, ce)
        terms = step.keyed("grounding_ce", label_share @ ce, weights.ce, predictions)
        terms |= step.keyed("grounding_bce", mask_share @ masks.bce, weights.bce, predictions)
        return terms | step.keyed(
            "grounding_dice", mask_share @ masks.dice, weights.dice, predictions
        )

    def _phrase_shares(
        self, step: Step, asked: Sequence[AskedRegions], like: Tensor
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
        """What each phrase weighs in the cross-entropy, and in the terms of masks."""
        counts = [len(each.texts) for each in asked]
        factors = [
            self.grounding.class_factor if each.are_classes else self.grounding.phrase_factor
            for each in asked
        ]
        share = like.new_tensor([1.0 / count for count in counts for _ in range(count)])
        factor = like.new_tensor(
            [factor for factor, count in zip(factors, counts, strict=True) for _ in range(count)]
        )
        mask_share = share = share / step.divide["segmentation/phrase_images"]
        if self.released.normalises_locally:
            mask_share = torch.full_like(share, 1.0 / max(len(share), 1))
        if self.released.needs_phrases_everywhere and not all(counts):
            share, mask_share = torch.zeros_like(share), torch.zeros_like(share)
        return share * factor, mask_share

    def _region_text_terms(
        self,
        step: Step,
        predictions: range,
        matching: Matching,
        segments: Regions,
        asked: Sequence[AskedRegions],
    ) -> dict[str, Tensor]:
        """Segments against phrases of all processes; any phrase of a segment is right for it."""
        weights, world = self.region_text, self.world
        predictions = step.last_of(predictions, weights.num_layers)
        if not predictions or weights.weight == 0:
            return {}
        written = [each.without_classes() for each in asked]
        described = Regions.of([each.masks for each in written], segments.masks.shape[1:])
        pairs = describe_segments(
            segments.masks.split(list(segments.counts)),
            described.masks.split(list(described.counts)),
            weights.minimum_iou,
        )
        has_query = matching.is_matched.all(0)[pairs.segment]
        segment, phrase = pairs.segment[has_query], pairs.phrase[has_query]
        texts = [text for each in written for text in each.texts]
        sentences = step.texts.sentences(texts)[phrase]
        embeddings = step.stacked("embeddings", step.output.layout.latents, predictions)
        regions = matched_rows(embeddings, matching.last(len(embeddings)))[segment]  # [N, L, C]
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
            step.scale,
            weights.region_share,
        )
        return step.keyed("region_text", values, weights.weight, predictions)
