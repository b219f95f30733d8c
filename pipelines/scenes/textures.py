"""Pictures of the stuff: one function per kind, each filling a whole canvas with RGB 0..255."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

Canvas = Float[ndarray, "h w 3"]
Gray = Float[ndarray, "h w"]
SizeHW = tuple[int, int]


def smooth_noise(rng: np.random.Generator, size_hw: SizeHW, cells_hw: SizeHW) -> Gray:
    """Noise in -1..1 that changes over about `cells_hw` cells of the canvas."""
    grid = rng.uniform(-1.0, 1.0, (cells_hw[0] + 1, cells_hw[1] + 1)).astype(np.float32)
    rows = _interpolation(size_hw[0], cells_hw[0])  # [h, cells+1]
    columns = _interpolation(size_hw[1], cells_hw[1])  # [w, cells+1]
    return rows @ grid @ columns.T  # [h, w]


def paint(name: str, rng: np.random.Generator, size_hw: SizeHW, unit_px: float) -> Canvas:
    """A canvas of the named stuff; `unit_px` scales its grain with the picture."""
    painters = {"sky": _sky, "grass": _grass, "water": _water, "sand": _sand, "brick": _brick}
    return painters[name](rng, size_hw, unit_px)


def _interpolation(length: int, cells: int) -> Gray:
    position = (np.arange(length, dtype=np.float32) + 0.5) * (cells / length)
    cell = np.minimum(position.astype(np.int64), cells - 1)
    t = position - cell
    t = t * t * (3 - 2 * t)
    weights = np.zeros((length, cells + 1), np.float32)
    weights[np.arange(length), cell] = 1 - t
    weights[np.arange(length), cell + 1] = t
    return weights


def _cells(length: int, cell_px: float) -> int:
    return max(2, int(length / cell_px))


def _mix(low: tuple[int, ...], high: tuple[int, ...], amount: Gray) -> Canvas:
    start = np.array(low, np.float32)
    return start + amount[..., None] * (np.array(high, np.float32) - start)  # [h, w, 3]


def _rows(size_hw: SizeHW) -> Gray:
    return np.linspace(0.0, 1.0, size_hw[0], dtype=np.float32)[:, None]  # [h, 1]


def _sky(rng: np.random.Generator, size_hw: SizeHW, unit_px: float) -> Canvas:
    evening = rng.random() < 0.3
    top, horizon = (
        ((112, 104, 176), (250, 190, 150)) if evening else ((84, 148, 226), (206, 229, 247))
    )
    glow = np.clip(_rows(size_hw) * 1.7, 0.0, 1.0) ** 0.9
    canvas = _mix(top, horizon, np.broadcast_to(glow, size_hw))
    clouds = smooth_noise(rng, size_hw, (5, 4)) + 0.5 * smooth_noise(rng, size_hw, (11, 9))
    cover = np.clip(clouds * 1.6 - 0.25, 0.0, 0.85)[..., None]
    cloud_colour = np.array((255, 226, 214) if evening else (252, 253, 255), np.float32)
    return canvas + cover * (cloud_colour - canvas)


def _grass(rng: np.random.Generator, size_hw: SizeHW, unit_px: float) -> Canvas:
    height, width = size_hw
    patches = smooth_noise(rng, size_hw, (4, 5))
    blades = smooth_noise(rng, size_hw, (_cells(height, 7 * unit_px), _cells(width, 1.6 * unit_px)))
    fine = rng.uniform(-1.0, 1.0, size_hw).astype(np.float32)
    light = 0.45 + 0.22 * patches + 0.26 * blades + 0.07 * fine + 0.1 * (_rows(size_hw) - 0.5)
    return _mix((44, 98, 38), (142, 190, 76), np.clip(light, 0.0, 1.0))


def _water(rng: np.random.Generator, size_hw: SizeHW, unit_px: float) -> Canvas:
    rows = _rows(size_hw) * (size_hw[0] / (6.0 * unit_px))
    drift = 1.3 * smooth_noise(rng, size_hw, (5, 3)) + 0.5 * smooth_noise(rng, size_hw, (9, 8))
    waves = np.sin(2 * np.pi * (rows + drift) + rng.uniform(0, 6))
    light = 0.42 + 0.22 * waves + 0.1 * smooth_noise(rng, size_hw, (3, 3)) - 0.12 * _rows(size_hw)
    canvas = _mix((14, 76, 112), (86, 182, 198), np.clip(light, 0.0, 1.0))
    glints = np.clip(waves + drift * 0.5 - 1.05, 0.0, 1.0)[..., None]
    return canvas + glints * (np.array((232, 248, 250), np.float32) - canvas)


def _sand(rng: np.random.Generator, size_hw: SizeHW, unit_px: float) -> Canvas:
    slope = rng.uniform(-0.35, 0.35)
    columns = np.linspace(0.0, 1.0, size_hw[1], dtype=np.float32)[None]
    ripples = (_rows(size_hw) + slope * columns) * (size_hw[0] / (11.0 * unit_px))
    ripples = np.sin(2 * np.pi * (ripples + 0.7 * smooth_noise(rng, size_hw, (4, 4))))
    grain = rng.uniform(-1.0, 1.0, size_hw).astype(np.float32)
    light = 0.55 + 0.13 * ripples + 0.15 * smooth_noise(rng, size_hw, (3, 4)) + 0.12 * grain
    return _mix((186, 152, 100), (248, 226, 176), np.clip(light, 0.0, 1.0))


def _brick(rng: np.random.Generator, size_hw: SizeHW, unit_px: float) -> Canvas:
    brick_h, brick_w = 7.0 * unit_px, 16.0 * unit_px
    y = (np.arange(size_hw[0], dtype=np.float32) + rng.uniform(0, brick_h))[:, None] / brick_h
    row = np.floor(y).astype(np.int64)  # [h, 1]
    x = np.arange(size_hw[1], dtype=np.float32)[None] / brick_w + 0.5 * (row % 2)  # [h, w]
    column = np.floor(x).astype(np.int64)
    tints = rng.uniform(0.0, 1.0, (int(row.max()) + 1, int(column.max()) + 1)).astype(np.float32)
    light = tints[row, column] * 0.7 + 0.15 * rng.uniform(-1, 1, size_hw).astype(np.float32)
    canvas = _mix((134, 66, 54), (190, 108, 84), np.clip(light, 0.0, 1.0))
    joint_y = np.abs(y - row - 0.5) > 0.5 - 0.6 / brick_h * unit_px
    joint_x = np.abs(x - column - 0.5) > 0.5 - 0.6 / brick_w * unit_px
    canvas[np.broadcast_to(joint_y, size_hw) | joint_x] = (204, 190, 176)
    return canvas
