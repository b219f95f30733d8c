"""Masks of a decoder's output at the resolution that a caller wants."""

from jaxtyping import Float
from torch import Tensor

from xdecoder.full_size import FullSizeMasks
from xdecoder.outputs import DecoderOutput
from xdecoder.postprocess import ResizeMode
from xdecoder.tasks.base import full_precision


def image_masks(
    output: DecoderOutput,
    rows: slice,
    *,
    image_hw: tuple[int, int],
    out_hw: tuple[int, int],
    resize: ResizeMode = "bilinear",
    batch_index: int = 0,
) -> Float[Tensor, "q h w"]:
    """Mask logits of some rows of the last prediction for one image, its padding cut off."""
    return full_size_masks(
        output, rows, image_hw=image_hw, out_hw=out_hw, resize=resize, batch_index=batch_index
    ).whole()


def full_size_masks(
    output: DecoderOutput,
    rows: slice,
    *,
    image_hw: tuple[int, int],
    out_hw: tuple[int, int],
    resize: ResizeMode = "bilinear",
    batch_index: int = 0,
) -> FullSizeMasks:
    """The same, each mask made when it is asked for."""
    features = full_precision(output.mask_features[batch_index])  # [C, h4, w4]
    embeddings = full_precision(output.layers[-1].mask_embeddings[batch_index, rows])  # [Q, C]
    logits = (embeddings @ features.flatten(1)).unflatten(1, features.shape[1:])
    return FullSizeMasks(
        logits,
        canvas_hw=canvas_size_hw(output),
        valid_hw=image_hw,
        out_hw=out_hw,
        mode=resize,
    )


def canvas_size_hw(output: DecoderOutput) -> tuple[int, int]:
    """The size in pixels that the mask features cover, the model's own padding included."""
    height, width = output.mask_features.shape[2:]
    return 4 * height, 4 * width
