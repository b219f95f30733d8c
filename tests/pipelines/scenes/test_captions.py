import re

import numpy as np

from pipelines.scenes.captions import draw_captions
from pipelines.scenes.layout import draw_layout
from pipelines.scenes.vocabulary import COLOURS, REGIONS, SHAPES, STUFF

SIZE_HW = (72, 104)
_PAIR = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def _scenes(count: int) -> list:
    layouts = [draw_layout(np.random.default_rng((21, i)), SIZE_HW, None) for i in range(count)]
    return [
        (layout, draw_captions(np.random.default_rng(i), layout))
        for i, layout in enumerate(layouts)
    ]


def test_captions_name_only_what_is_there() -> None:
    for layout, captions in _scenes(50):
        pairs = {(thing.look.colour, thing.look.shape) for thing in layout.things}
        stuff = {STUFF[code] for code in np.unique(layout.stuff[layout.owner == 0])}
        for caption in captions:
            assert set(_PAIR.findall(caption)) <= pairs
            named = {
                s
                for s in STUFF
                if re.search(rf"\b{REGIONS[s].removeprefix('a ')}\b", caption, re.I)
            }
            assert named <= stuff


def test_the_five_captions_of_a_scene_differ() -> None:
    for _, captions in _scenes(30):
        assert len(set(captions)) == 5


def test_captions_are_sentences_that_a_text_encoder_can_hold() -> None:
    for _, captions in _scenes(50):
        for caption in captions:
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert ".." not in caption
            assert len(re.findall(r"\w+|[.,]", caption)) <= 40


def test_counting_captions_count() -> None:
    for layout, captions in _scenes(30):
        counting = next(c for c in captions if c.startswith("There"))
        shapes = [thing.look.shape for thing in layout.things]
        for shape in set(shapes):
            word = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}[
                shapes.count(shape)
            ]
            ending = "" if shapes.count(shape) == 1 else "e?s"
            assert re.search(rf"\b{word} {shape}{ending}\b", counting)
