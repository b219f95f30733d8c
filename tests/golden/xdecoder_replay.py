"""A recorded training step in our own terms: its losses, its draws, its batches and questions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from xdecoder_recording import Case, Recording, joined

from xdecoder.batch import (
    ImageTextBatch,
    PhraseTargets,
    SegmentationBatch,
    SegmentTargets,
    Vocabulary,
)
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.matching import MatchingCosts
from xdecoder.losses.points import PointSampling
from xdecoder.tasks import LossConfig
from xdecoder.tasks.config import (
    GroundingWeights,
    LayeredWeight,
    MaskWeights,
    NounWeights,
    RegionTextWeights,
    as_released,
)
from xdecoder.tasks.questions import AskedRegions, CaptionNouns, Questions


def loss_config(case: Case) -> LossConfig:
    """The weights of an official configuration, and all that the released program does apart."""
    decoder = case.official["DECODER"]
    grounding = decoder["GROUNDING"]
    return LossConfig(
        matching=MatchingCosts(
            label=decoder["CLASS_WEIGHT"], bce=decoder["MASK_WEIGHT"], dice=decoder["DICE_WEIGHT"]
        ),
        points=PointSampling(
            num_points=decoder["TRAIN_NUM_POINTS"],
            oversample=decoder["OVERSAMPLE_RATIO"],
            importance=decoder["IMPORTANCE_SAMPLE_RATIO"],
        ),
        mask=MaskWeights(
            ce=decoder["CLASS_WEIGHT"],
            bce=decoder["MASK_WEIGHT"],
            dice=decoder["DICE_WEIGHT"],
            background=decoder["NO_OBJECT_WEIGHT"],
        ),
        grounding=GroundingWeights(
            ce=decoder["GCLASS_WEIGHT"],
            bce=decoder["GMASK_WEIGHT"],
            dice=decoder["GDICE_WEIGHT"],
            phrase_factor=grounding["TEXT_WEIGHT"],
            class_factor=grounding["CLASS_WEIGHT"],
            num_layers=decoder["TOP_GROUNDING_LAYERS"],
        ),
        region_text=RegionTextWeights(weight=0.0),
        nouns=NounWeights(
            weight=decoder["CAPTION_WEIGHT"], num_layers=decoder["TOP_CAPTION_LAYERS"]
        ),
        captioning=LayeredWeight(
            weight=decoder["CAPTIONING_WEIGHT"], num_layers=decoder["TOP_CAPTIONING_LAYERS"]
        ),
        retrieval=LayeredWeight(
            weight=decoder["RETRIEVAL_WEIGHT"], num_layers=decoder["TOP_RETRIEVAL_LAYERS"]
        ),
        retrieval_backbone=decoder["BACKBONER_WEIGHT"],
        released=as_released(),
    )


class Playback(UniformSource):
    """Recorded draws in their order; rows that they drew one by one may be asked for together."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self._rest = list(draws)

    def uniform(self, *shape: int) -> Tensor:
        parts = [self._rest.pop(0)]
        while sum(len(part) for part in parts) < shape[0]:
            parts.append(self._rest.pop(0))
        drawn = torch.cat(parts)
        if tuple(drawn.shape) != shape:
            raise ValueError(f"Playback: recorded {list(drawn.shape)}; asked for {list(shape)}.")
        return drawn

    @property
    def num_left(self) -> int:
        return len(self._rest)


def segmentation_batch(recorded: Recording) -> tuple[SegmentationBatch, Questions]:
    """The recorded images and targets, and the texts that were drawn for them."""
    images, sizes_hw = joined(recorded)
    drawn = recorded.fact("texts")
    modes = recorded.fact("grounding_modes")
    classes = recorded.numbered("in.gt_classes_")
    stems = dict(
        zip(
            torch.cat(classes).tolist(),
            torch.cat(recorded.numbered("tgt.labels_hash_")).tolist(),
            strict=True,
        )
    )
    num_classes = len(drawn["class_prompts"]) - 1
    segments = [
        SegmentTargets(masks=masks.bool(), class_ids=class_ids)
        for masks, class_ids in zip(recorded.numbered("in.gt_masks_"), classes, strict=True)
    ]
    asked = [
        AskedRegions(
            texts=tuple(texts),
            masks=recorded[f"in.grounding_masks_{i}"].bool(),
            ids=tuple(recorded[f"in.grounding_hash_{i}"].tolist()),
            are_classes=modes[i] == "class",
        )
        for i, texts in enumerate(drawn["grounding_texts"])
    ]
    nouns = [
        CaptionNouns(texts=tuple(texts), ids=tuple(recorded[f"tgt.captions_hash_{i}"].tolist()))
        for i, texts in enumerate(drawn["caption_texts"])
    ]
    batch = SegmentationBatch(
        keys=tuple(str(i) for i in range(len(images))),
        images=images,
        valid_sizes_hw=tuple(sizes_hw),
        vocabulary=Vocabulary(
            names=tuple(drawn["class_prompts"][:-1]), is_thing=(True,) * num_classes
        ),
        segments=tuple(segments),
        phrases=tuple(PhraseTargets(phrases=a.texts, masks=a.masks) for a in asked),
    )
    questions = Questions(
        prompts=tuple(drawn["class_prompts"]),
        # the stems of classes that are not there were not recorded, and do not matter
        class_ids=tuple(stems.get(index, -1 - index) for index in range(num_classes)),
        asked=tuple(asked),
        nouns=tuple(nouns),
    )
    return batch, questions


def image_text_batch(recorded: Recording) -> ImageTextBatch:
    """The recorded images and captions."""
    images, sizes_hw = joined(recorded)
    return ImageTextBatch(
        keys=tuple(str(i) for i in range(len(images))),
        images=images,
        valid_sizes_hw=tuple(sizes_hw),
        captions=tuple(recorded.fact("captions")),
    )
