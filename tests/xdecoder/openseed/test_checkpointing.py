from dataclasses import replace

import torch

from xdecoder.checkpointing import checkpoint_activations
from xdecoder.losses.draws import Draws
from xdecoder.losses.points import PointSampling
from xdecoder.losses.world import World
from xdecoder.openseed.config import BoxLossConfig, DenoisingConfig
from xdecoder.openseed.task import BoxedSegmentationTask


def _run(model, batch):
    """Loss, gradients, and bytes that the forward kept for the backward."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    config = BoxLossConfig(
        points=PointSampling(num_points=20), denoising=DenoisingConfig(num_queries=10)
    )
    task = BoxedSegmentationTask(config=config, templates=("{}.",), world=World())
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sum(task.losses(model, batch, Draws(4)).values())
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters()}
    return loss.detach(), gradients, sum(kept.values())


def test_layers_that_run_again_give_the_same_gradients_from_fewer_kept_tensors(
    tiny_model, segmentation_batch
):
    names = tuple(f"thing {number}" for number in range(40))
    vocabulary = replace(segmentation_batch.vocabulary, names=names, is_thing=(True,) * 40)
    batch = replace(segmentation_batch, vocabulary=vocabulary)
    model = tiny_model.train()
    loss, gradients, num_kept = _run(model, batch)
    # four stages of the trunk, and one layer of pixel decoder and text encoder, two of the decoder
    assert checkpoint_activations(model) == 4 + 1 + 1 + 2
    again, gradients_again, num_kept_again = _run(model, batch)
    assert torch.equal(loss, again)
    for name, value in gradients.items():
        assert torch.equal(value, gradients_again[name]), name
    assert num_kept_again < 0.7 * num_kept
