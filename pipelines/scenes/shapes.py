"""Signed distance fields of the shapes: one field gives cover, outline, shading and shadow.

A shape lives in its own frame: radius 1, y down, upright. The field is in units of that radius,
negative inside.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

Field = Float[ndarray, "h w"]
Polygon = Float[ndarray, "n 2"]


def _regular(num_points: int, radius: float, first_angle: float) -> Polygon:
    angles = first_angle + np.arange(num_points) * (2 * np.pi / num_points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Polygon:
    outer = _regular(5, 1.0, -np.pi / 2)
    inner = _regular(5, 0.45, -np.pi / 2 + np.pi / 5)
    return np.stack([outer, inner], axis=1).reshape(10, 2)


def _cross(half_width: float) -> Polygon:
    a, b = half_width, 0.95
    corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    corners += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    return np.array(corners)


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16.5


# the rounding keeps small shapes from having needles that vanish at mask resolution
_POLYGONS: dict[str, tuple[Polygon, float]] = {
    "square": (_regular(4, 1.08, np.pi / 4), 0.08),
    "triangle": (_regular(3, 1.08, -np.pi / 2), 0.08),
    "star": (_star() * 1.02, 0.06),
    "cross": (_cross(0.34), 0.05),
    "heart": (_heart(), 0.04),
}


def distance_field(shape: str, x: Field, y: Field) -> Field:
    """Signed distance to the outline of a shape at points of its own frame."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    polygon, rounding = _POLYGONS[shape]
    return _polygon_distance(polygon, x, y) - rounding


def _polygon_distance(polygon: Polygon, x: Field, y: Field) -> Field:
    points = np.stack([x.ravel(), y.ravel()]).astype(np.float32)  # [2, P]
    starts = polygon.astype(np.float32)[:, :, None]  # [E, 2, 1]
    edges = np.roll(starts, -1, axis=0) - starts  # [E, 2, 1]
    offsets = points[None] - starts  # [E, 2, P]
    along = (offsets * edges).sum(axis=1) / (edges * edges).sum(axis=1)  # [E, P]
    nearest = offsets - edges * np.clip(along, 0.0, 1.0)[:, None]  # [E, 2, P]
    distance = np.sqrt((nearest * nearest).sum(axis=1).min(axis=0))  # [P]
    # a point is inside if an odd number of edges crosses the ray to its right
    crosses = (offsets[:, 1] >= 0) != (offsets[:, 1] - edges[:, 1] >= 0)  # [E, P]
    turn = edges[:, 0] * offsets[:, 1] - edges[:, 1] * offsets[:, 0]  # [E, P]
    crossings = (crosses & ((turn < 0) == (edges[:, 1] < 0))).sum(axis=0)  # [P]
    return np.where(crossings % 2 == 1, -distance, distance).reshape(x.shape)
