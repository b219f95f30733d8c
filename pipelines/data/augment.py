"""One geometric change for an image, its masks, boxes and texts, drawn once, applied to each.

A geometry takes a whole-pixel window of the source, resizes it to `valid_hw`, mirrors it, and puts
it in the top left corner of a zero canvas of `out_hw`:

    source            window            valid_hw          out_hw
    +----------+      +-----+           +--------+        +--------+--+
    |  +-----+ |  ->  |     |  resize   |        |  pad   |        | 0|
    |  |     | |      +-----+    ->     |        |   ->   |        | 0|
    +----------+                        +--------+        +--------+--+
                    |<- shrink_* ->|<----------- enlarge_* ----------->|
                     in the worker    where the batch is needed

Whatever makes an array smaller happens first, near the decoder; whatever makes it larger happens
last, on the device of the batch. In between lies an array of `small_hw`, the smaller of window and
valid size on each axis, which is all that is kept and copied.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.data.config import AugmentConfig

SizeHW = tuple[int, int]
# rows of [3, 4]: what red, green, blue and 1 contribute to each channel
ColourMatrix = tuple[tuple[float, float, float, float], ...]

_MIRRORED_WORDS = {"left": "right", "right": "left", "leftmost": "rightmost"}
_MIRRORED_WORDS |= {"rightmost": "leftmost", "lefthand": "righthand", "righthand": "lefthand"}
_SIDE = re.compile(r"\b(" + "|".join(_MIRRORED_WORDS) + r")\b", re.IGNORECASE)
_Places = TypeVar("_Places", ndarray, Tensor)
# sizes at which libjpeg can decode, by denominator, the smallest first
_DENOMINATORS = (8, 4, 2)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Which window of the source goes where.

    denominator: how much smaller the image may be decoded; the window begins at a multiple of it.
    """

    window_yx: tuple[int, int]
    window_hw: SizeHW
    valid_hw: SizeHW
    out_hw: SizeHW
    is_mirrored: bool
    denominator: int = 1

    @property
    def small_hw(self) -> SizeHW:
        """The smaller of window and valid size on each axis."""
        height, width = map(min, self.window_hw, self.valid_hw)
        return height, width


