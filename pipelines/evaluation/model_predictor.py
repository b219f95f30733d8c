"""The model as evaluation and prediction use it: fit the image, ask, bring answers back to size."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipelines.evaluation.images import pixels_at
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictor import (
    FoundInstance,
    FoundSegments,
    ImageArray,
    NamedRegions,
)
from pipelines.evaluation.protocols import REFER_PROTOCOLS
from xdecoder import postprocess
from xdecoder.batch import Vocabulary
from xdecoder.model import XDecoder
from xdecoder.tasks import answering, captioning, referring, retrieval, segmentation
from xdecoder.text.prompts import class_embeddings


class ModelPredictor:
    """A `Predictor` around a model in evaluation mode; the same image gives the same answer.

    Images are fitted into `options.size_hw` (`text_size_hw` for captions and retrieval), keeping
    their shape. Those that are asked for together are padded to the largest of them.
    """

    def __init__(self, model: XDecoder, *, options: EvaluationOptions) -> None:
        self._model = model
        self._options = options
        self._class_vectors: dict[tuple[tuple[str, ...], str], Tensor] = {}

    def segment(self, images: Sequence[ImageArray], vocabulary: Vocabulary) -> list[FoundSegments]:
        """Segments, semantic map and instances of each image."""
        return [self._segment(image, vocabulary) for image in images]

    def refer(self, image: ImageArray, phrases: Sequence[str]) -> list[Bool[np.ndarray, "h w"]]:
        """The region that each phrase means; the protocol says whether phrases see each other."""
        logits = referring.predict(
            self._model,
            self._fitted(image),
            phrases,
            (image.shape[0], image.shape[1]),
            is_joint=REFER_PROTOCOLS[self._options.refer_protocol].is_joint,
            resize=self._options.resize,
        )
        return list((logits > 0).cpu().numpy())

    def caption(self, images: Sequence[ImageArray]) -> list[str]:
        """One sentence about each image, greedy."""
        batch, valid_sizes_hw = self._batch(images)
        limit = self._options.max_caption_tokens
        return captioning.predict(self._model, batch, limit, valid_sizes_hw=valid_sizes_hw)

    def answer(self, image: ImageArray, questions: Sequence[str]) -> list[str]:
        """The answer to each question about an image, out of the model's list."""
        batch, valid_sizes_hw = self._batch([image])
        return [
            answering.predict(self._model, batch, [question], valid_sizes_hw=valid_sizes_hw)[0]
            for question in questions
        ]

    def caption_hits(
        self, images: Sequence[ImageArray], captions: Sequence[str]
    ) -> tuple[int, int]:
        """How many tokens of given captions are predicted from those before, and of how many."""
        batch, valid_sizes_hw = self._batch(images)
        return captioning.token_accuracy(
            self._model, batch, captions, valid_sizes_hw=valid_sizes_hw
        )

    def embed_images(self, images: Sequence[ImageArray]) -> Float[np.ndarray, "n c"]:
        """Unit vectors to compare with those of texts."""
        batch, valid_sizes_hw = self._batch(images)
        vectors = retrieval.image_embeddings(self._model, batch, valid_sizes_hw=valid_sizes_hw)
        return vectors.cpu().numpy()

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Unit vectors to compare with those of images."""
        with torch.no_grad():
            return retrieval.text_embeddings(self._model, texts).cpu().numpy()

    def name_regions(self, image: ImageArray, texts: Sequence[str]) -> NamedRegions:
        """Regions of the latent queries, and the cosine of each with each text."""
        size_hw = (image.shape[0], image.shape[1])
        found = segmentation.region_embeddings(self._model, self._fitted(image), size_hw)
        vectors = self._text_vectors(texts)
        similarity = found.embeddings @ vectors.T  # [Q, T]
        return NamedRegions((found.mask_logits > 0).cpu().numpy(), similarity.cpu().numpy())

    def _segment(self, image: ImageArray, vocabulary: Vocabulary) -> FoundSegments:
        options = self._options
        result = segmentation.predict(
            self._model,
            self._fitted(image),
            vocabulary.names,
            (image.shape[0], image.shape[1]),
            class_vectors=self._vocabulary_vectors(vocabulary.names, options.vocabulary),
            has_global_query=options.has_global_query,
            resize=options.resize,
        )
        panoptic = postprocess.panoptic(
            result.class_probs,
            result.mask_logits,
            is_thing=vocabulary.is_thing,
            object_threshold=options.object_threshold,
            overlap_threshold=options.overlap_threshold,
        )
        semantic = postprocess.semantic(result.class_probs, result.mask_logits).argmax(0)
        found = postprocess.instances(
            result.class_probs,
            result.mask_logits,
            top_k=options.max_instances,
            is_thing=vocabulary.is_thing,
            minimum_score=options.minimum_score,
        )
        return FoundSegments(
            segment_ids=panoptic.ids.cpu().numpy().astype(np.int64),
            classes={segment.id: segment.class_id for segment in panoptic.segments},
            scores={segment.id: segment.score for segment in panoptic.segments},
            semantic=semantic.cpu().numpy(),
            instances=found_instances(found),
        )

    def _vocabulary_vectors(self, names: tuple[str, ...], kind: str = "with-background") -> Tensor:
        """Vectors of the names; the last row stands for nothing, and is a name or a text apart."""
        if (names, kind) not in self._class_vectors:
            encode = (
                segmentation.encode_vocabulary if kind == "with-background" else class_embeddings
            )
            with torch.no_grad():
                vectors = encode(self._model, names, templates=self._options.templates)
            self._class_vectors[names, kind] = vectors
        return self._class_vectors[names, kind]

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        # the last row belongs to the background
        return self._vocabulary_vectors(tuple(texts))[:-1]

    def _fitted(self, image: ImageArray) -> Float[Tensor, "3 h w"]:
        return pixels_at(image, self._options.input_hw((image.shape[0], image.shape[1])))

    def _batch(
        self, images: Sequence[ImageArray]
    ) -> tuple[Float[Tensor, "b 3 h w"], list[tuple[int, int]]]:
        rule = self._options.text_input_hw
        fitted = [pixels_at(image, rule((image.shape[0], image.shape[1]))) for image in images]
        sizes_hw = [(each.shape[1], each.shape[2]) for each in fitted]
        height, width = max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)
        batch = torch.zeros(len(fitted), 3, height, width)
        for row, each in zip(batch, fitted, strict=True):
            row[:, : each.shape[1], : each.shape[2]] = each
        return batch, sizes_hw


def found_instances(found: postprocess.Instances) -> tuple[FoundInstance, ...]:
    """Instances as evaluation takes them, without empty ones."""
    kept = found.masks.flatten(1).any(1).tolist()
    return tuple(
        FoundInstance(class_id, score, region)
        for class_id, score, region, is_kept in zip(
            found.class_ids.tolist(),
            found.scores.tolist(),
            found.masks.cpu().numpy(),
            kept,
            strict=True,
        )
        if is_kept
    )
