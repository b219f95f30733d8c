"""Pictures of predictions: tinted segments with names, regions with their phrase, sheets of panels.

Everything is drawn at display size: a small image is enlarged first, so that outlines and letters
stay fine. The same input gives the same pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from scipy.ndimage import distance_transform_edt

from pipelines.labels import (
    SMALLEST_FONT_PX,
    Colour,
    LabelLayer,
    font,
    label_sizes,
    label_wh,
)

# twelve hues that stay apart under the common colour blindnesses.
# Source: Paul Tol, "Colour schemes" (2021), bright and muted qualitative sets
_HUES: tuple[Colour, ...] = (
    (170, 51, 119),
    (68, 170, 153),
    (51, 34, 136),
    (238, 102, 119),
    (153, 153, 51),
    (136, 34, 85),
    (102, 204, 238),
    (34, 136, 51),
    (68, 119, 170),
    (221, 204, 119),
    (204, 102, 119),
    (204, 187, 68),
)
HIGHLIGHT: Colour = (255, 176, 0)
TRUTH: Colour = (92, 214, 132)
PAPER: Colour = (21, 24, 30)
INK: Colour = (240, 242, 245)
FAINT: Colour = (150, 158, 170)
_SHORT_SIDE_PX = 384


@dataclass(frozen=True, kw_only=True)
class DrawnSegment:
    """A region to tint, the name to write into it (may be empty), and its colour."""

    region: Bool[np.ndarray, "h w"]
    label: str
    colour: Colour
    is_thing: bool = True


def class_colour(index: int) -> Colour:
    """The colour of the class at a place in the vocabulary; hues repeat lighter and darker."""
    red, green, blue = _HUES[index % len(_HUES)]
    lightness = (0.0, 0.35, -0.3)[index // len(_HUES) % 3]
    target = 255 if lightness > 0 else 0
    share = abs(lightness)
    return (
        round(red + (target - red) * share),
        round(green + (target - green) * share),
        round(blue + (target - blue) * share),
    )


def enlarged(
    image: UInt8[np.ndarray, "h w 3"], *, short_side_px: int = _SHORT_SIDE_PX
) -> Image.Image:
    """The image with its shorter side at least this long; larger images keep their size."""
    picture = Image.fromarray(image)
    factor = max(1.0, short_side_px / max(min(picture.size), 1))
    if factor == 1.0:
        return picture
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BICUBIC)


def draw_segments(
    image: UInt8[np.ndarray, "h w 3"],
    segments: Sequence[DrawnSegment],
    *,
    short_side_px: int = _SHORT_SIDE_PX,
    with_labels: bool = True,
) -> Image.Image:
    """The image with segments tinted, outlined and named; later segments lie on top.

    Stuff is tinted stronger and outlined finer than things, so that things stand out.
    """
    picture = enlarged(image, short_side_px=short_side_px)
    regions = [_enlarged_region(segment.region, picture.size) for segment in segments]
    thickness = max(1, round(min(picture.size) / 220))
    for segment, region in zip(segments, regions, strict=True):
        strength = 0.4 if segment.is_thing else 0.5
        picture = _tinted(picture, region, segment.colour, strength)
    for segment, region in zip(segments, regions, strict=True):
        width = thickness + 1 if segment.is_thing else thickness
        picture = _outlined(picture, region, segment.colour, width)
    if not with_labels:
        return picture
    return _labelled(picture, segments, regions)


def draw_region(
    image: UInt8[np.ndarray, "h w 3"],
    region: Bool[np.ndarray, "h w"],
    *,
    truth: Bool[np.ndarray, "h w"] | None = None,
    short_side_px: int = _SHORT_SIDE_PX,
) -> Image.Image:
    """The image with everything but the region darkened and greyed, and the region outlined.

    truth: a second outline, in `TRUTH`, of the region that was meant.
    """
    picture = enlarged(image, short_side_px=short_side_px)
    large = _enlarged_region(region, picture.size)
    background = Image.blend(picture.convert("L").convert("RGB"), picture, 0.35)
    background = Image.blend(background, Image.new("RGB", picture.size, PAPER), 0.5)
    lit = _tinted(picture, large, HIGHLIGHT, 0.16)
    picture = Image.composite(lit, background, _mask_picture(large))
    thickness = max(2, round(min(picture.size) / 150))
    picture = _outlined(picture, large, HIGHLIGHT, thickness)
    if truth is None:
        return picture
    return _outlined(picture, _enlarged_region(truth, picture.size), TRUTH, max(1, thickness // 2))


def with_strip(
    picture: Image.Image, text: str, *, kicker: str = "", accent: Colour = HIGHLIGHT
) -> Image.Image:
    """The picture with text in a strip below it, wrapped to its width.

    kicker: a few words in small faint letters above the text, such as the task.
    """
    size = max(SMALLEST_FONT_PX + 4, round(picture.width / 25))
    pad = round(size * 0.8)
    lines = _wrapped(text, size, picture.width - 2 * pad - size // 2)
    small = round(size * 0.68)
    top = pad + (round(small * 1.7) if kicker else 0)
    height = top + round(len(lines) * size * 1.35) + round(pad * 0.7)
    strip = Image.new("RGB", (picture.width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.rectangle((0, pad, max(2, size // 6), height - pad), fill=accent)
    if kicker:
        draw.text((pad, pad * 0.9), kicker.upper(), font=font(small), fill=FAINT)
    for row, line in enumerate(lines):
        draw.text((pad, top + row * size * 1.35), line, font=font(size), fill=INK)
    return _stacked([picture, strip])


def side_by_side(
    pictures: Sequence[Image.Image], titles: Sequence[str], *, heading: str = ""
) -> Image.Image:
    """Pictures in a row, each under its title, with a heading over all.

    Raises:
        ValueError: there is not one title for each picture, or no picture.
    """
    if not pictures or len(pictures) != len(titles):
        raise ValueError(
            f"side_by_side: needs at least one picture and a title for each; "
            f"got {len(pictures)} pictures and {len(titles)} titles."
        )
    height = max(picture.height for picture in pictures)
    size = max(SMALLEST_FONT_PX + 2, round(min(picture.width for picture in pictures) / 27))
    gap, bar = max(8, size // 2), round(size * 2.1)
    top = gap + (round(size * 2.0) if heading else 0)
    total = sum(picture.width for picture in pictures) + gap * (len(pictures) + 1)
    sheet = Image.new("RGB", (total, top + bar + height + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        line = _shortened(heading, round(size * 1.15), total - 4 * gap)
        draw.text((gap * 2, gap * 1.6), line, font=font(round(size * 1.15)), fill=INK)
    left = gap
    for picture, title in zip(pictures, titles, strict=True):
        line = _shortened(title, size, picture.width - gap)
        draw.text((left + gap, top + size * 0.4), line, font=font(size), fill=FAINT)
        sheet.paste(picture, (left, top + bar))
        left += picture.width + gap
    return sheet


def contact_sheet(pictures: Sequence[Image.Image], *, num_columns: int = 1) -> Image.Image:
    """Pictures in a grid, row by row, each scaled to the width of its column.

    Raises:
        ValueError: there is no picture, or no column.
    """
    if not pictures or num_columns < 1:
        raise ValueError(
            f"contact_sheet: needs at least one picture and one column; "
            f"got {len(pictures)} pictures and {num_columns} columns."
        )
    width = max(picture.width for picture in pictures)
    cells = [_at_width(picture, width) for picture in pictures]
    rows = [cells[start : start + num_columns] for start in range(0, len(cells), num_columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    columns = min(num_columns, len(cells))
    sheet = Image.new("RGB", (columns * width, sum(heights)), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * width, top))
        top += height
    return sheet


def _enlarged_region(
    region: Bool[np.ndarray, "h w"], size_wh: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    # blurred by one old pixel and cut at one half: round outlines where nearest draws stairs
    grey = Image.fromarray(region.astype(np.uint8) * 255)
    factor = size_wh[0] / max(grey.width, 1)
    grey = grey.resize(size_wh, Image.Resampling.BILINEAR)
    if factor > 1.5:
        grey = grey.filter(ImageFilter.GaussianBlur(0.6 * factor))
    return np.asarray(grey) >= 128


def _mask_picture(region: Bool[np.ndarray, "h w"]) -> Image.Image:
    return Image.fromarray(region.astype(np.uint8) * 255)


def _tinted(
    picture: Image.Image, region: Bool[np.ndarray, "h w"], colour: Colour, strength: float
) -> Image.Image:
    tint = Image.blend(picture, Image.new("RGB", picture.size, colour), strength)
    return Image.composite(tint, picture, _mask_picture(region))


def _outlined(
    picture: Image.Image, region: Bool[np.ndarray, "h w"], colour: Colour, width: int
) -> Image.Image:
    """The colour along the inner border of the region, with a dark hairline around it."""
    mask = _mask_picture(np.pad(region, width + 2))
    outer = mask.filter(ImageFilter.MaxFilter(3))
    inner = mask.filter(ImageFilter.MinFilter(2 * width + 1))
    frame = (width + 2, width + 2, width + 2 + picture.width, width + 2 + picture.height)
    line = ImageChops.subtract(mask, inner).crop(frame)
    hairline = ImageChops.subtract(outer, mask).crop(frame).point(lambda value: value * 0.55)
    soft = line.filter(ImageFilter.GaussianBlur(0.6))
    picture = Image.composite(Image.new("RGB", picture.size, PAPER), picture, hairline)
    bright = tuple(round(channel + (255 - channel) * 0.25) for channel in colour)
    return Image.composite(Image.new("RGB", picture.size, bright), picture, soft)


def _labelled(
    picture: Image.Image,
    segments: Sequence[DrawnSegment],
    regions: Sequence[Bool[np.ndarray, "h w"]],
) -> Image.Image:
    layer = LabelLayer(picture.size)
    visible = _visible_parts(regions)
    # small regions choose first: large ones have room elsewhere
    for index in sorted(range(len(segments)), key=lambda item: int(visible[item].sum())):
        if segments[index].label and visible[index].any():
            _place_label(layer, segments[index], visible[index])
    return layer.over(picture)


def _visible_parts(
    regions: Sequence[Bool[np.ndarray, "h w"]],
) -> list[Bool[np.ndarray, "h w"]]:
    parts: list[Bool[np.ndarray, "h w"]] = []
    covered: Bool[np.ndarray, "h w"] | None = None
    for region in reversed(regions):
        parts.append(region if covered is None else region & ~covered)
        covered = region if covered is None else region | covered
    return parts[::-1]


def _place_label(layer: LabelLayer, segment: DrawnSegment, region: Bool[np.ndarray, "h w"]) -> None:
    """Write a name where its region is deepest, beside a small region, unless names would meet."""
    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    for size in label_sizes(layer.size_wh):
        width, height = label_wh(segment.label, size)
        points = _deep_points(depth, num_points=6)
        if depth.max() < height * 0.8:
            points = _points_beside(region, width, height) + points
        if layer.place(segment.label, segment.colour, points, size):
            return


def _deep_points(depth: Float[np.ndarray, "h w"], *, num_points: int) -> list[tuple[float, float]]:
    """The deepest point, then the deepest points away from those already given, as (x, y)."""
    remaining = depth.copy()
    points = []
    for _ in range(num_points):
        y, x = np.unravel_index(int(remaining.argmax()), remaining.shape)
        if remaining[y, x] <= 0:
            break
        points.append((float(x), float(y)))
        reach = max(12, int(remaining[y, x]))
        remaining[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach] = 0
    return points


def _points_beside(
    region: Bool[np.ndarray, "h w"], width: float, height: float
) -> list[tuple[float, float]]:
    """Centres of a label above, below, right and left of a region, as (x, y)."""
    rows, columns = np.nonzero(region.any(1))[0], np.nonzero(region.any(0))[0]
    top, bottom = float(rows[0]), float(rows[-1])
    left, right = float(columns[0]), float(columns[-1])
    x, y, gap = (left + right) / 2, (top + bottom) / 2, 5
    return [
        (x, top - height / 2 - gap),
        (x, bottom + height / 2 + gap),
        (right + width / 2 + gap, y),
        (left - width / 2 - gap, y),
    ]


def _wrapped(text: str, size: int, width: float) -> list[str]:
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _shortened(text: str, size: int, width: float) -> str:
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (pictures[0].width, sum(each.height for each in pictures)), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def _at_width(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(picture.height * width / picture.width))
    return picture if picture.width == width else picture.resize((width, height))
