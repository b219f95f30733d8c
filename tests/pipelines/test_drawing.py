import numpy as np
import pytest
from PIL import Image

from pipelines.drawing import (
    HIGHLIGHT,
    DrawnSegment,
    class_colour,
    contact_sheet,
    draw_region,
    draw_segments,
    enlarged,
    side_by_side,
    with_strip,
)

GREY = np.full((30, 52, 3), 128, dtype=np.uint8)


def block(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    region = np.zeros(GREY.shape[:2], dtype=bool)
    region[top:bottom, left:right] = True
    return region


def segment(region: np.ndarray, label: str = "cup") -> DrawnSegment:
    return DrawnSegment(region=region, label=label, colour=(200, 30, 30))


def test_small_images_are_enlarged_and_large_ones_kept() -> None:
    assert enlarged(GREY, short_side_px=90).size == (156, 90)
    assert enlarged(GREY, short_side_px=20).size == (52, 30)


def test_neighbouring_classes_differ_and_colours_stay() -> None:
    colours = [class_colour(index) for index in range(36)]
    assert len(set(colours)) == 36
    assert colours == [class_colour(index) for index in range(36)]


def test_only_the_region_is_tinted() -> None:
    plain = np.asarray(enlarged(GREY)).astype(int)
    drawn = draw_segments(GREY, [segment(block(5, 25, 5, 20))], with_labels=False)
    change = np.abs(np.asarray(drawn).astype(int) - plain).sum(2)
    factor = drawn.height / GREY.shape[0]
    inside = change[round(8 * factor) : round(22 * factor), round(8 * factor) : round(17 * factor)]
    outside = change[:, round(24 * factor) :]
    assert inside.min() > 40
    assert outside.max() == 0


def test_a_name_is_written_and_names_do_not_meet() -> None:
    # both names would stand above their narrow regions, in one line
    regions = [block(10, 20, 20, 22), block(10, 20, 23, 25)]
    bare = draw_segments(GREY, [segment(each, "") for each in regions])
    named = draw_segments(GREY, [segment(each) for each in regions])
    rows = (np.asarray(bare) != np.asarray(named)).any((1, 2))
    starts = int((np.diff(rows.astype(int)) == 1).sum())
    assert starts == 2


def test_a_tiny_region_keeps_its_middle_free_of_letters() -> None:
    tiny = block(14, 17, 24, 27)
    bare = draw_segments(GREY, [segment(tiny, "")])
    named = draw_segments(GREY, [segment(tiny)])
    change = (np.asarray(bare) != np.asarray(named)).any(2)
    factor = named.height / GREY.shape[0]
    assert change.any()
    assert not change[round(15.5 * factor), round(25.5 * factor)]


def test_the_surroundings_of_a_region_are_darkened() -> None:
    drawn = np.asarray(draw_region(GREY, block(5, 25, 5, 20))).astype(int)
    factor = drawn.shape[0] / GREY.shape[0]
    inside = drawn[round(15 * factor), round(12 * factor)]
    outside = drawn[round(15 * factor), round(40 * factor)]
    assert inside.sum() > outside.sum() + 100
    near = np.abs(drawn - np.array(HIGHLIGHT)).sum(2)
    assert near.min() < 200


def test_empty_and_full_regions_can_be_drawn() -> None:
    for region in (block(0, 0, 0, 0), block(0, 30, 0, 52)):
        assert draw_segments(GREY, [segment(region)]).size == draw_region(GREY, region).size


def test_long_text_makes_a_higher_strip_of_the_same_width() -> None:
    picture = enlarged(GREY)
    short, long = with_strip(picture, "a cup"), with_strip(picture, "a red cup " * 30)
    assert short.width == long.width == picture.width
    assert picture.height < short.height < long.height


def test_panels_keep_their_pixels_beside_each_other() -> None:
    left, right = Image.new("RGB", (90, 60), "red"), Image.new("RGB", (70, 60), "blue")
    sheet = np.asarray(side_by_side([left, right], ["image", "prediction"], heading="x.jpg"))
    assert (sheet == (255, 0, 0)).all(2).sum() == 90 * 60
    assert (sheet == (0, 0, 255)).all(2).sum() == 70 * 60


def test_a_sheet_has_as_many_rows_as_it_needs() -> None:
    pictures = [Image.new("RGB", (80, 50)), Image.new("RGB", (40, 25)), Image.new("RGB", (80, 30))]
    assert contact_sheet(pictures, num_columns=2).size == (160, 50 + 30)


def test_panels_without_titles_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 pictures and 0 titles"):
        side_by_side([enlarged(GREY)], [])


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 pictures and 1 columns"):
        contact_sheet([])


def test_the_same_input_gives_the_same_pixels() -> None:
    drawn = [np.asarray(draw_segments(GREY, [segment(block(5, 25, 5, 20))])) for _ in range(2)]
    assert (drawn[0] == drawn[1]).all()
