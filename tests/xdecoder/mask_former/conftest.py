"""Reduced models of `transformers`, with no parameter left at a value that hides a mistake."""

import pytest
import torch

SIZE_HW = (96, 128)


def _randomise(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter += 0.1 * noise
            elif "sampling_offsets" in name or "attention_weights" in name:
                parameter.copy_(0.08 * noise)
    return model.eval()


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers", minversion="5")


@pytest.fixture(scope="session")
def their_mask2former(transformers):
    torch.manual_seed(1)
    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(transformers.SwinConfig),
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=96,
        dim_feedforward=128,
        num_attention_heads=4,
        encoder_layers=2,
        decoder_layers=5,
        num_queries=12,
        num_labels=7,
        train_num_points=128,
        dropout=0.0,
    )
    return _randomise(transformers.Mask2FormerForUniversalSegmentation(config))


@pytest.fixture(scope="session")
def their_maskformer(transformers):
    torch.manual_seed(2)
    from transformers.models.maskformer import configuration_maskformer as module

    config = transformers.MaskFormerConfig(
        backbone_config=_swin(transformers.MaskFormerSwinConfig),
        decoder_config=module.MaskFormerDetrConfig(
            d_model=64,
            decoder_layers=3,
            decoder_ffn_dim=128,
            decoder_attention_heads=4,
            encoder_attention_heads=4,
            num_queries=12,
            dropout=0.0,
        ),
        fpn_feature_size=64,
        mask_feature_size=64,
        num_labels=7,
    )
    return _randomise(transformers.MaskFormerForInstanceSegmentation(config))


def _swin(kind):
    return kind(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


@pytest.fixture(scope="session")
def pixels():
    """Normalised images, as both sides read them."""
    return torch.randn(2, 3, *SIZE_HW, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="session")
def targets():
    """Three and two segments that overlap nothing, as (masks, class ids) per image."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for count in (3, 2):
        owner = torch.randint(0, count, (6, 8), generator=generator)
        owner = owner.repeat_interleave(16, 0).repeat_interleave(16, 1)
        masks = torch.stack([owner == index for index in range(count)])
        found.append((masks, torch.randperm(7, generator=generator)[:count]))
    return found
