"""Boxes on pictures: where their lines and names are."""

import numpy as np
import pytest

from pipelines.box_drawing import DrawnBox, draw_boxes
from pipelines.drawing import DrawnSegment, enlarged

# large enough not to be enlarged
GREY = np.full((400, 620, 3), 128, dtype=np.uint8)
RED = (200, 30, 30)


def drawn(*boxes: DrawnBox, image: np.ndarray = GREY, regions=()) -> np.ndarray:
    return np.asarray(draw_boxes(image, boxes, regions=regions)).astype(int)


def box(*corners: float, label: str = "", is_dashed: bool = False) -> DrawnBox:
    return DrawnBox(box_xyxy_px=corners, label=label, colour=RED, is_dashed=is_dashed)


def is_red(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] > picture[..., 1] + 60) & (picture[..., 0] > 150)


def test_lines_are_on_the_edge_of_the_box_and_nowhere_else() -> None:
    lines = is_red(drawn(box(100, 50, 300, 250)))
    rows, columns = np.nonzero(lines.any(1))[0], np.nonzero(lines.any(0))[0]
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (50, 250, 100, 300)
    assert not lines[60:240, 110:290].any()
    assert lines[50:250, 100].all()


def test_small_images_are_enlarged_with_their_boxes() -> None:
    small = np.full((40, 62, 3), 128, dtype=np.uint8)
    picture = drawn(box(10, 5, 30, 25), image=small)
    factor = enlarged(small).width / 62
    rows = np.nonzero(is_red(picture).any(1))[0]
    assert rows[0] == pytest.approx(5 * factor, abs=1)
    assert rows[-1] + 1 == pytest.approx(25 * factor, abs=1)


def test_boxes_of_phrases_are_dashed_with_closed_corners() -> None:
    whole = is_red(drawn(box(100, 50, 300, 250)))[50:250, 100]
    dashed = is_red(drawn(box(100, 50, 300, 250, is_dashed=True)))[50:250, 100]
    assert whole.all()
    assert 0.3 < dashed.mean() < 0.8
    assert dashed[0]
    assert dashed[-1]


def test_a_name_stands_above_its_box_or_inside_where_there_is_no_room() -> None:
    changed = (
        drawn(box(100, 150, 300, 350, label="cup 0.50")) != drawn(box(100, 150, 300, 350))
    ).any(2)
    assert changed[:150].any()
    # labels are reduced with a filter that reaches a few pixels
    assert not changed[153:].any()
    at_top = (drawn(box(100, 0, 300, 350, label="cup 0.50")) != drawn(box(100, 0, 300, 350))).any(2)
    assert at_top[5:60, 105:295].any()
    assert not at_top[60:].any()


def test_names_of_boxes_in_one_place_do_not_meet() -> None:
    boxes = [box(100, 150, 300, 350, label=f"cup {n}") for n in range(4)]
    bare = [box(100, 150, 300, 350)] * 4
    changed = (drawn(*boxes) != drawn(*bare)).any(2)
    one = (drawn(boxes[0]) != drawn(bare[0])).any(2)
    # four names cover the area of four
    assert changed.sum() > 3.6 * one.sum()


def test_a_box_outside_or_without_size_can_be_drawn() -> None:
    for corners in ((5, 5, 5, 5), (-50, -20, 900, 700), (0, 0, 620, 400)):
        assert drawn(box(*corners, label="cup")).shape == GREY.shape


def test_what_is_in_a_box_is_tinted() -> None:
    region = np.zeros(GREY.shape[:2], dtype=bool)
    region[100:200, 150:250] = True
    segment = DrawnSegment(region=region, label="", colour=RED)
    picture = drawn(box(100, 50, 300, 250), regions=[segment])
    assert picture[150, 200, 0] > picture[150, 200, 1]
    assert (picture[60, 120] == 128).all()
