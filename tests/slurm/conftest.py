"""One private cluster, one set of shards and one uninterrupted run for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.prepare import main as prepare
from tests.slurm.private_cluster import PrivateCluster, missing_programs
from tests.slurm.training_jobs import LEAD_SECONDS, TrainingJobs


@pytest.fixture(scope="session")
def cluster() -> Iterator[PrivateCluster]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"SLURM is not installed here: no {', '.join(missing)}")
    # the path of a socket must stay under 108 characters
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    running = PrivateCluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)
    left = [process.cmdline() for process in running.processes()]
    assert not left, f"the cluster left processes behind: {left}"


@pytest.fixture(scope="session")
def jobs(cluster: PrivateCluster, tmp_path_factory: pytest.TempPathFactory) -> TrainingJobs:
    folder = tmp_path_factory.mktemp("scenes")
    counts = ("--num-train", "40", "--num-val", "2", "--num-zeroshot", "2", "--workers", "1")
    assert prepare(["scenes", "--out", str(folder / "coco"), *counts]) == 0
    places = ("--root", str(folder / "coco"), "--out", str(folder / "shards"))
    assert prepare(["coco", *places, "--workers", "1", "--shard-mb", "0.1"]) == 0
    return TrainingJobs(cluster, folder / "shards")


@pytest.fixture(scope="session")
def out_of_time(jobs: TrainingJobs, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A job whose time limit came near in mid-run, and which takes no step until it is told.

    A minute is the shortest limit that can be asked for, and a crowded machine has not taken a step
    by then. So the limit is brought near when the run is under way, however long that took.
    """
    folder = tmp_path_factory.mktemp("out_of_time") / "run"
    job = jobs.submit(folder, "--time=30", f"--signal=USR2@{LEAD_SECONDS}")
    jobs.wait_for_step(folder, 2)
    jobs.cluster.ask("scancel", "--signal=STOP", job)
    # the controller looks at the limits twice a minute, and signals ahead of the time by that
    jobs.cluster.ask("scontrol", "update", f"JobId={job}", f"EndTime=now+{LEAD_SECONDS}")
    return job, folder


@pytest.fixture(scope="session")
def straight(
    out_of_time: tuple[str, Path], jobs: TrainingJobs, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The uninterrupted run; the job whose time limit is near waits beside it for its signal."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    jobs.wait_for_end(jobs.submit(folder), folder)
    return folder
