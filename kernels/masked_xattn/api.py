"""Masked cross-attention: the packed mask, the attention under it, and the checks of both.

The mask of a query is where its predicted mask logit is not negative. It is never resized and
never dense: features are resized once per level, a GEMM keeps only signs, attention reads bits.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from kernels._checks import check_dtype, check_num_dims, check_same_device, check_shape
from kernels._extension import CPU_LIBRARY
from kernels._select import Candidate, choose_backend
from kernels.masked_xattn import reference, register

ResizeMode = Literal["bilinear", "bicubic_antialias"]
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_HEAD_DIM = 128


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
        """Return a copy in which row `row` may attend to every key.

        Raises: ValueError for a row that is not there.
        """
        if not 0 <= row < self.bits.shape[1]:
            raise ValueError(
                f"with_unmasked_row: row must be in 0..{self.bits.shape[1] - 1}; got {row}."
            )
        rows = torch.arange(self.bits.shape[1], device=self.bits.device)
        is_row = (rows == row).unsqueeze(-1)  # [R, 1]
        every_key = torch.ones(self.num_keys, dtype=torch.bool, device=self.bits.device)
        bits = torch.where(is_row, reference.pack_bits(every_key), self.bits)
        row_any = self.row_any | is_row.squeeze(-1)
        return MaskBits(bits, row_any, reference.tiles_with_any(bits), self.num_keys)

    def with_rows_after(self, other: "MaskBits") -> "MaskBits":
        """Return the rows of both, those of `other` last.

        Raises: ValueError for rows over another number of keys.
        """
        if self.num_keys != other.num_keys:
            raise ValueError(
                f"with_rows_after: both must have the same keys; got {self.num_keys} and "
                f"{other.num_keys}. Join masks of one level."
            )
        bits = torch.cat([self.bits, other.bits], dim=1)
        row_any = torch.cat([self.row_any, other.row_any], dim=1)
        return MaskBits(bits, row_any, reference.tiles_with_any(bits), self.num_keys)

    def may_attend(self) -> Bool[Tensor, "b r k"]:
        """Return the dense mask with the rule for rows without any visible key applied."""
        return reference.visible_keys(self.bits, self.row_any, self.num_keys)


@torch.no_grad()
def resize_mask_features(
    features: Float[Tensor, "b c h4 w4"],
    size_hw: Sequence[int],
    *,
    mode: ResizeMode = "bilinear",
    backend: str | None = None,
) -> Float[Tensor, "b c h w"]:
    """Return features at `size_hw`: what mask logits would be resized with, once per level.

    Resizing is linear, so masks of resized features are the resized masks up to rounding.
    bilinear: Mask2Former; bicubic_antialias: X-Decoder. Both with align_corners=False.
    backend: "cpu" or "reference" (torch's interpolate). The result carries no gradient.

    Raises:
        ValueError: another mode, a size below 1, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run this call.
    Source: Mask2Former mask2former_transformer_decoder.py; X-Decoder xdecoder.py
    forward_prediction_heads.
    """
    if len(size_hw) != 2 or min(size_hw) < 1:
        raise ValueError(
            "resize_mask_features: size_hw must be (height, width), both at least 1; "
            f"got {tuple(size_hw)}. Pass the size of the decoder level."
        )
    if mode not in ("bilinear", "bicubic_antialias"):
        raise ValueError(
            "resize_mask_features: mode must be 'bilinear' or 'bicubic_antialias'; "
            f"got {mode!r}. Take the one the weights were trained with."
        )
    check_num_dims("resize_mask_features", "features", features, axes="B, C, H, W")
    candidates = candidates_for(features.device, features.dtype, head_dim=1)
    able = [candidate for candidate in candidates if candidate.name in ("cpu", "reference")]
    height, width = size_hw
    if choose_backend("resize_mask_features", able, backend) == "cpu":
        resized = torch.ops.xdecoder.resize_features(
            features.float().contiguous(), height, width, mode == "bicubic_antialias"
        )
        return resized.to(features.dtype)
    return _interpolate(features, height, width, mode)


def _interpolate(maps: Tensor, height: int, width: int, mode: ResizeMode) -> Tensor:
    if mode == "bilinear":
        return torch.nn.functional.interpolate(maps, (height, width), mode="bilinear")
    return torch.nn.functional.interpolate(maps, (height, width), mode="bicubic", antialias=True)


@torch.no_grad()
def mask_bits(
    mask_embed: Float[Tensor, "b r c"],
    features: Float[Tensor, "b c *spatial"],
    *,
    num_unmasked_rows: int = 0,
    backend: str | None = None,
) -> MaskBits:
    """Return the packed mask of mask_embed x features; 1 where the logit is not negative.

    features: [B, C, h, w] or [B, C, K] at attention resolution (`resize_mask_features`).
    num_unmasked_rows: rows added after the masked ones that may attend to every key.
    backend: "cpu", "triton" or "reference"; None takes the fastest that can run.
    The result carries no gradient. A NaN logit counts as visible, as sigmoid(x) < 0.5 has it.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        TypeError: a dtype that is not floating.
        BackendUnavailable: the backend asked for cannot run this call.
    """
    keys = _flat_keys(mask_embed, features, num_unmasked_rows)  # [B, C, K]
    dtype = torch.promote_types(mask_embed.dtype, keys.dtype)
    candidates = candidates_for(mask_embed.device, dtype, head_dim=1)
    has_bits = [candidate for candidate in candidates if candidate.name != "sdpa"]
    chosen = choose_backend("mask_bits", has_bits, backend)
    if chosen == "cpu":
        dtype = torch.float32
    mask_embed, keys = mask_embed.to(dtype), keys.to(dtype)
    packed: tuple[Tensor, Tensor, Tensor]
    if chosen in ("cpu", "triton"):
        packed = torch.ops.xdecoder.mask_bits(
            _unit_stride(mask_embed), _unit_stride(keys), num_unmasked_rows
        )
    else:
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
    resized = resize_mask_features(mask_logits, size_hw, mode=mode, backend="reference")
    may_attend = ~(resized.sigmoid() < 0.5).flatten(2)  # [B, R, K]
    return MaskBits(
        *reference.finish_mask_bits(may_attend, num_unmasked_rows), may_attend.shape[-1]
    )


@torch.no_grad()
def pack_mask_bits(may_attend: Bool[Tensor, "b r k"], *, num_unmasked_rows: int = 0) -> MaskBits:
    """Return the packed form of a dense Boolean mask (True = may attend).

    Raises: TypeError when the mask is not Boolean.
    """
    check_dtype("pack_mask_bits", "may_attend", may_attend, (torch.bool,))
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

    A row with row_any == False attends everywhere. Differentiable in q, k and v. Under autocast
    q, k and v are cast to its dtype. Hidden keys must be finite.
    backend: "cpu", "triton", "sdpa" (dense mask) or "reference" (dense mask, plain arithmetic);
    None takes the fastest that can run. "cpu" computes 16-bit inputs in float32.

    Raises:
        ValueError: shapes or devices that do not fit, or an unknown backend.
        TypeError: dtypes that do not fit.
        BackendUnavailable: the backend asked for cannot run this call.
    """
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check_attention(q, k, v, bits, row_any)
    candidates = candidates_for(q.device, q.dtype, head_dim=q.shape[3])
    chosen = choose_backend("masked_cross_attention", candidates, backend)
    if chosen == "reference":
        return reference.masked_cross_attention_reference(q, k, v, bits, row_any)
    if chosen == "sdpa":
        may_attend = reference.visible_keys(bits, row_any, k.shape[2]).unsqueeze(1)  # [B, 1, Q, K]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
    compute_dtype = torch.float32 if chosen == "cpu" else q.dtype
    operands = (_unit_stride(operand.to(compute_dtype)) for operand in (q, k, v))
    out, _ = torch.ops.xdecoder.masked_xattn_forward(
        *operands, bits.contiguous(), row_any.contiguous()
    )
    return out.to(q.dtype)


def candidates_for(
    device: torch.device, dtype: torch.dtype, *, head_dim: int
) -> tuple[Candidate, ...]:
    """Every backend of attention, fastest first, each with the reason why it cannot run."""
    why_not_fused = None
    if dtype == torch.float64:
        why_not_fused = "the dtype is float64."
    elif not 1 <= head_dim <= _MAX_HEAD_DIM:
        why_not_fused = f"the head dim must be in 1..{_MAX_HEAD_DIM}; got {head_dim}."
    why_not_cpu = CPU_LIBRARY.why_missing or why_not_fused
    why_not_triton = register.WHY_NO_TRITON or why_not_fused
    if device.type != "cpu":
        why_not_cpu = f"the tensors are on {device}."
    if device.type != "cuda":
        why_not_triton = f"the tensors are on {device}."
    # float64 is for checking, and the reference is what one checks against
    why_not_sdpa = "the dtype is float64." if dtype == torch.float64 else None
    return (
        Candidate(name="cpu", why_not=why_not_cpu),
        Candidate(name="triton", why_not=why_not_triton),
        Candidate(name="sdpa", why_not=why_not_sdpa),
        Candidate(name="reference", why_not=None),
    )


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _flat_keys(mask_embed: Tensor, features: Tensor, num_unmasked_rows: int) -> Tensor:
    for name, tensor in (("mask_embed", mask_embed), ("features", features)):
        check_dtype("mask_bits", name, tensor, _FLOATS)
    check_same_device("mask_bits", "features", features, "mask_embed", mask_embed)
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
    op = "masked_cross_attention"
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or _outer(q) != _outer(k):
        raise ValueError(
            f"{op}: q must be [B, N, Q, D], k and v [B, N, K, D]; got "
            f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}. Split heads before the call."
        )
    if k.shape[2] < 1:
        raise ValueError(
            f"{op}: k and v must hold at least one key; got K = 0. "
            "Skip the layer for an empty level."
        )
    check_dtype(op, "q", q, _FLOATS)
    for name, tensor in (("k", k), ("v", v)):
        check_dtype(op, name, tensor, (q.dtype,))
    check_dtype(op, "bits", bits, (torch.int32,))
    check_dtype(op, "row_any", row_any, (torch.bool,))
    words = [q.shape[0], q.shape[2], reference.num_words(k.shape[2])]
    check_shape(op, "bits", bits, axes="B, Q, ceil(K/32)", sizes=words)
    check_shape(op, "row_any", row_any, axes="B, Q", sizes=words[:2])
    for name, tensor in (("k", k), ("v", v), ("bits", bits), ("row_any", row_any)):
        check_same_device(op, name, tensor, "q", q)


def _outer(operand: Tensor) -> tuple[int, int, int]:
    return operand.shape[0], operand.shape[1], operand.shape[3]
