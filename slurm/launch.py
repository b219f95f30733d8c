"""`python -m pipelines.submit`: a verb as a job, through submitit.

words --> checked here, before they wait in a queue --> one job, or an array for a sweep
                                                           |
  slurm   sbatch, srun: one task per GPU; the shell around them requeues by their exit code
  local   processes of this machine, started again after a stop
  debug   in this process
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from pipelines.errors import ConfigError, ExitCode, PipelineError
from slurm.job import Job
from slurm.options import build_parser
from slurm.rehearsal import rehearse, signal_slurm_job, start_slurm_job_now
from slurm.sweep import SweepPoint, sweep_points

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a submission: its folder, and the words for the verb."""

    folder: Path
    words: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a submission."""
    options, words = build_parser().parse_known_args(argv)
    try:
        runs = [checked_run(options.verb, words, point) for point in sweep_points(options.sweep)]
        jobs = submit(options, runs)
    except (PipelineError, ValueError, submitit.core.utils.FailedSubmissionError) as error:
        print(f"submit: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", ExitCode.USAGE))
    print("\n".join(tell(options, jobs, runs)), flush=True)
    if options.rehearse_preempt is not None:
        is_slurm = options.cluster == "slurm"
        code = _rehearse(is_slurm, jobs[0], runs[0], options.rehearse_preempt)
        if code != ExitCode.FINISHED:
            return code
    if options.wait or options.cluster == "debug":
        return _wait(jobs)
    return int(ExitCode.FINISHED)


def checked_run(verb: str, words: Sequence[str], point: SweepPoint) -> Run:
    """A run whose configuration was read before it waits in a queue.

    A point of a sweep gets a folder of its own, below the one that the words ask for.

    Raises:
        ConfigError: the verb refuses its words; the message is the verb's own.
    """
    words = [*words, *point.words]
    command = [sys.executable, "-m", f"pipelines.{verb}", *words, "--print-config"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ConfigError(f"{verb} refuses its words:\n{result.stderr.strip()}")
    config = json.loads(result.stdout)
    folder = Path(config["output_dir"] or f"runs/{config['name']}")
    if point.label:
        folder = folder / point.label
    return Run(folder=folder, words=(*words, "--output-dir", str(folder)))


def submit(options: argparse.Namespace, runs: Sequence[Run]) -> list[submitit.Job[str]]:
    """The jobs of the runs, in their order; several are one array where the cluster has arrays."""
    executor = _executor(options)
    if len(runs) == 1:
        return [executor.submit(Job(options.verb, runs[0].words))]
    with executor.batch():
        jobs = [executor.submit(Job(options.verb, run.words)) for run in runs]
    return jobs


def tell(
    options: argparse.Namespace, jobs: Sequence[submitit.Job[str]], runs: Sequence[Run]
) -> list[str]:
    """Where each run is, how to follow it and how to end it, as lines."""
    lines = []
    for job, run in zip(jobs, runs, strict=True):
        log = job.paths.stdout
        lines += [
            f"job {job.job_id}: {options.verb} {shlex.join(run.words)}",
            f"  run folder  {run.folder}",
            f"  log         {log}",
            f"  follow      tail -F {log}   or   python -m pipelines.report {run.folder}",
        ]
        if options.cluster == "slurm":
            lines += [
                f"  preempt     scancel --signal=USR2 {job.job_id}   (saves, requeues, goes on)",
                f"  cancel      scancel {job.job_id}",
            ]
        elif options.cluster == "local":
            lines += [
                f"  preempt     kill -TERM {job.job_id}   (saves, starts again, goes on)",
                f"  cancel      kill -INT {job.job_id}",
            ]
    return lines


def _executor(options: argparse.Namespace) -> Any:
    tasks = options.tasks_per_node or max(1, options.gpus_per_node)
    if options.cluster == "debug":
        if options.rehearse_preempt is not None:
            raise ConfigError("--rehearse-preempt needs --cluster slurm or local; got debug.")
        return submitit.DebugExecutor(folder=f"{options.jobs}/%j")
    if options.cluster == "local":
        if options.nodes > 1:
            raise ConfigError(
                f"--cluster local has one node; got --nodes {options.nodes}. "
                "Use --tasks-per-node, or --cluster slurm."
            )
        local = submitit.LocalExecutor(folder=f"{options.jobs}/%j")
        local.update_parameters(
            timeout_min=options.time,
            signal_delay_s=options.signal_delay,
            tasks_per_node=tasks,
            gpus_per_node=options.gpus_per_node,
        )
        return local
    slurm = submitit.SlurmExecutor(folder=f"{options.jobs}/%j")
    slurm.update_parameters(
        job_name=f"xdec-{options.verb}",
        time=options.time,
        nodes=options.nodes,
        ntasks_per_node=tasks,
        gpus_per_node=options.gpus_per_node or None,
        cpus_per_task=options.cpus_per_task,
        signal_delay_s=options.signal_delay,
        stderr_to_stdout=True,
        array_parallelism=options.max_parallel,
        additional_parameters={"requeue": True, **_sbatch_options(options.sbatch)},
        setup=_setup_lines(),
        teardown=[f"xdec_leave {options.verb} $?"],
        # as in env.sh: a rank that leaves a moment after the first 75 must not be killed
        srun_args=["--kill-on-bad-exit=0", f"--wait={os.environ.get('XDEC_RANK_GRACE', '60')}"],
    )
    return slurm


def _setup_lines() -> list[str]:
    """The shell around the tasks, which is that of the batch scripts."""
    return [
        f"export XDEC_HOME={shlex.quote(str(REPOSITORY))}",
        # SLURM also tells this shell that the job ends; it must outlive the ranks
        "trap ':' TERM",
        'source "$XDEC_HOME/slurm/env.sh"',
        "xdec_set_master",
        "xdec_set_limits",
    ]


def _sbatch_options(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    bad = [word for word, (key, _, value) in zip(words, pairs, strict=True) if not (key and value)]
    if bad:
        raise ConfigError(f"--sbatch: must be KEY=VALUE; got {', '.join(bad)}.")
    return {key.lstrip("-"): value for key, _, value in pairs}


def _rehearse(is_slurm: bool, job: submitit.Job[str], run: Run, after_seconds: float) -> int:
    return rehearse(
        run.folder,
        after_seconds=after_seconds,
        # a local job is named by its controller, which passes TERM on to its tasks
        send_signal=lambda: (
            signal_slurm_job(job.job_id) if is_slurm else os.kill(int(job.job_id), signal.SIGTERM)
        ),
        hurry=lambda: start_slurm_job_now(job.job_id) if is_slurm else None,
    )


def _wait(jobs: Sequence[submitit.Job[str]]) -> int:
    """0 if every run finished; a failed one is named."""
    code = int(ExitCode.FINISHED)
    for job in jobs:
        error = job.exception()
        # a job of several tasks has a result of each
        outcome = job.results()[0] if error is None else error
        print(f"job {job.job_id}: {outcome}", flush=True)
        code = code if error is None else 1
    return code


if __name__ == "__main__":
    sys.exit(main())
