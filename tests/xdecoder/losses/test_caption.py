import pytest
import torch

from xdecoder.losses.caption import caption_terms


def texts():
    ids = torch.tensor([[7, 1, 2, 8, 8], [7, 3, 8, 8, 8]])
    is_padding = torch.tensor([[False] * 4 + [True], [False] * 3 + [True] * 2])
    return ids, is_padding


def test_row_t_must_say_token_t_plus_one_and_the_end():
    ids, is_padding = texts()
    table = torch.eye(9)
    states = torch.zeros(1, 2, 5, 9)
    states[0, :, :-1].scatter_(2, ids[:, 1:, None], 50.0)
    assert caption_terms(states, table, ids, is_padding).item() == pytest.approx(0, abs=1e-5)
    # saying the token that is already there is wrong
    states = torch.zeros(1, 2, 5, 9)
    states.scatter_(3, ids[None, ..., None], 50.0)
    assert caption_terms(states, table, ids, is_padding).item() == pytest.approx(5 * 50, rel=1e-3)


def test_the_sum_runs_over_words_and_ends_but_not_padding():
    ids, is_padding = texts()
    uniform = caption_terms(torch.zeros(2, 2, 5, 9), torch.eye(9), ids, is_padding)
    expected = 5 * torch.log(torch.tensor(9.0))
    torch.testing.assert_close(uniform, expected.expand(2))


def test_rows_after_the_end_have_no_gradient():
    ids, is_padding = texts()
    states = torch.randn(1, 2, 5, 9, requires_grad=True)
    caption_terms(states, torch.eye(9), ids, is_padding).sum().backward()
    moved = states.grad[0].abs().sum(-1) > 0
    assert moved.tolist() == [[True] * 3 + [False] * 2, [True] * 2 + [False] * 3]
