"""The image that shows what a phrase names, and where in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from xdecoder.heads import clamped_similarity
from xdecoder.images import ImageArray, ImageFit
from xdecoder.model import XDecoder
from xdecoder.tasks.referring import FoundRegions, Referring
from xdecoder.tasks.retrieval import Embedding
from xdecoder.text.prompts import sentence_embeddings


class RetrievedRegion(NamedTuple):
    """For one phrase: the probability of each image, the best one, and the region in it."""

    probabilities: Float[Tensor, " n"]
    best: int
    region: FoundRegions


@dataclass(frozen=True, kw_only=True)
class RegionRetrieval:
    """In which of a few images each phrase is, and where; one answer per phrase.

    Source: microsoft/X-Decoder, inference/xdecoder/infer_region_retrieval.py.
    """

    phrases: tuple[str, ...]
    fit: ImageFit | None = None

    def ask(self, model: XDecoder, image: Sequence[ImageArray]) -> list[RetrievedRegion]:
        embedding = Embedding(side="decoder", fit=self.fit)
        vectors = torch.stack([embedding.ask(model, each) for each in image])
        answers = []
        for phrase, probabilities in zip(
            self.phrases, image_probabilities(model, vectors, self.phrases), strict=True
        ):
            best = int(probabilities.argmax())
            region = Referring(phrases=(phrase,)).ask(model, image[best])
            answers.append(RetrievedRegion(probabilities, best, region))
        return answers


@torch.no_grad()
def image_probabilities(
    model: XDecoder, vectors: Float[Tensor, "n c"], phrases: Sequence[str]
) -> Float[Tensor, "p n"]:
    """How likely each image is the one that a phrase is about, among these images.

    vectors: of the global query, see `retrieval.Embedding` of the decoder side.
    """
    texts = sentence_embeddings(model, phrases)
    similarity = clamped_similarity(texts, vectors.to(texts), model.logit_scale)
    return similarity.softmax(-1)
