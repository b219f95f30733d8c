import pytest
import torch

from xdecoder.decoder import MaskedDecoder
from xdecoder.outputs import ImageFeatures
from xdecoder.queries import QuerySet, TextQueries

DIM, NUM_LATENTS, NUM_IMAGES = 32, 6, 2


@pytest.fixture
def decoder():
    decoder = MaskedDecoder(
        DIM, num_layers=4, num_heads=2, ffn_dim=24, num_latents=NUM_LATENTS, context_length=9
    )
    # at the start all masks are nearly the same
    for layer in decoder.heads.mask_mlp.layers:
        torch.nn.init.orthogonal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return decoder.eval()


@pytest.fixture
def features():
    return ImageFeatures(
        levels=tuple(torch.randn(NUM_IMAGES, DIM, h, w) for h, w in ((2, 3), (4, 6), (8, 12))),
        mask_features=torch.randn(NUM_IMAGES, DIM, 16, 24),
        pooled=torch.randn(NUM_IMAGES, DIM),
    )


def texts(length):
    is_padding = torch.zeros(NUM_IMAGES, length, dtype=torch.bool)
    return TextQueries(tokens=torch.randn(NUM_IMAGES, length, DIM), is_padding=is_padding)


def changed(before, after):
    """Per row of the last dimension but one: whether anything changed."""
    return (before != after).any(-1)


@torch.no_grad()
def test_future_caption_tokens_never_leak(decoder, features):
    caption = texts(7)
    other = caption.tokens.clone()
    other[:, 4:] += 1.0
    before = decoder(features, QuerySet(caption=caption))
    after = decoder(
        features, QuerySet(caption=TextQueries(tokens=other, is_padding=other[..., 0] > 9))
    )
    for one, two in zip(before.layers, after.layers, strict=True):
        assert torch.equal(one.caption_states[:, :4], two.caption_states[:, :4])
        assert changed(one.caption_states, two.caption_states)[:, 4:].all()


@torch.no_grad()
def test_objects_are_the_same_with_and_without_text_groups(decoder, features):
    alone = decoder(features, QuerySet())
    for queries in (
        QuerySet(grounding=texts(5)),
        QuerySet(caption=texts(7)),
        QuerySet(grounding=texts(5), caption=texts(7)),
    ):
        output = decoder(features, queries)
        rows = output.layout.objects
        for one, two in zip(alone.layers, output.layers, strict=True):
            # not bit for bit: matrix products of other sizes may round otherwise
            torch.testing.assert_close(one.embeddings, two.embeddings[:, rows])
            torch.testing.assert_close(one.mask_embeddings, two.mask_embeddings[:, rows])


@torch.no_grad()
def test_objects_do_not_change_when_phrases_change(decoder, features):
    one = decoder(features, QuerySet(grounding=texts(5), caption=texts(7)))
    two = decoder(features, QuerySet(grounding=texts(5), caption=texts(7)))
    rows, grounding = one.layout.objects, one.layout.grounding
    before, after = one.layers[-1].embeddings, two.layers[-1].embeddings
    assert torch.equal(before[:, rows], after[:, rows])
    assert changed(before, after)[:, grounding].all()


@torch.no_grad()
def test_captions_and_grounding_do_not_see_each_other(decoder, features):
    grounding, caption = texts(5), texts(7)
    one = decoder(features, QuerySet(grounding=grounding, caption=caption))
    two = decoder(features, QuerySet(grounding=grounding, caption=texts(7)))
    three = decoder(features, QuerySet(grounding=texts(5), caption=caption))
    assert torch.equal(one.layers[-1].embeddings, two.layers[-1].embeddings)
    assert torch.equal(one.layers[-1].caption_states, three.layers[-1].caption_states)


@torch.no_grad()
def test_padded_phrase_tokens_have_no_influence(decoder, features):
    short = texts(5)
    rubbish = torch.full((NUM_IMAGES, 3, DIM), 1e3)
    padded = TextQueries(
        tokens=torch.cat([short.tokens, rubbish], dim=1),
        is_padding=(torch.arange(8) >= 5).expand(NUM_IMAGES, -1),
    )
    one = decoder(features, QuerySet(grounding=short)).layers[-1]
    two = decoder(features, QuerySet(grounding=padded)).layers[-1]
    torch.testing.assert_close(one.embeddings, two.embeddings)


