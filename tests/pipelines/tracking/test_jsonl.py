import json
from pathlib import Path

from pipelines.tracking.jsonl import (
    EventLog,
    JsonlTracker,
    count_starts,
    read_events,
    read_metrics,
)


def rows(*steps: int, loss: float = 1.0) -> list[dict[str, float]]:
    return [{"step": step, "loss": loss} for step in steps]


def tracker(folder: Path, restart: int, step: int) -> JsonlTracker:
    return JsonlTracker(folder, restart=restart, resumed_at_step=step)


def test_rows_of_a_restart_replace_those_beyond_its_step(tmp_path: Path) -> None:
    tracker(tmp_path, 0, 0).log_rows(rows(1, 2, 3, 4))
    tracker(tmp_path, 1, 2).log_rows(rows(3, 4, 5, loss=2.0))
    found = [(row["step"], row["loss"], row["restart"]) for row in read_metrics(tmp_path)]
    assert found == [(1, 1.0, 0), (2, 1.0, 0), (3, 2.0, 1), (4, 2.0, 1), (5, 2.0, 1)]
    set_aside = (tmp_path / "metrics.superseded.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in set_aside] == [3, 4]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    tracker(tmp_path, 0, 0).log_rows(rows(1, 2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    tracker(tmp_path, 1, 2).log_rows(rows(3))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_fresh_folder_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    assert read_events(tmp_path) == []
    assert count_starts(tmp_path) == 0


def test_float32_losses_survive_the_file_exactly(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    tracker(tmp_path, 0, 0).log_rows([{"step": 1, "loss": value}])
    assert read_metrics(tmp_path)[0]["loss"] == value


def test_events_carry_time_and_restart_and_count_starts(tmp_path: Path) -> None:
    EventLog(tmp_path, restart=0).write("start", {"step": 0})
    EventLog(tmp_path, restart=1).write("start", {"step": 5})
    first, second = read_events(tmp_path)
    assert (first["event"], first["restart"], second["restart"]) == ("start", 0, 1)
    assert second["time"] >= first["time"] > 1.6e9
    assert count_starts(tmp_path) == 2


def test_going_back_moves_the_rows_of_undone_steps_aside(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, restart=2, resumed_at_step=0)
    tracker.log_rows([{"step": step, "loss": step * 1.0} for step in (1, 2, 3)])
    tracker.go_back(1)
    tracker.log_rows([{"step": 2, "loss": 0.5}])
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 0.5)]
    superseded = (tmp_path / "metrics.superseded.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in superseded] == [2, 3]
