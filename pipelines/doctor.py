"""`python -m pipelines.doctor`: what this machine has for a run, and a proof of exact resume."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines import prepare
from pipelines.cli import main_of
from pipelines.config import RunConfig
from pipelines.engine.machine_checks import Check, check_machine
from pipelines.engine.resume_proof import Comparison, Row, fork, prove_resume, wait
from pipelines.errors import ConfigError, ExitCode
from pipelines.overrides import override
from pipelines.recipes import RECIPES

_EXAMPLES = """
examples:
  python -m pipelines.doctor --output-dir runs --shards data/scenes/shards
  python -m pipelines.doctor --prove-resume
  python -m pipelines.doctor --prove-resume --steps 40 --kill-at 17 --ranks 4

exit codes: 0 nothing is wrong, 1 something is, and the table says what to do
"""
_WRONG = 1
_MARKS = {"good": "[green]good[/]", "note": "[yellow]note[/]", "bad": "[red]BAD[/]"}
# of a hash, enough to tell two apart by eye
_HASH_DIGITS = 12


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if all is well."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.doctor",
        description="Look at what a run needs of this machine; with --prove-resume, train the "
        "embedded scenes in small, kill the run, resume it, and compare every step.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs"), help="where runs go; default: %(default)s"
    )
    parser.add_argument("--shards", type=Path, action="append", default=[], help="repeatable")
    proof = parser.add_argument_group("the proof")
    proof.add_argument("--prove-resume", action="store_true", help="a minute or two")
    proof.add_argument("--steps", type=int, default=20, help="of a run; default: %(default)s")
    proof.add_argument("--kill-at", type=int, default=7, metavar="STEP", help="default: 7")
    proof.add_argument(
        "--ranks", type=int, default=2, help="the other world size, 1 = none; default: 2"
    )
    proof.add_argument("--keep", type=Path, metavar="DIR", help="leave the runs there")
    return main_of(_doctor, parser, argv)


def _doctor(options: argparse.Namespace) -> ExitCode | int:
    console = Console(width=max(100, Console().width))
    if options.prove_resume:
        return _prove(options, console)
    checks = list(check_machine(options.output_dir, options.shards, os.environ))
    console.print(check_table(checks))
    return _WRONG if any(check.state == "bad" for check in checks) else ExitCode.FINISHED


def check_table(checks: Iterable[Check]) -> Table:
    """What was found, one line for each thing, and what to do."""
    table = Table(title="this machine")
    for name in ("what", "is", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for check in checks:
        table.add_row(check.name, _MARKS[check.state], check.found, check.advice)
    return table


def _prove(options: argparse.Namespace, console: Console) -> ExitCode | int:
    if not 3 <= options.kill_at < options.steps:
        raise ConfigError(
            "doctor: --kill-at must be at least 3, the first checkpoint, and below --steps="
            f"{options.steps}; got {options.kill_at}."
        )
    folder = options.keep or Path(tempfile.mkdtemp(prefix="doctor_"))
    try:
        comparisons = prove_resume(
            proof_config(make_shards(folder), num_steps=options.steps),
            folder / "runs",
            kill_at=options.kill_at,
            world_size=options.ranks,
            on_leg=lambda text: console.print(f"... {text}"),
        )
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return tell(comparisons, console)


def make_shards(folder: Path) -> Path:
    """Shards of a few small scenes, made by a fork: this process is to be forked unused."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes, shards, log = folder / "scenes", folder / "shards", folder / "prepare.log"

    def make() -> int:
        numbers = ("--num-train", "16", "--num-val", "1", "--num-zeroshot", "1", "--workers", "1")
        code = prepare.main(["scenes", "--out", str(scenes), "--size", "48x80", *numbers])
        packing = ("--min-shards", "3", "--workers", "1")
        return code or prepare.main(["coco", "--root", str(scenes), "--out", str(shards), *packing])

    wait([fork(make, log)], expected=0, name="the preparation", log=log)
    return shards


def proof_config(shards: Path, *, num_steps: int) -> RunConfig:
    """The embedded recipe with all its tasks, small enough for seconds, on those shards."""
    return override(
        RECIPES["scenes"](),
        (
            *(f"data.segmentation.shards={shards}", f"data.image_text.shards={shards}"),
            *("data.segmentation.batch_size=4", "data.image_text.batch_size=4"),
            *("data.segmentation.size_hw=48,80", "losses.points.num_points=64"),
            *("model.backbone.weights=random", "model.dim=32", "model.decoder.num_layers=2"),
            *("model.pixel_decoder.num_layers=1", "model.text.num_layers=1"),
            *("model.text.num_merges=200", f"steps={num_steps}", "schedule.warmup_steps=2"),
            *("checkpoint.every_steps=3", f"checkpoint.keep_last={num_steps}"),
            *("tracking.log_every=1", "tracking.panels_every=0"),
            *("parallel.device=cpu", "parallel.num_threads=1"),
        ),
    )


def tell(comparisons: Sequence[Comparison], console: Console) -> ExitCode | int:
    """Print the runs side by side; 0 if nothing differs that must not."""
    failures = []
    for comparison in comparisons:
        console.print(comparison_table(comparison))
        failures += [f"{comparison.title}: {text}" for text in comparison.failures()]
    for failure in failures:
        console.print(f"[red]{failure}[/]")
    if failures:
        console.print("The resumed run is not the uninterrupted one.")
        return _WRONG
    console.print("The resumed run is the uninterrupted one.")
    return ExitCode.FINISHED


def comparison_table(comparison: Comparison) -> Table:
    """Keys and losses of every step that both runs took, and hashes of what they ended with."""
    tolerance = comparison.tolerance
    allowed = f"within {tolerance:g}, the order of sums" if tolerance else "to the last bit"
    table = Table(title=f"{comparison.title}: equal {allowed}")
    for name in ("step", "samples", "loss, uninterrupted", "loss, resumed", "difference"):
        table.add_column(name, justify="left" if name == "samples" else "right")
    for row in comparison.rows:
        table.add_row(
            str(row.step),
            _samples(row),
            *(repr(loss) for loss in row.losses),
            f"{row.difference:.1e}" if row.difference else "0",
        )
    for name, (first, second) in comparison.hashes.items():
        is_required = tolerance == 0
        mark = "equal" if first == second else "other" if is_required else "other, as it may be"
        table.add_row("end", f"{name}: {mark}", first[:_HASH_DIGITS], second[:_HASH_DIGITS], "")
    return table


def _samples(row: Row) -> str:
    count = sum(len(keys) for keys in row.keys[0].values())
    return f"{count} equal" if row.has_equal_keys else "[red]OTHER[/]"


if __name__ == "__main__":
    sys.exit(main())
