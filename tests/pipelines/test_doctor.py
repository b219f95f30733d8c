"""What the doctor says of a machine, and that its proof holds, and fails when it must."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import doctor
from pipelines.engine.machine_checks import Check
from pipelines.engine.resume_proof import Comparison, Row
from pipelines.tracking.jsonl import read_events

REPOSITORY = Path(__file__).resolve().parents[2]


def start(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.dist
def test_proof_holds_for_a_killed_run_and_for_another_number_of_ranks(tmp_path: Path) -> None:
    arguments = ("--prove-resume", "--steps", "8", "--kill-at", "4", "--keep", str(tmp_path))
    done = start("-m", "pipelines.doctor", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("equal to the last bit", "optimizer: equal", "1 rank, then 2", "8 equal"):
        assert words in done.stdout
    assert done.stdout.rstrip().endswith("The resumed run is the uninterrupted one.")
    # it was killed, and it did resume
    kinds = [event["event"] for event in read_events(tmp_path / "runs" / "resumed")]
    assert (kinds.count("start"), kinds.count("resume")) == (2, 1)


@pytest.mark.dist
def test_proof_fails_when_the_data_state_is_not_restored(tmp_path: Path) -> None:
    done = start(str(Path(__file__).with_name("forgetful_doctor.py")), str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    # at 4 or 7, as the killed run got to the checkpoint of step 3 or 6
    assert re.search("sample keys differ from step [47] on", done.stdout)
    assert re.search("losses differ from step [47] on", done.stdout)
    assert "model differs at the end" in done.stdout
    assert "The resumed run is not the uninterrupted one." in done.stdout


def comparison(*losses: tuple[float, float], tolerance: float, weights: str = "a") -> Comparison:
    keys = {"segmentation": ["x", "y"]}
    rows = tuple(
        Row(step=step, keys=(keys, keys), losses=pair) for step, pair in enumerate(losses, 1)
    )
    return Comparison(title="two", rows=rows, hashes={"model": ("a", weights)}, tolerance=tolerance)


def test_one_bit_is_too_much_for_the_same_world_and_fine_for_another() -> None:
    pair = (1.0, 1.0 + 2**-23)
    assert comparison(pair, tolerance=0.0).failures() == [
        "losses differ from step 1 on, at most by 1.2e-07"
    ]
    assert comparison(pair, tolerance=1e-4, weights="b").failures() == []
    assert comparison((1.0, 1.0), tolerance=0.0, weights="b").failures() == [
        "model differs at the end"
    ]


def test_step_that_the_resumed_run_never_took_is_a_failure() -> None:
    (failure,) = comparison((1.0, 1.0), (2.0, float("nan")), tolerance=1e-4).failures()
    assert failure.startswith("losses differ from step 2 on")


def test_run_that_began_anew_proves_nothing() -> None:
    anew = dataclasses.replace(comparison((1.0, 1.0), tolerance=0.0), has_resumed=False)
    assert anew.failures() == ["the second run began anew and never resumed"]


def test_other_samples_are_named_and_give_exit_code_1(capsys: pytest.CaptureFixture) -> None:
    keys = ({"segmentation": ["x"]}, {"segmentation": ["y"]})
    row = Row(step=3, keys=keys, losses=(1.0, 1.0))
    found = Comparison(title="two", rows=(row,), hashes={}, tolerance=0.0)
    assert doctor.tell([found], Console(width=120)) == 1
    out = capsys.readouterr().out
    assert "OTHER" in out
    assert "two: sample keys differ from step 3 on" in out


def test_kill_before_the_first_checkpoint_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert doctor.main(["--prove-resume", "--kill-at", "2"]) == 2
    assert "--kill-at must be at least 3, the first checkpoint" in capsys.readouterr().err


def test_healthy_machine_leaves_with_0_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert doctor.main(["--output-dir", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    for words in ("PyTorch", "deformable attention", "DeepSpeed", "SLURM", "wandb", "GiB free"):
        assert words in out
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_is_bad_gives_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Check(name="disk", state="bad", found="full", advice="Free space.")
    monkeypatch.setattr(doctor, "check_machine", lambda *_arguments: iter([bad]))
    assert doctor.main([]) == 1
    assert "Free space." in capsys.readouterr().out
