"""Mask logits at the size of an image, made one query or some rows at a time.

A hundred masks of a photograph with twelve million pixels are five gigabytes; what is done with
them needs one of them, or a few rows of all.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xdecoder.postprocess import CHUNK_ELEMENTS, ResizeMode, resize_masks


class FullSizeMasks:
    """Mask logits of queries as `postprocess.resize_masks` makes them, without keeping them.

    canvas_hw: the padded input that the logits cover; valid_hw: of it, what the image has;
    out_hw: the size that is asked for; mode: how they grow; canvas_mode: to the padded input, None
    for the same.
    """

    def __init__(
        self,
        mask_logits: Float[Tensor, "q h4 w4"],
        *,
        canvas_hw: tuple[int, int],
        valid_hw: tuple[int, int],
        out_hw: tuple[int, int],
        mode: ResizeMode = "bilinear",
        canvas_mode: ResizeMode | None = None,
    ) -> None:
        self._logits, self._mode, self._canvas_mode = mask_logits, mode, canvas_mode
        self._canvas_hw, self._valid_hw, self._out_hw = canvas_hw, valid_hw, out_hw
        self.dtype, self.device = mask_logits.dtype, mask_logits.device
        self.shape = (len(mask_logits), *out_hw)

    def __len__(self) -> int:
        return len(self._logits)

    def __getitem__(self, query: int) -> Float[Tensor, "h w"]:
        return self._resized(self._logits[query : query + 1])[0]

    def of(self, queries: Int[Tensor, " n"] | Bool[Tensor, " q"]) -> "FullSizeMasks":
        """The masks of some queries, by index or by choice."""
        return FullSizeMasks(
            self._logits[queries],
            canvas_hw=self._canvas_hw,
            valid_hw=self._valid_hw,
            out_hw=self._out_hw,
            mode=self._mode,
            canvas_mode=self._canvas_mode,
        )

    def whole(self) -> Float[Tensor, "q h w"]:
        """All masks at once."""
        return self._resized(self._logits)

    def row_blocks(self, num_maps: int) -> Iterator[tuple[slice, Float[Tensor, "q r w"]]]:
        """Rows of all masks, from top to bottom, as many at a time as memory should hold.

        num_maps: that the caller makes of them, where it is more than the masks.
        """
        height, width = self._out_hw
        # resizing is linear and separable: a row of the result is a weighted sum of few rows
        weights = self._row_weights()  # [H, h4]
        num_values = max(1, len(self), num_maps) * max(width, self._canvas_hw[1])
        step = max(1, CHUNK_ELEMENTS // num_values)
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            mixed = torch.einsum("rh,qhw->qrw", weights[rows], self._logits)  # [Q, r, w4]
            yield rows, self._widened(mixed)

    def _row_weights(self) -> Float[Tensor, "h h4"]:
        one_hot = torch.eye(self._logits.shape[1], dtype=self.dtype, device=self.device)
        columns = one_hot[:, :, None]  # [h4, h4, 1]
        resized = resize_masks(
            columns,
            canvas_hw=(self._canvas_hw[0], 1),
            valid_hw=(self._valid_hw[0], 1),
            out_hw=(self._out_hw[0], 1),
            mode=self._mode,
            canvas_mode=self._canvas_mode,
        )  # [h4, H, 1]
        return resized[:, :, 0].T

    def _widened(self, rows: Float[Tensor, "q r w4"]) -> Float[Tensor, "q r w"]:
        height = rows.shape[1]
        return resize_masks(
            rows,
            canvas_hw=(height, self._canvas_hw[1]),
            valid_hw=(height, self._valid_hw[1]),
            out_hw=(height, self._out_hw[1]),
            mode=self._mode,
            canvas_mode=self._canvas_mode,
        )

    def _resized(self, mask_logits: Tensor) -> Tensor:
        return resize_masks(
            mask_logits,
            canvas_hw=self._canvas_hw,
            valid_hw=self._valid_hw,
            out_hw=self._out_hw,
            mode=self._mode,
            canvas_mode=self._canvas_mode,
        )


def semantic_ids(class_probs: Float[Tensor, "q k1"], masks: FullSizeMasks) -> Int[Tensor, "h w"]:
    """The class that speaks loudest for each pixel, as `postprocess.semantic` scores them."""
    ids = torch.empty(masks.shape[1:], dtype=torch.long, device=masks.device)
    probs = class_probs[:, :-1]
    for rows, logits in masks.row_blocks(probs.shape[1]):
        ids[rows] = torch.einsum("qk,qrw->krw", probs, logits.sigmoid()).argmax(0)
    return ids
