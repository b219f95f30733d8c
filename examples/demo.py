"""The whole line on the embedded scenes: data, training, a kill, resume, evaluation, pictures.

    python examples/demo.py --output-dir runs/demo

Training is killed with SIGKILL at a random step and started again with the same command. The steps
between the last checkpoint and the kill are then computed twice; their losses must be equal to the
last bit, or this program fails. A run that is there already is moved aside.
"""

import argparse
import contextlib
import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil

PYTHON = sys.executable


def main() -> int:
    arguments = parse_arguments()
    run = arguments.output_dir
    started = time.monotonic()
    if run.exists():
        run.rename(run.with_name(f"{run.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
    scenes, shards = run / "data" / "scenes", run / "data" / "shards"
    prepare(arguments, scenes, shards)
    resume = train_with_a_kill(arguments, run, shards)
    call("pipelines.evaluate", "--checkpoint", run, "--root", scenes, "--split", "val",
         "--zero-shot-split", "zeroshot", "--out", run)  # fmt: skip
    facts = {**resume, "wall_seconds": round(time.monotonic() - started, 1)}
    add_to_report(run / "report.json", facts)
    call("pipelines.report", run)
    print(f"\n{facts}\nreport: {run / 'report.html'}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--num-train", type=int, default=4000, help="training scenes")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="ranks")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of training")
    parser.add_argument("--set", action="append", default=[], help="passed on to pretraining")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace, scenes: Path, shards: Path) -> None:
    call("pipelines.prepare", "scenes", "--out", scenes, "--num-train", arguments.num_train,
         "--num-val", 200, "--num-zeroshot", 100, "--seed", arguments.seed)  # fmt: skip
    call("pipelines.prepare", "coco", "--root", scenes, "--split", "train", "--out", shards)


def train_with_a_kill(arguments: argparse.Namespace, run: Path, shards: Path) -> dict[str, object]:
    command = [
        *launcher(arguments.processes), "-m", "pipelines.pretrain", "--recipe", "scenes",
        "--shards", str(shards), "--output-dir", str(run), "--resume", "auto",
        "--seed", str(arguments.seed), "--set", f"steps={arguments.steps}",
    ]  # fmt: skip
    command += [word for pair in arguments.set for word in ("--set", pair)]
    kill_at = int(random.SystemRandom().uniform(0.2, 0.8) * arguments.steps)
    killed_at = kill_after(command, run, kill_at)
    before = losses(run / "metrics.jsonl")
    print(f"\ndemo: killed at step {killed_at}; the same command goes on\n", flush=True)
    subprocess.run(command, check=True)
    after = losses(run / "metrics.jsonl")
    resumed_at = events(run, "resume")[-1]["step"]
    replayed = [step for step in before if step > resumed_at]
    different = [step for step in replayed if before[step] != after.get(step)]
    if different or sorted(after) != list(range(1, arguments.steps + 1)):
        raise SystemExit(
            "demo: the resumed run must have every step once, and the steps between checkpoint "
            f"and kill bit for bit as before; these differ: {different}."
        )
    return {
        "killed_at_step": killed_at,
        "resumed_at_step": resumed_at,
        "replayed_steps": len(replayed),
        "replayed_steps_identical": not different,
    }


def launcher(processes: int) -> list[str]:
    if processes == 1:
        return [PYTHON]
    return [PYTHON, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def kill_after(command: list[str], run: Path, step: int) -> int:
    """Start training and kill all of it, once a checkpoint exists and the step is logged."""
    print("$", shlex.join(command), flush=True)
    process = subprocess.Popen(command)
    while process.poll() is None:
        reached = max(losses(run / "metrics.jsonl"), default=0)
        if reached >= step and events(run, "checkpoint"):
            kill_tree(process)
            return max(losses(run / "metrics.jsonl"))
        time.sleep(0.1)
    raise SystemExit(f"demo: training ended with code {process.returncode} before it was killed.")


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL for the launcher and its ranks, which live in sessions of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family)
    process.wait()


def losses(metrics: Path) -> dict[int, float]:
    # a step that was left out has no loss
    return {row["step"]: row["loss"] for row in read_rows(metrics) if "loss" in row}


def events(run: Path, name: str) -> list[dict]:
    return [row for row in read_rows(run / "events.jsonl") if row["event"] == name]


def read_rows(path: Path) -> list[dict]:
    """The complete lines of a file that somebody may be writing."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def add_to_report(path: Path, facts: dict[str, object]) -> None:
    report = json.loads(path.read_text()) | facts
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    temporary.replace(path)


def call(module: str, *words: object) -> None:
    command = [PYTHON, "-m", module, *map(str, words)]
    print("$", shlex.join(command))
    subprocess.run(command, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
