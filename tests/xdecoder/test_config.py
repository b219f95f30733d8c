import pytest

from xdecoder.config import ConfigError, DecoderConfig, ModelConfig


def test_width_must_fit_group_normalisation():
    with pytest.raises(ConfigError, match=r"model\.dim must be a multiple of 32.*got 100"):
        ModelConfig(dim=100)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"model\.decoder\.num_heads must divide .*512; got 7"):
        ModelConfig(decoder=DecoderConfig(num_heads=7))


def test_padding_must_fit_the_largest_stride():
    with pytest.raises(ConfigError, match=r"size_divisibility must be a multiple of 32.*got 48"):
        ModelConfig(size_divisibility=48)