@torch.no_grad()
def test_an_image_without_phrases_stays_finite(decoder, features):
    phrases = texts(5)
    is_padding = phrases.is_padding.clone()
    is_padding[1] = True
    output = decoder(
        features, QuerySet(grounding=TextQueries(tokens=phrases.tokens, is_padding=is_padding))
    )
    assert output.layers[-1].embeddings.isfinite().all()


def _cross_attention_changes(decoder, features, queries):
    """Which rows of the first layer's cross-attention see each pixel of its level: [B, R, K]."""
    seen = []
    hook = decoder.layers[0].cross_attention.register_forward_hook(
        lambda _module, _args, result: seen.append(result)
    )
    decoder(features, queries)
    height, width = features.levels[0].shape[2:]
    for pixel in range(height * width):
        moved = features.levels[0].clone()
        moved.flatten(2)[:, :, pixel] += 1.0
        levels = (moved, *features.levels[1:])
        decoder(
            ImageFeatures(
                levels=levels, mask_features=features.mask_features, pooled=features.pooled
            ),
            queries,
        )
    hook.remove()
    return torch.stack([changed(seen[0], result) for result in seen[1:]], dim=-1)


@torch.no_grad()
def test_rows_look_exactly_where_their_mask_logit_is_not_negative(decoder, features):
    # the masks of the second image are the same everywhere: all of it, or nothing
    features.mask_features[1] = torch.randn(DIM, 1, 1)
    queries = QuerySet(grounding=texts(5), caption=texts(7))
    first = decoder(features, queries)
    rows = first.layout.pixel_rows
    logits = torch.nn.functional.interpolate(
        first.mask_logits(0, rows), size=features.levels[0].shape[2:], mode="bilinear"
    ).flatten(2)
    is_inside = logits >= 0
    is_hidden = ~is_inside.any(-1)
    assert is_inside[0].any()
    assert not is_inside[0].all()
    assert is_hidden[1].any()
    assert not is_hidden[1].all()
    looks = _cross_attention_changes(decoder, features, queries)
    # a row that nothing is left for looks everywhere
    assert torch.equal(looks[:, rows], is_inside | is_hidden[..., None])
    assert looks[:, first.layout.caption].all()


@torch.no_grad()
def test_the_compatibility_switch_frees_the_first_grounding_row_only(decoder, features):
    queries = QuerySet(grounding=texts(5))
    before = _cross_attention_changes(decoder, features, queries)
    decoder.unmask_first_grounding_row = True
    after = _cross_attention_changes(decoder, features, queries)
    row = decoder(features, queries).layout.grounding.start
    assert not before[:, row].all()
    assert after[:, row].all()
    is_other = torch.arange(before.shape[1]) != row
    assert torch.equal(before[:, is_other], after[:, is_other])
    alone = decoder(features, QuerySet()).layers[-1].embeddings
    decoder.unmask_first_grounding_row = False
    assert torch.equal(alone, decoder(features, QuerySet()).layers[-1].embeddings)


def test_masks_send_no_gradient_back_through_attention(decoder, features):
    features.mask_features.requires_grad_()
    output = decoder(features, QuerySet())
    output.layers[-1].embeddings.sum().backward()
    assert features.mask_features.grad is None


def test_text_learns_through_positions(decoder, features):
    caption, phrases = texts(7), texts(5)
    caption.tokens.requires_grad_()
    phrases.tokens.requires_grad_()
    output = decoder(features, QuerySet(grounding=phrases, caption=caption))
    (output.layers[-1].caption_states.sum() + output.layers[-1].embeddings.sum()).backward()
    assert caption.tokens.grad.abs().sum() > 0
    assert phrases.tokens.grad.abs().sum() > 0
    # the first prediction is made of contents alone
    first = decoder(features, QuerySet(caption=caption)).layers[0].caption_states
    assert torch.autograd.grad(first.sum(), caption.tokens, allow_unused=True)[0] is None


@torch.no_grad()
def test_the_global_row_is_a_mixture_of_latents(decoder, features):
    output = decoder(features, QuerySet())
    embeddings = output.layers[-1].embeddings
    latents, whole = embeddings[:, output.layout.latents], embeddings[:, output.layout.global_query]
    weights = torch.linalg.lstsq(latents.transpose(1, 2), whole.transpose(1, 2)).solution
    torch.testing.assert_close(weights.sum(1), torch.ones(NUM_IMAGES, 1), rtol=1e-4, atol=1e-4)
    assert (weights > 0).all()
