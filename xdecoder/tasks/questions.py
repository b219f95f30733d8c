"""What a segmentation step asks, drawn anew each time: classes, phrases and nouns as texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from xdecoder.batch import PhraseTargets, SegmentationBatch, SegmentTargets
from xdecoder.losses.contrastive import stable_hash
from xdecoder.losses.draws import UniformSource
from xdecoder.tasks.config import GroundingWeights
from xdecoder.tasks.texts import draw_class_prompts, draw_phrases
from xdecoder.text.nouns import nouns_of, word_stem
from xdecoder.text.prompts import plain_name, training_prompt


@dataclass(frozen=True, kw_only=True)
class AskedRegions:
    """Texts about one image and the region of each.

    ids: equal numbers mean the same thing, under whatever prompt; are_classes: the texts are
    prompted names of classes and not what somebody wrote about a region.
    """

    texts: tuple[str, ...]
    masks: Bool[Tensor, "p h w"]
    ids: tuple[int, ...]
    are_classes: bool = False

    def distinct_texts(self) -> list[str]:
        """The first text of each meaning: what the grounding queries are shown."""
        first_of = dict(zip(reversed(self.ids), reversed(self.texts), strict=True))
        return [first_of[number] for number in dict.fromkeys(self.ids)]

    def without_classes(self) -> "AskedRegions":
        """The same, or nothing where the texts are names of classes."""
        if not self.are_classes:
            return self
        return AskedRegions(texts=(), masks=self.masks[:0], ids=())


@dataclass(frozen=True, kw_only=True)
class CaptionNouns:
    """The prompted nouns of a caption and, last, the caption; nothing where there is none."""

    texts: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Questions:
    """All texts of a step.

    prompts: one for each class and, last, for the background; class_ids: what each class name
    means (without the background); asked and nouns: one for each image.
    """

    prompts: tuple[str, ...]
    class_ids: tuple[int, ...]
    asked: tuple[AskedRegions, ...]
    nouns: tuple[CaptionNouns, ...]

    def texts(self) -> list[str]:
        """All of them, class prompts first."""
        groups = [self.prompts, *(a.texts for a in self.asked), *(n.texts for n in self.nouns)]
        return [text for group in groups for text in group]


def draw_questions(
    batch: SegmentationBatch,
    draws: UniformSource,
    *,
    grounding: GroundingWeights,
    templates: Sequence[str],
    has_nouns: bool,
) -> Questions:
    """A prompt for each class, some phrases of each image, and the nouns of one caption of it."""
    names = batch.vocabulary.names
    prompts = draw_class_prompts(names, templates, draws)
    phrases = draw_phrases(batch.phrases, grounding.max_phrases, draws)
    asked = [
        _asked_classes(segments, names, grounding.max_phrases, templates, draws)
        if grounding.asks_classes and not targets.phrases
        else _asked_phrases(targets)
        for targets, segments in zip(phrases, batch.segments, strict=True)
    ]
    captions = batch.captions if has_nouns and batch.captions else [()] * len(batch.keys)
    return Questions(
        prompts=tuple(prompts),
        class_ids=tuple(stable_hash(word_stem(plain_name(name))) for name in names),
        asked=tuple(asked),
        nouns=tuple(_caption_nouns(texts, names, templates, draws) for texts in captions),
    )


def _asked_phrases(targets: PhraseTargets) -> AskedRegions:
    ids = tuple(stable_hash(text) for text in targets.phrases)
    return AskedRegions(texts=targets.phrases, masks=targets.masks, ids=ids)


def _asked_classes(
    segments: SegmentTargets,
    names: Sequence[str],
    max_classes: int,
    templates: Sequence[str],
    draws: UniformSource,
) -> AskedRegions:
    """All segments of some of the image's classes, each under a prompt of its own."""
    class_ids: list[int] = segments.class_ids.tolist()
    present = sorted(set(class_ids))
    if not present:
        return AskedRegions(texts=(), masks=segments.masks, ids=(), are_classes=True)
    number = 1 + draws.choice(min(len(present), max_classes))
    chosen = {present[index] for index in draws.permutation(len(present))[:number]}
    rows = [i for i, class_id in enumerate(class_ids) if class_id in chosen]
    asked = [names[class_ids[row]] for row in rows]
    drawn = draws.choices(len(templates), len(rows))
    return AskedRegions(
        texts=tuple(
            training_prompt(name, templates[index])
            for name, index in zip(asked, drawn, strict=True)
        ),
        masks=segments.masks[torch.tensor(rows, device=segments.masks.device)],
        ids=tuple(stable_hash(name) for name in asked),
        are_classes=True,
    )


def _caption_nouns(
    captions: Sequence[str],
    names: Sequence[str],
    templates: Sequence[str],
    draws: UniformSource,
) -> CaptionNouns:
    """One caption's nouns that no class is named after, prompted, and the caption itself."""
    if not captions:
        return CaptionNouns()
    caption = captions[draws.choice(len(captions))]
    class_words = {word_stem(plain_name(name)) for name in names}
    nouns = [noun for noun in nouns_of(caption) if word_stem(noun) not in class_words]
    drawn = draws.choices(len(templates), len(nouns))
    prompts = [
        training_prompt(noun, templates[index]) for noun, index in zip(nouns, drawn, strict=True)
    ]
    stems = [word_stem(noun) for noun in nouns]
    return CaptionNouns(
        texts=(*prompts, caption),
        ids=tuple(stable_hash(text) for text in (*stems, caption)),
    )
