"""Jobs that train a small model on the embedded scenes over two nodes, and what they leave."""

import json
import time
from pathlib import Path

from pipelines.tracking.jsonl import read_events, read_metrics
from tests.slurm.private_cluster import PrivateCluster
from tests.testing.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_STEPS = 14
# a start takes ten seconds of two free cores; the limit is for cores that others use too
PATIENCE_SECONDS = 150.0
# between the signal of a time limit and that limit: more than a test waits for anything
LEAD_SECONDS = 240
SMALL = (
    *("model.backbone.weights=random", "model.dim=32", "model.decoder.num_layers=2"),
    *("model.pixel_decoder.num_layers=1", "model.text.num_layers=1"),
    *("data.segmentation.batch_size=2", "data.image_text.batch_size=4"),
    *("tracking.panels_every=0", "tracking.log_every=1", "checkpoint.every_steps=1000"),
    *(f"steps={NUM_STEPS}", "schedule.warmup_steps=2", "preemption.margin_seconds=3"),
)
# a node refuses a start whose credential is as old as those it revoked at the requeue
_REVOKED_SECONDS = 3.0
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class TrainingJobs:
    """Submits runs to a private cluster, and waits for what becomes of them."""

    def __init__(self, cluster: PrivateCluster, shards: Path) -> None:
        self.cluster = cluster
        self.shards = shards
        cluster.environment["XDEC_HOME"] = str(REPOSITORY)
        # of a lost rank the others learn within a second; no need to wait a minute for them
        cluster.environment["XDEC_RANK_GRACE"] = "3"

    def words(self, folder: Path | None, *changes: str) -> list[str]:
        """The words of `pipelines.pretrain` for a run in this folder."""
        place = [] if folder is None else ["--output-dir", str(folder)]
        assignments = [word for change in (*SMALL, *changes) for word in ("--set", change)]
        return ["--shards", str(self.shards), *place, *assignments]

    def submit(self, folder: Path, *options: str, changes: tuple[str, ...] = ()) -> str:
        """The id of a job of the shipped script; options are for sbatch."""
        resources = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
        place = (f"--chdir={REPOSITORY}", f"--output={folder}.out", "--time=10", "--parsable")
        script = str(REPOSITORY / "slurm" / "pretrain.sh")
        return self.cluster.ask(
            "sbatch", *resources, *place, *options, script, *self.words(folder, *changes)
        )

    def wait_for_step(self, folder: Path, step: int) -> None:
        """Return when the run has taken this step."""

        def is_there() -> bool:
            rows = read_metrics(folder)
            return bool(rows) and rows[-1]["step"] >= step

        wait_until(is_there, f"step {step} of {folder}", seconds=PATIENCE_SECONDS)

    def wait_for_end(self, job: str, folder: Path, *, state: str = "COMPLETED") -> None:
        """Return when the job is over in this state, started again as often as it asks for."""

        waiting_since: list[float] = []

        def has_ended() -> bool:
            now = self.cluster.state_of(job)
            if now == "PENDING":
                waiting_since.append(time.monotonic())
            if now == "PENDING" and time.monotonic() > waiting_since[0] + _REVOKED_SECONDS:
                self.cluster.start_now(job)
                waiting_since.clear()
            assert now == state or now not in _OVER, f"{now}: {output_of(folder)}"
            return now == state

        wait_until(has_ended, f"end of job {job}", seconds=PATIENCE_SECONDS)

    def wait_for_event(self, folder: Path, kind: str) -> dict:
        """The first event of this kind of the run, once there is one."""

        def is_there() -> bool:
            return kind in kinds_of(folder)

        wait_until(is_there, f"{kind} of {folder}", seconds=PATIENCE_SECONDS)
        return next(event for event in read_events(folder) if event["event"] == kind)


def output_of(folder: Path) -> str:
    """What the job of this run has written."""
    path = Path(f"{folder}.out")
    return path.read_text() if path.is_file() else "no output"


def kinds_of(folder: Path) -> list[str]:
    """The kinds of the run's events, in their order."""
    return [event["event"] for event in read_events(folder)]


def losses_of(folder: Path) -> dict[int, tuple[float, ...]]:
    """Loss, gradient norm and learning rate of every step, exactly as they were written."""
    names = ("loss", "gradient_norm", "learning_rate")
    return {row["step"]: tuple(row[name] for name in names) for row in read_metrics(folder)}


def require_same_run(folder: Path, straight: Path, *, saved_at: int | None = None) -> None:
    """Return if the run was resumed, where asked from the step it saved, and equals `straight`."""
    story = "\n".join(json.dumps(event) for event in read_events(folder))
    assert "resume" in kinds_of(folder), f"{story}\n{output_of(folder)[-4000:]}"
    resumed = next(event for event in read_events(folder) if event["event"] == "resume")
    assert resumed["step"] == (saved_at or resumed["step"]), story
    assert 0 < resumed["step"] < NUM_STEPS, story
    assert kinds_of(folder)[-1] == "finished", story
    assert losses_of(folder) == losses_of(straight), story
