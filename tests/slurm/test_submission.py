"""Jobs through submitit: what is asked for, refused and told, without a cluster."""

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines import submit as verb
from pipelines.errors import ConfigError
from pipelines.tracking.jsonl import EventLog
from slurm import job as jobs
from slurm import launch
from slurm.options import build_parser, minutes_of
from slurm.rehearsal import rehearse
from slurm.sweep import sweep_points

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept every configuration without starting a process for it."""

    def accept(_verb: str, words: list[str], point: launch.SweepPoint) -> launch.Run:
        return launch.Run(folder=Path("runs/x") / point.label, words=(*words, *point.words))

    monkeypatch.setattr(launch, "checked_run", accept)


def test_sweep_has_every_combination_in_a_folder_of_its_own() -> None:
    points = sweep_points(["optimizer.learning_rate=1e-4,3e-4", "seed=0, 1"])
    assert [point.label for point in points] == [
        "learning_rate=1e-4_seed=0",
        "learning_rate=1e-4_seed=1",
        "learning_rate=3e-4_seed=0",
        "learning_rate=3e-4_seed=1",
    ]
    assert points[1].words == ("--set", "optimizer.learning_rate=1e-4", "--set", "seed=1")
    (alone,) = sweep_points([])
    assert (alone.label, alone.words) == ("", ())


def test_commas_inside_brackets_belong_to_the_value() -> None:
    points = sweep_points(["optimizer.betas=(0.9,0.95),(0.9,0.999)"])
    assert [point.words[1] for point in points] == [
        "optimizer.betas=(0.9,0.95)",
        "optimizer.betas=(0.9,0.999)",
    ]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("seed", "must be PATH=VALUE,VALUE; got 'seed'"),
        ("seed=1,,2", "must be PATH=VALUE,VALUE"),
        ("seed=1,1", "every run needs a folder of its own; got seed=1, seed=1"),
    ],
)
def test_useless_sweeps_are_refused(sweep: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_points([sweep])


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("02:30:00", 150), ("2-01:00:00", 2940), ("00:00:01", 1)]
)
def test_time_is_read_as_slurm_writes_it(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


def test_unreadable_time_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be minutes or \[D-\]HH:MM:SS"):
        minutes_of("1h")


def test_words_of_the_verb_are_kept_apart() -> None:
    arguments = ["pretrain", "--nodes", "3", "--recipe", "scenes", "--set", "seed=2"]
    options, words = build_parser().parse_known_args(arguments)
    assert (options.verb, options.nodes) == ("pretrain", 3)
    assert words == ["--recipe", "scenes", "--set", "seed=2"]


def test_verb_refuses_its_words_before_they_wait_in_a_queue(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["pretrain", "--cluster", "local", "--jobs", str(tmp_path / "jobs")]
    assert launch.main([*arguments, "--set", "optimizer.learning_rat=1"]) == 2
    assert "pretrain refuses its words" in capsys.readouterr().err
    assert not (tmp_path / "jobs").exists()


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cluster", "local", "--nodes", "2"), "--cluster local has one node; got --nodes 2"),
        (("--cluster", "debug", "--rehearse-preempt", "1"), "needs --cluster slurm or local"),
        (("--cluster", "slurm", "--sbatch", "account"), "--sbatch: must be KEY=VALUE; got account"),
    ],
)
def test_contradictions_are_refused(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launch.main(["pretrain", "--jobs", str(tmp_path / "jobs"), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("checked")
def test_slurm_job_gets_what_the_batch_script_gives(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in {
        "srun": "",
        "sbatch": 'cp "$1" "$COPY"; echo Submitted batch job 81',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("COPY", str(tmp_path / "copy.sh"))
    size = ("--nodes", "2", "--gpus-per-node", "4", "--cpus-per-task", "6", "--time", "2-00:00:00")
    more = ("--sbatch", "account=mine", "--sweep", "seed=1,2", "--max-parallel", "1")
    jobs_folder = str(tmp_path / "jobs")
    arguments = ["pretrain", "--cluster", "slurm", "--jobs", jobs_folder, *size, *more]
    assert launch.main(arguments) == 0
    text = (tmp_path / "copy.sh").read_text()
    for option in (
        *("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=6", "time=2880"),
        *("signal=USR2@180", "requeue", "open-mode=append", "account=mine", "array=0-1%1"),
    ):
        assert f"#SBATCH --{option}\n" in text
    assert "trap ':' TERM" in text
    assert "xdec_set_limits\n" in text
    assert text.rstrip().endswith("xdec_leave pretrain $?")
    told = capsys.readouterr().out
    assert "job 81_1: pretrain --set seed=2" in told
    assert "run folder  runs/x/seed=2" in told
    assert "tail -F" in told
    assert "scancel --signal=USR2 81_1" in told


def test_job_runs_its_verb_as_a_program_and_keeps_the_arguments() -> None:
    before = list(sys.argv)
    assert jobs.run_verb("pretrain", ["--print-config", "--set", "steps=0"]) == 2
    assert sys.argv == before


def test_failed_verb_raises_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "run_verb", lambda verb, words: 3)
    with pytest.raises(RuntimeError, match=r"pretrain --seed 1: left with code 3"):
        jobs.Job("pretrain", ["--seed", "1"])()


@pytest.mark.parametrize(("executor", "code", "left"), [("slurm", 75, 75), ("local", 5, 144)])
def test_job_that_wants_to_go_on_leaves_no_result(
    monkeypatch: pytest.MonkeyPatch, executor: str, code: int, left: int
) -> None:
    local = {"JOB_ID": "20007", "GLOBALID": "1", "NTASKS": "2", "LOCALID": "1"}
    for name, value in local.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    monkeypatch.setattr(jobs, "run_verb", lambda verb, words: code)

    def leave(status: int) -> None:
        raise KeyboardInterrupt(status)

    monkeypatch.setattr(jobs.os, "_exit", leave)
    with pytest.raises(KeyboardInterrupt) as leaving:
        jobs.Job("pretrain", [])()
    assert leaving.value.args == (left,)
    is_local = executor == "local"
    assert (os.environ["RANK"], os.environ["MASTER_PORT"]) == (
        ("1", "10007") if is_local else ("", "")
    )


def test_job_is_submitted_again_as_it_was() -> None:
    job = jobs.Job("pretrain", ["--seed", "1"])
    assert job.checkpoint().function is job


def test_verb_becomes_the_launcher_and_is_found_from_everywhere(tmp_path: Path) -> None:
    assert verb.command(["--help"])[1:] == ["-m", "slurm.launch", "--help"]
    program = "import sys; from pipelines.submit import main; main(['--help'])"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "usage: python -m pipelines.submit" in result.stdout


def tell_story(folder: Path, *events: tuple[str, int]) -> None:
    log = EventLog(folder, restart=0)
    for kind, step in events:
        log.write(kind, {"step": step, "signal": "SIGUSR2"})


@pytest.mark.parametrize(
    ("resumed_at", "code", "message"),
    [(7, 0, "resumed at step 7 after"), (0, 1, "did not resume at step 7"), (None, 1, "got None")],
)
def test_rehearsal_passes_only_if_the_run_goes_on_where_it_stopped(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    resumed_at: int | None,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("slurm.rehearsal._POLL_SECONDS", 0.02)
    monkeypatch.setattr("slurm.rehearsal._REVOKED_SECONDS", 0.1)
    # an old story in the same folder is none of this rehearsal
    tell_story(tmp_path, ("start", 0), ("stopped", 3), ("start", 3), ("resume", 3))
    hurried = []

    def hurry() -> None:
        if not hurried:
            last = [("finished", 9)] if resumed_at is None else [("resume", resumed_at)]
            tell_story(tmp_path, ("start", 7), *last)
        hurried.append(time.monotonic())

    start = threading.Timer(0.1, lambda: tell_story(tmp_path, ("start", 3)))
    start.start()
    result = rehearse(
        tmp_path,
        after_seconds=0.0,
        send_signal=lambda: tell_story(tmp_path, ("stopped", 7)),
        hurry=hurry,
        patience_seconds=5.0,
    )
    assert result == code
    assert message in capsys.readouterr().out
    assert hurried


def test_rehearsal_of_a_run_that_never_starts_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = rehearse(
        tmp_path,
        after_seconds=0.0,
        send_signal=lambda: None,
        hurry=lambda: None,
        patience_seconds=0.05,
    )
    assert code == 1
    assert "the run did not start" in capsys.readouterr().out
