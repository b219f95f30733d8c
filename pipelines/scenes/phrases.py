"""Referring expressions that fit exactly one thing of a scene.

A phrase is written only if every other thing that its noun could mean clearly fails it; things
in between (nearly as far left, half on the grass) make it ambiguous and it is not written.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.scenes.layout import Layout, Thing
from pipelines.scenes.vocabulary import PLACES, STUFF, Look

# attributes that a noun may name, in the order in which they are spoken
_NOUNS = (("shape",), ("colour", "shape"), ("size", "shape"), ("size", "colour", "shape"))
_SHORT_NOUNS = _NOUNS[:2]

# how clear a difference must be, in parts of the shorter side of the picture
_CLEAR = 0.1
_MIN_ON, _MAX_OFF = 0.75, 0.2
_MIN_OVERLAP_PX = 12


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A sentence about the thing with this index.

    kind: `attribute` or `relation`; is_relation_needed: without the relation the words would fit
    several things; is_heldout: a held-out pair is named.
    """

    thing: int
    text: str
    kind: str
    is_relation_needed: bool = False
    is_heldout: bool = False


def draw_phrases(
    rng: np.random.Generator, layout: Layout, *, max_per_kind: int = 2
) -> tuple[Phrase, ...]:
    """Up to `max_per_kind` attribute and relation phrases of each thing, needed relations first."""
    phrases: list[Phrase] = []
    for index in range(len(layout.things)):
        attributes = list(attribute_phrases(layout, index))
        relations = list(relation_phrases(layout, index))
        for found in (attributes, relations):
            order = rng.permutation(len(found))
            ranked = sorted(order, key=lambda i: not found[i].is_relation_needed)
            phrases += [found[i] for i in ranked[:max_per_kind]]
    return tuple(phrases)


def attribute_phrases(layout: Layout, index: int) -> Iterator[Phrase]:
    """Every noun that fits only this thing: `the red star`, `the small circle`."""
    thing = layout.things[index]
    for noun in _NOUNS:
        if _rivals(layout, index, noun) == []:
            yield Phrase(
                thing=index,
                text=f"the {_noun(thing.look, noun)}",
                kind="attribute",
                is_heldout=_is_heldout(thing.look, noun),
            )


def relation_phrases(layout: Layout, index: int) -> Iterator[Phrase]:
    """Every relation that fits only this thing: its place, an extreme, another thing, occlusion."""
    for noun in _SHORT_NOUNS:
        rivals = _rivals(layout, index, noun)
        texts = [*_place_texts(layout, index, noun, rivals)]
        heldout = _is_heldout(layout.things[index].look, noun)
        if rivals:
            texts += _extreme_texts(layout, index, noun, rivals)
        for text in texts:
            yield _relation(index, text, rivals, heldout)
        for text, anchor_heldout in _anchor_texts(layout, index, noun, rivals):
            yield _relation(index, text, rivals, heldout or anchor_heldout)


def place_of(layout: Layout, index: int) -> str | None:
    """The stuff that a thing clearly stands on, if any."""
    behind = layout.stuff[layout.things[index].full_mask]
    counts = np.bincount(behind, minlength=len(STUFF)) / behind.size
    best = int(counts.argmax())
    return STUFF[best] if counts[best] >= _MIN_ON else None


def _relation(index: int, text: str, rivals: list[int], is_heldout: bool) -> Phrase:
    return Phrase(
        thing=index,
        text=text,
        kind="relation",
        is_relation_needed=bool(rivals),
        is_heldout=is_heldout,
    )


def _noun(look: Look, noun: tuple[str, ...]) -> str:
    return " ".join(getattr(look, attribute) for attribute in noun)


def _is_heldout(look: Look, noun: tuple[str, ...]) -> bool:
    return "colour" in noun and look.is_heldout


def _rivals(layout: Layout, index: int, noun: tuple[str, ...]) -> list[int]:
    spoken = _noun(layout.things[index].look, noun)
    return [
        other
        for other, thing in enumerate(layout.things)
        if other != index and _noun(thing.look, noun) == spoken
    ]


def _place_texts(
    layout: Layout, index: int, noun: tuple[str, ...], rivals: list[int]
) -> Iterator[str]:
    place = place_of(layout, index)
    if place is None:
        return
    code = STUFF.index(place)
    shares = [(layout.stuff[layout.things[i].full_mask] == code).mean() for i in rivals]
    if all(share <= _MAX_OFF for share in shares):
        yield f"the {_noun(layout.things[index].look, noun)} {PLACES[place]}"


def _extreme_texts(
    layout: Layout, index: int, noun: tuple[str, ...], rivals: list[int]
) -> Iterator[str]:
    name = _noun(layout.things[index].look, noun)
    clear = _CLEAR * min(layout.size_hw)
    x, y = layout.things[index].center_xy_px
    others = [layout.things[i].center_xy_px for i in rivals]
    if all(other[0] - x > clear for other in others):
        yield f"the leftmost {name}"
    if all(x - other[0] > clear for other in others):
        yield f"the rightmost {name}"
    if all(other[1] - y > clear for other in others):
        yield f"the highest {name}"
    if all(y - other[1] > clear for other in others):
        yield f"the lowest {name}"


def _anchor_texts(
    layout: Layout, index: int, noun: tuple[str, ...], rivals: list[int]
) -> Iterator[tuple[str, bool]]:
    name = _noun(layout.things[index].look, noun)
    for anchor, thing in enumerate(layout.things):
        spoken = next((n for n in _SHORT_NOUNS if _rivals(layout, anchor, n) == []), None)
        if anchor == index or spoken is None:
            continue
        others = [i for i in rivals if i != anchor]
        for relation in ("left of", "right of", "above", "below", "in front of", "behind"):
            fits = _holds(layout, relation, index, anchor) is True
            if fits and all(_holds(layout, relation, i, anchor) is False for i in others):
                text = f"the {name} {relation} the {_noun(thing.look, spoken)}"
                yield text, _is_heldout(thing.look, spoken)


def _holds(layout: Layout, relation: str, index: int, anchor: int) -> bool | None:
    """Whether a relation clearly holds, clearly fails, or neither (None)."""
    one, two = layout.things[index], layout.things[anchor]
    if relation in ("in front of", "behind"):
        return _occludes(one, two, (index > anchor) == (relation == "in front of"))
    dx = one.center_xy_px[0] - two.center_xy_px[0]
    dy = one.center_xy_px[1] - two.center_xy_px[1]
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = abs(dy) if relation in ("left of", "right of") else abs(dx)
    clear = _CLEAR * min(layout.size_hw)
    if along > clear and along > across:
        return True
    return None if along > 0 else False


def _occludes(one: Thing, two: Thing, order_fits: bool) -> bool | None:
    overlap = int((one.full_mask & two.full_mask).sum())
    if overlap == 0:
        return False
    if overlap < _MIN_OVERLAP_PX:
        return None
    return order_fits
