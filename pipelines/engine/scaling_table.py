"""What `--dry-run --gpus N` prints: a step by ZeRO stage, and the same step on 1 to 256 GPUs."""

from rich.table import Table

from pipelines.engine.scaling_model import Machine, Prediction, Work, predict

_STAGES = (0, 1, 2, 3)
COUNTS = tuple(2**power for power in range(9))
_HOUR = 3600.0


def stage_table(work: Work, machine: Machine, *, num_ranks: int, num_steps: int) -> Table:
    """One row per ZeRO stage on this many ranks."""
    title = f"predicted: {num_ranks} x {machine.name}, by ZeRO stage"
    table = _table(title, "stage", "memory GiB", "fits", "compute s", "communication s")
    for stage in _STAGES:
        found = predict(work, machine, num_ranks=num_ranks, zero_stage=stage)
        table.add_row(
            str(stage),
            f"{found.memory_gib:.2f}",
            "yes" if found.memory_gib <= machine.memory_gib else "no",
            f"{found.seconds['compute']:.3g}",
            f"{found.seconds['communication']:.3g}",
            *_speed(found, num_steps),
        )
    return table


def count_table(work: Work, machine: Machine, *, zero_stage: int, num_steps: int) -> Table:
    """One row per number of ranks among which the images of the step can be divided."""
    title = f"predicted: the same step on more or fewer {machine.name}, stage {zero_stage}"
    table = _table(title, "ranks", "memory GiB", "compute s", "communication s", "efficiency")
    alone = predict(work, machine, num_ranks=1, zero_stage=zero_stage).step_seconds
    for count in COUNTS:
        if work.divides_among(count):
            found = predict(work, machine, num_ranks=count, zero_stage=zero_stage)
            share = alone / count / found.step_seconds
            table.add_row(*_count_row(found, share), *_speed(found, num_steps))
    return table


def growth_table(
    work: Work, machine: Machine, *, num_ranks: int, zero_stage: int, num_steps: int
) -> Table:
    """One row per number of ranks, each with the images of one of `num_ranks`; fewer steps do."""
    title = f"predicted: as many images on each of more or fewer {machine.name}, stage {zero_stage}"
    table = _table(title, "ranks", "memory GiB", "compute s", "communication s", "efficiency")
    alone = predict(
        work.with_share_of(num_ranks, 1), machine, num_ranks=1, zero_stage=zero_stage
    ).step_seconds
    for count in COUNTS:
        grown = work.with_share_of(num_ranks, count)
        found = predict(grown, machine, num_ranks=count, zero_stage=zero_stage)
        steps = num_steps * num_ranks / count
        table.add_row(*_count_row(found, alone / found.step_seconds), *_speed(found, steps))
    return table


def _count_row(found: Prediction, efficiency: float) -> tuple[str, ...]:
    return (
        str(found.num_ranks),
        f"{found.memory_gib:.2f}",
        f"{found.seconds['compute']:.3g}",
        f"{found.seconds['communication']:.3g}",
        f"{efficiency:.0%}",
    )


def _speed(found: Prediction, num_steps: float) -> tuple[str, str, str]:
    hours = found.step_seconds * num_steps / _HOUR
    return f"{found.step_seconds:.3g}", f"{found.images_per_second:,.0f}", f"{hours:,.1f}"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for name in (*others, "step s", "images/s", "hours"):
        table.add_column(name, justify="right")
    return table
