"""A new picture of what a phrase names, or its removal, by any inpainting program."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy.ndimage import binary_dilation

from xdecoder.images import ImageArray
from xdecoder.model import XDecoder
from xdecoder.tasks.referring import Referring

# Source: microsoft/X-Decoder, branch xgpt, xgpt.py
EMPTY_SCENE = "clean and empty scene"
_DILATIONS = 3
_SHORT_SIDE_PX = 512
_MULTIPLE_PX = 64
# the longer side, in shorter sides
_LONGEST = 3


class Inpaint(Protocol):
    """A program that fills the white part of a mask with what a prompt says."""

    def __call__(self, image: Image.Image, mask: Image.Image, prompt: str) -> Image.Image:
        """The picture, of the size of the one it got; sides are multiples of 64."""
        ...


class EditedImage(NamedTuple):
    """The new picture and the pixels that may have changed; all others are those of the old."""

    pixels: ImageArray
    region: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class Editing:
    """The image with something else where the phrase is; EMPTY_SCENE as prompt removes it.

    short_side_px: at which the program works, its sides being multiples of 64.
    """

    phrase: str
    prompt: str
    inpaint: Inpaint
    short_side_px: int = _SHORT_SIDE_PX

    def ask(self, model: XDecoder, image: ImageArray) -> EditedImage:
        mask = Referring(phrases=(self.phrase,)).ask(model, image).masks[0].cpu().numpy()
        if not mask.any():
            return EditedImage(image, mask)
        width, height = working_size_wh((image.shape[1], image.shape[0]), self.short_side_px)
        small_mask = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        grown = binary_dilation(np.asarray(small_mask), np.ones((3, 3)), iterations=_DILATIONS)
        small = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        painted = self.inpaint(small, Image.fromarray(grown), self.prompt)
        return composed(image, painted, grown)


def composed(
    image: ImageArray, painted: Image.Image, region: Bool[np.ndarray, "h2 w2"]
) -> EditedImage:
    """The painted pixels inside the region, brought to the size of the image, on the image."""
    size = (image.shape[1], image.shape[0])
    new: UInt8[np.ndarray, "h w 3"] = np.asarray(
        painted.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    )
    inside = np.asarray(Image.fromarray(region).resize(size, Image.Resampling.NEAREST))
    return EditedImage(np.where(inside[..., None], new, image), inside)


def working_size_wh(size_wh: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    """Width and height near a shorter side, both multiples of 64; long pictures are smaller."""
    factor = min(short_side_px / min(size_wh), _LONGEST * short_side_px / max(size_wh))
    width, height = (max(1, round(side * factor / _MULTIPLE_PX)) * _MULTIPLE_PX for side in size_wh)
    return width, height
