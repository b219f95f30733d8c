"""Small models, and how far tensors are apart."""

from collections.abc import Callable

import pytest
from torch import Tensor

from xdecoder.build import build_model
from xdecoder.config import (
    BackboneConfig,
    DecoderConfig,
    ModelConfig,
    PixelDecoderConfig,
    TextConfig,
)
from xdecoder.model import XDecoder


@pytest.fixture(scope="session")
def deviation() -> Callable[[Tensor, Tensor], float]:
    """The largest error in units of the expected tensor's root mean square."""

    def measure(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape
        rms = expected.double().square().mean().sqrt()
        return ((actual.double() - expected.double()).abs().max() / rms).item()

    return measure


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    return ModelConfig(
        dim=32,
        backbone=BackboneConfig(name="test_efficientnet", freeze_norm=True),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=48),
        decoder=DecoderConfig(num_layers=3, num_heads=2, ffn_dim=40, num_latents=5),
        text=TextConfig(num_layers=2, num_heads=2, context_length=12, num_merges=300),
    )


@pytest.fixture
def small_model(small_config: ModelConfig) -> XDecoder:
    """A model whose rows, masks and levels all differ, in evaluation mode."""
    return build_model(small_config).eval()
