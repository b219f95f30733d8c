import re

import numpy as np
import pytest

from pipelines.scenes.layout import Layout, Thing, draw_layout
from pipelines.scenes.phrases import attribute_phrases, draw_phrases, place_of, relation_phrases
from pipelines.scenes.vocabulary import COLOURS, PLACES, SHAPES, SIZES, STUFF, Look

SIZE_HW = (72, 104)
_NOUN = rf"(?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})"
_RELATIONS = "left of|right of|above|below|in front of|behind"
_FORMS = {
    "extreme": re.compile(rf"the (leftmost|rightmost|highest|lowest) {_NOUN}$"),
    "anchor": re.compile(rf"the {_NOUN} ({_RELATIONS}) the {_NOUN}$"),
    "place": re.compile(rf"the {_NOUN} ({'|'.join(PLACES.values())})$"),
    "noun": re.compile(rf"the {_NOUN}$"),
}


def _fits(thing: Thing, noun: tuple) -> bool:
    spoken = (thing.look.size, thing.look.colour, thing.look.shape)
    return all(want is None or want == have for want, have in zip(noun, spoken, strict=True))


def _meant(layout: Layout, text: str) -> set[int]:
    """A reader of its own: who could be meant, taking every comparison at its weakest."""
    found = ((form, pattern.match(text)) for form, pattern in _FORMS.items())
    form, match = next((form, match) for form, match in found if match)
    groups = match.groups()
    everyone = range(len(layout.things))
    xy = [thing.center_xy_px for thing in layout.things]
    if form == "noun":
        return {i for i in everyone if _fits(layout.things[i], groups)}
    if form == "extreme":
        among = [i for i in everyone if _fits(layout.things[i], groups[1:])]
        key = {"leftmost": (0, 1), "rightmost": (0, -1), "highest": (1, 1), "lowest": (1, -1)}
        axis, sign = key[groups[0]]
        return {min(among, key=lambda i: sign * xy[i][axis])}
    among = [i for i in everyone if _fits(layout.things[i], groups[:3])]
    if form == "place":
        code = STUFF.index(next(name for name, words in PLACES.items() if words == groups[3]))
        share = {i: (layout.stuff[layout.things[i].full_mask] == code).mean() for i in among}
        return {i for i in among if share[i] > 0.5}
    anchors = [i for i in everyone if _fits(layout.things[i], groups[4:])]
    assert len(anchors) == 1, text
    anchor = anchors[0]
    return {i for i in among if i != anchor and _related(layout, groups[3], i, anchor)}


def _related(layout: Layout, relation: str, one: int, two: int) -> bool:
    (x1, y1), (x2, y2) = (layout.things[i].center_xy_px for i in (one, two))
    if relation in ("in front of", "behind"):
        touch = (layout.things[one].full_mask & layout.things[two].full_mask).any()
        return bool(touch) and (one > two) == (relation == "in front of")
    return {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}[relation]


def test_every_phrase_means_exactly_its_thing() -> None:
    kinds = set()
    for i in range(150):
        layout = draw_layout(np.random.default_rng((11, i)), SIZE_HW, i % 5 if i % 3 else None)
        for index in range(len(layout.things)):
            for phrase in (*attribute_phrases(layout, index), *relation_phrases(layout, index)):
                assert phrase.thing == index
                assert _meant(layout, phrase.text) == {index}, phrase.text
                kinds.add((phrase.kind, phrase.is_relation_needed))
    assert kinds == {("attribute", False), ("relation", False), ("relation", True)}


def test_a_needed_relation_is_one_whose_noun_fits_several_things() -> None:
    for i in range(60):
        layout = draw_layout(np.random.default_rng((12, i)), SIZE_HW, None)
        for phrase in draw_phrases(np.random.default_rng(i), layout):
            if phrase.kind == "attribute":
                continue
            text = re.sub("leftmost |rightmost |highest |lowest ", "", phrase.text)
            noun = re.match(rf"the {_NOUN}", text).group(0)
            assert (len(_meant(layout, noun)) > 1) == phrase.is_relation_needed


def _thing(shape: str, colour: str, x: float, y: float) -> Thing:
    rows, columns = np.mgrid[:72, :104]
    mask = (np.abs(columns - x) < 9) & (np.abs(rows - y) < 9)
    look = Look(shape=shape, colour=colour, size="small")
    return Thing(look=look, center_xy_px=(x, y), radius_px=9, angle_rad=0, full_mask=mask)


def _layout(*things: Thing) -> Layout:
    stuff = np.full(SIZE_HW, STUFF.index("sky"), np.uint8)
    stuff[40:] = STUFF.index("grass")
    owner = np.zeros(SIZE_HW, np.uint8)
    for index, thing in enumerate(things):
        owner[thing.full_mask] = index + 1
    return Layout(size_hw=SIZE_HW, stuff=stuff, things=things, owner=owner)


def _texts(layout: Layout, index: int) -> set[str]:
    found = (*attribute_phrases(layout, index), *relation_phrases(layout, index))
    return {phrase.text for phrase in found}


def test_twins_are_told_apart_by_relations_only() -> None:
    layout = _layout(
        _thing("star", "red", 20, 20),
        _thing("star", "red", 84, 20),
        _thing("heart", "blue", 52, 20),
    )
    assert _texts(layout, 0) == {
        "the leftmost star",
        "the leftmost red star",
        "the star left of the heart",
        "the red star left of the heart",
    }


def test_nearly_level_things_are_not_called_higher() -> None:
    layout = _layout(_thing("star", "red", 20, 20), _thing("star", "blue", 84, 23))
    assert not any("highest" in text or "above" in text for text in _texts(layout, 0))


@pytest.mark.parametrize(("y", "place"), [(20, "sky"), (60, "grass"), (40, None)])
def test_place_is_named_only_where_it_is_clear(y: float, place: str | None) -> None:
    assert place_of(_layout(_thing("star", "red", 50, y)), 0) == place


def test_front_and_behind_follow_the_drawing_order() -> None:
    layout = _layout(_thing("star", "red", 40, 20), _thing("heart", "blue", 50, 26))
    assert "the star behind the heart" in _texts(layout, 0)
    assert "the heart in front of the star" in _texts(layout, 1)
    assert "the star in front of the heart" not in _texts(layout, 0)
