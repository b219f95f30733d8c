"""Referring segmentation over a split by one of its protocols; exchanged phrases as control."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from pipelines.data.coco import CocoRecord, decode_mask
from pipelines.data.records import Instance
from pipelines.evaluation.controls import shuffled_partners
from pipelines.evaluation.instance import encode_mask
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.protocols import REFER_PER_SENTENCE, REFER_PROTOCOLS, ReferProtocol
from pipelines.evaluation.referring import ReferringOverlap
from pipelines.evaluation.stage import Answer, Values

# groups of sentences: all, and those that only a relation to other objects makes unambiguous
_GROUPS = ("", "_relation")


class _Asked(NamedTuple):
    """One phrase about one object."""

    sent_id: int
    ref_id: int
    text: str
    is_relation_needed: bool
    instance: Instance


class ReferringStage:
    """Overlap of each phrase's region, and of that of another object's phrase in its place."""

    name = "referring"

    def __init__(
        self,
        records: Sequence[CocoRecord],
        *,
        protocol: str = REFER_PER_SENTENCE,
        with_controls: bool = True,
    ) -> None:
        self._rules = REFER_PROTOCOLS[protocol]
        self._overlaps = {
            (group, is_shuffled): ReferringOverlap(epsilon=self._rules.epsilon)
            for group in _GROUPS
            for is_shuffled in (False, True)
        }
        self._num_images = 0
        self._with_controls = with_controls
        self._stand_ins = _stand_ins(records, self._rules)
        self._overlap_of_image: dict[int, float] = {}
        self._regions: list[dict[str, Any]] = []

    def wants(self, record: CocoRecord) -> bool:
        """Whether there are sentences about the image."""
        return any(region.sentences for region in record.refs)

    def answers(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> list[Answer]:
        """The region of each phrase, and pixels shared with and joined to its object."""
        return [
            self._answer(predictor, image, record)
            for image, record in zip(images, records, strict=True)
        ]

    def take(self, record: CocoRecord, answer: Answer) -> None:
        """Count the phrases of one image."""
        own = []
        for row in answer["sentences"]:
            groups = _GROUPS if row["is_relation_needed"] else _GROUPS[:1]
            overlaps = [self._overlaps[g, False].add_pixels(*row["pixels"]) for g in groups]
            own.append(overlaps[0])
            for group in groups if "shuffled" in row else ():
                self._overlaps[group, True].add_pixels(*row["shuffled"])
            names = {name: row[name] for name in ("sent_id", "ref_id", "sent", "segmentation")}
            self._regions.append({"image_id": record.image_id, **names})
        self._overlap_of_image[record.image_id] = float(np.mean(own))
        self._num_images += 1

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

    def write_predictions(self, folder: Path) -> None:
        """One RLE for each sentence, as `--metric referring` reads."""
        (folder / "referring.json").write_text(json.dumps(self._regions))

    def _answer(self, predictor: Predictor, image: ImageArray, record: CocoRecord) -> Answer:
        asked = _asked(record, self._rules)
        own = [each.text for each in asked]
        others = [self._stand_ins[record.image_id, each.sent_id] for each in asked]
        if not self._with_controls:
            regions = _regions(predictor, image, own)
            shuffled = regions
        elif self._rules.is_joint:
            # phrases that are asked together see each other, so the control is asked apart
            regions, shuffled = (_regions(predictor, image, texts) for texts in (own, others))
        else:
            regions = shuffled = _regions(predictor, image, [*own, *others])
        rows = []
        for each, other in zip(asked, others, strict=True):
            truth = decode_mask(each.instance.segmentation, (image.shape[0], image.shape[1]))
            row = {
                "sent_id": each.sent_id,
                "ref_id": each.ref_id,
                "sent": each.text,
                "is_relation_needed": each.is_relation_needed,
                "pixels": _pixels(regions[each.text], truth),
                "segmentation": encode_mask(regions[each.text]),
            }
            if self._with_controls:
                row["shuffled"] = _pixels(shuffled[other], truth)
            rows.append(row)
        return {"sentences": rows}


def _asked(record: CocoRecord, rules: ReferProtocol) -> list[_Asked]:
    """The phrases that a protocol asks about an image."""
    regions = list(record.refs)
    if rules.is_first_sentence_only:
        last = {region.instance.id: region for region in regions if region.sentences}
        regions = list(last.values())
    return [
        _Asked(
            sent_id=sentence.id,
            ref_id=region.ref_id,
            text=sentence.raw.lower() if rules.is_lower_case else sentence.text,
            is_relation_needed=sentence.is_relation_needed,
            instance=region.instance,
        )
        for region in regions
        for sentence in region.sentences[: 1 if rules.is_first_sentence_only else None]
    ]


def _regions(
    predictor: Predictor, image: ImageArray, texts: Sequence[str]
) -> dict[str, Bool[np.ndarray, "h w"]]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, predictor.refer(image, distinct), strict=True))


def _pixels(region: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> list[int]:
    return [int((region & truth).sum()), int((region | truth).sum())]


def _stand_ins(records: Sequence[CocoRecord], rules: ReferProtocol) -> dict[tuple[int, int], str]:
    """For each phrase of the split, the text of another object's phrase."""
    places = [(record.image_id, each) for record in records for each in _asked(record, rules)]
    partners = shuffled_partners([each.ref_id for _, each in places])
    return {
        (image_id, each.sent_id): places[partner][1].text
        for (image_id, each), partner in zip(places, partners, strict=True)
    }


def _precisions(precision: Sequence[float]) -> Values:
    return {f"refer_p{50 + 10 * index}": 100 * value for index, value in enumerate(precision)}
