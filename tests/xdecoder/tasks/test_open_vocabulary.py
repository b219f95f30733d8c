"""Questions about segments, asked of small models."""

import numpy as np
import pytest
import torch

from xdecoder.batch import Vocabulary
from xdecoder.config import PixelDecoderConfig
from xdecoder.full_size import FullSizeMasks
from xdecoder.images import ImageFit
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, ResNetConfig
from xdecoder.prediction import PredictionConfig
from xdecoder.tasks import segmentation
from xdecoder.tasks.open_vocabulary import Instance, Panoptic, Semantic, class_columns

NAMES = Vocabulary.of("ball", "box", "sky", stuff=("sky",))
FIT = ImageFit(size_hw=(48, 80))


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (70, 130, 3), dtype=np.uint8)


@pytest.fixture
def closed_model():
    config = MaskFormerConfig(
        num_classes=3,
        class_names=("ball", "box", "sky-other-merged"),
        is_thing=(True, True, False),
        backbone=ResNetConfig(depths=(1, 1, 1, 1)),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=32),
        decoder=QueryDecoderConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=32, num_queries=6),
        pixel_dim=32,
        mask_dim=32,
    )
    return build_mask_former(config).eval()


def test_the_class_of_a_pixel_is_the_one_with_most_votes(small_model, image):
    found = small_model.predict(image, Semantic(vocabulary=NAMES, fit=FIT))
    result = segmentation.predict(small_model, FIT.pixels(image), NAMES.names, (70, 130))
    votes = torch.einsum("qk,qhw->khw", result.class_probs[:, :-1], result.mask_logits.sigmoid())
    assert found.class_ids.shape == (70, 130)
    # a pixel may change sides where two classes are equal up to rounding
    assert (found.class_ids == votes.argmax(0)).float().mean() > 0.999


def test_instances_are_things_with_boxes_around_their_masks(small_model, image):
    question = Instance(vocabulary=NAMES, fit=FIT, minimum_score=0.0)
    found = small_model.predict(image, question).instances
    assert len(found.scores) >= 2
    assert set(found.class_ids.tolist()) <= {0, 1}
    for mask, box in zip(found.masks, found.boxes_xyxy_px.int().tolist(), strict=True):
        rows, columns = mask.nonzero().unbind(1)
        assert box == [
            int(columns.min()),
            int(rows.min()),
            int(columns.max()) + 1,
            int(rows.max()) + 1,
        ]


def test_unsure_instances_are_left_out(small_model, image):
    everything = small_model.predict(image, Instance(vocabulary=NAMES, fit=FIT, minimum_score=0.0))
    limit = float(everything.instances.scores.median())
    some = small_model.predict(image, Instance(vocabulary=NAMES, fit=FIT, minimum_score=limit))
    scores = everything.instances.scores
    assert torch.equal(some.instances.scores, scores[scores >= limit])


def test_segments_do_not_overlap_and_cover_what_they_say(small_model, image):
    question = Panoptic(vocabulary=NAMES, fit=FIT, object_threshold=0.0, overlap_threshold=0.0)
    found = small_model.predict(image, question)
    assert found.segments
    for segment in found.segments:
        assert int((found.ids == segment.id).sum()) == segment.area_px > 0
        assert segment.is_thing == (segment.class_id != 2)


def test_the_names_of_training_are_the_default(small_model, image):
    small_model.prediction = PredictionConfig(segmentation=FIT, vocabulary=NAMES)
    own = small_model.predict(image, Semantic())
    assert own.vocabulary == NAMES
    assert torch.equal(
        own.class_ids, small_model.predict(image, Semantic(vocabulary=NAMES, fit=FIT)).class_ids
    )


def test_without_names_nothing_can_be_found(small_model, image):
    with pytest.raises(ValueError, match="needs names to look for; got none"):
        small_model.predict(image, Semantic())


@pytest.mark.parametrize("question", [Semantic, Panoptic, Instance])
def test_a_model_of_fixed_classes_answers_with_its_own(closed_model, image, question):
    answer = closed_model.predict(image, question(fit=FIT))
    assert answer.vocabulary.names == closed_model.class_names
    assert answer.vocabulary.is_thing == (True, True, False)


def test_a_model_of_fixed_classes_can_be_asked_for_some(closed_model, image):
    assert class_columns(closed_model, ("sky", "ball")) == [2, 0]
    asked = Vocabulary.of("sky", "ball", stuff=("sky",))
    found = closed_model.predict(image, Semantic(vocabulary=asked, fit=FIT))
    assert set(found.class_ids.unique().tolist()) <= {0, 1}


def test_a_stranger_to_fixed_classes_is_refused(closed_model, image):
    question = Panoptic(vocabulary=Vocabulary.of("bell"), fit=FIT)
    with pytest.raises(ValueError, match="'bell' is none of them, the nearest is 'ball'"):
        closed_model.predict(image, question)


def test_large_images_do_not_need_all_masks_at_once(small_model, monkeypatch):
    counts = []
    resized = FullSizeMasks._resized

    def spy(masks, mask_logits):
        counts.append(len(mask_logits))
        return resized(masks, mask_logits)

    monkeypatch.setattr(FullSizeMasks, "_resized", spy)
    image = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for question in (Semantic, Panoptic, Instance):
        small_model.predict(image, question(vocabulary=NAMES, fit=FIT))
    assert set(counts) == {1}
