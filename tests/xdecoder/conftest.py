"""Small models, and the recorded runs of the official X-Decoder code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from xdecoder.build import build_model
from xdecoder.config import (
    BackboneConfig,
    DecoderConfig,
    ModelConfig,
    PixelDecoderConfig,
    TextConfig,
)
from xdecoder.convert.rules import convert
from xdecoder.convert.xdecoder import HEAD
from xdecoder.model import XDecoder


class Golden(NamedTuple):
    """One recorded file: tensors in float32, texts and settings."""

    tensors: dict[str, Tensor]
    facts: dict[str, str]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden" / "xdecoder" / "case_a"


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Callable[[str], Golden]:
    """A recorded file by its name."""

    def load(name: str) -> Golden:
        with safe_open(golden_dir / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = file.metadata() or {}
        is_half = torch.float16
        return Golden(
            {k: v.float() if v.dtype == is_half else v for k, v in tensors.items()}, facts
        )

    return load


@pytest.fixture(scope="session")
def official(golden_dir: Path) -> dict:
    """The official configuration of the recorded model."""
    return json.loads((golden_dir / "config.json").read_text())["MODEL"]


@pytest.fixture(scope="session")
def official_head(golden: Callable[[str], Golden]) -> dict[str, Tensor]:
    """The recorded model's weights under our names, without the backbone."""
    weights = golden("weights").tensors
    return convert({k: v for k, v in weights.items() if not k.startswith("backbone.")}, HEAD).state


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
