"""`python -m pipelines.report RUN`: a run as one HTML page, as tables, or live in the terminal.

python -m pipelines.report runs/demo
python -m pipelines.report runs/demo --table
python -m pipelines.report runs/demo --follow
python -m pipelines.report runs/large --table --format latex --against focall-last
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.cli import main_of
from pipelines.errors import CheckpointError, DataError, ExitCode
from pipelines.evaluation.loading import load_evaluated
from pipelines.evaluation.panels import make_panels
from pipelines.evaluation.published import (
    PUBLISHED,
    compare,
    comparison_latex,
    comparison_markdown,
)
from pipelines.evaluation.sets import SETS, data_of_report
from pipelines.evaluation.suite import RESULTS_NAME, read_results
from pipelines.evaluation.table import markdown_table
from pipelines.follow import follow
from pipelines.report_page import RunFacts, render_page
from pipelines.tracking.jsonl import read_events, read_metrics

_log = logging.getLogger(__name__)
# figures of single images that tell good from bad, the first that there is counts
_QUALITIES = {"pq": "panoptic quality", "refer_iou": "IoU of phrases", "cider": "CIDEr"}


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
    parser.add_argument("--table", action="store_true", help="print tables and write nothing")
    parser.add_argument("--format", choices=("markdown", "latex"), default="markdown")
    parser.add_argument(
        "--against",
        choices=list(PUBLISHED),
        default="focalt-last",
        help="the published model beside ours; default: %(default)s",
    )
    parser.add_argument("--follow", action="store_true", help="show the run while it goes on")
    parser.add_argument("--once", action="store_true", help="with --follow: one frame, then leave")
    parser.add_argument(
        "--num-panels", type=int, default=4, help="best and worst images to draw; 0: none"
    )
    return parser


def run(options: argparse.Namespace) -> ExitCode:
    """Write the page, print the table, or follow the run."""
    if options.follow:
        follow(options.run, Console(), is_once=options.once)
        return ExitCode.FINISHED
    results = read_results(options.run / "eval" / RESULTS_NAME)
    is_needed = options.table and not results
    report = _read_report(options.report or options.run / "report.json", is_needed=is_needed)
    if options.table:
        print(_tables(report, results, options))
        return ExitCode.FINISHED
    facts = RunFacts(
        name=options.run.resolve().name,
        report=report,
        results=results,
        against=options.against,
        metrics=read_metrics(options.run),
        events=read_events(options.run),
        config=_read_json(options.run / "config.resolved.json"),
        environment=_read_json(options.run / "environment.json"),
        panels=_panels(options.run, report, options.num_panels),
    )
    if not (facts.report or facts.metrics or facts.results):
        raise DataError(
            f"report: {options.run} must hold metrics.jsonl, report.json or eval/{RESULTS_NAME}; "
            "none is there. Name the folder of a run."
        )
    path: Path = options.out or options.run / "report.html"
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(render_page(facts), encoding="utf-8")
    partial.replace(path)
    _log.info("report: %s", path)
    return ExitCode.FINISHED


def _tables(
    report: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    options: argparse.Namespace,
) -> str:
    """The run's own figures beside their controls, then those of named sets beside published ones.

    LaTeX has the comparison only.
    """
    rows = compare(results, options.against) if results else []
    if options.format == "latex":
        if not rows:
            raise DataError(
                f"report: --format latex compares named data sets; {options.run} has none. Run "
                "`python -m pipelines.evaluate --suite ...` first."
            )
        return comparison_latex(rows, options.against)
    parts = [markdown_table(report)] if report else []
    parts += [comparison_markdown(rows, options.against)] if rows else []
    for name, found in results.items():
        content = found.get("failed") or markdown_table(found)
        parts.append(f"{name}: {_protocol_of(found)}\n\n{content}")
    return "\n\n".join(parts)


def _protocol_of(report: Mapping[str, Any]) -> str:
    """The protocols of the figures that a report has."""
    families = {"pq": "pq", "ap": "ap", "box_ap": "box_ap", "miou": "miou", "refer_ciou": "refer",
                "cider": "captioning", "retrieval_r1": "retrieval"}  # fmt: skip
    protocols = report.get("protocols", {})
    found = [protocols.get(name) for key, name in families.items() if key in report]
    return ", ".join(protocol for protocol in found if protocol)


def best_and_worst(
    report: Mapping[str, Any], count: int, *, key: str = "pq"
) -> tuple[list[int], list[int]]:
    """Image ids with the highest and with the lowest value of a key, no image twice."""
    by_quality = sorted(
        (
            (values[key], int(image_id))
            for image_id, values in report.get("images", {}).items()
            if key in values
        ),
        reverse=True,
    )
    ids = [image_id for _, image_id in by_quality]
    best = ids[:count]
    return best, [image_id for image_id in reversed(ids) if image_id not in best][:count]


def _panels(folder: Path, report: Mapping[str, Any], count: int) -> list[tuple[str, Path]]:
    panels = []
    named = [_read_json(path) for path in sorted((folder / "eval").glob("*/report.json"))]
    # the run's own report is about one of the folders under eval as well
    reports = [report, *(each for each in named if each.get("data_set") in SETS)]
    for each in reports if count > 0 else []:
        if each.get("images"):
            panels += _evaluated_panels(folder, each, count)
    drawn = sorted((folder / "panels").glob("*.png"))
    if drawn:
        panels.append((f"Predictions during training, {drawn[-1].stem}", drawn[-1]))
    return panels


def _evaluated_panels(
    folder: Path, report: Mapping[str, Any], count: int
) -> list[tuple[str, Path]]:
    """Panels of the best and worst images; none, and a warning, without checkpoint or data."""
    values = list(report["images"].values())
    key = next((key for key in _QUALITIES if any(key in row for row in values)), "")
    if not key:
        return []
    best, worst = best_and_worst(report, count, key=key)
    name = report.get("data_set", "")
    try:
        loaded = load_evaluated(
            Path(report["checkpoint"]["folder"]), ema=report.get("is_averaged", True)
        )
        data = data_of_report(report)
        panels = []
        for kind, ids in (("best", best), ("worst", worst)):
            headings = {
                i: f"{i}    {_QUALITIES[key]} {report['images'][str(i)][key]:.1f}" for i in ids
            }
            path = folder / "eval" / f"panels_{name}_{kind}.png"
            if ids:
                make_panels(
                    loaded.model, data, ids, path, options=loaded.options, headings=headings
                )
                panels.append((f"The {kind} images of {name} by {_QUALITIES[key]}", path))
    except (CheckpointError, DataError) as error:
        _log.warning("report: no panels of evaluated images of %s: %s", name, error)
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
