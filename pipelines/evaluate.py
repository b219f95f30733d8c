"""`python -m pipelines.evaluate`: every metric of a run on a data set, as report.json and a table.

    python -m pipelines.evaluate --checkpoint runs/demo --root scenes --split val \\
        --zero-shot-split zeroshot --out runs/demo
"""

import argparse
import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.cli import main_of
from pipelines.config import RunConfig
from pipelines.engine.checkpoint import find_checkpoint, load_model
from pipelines.errors import ConfigError, ExitCode
from pipelines.evaluation.files.command import HELP, add_file_options, is_about_files, score
from pipelines.evaluation.options import EvaluationOptions, options_of_run
from pipelines.evaluation.provenance import checkpoint_facts, config_hash
from pipelines.evaluation.run import STAGES, evaluate
from pipelines.evaluation.table import rich_table
from pipelines.families import TrainedModel

_log = logging.getLogger(__name__)
# on the split with pairs that training never shows
_ZERO_SHOT_STAGES = ("segmentation", "referring", "retrieval", "naming")
_DATA_KEYS = ("root", "split", "protocols", "versions", "ground_truth", "details", "images", "unit")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line."""
    return main_of(run, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.evaluate",
        description=__doc__,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_file_options(parser)
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint folder")
    parser.add_argument("--root", type=Path, help="COCO-format folder; default: the run's own")
    parser.add_argument("--split", help="default: the run's own, else val")
    parser.add_argument("--zero-shot-split", help="split that shows pairs training never does")
    parser.add_argument("--out", type=Path, help="folder for report.json; default: the checkpoint")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--max-images", type=int, help="of each split; default: all")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=size_hw_of, metavar="HxW", help="default: as in training")
    parser.add_argument("--object-threshold", type=float, help="of panoptic segments")
    parser.add_argument("--without-controls", action="store_true", help="skip exchanged texts")
    parser.add_argument("--without-ema", action="store_true", help="weights, not their average")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no table")
    return parser


def run(options: argparse.Namespace) -> ExitCode:
    """Evaluate, write the report, print the table."""
    if is_about_files(options):
        score(options)
        return ExitCode.FINISHED
    started = time.perf_counter()
    folder = find_checkpoint(options.checkpoint)
    model, config = load_model(folder, ema=not options.without_ema)
    root, split = _data_of(options, config)
    settings = _settings_of(options, config)
    report = evaluate(
        model, root, split, options=settings, stages=options.stages, is_quiet=options.quiet
    )
    if options.zero_shot_split:
        report |= _zero_shot(model, root, options, settings)
    report["checkpoint"] = checkpoint_facts(folder)
    report["config_sha256"] = config_hash(config)
    report["wall_seconds"] = round(time.perf_counter() - started, 2)
    path = _report_path(options)
    write_json(path, report)
    if not options.quiet:
        count = report["details"]["num_images"]
        title = f"{options.checkpoint} on {root} {split}, {count} images, percent"
        Console().print(rich_table(report, title=title))
    _log.info("report: %s", path)
    return ExitCode.FINISHED


def size_hw_of(text: str) -> tuple[int, int]:
    """Height and width from HEIGHTxWIDTH, for argparse."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, as in 96x128; got {text!r}")
    return int(height), int(width)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file in one instant."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def _zero_shot(
    model: TrainedModel, root: Path, options: argparse.Namespace, settings: EvaluationOptions
) -> dict[str, Any]:
    """The metrics of the zero-shot split: naming as it is, the others under `zero_shot_...`."""
    stages = [name for name in _ZERO_SHOT_STAGES if name in options.stages]
    report = evaluate(
        model,
        root,
        options.zero_shot_split,
        options=settings,
        stages=stages,
        is_quiet=options.quiet,
    )
    values = {key: value for key, value in report.items() if key not in _DATA_KEYS}
    prefix = "zero_shot_"
    return {
        **{key if key.startswith(prefix) else prefix + key: v for key, v in values.items()},
        "zero_shot_data": {key: report[key] for key in _DATA_KEYS if key in report},
    }


def _data_of(options: argparse.Namespace, config: RunConfig) -> tuple[Path, str]:
    root = options.root or (Path(config.evaluation.root) if config.evaluation.root else None)
    if root is None:
        raise ConfigError(
            "evaluate: needs a COCO-format folder; got neither --root nor evaluation.root of the "
            "run. Add --root DIR."
        )
    return root, options.split or config.evaluation.split


def _settings_of(options: argparse.Namespace, config: RunConfig) -> EvaluationOptions:
    asked = {
        "size_hw": options.size,
        "text_size_hw": options.size,
        "max_images": options.max_images,
        "batch_size": options.batch_size,
        "object_threshold": options.object_threshold,
        "with_controls": not options.without_controls,
        "java": options.java,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return dataclasses.replace(options_of_run(config), **given)


def _report_path(options: argparse.Namespace) -> Path:
    out: Path = options.out or options.checkpoint
    return out if out.suffix == ".json" else out / "report.json"


if __name__ == "__main__":
    raise SystemExit(main())
