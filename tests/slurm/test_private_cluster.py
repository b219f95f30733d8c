"""The shipped batch script on a real controller with two nodes, interrupted in every way."""

import json
import random
import re
from pathlib import Path

import pytest

from pipelines.tracking.jsonl import read_events
from tests.slurm.private_cluster import PrivateCluster
from tests.slurm.training_jobs import (
    NUM_STEPS,
    TrainingJobs,
    kinds_of,
    losses_of,
    output_of,
    require_same_run,
)
from tests.testing.waiting import wait_until

pytestmark = pytest.mark.slurm


def test_shipped_script_trains_over_two_nodes(straight: Path) -> None:
    assert sorted(losses_of(straight)) == list(range(1, NUM_STEPS + 1))
    assert re.search(r"start 1,\s+2 ranks on\s+node\[0-1\]", output_of(straight))
    environment = json.loads((straight / "environment.json").read_text())
    assert (environment["launcher"], environment["world_size"]) == ("slurm", 2)
    (limits,) = [event for event in read_events(straight) if event["event"] == "limits"]
    assert 500 < limits["seconds_left"] < 600
    assert limits["kill_wait"] == 8


def test_signal_at_a_random_step_saves_requeues_and_changes_no_loss(
    jobs: TrainingJobs, straight: Path, tmp_path: Path
) -> None:
    folder, step = tmp_path / "run", random.randrange(1, NUM_STEPS - 4)
    job = jobs.submit(folder)
    jobs.wait_for_step(folder, step)
    jobs.cluster.ask("scancel", "--signal=USR2", job)
    jobs.wait_for_end(job, folder)
    stopped = jobs.wait_for_event(folder, "stopped")
    assert stopped["signal"] == "SIGUSR2", output_of(folder)
    assert "code 75, requeue 1 of at most" in output_of(folder)
    told = [kind for kind in kinds_of(folder) if kind != "limits"]
    assert told == ["start", "checkpoint", "stopped", "start", "resume", "checkpoint", "finished"]
    require_same_run(folder, straight, saved_at=stopped["step"])


def test_job_of_higher_priority_preempts_and_the_run_comes_back(
    jobs: TrainingJobs, straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = jobs.submit(folder)
    jobs.wait_for_step(folder, 3)
    both = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    jobs.cluster.ask("sbatch", *both, "--wrap=true")
    stopped = jobs.wait_for_event(folder, "stopped")
    jobs.wait_for_end(job, folder)
    assert stopped["signal"] == "SIGTERM"
    assert "the cluster has ended this job and decides about its requeue" in output_of(folder)
    require_same_run(folder, straight, saved_at=stopped["step"])


def test_cancelled_job_saves_stays_cancelled_and_is_continued_by_a_new_one(
    jobs: TrainingJobs, straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = jobs.submit(folder)
    jobs.wait_for_step(folder, 3)
    jobs.cluster.ask("scancel", job)
    stopped = jobs.wait_for_event(folder, "stopped")
    jobs.wait_for_end(job, folder, state="CANCELLED")
    again = jobs.submit(folder)
    jobs.wait_for_end(again, folder)
    assert jobs.cluster.state_of(job) == "CANCELLED"
    require_same_run(folder, straight, saved_at=stopped["step"])


def test_lost_node_requeues_the_job_which_goes_on_from_its_newest_checkpoint(
    jobs: TrainingJobs, cluster: PrivateCluster, straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = jobs.submit(folder, changes=("checkpoint.every_steps=2",))
    jobs.wait_for_step(folder, 3)
    cluster.kill_node("node1")
    try:
        wait_until(lambda: "does not answer" in output_of(folder), "loss of a node", seconds=60)
    finally:
        cluster.start_node("node1")
    jobs.wait_for_end(job, folder)
    assert "requeue 1 of at most" in output_of(folder)
    require_same_run(folder, straight)


def test_time_limit_saves_and_requeues(
    jobs: TrainingJobs, out_of_time: tuple[str, Path], straight: Path
) -> None:
    job, folder = out_of_time
    stopped = jobs.wait_for_event(folder, "stopped")
    # the short time is the job's own, and would be that of its next start too
    jobs.cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    jobs.wait_for_end(job, folder)
    assert stopped["signal"] == "SIGUSR2", output_of(folder)
    assert "code 75, requeue 1 of at most" in output_of(folder)
    assert kinds_of(folder).count("stopped") == 1
    require_same_run(folder, straight, saved_at=stopped["step"])