def sample_generator(seed: int, epoch: int, task: str, key: str) -> np.random.Generator:
    """The random numbers of one sample in one epoch, whoever draws them and whenever."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{task}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def draw_geometry(
    rng: np.random.Generator, source_hw: SizeHW, out_hw: SizeHW, augment: AugmentConfig
) -> Geometry:
    """Large-scale jitter around the scale at which the source just fits, then a random window."""
    low, high = augment.scale_range
    fit = min(out_hw[0] / source_hw[0], out_hw[1] / source_hw[1])
    scale = fit * rng.uniform(low, high)
    denominator = next((number for number in _DENOMINATORS if scale * number <= 1), 1)
    window, valid, corner = [], [], []
    for source, out in zip(source_hw, out_hw, strict=True):
        length = min(source, max(1, round(out / scale)))
        window.append(length)
        valid.append(min(out, max(1, round(length * scale))))
        first = int(rng.integers(source - length + 1))
        corner.append(first - first % denominator)
    return Geometry(
        window_yx=(corner[0], corner[1]),
        window_hw=(window[0], window[1]),
        valid_hw=(valid[0], valid[1]),
        out_hw=out_hw,
        is_mirrored=bool(rng.random() < augment.flip_prob),
        denominator=denominator,
    )


def draw_colour(
    rng: np.random.Generator, pixels: UInt8[ndarray, "h w 3"], augment: AugmentConfig
) -> ColourMatrix | None:
    """Hue, saturation, contrast and brightness as one matrix; None where nothing changes.

    Contrast is about the mean of the image, by every fourth pixel of every fourth row; saturation
    is about each pixel's mean of channels.
    """
    if augment.colour_strength == 0.0 and augment.hue_degrees == 0.0:
        return None
    brightness, contrast, saturation = 1 + augment.colour_strength * rng.uniform(-1, 1, 3)
    angle = np.deg2rad(augment.hue_degrees * rng.uniform(-1, 1))
    gray = np.full((3, 3), 1 / 3)
    # the turn around the gray axis (1, 1, 1)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * gray + np.sin(angle) * across
    linear = brightness * contrast * (saturation * turn + (1 - saturation) * gray)
    shift = brightness * (1 - contrast) * float(pixels[::4, ::4].mean(dtype=np.float64))
    return tuple((*map(float, row), float(shift)) for row in linear)  # type: ignore[misc]


def shrink_image(
    image: UInt8[ndarray, "h w 3"], geometry: Geometry
) -> UInt8[ndarray, "small_h small_w 3"]:
    """The window of an image that was decoded at `geometry.denominator`, antialiased."""
    top, left = (start // geometry.denominator for start in geometry.window_yx)
    height, width = (-(-length // geometry.denominator) for length in geometry.window_hw)
    crop = image[top : top + height, left : left + width]  # [dh, dw, 3]
    if crop.shape[:2] == geometry.small_hw:
        return crop
    # the uint8 kernel is several times faster on interleaved channels
    interleaved = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None]
    small = interpolate(interleaved, geometry.small_hw, mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()  # [sh, sw, 3]


def enlarge_image(
    small: UInt8[Tensor, "small_h small_w 3"],
    geometry: Geometry,
    colour: ColourMatrix | None,
    out: Float[Tensor, "3 out_h out_w"],
) -> None:
    """Write the image, 0..255, into the top left corner of a canvas of zeros."""
    image = small.permute(2, 0, 1).to(out.dtype, memory_format=torch.contiguous_format)
    if geometry.valid_hw != geometry.small_hw:
        image = interpolate(image[None], geometry.valid_hw, mode="bilinear")[0]  # [3, vh, vw]
    if colour is not None:
        image = _recoloured(image, colour)
    if geometry.is_mirrored:
        image = image.flip(-1)
    out[:, : geometry.valid_hw[0], : geometry.valid_hw[1]] = image


def shrink_labels(
    labels: Shaped[ndarray, "h w"], geometry: Geometry
) -> Shaped[ndarray, "small_h small_w"]:
    """The window of a label map or of a mask, nearest pixel."""
    (top, left), (height, width) = geometry.window_yx, geometry.window_hw
    small = labels[top : top + height, left : left + width]  # [wh, ww]
    small_h, small_w = geometry.small_hw
    if small_h < height:
        small = small[_nearest(height, small_h, np.arange(small_h))]
    if small_w < width:
        small = small[:, _nearest(width, small_w, np.arange(small_w))]
    return small  # [sh, sw]


def enlarge_labels(
    small: Shaped[Tensor, "small_h small_w"], geometry: Geometry
) -> Shaped[Tensor, "valid_h valid_w"]:
    """The label map or mask at its valid size, nearest pixel."""
    for axis in (0, 1):
        length, valid = small.shape[axis], geometry.valid_hw[axis]
        if length != valid:
            places = torch.arange(valid, device=small.device)
            small = small.index_select(axis, _nearest(length, valid, places))
    return small.flip(-1) if geometry.is_mirrored else small  # [vh, vw]


def move_boxes(
    boxes_xyxy_px: Float64[ndarray, "m 4"], geometry: Geometry
) -> Float64[ndarray, "m 4"]:
    """Boxes of the source as pixels of the canvas; what lies outside of the window is cut off.

    Ends lie past the last pixel. A box without a part in the window has a width or height of 0.
    """
    starts, ends = _corners(geometry.window_yx, geometry.window_hw)
    scale = np.array(geometry.valid_hw[::-1]) / geometry.window_hw[::-1]  # [x, y]
    inside = np.clip(boxes_xyxy_px.reshape(-1, 2, 2), starts, ends)  # [m, corner, xy]
    moved = (inside - starts) * scale
    if geometry.is_mirrored:
        moved[:, :, 0] = geometry.valid_hw[1] - moved[:, ::-1, 0]
    return moved.reshape(-1, 4)  # [m, 4]


def visible_shares(
    boxes_xyxy_px: Float64[ndarray, "m 4"], geometry: Geometry
) -> Float64[ndarray, " m"]:
    """How much of the area of each box of the source lies in the window; 0 for an empty box."""
    starts, ends = _corners(geometry.window_yx, geometry.window_hw)
    corners = boxes_xyxy_px.reshape(-1, 2, 2)  # [m, corner, xy]
    whole = np.diff(corners, axis=1).prod(axis=(1, 2))
    seen = np.diff(np.clip(corners, starts, ends), axis=1).prod(axis=(1, 2))
    return np.divide(seen, whole, out=np.zeros_like(whole), where=whole > 0)


def mirror_text(text: str, is_mirrored: bool) -> str:
    """The text of a mirrored picture: left and right change places."""
    return _SIDE.sub(_mirrored_word, text) if is_mirrored else text


def _corners(start_yx: tuple[int, int], size_hw: SizeHW) -> tuple[ndarray, ndarray]:
    starts = np.array(start_yx[::-1], np.float64)  # [x, y]
    return starts, starts + size_hw[::-1]


def _recoloured(image: Float[Tensor, "3 h w"], colour: ColourMatrix) -> Float[Tensor, "3 h w"]:
    # one product after another: a matrix product may round its factors on some devices
    rows = [
        image[0] * red + image[1] * green + image[2] * blue + shift
        for red, green, blue, shift in colour
    ]
    return torch.stack(rows).clamp_(0, 255)  # [3, h, w]


def _nearest(window: int, valid: int, places: _Places) -> _Places:
    """Where the centers of `valid` pixels fall among `window` pixels, in whole numbers."""
    return (2 * places + 1) * window // (2 * valid)


def _mirrored_word(match: re.Match[str]) -> str:
    word = match.group(0)
    mirrored = _MIRRORED_WORDS[word.lower()]
    if word.isupper():
        return mirrored.upper()
    return mirrored.capitalize() if word[0].isupper() else mirrored
