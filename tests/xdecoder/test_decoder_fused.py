"""The whole decoder with the fused kernels against the same decoder on the reference."""

from functools import partial

import pytest
import torch

import xdecoder.decoder
import xdecoder.layers
from kernels import mask_bits, masked_cross_attention, resize_mask_features
from xdecoder.decoder import MaskedDecoder
from xdecoder.outputs import ImageFeatures
from xdecoder.queries import QuerySet, TextQueries

DIM, NUM_IMAGES = 32, 2


@pytest.fixture
def decoder():
    decoder = MaskedDecoder(
        DIM, num_layers=9, num_heads=2, ffn_dim=48, num_latents=13, context_length=9,
        mask_resize="bicubic_antialias", unmask_first_grounding_row=True,
    )  # fmt: skip
    # at the start all masks are nearly the same
    for layer in decoder.heads.mask_mlp.layers:
        torch.nn.init.orthogonal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return decoder.eval()


@pytest.fixture
def queries():
    grounding, caption = (
        TextQueries(
            tokens=torch.randn(NUM_IMAGES, length, DIM),
            is_padding=torch.zeros(NUM_IMAGES, length, dtype=torch.bool),
        )
        for length in (5, 7)
    )
    return QuerySet(grounding=grounding, caption=caption)


@pytest.fixture
def features():
    sizes_hw = ((3, 5), (6, 10), (12, 20))
    levels = [torch.randn(NUM_IMAGES, DIM, h, w, requires_grad=True) for h, w in sizes_hw]
    mask_features = torch.randn(NUM_IMAGES, DIM, 24, 40)
    return ImageFeatures(
        levels=tuple(levels),
        mask_features=mask_features.requires_grad_(),
        pooled=torch.randn(NUM_IMAGES, DIM),
    )


def use_backend(monkeypatch, backend):
    monkeypatch.setattr(
        xdecoder.layers,
        "masked_cross_attention",
        partial(masked_cross_attention, backend=backend),
    )
    for function in (mask_bits, resize_mask_features):
        bound = partial(function, backend=backend)
        monkeypatch.setattr(xdecoder.decoder, function.__name__, bound)


def run(decoder, features, queries):
    """All predictions, and gradients of parameters and features."""
    output = decoder(features, queries)
    states = []
    for layer in output.layers:
        states += [layer.embeddings, layer.mask_embeddings, layer.caption_states]
    leaves = [*decoder.parameters(), *features.levels]
    loss = sum(x.sin().sum() for x in states)
    return states, torch.autograd.grad(loss, leaves, allow_unused=True)


def test_fused_decoder_equals_the_reference_forward_and_backward(
    monkeypatch, decoder, features, queries
):
    use_backend(monkeypatch, "cpu")
    states, grads = run(decoder, features, queries)
    use_backend(monkeypatch, "reference")
    expected_states, expected_grads = run(decoder, features, queries)
    for found, expected in zip(states, expected_states, strict=True):
        # nine layers of float32 in another order of sums; a flipped mask bit would be 1e-2
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(grad is not None for grad in grads) > 50
    for found, expected in zip(grads, expected_grads, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            atol = 1e-4 * expected.abs().max().item()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=atol)


def test_the_decoder_step_is_one_graph(decoder, features, queries):
    torch._dynamo.reset()
    # every kind of step once; more layers only compile longer
    decoder.layers = decoder.layers[:3]

    def step(features, queries):
        return decoder(features, queries).layers[-1].embeddings

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, queries), step(features, queries))
