# mypy: allow-untyped-defs
"""Triton kernels of the mask bits and of masked cross-attention, and their launchers.

Queries are few and keys are many, so forward splits the keys over programs and a second kernel
combines their partial sums. Backward is one pass: a program owns the dK and dV of its keys and
writes its share of dQ apart; a second kernel adds the shares in order. No atomics anywhere.

    forward   program (row block, image * head, split)  -> partial max, sum, numerator
    combine   program (row block, image * head)         -> out, log-sum-exp
    backward  program (split, image * head)             -> dK, dV of its keys, a share of dQ
    sum       program (row block, image * head)         -> dQ

Scores and log-sum-exp are in units of log2. Sums are float32 whatever the inputs are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE_ROWS = 4
_TILE_KEYS = 64
_WORD_BITS = 32
_LOG2_E = 1.4426950408889634
# two waves of programs hide the latency of the slower ones
_WAVES = 2


@triton.jit
def _mask_bits_kernel(
    embed_ptr, features_ptr, bits_ptr, tile_any_ptr,
    num_rows, num_unmasked, num_keys, num_words,
    embed_stride_b, embed_stride_r, features_stride_b, features_stride_c,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    keys = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    channels = tl.arange(0, BLOCK_C)
    all_rows = num_rows + num_unmasked
    embed_rows = embed_ptr + image * embed_stride_b + rows[:, None].to(tl.int64) * embed_stride_r
    feature_keys = features_ptr + image * features_stride_b + keys[None, :]
    logits = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + channels
        is_channel = c < C
        embed = tl.load(
            embed_rows + c[None, :],
            mask=(rows < num_rows)[:, None] & is_channel[None, :],
            other=0.0,
        )
        offsets = c[:, None].to(tl.int64) * features_stride_c
        features = tl.load(
            feature_keys + offsets, mask=is_channel[:, None] & (keys < num_keys)[None, :], other=0.0
        )
        logits = tl.dot(embed, features, logits, input_precision=PRECISION)
    # not "logits >= 0": a NaN is not negative, so it stays visible as in the reference
    is_visible = (logits < 0) == 0
    is_visible = is_visible | (rows >= num_rows)[:, None]
    is_visible = is_visible & (keys < num_keys)[None, :] & (rows < all_rows)[:, None]
    lanes = tl.arange(0, 32)
    grouped = tl.reshape(is_visible.to(tl.int32), [BLOCK_R, BLOCK_K // 32, 32])
    # distinct bits, so the sum is their union; bit 31 is the sign
    words = tl.sum(grouped << lanes[None, None, :], axis=2)
    columns = tl.program_id(0) * (BLOCK_K // 32) + tl.arange(0, BLOCK_K // 32)
    pointers = bits_ptr + (image * all_rows + rows[:, None]) * num_words + columns[None, :]
    mask = (rows < all_rows)[:, None] & (columns < num_words)[None, :]
    tl.store(pointers, words, mask=mask)
    # BLOCK_K is one tile of keys
    any_of_row = tl.max((words != 0).to(tl.int32), axis=1)
    any_of_tile = tl.max(tl.reshape(any_of_row, [BLOCK_R // 4, 4]), axis=1)
    row_tiles = (all_rows + 3) // 4
    tiles = tl.program_id(1) * (BLOCK_R // 4) + tl.arange(0, BLOCK_R // 4)
    target = tile_any_ptr + (image * row_tiles + tiles) * tl.num_programs(0) + tl.program_id(0)
    tl.store(target, any_of_tile != 0, mask=tiles < row_tiles)


@triton.jit
def _row_any_kernel(bits_ptr, row_any_ptr, num_rows, num_words, BLOCK_W: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    words = tl.arange(0, BLOCK_W)
    union = tl.zeros([BLOCK_W], tl.int32)
    for first in range(0, num_words, BLOCK_W):
        is_word = first + words < num_words
        union = union | tl.load(bits_ptr + row * num_words + first + words, mask=is_word, other=0)
    tl.store(row_any_ptr + row, tl.max((union != 0).to(tl.int32), axis=0) != 0)


@triton.jit
def _visible_tile(
    bits_ptr, has_any, rows, first_key, num_rows, num_keys, num_words, BLOCK_K: tl.constexpr
):
    # [rows, BLOCK_K] of one image; each row loads BLOCK_K / 32 words, not one per key
    columns = tl.arange(0, BLOCK_K)
    word_of_column = columns // 32
    row_words = bits_ptr + rows.to(tl.int64) * num_words
    is_row = rows < num_rows
    words = tl.zeros([rows.shape[0], BLOCK_K], tl.int32)
    for i in tl.static_range(BLOCK_K // 32):
        index = first_key // 32 + i
        word = tl.load(row_words + index, mask=is_row & (index < num_words), other=0)
        words = tl.where(word_of_column[None, :] == i, word[:, None], words)
    is_visible = ((words >> (columns % 32)[None, :]) & 1) != 0
    is_visible = is_visible | (has_any == 0)[:, None]
    return is_visible & (first_key + columns < num_keys)[None, :]


@triton.jit
def _load_rows(base_ptr, rows, columns, stride, num_rows, D: tl.constexpr):
    mask = (rows < num_rows)[:, None] & (columns < D)[None, :]
    offsets = rows[:, None].to(tl.int64) * stride + columns[None, :]
    return tl.load(base_ptr + offsets, mask=mask, other=0.0)


@triton.jit
def _store_rows(base_ptr, values, rows, columns, num_rows, D: tl.constexpr):
    mask = (rows < num_rows)[:, None] & (columns < D)[None, :]
    offsets = rows[:, None].to(tl.int64) * D + columns[None, :]
    tl.store(base_ptr + offsets, values.to(base_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _masked_xattn_forward_kernel(
    q_ptr, k_ptr, v_ptr, bits_ptr, row_any_ptr, partial_out_ptr, partial_max_ptr, partial_sum_ptr,
    q_stride_b, q_stride_n, q_stride_r, k_stride_b, k_stride_n, k_stride_r,
    v_stride_b, v_stride_n, v_stride_r,
    num_heads, num_rows, num_keys, num_words, keys_per_split, scale_log2,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    image = head // num_heads
    n = head % num_heads
    split = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_D)
    q_base = q_ptr + image * q_stride_b + n * q_stride_n
    k_base = k_ptr + image * k_stride_b + n * k_stride_n
    v_base = v_ptr + image * v_stride_b + n * v_stride_n
    image_bits = bits_ptr + image * num_rows * num_words
    has_any = tl.load(row_any_ptr + image * num_rows + rows, mask=rows < num_rows, other=0)
    q = _load_rows(q_base, rows, columns, q_stride_r, num_rows, D)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    start = split * keys_per_split
    for first_key in range(start, min(start + keys_per_split, num_keys), BLOCK_K):
        keys = first_key + tl.arange(0, BLOCK_K)
        k = _load_rows(k_base, keys, columns, k_stride_r, num_keys, D)
        v = _load_rows(v_base, keys, columns, v_stride_r, num_keys, D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        is_visible = _visible_tile(
            image_bits, has_any, rows, first_key, num_rows, num_keys, num_words, BLOCK_K
        )
        scores = tl.where(is_visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        # a row that has seen nothing yet must not compute inf - inf
        safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - safe_top[:, None])
        shrink = tl.exp2(top - safe_top)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top
    part = (split * tl.num_programs(1) + head) * num_rows
    _store_rows(partial_out_ptr + part * D, acc, rows, columns, num_rows, D)
    tl.store(partial_max_ptr + part + rows, top, mask=rows < num_rows)
    tl.store(partial_sum_ptr + part + rows, total, mask=rows < num_rows)


@triton.jit
def _masked_xattn_combine_kernel(
    partial_out_ptr, partial_max_ptr, partial_sum_ptr, out_ptr, lse_ptr, num_rows, num_splits,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_D)
    is_row = rows < num_rows
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    for split in range(num_splits):
        part = (split * tl.num_programs(1) + head) * num_rows
        top = tl.maximum(top, tl.load(partial_max_ptr + part + rows, mask=is_row, other=0.0))
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for split in range(num_splits):
        part = (split * tl.num_programs(1) + head) * num_rows
        part_top = tl.load(partial_max_ptr + part + rows, mask=is_row, other=0.0)
        part_total = tl.load(partial_sum_ptr + part + rows, mask=is_row, other=1.0)
        share = tl.exp2(part_top - top)
        total += share * part_total
        acc += share[:, None] * _load_rows(
            partial_out_ptr + part * D, rows, columns, D, num_rows, D
        )
    out = acc / total[:, None]
    _store_rows(out_ptr + head * num_rows * D, out, rows, columns, num_rows, D)
    tl.store(lse_ptr + head * num_rows + rows, top + tl.log2(total), mask=is_row)


@triton.jit
def _masked_xattn_backward_kernel(
    grad_out_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, bits_ptr, row_any_ptr,
    partial_grad_q_ptr, grad_k_ptr, grad_v_ptr,
    q_stride_b, q_stride_n, q_stride_r, k_stride_b, k_stride_n, k_stride_r,
    v_stride_b, v_stride_n, v_stride_r,
    num_heads, num_rows, num_keys, num_words, keys_per_split, scale, scale_log2,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    image = head // num_heads
    n = head % num_heads
    split = tl.program_id(0)
    columns = tl.arange(0, BLOCK_D)
    q_base = q_ptr + image * q_stride_b + n * q_stride_n
    k_base = k_ptr + image * k_stride_b + n * k_stride_n
    v_base = v_ptr + image * v_stride_b + n * v_stride_n
    image_bits = bits_ptr + image * num_rows * num_words
    grad_out_base = grad_out_ptr + head * num_rows * D
    out_base = out_ptr + head * num_rows * D
    share_base = partial_grad_q_ptr + (split * tl.num_programs(1) + head) * num_rows * D
    start = split * keys_per_split
    for first_key in range(start, min(start + keys_per_split, num_keys), BLOCK_K):
        keys = first_key + tl.arange(0, BLOCK_K)
        k = _load_rows(k_base, keys, columns, k_stride_r, num_keys, D)
        v = _load_rows(v_base, keys, columns, v_stride_r, num_keys, D)
        grad_k = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        grad_v = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        for first_row in range(0, num_rows, BLOCK_R):
            rows = first_row + tl.arange(0, BLOCK_R)
            is_row = rows < num_rows
            q = _load_rows(q_base, rows, columns, q_stride_r, num_rows, D)
            grad_out = _load_rows(grad_out_base, rows, columns, D, num_rows, D)
            out = _load_rows(out_base, rows, columns, D, num_rows, D)
            delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), axis=1)
            lse = tl.load(lse_ptr + head * num_rows + rows, mask=is_row, other=0.0)
            has_any = tl.load(row_any_ptr + image * num_rows + rows, mask=is_row, other=0)
            is_visible = _visible_tile(
                image_bits, has_any, rows, first_key, num_rows, num_keys, num_words, BLOCK_K
            )
            is_visible = is_visible & is_row[:, None]
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
            weights = tl.where(is_visible, tl.exp2(scores - lse[:, None]), 0.0)
            grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
            grad_scores = tl.where(is_visible, weights * (grad_weights - delta[:, None]), 0.0)
            grad_scores = (grad_scores * scale).to(q.dtype)
            grad_v = tl.dot(
                tl.trans(weights.to(grad_out.dtype)), grad_out, grad_v, input_precision=PRECISION
            )
            grad_k = tl.dot(tl.trans(grad_scores), q, grad_k, input_precision=PRECISION)
            # this program alone touches its share; the first block of keys starts it
            share = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
            if first_key > start:
                share = _load_rows(share_base, rows, columns, D, num_rows, D)
            share = tl.dot(grad_scores, k, share, input_precision=PRECISION)
            _store_rows(share_base, share, rows, columns, num_rows, D)
        # the next block of keys reads what other threads of this program may have written
        tl.debug_barrier()
        _store_rows(grad_k_ptr + head * num_keys * D, grad_k, keys, columns, num_keys, D)
        _store_rows(grad_v_ptr + head * num_keys * D, grad_v, keys, columns, num_keys, D)


@triton.jit
def _masked_xattn_sum_kernel(
    partial_ptr, total_ptr, num_rows, num_splits,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for split in range(num_splits):
        part = (split * tl.num_programs(1) + head) * num_rows * D
        total += _load_rows(partial_ptr + part, rows, columns, D, num_rows, D)
    _store_rows(total_ptr + head * num_rows * D, total, rows, columns, num_rows, D)


def launch_options(num_rows: int, head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes of forward: powers of two of at least 16, which matrix units need.

    The largest that ptxas fits into registers for sm_90 (16-bit head dim 128: 100 bytes spilled);
    float32 products run on the ordinary units and want small tiles.
    """
    block_d = max(16, triton.next_power_of_2(head_dim))
    rows, keys, warps = (128, 64, 4) if block_d <= 64 else (64, 32, 4)
    if dtype == torch.float32:
        rows, keys, warps = (32, 32, 4) if block_d <= 64 else (16, 32, 4)
    return {
        "BLOCK_R": min(rows, _at_least_16(num_rows)),
        "BLOCK_K": keys,
        "BLOCK_D": block_d,
        "num_warps": warps,
    }


