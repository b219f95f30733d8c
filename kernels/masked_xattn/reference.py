"""Masked cross-attention and its packed mask in plain PyTorch: the specification.

Everything here is dense, differentiable by autograd, deterministic and exact in float64.
"""

import torch
from torch import Tensor

WORD_BITS = 32
TILE_ROWS = 4
TILE_KEYS = 64


def num_words(num_keys: int) -> int:
    """Number of int32 words that hold one row of `num_keys` bits."""
    return (num_keys + WORD_BITS - 1) // WORD_BITS


def pack_bits(may_attend: Tensor) -> Tensor:
    """Return int32 words [..., ceil(K/32)] of Bool [..., K]; key k is bit k % 32 of word k // 32.

    Bits past the last key are 0.
    """
    num_keys = may_attend.shape[-1]
    words = num_words(num_keys)
    padded = torch.nn.functional.pad(may_attend, (0, words * WORD_BITS - num_keys))
    grouped = padded.unflatten(-1, (words, WORD_BITS)).to(torch.int32)  # [..., W, 32]
    return (grouped * _place_values(may_attend.device)).sum(-1, dtype=torch.int32)


def unpack_bits(bits: Tensor, num_keys: int) -> Tensor:
    """Return Bool [..., K] of int32 words [..., ceil(K/32)]."""
    # no shifts: ONNX has none for signed words
    grouped = bits.unsqueeze(-1) & _place_values(bits.device)  # [..., W, 32]
    return (grouped != 0).flatten(-2)[..., :num_keys]


def _place_values(device: torch.device) -> Tensor:
    # bit 31 is the sign, so its weight is -2^31 and no partial sum leaves int32
    values = [1 << place for place in range(WORD_BITS - 1)]
    return torch.tensor([*values, -(1 << (WORD_BITS - 1))], device=device, dtype=torch.int32)


def tiles_with_any(bits: Tensor) -> Tensor:
    """Return Bool [B, ceil(R/4), ceil(K/64)]: may any of 4 rows see any of 64 keys by its bits."""
    words_per_tile = TILE_KEYS // WORD_BITS
    num_rows, words = bits.shape[-2:]
    pad = (0, -words % words_per_tile, 0, -num_rows % TILE_ROWS)
    padded = torch.nn.functional.pad(bits, pad)
    tiles = padded.unflatten(-1, (-1, words_per_tile)).unflatten(-3, (-1, TILE_ROWS))
    return (tiles != 0).any(-1).any(-2)


def visible_logits(mask_logits: Tensor) -> Tensor:
    """Return Bool: True except where a logit is negative; -0.0 and NaN are not negative."""
    return ~(mask_logits < 0)


def mask_bits_reference(
    mask_embed: Tensor, features: Tensor, num_unmasked_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (bits, row_any, tile_any) of mask_embed [B, R, C] against features [B, C, K]."""
    compute_dtype = torch.promote_types(mask_embed.dtype, torch.float32)
    with torch.autocast(mask_embed.device.type, enabled=False):
        mask_logits = mask_embed.to(compute_dtype) @ features.to(compute_dtype)  # [B, R, K]
    may_attend = visible_logits(mask_logits)
    return finish_mask_bits(may_attend, num_unmasked_rows)


def finish_mask_bits(may_attend: Tensor, num_unmasked_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (bits, row_any, tile_any) of Bool [B, R, K] with rows that see all keys added last."""
    may_attend = torch.nn.functional.pad(may_attend, (0, 0, 0, num_unmasked_rows), value=True)
    bits = pack_bits(may_attend)
    return bits, may_attend.any(-1), tiles_with_any(bits)


def visible_keys(bits: Tensor, row_any: Tensor, num_keys: int) -> Tensor:
    """Return Bool [B, R, K] after the rule that a row without any visible key sees every key."""
    return unpack_bits(bits, num_keys) | ~row_any.unsqueeze(-1)


def masked_cross_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, bits: Tensor, row_any: Tensor
) -> Tensor:
    """Return softmax(q k^T / sqrt(D) over visible keys) v: [B, N, Q, D] in the dtype of q.

    Scores, softmax and sums are float32 for 16-bit inputs and float64 for float64.
    """
    compute_dtype = torch.promote_types(q.dtype, torch.float32)
    may_attend = visible_keys(bits, row_any, k.shape[-2]).unsqueeze(1)  # [B, 1, Q, K]
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(compute_dtype) @ k.to(compute_dtype).transpose(-1, -2)  # [B, N, Q, K]
        scores = scores * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~may_attend, float("-inf")).softmax(-1)
        return (weights @ v.to(compute_dtype)).to(q.dtype)
