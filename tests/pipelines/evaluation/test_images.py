from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import DataError
from pipelines.evaluation.images import fitted_size_hw, read_image, resized

RAMP = np.linspace(0, 255, 12 * 20).reshape(12, 20)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.png", "L"),
        ("bits.png", "1"),
        ("palette.png", "P"),
        ("cmyk.jpg", "CMYK"),
        ("alpha.png", "RGBA"),
        ("grey_alpha.png", "LA"),
        ("colour.webp", "RGB"),
        ("lab.tif", "LAB"),
        ("ycc.jpg", "YCbCr"),
    ],
)
def test_every_mode_becomes_eight_bit_rgb(tmp_path: Path, name: str, mode: str) -> None:
    source = Image.fromarray(np.stack([RAMP] * 3, axis=-1).astype(np.uint8))
    source.convert(mode).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert (image.shape, image.dtype) == ((12, 20, 3), np.uint8)
    assert image[-1, -1].mean() > image[0, 0].mean() + 100


@pytest.mark.parametrize("scale", [1.0, 65535.0, 1000.0])
def test_floats_and_deep_grey_use_the_whole_range(tmp_path: Path, scale: float) -> None:
    values = (RAMP / 255 * scale).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    image = read_image(tmp_path / "deep.tif")
    assert (int(image.min()), int(image.max())) == (0, 255)


def test_sixteen_bits_keep_the_high_byte(tmp_path: Path) -> None:
    values = (RAMP * 257).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.abs(read_image(tmp_path / "deep.png")[..., 1].astype(int) - RAMP).max() <= 1


def test_transparency_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 12), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()


def test_orientation_is_applied_unless_the_image_is_annotated(tmp_path: Path) -> None:
    picture = Image.fromarray(np.stack([RAMP] * 3, axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (20, 12, 3)
    assert read_image(tmp_path / "turned.jpg", turn_upright=False).shape == (12, 20, 3)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0" + b"\0" * 40])
def test_a_broken_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.jpg: must be a picture that Pillow can read"):
        read_image(tmp_path / "broken.jpg")


def test_an_image_that_is_cut_short_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    half = (tmp_path / "whole.png").read_bytes()[:9000]
    (tmp_path / "half.png").write_bytes(half)
    with pytest.raises(DataError, match=r"half\.png"):
        read_image(tmp_path / "half.png")


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


def test_images_fit_with_their_shape_kept() -> None:
    assert fitted_size_hw((480, 640), (96, 128)) == (96, 128)
    assert fitted_size_hw((640, 480), (96, 128)) == (96, 72)
    assert fitted_size_hw((1, 5000), (96, 128)) == (1, 128)


def test_resizing_averages() -> None:
    stripes = np.zeros((8, 12, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    assert abs(int(resized(stripes, (4, 3))[2, 1, 0]) - 100) < 25
    assert resized(stripes, (8, 12)) is stripes
