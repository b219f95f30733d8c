"""`python -m pipelines.submit` on a real controller, and on this machine alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.training_jobs import (
    REPOSITORY,
    TrainingJobs,
    losses_of,
    require_same_run,
)

SMALL_NODE = ("--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "10")


def submitted(jobs: TrainingJobs, *words: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "pipelines.submit", *words],
        cwd=REPOSITORY,
        env=jobs.cluster.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slurm
def test_submitit_job_is_preempted_on_purpose_and_goes_on(
    jobs: TrainingJobs, straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    place = ("--nodes", "2", "--tasks-per-node", "1", "--jobs", str(tmp_path / "jobs"))
    words = jobs.words(folder)
    told = submitted(
        jobs, "pretrain", *place, *SMALL_NODE, "--rehearse-preempt", "0.5", "--wait", *words
    )
    assert "rehearsal: resumed at step" in told
    assert told.rstrip().endswith(": pretrain finished")
    jobs.wait_for_event(folder, "finished")
    require_same_run(folder, straight)


@pytest.mark.slurm
def test_array_runs_a_sweep_of_which_one_element_is_preempted(
    jobs: TrainingJobs, straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    place = ("--nodes", "2", "--tasks-per-node", "1", "--jobs", str(tmp_path / "jobs"))
    # no value of the sweep changes a number
    sweep = ("--sweep", "checkpoint.keep_last=1,2")
    told = submitted(jobs, "pretrain", *place, *SMALL_NODE, *sweep, *jobs.words(folder))
    array = told.split("job ")[1].split("_")[0]
    first, second = folder / "keep_last=1", folder / "keep_last=2"
    jobs.wait_for_step(second, 2)
    # the id of the last element also names the array: requeueing it must not touch the first
    jobs.cluster.ask("scancel", "--signal=USR2", f"{array}_1")
    stopped = jobs.wait_for_event(second, "stopped")
    for element in (f"{array}_0", f"{array}_1"):
        jobs.wait_for_end(element, second)
    assert losses_of(first) == losses_of(straight)
    require_same_run(second, straight, saved_at=stopped["step"])
