"""Pictures of every kind to RGB, and the size that a model sees."""

import numpy as np
import pytest
from PIL import Image

from xdecoder.images import ImageFit, rgb_pixels

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 11), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    picture = Image.fromarray(COLOUR).convert("L" if mode in ("LA", "PA") else "RGB")
    pixels = rgb_pixels(
        picture.convert("P").convert(mode) if mode == "PA" else picture.convert(mode)
    )
    assert pixels.shape == (7, 11, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_keep_their_high_byte(mode):
    values = GREY.astype(np.uint16) * 256 + 17
    order = ">u2" if mode == "I;16B" else "<u2"
    picture = Image.frombytes(mode, (11, 7), values.astype(order).tobytes())
    assert (rgb_pixels(picture)[..., 1] == GREY).all()


def test_wide_ranges_are_scaled_to_their_own():
    values = GREY.astype(np.int32) * 1000
    pixels = rgb_pixels(Image.fromarray(values))[..., 0]
    assert (pixels == np.round(values / values.max() * 255)).all()


def test_transparency_is_laid_on_white():
    layer = np.zeros((7, 11, 4), dtype=np.uint8)
    layer[:, :5, 3] = 255
    for picture in (layer, Image.fromarray(layer)):
        pixels = rgb_pixels(picture)
        assert (pixels[:, :5] == 0).all()
        assert (pixels[:, 5:] == 255).all()


def test_orientation_is_followed_unless_told_otherwise():
    picture = Image.fromarray(COLOUR)
    picture.getexif()[274] = 6
    assert (rgb_pixels(picture) == np.rot90(COLOUR, -1)).all()
    assert (rgb_pixels(picture, turn_upright=False) == COLOUR).all()


def test_arrays_of_grey_and_colour_are_taken():
    assert (rgb_pixels(GREY) == GREY[..., None]).all()
    assert (rgb_pixels(COLOUR) == COLOUR).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (COLOUR.astype(np.float32), r"must be uint8 .* got float32 \[7, 11, 3\]"),
        (COLOUR.transpose(2, 0, 1), r"got uint8 \[3, 7, 11\]"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 \[0, 4, 3\]"),
        ("photo.jpg", "needs a Pillow image or an array; got str. Open files with"),
    ],
)
def test_what_is_no_picture_is_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        rgb_pixels(wrong)


@pytest.mark.parametrize(
    ("fit", "size_hw", "expected"),
    [
        (ImageFit(size_hw=(96, 128)), (480, 640), (96, 128)),
        (ImageFit(size_hw=(96, 128)), (640, 480), (96, 72)),
        (ImageFit(kind="exact", size_hw=(24, 32)), (640, 480), (24, 32)),
        (ImageFit(kind="shorter_side", size_hw=(800, 1333)), (480, 640), (800, 1067)),
        (ImageFit(kind="shorter_side", size_hw=(800, 1333)), (640, 480), (1067, 800)),
        (ImageFit(kind="shorter_side", size_hw=(800, 1333)), (300, 900), (444, 1333)),
        (ImageFit(size_hw=(96, 128)), (5000, 1), (96, 1)),
        (ImageFit(kind="shorter_side", size_hw=(800, 1333)), (1, 9000), (1, 1333)),
    ],
)
def test_an_image_gets_the_size_that_the_fit_says(fit, size_hw, expected):
    assert fit.fitted_hw(size_hw) == expected


def test_fitted_pixels_are_the_image_smaller():
    image = np.full((30, 60, 3), (200, 100, 50), dtype=np.uint8)
    pixels = ImageFit(size_hw=(8, 20)).pixels(image)
    assert pixels.shape == (3, 8, 16)
    assert pixels[:, 3, 5].tolist() == [200, 100, 50]


def test_an_empty_size_is_refused():
    with pytest.raises(ValueError, match=r"two positive numbers; got \(0, 4\)"):
        ImageFit(size_hw=(0, 4))
