"""Boxes on their way from annotations to a batch: moved with their image, kept or left out."""

import io
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data.augment import (
    Geometry,
    draw_geometry,
    enlarge_labels,
    move_boxes,
    shrink_labels,
)
from pipelines.data.collate import build_detection_sample
from pipelines.data.compact import compact_detection, step_bytes
from pipelines.data.config import (
    AugmentConfig,
    DetectionDataConfig,
)
from pipelines.data.shards import RawSample
from pipelines.data.step_memory import StepMemory
from pipelines.errors import DamagedSampleError

SOURCE_HW, OUT_HW = (150, 210), (48, 80)
IS_THING = (True, False, True, True)
# images shrink to less than an eighth, and grow to thrice their size
JITTER = AugmentConfig(flip_prob=0.5, scale_range=(0.3, 8.0))

Box = tuple[float, float, float, float]


def _raw(image: np.ndarray, boxes: list[Box], class_ids: list[int], **fields: object) -> RawSample:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=98, subsampling=0)
    instances = [
        {"id": n, "class_id": class_id, "is_crowd": 0, "rle": None, "bbox": box}
        for n, (box, class_id) in enumerate(zip(boxes, class_ids, strict=True))
    ]
    document = {
        "size_hw": image.shape[:2],
        "segments": None,
        "instances": instances,
        "captions": [],
        "regions": [],
    }
    text = json.dumps({**document, **fields}).encode()
    return RawSample(shard="a.tar", key="k", members={"jpg": file.getvalue(), "json": text})


def _config(**changes: object) -> DetectionDataConfig:
    return DetectionDataConfig(**{"size_hw": OUT_HW, "augment": JITTER, **changes})


def _compact(raw: RawSample, epoch: int, **changes: object):
    config = _config(**changes)
    memory = StepMemory(torch.empty(10**5, dtype=torch.uint8))
    return compact_detection(raw, config, memory, seed=0, epoch=epoch, is_thing=IS_THING)


def _extent(region: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_a_box_ends_within_half_a_pixel_of_where_its_mask_ends() -> None:
    # a mask takes the nearest pixel, so an edge between two pixel centres is at one of them
    rng, seen = np.random.default_rng(0), 0
    for _ in range(400):
        geometry = draw_geometry(rng, SOURCE_HW, OUT_HW, JITTER)
        left, right = np.sort(rng.choice(SOURCE_HW[1] + 1, 2, replace=False))
        top, bottom = np.sort(rng.choice(SOURCE_HW[0] + 1, 2, replace=False))
        mask = np.zeros(SOURCE_HW, np.uint8)
        mask[top:bottom, left:right] = 1
        small = torch.from_numpy(np.ascontiguousarray(shrink_labels(mask, geometry)))
        moved = enlarge_labels(small, geometry).numpy()
        (box,) = move_boxes(np.array([[left, top, right, bottom]], np.float64), geometry)
        if moved.any():
            assert np.abs(np.array(_extent(moved)) - box).max() <= 0.5 + 1e-9
            seen += 1
    assert seen > 200


@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_boxes_lie_around_what_the_picture_shows(flip_prob: float) -> None:
    image = np.full((*SOURCE_HW, 3), 20, np.uint8)
    image[30:90, 50:80] = (250, 240, 245)
    raw = _raw(image, [(50, 30, 30, 60)], [2])
    seen = 0
    for epoch in range(60):
        augment = replace(JITTER, flip_prob=flip_prob, scale_range=(0.5, 4.0))
        config = _config(augment=augment)
        sample = build_detection_sample(raw, config, seed=0, epoch=epoch, is_thing=IS_THING)
        bright = sample.image[1].numpy() > 130
        if len(sample.boxes.class_ids) and bright.any():
            # half a pixel for the grid, and one for a JPEG that is decoded at half its size
            gaps = np.array(_extent(bright)) - sample.boxes.boxes_xyxy_px[0].numpy()
            assert np.abs(gaps).max() <= 1.5
            assert sample.boxes.class_ids.tolist() == [1]
            seen += 1
    assert seen > 40


def _slowly_moved(box: Box, geometry: Geometry) -> tuple[list[Fraction], Fraction]:
    """The box in the batch and the visible share of its part in the image, in exact fractions."""
    x, y, width, height = (Fraction(value) for value in box)
    spans, share = [], Fraction(1)
    for axis, (start, end) in enumerate(((x, x + width), (y, y + height))):
        start, end = max(start, Fraction(0)), min(end, Fraction(SOURCE_HW[1 - axis]))
        first, length = geometry.window_yx[1 - axis], geometry.window_hw[1 - axis]
        seen = [min(max(value, first), first + length) for value in (start, end)]
        share *= (seen[1] - seen[0]) / (end - start) if end > start else 0
        valid = geometry.valid_hw[1 - axis]
        span = [(value - first) * valid / length for value in seen]
        if axis == 0 and geometry.is_mirrored:
            span = [valid - span[1], valid - span[0]]
        spans.append(span)
    return [spans[0][0], spans[1][0], spans[0][1], spans[1][1]], share


def _random_boxes(rng: np.random.Generator, count: int) -> list[Box]:
    height, width = SOURCE_HW
    sizes = rng.uniform(0, 1, (count, 2)) ** 3 * (width, height)
    # some begin outside of the image, and some end there
    starts = rng.uniform(-0.2, 1.0, (count, 2)) * (width, height)
    starts = np.maximum(starts, -0.99 * sizes)
    return np.concatenate([starts, sizes], axis=1).tolist()


def test_boxes_are_those_of_a_slow_and_exact_calculation() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (*SOURCE_HW, 3), np.uint8)
    kinds = {"kept": 0, "cut": 0, "hidden": 0, "small": 0, "mirrored": 0}
    for epoch in range(60):
        boxes = _random_boxes(rng, 12)
        class_ids = rng.choice([0, 2, 3], 12).tolist()
        built = _compact(_raw(image, boxes, class_ids), epoch)
        expected = []
        for box, class_id in zip(boxes, class_ids, strict=True):
            moved, share = _slowly_moved(box, built.image.geometry)
            side = min(moved[2] - moved[0], moved[3] - moved[1])
            kinds["hidden"] += share < Fraction(1, 10)
            kinds["small"] += share >= Fraction(1, 10) and side < 1
            if share >= Fraction(1, 10) and side >= 1:
                expected.append((moved, {0: 0, 2: 1, 3: 2}[class_id]))
                kinds["cut" if share < 1 else "kept"] += 1
                kinds["mirrored"] += built.image.geometry.is_mirrored
        assert built.class_ids == tuple(class_id for _, class_id in expected)
        for found, (box, _) in zip(built.boxes_xyxy_px, expected, strict=True):
            assert np.abs(np.array(found) - np.array(box, np.float64)).max() < 1e-9
    assert min(kinds.values()) > 20, kinds


