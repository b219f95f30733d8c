import pytest
import torch

from xdecoder.losses.draws import Draws, RecordedDraws


def test_equal_seeds_give_equal_draws_and_any_seed_matters():
    assert torch.equal(Draws(1, 2, 3).uniform(4, 5), Draws(1, 2, 3).uniform(4, 5))
    others = [Draws(0, 2, 3), Draws(1, 3, 2), Draws(1, 2), Draws(1, 2, 3, 0), Draws(-1, 2, 3)]
    for other in others:
        assert not torch.equal(other.uniform(4, 5), Draws(1, 2, 3).uniform(4, 5))


def test_draws_ignore_the_global_generator():
    torch.manual_seed(5)
    first = Draws(7).uniform(3)
    torch.manual_seed(6)
    assert torch.equal(Draws(7).uniform(3), first)


def test_a_permutation_holds_every_number_once():
    assert sorted(Draws(3).permutation(9)) == list(range(9))
    assert Draws(3).permutation(9) != Draws(4).permutation(9)


def test_choices_cover_their_range_and_never_leave_it():
    assert set(Draws(0).choices(3, 200)) == {0, 1, 2}
    almost_one = torch.tensor([1.0 - 2**-24])
    assert RecordedDraws([almost_one]).choice(3) == 2
    assert RecordedDraws([almost_one]).choices(3, 1) == [2]


def test_recorded_draws_come_back_in_order():
    first, second = torch.rand(2, 3), torch.rand(4)
    draws = RecordedDraws([first, second])
    assert torch.equal(draws.uniform(2, 3), first)
    assert torch.equal(draws.uniform(4), second)


def test_a_draw_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"draw 0 was recorded as \[2, 3\]; asked for \[3, 2\]"):
        RecordedDraws([torch.rand(2, 3)]).uniform(3, 2)


def test_more_draws_than_recorded_are_refused():
    draws = RecordedDraws([torch.rand(2)])
    draws.uniform(2)
    with pytest.raises(ValueError, match="all 1 draws are used"):
        draws.uniform(2)
