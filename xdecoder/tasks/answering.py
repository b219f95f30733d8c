"""Visual question answering: the likeliest of a fixed list of answers.

A question travels to training as one text of an image, in JSON: [question, id, answers of people].
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xdecoder.batch import ImageTextBatch
from xdecoder.config import ConfigError
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.world import World
from xdecoder.model import XDecoder
from xdecoder.outputs import ImageFeatures
from xdecoder.queries import QuerySet, TextQueries
from xdecoder.tasks.base import Counts, divisors, full_precision, loss_key, without_autocast

# people who must agree for a full point
_NUM_FOR_FULL = 3


class AskedQuestion(NamedTuple):
    """A question about an image, its number, and what people answered."""

    text: str
    id: int
    answers: tuple[str, ...]

    def to_line(self) -> str:
        """The question as one text."""
        return json.dumps([self.text, self.id, list(self.answers)])

    @classmethod
    def from_line(cls, line: str) -> "AskedQuestion":
        """The question that `to_line` wrote.

        Raises: ValueError for any other text.
        """
        try:
            text, number, answers = json.loads(line)
            return cls(str(text), int(number), tuple(str(answer) for answer in answers))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"AskedQuestion: a line must be [question, id, answers] in JSON; got {line!r}. "
                "Prepare the data with `python -m pipelines.prepare vqav2`."
            ) from error


def answer_logits(
    model: XDecoder, features: ImageFeatures, questions: Sequence[str]
) -> Float[Tensor, "b a"]:
    """Logits of the model's answers to one question about each image.

    Raises: ConfigError for a model without an answer head.
    """
    head = model.answer_head
    if head is None:
        raise ConfigError(
            "answering: the model must have model.answers; it has none. Train it with "
            "`python -m pipelines.finetune --task vqav2`."
        )
    ids = model.tokenizer(questions).to(model.token_table.device)
    text = model.encode_text(ids)
    content = head.content.weight[: ids.shape[1]].expand(len(ids), -1, -1)
    queries = TextQueries(tokens=text.tokens, is_padding=text.is_padding, content=content)
    states = model.decode(features, QuerySet(caption=queries)).layers[-1].caption_states
    assert states is not None
    # the end of a text is its first largest id
    end = ids.argmax(1)
    return head(states[torch.arange(len(ids), device=ids.device), end])


@torch.no_grad()
def predict(
    model: XDecoder,
    images: Float[Tensor, "b 3 h w"],
    questions: Sequence[str],
    *,
    valid_sizes_hw: Sequence[tuple[int, int]] | None = None,
) -> list[str]:
    """The likeliest answer to one question about each image."""
    features = model.encode_images(images.to(model.token_table.device), valid_sizes_hw)
    best = answer_logits(model, features, questions).argmax(1)
    return [model.answers[index] for index in best.tolist()]


@dataclass(frozen=True, kw_only=True)
class AnsweringTask:
    """Answers are learnt as a share of the people who gave them.

    normal_answer: brings an answer to the spelling of the list.
    """

    normal_answer: Callable[[str], str]
    world: World
    name: ClassVar[str] = "image_text"

    def counts(self, model: XDecoder, batch: ImageTextBatch) -> dict[str, float]:
        del model
        return {"image_text/questions": float(len(batch.captions))}

    def losses(
        self,
        model: XDecoder,
        batch: ImageTextBatch,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        """Binary cross-entropy with the agreement of people, summed over answers."""
        del draws
        asked = [AskedQuestion.from_line(line) for line in batch.captions]
        features = model.encode_images(batch.images, batch.valid_sizes_hw)
        logits = answer_logits(model, features, [question.text for question in asked])
        with without_autocast(batch.images.device):
            wanted = torch.stack([self._agreement(model, question) for question in asked])
            terms = F.binary_cross_entropy_with_logits(
                full_precision(logits), wanted.to(logits.device), reduction="sum"
            )
            counts = counts or self.counts(model, batch)
            number = divisors(counts, self.world, batch.images.device)["image_text/questions"]
            key = loss_key(self.name, "answering", len(model.decoder.layers))
            return {key: terms / number}

    def _agreement(self, model: XDecoder, question: AskedQuestion) -> Float[Tensor, " a"]:
        """For each answer of the list, how far people agree on it: three make 1."""
        wanted = torch.zeros(len(model.answers))
        given = [self.normal_answer(answer) for answer in question.answers]
        for answer in set(given):
            place = model.answer_places.get(answer)
            if place is not None:
                wanted[place] = min(1.0, given.count(answer) / _NUM_FOR_FULL)
        return wanted
