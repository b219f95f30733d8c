"""Mean IoU of two folders of label pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from pipelines.errors import DataError
from pipelines.evaluation.files.reading import read_labels, some
from pipelines.evaluation.files.result import FileScores
from pipelines.evaluation.semantic import SemanticConfusion

FORMAT = """semantic: two folders of label pictures with equal names (PNG, TIFF; 8 or 16 bit)
  predictions/ADE_val_00000001.png     truth/ADE_val_00000001.png     (one file each works as well)
  --ignore 255        labels of the truth that do not count, one or several; default 255
  --num-classes 150   default: as many as the largest label needs. Classes are the smallest labels
                      that are not ignored: 0..149 with --ignore 255, 1..150 with --ignore 0
  A predicted label that is no class is a miss. Every picture of the truth needs a prediction."""
SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".pgm"})
DEFAULT_IGNORE = (255,)
_IGNORED, _NO_CLASS = -1, -2
_NAMES = ("miou", "miou_truth", "miou_all", "pixel_accuracy", "mean_accuracy", "fwiou")
_OFFICIAL = {"mIoU": "miou", "fwIoU": "fwiou", "mACC": "mean_accuracy", "pACC": "pixel_accuracy"}


def score_semantic_files(
    *,
    predictions: Path,
    truth: Path,
    ignore: Sequence[int] = DEFAULT_IGNORE,
    num_classes: int | None = None,
) -> FileScores:
    """Mean IoU with its three denominators, accuracies, and the IoU of each class.

    Raises:
        DataError: files are missing, damaged, of two sizes, or the truth has labels out of range.
    """
    pairs, num_unused = _pairs(predictions, truth)
    if num_classes is None:
        classes = _all_classes(pairs, ignore)
    else:
        classes = _first_classes(num_classes, ignore)
    confusion = SemanticConfusion(len(classes))
    per_image = {}
    for name, (found, true) in pairs.items():
        one = _confusion_of(found, true, classes, ignore)
        confusion.merge(one)
        per_image[name] = one.result().miou
    scores = confusion.result()
    return FileScores(
        protocol=f"semantic/{len(classes)}-classes/ignore-{'-'.join(map(str, ignore))}"
        "/mean-over-true-or-predicted",
        values={name: getattr(scores, name) for name in _NAMES},
        official={
            **{name: getattr(scores, ours) for name, ours in _OFFICIAL.items()},
            f"Mean IoU over {len(classes)} classes": scores.miou_all,
        },
        per_class={
            str(label): {"iou": float(value)}
            for label, value in zip(classes, scores.per_class, strict=True)
            if np.isfinite(value)
        },
        per_item=per_image,
        truth_files=tuple(true for _, true in pairs.values()),
        prediction_files=tuple(found for found, _ in pairs.values()),
        details={
            "num_images": len(pairs),
            "num_predictions_unused": num_unused,
            "num_classes": len(classes),
            "num_classes_in_mean": scores.num_classes_in_mean,
            "num_classes_in_truth": scores.num_classes_in_truth,
            "num_pixels": int(confusion.counts.sum()),
        },
    )


def _confusion_of(
    found_path: Path, true_path: Path, classes: Sequence[int], ignore: Sequence[int]
) -> SemanticConfusion:
    true = read_labels(true_path)
    rows = _indices(true, classes)
    rows[np.isin(true, ignore)] = _IGNORED
    if (rows == _NO_CLASS).any():
        odd = set(true[rows == _NO_CLASS].tolist())
        raise DataError(
            f"{true_path}: labels must be {classes[0]}..{classes[-1]} or ignored ({some(ignore)}); "
            f"got {some(odd)}. Set --num-classes and --ignore."
        )
    confusion = SemanticConfusion(len(classes))
    try:
        confusion.add(rows, _indices(read_labels(found_path), classes), ignore=_IGNORED)
    except ValueError as error:
        raise DataError(f"{found_path}: {error}") from error
    return confusion


def _pairs(predictions: Path, truth: Path) -> tuple[dict[str, tuple[Path, Path]], int]:
    """Prediction and truth by name, and how many predictions have no truth."""
    if truth.is_file() and predictions.is_file():
        return {truth.stem: (predictions, truth)}, 0
    true, found = _pictures(truth), _pictures(predictions)
    missing = sorted(set(true) - set(found))
    if missing:
        raise DataError(
            f"{predictions}: must have a picture for each of the {len(true)} of {truth}, with the "
            f"same name; {len(missing)} are missing: {some(missing)}."
        )
    return {name: (found[name], true[name]) for name in sorted(true)}, len(set(found) - set(true))


def _pictures(folder: Path) -> dict[str, Path]:
    """Label pictures below a folder by path without suffix."""
    if not folder.is_dir():
        raise DataError(f"{folder}: must be a folder of label pictures; there is no such folder.")
    pictures: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in pictures:
            raise DataError(f"{path}: its name must be unique without suffix; {pictures[name]}.")
        pictures[name] = path
    if not pictures:
        raise DataError(f"{folder}: must hold label pictures ({some(SUFFIXES)}); there is none.")
    return pictures


def _all_classes(pairs: dict[str, tuple[Path, Path]], ignore: Sequence[int]) -> list[int]:
    largest = 0
    for pair in pairs.values():
        for path in pair:
            labels = read_labels(path)
            counted = labels[~np.isin(labels, ignore)]
            largest = max(largest, int(counted.max(initial=0)))
    return [label for label in range(largest + 1) if label not in ignore]


def _first_classes(count: int, ignore: Sequence[int]) -> list[int]:
    if count < 1:
        raise DataError(f"semantic: num_classes must be positive; got {count}.")
    return [label for label in range(count + len(ignore)) if label not in ignore][:count]


def _indices(labels: Int[np.ndarray, "h w"], classes: Sequence[int]) -> Int[np.ndarray, "h w"]:
    """The place of each label among the classes; `_NO_CLASS` where it is none of them."""
    places = np.searchsorted(classes, labels)
    is_class = np.asarray(classes)[np.minimum(places, len(classes) - 1)] == labels
    return np.where(is_class, places, _NO_CLASS)
