from itertools import pairwise

import pytest

from pipelines.config import ScheduleConfig
from pipelines.engine.schedule import learning_rate_factor


def factors(config: ScheduleConfig, num_steps: int) -> list[float]:
    return [learning_rate_factor(config, step, num_steps) for step in range(num_steps)]


def test_warm_up_rises_linearly_and_never_starts_at_zero() -> None:
    values = factors(ScheduleConfig(kind="constant", warmup_steps=3), 6)
    assert values == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_one_towards_its_end() -> None:
    values = factors(ScheduleConfig(kind="cosine", warmup_steps=2, final_factor=0.1), 102)
    assert values[2] == 1.0
    assert values[52] == pytest.approx(0.55)
    assert all(later < earlier for earlier, later in pairwise(values[2:]))
    assert 0.1 < values[-1] < 0.101


def test_multistep_falls_at_shares_of_the_run() -> None:
    config = ScheduleConfig(kind="multistep", milestones=(0.5, 0.8), decay_factor=0.1)
    assert factors(config, 10) == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)


def test_poly_falls_over_the_whole_run_and_during_its_warm_up() -> None:
    values = factors(ScheduleConfig(kind="poly", power=0.9), 10)
    assert values == pytest.approx([(1 - step / 10) ** 0.9 for step in range(10)])
    warm = factors(ScheduleConfig(kind="poly", warmup_steps=3), 10)
    assert warm[:3] == pytest.approx([(k + 1) / 4 * values[k] for k in range(3)])
    assert warm[3:] == values[3:]
