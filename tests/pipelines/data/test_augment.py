import numpy as np
import pytest
import torch

from pipelines.data.augment import (
    ColourMatrix,
    Geometry,
    draw_colour,
    draw_geometry,
    enlarge_image,
    enlarge_labels,
    mirror_text,
    sample_generator,
    shrink_image,
    shrink_labels,
)
from pipelines.data.config import AugmentConfig

SOURCE_HW, OUT_HW = (60, 84), (48, 80)


def _discs() -> np.ndarray:
    rows, columns = np.mgrid[: SOURCE_HW[0], : SOURCE_HW[1]]
    centers = ((15, 20, 9), (40, 60, 14), (30, 35, 6))
    return np.stack([np.hypot(rows - y, columns - x) < r for y, x, r in centers])


def _geometry(rng: np.random.Generator, low: float, high: float, flip: float) -> Geometry:
    augment = AugmentConfig(flip_prob=flip, scale_range=(low, high))
    return draw_geometry(rng, SOURCE_HW, OUT_HW, augment)


def _image(
    image: np.ndarray, geometry: Geometry, colour: ColourMatrix | None = None
) -> torch.Tensor:
    small = torch.from_numpy(np.ascontiguousarray(shrink_image(image, geometry)))
    assert small.shape[:2] == geometry.small_hw
    canvas = torch.zeros((3, *geometry.out_hw))
    enlarge_image(small, geometry, colour, canvas)
    return canvas


def _labels(labels: np.ndarray, geometry: Geometry) -> np.ndarray:
    small = torch.from_numpy(np.ascontiguousarray(shrink_labels(labels, geometry)))
    canvas = np.zeros(geometry.out_hw, labels.dtype)
    canvas[: geometry.valid_hw[0], : geometry.valid_hw[1]] = enlarge_labels(small, geometry)
    return canvas


def test_without_jitter_the_whole_image_just_fits() -> None:
    geometry = _geometry(np.random.default_rng(0), 1.0, 1.0, 0.0)
    assert geometry.window_yx == (0, 0)
    assert geometry.window_hw == SOURCE_HW
    assert geometry.valid_hw == (48, 67)
    assert not geometry.is_mirrored


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*OUT_HW, 3), dtype=np.uint8)
    geometry = draw_geometry(np.random.default_rng(0), OUT_HW, OUT_HW, AugmentConfig(flip_prob=0))
    expected = torch.from_numpy(image).permute(2, 0, 1).float()
    assert torch.equal(_image(image, geometry), expected)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("low", "high"), [(0.5, 0.7), (1.0, 1.0), (1.6, 2.0)])
def test_image_and_masks_move_together(flip: float, low: float, high: float) -> None:
    masks = _discs()
    for i in range(8):
        geometry = _geometry(np.random.default_rng(i), low, high, flip)
        decoded = masks.transpose(1, 2, 0).astype(np.uint8) * 255
        step = geometry.denominator
        rows, columns = (-(-length // step) for length in SOURCE_HW)
        # what a decoder at a fraction of the size gives: the mean of each block
        blocks = np.pad(decoded, ((0, rows * step - 60), (0, columns * step - 84), (0, 0)), "edge")
        decoded = blocks.reshape(rows, step, columns, step, 3).mean((1, 3)).astype(np.uint8)
        moved = _image(decoded, geometry).numpy()
        labels = np.stack([_labels(mask, geometry) for mask in masks])
        assert labels.dtype == bool
        assert labels.shape == moved.shape == (3, *OUT_HW)
        for picture, mask in zip(moved, labels, strict=True):
            bright = picture > 127
            if mask.sum() > 30:
                iou = (bright & mask).sum() / (bright | mask).sum()
                # nearest and antialiased sampling differ by at most the outline
                assert iou > 0.8
                for axis in (0, 1):
                    centers = [np.nonzero(m)[axis].mean() for m in (bright, mask)]
                    assert centers[0] == pytest.approx(centers[1], abs=0.35)


def test_mirroring_reverses_the_valid_columns_only() -> None:
    labels = np.arange(SOURCE_HW[0] * SOURCE_HW[1], dtype=np.int32).reshape(SOURCE_HW)
    plain = _geometry(np.random.default_rng(3), 0.6, 0.6, 0.0)
    mirrored = _geometry(np.random.default_rng(3), 0.6, 0.6, 1.0)
    height, width = plain.valid_hw
    assert width < OUT_HW[1]
    one, two = (_labels(labels, g) for g in (plain, mirrored))
    assert np.array_equal(one[:height, :width], two[:height, :width][:, ::-1])
    assert not one[:, width:].any()
    assert not two[height:].any()


def test_jitter_covers_its_range_and_stays_within() -> None:
    augment = AugmentConfig(flip_prob=0.5, scale_range=(0.1, 2.0))
    scales, flips = [], []
    for i in range(300):
        geometry = draw_geometry(np.random.default_rng(i), SOURCE_HW, OUT_HW, augment)
        (top, left), (height, width) = geometry.window_yx, geometry.window_hw
        assert 0 <= top <= SOURCE_HW[0] - height
        assert 0 <= left <= SOURCE_HW[1] - width
        assert 0 < geometry.valid_hw[0] <= OUT_HW[0]
        assert 0 < geometry.valid_hw[1] <= OUT_HW[1]
        scales.append(geometry.valid_hw[0] / height)
        flips.append(geometry.is_mirrored)
    assert min(scales) < 0.15
    assert max(scales) > 1.4
    assert 0.4 < np.mean(flips) < 0.6


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the leftmost star", "the rightmost star"),
        ("Left of the RIGHT one", "Right of the LEFT one"),
        ("a star is right of a heart.", "a star is left of a heart."),
        ("bright leftover copyright", "bright leftover copyright"),
        ("above the sand", "above the sand"),
    ],
)
def test_left_and_right_change_places_as_whole_words(text: str, mirrored: str) -> None:
    assert mirror_text(text, True) == mirrored
    assert mirror_text(mirrored, True) == text
    assert mirror_text(text, False) == text


