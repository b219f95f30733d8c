"""One geometric change for an image, its masks and its texts, drawn once and applied to each.

A geometry takes a whole-pixel window of the source, resizes it to `valid_hw`, mirrors it, and puts
it in the top left corner of a zero canvas of `out_hw`:

    source            window            valid_hw          out_hw
    +----------+      +-----+           +--------+        +--------+--+
    |  +-----+ |  ->  |     |  resize   |        |  pad   |        | 0|
    |  |     | |      +-----+    ->     |        |   ->   |        | 0|
    +----------+                        +--------+        +--------+--+
"""

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.data.config import AugmentConfig

SizeHW = tuple[int, int]

_MIRRORED_WORDS = {"left": "right", "right": "left", "leftmost": "rightmost"}
_MIRRORED_WORDS |= {"rightmost": "leftmost", "lefthand": "righthand", "righthand": "lefthand"}
_SIDE = re.compile(r"\b(" + "|".join(_MIRRORED_WORDS) + r")\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Which window of the source goes where."""

    window_yx: tuple[int, int]
    window_hw: SizeHW
    valid_hw: SizeHW
    out_hw: SizeHW
    is_mirrored: bool


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
    window, valid, corner = [], [], []
    for source, out in zip(source_hw, out_hw, strict=True):
        length = min(source, max(1, round(out / scale)))
        window.append(length)
        valid.append(min(out, max(1, round(length * scale))))
        corner.append(int(rng.integers(source - length + 1)))
    return Geometry(
        window_yx=(corner[0], corner[1]),
        window_hw=(window[0], window[1]),
        valid_hw=(valid[0], valid[1]),
        out_hw=out_hw,
        is_mirrored=bool(rng.random() < augment.flip_prob),
    )


def transform_image(
    image: UInt8[Tensor, "3 h w"], geometry: Geometry
) -> Float[Tensor, "3 out_h out_w"]:
    """The padded crop, 0..255, resized with antialiasing."""
    (top, left), (height, width) = geometry.window_yx, geometry.window_hw
    crop = image[:, top : top + height, left : left + width]  # [3, wh, ww]
    if geometry.valid_hw != geometry.window_hw:
        # the uint8 kernel is several times faster on interleaved channels
        interleaved = crop[None].contiguous(memory_format=torch.channels_last)
        crop = interpolate(interleaved, geometry.valid_hw, mode="bilinear", antialias=True)[0]
    if geometry.is_mirrored:
        crop = crop.flip(-1)
    canvas = torch.zeros((3, *geometry.out_hw))
    canvas[:, : geometry.valid_hw[0], : geometry.valid_hw[1]] = crop
    return canvas  # [3, out_h, out_w]


def transform_labels(
    labels: Int[ndarray, "*n h w"] | Bool[ndarray, "*n h w"], geometry: Geometry
) -> Int[ndarray, "*n out_h out_w"] | Bool[ndarray, "*n out_h out_w"]:
    """The same crop of a label map or of masks, nearest pixel, padded with 0."""
    rows = _nearest(geometry.window_yx[0], geometry.window_hw[0], geometry.valid_hw[0])
    columns = _nearest(geometry.window_yx[1], geometry.window_hw[1], geometry.valid_hw[1])
    if geometry.is_mirrored:
        columns = columns[::-1]
    out = np.zeros((*labels.shape[:-2], *geometry.out_hw), labels.dtype)
    height, width = geometry.valid_hw
    out[..., :height, :width] = labels[..., rows[:, None], columns[None, :]]
    return out  # [..., out_h, out_w]


def mirror_text(text: str, is_mirrored: bool) -> str:
    """The text of a mirrored picture: left and right change places."""
    return _SIDE.sub(_mirrored_word, text) if is_mirrored else text


def jitter_colour(
    rng: np.random.Generator, image: Float[Tensor, "3 h w"], strength: float
) -> Float[Tensor, "3 h w"]:
    """Brightness, contrast and saturation changed by at most `strength`; padding stays zero."""
    if strength == 0.0:
        return image
    brightness, contrast, saturation = 1 + strength * rng.uniform(-1, 1, 3)
    is_padding = (image == 0).all(dim=0)  # [h, w]
    gray = image.mean(dim=0, keepdim=True)  # [1, h, w]
    mean = gray.sum() / (~is_padding).sum().clamp(min=1)
    image = gray + saturation * (image - gray)
    image = (mean + contrast * (image - mean)) * brightness
    return image.clamp(0, 255).masked_fill(is_padding, 0.0)


def _nearest(start: int, window: int, valid: int) -> Int[ndarray, " v"]:
    centers = (np.arange(valid) + 0.5) * (window / valid)
    return start + np.minimum(centers.astype(np.int64), window - 1)


def _mirrored_word(match: re.Match[str]) -> str:
    word = match.group(0)
    mirrored = _MIRRORED_WORDS[word.lower()]
    if word.isupper():
        return mirrored.upper()
    return mirrored.capitalize() if word[0].isupper() else mirrored
