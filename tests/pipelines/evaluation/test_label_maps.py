"""Data sets whose truth is a picture of labels, which tells no objects apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.records import Category, CocoRecord, CocoSplit, LabelMap
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictor import FoundSegments
from pipelines.evaluation.run import score_split, truth_hashes
from pipelines.evaluation.sets import EvaluationData
from xdecoder.batch import Vocabulary

SIZE_HW = (4, 6)
OPTIONS = EvaluationOptions(size_hw=SIZE_HW, text_size_hw=SIZE_HW)
# more classes than a byte has labels; the file's label n is category n
CATEGORIES = tuple(Category(id=n, name=f"c{n}", is_thing=False) for n in range(1, 301))


class Painter:
    """Sees class 255 everywhere but in the last column."""

    def segment(self, images: list[np.ndarray], vocabulary: Vocabulary) -> list[FoundSegments]:
        semantic = np.full(SIZE_HW, vocabulary.names.index("c256"))
        semantic[:, -1] = vocabulary.names.index("c7")
        nothing = np.zeros(SIZE_HW, dtype=np.int64)
        found = FoundSegments(
            segment_ids=nothing, classes={}, scores={}, semantic=semantic, instances=()
        )
        return [found for _ in images]


@pytest.fixture
def data(tmp_path: Path) -> EvaluationData:
    labels = np.full(SIZE_HW, 256, dtype=np.uint16)
    labels[0, :3], labels[3, -1] = 0, 7
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(np.zeros((*SIZE_HW, 3), np.uint8)).save(tmp_path / "image.png")
    record = CocoRecord(
        image_id=5,
        image_path=tmp_path / "image.png",
        size_hw=(0, 0),
        label_map=LabelMap(
            path=tmp_path / "labels.png",
            code="index",
            category_of={category.id: category.id for category in CATEGORIES},
        ),
    )
    split = CocoSplit(name="val", records=(record,), panoptic_categories=CATEGORIES)
    return EvaluationData(name="labels", root=tmp_path, split=split, has_objects=False)


def test_classes_beyond_a_byte_count_and_unlabelled_pixels_do_not(data: EvaluationData) -> None:
    scores = score_split(Painter(), data, options=OPTIONS, stages=["segmentation"])
    # 21 pixels are labelled: 20 of class 256, of which 3 lie in the last column, and one of 7
    assert scores.values["pixel_accuracy"] == pytest.approx(100 * 18 / 21)
    assert scores.values["miou"] == pytest.approx(100 * (17 / 20 + 1 / 4) / 2)
    assert scores.details["miou_num_classes_in_mean"] == 2
    assert scores.details["per_class"] == {
        "c7": {"iou": pytest.approx(25)},
        "c256": {"iou": pytest.approx(85)},
    }


def test_without_objects_there_is_no_panoptic_quality(data: EvaluationData) -> None:
    scores = score_split(Painter(), data, options=OPTIONS, stages=["segmentation"])
    assert not [key for key in scores.values if key.startswith(("pq", "sq", "rq", "ap"))]


def test_label_pictures_are_part_of_the_truths_hash(data: EvaluationData) -> None:
    before = truth_hashes(data)
    Image.fromarray(np.ones(SIZE_HW, np.uint8)).save(data.root / "labels.png")
    assert set(before) == {"1 label pictures"}
    assert truth_hashes(data) != before
