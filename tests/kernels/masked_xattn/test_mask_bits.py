"""The packed mask: against float64 logits, at awkward sizes, and its exact route."""

import pytest
import torch

from kernels import BackendUnavailable, exact_mask_bits, mask_bits, pack_mask_bits
from kernels.masked_xattn import resize_mask_features
from kernels.masked_xattn.reference import pack_bits, unpack_bits

BACKENDS = ("cpu", "reference")
# rows, channels, height, width, rows that are never masked
SIZES = [(7, 9, 3, 11, 3), (1, 3, 1, 1, 0), (100, 256, 33, 31, 77), (5, 17, 8, 4, 1)]


@pytest.mark.parametrize("num_keys", [1, 31, 32, 33, 64, 77, 130])
def test_packing_and_unpacking_give_the_same_mask(num_keys):
    may_attend = torch.rand(2, 5, num_keys) < 0.5
    assert torch.equal(unpack_bits(pack_bits(may_attend), num_keys), may_attend)


def test_key_k_is_bit_k_modulo_32_of_word_k_over_32():
    may_attend = torch.zeros(1, 1, 70, dtype=torch.bool)
    may_attend[..., [0, 31, 33, 69]] = True
    words = pack_bits(may_attend)[0, 0].tolist()
    assert words == [1 - 2**31, 2, 2**5]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "channels", "height", "width", "unmasked"), SIZES)
def test_bits_are_the_signs_of_float64_logits(
    backend, rows, channels, height, width, unmasked, nan_outputs
):
    embed, features = torch.randn(2, rows, channels), torch.randn(2, channels, height, width)
    packed = mask_bits(embed, features, num_unmasked_rows=unmasked, backend=backend)
    exact = embed.double() @ features.flatten(2).double()
    # a float32 sum of C products is off by at most C roundings of the absolute products
    slack = channels * torch.finfo(torch.float32).eps
    bound = slack * (embed.abs() @ features.flatten(2).abs()).double()
    is_clear = exact.abs() > bound
    found = unpack_bits(packed.bits, height * width)
    assert is_clear.float().mean() > 0.99
    assert torch.equal(found[:, :rows][is_clear], (exact >= 0)[is_clear])
    assert found[:, rows:].all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "channels", "height", "width", "unmasked"), SIZES)
