"""Referring segmentation: overlap of the region of a sentence with the object that it means."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class ReferringScores:
    """Overlap over sentences, 0..1; NaN without a sentence.

    ciou: summed intersection over summed union ("overall IoU"); miou: mean over sentences;
    precision: share of sentences with IoU at or above each of `THRESHOLDS`.
    """

    ciou: float
    miou: float
    precision: tuple[float, ...]
    num_sentences: int


@dataclass
class ReferringOverlap:
    """Pixels in common and in union, one pair for each sentence, in the order of arrival.

    epsilon: added to each union in the mean and the precisions, as some protocols do.
    """

    epsilon: float = 0.0
    intersections: list[int] = field(default_factory=list)
    unions: list[int] = field(default_factory=list)

    def add(self, predicted: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
        """Take one sentence; gives its IoU, which is 0 where both regions are empty.

        Raises:
            ValueError: the regions differ in size.
        """
        if predicted.shape != truth.shape:
            raise ValueError(
                f"ReferringOverlap: regions must have one size; got {predicted.shape} predicted "
                f"and {truth.shape} annotated. Predict at the original size of the image."
            )
        return self.add_pixels(int((predicted & truth).sum()), int((predicted | truth).sum()))

    def add_pixels(self, intersection: int, union: int) -> float:
        """Take one sentence whose pixels are counted already; gives its IoU."""
        self.intersections.append(intersection)
        self.unions.append(union)
        return intersection / max(union, 1)

    def result(self) -> ReferringScores:
        """The scores over all sentences taken.

        Source: yz93/LAVT-RIS, test.py (a sentence without any pixel counts as 0).
        """
        if not self.unions:
            nothing = float("nan")
            precision = (nothing,) * len(THRESHOLDS)
            return ReferringScores(ciou=nothing, miou=nothing, precision=precision, num_sentences=0)
        intersections = np.array(self.intersections, dtype=np.int64)
        unions = np.array(self.unions, dtype=np.int64)
        overlaps = intersections / (np.maximum(unions, 1) + self.epsilon)
        return ReferringScores(
            ciou=float(intersections.sum() / max(int(unions.sum()), 1)),
            miou=float(overlaps.mean()),
            precision=tuple(float((overlaps >= threshold).mean()) for threshold in THRESHOLDS),
            num_sentences=len(self.unions),
        )
