"""Captions by a small grammar: what there is, where it stands, how two things relate, how many.

Things are named largest first, an order that a mirrored picture keeps.
"""

from collections import Counter

import numpy as np

from pipelines.scenes.layout import Layout
from pipelines.scenes.phrases import place_of
from pipelines.scenes.vocabulary import PLACES, REGIONS, STUFF, Look

# a caption stays within the text encoder's length if it names no more things than this
_MAX_NAMED = 4
_COUNT_WORDS = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def draw_captions(rng: np.random.Generator, layout: Layout) -> tuple[str, ...]:
    """One caption of each of the five kinds, in random order."""
    order = _by_size(layout)
    captions = (
        _inventory(layout, order),
        _background_first(layout, order),
        _relation(layout, order),
        _places(layout, order),
        _counts(layout),
    )
    return tuple(captions[i] for i in rng.permutation(len(captions)))


def _by_size(layout: Layout) -> list[int]:
    areas = [int(layout.visible_mask(i).sum()) for i in range(len(layout.things))]
    return sorted(range(len(areas)), key=lambda i: -areas[i])


def _inventory(layout: Layout, order: list[int]) -> str:
    names = [_named(layout.things[i].look, ("size", "colour", "shape")) for i in order]
    return _sentence(f"{_joined(names[:_MAX_NAMED])} with {_background(layout)}")


def _background_first(layout: Layout, order: list[int]) -> str:
    names = [_named(layout.things[i].look, ("colour", "shape")) for i in order]
    return _sentence(f"{_background(layout)} with {_joined(names[:_MAX_NAMED])}")


def _relation(layout: Layout, order: list[int]) -> str:
    one, two = layout.things[order[0]], layout.things[order[1]]
    dx = one.center_xy_px[0] - two.center_xy_px[0]
    dy = one.center_xy_px[1] - two.center_xy_px[1]
    if abs(dx) >= abs(dy):
        relation = "left of" if dx < 0 else "right of"
    else:
        relation = "above" if dy < 0 else "below"
    first = _named(one.look, ("colour", "shape"))
    second = _named(two.look, ("colour", "shape"))
    scene = _joined([REGIONS[name] for name in _stuff_from_top(layout)])
    return f"{_sentence(f'{first} is {relation} {second}')} {_sentence(f'behind them is {scene}')}"


def _places(layout: Layout, order: list[int]) -> str:
    parts = []
    for index in order[:3]:
        place = place_of(layout, index)
        where = f" {PLACES[place]}" if place else ""
        parts.append(_named(layout.things[index].look, ("colour", "shape")) + where)
    return _sentence(_joined(parts))


def _counts(layout: Layout) -> str:
    counts = Counter(thing.look.shape for thing in layout.things)
    parts = [
        f"{_COUNT_WORDS[count]} {shape}"
        if count == 1
        else f"{_COUNT_WORDS[count]} {_plural(shape)}"
        for shape, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    verb = "is" if len(layout.things) == 1 else "are"
    return f"{_sentence(f'there {verb} {_joined(parts)}')} {_sentence(_background(layout))}"


def _background(layout: Layout) -> str:
    regions = [REGIONS[name] for name in _stuff_from_top(layout)]
    return f"{regions[0]} over {_joined(regions[1:])}" if len(regions) > 1 else regions[0]


def _stuff_from_top(layout: Layout) -> list[str]:
    rows = np.arange(layout.size_hw[0])[:, None]
    seen = layout.owner == 0
    heights = {}
    for code in np.unique(layout.stuff[seen]):
        region = seen & (layout.stuff == code)
        heights[STUFF[code]] = float((rows * region).sum() / region.sum())
    return sorted(heights, key=heights.__getitem__)


def _named(look: Look, attributes: tuple[str, ...]) -> str:
    words = " ".join(getattr(look, attribute) for attribute in attributes)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
