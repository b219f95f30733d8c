"""The picture of a layout: painted stuff, then things back to front with shadow, rim and light."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from pipelines.scenes.layout import Layout, Thing, Window, turned_field, unit_px
from pipelines.scenes.textures import paint
from pipelines.scenes.vocabulary import STUFF

PALETTE = {
    "red": (214, 38, 44),
    "orange": (246, 134, 26),
    "yellow": (250, 214, 40),
    "green": (24, 150, 74),
    "blue": (34, 84, 206),
    "purple": (134, 56, 176),
    "white": (246, 246, 248),
}

# how far shadow and rim reach beyond the shape, in radii
_REACH = 1.5


def render(rng: np.random.Generator, layout: Layout) -> UInt8[ndarray, "h w 3"]:
    """RGB picture of a layout; `rng` chooses the grain of the stuff."""
    unit = unit_px(layout.size_hw)
    canvas = np.zeros((*layout.size_hw, 3), np.float32)
    for index in np.unique(layout.stuff):
        cover = _softened(layout.stuff == index)[..., None]
        canvas += cover * paint(STUFF[index], rng, layout.size_hw, unit)
    for thing in layout.things:
        _paint_thing(canvas, thing, unit)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _softened(region: Bool[ndarray, "h w"]) -> Float[ndarray, "h w"]:
    # [1 2 1] / 4 along both axes: the covers of all regions still add up to one
    padded = np.pad(region.astype(np.float32), 1, mode="edge")  # [h + 2, w + 2]
    columns = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4  # [h, w + 2]
    return (columns[:, :-2] + 2 * columns[:, 1:-1] + columns[:, 2:]) / 4


def _paint_thing(canvas: Float[ndarray, "h w 3"], thing: Thing, unit: float) -> None:
    radius = thing.radius_px
    window = Window.around((canvas.shape[0], canvas.shape[1]), thing.center_xy_px, radius, _REACH)
    patch = canvas[window.rows, window.columns]  # a view
    shape, angle = thing.look.shape, thing.angle_rad
    shadow = turned_field(shape, angle, window.dx - 0.12, window.dy - 0.18)  # [h, w]
    patch *= 1 - 0.42 * np.clip(0.5 - shadow / 0.3, 0.0, 1.0)[..., None]
    distance_px = turned_field(shape, angle, window.dx, window.dy) * radius  # [h, w]
    cover = np.clip(0.5 - distance_px, 0.0, 1.0)[..., None]
    patch += cover * (_shaded(thing.look.colour, distance_px / unit, window) - patch)


def _shaded(
    colour_name: str, distance: Float[ndarray, "h w"], window: Window
) -> Float[ndarray, "h w 3"]:
    dx, dy = window.dx, window.dy
    light = 1.04 - 0.13 * dx - 0.17 * dy  # [h, w]
    rim = np.clip(distance + 1.6, 0.0, 1.0)  # 1 at the outline, [h, w]
    colour = np.array(PALETTE[colour_name], np.float32)
    shaded = colour * (light * (1 - 0.45 * rim))[..., None]  # [h, w, 3]
    spot = 0.42 * np.exp(-((dx + 0.3) ** 2 + (dy + 0.36) ** 2) / 0.05) * (1 - rim)
    return shaded + spot[..., None] * (255 - shaded)
