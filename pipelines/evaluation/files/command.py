"""The part of `python -m pipelines.evaluate` that scores files: options, report, short table."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.engine.checkpoint_files import write_text_atomically
from pipelines.errors import ConfigError
from pipelines.evaluation.captions import JAVA_CHOICES
from pipelines.evaluation.files.score import FORMATS, METRICS, FileOptions, score_files
from pipelines.evaluation.files.semantic import DEFAULT_IGNORE
from pipelines.evaluation.protocols import REFER_PER_SENTENCE, REFER_PROTOCOLS

_log = logging.getLogger(__name__)
_MOST_SHOWN = 16
HELP = f"files that --predictions and --ground-truth may name, by metric:\n\n{FORMATS}"


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that score anyone's prediction files."""
    files = parser.add_argument_group(
        "score files, without a model", "all four; formats with examples are below"
    )
    files.add_argument("--predictions", type=Path, metavar="FILE", help="or folder of label PNGs")
    files.add_argument("--ground-truth", type=Path, metavar="FILE", help="or folder of label PNGs")
    files.add_argument("--metric", choices=METRICS)
    files.add_argument("--json", type=Path, metavar="OUT", help="the report; default: print only")
    rules = parser.add_argument_group("how files are scored")
    rules.add_argument("--predictions-folder", type=Path, metavar="DIR", help="of panoptic PNGs")
    rules.add_argument("--ground-truth-folder", type=Path, metavar="DIR", help="of panoptic PNGs")
    rules.add_argument(
        "--ignore", type=int, nargs="+", default=list(DEFAULT_IGNORE), help="labels; default: 255"
    )
    rules.add_argument("--num-classes", type=int, help="of semantic labels")
    rules.add_argument("--texts-per-image", type=int, help="of retrieval; default: all")
    rules.add_argument(
        "--protocol",
        choices=list(REFER_PROTOCOLS),
        help=f"of referring, for files and models; default: {REFER_PER_SENTENCE}",
    )
    rules.add_argument(
        "--java",
        choices=JAVA_CHOICES,
        help="METEOR and Stanford's tokenizer; default: auto for files, never for a model",
    )


def is_about_files(options: argparse.Namespace) -> bool:
    """Whether the command line asks to score files."""
    return any((options.predictions, options.ground_truth, options.metric))


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Score the files, write the report, print the figures.

    Raises:
        ConfigError: one of the three needed options is missing.
        DataError: a file is missing or damaged, or predictions and truth do not fit together.
    """
    needed = {
        "--predictions": options.predictions,
        "--ground-truth": options.ground_truth,
        "--metric": options.metric,
    }
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise ConfigError(
            f"evaluate: scoring files needs {', '.join(needed)}; {', '.join(missing)} is missing."
        )
    report = score_files(
        options.metric,
        predictions=options.predictions,
        truth=options.ground_truth,
        options=FileOptions(
            predictions_folder=options.predictions_folder,
            truth_folder=options.ground_truth_folder,
            ignore=tuple(options.ignore),
            num_classes=options.num_classes,
            split=options.split,
            protocol=options.protocol or REFER_PER_SENTENCE,
            java=options.java or "auto",
            texts_per_image=options.texts_per_image,
        ),
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(options.json, json.dumps(report, indent=1, allow_nan=False) + "\n")
    if not options.quiet:
        Console().print(f"{report['metric']}: {report['protocol']}", soft_wrap=True)
        Console().print(_table(report))
        for kind, text in [*report["skipped"].items(), *(("note", n) for n in report["notes"])]:
            _log.info("%s: %s", kind, text)
    return report


def _table(report: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("figure")
    table.add_column("value", justify="right")
    names = list(report)[1 : list(report).index("unit")]
    for name in names[:_MOST_SHOWN]:
        value = report[name]
        table.add_row(name, "–" if value is None else f"{value:.6f}")
    return table
