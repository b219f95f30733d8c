import re
from xml.etree import ElementTree

from pipelines.charts import Series, line_chart, smoothed


def polyline(svg: str) -> list[tuple[float, float]]:
    points = re.findall(r'points="([^"]*)"', svg)[-1].split()
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points)]


def test_larger_values_are_higher_and_later_steps_further_right() -> None:
    points = polyline(line_chart([Series(name="loss", points=[(1, 5), (2, 3), (9, 4)])], title="t"))
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x1 < x2 < x3
    assert y1 < y3 < y2


def test_values_that_are_not_finite_leave_no_point() -> None:
    series = Series(name="loss", points=[(1, 5), (2, float("nan")), (3, float("inf")), (4, 2)])
    assert len(polyline(line_chart([series], title="t"))) == 2


def test_the_logarithm_leaves_out_zero() -> None:
    series = Series(name="loss", points=[(1, 100), (2, 0), (3, 10), (4, 1)])
    heights = [y for _, y in polyline(line_chart([series], title="t", is_log=True))]
    assert len(heights) == 3
    assert abs((heights[1] - heights[0]) - (heights[2] - heights[1])) < 0.3


def test_a_chart_is_well_formed_with_marks_and_names_escaped() -> None:
    svg = line_chart(
        [Series(name="a<b", points=[(step, step % 7) for step in range(200)])],
        title="loss & more",
        marks=[(50, "restart 1"), (190, "restart 2")],
    )
    ElementTree.fromstring(svg)
    assert svg.count('class="mark"') == 4


def test_many_points_are_thinned_and_the_last_stays() -> None:
    series = Series(name="loss", points=[(step, 1 + step % 3) for step in range(20001)])
    points = polyline(line_chart([series], title="t"))
    assert len(points) <= 502
    assert points[-1][0] == 546


def test_no_values_say_so() -> None:
    assert "no values" in line_chart([Series(name="loss", points=[])], title="t")


def test_constant_values_can_be_drawn() -> None:
    ElementTree.fromstring(line_chart([Series(name="loss", points=[(3, 2.5)])], title="t"))


def test_smoothing_keeps_a_straight_line() -> None:
    line = [(float(x), 2.0 * x) for x in range(20)]
    assert smoothed(line, window=6) == line


def test_numbers_beside_an_axis_stay_short() -> None:
    flat = Series(name="rate", points=[(1.0, 1e-3), (2.0, 1e-3)])
    labels = re.findall(r'text-anchor="end">([^<]*)<', line_chart([flat], title="rate"))
    assert "1e-3" in labels
    assert max(map(len, labels)) <= 7
