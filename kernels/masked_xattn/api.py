"""Masked cross-attention: the packed mask, the attention under it, and the checks of both.

The mask of a query is where its predicted mask logit is not negative. It is never resized and
never dense: features are resized once per level, a GEMM keeps only signs, attention reads bits.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from kernels.masked_xattn import reference

ResizeMode = Literal["bilinear", "bicubic_antialias"]
BACKENDS = ("reference", "sdpa")


class MaskBits(NamedTuple):
    """Which keys each query row may attend to, one bit per key.

    bits: key k of row r is bit k % 32 of word k // 32; 1 = may attend; bits past K are 0.
    row_any: whether the row has any bit; a row without one attends everywhere.
    tile_any: whether any of 4 rows x 64 keys has a bit.
    """

    bits: Int32[Tensor, "b r words"]
    row_any: Bool[Tensor, "b r"]
    tile_any: Bool[Tensor, "b row_tiles key_tiles"]
    num_keys: int

    def with_unmasked_row(self, row: int) -> "MaskBits":
        """Return a copy in which row `row` may attend to every key."""
        rows = torch.arange(self.bits.shape[1], device=self.bits.device)
        is_row = (rows == row).unsqueeze(-1)  # [R, 1]
        every_key = torch.ones(self.num_keys, dtype=torch.bool, device=self.bits.device)
        bits = torch.where(is_row, reference.pack_bits(every_key), self.bits)
        row_any = self.row_any | is_row.squeeze(-1)
        return MaskBits(bits, row_any, reference.tiles_with_any(bits), self.num_keys)

    def may_attend(self) -> Bool[Tensor, "b r k"]:
        """Return the dense mask with the rule for rows without any visible key applied."""
        return reference.visible_keys(self.bits, self.row_any, self.num_keys)


def resize_mask_features(
    features: Float[Tensor, "b c h4 w4"],
    size_hw: Sequence[int],
    *,
    mode: ResizeMode = "bilinear",
) -> Float[Tensor, "b c h w"]:
    """Return features at `size_hw`: what mask logits would be resized with, once per level.

    Resizing is linear, so masks of resized features are the resized masks up to rounding.
    bilinear: Mask2Former; bicubic_antialias: X-Decoder. Both with align_corners=False.

    Raises: ValueError for another mode or a size below 1.
    Source: Mask2Former mask2former_transformer_decoder.py; X-Decoder xdecoder.py
    forward_prediction_heads.
    """
    if len(size_hw) != 2 or min(size_hw) < 1:
        raise ValueError(
            "resize_mask_features: size_hw must be (height, width), both at least 1; "
            f"got {tuple(size_hw)}. Pass the size of the decoder level."
        )
    size = [int(side) for side in size_hw]
    if mode == "bilinear":
        return torch.nn.functional.interpolate(features, size, mode="bilinear")
    if mode == "bicubic_antialias":
        return torch.nn.functional.interpolate(features, size, mode="bicubic", antialias=True)
    raise ValueError(
        "resize_mask_features: mode must be 'bilinear' or 'bicubic_antialias'; "
        f"got {mode!r}. Take the one the weights were trained with."
    )


@torch.no_grad()
def mask_bits(
    mask_embed: Float[Tensor, "b r c"],
    features: Float[Tensor, "b c *spatial"],
    *,
    num_unmasked_rows: int = 0,
) -> MaskBits:
    """Return the packed mask of mask_embed x features; 1 where the logit is not negative.

    features: [B, C, h, w] or [B, C, K] at attention resolution (`resize_mask_features`).
    num_unmasked_rows: rows added after the masked ones that may attend to every key.
    The result carries no gradient. A NaN logit counts as visible, as sigmoid(x) < 0.5 has it.

    Raises: ValueError for shapes that do not fit.
    """
    keys = _flat_keys(mask_embed, features, num_unmasked_rows)  # [B, C, K]
    packed = reference.mask_bits_reference(mask_embed, keys, num_unmasked_rows)
    return MaskBits(*packed, keys.shape[-1])


@torch.no_grad()
def exact_mask_bits(
    mask_logits: Float[Tensor, "b r h4 w4"],
    size_hw: Sequence[int],
    *,
    mode: ResizeMode = "bilinear",
    num_unmasked_rows: int = 0,
) -> MaskBits:
    """Return the packed mask by the original route: full-size logits, resize, sigmoid < 0.5.

    Bit-equal to the original implementations; several times slower than `mask_bits`.
    """
    resized = resize_mask_features(mask_logits, size_hw, mode=mode)
    may_attend = ~(resized.sigmoid() < 0.5).flatten(2)  # [B, R, K]
    return MaskBits(
        *reference.finish_mask_bits(may_attend, num_unmasked_rows), may_attend.shape[-1]
    )


@torch.no_grad()
def pack_mask_bits(may_attend: Bool[Tensor, "b r k"], *, num_unmasked_rows: int = 0) -> MaskBits:
    """Return the packed form of a dense Boolean mask (True = may attend)."""
    return MaskBits(
        *reference.finish_mask_bits(may_attend, num_unmasked_rows), may_attend.shape[-1]
    )


def masked_cross_attention(
    q: Float[Tensor, "b n q d"],
    k: Float[Tensor, "b n k d"],
    v: Float[Tensor, "b n k d"],
    bits: Int32[Tensor, "b q words"],
    row_any: Bool[Tensor, "b q"],
    *,
    backend: str | None = None,
) -> Float[Tensor, "b n q d"]:
    """Return attention of each query over the keys its bits show, scaled by D ** -0.5.

    A row with row_any == False attends everywhere. Differentiable in q, k and v.

    Raises: ValueError for shapes, dtypes, devices or a backend that do not fit.
    """
    _check_attention(q, k, v, bits, row_any)
    chosen = _choose_attention(q, backend)
    if chosen == "reference":
        return reference.masked_cross_attention_reference(q, k, v, bits, row_any)
    may_attend = reference.visible_keys(bits, row_any, k.shape[-2]).unsqueeze(1)  # [B, 1, Q, K]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)


def _choose_attention(q: Tensor, backend: str | None) -> str:
    if backend is None:
        return "reference" if q.dtype == torch.float64 else "sdpa"
    if backend not in BACKENDS:
        raise ValueError(
            f"masked_cross_attention: backend must be one of {BACKENDS} or None; got {backend!r}."
        )
    return backend


def _flat_keys(mask_embed: Tensor, features: Tensor, num_unmasked_rows: int) -> Tensor:
    is_shape_ok = (
        mask_embed.dim() == 3
        and features.dim() in (3, 4)
        and features.shape[:2] == (mask_embed.shape[0], mask_embed.shape[2])
        and features.shape[2:].numel() >= 1
    )
    if not is_shape_ok:
        raise ValueError(
            "mask_bits: mask_embed must be [B, R, C] and features [B, C, h, w] or [B, C, K] with "
            f"at least one key; got {list(mask_embed.shape)} and {list(features.shape)}. "
            "Put channels second in features."
        )
    if num_unmasked_rows < 0:
        raise ValueError(
            f"mask_bits: num_unmasked_rows must be at least 0; got {num_unmasked_rows}."
        )
    return features.flatten(2)


def _check_attention(q: Tensor, k: Tensor, v: Tensor, bits: Tensor, row_any: Tensor) -> None:
    is_4d = q.dim() == 4 and k.dim() == 4
    if not is_4d or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "masked_cross_attention: q must be [B, N, Q, D], k and v [B, N, K, D]; got "
            f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}. Split heads before the call."
        )
    if k.shape[2] < 1:
        raise ValueError(
            "masked_cross_attention: k and v must hold at least one key; got K = 0. "
            "Skip the layer for an empty level."
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            "masked_cross_attention: q, k and v must share one dtype; got "
            f"{q.dtype}, {k.dtype}, {v.dtype}. Cast them to the compute dtype."
        )
    words = [q.shape[0], q.shape[2], reference.num_words(k.shape[2])]
    if list(bits.shape) != words or bits.dtype != torch.int32:
        raise ValueError(
            f"masked_cross_attention: bits must be int32 [B, Q, ceil(K/32)] = {words}; got "
            f"{bits.dtype} {list(bits.shape)}. Build them with mask_bits at this level's size."
        )
    if row_any.shape != bits.shape[:2] or row_any.dtype != torch.bool:
        raise ValueError(
            f"masked_cross_attention: row_any must be bool [B, Q] = {words[:2]}; got "
            f"{row_any.dtype} {list(row_any.shape)}. Take it from the same MaskBits as bits."
        )
