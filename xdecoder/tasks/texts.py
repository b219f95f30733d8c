"""Texts of a step: drawn, encoded once each, and packed into grounding queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xdecoder.batch import PhraseTargets
from xdecoder.losses.draws import UniformSource
from xdecoder.model import XDecoder
from xdecoder.outputs import TextFeatures
from xdecoder.queries import TextQueries
from xdecoder.tasks.base import full_precision
from xdecoder.text.prompts import BACKGROUND, training_prompt


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """Features of distinct texts; `row_of` finds the row of a text, `lengths` its tokens."""

    features: TextFeatures
    lengths: tuple[int, ...]
    row_of: dict[str, int]

    def sentences(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """Sentence vectors of some of the texts."""
        rows = [self.row_of[text] for text in texts]
        index = torch.tensor(rows, dtype=torch.long, device=self.features.sentence.device)
        return full_precision(self.features.sentence)[index]

    def grounding(
        self, phrases: Sequence[Sequence[str]], *, shows_padding: bool = False
    ) -> TextQueries:
        """The tokens of each image's phrases one after another, each distinct text once.

        One padded column stands for them where no image has a phrase, so that the same
        parameters take part in every step. shows_padding: what fills shorter lists is zero and
        can be seen, as in the released X-Decoder.
        """
        num_tokens = self.features.tokens.shape[1]
        images = [self._token_positions(texts, num_tokens) for texts in phrases]
        longest = max(1, *(len(positions) for positions in images))
        index = torch.zeros(len(images), longest, dtype=torch.long)
        is_padding = torch.ones(len(images), longest, dtype=torch.bool)
        for image, positions in enumerate(images):
            index[image, : len(positions)] = torch.tensor(positions, dtype=torch.long)
            is_padding[image, : len(positions)] = False
        tokens = self.features.tokens.flatten(0, 1)  # [N*T, C]
        is_padding = is_padding.to(tokens.device)
        packed = tokens[index.to(tokens.device)]  # [B, T, C]
        if shows_padding:
            packed = packed.masked_fill(is_padding[..., None], 0.0)
            is_padding = torch.zeros_like(is_padding)
        return TextQueries(tokens=packed, is_padding=is_padding)

    def _token_positions(self, texts: Sequence[str], num_tokens: int) -> list[int]:
        rows = dict.fromkeys(self.row_of[text] for text in texts)
        return [row * num_tokens + token for row in rows for token in range(self.lengths[row])]


def encode_distinct(model: XDecoder, texts: Sequence[str]) -> EncodedTexts:
    """Every distinct text encoded once, in order of appearance."""
    distinct = list(dict.fromkeys(texts))
    ids = model.tokenizer(distinct)
    # the end of a text is its first largest id
    lengths = tuple((ids.argmax(1) + 1).tolist())
    return EncodedTexts(
        features=model.encode_text(ids.to(model.token_table.device)),
        lengths=lengths,
        row_of={text: row for row, text in enumerate(distinct)},
    )


def draw_class_prompts(
    names: Sequence[str], templates: Sequence[str], draws: UniformSource
) -> list[str]:
    """One drawn prompt for each name and, last, for the background."""
    names = [*names, BACKGROUND]
    chosen = draws.choices(len(templates), len(names))
    return [
        training_prompt(name, templates[index]) for name, index in zip(names, chosen, strict=True)
    ]


def draw_phrases(
    phrases: Sequence[PhraseTargets], max_phrases: int, draws: UniformSource
) -> list[PhraseTargets]:
    """Some of the phrases of each image: a drawn number of them, at most `max_phrases`."""
    return [_draw(targets, max_phrases, draws) for targets in phrases]


def _draw(targets: PhraseTargets, max_phrases: int, draws: UniformSource) -> PhraseTargets:
    count = len(targets.phrases)
    if count == 0:
        return targets
    number = 1 + draws.choice(min(count, max_phrases))
    chosen = draws.permutation(count)[:number]
    return PhraseTargets(
        phrases=tuple(targets.phrases[index] for index in chosen),
        masks=targets.masks[torch.tensor(chosen, device=targets.masks.device)],
    )
