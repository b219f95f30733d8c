"""Captioning and image-text retrieval losses."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xdecoder.batch import ImageTextBatch
from xdecoder.losses.caption import caption_terms
from xdecoder.losses.contrastive import (
    alignment_terms,
    contrastive_terms,
    first_of_equals,
    similarity_scale,
    text_ids,
)
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.world import World
from xdecoder.model import XDecoder
from xdecoder.outputs import DecoderOutput, ImageFeatures, TextFeatures
from xdecoder.queries import QuerySet, TextQueries
from xdecoder.tasks.base import (
    Counts,
    divisors,
    full_precision,
    keyed,
    loss_key,
    stacked,
    without_autocast,
)
from xdecoder.tasks.config import LayeredWeight, ReleasedBehaviour


@dataclass(frozen=True, kw_only=True)
class ImageTextTask:
    """Captions are predicted token by token, and told apart from those of other images."""

    captioning: LayeredWeight
    retrieval: LayeredWeight
    retrieval_alignment: float
    retrieval_backbone: float
    released: ReleasedBehaviour
    scale_limit: float
    world: World
    name: ClassVar[str] = "image_text"

    def counts(self, model: XDecoder, batch: ImageTextBatch) -> dict[str, float]:
        ids = model.tokenizer(batch.captions)
        # every token but the first of a text is predicted; the end is its first largest id
        return {"image_text/tokens": float(ids.argmax(1).sum())}

    def losses(
        self,
        model: XDecoder,
        batch: ImageTextBatch,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        del draws
        device = batch.images.device
        ids = model.tokenizer(batch.captions).to(device)
        text = model.encode_text(ids)
        features = model.encode_images(batch.images, batch.valid_sizes_hw)
        queries = QuerySet(caption=TextQueries(tokens=text.tokens, is_padding=text.is_padding))
        output = model.decode(features, queries)
        with without_autocast(device):
            num_tokens = self._num_tokens(model, batch, counts)
            terms = self._captioning(model, output, ids, text, num_tokens)
            return terms | self._retrieval(model, batch, features, output, text)

    def _num_tokens(self, model: XDecoder, batch: ImageTextBatch, counts: Counts | None) -> Tensor:
        own, device = self.counts(model, batch), batch.images.device
        if self.released.normalises_locally:
            return torch.tensor(own["image_text/tokens"] + 1.0, device=device)
        counts = counts or own
        shared = divisors({key: counts[key] for key in own}, self.world, device)
        return shared["image_text/tokens"]

    def _captioning(
        self,
        model: XDecoder,
        output: DecoderOutput,
        ids: Tensor,
        text: TextFeatures,
        num_tokens: Tensor,
    ) -> dict[str, Tensor]:
        states = stacked(output, "caption_states", slice(None), self.captioning.num_layers)
        sums = caption_terms(states, full_precision(model.token_table), ids, text.is_padding)
        weight = self.captioning.weight
        return keyed(self.name, "captioning", sums / num_tokens, weight, len(output.layers))

    def _retrieval(
        self,
        model: XDecoder,
        batch: ImageTextBatch,
        features: ImageFeatures,
        output: DecoderOutput,
        text: TextFeatures,
    ) -> dict[str, Tensor]:
        """Equal captions in a batch count as right answers of each other's images."""
        scale = similarity_scale(model.logit_scale, self.scale_limit)
        ids = self.world.gather(text_ids(batch.captions, text.sentence.device))
        if self.released.tells_equal_captions_apart:
            ids = torch.arange(len(ids), device=ids.device)
        sentences = self.world.gather(full_precision(text.sentence))
        columns = first_of_equals(ids)
        is_positive = ids[:, None] == ids[columns][None]
        num_layers = self.retrieval.num_layers
        images = stacked(output, "embeddings", output.layout.global_query, num_layers)
        images = torch.cat(
            [images.squeeze(2), full_precision(features.pooled)[None]]
        )  # [L+1, B, C]
        images = self.world.gather(images.transpose(0, 1).contiguous()).transpose(0, 1)
        values = contrastive_terms(images, sentences[columns], is_positive, scale)
        num_predictions = len(output.layers)
        terms = keyed(self.name, "retrieval", values[:-1], self.retrieval.weight, num_predictions)
        latents = stacked(output, "embeddings", output.layout.latents, num_layers)
        aligned = alignment_terms(latents, full_precision(text.tokens), text.is_padding, scale)
        weight = self.retrieval.weight * self.retrieval_alignment
        terms |= keyed(self.name, "retrieval_alignment", aligned, weight, num_predictions)
        key = loss_key(self.name, "retrieval_backbone", num_predictions - 1)
        return terms | {key: self.retrieval_backbone * values[-1]}
