import numpy as np

from pipelines.scenes.layout import draw_layout, unit_px
from pipelines.scenes.vocabulary import HELDOUT_PAIRS, STUFF

SIZE_HW = (72, 104)


def _layouts(count: int, heldout_index: int | None = None) -> list:
    return [
        draw_layout(np.random.default_rng((7, i)), SIZE_HW, heldout_index) for i in range(count)
    ]


def test_scenes_have_two_to_six_things_and_every_number_occurs() -> None:
    assert {len(layout.things) for layout in _layouts(60)} == {2, 3, 4, 5, 6}


def test_every_thing_is_seen_well() -> None:
    for layout in _layouts(40):
        for index, thing in enumerate(layout.things):
            visible = layout.visible_mask(index).sum()
            assert visible >= 0.55 * thing.full_mask.sum()
            assert visible >= 60 * unit_px(SIZE_HW) ** 2


def test_nearer_things_cover_farther_ones() -> None:
    overlaps = 0
    for layout in _layouts(60):
        for far, thing in enumerate(layout.things):
            for near in range(far + 1, len(layout.things)):
                both = thing.full_mask & layout.things[near].full_mask
                overlaps += int(both.any())
                assert not (both & layout.visible_mask(far)).any()
    assert overlaps > 20


def test_heldout_pairs_appear_only_where_asked_for() -> None:
    assert not any(t.look.is_heldout for layout in _layouts(60) for t in layout.things)
    for number, (colour, shape) in enumerate(HELDOUT_PAIRS):
        for layout in _layouts(6, number):
            pairs = [(t.look.colour, t.look.shape) for t in layout.things if t.look.is_heldout]
            assert pairs == [(colour, shape)]


def test_all_stuff_occurs_and_fills_the_picture() -> None:
    layouts = _layouts(40)
    assert {int(code) for layout in layouts for code in np.unique(layout.stuff)} == set(
        range(len(STUFF))
    )
    assert all(layout.stuff.shape == SIZE_HW for layout in layouts)


def test_things_grow_with_the_picture() -> None:
    small = draw_layout(np.random.default_rng(3), (72, 104), None).things[0]
    large = draw_layout(np.random.default_rng(3), (144, 208), None).things[0]
    assert large.radius_px == 2 * small.radius_px
