"""The batch scripts alone, with stand-ins for srun, scontrol and getent on PATH."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "slurm"
SCRIPTS = ("pretrain.sh", "finetune.sh", "evaluate.sh", "prepare.sh")
TRAINING = ("pretrain", "finetune")
# each stand-in writes one line with its words, and srun leaves with the code that the test chose;
# what scontrol is only asked for is not written
STAND_INS = {
    "srun": """echo "srun $*" >>"$CALLS"
case "$*" in *' true') exit "${NODES_CODE:-0}" ;; esac
echo "$MASTER_ADDR $SLURM_JOB_END_TIME $XDEC_KILL_WAIT" >"$CALLS.environment"
exit "$SRUN_CODE" """,
    "scontrol": """case "$2" in
hostnames) printf 'far-1\\nfar-2\\n' ;;
node) echo "X=1 NodeAddr=10.0.0.7 Y=2" ;;
job) echo "JobId=$3 JobState=${JOB_STATE:-RUNNING} EndTime=${END_TIME:-Unknown} Y=2" ;;
config) printf 'KillOnBadExit = 0\\nKillWait                = 45 sec\\n' ;;
*) echo "scontrol $*" >>"$CALLS" ;;
esac
if [ "$1" = requeue ]; then exit "${REQUEUE_CODE:-0}"; fi""",
    "getent": "exit 2",
}
Start = Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"

    def started(
        script: str, *words: str, **changes: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "SRUN_CODE": "0",
            "MASTER_ADDR": "",
            "XDEC_HOME": str(REPOSITORY),
            "XDEC_PYTHON": "python",
            "SLURM_JOB_ID": "71",
            "SLURM_NTASKS": "6",
            "SLURM_NNODES": "1",
            "SLURM_JOB_NODELIST": "far-[1-2]",
            **changes,
        }
        program = [script] if script == "-c" else [str(FOLDER / script)]
        result = subprocess.run(
            ["bash", *program, *words],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
        return result, calls.read_text().splitlines() if calls.exists() else []

    return started


@pytest.mark.parametrize("name", [*SCRIPTS, "env.sh"])
def test_bash_can_read_the_script(name: str) -> None:
    subprocess.run(["bash", "-n", FOLDER / name], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_header_names_no_account_and_survives_a_requeue(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {"--requeue", "--open-mode=append"} <= set(options)
    forbidden = ("--account", "--partition", "--qos", "--mail", "--signal=B:")
    assert not [option for option in options if option.startswith(forbidden)]
    assert "set -euo pipefail" in lines


@pytest.mark.parametrize("verb", TRAINING)
def test_training_passes_its_words_to_one_srun(start: Start, verb: str) -> None:
    result, calls = start(f"{verb}.sh", "--recipe", "scenes", "--set", "name=two words")
    assert result.returncode == 0, result.stderr
    assert calls == [
        f"srun --kill-on-bad-exit=0 --wait=60 python -m pipelines.{verb} "
        "--recipe scenes --set name=two words"
    ]


@pytest.mark.parametrize("verb", TRAINING)
def test_training_is_warned_by_a_signal_to_its_ranks(verb: str) -> None:
    assert "#SBATCH --signal=USR2@180\n" in (FOLDER / f"{verb}.sh").read_text()


@pytest.mark.parametrize("code", ["75", "5"])
def test_pretrain_requeues_after_a_save_and_after_a_hang(start: Start, code: str) -> None:
    result, calls = start("pretrain.sh", SRUN_CODE=code)
    assert calls[-1] == "scontrol requeue 71"
    assert result.returncode == int(code)
    assert "requeue 1 of at most 50" in result.stdout


@pytest.mark.parametrize("code", ["0", "2", "3", "4", "6", "130"])
def test_pretrain_never_requeues_what_would_come_back(start: Start, code: str) -> None:
    result, calls = start("pretrain.sh", SRUN_CODE=code, SLURM_NNODES="2", NODES_CODE="1")
    assert len(calls) == 1
    assert result.returncode == int(code)
    assert f"finished with code {code}; not requeued" in result.stdout


@pytest.mark.parametrize("code", ["1", "137", "143"])
def test_pretrain_requeues_a_crash_only_if_a_node_is_lost(start: Start, code: str) -> None:
    several = {"SRUN_CODE": code, "SLURM_NNODES": "3"}
    result, calls = start("pretrain.sh", **several)
    assert calls[-1] == "srun --overlap --ntasks-per-node=1 --ntasks=3 true"
    assert f"failed with code {code} while all nodes answer; not requeued" in result.stdout
    result, calls = start("pretrain.sh", NODES_CODE="1", **several)
    assert calls[-1] == "scontrol requeue 71"
    assert "a node does not answer" in result.stdout
    assert result.returncode == int(code)


def test_crash_on_one_node_is_never_the_loss_of_a_node(start: Start) -> None:
    _, calls = start("pretrain.sh", SRUN_CODE="137", NODES_CODE="1")
    assert len(calls) == 1


def test_pretrain_leaves_a_job_alone_that_the_cluster_has_ended(start: Start) -> None:
    ended = {"SRUN_CODE": "75", "JOB_STATE": "COMPLETING"}
    for end_time in ("Unknown", "2999-01-01T00:00:00"):
        result, calls = start("pretrain.sh", END_TIME=end_time, **ended)
        assert not [call for call in calls if "requeue" in call]
        assert "the cluster has ended this job" in result.stdout
    # at its time limit the job is over as well, but nobody else requeues it
    _, calls = start("pretrain.sh", END_TIME="2001-01-01T00:00:00", **ended)
    assert calls[-1] == "scontrol requeue 71"


def test_pretrain_stops_at_the_requeue_limit(start: Start) -> None:
    changes = {"SRUN_CODE": "75", "XDEC_MAX_REQUEUES": "3"}
    result, calls = start("pretrain.sh", SLURM_RESTART_COUNT="3", **changes)
    assert not [call for call in calls if "requeue" in call]
    assert result.returncode == 75
    assert "after 3 requeues, the limit is XDEC_MAX_REQUEUES=3" in result.stderr
    _, calls = start("pretrain.sh", SLURM_RESTART_COUNT="2", **changes)
    assert calls[-1] == "scontrol requeue 71"


def test_pretrain_says_when_it_cannot_requeue(start: Start) -> None:
    result, _ = start("pretrain.sh", SRUN_CODE="75", REQUEUE_CODE="1")
    assert result.returncode == 75
    assert "not requeued: the cluster refused" in result.stderr


def test_element_of_an_array_is_requeued_alone(start: Start) -> None:
    element = {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "4"}
    command = "source slurm/env.sh; xdec_leave pretrain 75"
    result, calls = start("-c", command, **element)
    assert result.returncode == 75
    assert calls == ["scontrol requeue 71_4"]


def test_array_of_one_run_folder_is_refused(start: Start) -> None:
    result, calls = start("pretrain.sh", SLURM_ARRAY_TASK_ID="1")
    assert result.returncode == 2
    assert "would share one run folder; got element 1" in result.stderr
    assert not calls


def test_limits_of_the_job_reach_the_ranks(start: Start, tmp_path: Path) -> None:
    start("pretrain.sh", END_TIME="2030-05-06T07:08:09", TZ="UTC")
    assert (tmp_path / "calls.environment").read_text().split() == ["1904281689", "45"]
    start("pretrain.sh", XDEC_KILL_WAIT="7")
    assert (tmp_path / "calls.environment").read_text().split() == ["7"]


def test_address_of_a_node_that_does_not_resolve_is_looked_up(start: Start, tmp_path: Path) -> None:
    start("pretrain.sh", SLURM_NNODES="2")
    assert (tmp_path / "calls.environment").read_text().split()[0] == "10.0.0.7"


def test_container_wraps_python(start: Start) -> None:
    _, calls = start(
        "pretrain.sh", XDEC_CONTAINER="image.sif", XDEC_CONTAINER_OPTIONS="--bind /scratch"
    )
    home = REPOSITORY
    assert f"apptainer exec --nv --bind {home} --pwd {home} --bind /scratch image.sif" in calls[0]


def test_evaluate_takes_the_data_set_of_its_array_element(start: Start) -> None:
    words = ("runs/a", "data/x", "data/y:test", "--", "--max-images", "5")
    _, calls = start("evaluate.sh", *words, SLURM_ARRAY_TASK_ID="1")
    assert calls == [
        "srun python -m pipelines.evaluate --checkpoint runs/a --root data/y --split test "
        "--out runs/a/eval/y-test --max-images 5"
    ]
    _, calls = start("evaluate.sh", *words, SLURM_ARRAY_TASK_ID="0")
    assert "--root data/x --split val --out runs/a/eval/x-val" in calls[1]


def test_evaluate_knows_folders_from_names(start: Start) -> None:
    start("evaluate.sh", "runs/a", "coco-panoptic", "--", "--data-root", "data")
    _, calls = start("evaluate.sh", "runs/a", "--", "--suite", "zeroshot")
    assert calls == [
        "srun python -m pipelines.evaluate --checkpoint runs/a --dataset coco-panoptic "
        "--out runs/a/eval/coco-panoptic --data-root data",
        "srun python -m pipelines.evaluate --checkpoint runs/a --suite zeroshot",
    ]


def test_evaluate_refuses_an_element_without_data_set(start: Start) -> None:
    result, calls = start("evaluate.sh", "runs/a", "data/x", SLURM_ARRAY_TASK_ID="1")
    assert result.returncode == 2
    assert "array element 1 needs a data set; got 1 of them. Use --array=0-0" in result.stderr
    assert not calls
    assert "got nothing" in start("evaluate.sh")[0].stderr


def test_prepare_takes_the_line_of_its_array_element(start: Start, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("coco --root a --out b\nverify b\n")
    changes = {"SLURM_CPUS_PER_TASK": "3"}
    start("prepare.sh", str(jobs), SLURM_ARRAY_TASK_ID="1", **changes)
    _, calls = start("prepare.sh", str(jobs), SLURM_ARRAY_TASK_ID="2", **changes)
    assert calls == [
        "srun python -m pipelines.prepare coco --workers 3 --root a --out b",
        "srun python -m pipelines.prepare verify b",
    ]


def test_elements_of_an_array_share_one_data_set(start: Start) -> None:
    words = ("refcoco+", "--root", "a", "--out", "b")
    for number in ("4", "6", "8"):
        _, calls = start(
            "prepare.sh",
            *words,
            SLURM_ARRAY_TASK_ID=number,
            SLURM_ARRAY_TASK_MIN="4",
            SLURM_ARRAY_TASK_STEP="2",
            SLURM_ARRAY_TASK_COUNT="3",
        )
    command = "srun python -m pipelines.prepare refcoco+ --workers 1 --part {}/3 --min-shards 3"
    assert calls == [f"{command.format(n)} --root a --out b" for n in range(3)]


def test_one_job_prepares_a_data_set_alone(start: Start) -> None:
    _, calls = start("prepare.sh", "coco", "--root", "a", "--out", "b", SLURM_CPUS_PER_TASK="5")
    assert calls == ["srun python -m pipelines.prepare coco --workers 5 --root a --out b"]


@pytest.mark.parametrize("verb", ["scenes", "verify"])
def test_what_cannot_be_shared_is_refused_by_an_array(start: Start, verb: str) -> None:
    result, calls = start(
        "prepare.sh", verb, "b", SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_TASK_COUNT="2"
    )
    assert result.returncode == 2
    assert f"{verb} cannot be shared by the elements of an array" in result.stderr
    assert not calls


def test_prepare_refuses_a_missing_line_and_a_missing_file(start: Start, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("verify b\n")
    result, calls = start("prepare.sh", str(jobs), SLURM_ARRAY_TASK_ID="2")
    assert result.returncode == 2
    assert "array element 2 needs line 2" in result.stderr
    assert "got nothing" in start("prepare.sh")[0].stderr
    assert not calls
