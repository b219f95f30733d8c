"""Boxes from models that only have masks."""

import numpy as np
import pytest
import torch

from xdecoder.batch import Vocabulary
from xdecoder.config import PixelDecoderConfig
from xdecoder.images import ImageFit
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, ResNetConfig
from xdecoder.openseed.questions import MasksOfBoxes
from xdecoder.tasks.detection import Detection, Grounding, ReferringDetection
from xdecoder.tasks.open_vocabulary import Instance
from xdecoder.tasks.referring import Referring

NAMES = Vocabulary.of("ball", "box", "sky", stuff=("sky",))
FIT = ImageFit(size_hw=(48, 80))
PHRASES = ("a ball", "the box on the left")


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (70, 130, 3), dtype=np.uint8)


def test_boxes_lie_around_the_masks(small_model, image):
    asked = {"vocabulary": NAMES, "fit": FIT, "minimum_score": 0.0}
    found = small_model.predict(image, Detection(**asked, with_masks=True))
    same = small_model.predict(image, Instance(**asked)).instances
    assert len(found.scores) >= 2
    assert torch.equal(found.boxes_xyxy_px, same.boxes_xyxy_px)
    assert torch.equal(found.masks, same.masks)
    assert small_model.predict(image, Detection(**asked)).masks is None


def test_phrases_have_the_boxes_of_their_regions(small_model, image):
    both = small_model.predict(
        image, Grounding(phrases=PHRASES, vocabulary=NAMES, fit=FIT, minimum_score=0.0)
    )
    regions = small_model.predict(image, Referring(phrases=PHRASES, fit=FIT))
    alone = small_model.predict(image, ReferringDetection(phrases=PHRASES, fit=FIT))
    assert both.phrases.phrases == alone.phrases == PHRASES
    assert torch.equal(alone.boxes_xyxy_px, regions.boxes_xyxy_px)
    assert torch.equal(both.phrases.boxes_xyxy_px, regions.boxes_xyxy_px)
    assert set(both.names.names) <= {"ball", "box"}


def test_a_model_of_fixed_classes_detects_and_reads_no_phrases(image):
    config = MaskFormerConfig(
        num_classes=3,
        class_names=NAMES.names,
        is_thing=NAMES.is_thing,
        backbone=ResNetConfig(depths=(1, 1, 1, 1)),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=32),
        decoder=QueryDecoderConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=32, num_queries=6),
        pixel_dim=32,
        mask_dim=32,
    )
    model = build_mask_former(config).eval()
    found = model.predict(image, Detection(fit=FIT, minimum_score=0.0))
    assert set(found.names) <= {"ball", "box"}
    for question in (Grounding(phrases=PHRASES), ReferringDetection(phrases=PHRASES)):
        with pytest.raises(TypeError, match=r"asked of XDecoder or OpenSeeD; got .* MaskFormer"):
            model.predict(image, question)


def test_an_x_decoder_has_no_masks_for_given_boxes(small_model, image):
    question = MasksOfBoxes(boxes_xyxy_px=((0, 0, 9, 9),), names=("ball",))
    with pytest.raises(TypeError, match=r"MasksOfBoxes: must be asked of OpenSeeD; .* XDecoder"):
        small_model.predict(image, question)
