"""Pictures to pixels, pixels to the size that a model takes, and to what a backbone reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

ImageArray = UInt8[np.ndarray, "h w 3"]
Picture = Image.Image | UInt8[np.ndarray, "h w *channels"]
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, kw_only=True)
class ImageFit:
    """The size in pixels that an image has when a model sees it.

    inside: the largest of its shape inside size_hw. exact: size_hw, whatever its shape.
    shorter_side: the largest of its shape whose sides are within size_hw, upright or lying.
    """

    kind: Literal["inside", "exact", "shorter_side"] = "inside"
    size_hw: tuple[int, int] = (800, 1333)

    def __post_init__(self) -> None:
        if min(self.size_hw) < 1:
            raise ValueError(f"ImageFit: size_hw must be two positive numbers; got {self.size_hw}.")

    def fitted_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of `size_hw` gets."""
        if self.kind == "exact":
            return self.size_hw
        if self.kind == "inside":
            return fitted_size_hw(size_hw, self.size_hw)
        short, long = min(self.size_hw), max(self.size_hw)
        scale = min(short / min(size_hw), long / max(size_hw))
        return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))

    def pixels(self, image: ImageArray) -> Float[Tensor, "3 h w"]:
        """The image at that size, RGB in 0..255."""
        small = resized(image, self.fitted_hw((image.shape[0], image.shape[1])))
        return torch.tensor(small, dtype=torch.float32).permute(2, 0, 1)  # [3, h, w]


def rgb_pixels(image: Picture, *, turn_upright: bool = True) -> ImageArray:
    """8-bit RGB of a Pillow image of any mode, or of an array of grey, RGB or RGBA.

    turn_upright: turn it as its EXIF orientation says. Transparency is laid on white, 16-bit grey
    keeps its high byte, 32-bit grey is scaled to its own range where it leaves 0..255.

    Raises: TypeError for anything else.
    """
    if isinstance(image, np.ndarray):
        is_known = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
        if image.dtype != np.uint8 or not is_known or not image.size:
            raise TypeError(
                "rgb_pixels: an array must be uint8 [h, w], [h, w, 3] or [h, w, 4]; got "
                f"{image.dtype} {list(image.shape)}. Scale to 0..255 and put channels last."
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"rgb_pixels: needs a Pillow image or an array; got {type(image).__name__}. "
            "Open files with PIL.Image.open."
        )
    turned = ImageOps.exif_transpose(image) if turn_upright else image
    return np.array(_as_rgb(turned))  # [h, w, 3]


def fitted_size_hw(size_hw: tuple[int, int], box_hw: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same shape inside a box, at least one pixel each way."""
    factor = min(box_hw[0] / size_hw[0], box_hw[1] / size_hw[1])
    return max(1, round(size_hw[0] * factor)), max(1, round(size_hw[1] * factor))


def resized(image: ImageArray, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image at another size, bilinear with antialiasing."""
    if image.shape[:2] == size_hw:
        return image
    picture = Image.fromarray(image).resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def normalised(
    images: Float[Tensor, "b 3 h w"],
    valid_sizes_hw: Sequence[tuple[int, int]] | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size_divisibility: int,
    dtype: torch.dtype,
) -> Float[Tensor, "b 3 hp wp"]:
    """Images minus mean over deviation, then zeros right and bottom up to the divisibility.

    The arithmetic is at least float32. With `valid_sizes_hw` the padding that a batch already has
    becomes zero as well.
    """
    height, width = images.shape[2:]
    images = images.to(torch.promote_types(dtype, torch.float32))
    mean_, std_ = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    images = (images - mean_) / std_
    if valid_sizes_hw is not None:
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        sizes_hw = torch.tensor(list(valid_sizes_hw), device=images.device)  # [B, 2]
        is_valid_row = rows < sizes_hw[:, :1]  # [B, H]
        is_valid_column = columns < sizes_hw[:, 1:]  # [B, W]
        images = images * (is_valid_row[:, :, None] & is_valid_column[:, None])[:, None]
    divisor = size_divisibility
    images = F.pad(images, (0, -width % divisor, 0, -height % divisor))
    return images.to(dtype)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT:
        high = np.asarray(picture).astype(np.uint16) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        return Image.fromarray(_eight_bit(np.asarray(picture, dtype=np.float64))).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _eight_bit(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if low < 0 or high > 255 or high <= 1:
        values = (values - low) / max(high - low, 1e-12) * 255
    return np.round(values).astype(np.uint8)
