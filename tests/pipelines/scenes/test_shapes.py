import numpy as np
import pytest

from pipelines.scenes.shapes import distance_field
from pipelines.scenes.vocabulary import SHAPES


def _grid() -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-1.4, 1.4, 141, dtype=np.float32)[None, :]
    y = np.linspace(-1.3, 1.3, 131, dtype=np.float32)[:, None]
    return np.broadcast_to(x, (131, 141)), np.broadcast_to(y, (131, 141))


@pytest.mark.parametrize("shape", SHAPES)
def test_field_is_negative_inside_and_positive_outside(shape: str) -> None:
    x, y = _grid()
    field = distance_field(shape, x, y)
    assert field[65, 70] < -0.2
    assert min(field[0, 0], field[0, -1], field[-1, 0], field[-1, -1]) > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_field_grows_by_the_distance_walked(shape: str) -> None:
    x, y = _grid()
    field = distance_field(shape, x, y)
    slope_y, slope_x = np.gradient(field, 0.02, 0.02)
    near_outline = (np.abs(field) < 0.1) & (np.abs(field) > 0.03)
    # corners and the middle lines of arms bend the field; its median slope does not
    assert np.median(np.hypot(slope_x, slope_y)[near_outline]) == pytest.approx(1.0, abs=0.02)


def test_shapes_differ_from_each_other() -> None:
    x, y = _grid()
    masks = {shape: distance_field(shape, x, y) < 0 for shape in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            iou = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert (iou == 1.0) if one == other else (iou < 0.85)
