"""Names written on pictures, so that no two of them meet."""

import functools
from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]
_Box = tuple[float, float, float, float]

SMALLEST_FONT_PX = 11
# labels are drawn this much larger and reduced, for smooth corners
_OVERSAMPLING = 2


@functools.cache
def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow carries, at a size in pixels."""
    return ImageFont.load_default(max(size_px, SMALLEST_FONT_PX))


def label_sizes(size_wh: tuple[int, int]) -> tuple[int, ...]:
    """Letters' sizes in pixels that suit a picture, the largest first."""
    largest = max(SMALLEST_FONT_PX + 1, round(min(size_wh) / 19))
    return largest, round(largest * 0.82), SMALLEST_FONT_PX


def label_wh(text: str, size: int) -> tuple[float, float]:
    """Width and height of a label."""
    return font(size).getlength(text) + size * 0.9, size * 1.5


class LabelLayer:
    """The labels of one picture, which is `size_wh` pixels large."""

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self.size_wh = size_wh
        large = (size_wh[0] * _OVERSAMPLING, size_wh[1] * _OVERSAMPLING)
        self._layer = Image.new("RGBA", large, (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self._layer)
        self._taken: list[_Box] = []

    def place(self, text: str, colour: Colour, centres: Iterable[Point], size: int) -> bool:
        """Whether the text could be written around one of the points (x, y), tried in turn."""
        width, height = label_wh(text, size)
        for x, y in centres:
            box = _inside(x - width / 2, y - height / 2, width, height, self.size_wh)
            if not any(_meet(box, other) for other in self._taken):
                self._taken.append(box)
                self._write(text, colour, box, size)
                return True
        return False

    def over(self, picture: Image.Image) -> Image.Image:
        """The picture with the labels on it."""
        layer = self._layer.resize(picture.size, Image.Resampling.LANCZOS)
        return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")

    def _write(self, text: str, colour: Colour, box: _Box, size: int) -> None:
        scaled = tuple(value * _OVERSAMPLING for value in box)
        letters = font(size * _OVERSAMPLING)
        shade = tuple(round(channel * 0.28) for channel in colour)
        radius = size * 0.45 * _OVERSAMPLING
        self._draw.rounded_rectangle(scaled, radius=radius, fill=(*shade, 205))
        centre = ((scaled[0] + scaled[2]) / 2, (scaled[1] + scaled[3]) / 2)
        self._draw.text(centre, text, font=letters, fill=(255, 255, 255, 255), anchor="mm")


def _inside(x: float, y: float, width: float, height: float, size_wh: tuple[int, int]) -> _Box:
    x = min(max(x, 2), max(size_wh[0] - width - 2, 2))
    y = min(max(y, 2), max(size_wh[1] - height - 2, 2))
    return (x, y, x + width, y + height)


def _meet(first: _Box, second: _Box) -> bool:
    is_apart_x = first[2] < second[0] or second[2] < first[0]
    is_apart_y = first[3] < second[1] or second[3] < first[1]
    return not (is_apart_x or is_apart_y)
