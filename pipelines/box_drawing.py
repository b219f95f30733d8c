"""Pictures of boxes, outlined, named and scored; those of phrases are dashed, of names not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pipelines.drawing import PAPER, DrawnSegment, draw_segments
from pipelines.labels import Colour, LabelLayer, Point, label_sizes, label_wh

# lines are drawn this much larger and reduced, for smooth corners and dashes
_OVERSAMPLING = 2
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class DrawnBox:
    """A box in pixels of the image, what stands at it (may be empty), and its colour."""

    box_xyxy_px: _Box
    label: str
    colour: Colour
    is_dashed: bool = False


def draw_boxes(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Sequence[DrawnBox],
    *,
    regions: Sequence[DrawnSegment] = (),
) -> Image.Image:
    """The image with regions tinted and boxes outlined and named; later ones lie on top."""
    picture = draw_segments(image, regions, with_labels=False)
    factor = picture.width / image.shape[1]
    width = max(2, round(min(picture.size) / 130))
    places = [_scaled(each.box_xyxy_px, factor) for each in boxes]
    large = (picture.width * _OVERSAMPLING, picture.height * _OVERSAMPLING)
    layer = Image.new("RGBA", large, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for box, place in zip(boxes, places, strict=True):
        _outline(draw, box, _scaled(place, _OVERSAMPLING), width * _OVERSAMPLING)
    layer = layer.resize(picture.size, Image.Resampling.LANCZOS)
    picture = Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")
    labels = LabelLayer(picture.size)
    # the surest choose first: they are drawn last
    for box, place in zip(reversed(boxes), reversed(places), strict=True):
        if box.label:
            _name(labels, box, place, width)
    return labels.over(picture)


def _outline(draw: ImageDraw.ImageDraw, box: DrawnBox, place: _Box, width: int) -> None:
    """Four bars inside the box's edge, with a dark hairline on both sides."""
    bright = tuple(round(channel + (255 - channel) * 0.2) for channel in box.colour)
    for left, top, right, bottom in _bars(place, width, is_dashed=False):
        dark = (left - 2, top - 2, right + 2, bottom + 2)
        draw.rectangle(dark, fill=(*PAPER, 150))
    for bar in _bars(place, width, is_dashed=box.is_dashed):
        draw.rectangle(bar, fill=(*bright, 255))


def _bars(place: _Box, width: int, *, is_dashed: bool) -> Iterator[_Box]:
    left, top, right, bottom = place
    width_x, width_y = min(width, (right - left) / 2), min(width, (bottom - top) / 2)
    step = 7 * width
    for start, end in _dashes(left, right, step, is_dashed=is_dashed):
        yield start, top, end, top + width_y
        yield start, bottom - width_y, end, bottom
    for start, end in _dashes(top, bottom, step, is_dashed=is_dashed):
        yield left, start, left + width_x, end
        yield right - width_x, start, right, end


def _dashes(start: float, end: float, step: float, *, is_dashed: bool) -> list[tuple[float, float]]:
    """Parts of a line, the first and the last one half as long, so that corners are closed."""
    count = round((end - start) / step)
    if not is_dashed or count < 1:
        return [(start, end)]
    period = (end - start) / count
    centres = [start + number * period for number in range(count + 1)]
    reach = period * 0.28
    return [(max(start, c - reach), min(end, c + reach)) for c in centres]


def _name(labels: LabelLayer, box: DrawnBox, place: _Box, width: int) -> None:
    for size in label_sizes(labels.size_wh)[1:]:
        if labels.place(box.label, box.colour, _centres(place, box.label, size, width), size):
            return


def _centres(place: _Box, label: str, size: int, edge: int) -> list[Point]:
    """Where a label may stand: on the upper edge, inside, on the lower edge, inside, right."""
    left, top, right, bottom = place
    width, height = label_wh(label, size)
    first, last = left + width / 2, right - width / 2
    above, below = top - height / 2 - 2, bottom + height / 2 + 2
    inner_top, inner_bottom = top + height / 2 + edge + 2, bottom - height / 2 - edge - 2
    outside = [(first, above), (last, above), (first, below), (last, below)]
    inside = [(first + edge + 2, inner_top), (first + edge + 2, inner_bottom)]
    # a label that covers half of its box stands outside first
    is_small = (right - left) * (bottom - top) < 2 * width * height
    has_room = above - height / 2 >= 0
    ordered = [*outside, *inside] if is_small or has_room else [*inside, *outside]
    return [*ordered, (right + width / 2 + 2, inner_top), (left - width / 2 - 2, inner_top)]


def _scaled(box: _Box, factor: float) -> _Box:
    left, top, right, bottom = (value * factor for value in box)
    return left, top, right, bottom
