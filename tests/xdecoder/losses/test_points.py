import pytest
import torch

from xdecoder.losses.draws import Draws
from xdecoder.losses.points import PointSampling, sample_points, uncertain_points


def test_x_comes_first_and_pixel_centres_read_exact_values():
    maps = torch.arange(15.0).reshape(1, 1, 3, 5)
    column, row = 4, 1
    point = torch.tensor([[[(column + 0.5) / 5, (row + 0.5) / 3]]])
    assert sample_points(maps, point).item() == pytest.approx(row * 5 + column)


def test_reading_features_then_multiplying_equals_reading_the_mask():
    features, embedding = torch.randn(2, 6, 7, 11), torch.randn(2, 6)
    points = torch.rand(2, 30, 2)
    masks = torch.einsum("bc,bchw->bhw", embedding, features).unsqueeze(1)
    at_points = torch.einsum("bc,bcp->bp", embedding, sample_points(features, points))
    torch.testing.assert_close(at_points, sample_points(masks, points)[:, 0])


def test_most_points_lie_where_the_mask_is_undecided():
    # undecided in the middle column only
    distance = (torch.arange(40) - 20.0).abs().expand(8, 40)[None, None]
    sampling = PointSampling(num_points=64)
    points = uncertain_points(distance, Draws(0), sampling)[0, 0]
    offset = (points[:, 0] - 20.5 / 40).abs()
    assert (offset[:48] < 0.15).all()
    assert offset[48:].max() > 0.3


def test_each_layer_has_points_of_its_own():
    left = (torch.arange(40) - 10.0).expand(8, 40)
    right = (torch.arange(40) - 30.0).expand(8, 40)
    points = uncertain_points(
        torch.stack([left, right])[None], Draws(0), PointSampling(num_points=32)
    )
    assert points.shape == (1, 2, 32, 2)
    assert points[0, 0, :24, 0].mean() < 0.4
    assert points[0, 1, :24, 0].mean() > 0.6


def test_settings_that_choose_no_point_are_refused():
    with pytest.raises(ValueError, match="num_points must be at least 1"):
        PointSampling(num_points=0)
    with pytest.raises(ValueError, match=r"importance within 0..1; got 10, 3.0, 1.5"):
        PointSampling(num_points=10, importance=1.5)
