"""Sizes of the published models."""

import pytest
import torch

from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.published import mask2former, maskformer


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    [
        (mask2former("r50"), 43_983_878),
        (mask2former("swin_t"), 47_435_264),
        (mask2former("swin_l"), 215_535_610),
        (maskformer("r50"), 45_012_038),
        (maskformer("swin_t"), 41_752_640),
        (maskformer("r50", num_classes=150, has_encoder=False), 41_254_743),
    ],
)
def test_models_have_the_published_number_of_parameters(config, num_parameters):
    with torch.device("meta"):
        model = build_mask_former(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
