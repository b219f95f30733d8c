"""One private cluster, one set of shards and one uninterrupted run for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.prepare import main as prepare
from tests.slurm.private_cluster import PrivateCluster, missing_programs
from tests.slurm.training_jobs import TrainingJobs


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
def frozen(jobs: TrainingJobs, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A job that was stopped in mid-run and uses no time until its time limit comes."""
    folder = tmp_path_factory.mktemp("frozen") / "run"
    job = jobs.submit(folder, "--time=1", "--signal=USR2@15")
    jobs.wait_for_step(folder, 2)
    jobs.cluster.ask("scancel", "--signal=STOP", job)
    return job, folder


@pytest.fixture(scope="session")
def straight(
    frozen: tuple[str, Path], jobs: TrainingJobs, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The uninterrupted run; a minute of the frozen job passes beside it."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    jobs.wait_for_end(jobs.submit(folder), folder)
    return folder
