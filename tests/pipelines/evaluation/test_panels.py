from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.panels import TrainingPanels, make_panels
from pipelines.evaluation.sets import coco_data
from xdecoder.batch import (
    BoxTargets,
    DetectionBatch,
    ImageTextBatch,
    PhraseTargets,
    SegmentationBatch,
    SegmentTargets,
    Vocabulary,
)
from xdecoder.model import XDecoder
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import small

OPTIONS = EvaluationOptions(size_hw=(48, 80), text_size_hw=(48, 80), max_caption_tokens=3)


def batch() -> SegmentationBatch:
    masks = torch.zeros(2, 48, 80, dtype=torch.bool)
    masks[0, 5:20, 10:40] = True
    masks[1, 25:40, 3:60] = True
    return SegmentationBatch(
        keys=("000000000003",),
        images=torch.rand(1, 3, 48, 80) * 255,
        valid_sizes_hw=((44, 70),),
        vocabulary=Vocabulary(names=("cup", "sand"), is_thing=(True, False)),
        segments=(SegmentTargets(masks=masks, class_ids=torch.tensor([0, 1])),),
        phrases=(PhraseTargets(phrases=("the cup",), masks=masks[:1]),),
    )


def test_each_image_is_a_row(scenes_root: Path, tiny_model: XDecoder, tmp_path: Path) -> None:
    data = coco_data(scenes_root, "val")
    ids = [record.image_id for record in data.split]
    heights = []
    for count in (1, 3):
        path = make_panels(tiny_model, data, ids[:count], tmp_path / "p.png", options=OPTIONS)
        heights.append(Image.open(path).height)
    assert heights[1] == 3 * heights[0]


def test_a_training_batch_is_drawn_without_its_padding(
    tiny_model: XDecoder, tmp_path: Path
) -> None:
    draw = TrainingPanels(tmp_path / "panels", options=OPTIONS)
    paths = draw(12, tiny_model, [batch()])
    assert paths == {"train": tmp_path / "panels" / "step_00000012.png"}
    sheet = np.asarray(Image.open(paths["train"]))
    assert sheet.shape[1] > 4 * 384
    assert sheet.std() > 20


def boxes() -> DetectionBatch:
    corners = torch.tensor([[10.0, 5, 40, 20], [3, 25, 60, 40]])
    return DetectionBatch(
        keys=("000000000004",),
        images=torch.full((1, 3, 48, 80), 60.0),
        valid_sizes_hw=((44, 70),),
        vocabulary=Vocabulary.of("cup", "spoon"),
        boxes=(BoxTargets(boxes_xyxy_px=corners, class_ids=torch.tensor([0, 1])),),
    )


@pytest.mark.parametrize("family", ["xdecoder", "openseed"])
def test_boxes_of_a_training_batch_are_drawn_as_truth(
    family: str, tiny_model: XDecoder, tmp_path: Path
) -> None:
    model = tiny_model if family == "xdecoder" else build_openseed(small()).eval()
    draw = TrainingPanels(tmp_path, options=OPTIONS)
    sheet = np.asarray(Image.open(draw(3, model, [boxes()])["train"])).astype(int)
    moved = boxes()
    moved.boxes[0].boxes_xyxy_px[0, :] = torch.tensor([45.0, 5, 65, 20])
    other = np.asarray(Image.open(draw(4, model, [moved])["train"])).astype(int)
    # pictures of 44 x 70 pixels are drawn 384 / 44 times as large, one after another
    changed = np.flatnonzero(np.abs(sheet - other).max(axis=(0, 2)) > 30) / (384 / 44)
    assert 70 + 10 < changed.min() < 70 + 13
    assert 70 + 62 < changed.max() < 2 * 70
    both = draw(5, model, [batch(), boxes()])
    assert Image.open(both["train"]).height > 1.8 * sheet.shape[0]


def test_batches_without_segments_have_no_panels(tiny_model: XDecoder, tmp_path: Path) -> None:
    texts = ImageTextBatch(
        keys=("1",), images=torch.zeros(1, 3, 32, 64), valid_sizes_hw=((32, 64),), captions=("a",)
    )
    draw = TrainingPanels(tmp_path, options=OPTIONS)
    assert draw(1, tiny_model, [texts]) == {}
    assert draw(1, nn.Linear(2, 3), [batch()]) == {}
