import numpy as np
import pytest
import torch

from pipelines.data.augment import (
    Geometry,
    draw_geometry,
    jitter_colour,
    mirror_text,
    sample_generator,
    transform_image,
    transform_labels,
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


def test_without_jitter_the_whole_image_just_fits() -> None:
    geometry = _geometry(np.random.default_rng(0), 1.0, 1.0, 0.0)
    assert geometry.window_yx == (0, 0)
    assert geometry.window_hw == SOURCE_HW
    assert geometry.valid_hw == (48, 67)
    assert not geometry.is_mirrored


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = torch.randint(0, 256, (3, *OUT_HW), dtype=torch.uint8)
    geometry = draw_geometry(np.random.default_rng(0), OUT_HW, OUT_HW, AugmentConfig(flip_prob=0))
    assert torch.equal(transform_image(image, geometry), image.float())


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("low", "high"), [(0.5, 0.7), (1.0, 1.0), (1.6, 2.0)])
def test_image_and_masks_move_together(flip: float, low: float, high: float) -> None:
    masks = _discs()
    for i in range(8):
        geometry = _geometry(np.random.default_rng(i), low, high, flip)
        image = torch.from_numpy(masks.astype(np.uint8) * 255)
        moved = transform_image(image, geometry).numpy()
        labels = transform_labels(masks, geometry)
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
    one, two = (transform_labels(labels, g) for g in (plain, mirrored))
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


def test_colour_jitter_changes_colours_and_keeps_padding() -> None:
    image = torch.rand(3, 20, 31) * 255
    image[:, :, 25:] = 0
    changed = jitter_colour(np.random.default_rng(1), image, 0.4)
    assert not torch.allclose(changed[:, :, :25], image[:, :, :25], atol=1)
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert not changed[:, :, 25:].any()
    assert torch.equal(jitter_colour(np.random.default_rng(1), image, 0.0), image)
