"""A phrase finds a region, and the caption looks at that region."""

import numpy as np
import pytest
import torch

from xdecoder.images import ImageFit
from xdecoder.tasks import referring, referring_captioning
from xdecoder.tasks.captioning import Captioning
from xdecoder.tasks.referring_captioning import ReferringCaptioning, on_canvas

FIT = ImageFit(size_hw=(48, 80))


@pytest.fixture
def image():
    return np.random.default_rng(2).integers(0, 256, (70, 130, 3), dtype=np.uint8)


def scripted(logits):
    def predict(model, image, phrases, out_size_hw, **settings):
        return logits(*out_size_hw)[None]

    return predict


def left_part(height, width):
    columns = torch.arange(width).float()
    return (width / 4 - columns).expand(height, width)


def test_the_region_is_that_of_the_phrase(small_model, image):
    found = small_model.predict(image, ReferringCaptioning(phrase="a box", fit=FIT))
    expected = referring.predict(small_model, FIT.pixels(image), ["a box"], (70, 130))[0] > 0
    assert torch.equal(found.region, expected)


def test_the_caption_looks_where_the_phrase_is(small_model, image, monkeypatch):
    seen = []
    generate = referring_captioning.generate

    def spy(model, features, **settings):
        seen.append(settings["may_look"])
        return generate(model, features, **settings)

    monkeypatch.setattr(referring, "predict", scripted(left_part))
    monkeypatch.setattr(referring_captioning, "generate", spy)
    found = small_model.predict(image, ReferringCaptioning(phrase="x", fit=FIT, max_tokens=5))
    # 70x130 fits into 48x80 as 43x80, which is 11x20 at stride 4, on a canvas of 16x24
    assert seen[0].shape == (1, 16, 24)
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[:11, :5] = True
    assert torch.equal(seen[0][0], expected)
    assert found.caption is not None
    free = small_model.predict(image, Captioning(fit=FIT, max_tokens=5))
    assert found.caption.log_prob != pytest.approx(free.log_prob, abs=1e-4)


def test_a_phrase_without_a_region_has_no_caption(small_model, image, monkeypatch):
    monkeypatch.setattr(referring, "predict", scripted(lambda h, w: -torch.ones(h, w)))
    found = small_model.predict(image, ReferringCaptioning(phrase="x", fit=FIT))
    assert found.caption is None
    assert not found.region.any()


def test_a_region_smaller_than_a_place_keeps_one(small_model):
    logits = torch.full((1, 70, 130), -9.0)
    logits[0, 33, 100] = 0.5
    features = small_model.encode_images(torch.rand(1, 3, 43, 80) * 255)
    places = on_canvas(logits, (43, 80), features)
    assert places.sum() == 1
    # row 33 of 70 is row 5 of 11, column 100 of 130 is column 15 of 20
    assert places[0, 5, 15]
