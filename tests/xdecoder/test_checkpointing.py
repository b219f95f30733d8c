"""The same losses and gradients, from fewer tensors that were kept."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from xdecoder.build import build_model
from xdecoder.checkpointing import checkpoint_activations
from xdecoder.config import BackboneConfig, ModelConfig, PixelDecoderConfig
from xdecoder.model import XDecoder
from xdecoder.queries import QuerySet

SIZE_HW = (64, 96)


def run(model: XDecoder) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and bytes that the forward kept for the backward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)
    images = torch.rand(2, 3, *SIZE_HW) * 255
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images, QuerySet())
        loss = torch.stack([layer.embeddings.square().mean() for layer in output.layers]).sum()
        loss = loss + output.mask_features.square().mean()
    loss.backward()
    gradients = {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    return loss.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize(
    ("backbone", "kind"),
    [("test_efficientnet", "msdeform"), ("focal_t", "fpn_transformer"), ("swin_t", "msdeform")],
)
def test_losses_and_gradients_are_equal_and_less_is_kept(
    small_config: ModelConfig, backbone: str, kind: str
) -> None:
    config = replace(
        small_config,
        # dropping paths draws numbers, which must be the same when a block runs again
        backbone=BackboneConfig(name=backbone, freeze_norm=True, drop_path=0.2),
        pixel_decoder=PixelDecoderConfig(kind=kind, num_layers=2, num_heads=4, ffn_dim=48),
    )
    torch.manual_seed(0)
    model = build_model(config).train()
    loss, gradients, num_kept = run(model)
    model.zero_grad()
    # two of the pixel decoder, three of the decoder, and the trunk
    assert checkpoint_activations(model) >= 6
    again, gradients_again, num_kept_again = run(model)
    assert torch.equal(loss, again)
    assert gradients.keys() == gradients_again.keys()
    for name, value in gradients.items():
        assert torch.equal(value, gradients_again[name]), name
    assert num_kept_again < 0.8 * num_kept


def test_evaluation_is_untouched(small_model: XDecoder) -> None:
    images = torch.rand(1, 3, *SIZE_HW) * 255
    before = small_model(images, QuerySet()).mask_features
    checkpoint_activations(small_model)
    with torch.no_grad():
        assert torch.equal(small_model(images, QuerySet()).mask_features, before)
    assert set(small_model.state_dict()) == set(build_model_keys(small_model))


def build_model_keys(model: XDecoder) -> list[str]:
    return [name for name, _ in model.named_parameters()] + [
        name for name, _ in model.named_buffers() if name in model.state_dict()
    ]
