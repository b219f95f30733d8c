"""Zero-shot naming of objects whose colour and shape never met in training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.coco import CocoRecord, decode_mask
from pipelines.errors import DataError
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.stage import Answer, Values
from pipelines.evaluation.zero_shot import PairNaming, best_overlapping

Pair = tuple[str, str]
META_FILE = Path("annotations") / "scenes_meta.json"


@dataclass(frozen=True, kw_only=True)
class PairVocabulary:
    """All (colour, shape) pairs, those that training leaves out, and the pair of each instance."""

    candidates: tuple[Pair, ...]
    heldout: frozenset[Pair]
    pair_of_instance: Mapping[int, Pair]

    @classmethod
    def read(cls, root: Path) -> "PairVocabulary | None":
        """From `annotations/scenes_meta.json`; None where a data set has no such file.

        Raises:
            DataError: the file lacks a field.
        """
        path = root / META_FILE
        if not path.is_file():
            return None
        try:
            meta = json.loads(path.read_text())
            return cls(
                candidates=tuple((c, s) for c in meta["colours"] for s in meta["shapes"]),
                heldout=frozenset((p["colour"], p["shape"]) for p in meta["heldout_pairs"]),
                pair_of_instance={
                    int(key): (row["colour"], row["shape"])
                    for key, row in meta["instances"].items()
                },
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: must list colours, shapes, heldout_pairs and instances; "
                f"lacks or misuses {error}. Prepare the scenes again."
            ) from error


class NamingStage:
    """For each held-out object, the name of the region that covers it best."""

    name = "naming"

    def __init__(self, pairs: PairVocabulary) -> None:
        self._pairs = pairs
        self._naming = PairNaming(pairs.candidates)
        self._texts = [f"{colour} {shape}" for colour, shape in pairs.candidates]
        self._overlaps: list[float] = []

    def wants(self, record: CocoRecord) -> bool:
        """Whether the image shows a held-out pair."""
        return bool(self._heldout(record))

    def answers(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> list[Answer]:
        """For each held-out object, its true pair, the pair that is named, and the overlap."""
        answers = []
        for image, record in zip(images, records, strict=True):
            named = predictor.name_regions(image, self._texts)
            rows = []
            for instance, pair in self._heldout(record):
                truth = decode_mask(instance.segmentation, record.size_hw)
                best, overlap = best_overlapping(named.regions, truth)
                rows.append([list(pair), int(named.similarity[best].argmax()), overlap])
            answers.append({"objects": rows})
        return answers

    def take(self, record: CocoRecord, answer: Answer) -> None:
        """Count the objects of one image."""
        for pair, choice, overlap in answer["objects"]:
            self._naming.add((pair[0], pair[1]), choice)
            self._overlaps.append(overlap)

    def result(self) -> tuple[Values, dict[str, Any]]:
        """Percentages by key, and counts."""
        scores = self._naming.result()
        counts = {"num_objects_naming": scores.num_objects}
        if not scores.num_objects:
            return {}, counts
        values = {
            "zero_shot_top1": 100 * scores.top1,
            "zero_shot_top1_shuffled": 100 * scores.top1_shuffled,
            "zero_shot_chance": 100 * scores.chance,
            "zero_shot_colour": 100 * scores.attribute,
            "zero_shot_shape": 100 * scores.noun,
            "zero_shot_region_iou": 100 * sum(self._overlaps) / len(self._overlaps),
        }
        return values, counts

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id."""
        return {}

    def write_predictions(self, folder: Path) -> None:
        """Write nothing: there is no official format."""

    def _heldout(self, record: CocoRecord) -> list[tuple[Any, Pair]]:
        pairs = self._pairs.pair_of_instance
        return [
            (instance, pairs[instance.id])
            for instance in record.instances or ()
            if pairs.get(instance.id) in self._pairs.heldout
        ]
