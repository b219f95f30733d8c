"""The whole line on the embedded scenes: data, shards, training, a kill, resume, evaluation, pictures.

    python examples/demo.py --output-dir runs/demo

Training is killed with SIGKILL at a random step and started again with the same command. The steps
between the last checkpoint and the kill are then computed twice; their losses must be equal to the
last bit, or this program fails.
"""

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

PYTHON = sys.executable


def main() -> int:
    arguments = parse_arguments()
    run = arguments.output_dir
    started = time.monotonic()
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
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="ranks")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of training")
    parser.add_argument("--set", action="append", default=[], help="passed on to pretraining")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace, scenes: Path, shards: Path) -> None:
    if not scenes.is_dir():
        call("pipelines.prepare", "scenes", "--out", scenes, "--num-train", arguments.num_train,
             "--num-val", 200, "--num-zeroshot", 100, "--seed", arguments.seed)  # fmt: skip
    if not shards.is_dir():
        call("pipelines.prepare", "coco", "--root", scenes, "--split", "train", "--out", shards)


def train_with_a_kill(arguments: argparse.Namespace, run: Path, shards: Path) -> dict[str, object]:
    command = launcher(arguments.processes) + [
        "-m", "pipelines.pretrain", "--recipe", "scenes", "--output-dir", str(run),
        "--resume", "auto", "--seed", str(arguments.seed), "--set", f"data.root={shards}",
    ]  # fmt: skip
    command += [word for pair in arguments.set for word in ("--set", pair)]
    metrics = run / "metrics.jsonl"
    fraction = random.SystemRandom().uniform(0.2, 0.7)
    killed_at = kill_after(command, metrics, fraction)
    before = losses(metrics)
    print(f"\nkilled at step {killed_at}; the same command goes on\n")
    subprocess.run(command, check=True)
    after = losses(metrics)
    resumed_at = resumed_step(run / "events.jsonl")
    replayed = [step for step in before if step > resumed_at and step in after]
    different = [step for step in replayed if before[step] != after[step]]
    if different:
        raise SystemExit(f"demo: losses after resuming must be equal bit for bit; got {different}")
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


def kill_after(command: list[str], metrics: Path, fraction: float) -> int:
    """Start training and kill all of it once the given share of its steps is logged."""
    print("$", shlex.join(command))
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        rows = read_rows(metrics)
        if rows and rows[-1]["step"] >= fraction * rows[-1]["num_steps"]:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return rows[-1]["step"]
        time.sleep(0.1)
    raise SystemExit(f"demo: training ended with code {process.returncode} before it was killed.")


def read_rows(metrics: Path) -> list[dict]:
    if not metrics.is_file():
        return []
    complete = metrics.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in complete if line.endswith("\n")]


def losses(metrics: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_rows(metrics)}


def resumed_step(events: Path) -> int:
    rows = [row for row in read_rows(events) if row["event"] == "resume"]
    return rows[-1]["step"]


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