def test_flags_and_spare_bits_follow_from_the_bits(
    backend, rows, channels, height, width, unmasked, nan_outputs
):
    embed, features = torch.randn(2, rows, channels), torch.randn(2, channels, height * width)
    embed[0, 0], features[0] = -1.0, features[0].abs()
    packed = mask_bits(embed, features, num_unmasked_rows=unmasked, backend=backend)
    may_attend = unpack_bits(packed.bits, height * width)
    again = pack_mask_bits(may_attend)
    assert not packed.row_any[0, 0]
    assert torch.equal(packed.bits, again.bits)
    assert torch.equal(packed.row_any, may_attend.any(-1))
    for row_tile, row in enumerate(range(0, rows + unmasked, 4)):
        for key_tile, key in enumerate(range(0, height * width, 64)):
            tile = may_attend[:, row : row + 4, key : key + 64]
            assert torch.equal(packed.tile_any[:, row_tile, key_tile], tile.flatten(1).any(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_and_nan_logits_are_visible_and_negative_ones_are_not(backend):
    embed = torch.tensor([[[1.0], [-1.0]]])
    features = torch.tensor([[[0.0, float("nan"), -1e-30, 1e-30, float("inf")]]])
    found = unpack_bits(mask_bits(embed, features, backend=backend).bits, 5)[0]
    assert found.tolist() == [[True, True, False, True, True], [True, True, True, False, False]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_give_the_bits_of_contiguous_ones(backend):
    embed = torch.randn(3, 10, 2, 6).transpose(1, 2)[:, 0]
    features = torch.randn(3, 5, 7, 6).permute(0, 3, 1, 2)
    strided = mask_bits(embed, features, backend=backend)
    compact = mask_bits(embed.contiguous(), features.contiguous(), backend=backend)
    assert torch.equal(strided.bits, compact.bits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_multiplied_in_float32(dtype):
    embed, features = torch.randn(1, 6, 40, dtype=dtype), torch.randn(1, 40, 5, 9)
    packed = mask_bits(embed, features)
    assert torch.equal(packed.bits, mask_bits(embed.float(), features).bits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in BACKENDS:
            under_autocast = mask_bits(embed, features, backend=backend)
            assert torch.equal(packed.bits, under_autocast.bits)


def test_bits_carry_no_gradient():
    embed, features = torch.randn(1, 6, 8, requires_grad=True), torch.randn(1, 8, 5, 9)
    assert not mask_bits(embed, features).bits.requires_grad


def test_an_unmasked_row_sees_every_key_and_others_keep_theirs():
    packed = pack_mask_bits(torch.rand(2, 5, 37) < 0.3)
    freed = packed.with_unmasked_row(3)
    before, after = unpack_bits(packed.bits, 37), unpack_bits(freed.bits, 37)
    assert after[:, 3].all()
    others = [0, 1, 2, 4]
    assert torch.equal(before[:, others], after[:, others])
    assert torch.equal(freed.bits, pack_bits(after))
    assert freed.row_any[:, 3].all()


def test_the_dense_mask_shows_every_key_to_a_row_without_bits():
    packed = pack_mask_bits(torch.tensor([[[False, True, False], [False, False, False]]]))
    assert packed.may_attend().tolist() == [[[False, True, False], [True, True, True]]]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic_antialias"])
@pytest.mark.parametrize(
    "size_hw", [(16, 20), (8, 10), (3, 41), (32, 1), (1, 7), (33, 38), (64, 100)]
)
def test_resized_features_are_as_accurate_as_those_of_torch(
    mode, size_hw, nan_outputs, assert_as_accurate
):
    features = torch.randn(2, 3, 40, 32).transpose(2, 3)
    found, plain = (
        resize_mask_features(features, size_hw, mode=mode, backend=backend)
        for backend in ("cpu", "reference")
    )
    exact = resize_mask_features(features.double(), size_hw, mode=mode)
    assert_as_accurate(found, plain, exact, name="resized")
    opcheck_args = (features.contiguous(), *size_hw, mode != "bilinear")
    torch.library.opcheck(torch.ops.xdecoder.resize_features, opcheck_args)


def test_a_map_of_one_pixel_resizes_to_itself():
    pixel = torch.tensor([[[[2.5]]]])
    for mode in ("bilinear", "bicubic_antialias"):
        assert torch.equal(resize_mask_features(pixel, (3, 2), mode=mode), pixel.expand(1, 1, 3, 2))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic_antialias"])
@pytest.mark.parametrize("size_hw", [(16, 24), (8, 12), (4, 6), (5, 7), (1, 1)])
def test_resizing_features_or_masks_differs_in_less_than_one_bit_in_a_thousand(mode, size_hw):
    embed, features = torch.randn(2, 50, 64), torch.randn(2, 64, 32, 48)
    fast = mask_bits(embed, resize_mask_features(features, size_hw, mode=mode))
    mask_logits = torch.einsum("brc,bchw->brhw", embed, features)
    exact = exact_mask_bits(mask_logits, size_hw, mode=mode)
    num_keys = size_hw[0] * size_hw[1]
    differs = unpack_bits(fast.bits, num_keys) != unpack_bits(exact.bits, num_keys)
    assert differs.float().mean() < 1e-3


def test_the_exact_route_hides_where_the_sigmoid_is_below_one_half():
    mask_logits = torch.randn(2, 3, 12, 20)
    exact = exact_mask_bits(mask_logits, (5, 7), num_unmasked_rows=2)
    resized = torch.nn.functional.interpolate(mask_logits, (5, 7), mode="bilinear")
    is_hidden = resized.sigmoid() < 0.5
    found = unpack_bits(exact.bits, 35)
    assert torch.equal(found[:, :3], ~is_hidden.flatten(2))
    assert found[:, 3:].all()


def test_wrong_arguments_are_named():
    embed, features = torch.randn(2, 5, 8), torch.randn(2, 8, 3, 7)
    with pytest.raises(ValueError, match=r"features \[B, C, h, w\] or \[B, C, K\].*\[2, 7, 3, 8\]"):
        mask_bits(embed, features.transpose(1, 3))
    with pytest.raises(ValueError, match=r"row must be in 0\.\.4; got 5"):
        mask_bits(embed, features).with_unmasked_row(5)
    with pytest.raises(TypeError, match="may_attend must be bool; got float32"):
        pack_mask_bits(features[0])
    with pytest.raises(ValueError, match="at least one key"):
        mask_bits(embed, features[..., :0])
    with pytest.raises(ValueError, match="num_unmasked_rows must be at least 0; got -1"):
        mask_bits(embed, features, num_unmasked_rows=-1)
    with pytest.raises(TypeError, match="features must be float32"):
        mask_bits(embed, features.long())
    with pytest.raises(ValueError, match="backend must be None or one of"):
        mask_bits(embed, features, backend="sdpa")
    with pytest.raises(BackendUnavailable, match="the tensors are on cpu"):
        mask_bits(embed, features, backend="triton")
    with pytest.raises(ValueError, match=r"features must be \[B, C, H, W\]"):
        resize_mask_features(features[0], (2, 4))
    with pytest.raises(ValueError, match=r"size_hw must be \(height, width\).*got \(0, 4\)"):
        resize_mask_features(features, (0, 4))
    with pytest.raises(ValueError, match="mode must be 'bilinear' or 'bicubic_antialias'"):
        resize_mask_features(features, (2, 4), mode="nearest")
