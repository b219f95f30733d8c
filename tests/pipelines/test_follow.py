"""A run in the terminal."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines import follow as module
from pipelines import report
from pipelines.engine.heartbeat import Heartbeat
from pipelines.follow import curve, follow, frame, state_of

NOW = 1_700_000_000.0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twenty of a hundred steps in 200 s, after a start that lasted 50 s and left nothing."""
    folder = tmp_path / "night"
    (folder / "heartbeat").mkdir(parents=True)
    (folder / "config.resolved.json").write_text(json.dumps({"steps": 100}))
    events = [
        {"time": NOW - 250, "event": "start", "restart": 0, "step": 0},
        {"time": NOW - 200, "event": "start", "restart": 1, "step": 0},
        *({"time": NOW - 99, "event": "checkpoint", "step": step} for step in (5, 10)),
        {"time": NOW - 90, "event": "skipped_step", "restart": 1, "step": 11, "keys": ["secret"]},
        {"time": NOW - 80, "event": "rollback", "restart": 1, "step": 14, "num_rollbacks": 2},
    ]
    write_lines(folder / "events.jsonl", events)
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 8.0 / step, "loss/seg": 4.0 / step, "gradient_norm": 1.0}
        for step in range(1, 21)
    ]
    rows[10] = {"step": 11, "left_out": 1, "gradient_norm": 0.0}
    timing = {"seconds_per_step": 10.0, "data_wait": 0.25, "images_per_second": 3.5}
    rows[19] |= {**timing, "memory_gib": 7.5, "grad_norm/seg": 0.75}
    write_lines(folder / "metrics.jsonl", rows)
    for rank, step, silence, stalled in ((0, 20, 2, 0.0), (1, 19, 3, 44.0), (2, 20, 200, 0.0)):
        heartbeat = Heartbeat(
            rank=rank,
            host=f"node{rank}",
            pid=400 + rank,
            restart=1,
            step=step,
            time=NOW - silence,
            step_time=NOW - silence - 5,
            median_seconds=9.5,
            stalled_seconds=stalled,
        )
        path = folder / "heartbeat" / f"rank{rank:05d}.json"
        path.write_text(json.dumps(heartbeat.__dict__))
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def finish(folder: Path) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": NOW - 50, "event": "finished", "restart": 1}) + "\n")


def text_of(folder: Path) -> list[str]:
    console = Console(width=140, force_terminal=False)
    with console.capture() as captured:
        console.print(frame(folder, now=NOW))
    return captured.get().splitlines()


def line_with(lines: list[str], word: str) -> str:
    (found,) = (line for line in lines if word in line)
    return found


def test_one_frame_has_what_a_person_watches(run: Path) -> None:
    lines = text_of(run)
    assert lines[0].split() == ["night", "running"]
    for part in ("step 20/100", "loss 0.400", "10.00 s/it", "data 25 %", "3.5 img/s", "7.5 GiB"):
        assert part in lines[1]
    assert "eta 13m20s" in lines[1]
    # 19 steps of 10 s in 250 s
    assert "goodput 76 %  starts 2  rollbacks 2  left out 1" in lines[1]
    assert line_with(lines, "loss/seg").split()[:2] == ["loss/seg", "0.2"]
    assert line_with(lines, "grad_norm/seg").split()[:2] == ["grad_norm/seg", "0.75"]
    event = line_with(lines, "skipped_step")
    assert "step 11" in event
    assert "secret" not in event
    assert "step 10" in line_with(lines, "checkpoint")


def test_the_rank_behind_comes_first_and_silent_ones_are_named(run: Path) -> None:
    lines = text_of(run)
    ranks = [line.split() for line in lines if " node" in line]
    assert [rank[0] for rank in ranks] == ["1", "2", "0"]
    assert ranks[0] == ["1", "node1", "401", "19", "9.50", "0m08s", "stalls"]
    assert ranks[1][-3:] == ["silent", "for", "3m20s"]
    assert ranks[2][-1] == "lives"


def test_many_ranks_are_counted_and_not_listed(run: Path) -> None:
    source = json.loads((run / "heartbeat" / "rank00000.json").read_text())
    for rank in range(3, 12):
        path = run / "heartbeat" / f"rank{rank:05d}.json"
        path.write_text(json.dumps({**source, "rank": rank}))
    lines = text_of(run)
    assert len([line for line in lines if " node" in line]) == 8
    assert line_with(lines, "and 4 more ranks")


def test_a_finished_run_says_so_and_ends_the_watch(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    frames = []

    def sleep(seconds: float) -> None:
        frames.append(seconds)
        finish(run)

    monkeypatch.setattr(module.time, "sleep", sleep)
    console = Console(width=140, force_terminal=False)
    with console.capture() as captured:
        follow(run, console, is_once=False)
    assert len(frames) == 1
    assert frames[0] >= 2.0
    assert "night  finished" in captured.get()
    lines = text_of(run)
    assert "eta" not in lines[1]
    # the last sign of life was 2 s ago, whatever the clock says now
    assert "goodput 77 %" in lines[1]
    assert len([line for line in lines if "has left" in line]) == 3


def test_a_restart_after_an_end_is_a_running_run() -> None:
    kinds = ("start", "stopped", "start", "checkpoint")
    assert state_of([{"event": kind} for kind in kinds]) == "running"
    assert state_of([{"event": kind} for kind in kinds[:2]]) == "stopped"


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([1.0, 2.0, 8.0], 5, "▁▂█"),
        ([0.0, 2.0, 7.0, 9.0, float("nan")], 2, "▁█"),
        ([3.0, 3.0], 5, "▁▁"),
        ([], 5, ""),
    ],
)
def test_a_curve_fills_height_and_width(values: list[float], width: int, bars: str) -> None:
    assert curve(values, width=width) == bars


def test_the_verb_prints_one_frame(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(run), "--follow", "--once"]) == 0
    assert "step 20/100" in capsys.readouterr().out
    assert not (run / "report.html").exists()


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert report.main([str(tmp_path), "--follow"]) == 3
    output = capsys.readouterr()
    said = output.err + output.out + caplog.text
    assert "--follow needs the folder of a run that has started" in " ".join(said.split())
