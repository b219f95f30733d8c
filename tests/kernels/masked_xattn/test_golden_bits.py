"""The exact route against attention masks that the official X-Decoder code recorded."""

import pytest
import torch
from safetensors import safe_open

from kernels import exact_mask_bits, mask_bits, resize_mask_features
from kernels.masked_xattn.reference import unpack_bits


@pytest.fixture(params=["sub_decoder_seg", "full_eval_seg"])
def recorded(request, shared_dir):
    path = shared_dir / "golden" / "xdecoder" / "case_a" / f"{request.param}.safetensors"
    with safe_open(str(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def predictions(recorded):
    """Mask logits, recorded hidden keys and level size of every call with recorded masks."""
    num_calls = sum(name.endswith("attn_mask") for name in recorded)
    finest_hw = recorded["out.pred_masks"].shape[-2:]
    for call in range(num_calls):
        name = "out.pred_masks" if call == num_calls - 1 else f"out.aux{call}.pred_masks"
        if name not in recorded:
            continue
        stride = 8 >> call % 3
        size_hw = (finest_hw[0] // stride, finest_hw[1] // stride)
        yield recorded[name], recorded[f"mid.dec.call{call:02d}.attn_mask"].bool(), size_hw


def test_exact_bits_equal_the_recorded_masks(recorded):
    for mask_logits, is_hidden, size_hw in predictions(recorded):
        packed = exact_mask_bits(mask_logits, size_hw, mode="bicubic_antialias")
        assert torch.equal(unpack_bits(packed.bits, is_hidden.shape[-1]), ~is_hidden)


def test_bits_of_resized_features_equal_the_recorded_masks(recorded):
    for mask_logits, is_hidden, size_hw in predictions(recorded):
        # the maps themselves as features, each row picking its own: resizing is what is tested
        num_rows = mask_logits.shape[1]
        rows = torch.eye(num_rows).expand(mask_logits.shape[0], -1, -1)
        resized = resize_mask_features(mask_logits, size_hw, mode="bicubic_antialias")
        packed = mask_bits(rows, resized)
        assert torch.equal(unpack_bits(packed.bits, is_hidden.shape[-1]), ~is_hidden)
