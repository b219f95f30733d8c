"""`python -m pipelines.evaluate`: every metric of a run on a data set, as report.json and a table.

    python -m pipelines.evaluate --checkpoint runs/demo --root scenes --split val \\
        --zero-shot-split zeroshot --out runs/demo
    torchrun --nproc-per-node 2 -m pipelines.evaluate --checkpoint runs/demo --suite zeroshot \\
        --data-root data
    python -m pipelines.evaluate --predictions results.json --ground-truth instances_val2017.json \\
        --metric instance --json scores.json
"""

import argparse
import dataclasses
import functools
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.cli import main_of
from pipelines.config import ParallelConfig
from pipelines.engine.distributed import Group, read_place
from pipelines.engine.machine import choose_device
from pipelines.errors import ConfigError, ExitCode
from pipelines.evaluation.files.command import HELP, add_file_options, is_about_files, score
from pipelines.evaluation.loading import Loaded, load_evaluated
from pipelines.evaluation.options import AS_RELEASED, EvaluationOptions
from pipelines.evaluation.provenance import checkpoint_facts
from pipelines.evaluation.run import STAGES
from pipelines.evaluation.sets import SETS, SUITES, chosen_sets, coco_data
from pipelines.evaluation.suite import RESULTS_NAME, Evaluated, Job, run_jobs
from pipelines.evaluation.table import rich_table
from xdecoder.openseed.model import OpenSeeD

_log = logging.getLogger(__name__)
# on the split with pairs that training never shows
_ZERO_SHOT_STAGES = ("segmentation", "referring", "retrieval", "naming")
_DATA_KEYS = (
    "root", "split", "data_set", "protocols", "versions", "ground_truth", "details", "images",
    "unit", "checkpoint", "config_sha256", "is_averaged", "fingerprint",
)  # fmt: skip


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
    _add_model_options(parser)
    _add_set_options(parser)
    add_file_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no table")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("evaluate a model")
    model.add_argument("--checkpoint", type=Path, help="run, checkpoint or converted folder")
    model.add_argument("--out", type=Path, help="folder for report.json; default: the checkpoint")
    model.add_argument("--stages", nargs="+", choices=STAGES, help="default: all that fit")
    model.add_argument("--max-images", type=int, help="of each split; default: all")
    model.add_argument("--batch-size", type=int, help="images together; default: 8")
    model.add_argument("--size", type=size_hw_of, metavar="HxW", help="default: as in training")
    model.add_argument("--object-threshold", type=float, help="of panoptic segments: 0.4 or 0.8")
    model.add_argument(
        "--vocabulary",
        choices=("with-background", "without-background"),
        help="whether nothing is a text of its own, or the last class; default: its own",
    )
    model.add_argument(
        "--as-released", action="store_true", help="ask and count as the released program does"
    )
    model.add_argument("--without-controls", action="store_true", help="skip exchanged texts")
    model.add_argument("--without-ema", action="store_true", help="weights, not their average")
    model.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add_set_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("on which data: one's own folder, or named sets")
    data.add_argument("--root", type=Path, help="COCO-format folder; default: the run's own")
    data.add_argument("--split", help="default: the run's own, else val")
    data.add_argument("--zero-shot-split", help="split that shows pairs training never does")
    data.add_argument("--suite", choices=list(SUITES), help="several named sets")
    data.add_argument(
        "--dataset", nargs="+", default=[], metavar="SET", help="names, or places in the suite"
    )
    data.add_argument("--data-root", type=Path, metavar="DIR", help="where the named sets lie")
    data.add_argument("--list", action="store_true", help="print suites and sets, and leave")


def run(options: argparse.Namespace) -> ExitCode | int:
    """Score files, or evaluate a model, write the report and print the table."""
    if options.list:
        Console().print(_listing(), soft_wrap=True)
        return ExitCode.FINISHED
    if is_about_files(options):
        score(options)
        return ExitCode.FINISHED
    if options.checkpoint is None:
        raise ConfigError(
            "evaluate: needs --checkpoint, or --predictions with --ground-truth and --metric; "
            "got neither."
        )
    place = read_place(os.environ)
    device = choose_device(ParallelConfig(device=options.device), place)
    group = Group(place, is_cuda=device.type == "cuda")
    loaded = load_evaluated(options.checkpoint, ema=not options.without_ema)
    evaluated = Evaluated(
        model=loaded.model.eval().to(device),
        group=group,
        facts={
            "checkpoint": checkpoint_facts(loaded.folder),
            "config_sha256": loaded.config_sha256,
            "is_averaged": not options.without_ema,
        },
        is_quiet=options.quiet,
    )
    has_sets = options.suite or options.dataset
    code = (_run_sets if has_sets else _run_folder)(evaluated, options, loaded)
    group.close()
    return code


