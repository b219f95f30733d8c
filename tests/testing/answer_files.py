"""Small files of predictions and truths that the tests of scoring write, break and have refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import DataError
from pipelines.evaluation.files import FileOptions, score_files
from pipelines.evaluation.instance import encode_mask

SIZE_HW = (20, 30)


def blob(top: int, left: int, height: int = 8, width: int = 10) -> np.ndarray:
    """The mask of a rectangle."""
    region = np.zeros(SIZE_HW, dtype=bool)
    region[top : top + height, left : left + width] = True
    return region


def written(path: Path, document: object) -> Path:
    """The path, once the document is there."""
    path.write_text(json.dumps(document))
    return path


def refused(metric: str, predictions: Path, truth: Path, text: str, **options: Any) -> None:
    """Return if scoring these files is refused with a message that matches the text."""
    with pytest.raises(DataError, match=text):
        score_files(metric, predictions=predictions, truth=truth, options=FileOptions(**options))


def edited(path: Path, change: Callable[[Any], object]) -> Path:
    """The path, once its document was changed in place."""
    document = json.loads(path.read_text())
    change(document)
    return written(path, document)


def detection_pair(folder: Path) -> tuple[Path, Path]:
    """Predictions and truth: one object of one image, found exactly."""
    row = {"image_id": 1, "category_id": 7, "segmentation": encode_mask(blob(2, 3))}
    images = [{"id": 1, "height": SIZE_HW[0], "width": SIZE_HW[1]}]
    truth = {"images": images, "annotations": [row], "categories": [{"id": 7, "name": "cup"}]}
    found = written(folder / "found.json", [{**row, "score": 0.5}])
    return found, written(folder / "truth.json", truth)
