"""Reading pictures of any kind, and fitting them to the size that a model takes."""

import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pipelines.errors import DataError
from xdecoder.images import fitted_size_hw, resized, rgb_pixels

__all__ = ["fitted_size_hw", "pixels_at", "read_image", "resized"]


def read_image(path: Path, *, turn_upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as 8-bit RGB; transparency is laid on white.

    turn_upright: turn it as its EXIF orientation says; annotated images stay as they are stored.
    Modes of any kind are converted, as `rgb_pixels` says.

    Raises:
        DataError: the file is missing, damaged, cut short or not a picture.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture.load()
            return rgb_pixels(picture, turn_upright=turn_upright)
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


def pixels_at(
    image: UInt8[np.ndarray, "h w 3"], size_hw: tuple[int, int]
) -> Float[Tensor, "3 h2 w2"]:
    """The image at another size as a model takes it, RGB in 0..255."""
    return torch.tensor(resized(image, size_hw), dtype=torch.float32).permute(2, 0, 1)
