import copy

import pytest
import torch

from xdecoder.build import build_model
from xdecoder.queries import QuerySet, TextQueries


def _queries(model, texts):
    text = model.encode_text(model.tokenizer(texts))
    tokens = TextQueries(tokens=text.tokens, is_padding=text.is_padding)
    return QuerySet(grounding=tokens, caption=tokens)


def test_every_parameter_learns_from_one_pass(small_model):
    model = small_model.train()
    queries = _queries(model, ["the red circle", "a square"])
    features = model.encode_images(torch.rand(2, 3, 64, 96) * 255)
    output = model.decode(features, queries)
    total = features.pooled.square().sum() * model.logit_scale.exp().sum()
    for i, layer in enumerate(output.layers):
        total = total + layer.embeddings.square().sum() + layer.caption_states.square().sum()
        total = total + output.mask_logits(i, output.layout.pixel_rows).square().mean()
    total.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []


def test_shapes_follow_the_padded_image(small_model):
    with torch.no_grad():
        features = small_model.encode_images(torch.rand(2, 3, 50, 70) * 255)
        output = small_model.decode(features, QuerySet())
    assert features.mask_features.shape == (2, 32, 16, 24)
    assert [tuple(level.shape) for level in features.levels] == [
        (2, 32, 2, 3),
        (2, 32, 4, 6),
        (2, 32, 8, 12),
    ]
    assert output.mask_logits(-1, output.layout.latents).shape == (2, 5, 16, 24)
    assert len(output.layers) == 1 + 3


@torch.no_grad()
def test_what_stands_in_the_padding_does_not_matter_when_sizes_are_given(small_model):
    images = torch.rand(2, 3, 64, 96) * 255
    other = images.clone()
    other[0, :, 40:] = 99.0
    other[1, :, :, 60:] = 99.0
    sizes_hw = [(40, 96), (64, 60)]
    one = small_model.encode_images(images, sizes_hw)
    two = small_model.encode_images(other, sizes_hw)
    assert torch.equal(one.mask_features, two.mask_features)
    assert not torch.equal(one.mask_features, small_model.encode_images(images).mask_features)


@torch.no_grad()
def test_pooled_vector_is_the_projected_mean_of_the_coarsest_map(small_model):
    images = torch.rand(1, 3, 64, 96) * 255
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (small_model.pixel_mean, small_model.pixel_std)
    )
    normalised = (images - mean) / std
    coarsest = small_model.backbone(normalised)[-1]
    expected = small_model.image_projection(coarsest.mean((2, 3)))
    torch.testing.assert_close(small_model.encode_images(images).pooled, expected)


def test_parameters_can_be_sharded(small_model):
    for name, parameter in small_model.named_parameters():
        assert parameter.dim() >= 1, name
        assert parameter.is_contiguous(), name


@pytest.mark.parametrize("mode", ["autocast", "weights"])
def test_a_16_bit_pass_stays_near_the_32_bit_one(small_model, mode):
    images = torch.rand(2, 3, 64, 96) * 255

    def loss(model):
        output = model(images, _queries(model, ["the red circle", "a square"]))
        last = output.layers[0]
        return (
            torch.stack(
                [part.float().square().mean() for part in (last.embeddings, last.caption_states)]
            ).sum()
            + model.encode_images(images).mask_features.float().square().mean()
        )

    expected = loss(small_model).item()
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            actual = loss(small_model)
    else:
        actual = loss(small_model.to(torch.bfloat16))
    actual.backward()
    # bfloat16 rounds by up to 2**-8, and some 16 layers follow each other
    assert actual.item() == pytest.approx(expected, rel=16 * 2**-8)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["msdeform", "fpn_transformer"])
def test_equal_seeds_and_weights_make_equal_models(small_config, kind):
    from dataclasses import replace

    pixel_decoder = replace(small_config.pixel_decoder, kind=kind)
    config = replace(small_config, pixel_decoder=pixel_decoder)
    images = torch.rand(1, 3, 64, 96) * 255
    torch.manual_seed(5)
    one = build_model(config).eval()
    torch.manual_seed(5)
    two = build_model(config).eval()
    three = build_model(config).eval()
    expected = one(images, _queries(one, ["a circle"])).layers[-1].embeddings
    assert torch.equal(expected, two(images, _queries(two, ["a circle"])).layers[-1].embeddings)
    three.load_state_dict(one.state_dict())
    for model in (three, copy.deepcopy(one)):
        actual = model(images, _queries(model, ["a circle"])).layers[-1].embeddings
        assert torch.equal(expected, actual)


def test_token_table_is_the_text_encoders_embedding(small_model):
    assert small_model.token_table is small_model.text_encoder.token_embedding.weight
    assert small_model.token_table.shape == (300 + 514, 32)