def backward_launch_options(num_rows: int, head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes of backward: five products per tile, so its row blocks are smaller."""
    options = launch_options(num_rows, head_dim, dtype)
    is_wide = options["BLOCK_D"] > 32 or dtype == torch.float32
    options["BLOCK_R"] = min(32 if dtype == torch.float32 else 64, options["BLOCK_R"])
    options["num_warps"] = 8 if is_wide else 4
    return options


def mask_bits(
    mask_embed: Tensor, features: Tensor, num_unmasked_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed signs of mask_embed [B, R, C] x features [B, C, K], row flags, tile flags."""
    num_images, num_rows, num_channels = mask_embed.shape
    num_keys = features.shape[2]
    all_rows, num_words = num_rows + num_unmasked_rows, triton.cdiv(num_keys, _WORD_BITS)
    row_tiles, key_tiles = triton.cdiv(all_rows, _TILE_ROWS), triton.cdiv(num_keys, _TILE_KEYS)
    device = mask_embed.device
    bits = torch.empty(num_images, all_rows, num_words, dtype=torch.int32, device=device)
    row_any = torch.empty(num_images, all_rows, dtype=torch.bool, device=device)
    tile_any = torch.empty(num_images, row_tiles, key_tiles, dtype=torch.bool, device=device)
    if bits.numel() == 0:
        return bits, row_any, tile_any
    block_rows = min(64 if mask_embed.dtype == torch.float32 else 128, _at_least_16(all_rows))
    grid = (key_tiles, triton.cdiv(all_rows, block_rows), num_images)
    with _device_of(mask_embed):
        _mask_bits_kernel[grid](
            mask_embed, features, bits, tile_any,
            num_rows, num_unmasked_rows, num_keys, num_words,
            mask_embed.stride(0), mask_embed.stride(1), features.stride(0), features.stride(1),
            C=num_channels, BLOCK_R=block_rows, BLOCK_K=_TILE_KEYS, BLOCK_C=32,
            PRECISION=_precision(mask_embed), num_warps=4,
        )  # fmt: skip
        _row_any_kernel[(num_images * all_rows,)](
            bits, row_any, all_rows, num_words, BLOCK_W=128, num_warps=1
        )
    return bits, row_any, tile_any


def forward(
    q: Tensor, k: Tensor, v: Tensor, bits: Tensor, row_any: Tensor, num_splits: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention output [B, N, Q, D] and log-sum-exp [B, N, Q] in units of log2."""
    num_images, num_heads, num_rows, head_dim = q.shape
    heads = num_images * num_heads
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), _float32(q, q.shape[:3])
    if out.numel() == 0:
        return out, lse
    options = launch_options(num_rows, head_dim, q.dtype)
    row_blocks = triton.cdiv(num_rows, options["BLOCK_R"])
    splits, keys_per_split = _splits(q, k, row_blocks * heads, options["BLOCK_K"], num_splits)
    partial_out = _float32(q, (splits, heads, num_rows, head_dim))
    partial_max, partial_sum = (_float32(q, (splits, heads, num_rows)) for _ in range(2))
    with _device_of(q):
        _masked_xattn_forward_kernel[(row_blocks, heads, splits)](
            q, k, v, bits, row_any, partial_out, partial_max, partial_sum,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            num_heads, num_rows, k.shape[2], bits.shape[2], keys_per_split,
            head_dim**-0.5 * _LOG2_E,
            D=head_dim, **options, PRECISION=_precision(q),
        )  # fmt: skip
        block_rows = 16
        _masked_xattn_combine_kernel[(triton.cdiv(num_rows, block_rows), heads)](
            partial_out, partial_max, partial_sum, out, lse, num_rows, splits,
            D=head_dim, BLOCK_R=block_rows, BLOCK_D=options["BLOCK_D"], num_warps=1,
        )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bits: Tensor,
    row_any: Tensor, num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v; grad_out, out and lse are contiguous."""
    num_images, num_heads, num_rows, head_dim = q.shape
    heads = num_images * num_heads
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    if out.numel() == 0:
        return grads[0], grads[1].zero_(), grads[2].zero_()
    options = backward_launch_options(num_rows, head_dim, q.dtype)
    splits, keys_per_split = _splits(q, k, heads, options["BLOCK_K"], num_splits)
    partial_grad_q = _float32(q, (splits, heads, num_rows, head_dim))
    with _device_of(q):
        _masked_xattn_backward_kernel[(splits, heads)](
            grad_out, q, k, v, out, lse, bits, row_any, partial_grad_q, grads[1], grads[2],
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            num_heads, num_rows, k.shape[2], bits.shape[2], keys_per_split,
            head_dim**-0.5, head_dim**-0.5 * _LOG2_E,
            D=head_dim, **options, PRECISION=_precision(q),
        )  # fmt: skip
        block_rows = 16
        _masked_xattn_sum_kernel[(triton.cdiv(num_rows, block_rows), heads)](
            partial_grad_q, grads[0], num_rows, splits,
            D=head_dim, BLOCK_R=block_rows, BLOCK_D=options["BLOCK_D"], num_warps=1,
        )  # fmt: skip
    return grads[0], grads[1], grads[2]


def _splits(
    q: Tensor, k: Tensor, programs: int, block_keys: int, num_splits: int | None
) -> tuple[int, int]:
    key_blocks = triton.cdiv(k.shape[2], block_keys)
    if num_splits is None:
        wanted = _WAVES * _num_processors(q.device)
        num_splits = max(1, min(key_blocks, triton.cdiv(wanted, programs)))
    blocks_per_split = triton.cdiv(key_blocks, num_splits)
    return triton.cdiv(key_blocks, blocks_per_split), blocks_per_split * block_keys


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _at_least_16(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _float32(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _precision(tensor: Tensor) -> str:
    # float32 products must not be rounded to TF32: the signs and the gradients would change
    return "ieee" if tensor.dtype == torch.float32 else "tf32"


def _device_of(tensor: Tensor) -> torch.cuda.device:
    # a negative index makes the guard do nothing, as the interpreter needs
    return torch.cuda.device(tensor.device.index if tensor.is_cuda else -1)
