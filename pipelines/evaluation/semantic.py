"""Mean intersection over union of semantic maps, exact, and mergeable over parts of a data set."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

IGNORE = 255


@dataclass(frozen=True, kw_only=True)
class SemanticScores:
    """IoU of classes, 0..1 (NaN where a class has no union), and their means.

    miou: over classes with a union, true or predicted (detectron2, X-Decoder, mmsegmentation);
    num_classes_in_mean: how many those are; miou_truth: over classes that occur in the truth;
    miou_all: absent classes count as 0 (sceneparsing); fwiou: weighted by pixels of the truth;
    mean_accuracy: over classes that occur in the truth. Means are NaN where nothing counts.
    """

    miou: float
    num_classes_in_mean: int
    miou_truth: float
    num_classes_in_truth: int
    miou_all: float
    pixel_accuracy: float
    mean_accuracy: float
    fwiou: float
    per_class: Float[np.ndarray, " k"]


class SemanticConfusion:
    """Counts of pixels by true and predicted class; pixels with an ignored truth do not count."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # the last column counts pixels without a prediction
        self.counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)  # [K, K+1]

    def add(
        self,
        truth: Int[np.ndarray, "h w"],
        predicted: Int[np.ndarray, "h w"],
        *,
        ignore: int = IGNORE,
    ) -> None:
        """Count one image; predictions outside 0..num_classes-1 are no class.

        Raises:
            ValueError: sizes differ, or a true class is out of range.
        """
        if truth.shape != predicted.shape:
            raise ValueError(
                f"SemanticConfusion: truth and prediction must have one size; got {truth.shape} "
                f"and {predicted.shape}. Resize the prediction to the original image."
            )
        counted = truth != ignore
        rows = truth[counted].astype(np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.num_classes):
            raise ValueError(
                f"SemanticConfusion: true classes must be 0..{self.num_classes - 1} or {ignore}; "
                f"got {rows.min()}..{rows.max()}. Check the label offset."
            )
        columns = predicted[counted].astype(np.int64)
        is_class = (columns >= 0) & (columns < self.num_classes)
        columns = np.where(is_class, columns, self.num_classes)
        width = self.num_classes + 1
        flat = np.bincount(rows * width + columns, minlength=self.num_classes * width)
        self.counts += flat.reshape(self.num_classes, width)  # [K, K+1]

    def merge(self, other: "SemanticConfusion") -> None:
        """Add the counts of another part of the data set."""
        self.counts += other.counts

    def result(self) -> SemanticScores:
        """The means and the IoU of each class."""
        hits = np.diagonal(self.counts).astype(np.float64)
        true = self.counts.sum(1).astype(np.float64)
        union = true + self.counts[:, : self.num_classes].sum(0) - hits
        per_class = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
        has_union, is_true = union > 0, true > 0
        return SemanticScores(
            miou=_mean(per_class[has_union]),
            num_classes_in_mean=int(has_union.sum()),
            miou_truth=_mean(per_class[is_true]),
            num_classes_in_truth=int(is_true.sum()),
            miou_all=float(np.nansum(per_class) / max(self.num_classes, 1)),
            pixel_accuracy=float(hits.sum() / true.sum()) if true.sum() else float("nan"),
            mean_accuracy=_mean(hits[is_true] / true[is_true]),
            fwiou=float((per_class[is_true] * true[is_true]).sum() / true.sum())
            if true.sum()
            else float("nan"),
            per_class=per_class,
        )


def _mean(values: Float[np.ndarray, " k"]) -> float:
    return float(values.mean()) if values.size else float("nan")
