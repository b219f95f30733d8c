"""The command line of a submission."""

import argparse
import re
import shutil

VERBS = ("pretrain", "finetune")
_EXAMPLES = """
Every word that is not named above goes to the verb.

examples:
  python -m pipelines.submit pretrain --nodes 4 --time 2-00:00:00 --recipe scenes
  python -m pipelines.submit pretrain --sweep optimizer.learning_rate=1e-4,3e-4 --recipe scenes
  python -m pipelines.submit pretrain --cluster local --tasks-per-node 2 --gpus-per-node 0
  python -m pipelines.submit pretrain --rehearse-preempt 60 --recipe scenes
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of a submission; the words of the verb are not among them."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.submit",
        description="Run a verb as a job that saves and comes back when the cluster interrupts it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm" if shutil.which("srun") else "local",
        help="default: slurm where srun is, else local",
    )
    parser.add_argument(
        "--jobs", default="runs/jobs", metavar="DIR", help="logs; default: %(default)s"
    )
    _add_size(parser)
    _add_sweep(parser)
    after = parser.add_argument_group("afterwards")
    after.add_argument("--wait", action="store_true", help="return when all runs are over")
    after.add_argument(
        "--rehearse-preempt",
        type=float,
        metavar="S",
        help="signal the first run S seconds after its start, and see that it goes on",
    )
    return parser


def minutes_of(text: str) -> int:
    """Minutes of a time as SLURM writes it: MINUTES, HH:MM:SS, D-HH:MM:SS; seconds round up."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d+):(\d+))|(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"must be minutes or [D-]HH:MM:SS, as 2-00:00:00; got {text!r}"
        )
    days, hours, minutes, seconds, alone = (int(part or 0) for part in match.groups())
    return alone or days * 24 * 60 + hours * 60 + minutes + (seconds > 0)


def _add_size(parser: argparse.ArgumentParser) -> None:
    size = parser.add_argument_group("what the job gets")
    size.add_argument("--nodes", type=int, default=1)
    size.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="0 = CPU")
    size.add_argument("--tasks-per-node", type=int, metavar="N", help="default: one per GPU")
    size.add_argument("--cpus-per-task", type=int, default=8, metavar="N")
    size.add_argument("--time", type=minutes_of, default=24 * 60, metavar="[D-]HH:MM:SS")
    size.add_argument(
        "--signal-delay", type=int, default=180, metavar="S", help="of USR2 before the time limit"
    )
    size.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other option of sbatch, for example account=mine; repeatable",
    )


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    many = parser.add_argument_group("many runs")
    many.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="PATH=A,B",
        help="a run for every value, in a folder of its own; several give every combination",
    )
    many.add_argument("--max-parallel", type=int, default=256, metavar="N", help="runs at a time")
