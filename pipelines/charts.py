"""Line charts as inline SVG that follow the colours of the page around them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 560, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 26
_COLOURS = 8
# more points than pixels only make the page heavier
_MAX_POINTS = 500


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: its name and its points (x rising); it may be followed by a smoothed copy."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class _Scale:
    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._mapped(self.low), self._mapped(self.high)
        share = (self._mapped(value) - low) / (high - low) if high > low else 0.5
        return self.start_px + share * (self.end_px - self.start_px)

    def _mapped(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def ticks(self) -> list[float]:
        """Round values inside the scale, three to seven of them."""
        if self.is_log and self.high / self.low > 4:
            return self._log_ticks()
        span = self.high - self.low or 1.0
        step = 10.0 ** math.floor(math.log10(span / 3))
        step *= next((factor for factor in (5, 2) if span / (step * factor) >= 3), 1)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [(first + index) * step for index in range(count)]

    def _log_ticks(self) -> list[float]:
        factors = (1, 2, 5) if self.high / self.low < 200 else (1,)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        return [value for value in ticks if self.low <= value <= self.high]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    marks: Sequence[tuple[float, str]] = (),
    is_log: bool = False,
) -> str:
    """An SVG of lines over steps; lines are faint with a smoothed line on top.

    marks: vertical lines with a name, such as restarts. Colours come from the page's
    `--series-0` .. `--series-7`, text from its `color`. Values that are not finite leave no point;
    with `is_log` neither do values of 0 and below.
    """
    kept = [(each.name, _drawable(each.points, is_log)) for each in series]
    kept = [(name, points) for name, points in kept if points]
    if not kept:
        return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>no values</figure>'
    scales = _scales([points for _, points in kept], is_log)
    body = [*_grid(*scales), *_marks(marks, scales[0])]
    for index, (name, points) in enumerate(kept):
        body += _line(name, points, index, *scales)
    legend = "".join(
        f'<span><i style="background:var(--series-{index % _COLOURS})"></i>{escape(name)}</span>'
        for index, (name, _) in enumerate(kept)
    )
    note = " <small>(log scale)</small>" if is_log else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{note}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(body)}</svg><div class="legend">{legend}</div></figure>'
    )


def smoothed(points: Sequence[tuple[float, float]], *, window: int) -> list[tuple[float, float]]:
    """Every point as the mean of the `window` points around it (fewer at the ends)."""
    values = [value for _, value in points]
    result = []
    for index, (x, _) in enumerate(points):
        reach = min(window // 2, index, len(points) - 1 - index)
        part = values[index - reach : index + reach + 1]
        result.append((x, sum(part) / len(part)))
    return result


def _drawable(points: Sequence[tuple[float, float]], is_log: bool) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not is_log)]
    stride = math.ceil(len(finite) / _MAX_POINTS) or 1
    return finite if stride == 1 else [*finite[::stride], finite[-1]]


def _scales(lines: Sequence[Sequence[tuple[float, float]]], is_log: bool) -> tuple[_Scale, _Scale]:
    xs = [x for points in lines for x, _ in points]
    ys = [y for points in lines for _, y in points]
    low, high = min(ys), max(ys)
    if is_log:
        low, high = low / 1.05, high * 1.05
    else:
        margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = (0.0 if 0 <= low < 0.4 * high else low - margin), high + margin
    across = _Scale(low=min(xs), high=max(xs), start_px=_LEFT, end_px=_WIDTH - _RIGHT)
    upward = _Scale(low=low, high=high, start_px=_HEIGHT - _BOTTOM, end_px=_TOP, is_log=is_log)
    return across, upward


def _grid(across: _Scale, upward: _Scale) -> list[str]:
    parts = []
    for value in upward.ticks():
        y = upward(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(value)}</text>'
        )
    for value in across.ticks():
        x = across(value)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{value:g}</text>')
    return parts


def _label(value: float) -> str:
    """A number in few characters: 0.00105 does not fit beside an axis, 1.05e-3 does."""
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _marks(marks: Sequence[tuple[float, str]], across: _Scale) -> list[str]:
    parts = []
    for x, name in marks:
        place = across(min(max(x, across.low), across.high))
        parts.append(
            f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" '
            f'y2="{_HEIGHT - _BOTTOM}"><title>{escape(name)}</title></line>'
        )
        anchor = "end" if place > _WIDTH * 0.7 else "start"
        shift = -4 if anchor == "end" else 4
        parts.append(
            f'<text class="mark" x="{place + shift:.1f}" y="{_TOP + 9}" '
            f'text-anchor="{anchor}">{escape(name)}</text>'
        )
    return parts


def _line(
    name: str, points: list[tuple[float, float]], index: int, across: _Scale, upward: _Scale
) -> list[str]:
    def path(values: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{across(x):.1f},{upward(y):.1f}" for x, y in values)

    style = f'fill="none" style="stroke:var(--series-{index % _COLOURS})"'
    window = len(points) // 20
    if window < 2:
        return [
            f'<polyline {style} stroke-width="2" points="{path(points)}"><title>{escape(name)}'
            f"</title></polyline>"
        ]
    smooth = smoothed(points, window=window)
    return [
        f'<polyline {style} stroke-width="1" opacity="0.28" points="{path(points)}"/>',
        f'<polyline {style} stroke-width="2" points="{path(smooth)}">'
        f"<title>{escape(name)}</title></polyline>",
    ]
