"""What stands where in a scene: regions of stuff, things with a place, all as label maps."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from pipelines.scenes.shapes import distance_field
from pipelines.scenes.textures import smooth_noise
from pipelines.scenes.vocabulary import COLOURS, HELDOUT_PAIRS, SHAPES, STUFF, Look

SizeHW = tuple[int, int]

# pixels are given for a picture whose short side is 96 and grow with it
REFERENCE_SIDE_PX = 96
_RADIUS_PX = {"small": (9.0, 11.5), "large": (16.5, 21.0)}
_MIN_VISIBLE_PX = 60
_MIN_VISIBLE_FRACTION = 0.55
_MAX_TRIES = 25


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing: how it looks and where it stands; `full_mask` ignores what covers it."""

    look: Look
    center_xy_px: tuple[float, float]
    radius_px: float
    angle_rad: float
    full_mask: Bool[ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A scene before it is painted.

    stuff: index into STUFF of what lies behind each pixel. things: back to front.
    owner: 0 = stuff, k = the k-th thing, counted from 1.
    """

    size_hw: SizeHW
    stuff: UInt8[ndarray, "h w"]
    things: tuple[Thing, ...]
    owner: UInt8[ndarray, "h w"]

    def visible_mask(self, index: int) -> Bool[ndarray, "h w"]:
        """Where the thing with this index is seen."""
        return self.owner == index + 1


def unit_px(size_hw: SizeHW) -> float:
    """How much larger than the reference picture this one is."""
    return min(size_hw) / REFERENCE_SIDE_PX


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a picture around a thing, and where its pixels lie in the thing's own frame."""

    rows: slice
    columns: slice
    dx: Float[ndarray, "1 w"]
    dy: Float[ndarray, "h 1"]

    @classmethod
    def around(
        cls, size_hw: SizeHW, center_xy_px: tuple[float, float], radius_px: float, reach: float
    ) -> "Window":
        """All pixels within `reach` radii of a centre, horizontally and vertically."""
        (height, width), (cx, cy) = size_hw, center_xy_px
        span = reach * radius_px
        top, bottom = max(0, int(cy - span)), min(height, int(cy + span) + 1)
        left, right = max(0, int(cx - span)), min(width, int(cx + span) + 1)
        x_px = np.arange(left, right, dtype=np.float32) + 0.5
        y_px = np.arange(top, bottom, dtype=np.float32) + 0.5
        return cls(
            rows=slice(top, bottom),
            columns=slice(left, right),
            dx=((x_px - cx) / radius_px)[None, :],
            dy=((y_px - cy) / radius_px)[:, None],
        )


def turned_field(
    shape: str, angle_rad: float, dx: Float[ndarray, "1 w"], dy: Float[ndarray, "h 1"]
) -> Float[ndarray, "h w"]:
    """Signed distance, in radii, to a shape that is turned by an angle."""
    cos, sin = np.float32(np.cos(angle_rad)), np.float32(np.sin(angle_rad))
    return distance_field(shape, cos * dx + sin * dy, cos * dy - sin * dx)  # [h, w]


def draw_layout(rng: np.random.Generator, size_hw: SizeHW, heldout_index: int | None) -> Layout:
    """A scene with 2 to 6 things; `heldout_index` puts that held-out pair in front of the others.

    Without it no thing has a held-out pair.
    """
    stuff = _draw_stuff(rng, size_hw)
    num_things = int(rng.choice((2, 3, 4, 5, 6), p=(0.14, 0.24, 0.26, 0.2, 0.16)))
    things: list[Thing] = []
    if heldout_index is not None:
        colour, shape = HELDOUT_PAIRS[heldout_index]
        look = Look(shape=shape, colour=colour, size=_draw_size(rng))
        things += _placed(rng, size_hw, look, things)
    # a crowded scene may refuse a thing, never the second one
    for _ in range(8 * num_things):
        if len(things) == num_things:
            break
        things += _placed(rng, size_hw, _draw_look(rng, things), things)
    owner = np.zeros(size_hw, np.uint8)
    for index, thing in enumerate(things):
        owner[thing.full_mask] = index + 1
    return Layout(size_hw=size_hw, stuff=stuff, things=tuple(things), owner=owner)


def _draw_size(rng: np.random.Generator) -> str:
    return "small" if rng.random() < 0.5 else "large"


def _draw_look(rng: np.random.Generator, others: list[Thing]) -> Look:
    while True:
        shape = SHAPES[rng.integers(len(SHAPES))]
        # twins in shape are what makes a relation worth saying
        if others and rng.random() < 0.45:
            shape = others[rng.integers(len(others))].look.shape
        colour = COLOURS[rng.integers(len(COLOURS))]
        look = Look(shape=shape, colour=colour, size=_draw_size(rng))
        if not look.is_heldout:
            return look


def _placed(
    rng: np.random.Generator, size_hw: SizeHW, look: Look, others: list[Thing]
) -> list[Thing]:
    height, width = size_hw
    unit = unit_px(size_hw)
    for _ in range(_MAX_TRIES):
        low, high = _RADIUS_PX[look.size]
        radius = unit * rng.uniform(low, high)
        center = (
            rng.uniform(0.75 * radius, width - 0.75 * radius),
            rng.uniform(0.75 * radius, height - 0.75 * radius),
        )
        tilt = np.pi if look.shape == "star" else 0.35
        angle = rng.uniform(-tilt, tilt)
        if any(_too_close(center, radius, other) for other in others):
            continue
        window = Window.around(size_hw, center, radius, 1.2)
        mask = np.zeros(size_hw, bool)
        field = turned_field(look.shape, angle, window.dx, window.dy)
        mask[window.rows, window.columns] = field < 0
        thing = Thing(
            look=look, center_xy_px=center, radius_px=radius, angle_rad=angle, full_mask=mask
        )
        if _leaves_all_visible([*others, thing], unit):
            return [thing]
    return []


def _too_close(center_xy_px: tuple[float, float], radius_px: float, other: Thing) -> bool:
    dx = center_xy_px[0] - other.center_xy_px[0]
    dy = center_xy_px[1] - other.center_xy_px[1]
    return bool(np.hypot(dx, dy) < 0.6 * (radius_px + other.radius_px))


def _leaves_all_visible(things: list[Thing], unit: float) -> bool:
    covered = np.zeros_like(things[0].full_mask)
    for thing in reversed(things):
        visible = int((thing.full_mask & ~covered).sum())
        full = int(thing.full_mask.sum())
        if visible < max(_MIN_VISIBLE_PX * unit * unit, _MIN_VISIBLE_FRACTION * full):
            return False
        covered |= thing.full_mask
    return True


def _draw_stuff(rng: np.random.Generator, size_hw: SizeHW) -> UInt8[ndarray, "h w"]:
    height, width = size_hw
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height  # [h, 1]
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width  # [1, w]
    upper = "sky" if rng.random() < 0.72 else "brick"
    lower = list(rng.permutation(("grass", "water", "sand")))
    stuff = np.full(size_hw, STUFF.index(upper), np.uint8)
    roughness = 0.05 if upper == "sky" else 0.0
    line = rng.uniform(0.3, 0.62) + rng.uniform(-0.08, 0.08) * (x - 0.5) * (roughness > 0)
    horizon = line + roughness * smooth_noise(rng, (1, width), (1, 5))  # [1, w]
    if upper == "sky" and rng.random() < 0.3:
        # a wall that stands before the sky and ends somewhere
        end = rng.uniform(0.25, 0.6)
        beside = x < end if rng.random() < 0.5 else x > 1 - end
        wall_top = rng.uniform(0.0, 0.2)
        stuff[(y > wall_top) & beside] = STUFF.index("brick")
    ground = y > horizon  # [h, w]
    stuff[ground] = STUFF.index(lower[0])
    if rng.random() < 0.6:
        second = ground & _second_region(rng, size_hw, x, y, horizon)
        stuff[second] = STUFF.index(lower[1])
    return stuff


def _second_region(
    rng: np.random.Generator,
    size_hw: SizeHW,
    x: Float[ndarray, "1 w"],
    y: Float[ndarray, "h 1"],
    horizon: Float[ndarray, "1 w"],
) -> Bool[ndarray, "h w"]:
    wobble = smooth_noise(rng, size_hw, (5, 6))
    kind = rng.integers(3)
    if kind == 0:
        # a band in front, as a beach before the sea
        return y > horizon + rng.uniform(0.15, 0.28) + 0.05 * wobble
    if kind == 1:
        # a side, as a path beside a lawn
        edge = rng.uniform(0.35, 0.65) + rng.uniform(-0.6, 0.6) * (y - horizon)
        side = 1.0 if rng.random() < 0.5 else -1.0
        return side * (x - edge + 0.05 * wobble) > 0
    # a pond or an island
    cx, cy = rng.uniform(0.25, 0.75), rng.uniform(0.74, 0.88)
    rx, ry = rng.uniform(0.2, 0.34), rng.uniform(0.1, 0.17)
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1 + 0.3 * wobble
