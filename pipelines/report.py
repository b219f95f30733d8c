"""`python -m pipelines.report RUN`: a run as one HTML page, or its table as Markdown.

python -m pipelines.report runs/demo
python -m pipelines.report runs/demo --table
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.cli import main_of
from pipelines.engine.checkpoint import find_checkpoint, load_model
from pipelines.errors import CheckpointError, DataError, ExitCode
from pipelines.evaluation.options import options_of_run
from pipelines.evaluation.panels import make_panels
from pipelines.evaluation.table import markdown_table
from pipelines.report_page import RunFacts, render_page
from pipelines.tracking.jsonl import read_events, read_metrics

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line."""
    return main_of(run, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder with report.json")
    parser.add_argument("--report", type=Path, help="default: RUN/report.json")
    parser.add_argument("--out", type=Path, help="default: RUN/report.html")
    parser.add_argument("--table", action="store_true", help="print Markdown and write nothing")
    parser.add_argument(
        "--num-panels", type=int, default=4, help="best and worst images to draw; 0: none"
    )
    return parser


def run(options: argparse.Namespace) -> ExitCode:
    """Write the page, or print the table."""
    report = _read_report(options.report or options.run / "report.json", is_needed=options.table)
    if options.table:
        print(markdown_table(report))
        return ExitCode.FINISHED
    facts = RunFacts(
        name=options.run.resolve().name,
        report=report,
        metrics=read_metrics(options.run),
        events=read_events(options.run),
        config=_read_json(options.run / "config.resolved.json"),
        environment=_read_json(options.run / "environment.json"),
        panels=_panels(options.run, report, options.num_panels),
    )
    if not (facts.report or facts.metrics):
        raise DataError(
            f"report: {options.run} must hold metrics.jsonl or report.json; neither is there. "
            "Name the folder of a run."
        )
    path: Path = options.out or options.run / "report.html"
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(render_page(facts), encoding="utf-8")
    partial.replace(path)
    _log.info("report: %s", path)
    return ExitCode.FINISHED


def best_and_worst(report: Mapping[str, Any], count: int) -> tuple[list[int], list[int]]:
    """Image ids with the highest and with the lowest quality, no image twice."""
    by_quality = sorted(
        (
            (values["pq"], int(image_id))
            for image_id, values in report.get("images", {}).items()
            if "pq" in values
        ),
        reverse=True,
    )
    ids = [image_id for _, image_id in by_quality]
    best = ids[:count]
    return best, [image_id for image_id in reversed(ids) if image_id not in best][:count]


def _panels(folder: Path, report: Mapping[str, Any], count: int) -> list[tuple[str, Path]]:
    panels = []
    if count > 0 and report.get("images"):
        panels += _evaluated_panels(folder, report, count)
    drawn = sorted((folder / "panels").glob("*.png"))
    if drawn:
        panels.append((f"Predictions during training, {drawn[-1].stem}", drawn[-1]))
    return panels


def _evaluated_panels(
    folder: Path, report: Mapping[str, Any], count: int
) -> list[tuple[str, Path]]:
    """Panels of the best and worst images; none, and a warning, without checkpoint or data."""
    best, worst = best_and_worst(report, count)
    try:
        model, config = load_model(find_checkpoint(Path(report["checkpoint"]["folder"])))
        panels = []
        for name, title, ids in (
            ("best", "The best images by panoptic quality", best),
            ("worst", "The worst images by panoptic quality", worst),
        ):
            headings = {i: f"{i}    PQ {report['images'][str(i)]['pq']:.1f}" for i in ids}
            path = folder / "eval" / f"panels_{name}.png"
            if ids:
                make_panels(
                    model,
                    Path(report["root"]),
                    report["split"],
                    ids,
                    path,
                    options=options_of_run(config),
                    headings=headings,
                )
                panels.append((title, path))
    except (CheckpointError, DataError) as error:
        _log.warning("report: no panels of evaluated images: %s", error)
        return []
    return panels


def _read_report(path: Path, *, is_needed: bool) -> dict[str, Any]:
    if is_needed and not path.is_file():
        raise DataError(
            f"report: {path} must be there; it is not. Make it with "
            f"`python -m pipelines.evaluate --checkpoint {path.parent} --out {path.parent}`."
        )
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise DataError(f"{path}: must be JSON; got {error}.") from error


if __name__ == "__main__":
    raise SystemExit(main())
