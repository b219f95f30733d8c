from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.panels import TrainingPanels, make_panels
from pipelines.evaluation.sets import coco_data
from xdecoder.batch import (
    ImageTextBatch,
    PhraseTargets,
    SegmentationBatch,
    SegmentTargets,
    Vocabulary,
)
from xdecoder.model import XDecoder

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


def test_batches_without_segments_have_no_panels(tiny_model: XDecoder, tmp_path: Path) -> None:
    texts = ImageTextBatch(
        keys=("1",), images=torch.zeros(1, 3, 32, 64), valid_sizes_hw=((32, 64),), captions=("a",)
    )
    draw = TrainingPanels(tmp_path, options=OPTIONS)
    assert draw(1, tiny_model, [texts]) == {}
    assert draw(1, nn.Linear(2, 3), [batch()]) == {}
