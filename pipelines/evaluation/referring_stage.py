"""Referring segmentation over a split, every sentence on its own; exchanged phrases as control."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from pipelines.data.coco import CocoRecord, decode_mask
from pipelines.evaluation.controls import shuffled_partners
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.referring import ReferringOverlap

Values = dict[str, float]
# groups of sentences: all, and those that only a relation to other objects makes unambiguous
_GROUPS = ("", "_relation")


class ReferringStage:
    """Overlap of each sentence's region, and of that of another object's sentence in its place."""

    name = "referring"

    def __init__(self, records: Sequence[CocoRecord], *, with_controls: bool = True) -> None:
        self._overlaps = {
            (group, is_shuffled): ReferringOverlap()
            for group in _GROUPS
            for is_shuffled in (False, True)
        }
        self._num_images = 0
        self._with_controls = with_controls
        self._stand_ins = _stand_ins(records)
        self._overlap_of_image: dict[int, float] = {}

    def wants(self, record: CocoRecord) -> bool:
        """Whether there are sentences about the image."""
        return bool(record.refs)

    def add(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> None:
        """Predict and take some images."""
        for image, record in zip(images, records, strict=True):
            self._add_image(predictor, image, record)

    def result(self) -> tuple[Values, dict[str, Any]]:
        """Percentages by key, and counts."""
        values: Values = {}
        for (group, is_shuffled), overlap in self._overlaps.items():
            scores = overlap.result()
            if scores.num_sentences == 0:
                continue
            suffix = f"{group}{'_shuffled' if is_shuffled else ''}"
            values[f"refer_ciou{suffix}"] = 100 * scores.ciou
            values[f"refer_miou{suffix}"] = 100 * scores.miou
            values[f"refer_p50{suffix}"] = 100 * scores.precision[0]
            if not suffix:
                values |= _precisions(scores.precision)
        counts = {
            "num_sentences": len(self._overlaps["", False].unions),
            "num_sentences_relation": len(self._overlaps["_relation", False].unions),
            "num_images_referring": self._num_images,
        }
        return values, counts

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id."""
        return {"refer_iou": {key: 100 * value for key, value in self._overlap_of_image.items()}}

    def _add_image(self, predictor: Predictor, image: ImageArray, record: CocoRecord) -> None:
        sentences = [
            (sentence, decode_mask(region.instance.segmentation, record.size_hw))
            for region in record.refs
            for sentence in region.sentences
        ]
        stand_ins = [self._stand_ins[record.image_id, s.id] for s, _ in sentences]
        texts = [sentence.text for sentence, _ in sentences]
        asked = texts + (stand_ins if self._with_controls else [])
        distinct = list(dict.fromkeys(asked))
        regions = dict(zip(distinct, predictor.refer(image, distinct), strict=True))
        own = []
        for (sentence, truth), stand_in in zip(sentences, stand_ins, strict=True):
            groups = _GROUPS if sentence.is_relation_needed else _GROUPS[:1]
            own.append(self._take(groups, False, regions[sentence.text], truth))
            if self._with_controls:
                self._take(groups, True, regions[stand_in], truth)
        self._overlap_of_image[record.image_id] = float(np.mean(own))
        self._num_images += 1

    def _take(
        self,
        groups: Sequence[str],
        is_shuffled: bool,
        region: Bool[np.ndarray, "h w"],
        truth: Bool[np.ndarray, "h w"],
    ) -> float:
        overlaps = [self._overlaps[group, is_shuffled].add(region, truth) for group in groups]
        return overlaps[0]


def _stand_ins(records: Sequence[CocoRecord]) -> dict[tuple[int, int], str]:
    """For each sentence of the split, the text of another object's sentence."""
    places = [
        (record.image_id, region.ref_id, sentence)
        for record in records
        for region in record.refs
        for sentence in region.sentences
    ]
    partners = shuffled_partners([ref_id for _, ref_id, _ in places])
    return {
        (image_id, sentence.id): places[partner][2].text
        for (image_id, _, sentence), partner in zip(places, partners, strict=True)
    }


def _precisions(precision: Sequence[float]) -> Values:
    return {f"refer_p{50 + 10 * index}": 100 * value for index, value in enumerate(precision)}
