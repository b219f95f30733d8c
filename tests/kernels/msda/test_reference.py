import math

import pytest
import torch

from kernels.msda.reference import (
    reference_attention,
    reference_fused_attention,
    sampling_points,
)
from tests.testing.msda_cases import Case, as_double, fused_inputs, points_inputs

CASE = Case(num_images=2, num_queries=3, num_heads=2, head_dim=4, num_levels=3, num_points=1)


def _attention_by_definition(value, level_sizes_hw, points, weights):
    num_images, _, num_heads, head_dim = value.shape
    _, num_queries, _, _, num_points = weights.shape
    output = torch.zeros(num_images, num_queries, num_heads, head_dim, dtype=torch.float64)
    for image, query, head in torch.cartesian_prod(
        torch.arange(num_images), torch.arange(num_queries), torch.arange(num_heads)
    ).tolist():
        start = 0
        for level, (height, width) in enumerate(level_sizes_hw):
            for point in range(num_points):
                x, y = points[image, query, head, level, point].tolist()
                pixel_x, pixel_y = x * width - 0.5, y * height - 0.5
                for row in range(height):
                    for column in range(width):
                        across = max(0.0, 1 - math.fabs(pixel_x - column))
                        down = max(0.0, 1 - math.fabs(pixel_y - row))
                        pixel = value[image, start + row * width + column, head]
                        weight = weights[image, query, head, level, point]
                        output[image, query, head] += across * down * weight * pixel
            start += height * width
    return output.flatten(2)


def test_reference_is_the_sum_of_bilinear_samples():
    value, points, weights = (t.detach() for t in points_inputs(CASE, dtype=torch.float64))
    expected = _attention_by_definition(value, CASE.level_sizes_hw, points, weights)
    found = reference_attention(value, CASE.level_sizes_hw, points, weights)
    # float64 sums of a few dozen terms
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_reference_are_right():
    inputs = points_inputs(CASE, dtype=torch.float64)

    def run(value, points, weights):
        return reference_attention(value, CASE.level_sizes_hw, points, weights)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_gradients_of_the_fused_reference_are_right(coordinates):
    inputs = fused_inputs(CASE, coordinates=coordinates, dtype=torch.float64)

    def run(value, reference, offsets, logits):
        return reference_fused_attention(value, CASE.level_sizes_hw, reference, offsets, logits)

    assert torch.autograd.gradcheck(run, inputs)


def test_offsets_around_points_are_pixels_of_the_level():
    reference = torch.full((1, 1, 2, 2), 0.5)
    offsets = torch.ones(1, 1, 1, 2, 1, 2)
    points = sampling_points([(4, 8), (2, 16)], reference, offsets)
    assert points[0, 0, 0, :, 0].tolist() == [[0.5 + 1 / 8, 0.5 + 1 / 4], [0.5 + 1 / 16, 1.0]]


def test_offsets_around_boxes_are_half_extents_over_the_points():
    reference = torch.tensor([0.5, 0.5, 0.4, 0.2]).view(1, 1, 1, 4)
    offsets = torch.tensor([[2.0, 1.0], [0.0, -2.0]]).view(1, 1, 1, 1, 2, 2)
    points = sampling_points([(4, 8)], reference, offsets)[0, 0, 0, 0]
    torch.testing.assert_close(points, torch.tensor([[0.7, 0.55], [0.5, 0.4]]))


def test_a_point_far_outside_hides_its_weight_and_the_values():
    inputs = as_double(points_inputs(CASE, dtype=torch.float64))
    value, points, weights = (t.detach() for t in inputs)
    points[0, 0, 0, 0, 0] = torch.tensor([-3.0, 0.5])
    weights[0, 0, 0, 0, 0] = math.nan
    assert reference_attention(value, CASE.level_sizes_hw, points, weights).isfinite().all()


def test_sixteen_bit_values_are_computed_in_float32():
    value, points, weights = points_inputs(CASE, dtype=torch.bfloat16)
    found = reference_attention(value, CASE.level_sizes_hw, points, weights)
    exact = reference_attention(value.float(), CASE.level_sizes_hw, points, weights)
    assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("empty", [{"num_images": 0}, {"num_queries": 0}])
def test_empty_problems_have_empty_outputs_and_zero_gradients(empty):
    case = Case(num_levels=2, **empty)
    inputs = points_inputs(case, dtype=torch.float32)
    output = reference_attention(inputs[0], case.level_sizes_hw, *inputs[1:])
    output.sum().backward()
    assert output.shape == (case.num_images, case.num_queries, 24)
    assert not any(tensor.grad.any() for tensor in inputs)
