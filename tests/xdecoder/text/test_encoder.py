import pytest
import torch

from xdecoder.text.encoder import TextEncoder


@pytest.fixture
def encoder():
    return TextEncoder(24, num_layers=2, num_heads=3, context_length=10, vocabulary_size=50).eval()


@torch.no_grad()
def test_tokens_do_not_see_later_tokens(encoder):
    ids = torch.randint(0, 48, (2, 9))
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 48
    before, after = encoder(ids).tokens, encoder(other).tokens
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


@torch.no_grad()
def test_sentence_is_the_first_end_token_whatever_the_padding(encoder):
    ids = torch.tensor([[48, 3, 7, 49, 49, 49], [48, 5, 9, 11, 13, 49]])
    features = encoder(ids)
    assert torch.equal(features.sentence[0], features.tokens[0, 3])
    assert torch.equal(features.sentence[1], features.tokens[1, 5])
    assert features.is_padding.tolist() == [[False] * 4 + [True] * 2, [False] * 6]
    torch.testing.assert_close(encoder(ids[:1, :4]).sentence, features.sentence[:1])


def test_texts_longer_than_the_context_are_refused(encoder):
    with pytest.raises(ValueError, match=r"at most 10 tokens.*got 11"):
        encoder(torch.zeros(2, 11, dtype=torch.int64))