def test_random_numbers_belong_to_seed_epoch_task_and_key() -> None:
    keys = [(s, e, t, k) for s in (0, 1) for e in (0, 1) for t in ("a", "b") for k in ("x", "y")]
    draws = {key: sample_generator(*key).random() for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert draws == {key: sample_generator(*key).random() for key in keys}


def _colour(seed: int, image: np.ndarray, **fields: float) -> ColourMatrix:
    return draw_colour(np.random.default_rng(seed), image, AugmentConfig(**fields))


def test_colour_jitter_changes_colours_and_keeps_padding() -> None:
    image = np.random.default_rng(2).integers(0, 256, (*SOURCE_HW, 3), dtype=np.uint8)
    geometry = _geometry(np.random.default_rng(3), 0.6, 0.6, 0.0)
    height, width = geometry.valid_hw
    colour = _colour(1, image, colour_strength=0.4)
    changed, plain = _image(image, geometry, colour), _image(image, geometry)
    assert (changed - plain)[:, :height, :width].abs().mean() > 5
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert not changed[:, :, width:].any()
    assert not changed[:, height:].any()


def test_no_colour_jitter_is_no_matrix() -> None:
    assert (
        draw_colour(np.random.default_rng(1), np.zeros((4, 5, 3), np.uint8), AugmentConfig())
        is None
    )


def test_contrast_brightness_and_saturation_are_what_they_say() -> None:
    image = np.random.default_rng(2).integers(100, 140, (7, 9, 3), dtype=np.uint8)
    matrix = np.array(_colour(4, image, colour_strength=0.3))
    brightness, contrast, saturation = 1 + 0.3 * np.random.default_rng(4).uniform(-1, 1, 3)
    gray = image.mean(axis=2, keepdims=True)
    expected = gray + saturation * (image - gray)
    mean = image[::4, ::4].mean()
    expected = (mean + contrast * (expected - mean)) * brightness
    moved = np.concatenate([image, np.ones((7, 9, 1))], axis=2) @ matrix.T
    assert np.allclose(moved, expected)


def test_a_turn_of_the_hues_keeps_gray_and_lightness() -> None:
    image = np.random.default_rng(2).integers(90, 160, (6, 8, 3), dtype=np.uint8)
    matrix = np.array(_colour(5, image, hue_degrees=120.0))
    moved = image @ matrix[:, :3].T + matrix[:, 3]
    assert np.abs(moved - image).mean() > 5
    assert np.allclose(moved.mean(axis=2), image.mean(axis=2))
    grays = np.array([[80.0] * 3, [200.0] * 3])
    assert np.allclose(grays @ matrix[:, :3].T + matrix[:, 3], grays)


@pytest.mark.parametrize(("scale", "denominator"), [(0.9, 1), (0.45, 2), (0.24, 4), (0.12, 8)])
def test_an_image_that_shrinks_may_be_decoded_smaller(scale: float, denominator: int) -> None:
    augment = AugmentConfig(scale_range=(5 * scale, 5 * scale))
    for i in range(20):
        # an output of a fifth of the height: the window is a part of the image
        geometry = draw_geometry(np.random.default_rng(i), (485, 601), (97, 601), augment)
        assert geometry.denominator == denominator
        assert all(start % denominator == 0 for start in geometry.window_yx)
        assert -(-geometry.window_hw[0] // denominator) >= geometry.small_hw[0]


def test_nearest_pixels_in_two_steps_are_those_in_one() -> None:
    labels = np.random.default_rng(0).integers(0, 250, SOURCE_HW, dtype=np.uint8)
    for i in range(40):
        geometry = _geometry(np.random.default_rng(i), 0.3, 2.5, 0.0)
        (top, left), (height, width) = geometry.window_yx, geometry.window_hw
        rows, columns = (
            ((np.arange(valid) + 0.5) * window / valid).astype(int)
            for valid, window in zip(geometry.valid_hw, (height, width), strict=True)
        )
        expected = labels[top + rows][:, left + columns]
        moved = _labels(labels, geometry)[: geometry.valid_hw[0], : geometry.valid_hw[1]]
        assert np.array_equal(moved, expected)