def test_the_mirrored_boxes_are_the_mirror_image_of_the_others() -> None:
    image = np.zeros((*OUT_HW, 3), np.uint8)
    raw = _raw(image, [(10, 5, 20, 30), (0.5, 0, 79, 47)], [0, 3])
    plain, mirrored = (
        _compact(raw, 0, augment=AugmentConfig(flip_prob=flip)).boxes_xyxy_px for flip in (0.0, 1.0)
    )
    assert plain == ((10, 5, 30, 35), (0.5, 0, 79.5, 47))
    assert mirrored == ((50, 5, 70, 35), (0.5, 0, 79.5, 47))


def test_crowds_and_boxes_without_area_are_left_out() -> None:
    image = np.zeros((*OUT_HW, 3), np.uint8)
    raw = _raw(image, [(10, 5, 20, 30), (3, 4, 30, 0), (1, 2, 30, 40)], [0, 0, 2])
    document = json.loads(raw.member("json"))
    document["instances"][2]["is_crowd"] = 1
    raw = replace(raw, members={**raw.members, "json": json.dumps(document).encode()})
    built = _compact(raw, 0, augment=AugmentConfig(flip_prob=0.0))
    assert built.boxes_xyxy_px == ((10, 5, 30, 35),)


@pytest.mark.parametrize("instances", [None, []])
def test_an_image_without_boxes_is_an_image_with_no_targets(instances: list | None) -> None:
    raw = _raw(np.zeros((*OUT_HW, 3), np.uint8), [], [], instances=instances)
    sample = build_detection_sample(raw, _config(), seed=0, epoch=0, is_thing=IS_THING)
    assert sample.boxes.boxes_xyxy_px.shape == (0, 4)
    assert sample.boxes.class_ids.shape == (0,)
    assert sample.boxes.class_ids.dtype == torch.int64


NUMBERS = r"must have boxes \[left, top, width, height\] of finite numbers, no size below 0, that "
NUMBERS += r"meet its 48 x 80 pixels; got \["


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, NUMBERS + r"\(1\.0, 2\.0, nan, 4\.0\)"),
        ({"bbox": [1, 2, 3, float("inf")]}, NUMBERS + r"\(1\.0, 2\.0, 3\.0, inf\)"),
        ({"bbox": [1, 20, 3, -4]}, NUMBERS + r"\(1\.0, 20\.0, 3\.0, -4\.0\)"),
        ({"bbox": [81, 2, 3, 4]}, NUMBERS + r"\(81\.0"),
        ({"bbox": [1, -9, 3, 4]}, NUMBERS + r"\(1\.0, -9\.0"),
        ({"bbox": [1, 2, 3]}, NUMBERS + r"\(1\.0, 2\.0, 3\.0\)"),
        ({"bbox": None}, r": json cannot be decoded .*Prepare again"),
        ({"class_id": 1}, r"must have boxes of the 3 classes of things among 4 classes; got .*\[1"),
        ({"class_id": 9}, r"must have boxes of the 3 classes of things among 4 classes; got .*\[9"),
    ],
)
def test_boxes_that_cannot_be_are_damage(fields: dict, message: str) -> None:
    raw = _raw(np.zeros((*OUT_HW, 3), np.uint8), [(5, 6, 7, 8), (10, 5, 20, 30)], [0, 0])
    document = json.loads(raw.member("json"))
    document["instances"][1] |= fields
    raw = replace(raw, members={**raw.members, "json": json.dumps(document).encode()})
    with pytest.raises(DamagedSampleError, match=rf"^a\.tar: sample k ?{message}"):
        _compact(raw, 0)


def test_a_sample_of_boxes_needs_the_memory_of_its_image_only() -> None:
    image = np.zeros((*SOURCE_HW, 3), np.uint8)
    raw = _raw(image, _random_boxes(np.random.default_rng(2), 500), [0] * 500)
    num_bytes = step_bytes((_config(batch_size=2),), world_size=2)
    assert num_bytes == 48 * 80 * 3 + 8
    most = 0
    for epoch in range(20):
        memory = StepMemory(torch.empty(num_bytes, dtype=torch.uint8))
        compact_detection(raw, _config(), memory, seed=0, epoch=epoch, is_thing=IS_THING)
        most = max(most, memory.used)
    assert num_bytes * 0.9 < most <= num_bytes
