"""Captions from kept rows against decoding the whole caption again at every step."""

import pytest
import torch

from xdecoder.caption_stream import CaptionStream
from xdecoder.queries import QuerySet, TextQueries

NUM_TOKENS = 7


@pytest.fixture
def features(small_model):
    with torch.no_grad():
        return small_model.encode_images(torch.rand(2, 3, 48, 80) * 255)


@pytest.fixture
def may_look():
    """A wide region in the first image; in the second one too small for the coarse levels."""
    pixels = torch.zeros(2, 64, 96, dtype=torch.bool)
    pixels[0, 5:40, 3:30] = True
    pixels[1, 50:52, 66:67] = True
    return pixels


def token_ids(model):
    ids = torch.randint(0, model.tokenizer.end_id, (2, NUM_TOKENS))
    ids[:, 0] = model.tokenizer.start_id
    return ids


@torch.no_grad()
def anew(model, features, ids, may_look=None):
    """States of all caption rows, everything computed together."""
    caption = TextQueries(
        tokens=model.encode_text(ids).tokens, is_padding=torch.zeros_like(ids).bool()
    )
    queries = QuerySet(caption=caption, caption_may_look=may_look)
    return model.decode(features, queries).layers[-1].caption_states


@torch.no_grad()
def streamed(stream, ids):
    return torch.stack([stream.states(column) for column in ids.unbind(1)], dim=1)


@pytest.mark.parametrize("is_restricted", [False, True])
def test_kept_rows_give_what_decoding_everything_again_gives(
    small_model, features, may_look, is_restricted
):
    region = may_look if is_restricted else None
    ids = token_ids(small_model)
    stream = CaptionStream(small_model, features, max_tokens=NUM_TOKENS, may_look=region)
    states = streamed(stream, ids)
    expected = anew(small_model, features, ids, region)
    assert expected.std() > 0.1
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)


def test_logits_are_states_times_the_token_table(small_model, features):
    streams = [CaptionStream(small_model, features, max_tokens=2) for _ in range(2)]
    start = torch.tensor([small_model.tokenizer.start_id] * 2)
    with torch.no_grad():
        logits = streams[0].step(start)
        expected = streams[1].states(start) @ small_model.token_table.T
    assert torch.equal(logits, expected)


@torch.no_grad()
def test_beams_of_an_image_are_independent_and_can_change_places(small_model, features):
    ids = token_ids(small_model)
    other = ids.clone()
    other[:, 2:] = ids[:, 2:].flip(1)
    beams = torch.stack([ids, other], dim=1).flatten(0, 1)  # [images * beams, T]
    stream = CaptionStream(small_model, features, max_tokens=NUM_TOKENS, num_beams=2)
    for column in beams[:, :4].unbind(1):
        stream.states(column)
    # the second beam of each image takes both places
    stream.reorder(torch.tensor([1, 1, 3, 3]))
    states = stream.states(beams[:, 4][torch.tensor([1, 1, 3, 3])])
    expected = anew(small_model, features, other[:, :5])[:, -1].repeat_interleave(2, dim=0)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)


def test_captions_about_different_regions_differ(small_model, features, may_look):
    ids = token_ids(small_model)
    free = anew(small_model, features, ids)
    bound = anew(small_model, features, ids, may_look)
    assert ((free - bound).abs().amax((1, 2)) > 1e-3).all()


def test_a_small_region_stays_a_region_on_every_level(small_model, features, may_look):
    brought, _ = small_model.decoder.look_once(features, may_look)
    levels = {looked.level.memory.shape[1]: looked.level.may_look for looked in brought}
    assert sorted(levels) == [6, 24, 96]
    for num_places, places in levels.items():
        assert places.shape == (2, num_places)
        # the pixel (51, 66) of 64x96, seen from each level
        assert places[1].nonzero().tolist() == [[{6: 5, 24: 22, 96: 80}[num_places]]]


def test_no_region_at_all_is_the_whole_image(small_model, features):
    nothing = torch.zeros(2, 64, 96, dtype=torch.bool)
    brought, _ = small_model.decoder.look_once(features, nothing)
    assert all(looked.level.may_look.all() for looked in brought)
