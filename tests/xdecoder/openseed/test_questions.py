"""Questions asked of a small untrained model, and what it reads of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xdecoder.batch import Vocabulary
from xdecoder.images import ImageFit
from xdecoder.openseed import questions
from xdecoder.openseed.questions import (
    MasksOfBoxes,
    best_of_phrases,
    clipped,
    has_area,
    phrase_vectors,
    see_texts,
)
from xdecoder.prediction import PredictionConfig
from xdecoder.tasks.captioning import Captioning
from xdecoder.tasks.detection import Detection, Grounding, ReferringDetection
from xdecoder.tasks.open_vocabulary import Instance, Panoptic, Semantic
from xdecoder.tasks.referring import Referring

NAMES = Vocabulary.of("cat", "dog", "sky", stuff=("sky",))
SIZE_HW = (75, 50)
# the fixed size of a small model: 96 x 64 pixels of the picture
FIT = ImageFit(size_hw=(96, 128))


@pytest.fixture
def model(tiny_model):
    tiny_model.prediction = PredictionConfig(
        segmentation=FIT, referring=FIT, object_threshold=0.0, vocabulary=NAMES
    )
    # an untrained model sees the same everywhere
    torch.nn.init.normal_(tiny_model.decoder.heads.box_mlp.layers[-1].weight, std=0.5)
    return tiny_model.eval()


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)


def everything(**changes):
    return replace(Detection(minimum_score=0.0), **changes)


def test_detections_are_named_boxes_inside_the_picture(model, image):
    found = model.predict(image, everything(with_masks=True))
    count = len(found.scores)
    assert count > 3
    assert set(found.names) <= {"cat", "dog"}
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    left, top, right, bottom = found.boxes_xyxy_px.unbind(1)
    assert ((left >= 0) & (left < right) & (right <= 50)).all()
    assert ((top >= 0) & (top < bottom) & (bottom <= 75)).all()
    assert found.masks.shape == (count, *SIZE_HW)


def test_masks_are_made_only_where_they_are_wanted(model, image, monkeypatch):
    monkeypatch.setattr("xdecoder.tasks.detection.cut_masks", None)
    assert model.predict(image, everything()).masks is None


def test_unsure_boxes_are_left_out(model, image):
    scores = model.predict(image, everything()).scores
    limit = float(scores.median())
    some = model.predict(image, everything(minimum_score=limit))
    assert torch.equal(some.scores, scores[scores >= limit])
    assert len(model.predict(image, everything(top_k=2)).scores) <= 2


def test_the_names_of_training_are_the_default(model, image):
    asked = model.predict(image, everything(vocabulary=NAMES))
    assert torch.equal(model.predict(image, everything()).boxes_xyxy_px, asked.boxes_xyxy_px)
    model.prediction = replace(model.prediction, vocabulary=None)
    with pytest.raises(ValueError, match="needs names to look for; got none"):
        model.predict(image, everything())


def test_names_and_phrases_are_told_apart_and_asked_in_one_look(model, image, monkeypatch):
    looks = []
    look = questions.look
    monkeypatch.setattr(questions, "look", lambda *given: looks.append(1) or look(*given))
    phrases = ("the cat on the left", "something else")
    both = model.predict(image, Grounding(phrases=phrases, minimum_score=0.0))
    assert len(looks) == 1
    assert set(both.names.names) <= {"cat", "dog"}
    assert both.phrases.phrases == phrases
    assert both.phrases.boxes_xyxy_px.shape == (2, 4)
    # the columns of the names are those of names alone, of the same queries
    seen = see_texts(model, image, NAMES.names, phrases)
    same = everything().read(seen, NAMES)
    assert torch.equal(both.names.boxes_xyxy_px, same.boxes_xyxy_px)


def test_a_phrase_has_the_box_of_the_query_that_it_fits_best(model, image):
    phrases = ("the cat on the left", "sky")
    found = model.predict(image, ReferringDetection(phrases=phrases, with_masks=True))
    seen = see_texts(model, image, (), phrases)
    boxes = clipped(seen.boxes_xyxy_px, SIZE_HW)
    scores = seen.scores * has_area(boxes)[:, None]
    torch.testing.assert_close(found.scores, scores.max(0).values)
    torch.testing.assert_close(found.boxes_xyxy_px, boxes[scores.argmax(0)])
    regions = model.predict(image, Referring(phrases=phrases))
    assert torch.equal(regions.masks, found.masks)


def test_no_phrases_have_no_boxes(model, image):
    assert model.predict(image, ReferringDetection(phrases=())).boxes_xyxy_px.shape == (0, 4)
    both = model.predict(image, Grounding(phrases=(), minimum_score=0.0))
    assert len(both.names.scores) > 0
    assert len(both.phrases.scores) == 0


def test_a_phrase_is_a_name_in_its_own_words(model):
    plain = model.class_embeddings(model, ["cat"], templates=("{}.",))
    torch.testing.assert_close(phrase_vectors(model, ["cat", "cat."]), plain.expand(2, -1))


def test_a_box_outside_of_the_picture_is_nobodys(model, image):
    seen = see_texts(model, image, (), ("a", "b"))
    outside = torch.tensor([60.0, 5, 70, 9])
    boxes = outside.expand(len(seen.scores), 4).clone()
    nowhere = replace(seen, boxes_xyxy_px=boxes)
    assert len(everything().read(nowhere, Vocabulary.of("a", "b")).scores) == 0
    assert best_of_phrases(nowhere, 2)[0].tolist() == [0.0, 0.0]
    found = ReferringDetection(phrases=("a", "b")).read(nowhere)
    assert found.boxes_xyxy_px.tolist() == [[0.0] * 4] * 2
    boxes[4] = torch.tensor([-5.0, 5, 20, 90])
    found = ReferringDetection(phrases=("a", "b")).read(replace(seen, boxes_xyxy_px=boxes))
    assert found.boxes_xyxy_px.tolist() == [[0.0, 5, 20, 75]] * 2


@pytest.mark.parametrize("size_hw", [(75, 1), (1, 60), (1, 1)])
def test_a_picture_one_pixel_wide_has_finite_answers(model, size_hw):
    image = np.random.default_rng(2).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    model.prediction = replace(model.prediction, segmentation=ImageFit(size_hw=(40, 60)))
    # more queries than such a picture has places
    model.decoder.num_queries = 300
    found = model.predict(image, Grounding(phrases=("a cat",), minimum_score=0.0))
    for part in (*found.names[:3], *found.phrases[1:3]):
        assert torch.isfinite(part).all()
    height, width = size_hw
    box = (0.0, 0.0, float(width), float(height))
    given = model.predict(image, MasksOfBoxes(boxes_xyxy_px=(box,), names=("cat",)))
    assert torch.isfinite(given.scores).all()
    assert given.masks.shape == (1, *size_hw)


def test_segments_are_answered_at_the_size_of_the_picture(model, image):
    assert model.predict(image, Semantic()).class_ids.shape == SIZE_HW
    panoptic = model.predict(image, Panoptic(overlap_threshold=0.0))
    assert panoptic.ids.shape == SIZE_HW
    assert panoptic.segments
    found = model.predict(image, Instance(minimum_score=0.0)).instances
    assert len(found.scores) > 1
    assert set(found.class_ids.tolist()) <= {0, 1}
    assert float(found.boxes_xyxy_px[:, 2].max()) <= 50


def test_given_boxes_get_masks_that_end_where_they_end(model, image):
    boxes = ((3.0, 4.0, 30.0, 50.0), (20.0, -9.0, 90.0, 40.0))
    question = MasksOfBoxes(boxes_xyxy_px=boxes, names=("dog", "dog"))
    found = model.predict(image, question)
    assert found.names == ("dog", "dog")
    assert found.boxes_xyxy_px.tolist() == [[3, 4, 30, 50], [20, 0, 50, 40]]
    assert found.masks.any()
    outside = torch.ones(2, *SIZE_HW, dtype=torch.bool)
    outside[0, 4:50, 3:30] = False
    outside[1, :40, 20:] = False
    assert not (found.masks & outside).any()
    moved = replace(question, boxes_xyxy_px=(boxes[1], boxes[1]))
    assert not torch.equal(model.predict(image, moved).masks[0], found.masks[0])
    none = model.predict(image, MasksOfBoxes(boxes_xyxy_px=(), names=()))
    assert none.masks.shape == (0, *SIZE_HW)


def test_given_boxes_are_shares_of_the_padded_image(model, image, monkeypatch):
    """The picture of 75 x 50 is seen at 96 x 64; both are multiples of what is padded to."""
    asked = []
    decode = questions.conditioned_masks

    def kept(*given, **more):
        asked.append(given[4][0])
        return decode(*given, **more)

    monkeypatch.setattr(questions, "conditioned_masks", kept)
    question = MasksOfBoxes(boxes_xyxy_px=((10.0, 15, 30, 45),), names=("cat",))
    model.predict(image, question)
    torch.testing.assert_close(asked[0], torch.tensor([[20 / 50, 30 / 75, 20 / 50, 30 / 75]]))
    # seen at 75 x 50, it is padded to 96 x 64
    model.predict(image, replace(question, fit=ImageFit(size_hw=(75, 50))))
    torch.testing.assert_close(asked[1], torch.tensor([[20 / 64, 30 / 96, 20 / 64, 30 / 96]]))


@pytest.mark.parametrize(
    "box", [(60, 5, 70, 9), (9, 5, 9, 8), (9, 5, 4, 8), (float("nan"), 0, 5, 5)]
)
def test_a_box_without_pixels_is_refused(model, image, box):
    question = MasksOfBoxes(boxes_xyxy_px=((1, 1, 5, 5), box), names=("cat", "cat"))
    with pytest.raises(ValueError, match=r"box 1 must be x, y, x, y .* 50 x 75 pixels; got"):
        model.predict(image, question)


def test_each_box_needs_a_name():
    with pytest.raises(ValueError, match="each box must have a name; got 1 boxes and 2 names"):
        MasksOfBoxes(boxes_xyxy_px=((0, 0, 1, 1),), names=("cat", "dog"))


def test_what_an_openseed_does_not_answer_is_refused(model, image):
    text = r"Captioning: must be asked of XDecoder; got .* OpenSeeD, which answers .*Detection"
    with pytest.raises(TypeError, match=text):
        model.predict(image, Captioning())
