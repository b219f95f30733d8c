"""Editing with programs that paint one colour."""

import numpy as np
import pytest
import torch
from PIL import Image

from xdecoder.images import ImageFit
from xdecoder.tasks import referring
from xdecoder.tasks.editing import Editing, composed, working_size_wh

GREEN = (10, 200, 30)


@pytest.fixture
def image():
    return np.random.default_rng(4).integers(0, 256, (90, 140, 3), dtype=np.uint8)


def paint_all(image, mask, prompt):
    return Image.new("RGB", image.size, GREEN)


def square(height, width):
    logits = torch.full((height, width), -1.0)
    logits[30:60, 40:80] = 1.0
    return logits


def finds(monkeypatch, logits):
    monkeypatch.setattr(referring, "predict", lambda m, i, p, hw, **settings: logits(*hw)[None])


def test_pixels_outside_the_region_are_those_of_the_image(small_model, image, monkeypatch):
    finds(monkeypatch, square)
    edited = small_model.predict(image, Editing(phrase="x", prompt="y", inpaint=paint_all))
    assert edited.pixels.shape == image.shape
    assert (edited.pixels[~edited.region] == image[~edited.region]).all()
    assert (edited.pixels[edited.region] == GREEN).all()
    # the region of the phrase is changed, and little more
    assert edited.region[30:60, 40:80].all()
    assert 1200 < edited.region.sum() < 1800


def test_the_program_gets_the_picture_the_grown_region_and_the_prompt(
    small_model, image, monkeypatch
):
    calls = []

    def record(picture, mask, prompt):
        calls.append((picture, np.asarray(mask), prompt))
        return picture

    finds(monkeypatch, square)
    question = Editing(phrase="x", prompt="a cat", inpaint=record, short_side_px=128)
    small_model.predict(image, question)
    picture, mask, prompt = calls[0]
    assert picture.size == (192, 128)
    assert prompt == "a cat"
    assert mask.shape == (128, 192)
    # 30 rows of 90 are 43 of 128, and three more on each side
    assert mask.any(1).sum() == pytest.approx(43 + 6, abs=1)


def test_nothing_is_painted_where_nothing_is_found(small_model, image, monkeypatch):
    def fails(picture, mask, prompt):
        raise AssertionError("there is nothing to paint")

    finds(monkeypatch, lambda h, w: -torch.ones(h, w))
    edited = small_model.predict(image, Editing(phrase="x", prompt="y", inpaint=fails))
    assert (edited.pixels == image).all()
    assert not edited.region.any()


def test_a_painting_of_any_size_lands_on_the_region(image):
    region = np.zeros((45, 70), dtype=bool)
    region[10:20, 30:40] = True
    edited = composed(image, Image.new("RGB", (33, 21), GREEN), region)
    assert edited.region.sum() == 400
    assert (edited.pixels[20:40, 60:80] == GREEN).all()
    assert (edited.pixels[~edited.region] == image[~edited.region]).all()


@pytest.mark.parametrize(
    ("size_wh", "expected"),
    [((640, 480), (704, 512)), ((100, 100), (512, 512)), ((4000, 100), (1536, 64))],
)
def test_working_sides_are_multiples_of_64(size_wh, expected):
    assert working_size_wh(size_wh, 512) == expected


def test_the_image_may_be_seen_at_another_size(small_model, image):
    small_model.prediction = type(small_model.prediction)(referring=ImageFit(size_hw=(40, 64)))
    edited = small_model.predict(image, Editing(phrase="a box", prompt="y", inpaint=paint_all))
    assert edited.region.shape == (90, 140)