def _run_folder(
    evaluated: Evaluated, options: argparse.Namespace, loaded: Loaded
) -> ExitCode | int:
    """One's own folder: the figures of both splits in one flat report."""
    started = time.perf_counter()
    root, split = _data_of(options, loaded)
    settings = _settings_of(options, loaded, {})
    path = _report_path(options)
    splits = [(split, tuple(options.stages or STAGES))]
    if options.zero_shot_split:
        named = [name for name in _ZERO_SHOT_STAGES if name in (options.stages or STAGES)]
        splits.append((options.zero_shot_split, tuple(named)))
    reports = [
        evaluated.run(
            Job(
                name=f"{root.resolve().name}-{name}",
                load=functools.partial(coco_data, root, name),
                options=settings,
                stages=stages,
                folder=path.parent / "eval" / f"{root.resolve().name}-{name}",
            )
        )
        for name, stages in splits
    ]
    report = dict(reports[0])
    for extra in reports[1:]:
        report |= _as_zero_shot(extra)
    report["wall_seconds"] = round(time.perf_counter() - started, 2)
    if evaluated.group.place.is_main:
        write_json(path, report)
        if not options.quiet:
            number = report["details"]["num_images"]
            title = f"{options.checkpoint} on {root} {split}, {number} images, percent"
            Console().print(rich_table(report, title=title))
        _log.info("report: %s", path)
    return ExitCode.FINISHED


def _run_sets(evaluated: Evaluated, options: argparse.Namespace, loaded: Loaded) -> ExitCode | int:
    """Named sets, each on its own; the exit code tells whether one failed."""
    names = chosen_sets(options.suite, options.dataset)
    if options.data_root is None:
        raise ConfigError("evaluate: --suite and --dataset need --data-root DIR; it is missing.")
    out = _report_path(options).parent / "eval"
    jobs = [
        Job(
            name=name,
            load=functools.partial(SETS[name].load, name, options.data_root),
            options=_settings_of(options, loaded, SETS[name].settings),
            stages=tuple(s for s in SETS[name].stages if s in (options.stages or STAGES)),
            folder=out / name,
        )
        for name in names
    ]
    reports, code = run_jobs(evaluated, jobs, out)
    if evaluated.group.place.is_main and not options.quiet:
        for name, report in reports.items():
            failure = report.get("failed")
            shown = f"{name}: failed" if failure else rich_table(report, title=f"{name}, percent")
            Console().print(shown)
    _log.info("results: %s", out / RESULTS_NAME)
    return code


def _listing() -> str:
    suites = [f"{name}: {' '.join(sets)}" for name, sets in SUITES.items()]
    sets = [
        f"{name}: {each.source} {each.split_by} {each.split} in DATA_ROOT/{each.folder}: "
        + ", ".join(each.stages)
        for name, each in SETS.items()
    ]
    return "\n".join(["suites", *suites, "", "sets", *sets])


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


def _as_zero_shot(report: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the zero-shot split: naming as it is, the others under `zero_shot_...`."""
    values = {key: value for key, value in report.items() if key not in _DATA_KEYS}
    prefix = "zero_shot_"
    return {
        **{key if key.startswith(prefix) else prefix + key: v for key, v in values.items()},
        "zero_shot_data": {key: report[key] for key in _DATA_KEYS if key in report},
    }


def _data_of(options: argparse.Namespace, loaded: Loaded) -> tuple[Path, str]:
    root = options.root or (Path(loaded.root) if loaded.root else None)
    if root is None:
        raise ConfigError(
            "evaluate: needs a COCO-format folder; got neither --root nor evaluation.root of the "
            "run. Add --root DIR."
        )
    return root, options.split or loaded.split


def _settings_of(
    options: argparse.Namespace, loaded: Loaded, settings: Mapping[str, Any]
) -> EvaluationOptions:
    """What was asked for, over what the set fixes, over what fits the run."""
    asked = {
        "size_hw": options.size,
        "text_size_hw": options.size,
        "max_images": options.max_images,
        "batch_size": options.batch_size,
        "object_threshold": options.object_threshold,
        "vocabulary": options.vocabulary,
        "java": options.java,
        "refer_protocol": options.protocol,
        "with_controls": False if options.without_controls else None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if options.size:
        given |= {"shorter_px": 0, "longest_px": 0, "is_squashed": False}
    if isinstance(loaded.model, OpenSeeD):
        # those of the sets are thresholds of probabilities, an OpenSeeD has similarities
        settings = {key: value for key, value in settings.items() if key != "object_threshold"}
    released = AS_RELEASED.get(type(loaded.model).__name__, {}) if options.as_released else {}
    return dataclasses.replace(loaded.options, **{**settings, **released, **given})


def _report_path(options: argparse.Namespace) -> Path:
    out: Path = options.out or options.checkpoint
    return out if out.suffix == ".json" else out / "report.json"


if __name__ == "__main__":
    raise SystemExit(main())
