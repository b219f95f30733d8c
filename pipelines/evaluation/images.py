"""Reading pictures of any kind, and fitting them to the size that a model takes."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.errors import DataError

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: Path, *, turn_upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as 8-bit RGB; transparency is laid on white.

    turn_upright: turn it as its EXIF orientation says; annotated images stay as they are stored.
    Modes of any kind are converted; 16-bit grey keeps its high byte, 32-bit grey is scaled to its
    own range where it leaves 0..255.

    Raises:
        DataError: the file is missing, damaged, cut short or not a picture.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture.load()
            turned = ImageOps.exif_transpose(picture) if turn_upright else picture
            return np.array(_as_rgb(turned))  # [h, w, 3]
    except (
        OSError,
        ValueError,
        SyntaxError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(
            f"{path}: must be a picture that Pillow can read; got {error}. "
            "Convert it, or leave it out."
        ) from error


def fitted_size_hw(size_hw: tuple[int, int], box_hw: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same shape inside a box, at least one pixel each way."""
    factor = min(box_hw[0] / size_hw[0], box_hw[1] / size_hw[1])
    return max(1, round(size_hw[0] * factor)), max(1, round(size_hw[1] * factor))


def resized(
    image: UInt8[np.ndarray, "h w 3"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image at another size, bilinear with antialiasing."""
    if image.shape[:2] == size_hw:
        return image
    picture = Image.fromarray(image).resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture)


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
