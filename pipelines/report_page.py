"""A run as one HTML file: no network, no scripts, readable in light and dark."""

import base64
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.charts import Series, line_chart
from pipelines.evaluation.published import PUBLISHED, compare
from pipelines.evaluation.table import present_rows, shown

Rows = Sequence[Mapping[str, Any]]
_CLASS_FIGURES = {"pq": "PQ", "iou": "IoU", "ap": "AP", "box_ap": "Box AP", "sq": "SQ", "rq": "RQ"}
_JPEG_QUALITY = 88
_WIDEST_PX = 2200

_STYLE = """
:root{--paper:#fbfbfa;--card:#fff;--ink:#1d2025;--faint:#6b7280;--line:#e3e5e9;--accent:#2a6fb0;
--bar:#2a6fb0;--tick:#c2410c;--series-0:#2a6fb0;--series-1:#c2410c;--series-2:#2f8f4e;
--series-3:#8b3f96;--series-4:#b08900;--series-5:#3b9aa8;--series-6:#7a7f87;--series-7:#d1568f}
@media (prefers-color-scheme:dark){:root{--paper:#14171c;--card:#1b1f26;--ink:#e8eaee;
--faint:#98a1ae;--line:#2c323c;--accent:#7db7ee;--bar:#5b9bd8;--tick:#f0883e;--series-0:#6aaee8;
--series-1:#f0883e;--series-2:#63c384;--series-3:#cf8bdb;--series-4:#e3c15a;--series-5:#6fcbd8;--series-6:#a9b0ba;--series-7:#f08fb8}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:28px;margin:0 0 2px;letter-spacing:-.01em}
h2{font-size:18px;margin:44px 0 14px;letter-spacing:-.005em}
p.lead{color:var(--faint);margin:0 0 24px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.tile,.card,figure.chart{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:14px 16px}.tile b{display:block;font-size:26px;line-height:1.2;
font-variant-numeric:tabular-nums}
.tile span,.tile small{color:var(--faint);font-size:13px;display:block}
.card{padding:6px 16px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 12px 7px 0;border-bottom:1px solid var(--line);
vertical-align:middle}
tr:last-child td{border-bottom:0}th{color:var(--faint);font-weight:500;font-size:13px}
td.n,th.n{text-align:right}td.g{color:var(--faint)}td.v{font-weight:650}
td.w{overflow-wrap:anywhere}
.meter{position:relative;height:10px;min-width:180px;background:var(--line);border-radius:5px}
.meter i{position:absolute;left:0;top:0;bottom:0;background:var(--bar);border-radius:5px}
.meter u{position:absolute;top:-3px;bottom:-3px;width:3px;margin-left:-1.5px;
background:var(--tick);border-radius:2px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:14px}
figure{margin:0}figure.chart{padding:12px 14px}
figcaption{font-weight:600;font-size:14px;margin-bottom:6px}
figcaption small{color:var(--faint);font-weight:400}
svg{width:100%;height:auto;display:block}svg text{fill:var(--faint);font-size:11.5px}
svg .grid{stroke:var(--line)}svg line.mark{stroke:var(--tick);stroke-dasharray:4 3}
svg text.mark{fill:var(--tick)}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:12.5px;color:var(--faint)}
.legend i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;
vertical-align:middle}
.panel{margin-bottom:18px}.panel img{width:100%;height:auto;border-radius:10px;display:block}
details{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:10px 16px;margin-bottom:10px}
summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;font-size:12.5px;line-height:1.45}
"""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run folder knows about itself; parts that are not there are empty.

    results: reports of named data sets; against: the published model to compare them with.
    """

    name: str
    report: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    against: str
    metrics: Rows
    events: Rows
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    panels: Sequence[tuple[str, Path]]


def render_page(facts: RunFacts) -> str:
    """The whole page as text."""
    sections = [
        _header(facts),
        _metrics(facts.report, "Metrics, percent"),
        _comparison(facts),
        *(_data_set(name, report) for name, report in facts.results.items()),
        _curves(facts.metrics, facts.events),
        _pictures(facts.panels),
        _classes(facts.report, "Classes"),
        _events(facts.events),
        _provenance(facts),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(facts.name)}</title>'
        f"<style>{_STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def rollbacks(events: Rows) -> list[tuple[float, str]]:
    """Steps that a run went back to because its loss jumped; told again by a restart, once."""
    found = [event for event in events if event.get("event") == "rollback"]
    steps = {event["num_rollbacks"]: event["to_step"] for event in found}
    return [(float(step), f"rollback {number}") for number, step in steps.items()]


def restarts(metrics: Rows) -> list[tuple[float, str]]:
    """Steps at which rows of another start of the run begin, with a name."""
    marks = []
    for before, after in itertools.pairwise(metrics):
        if after.get("restart", 0) != before.get("restart", 0):
            marks.append((float(after["step"]), f"restart {after['restart']}"))
    return marks


def _header(facts: RunFacts) -> str:
    report, last = facts.report, facts.metrics[-1] if facts.metrics else {}
    details = report.get("details", {})
    words = []
    if last:
        words.append(f"step {last['step']} of {facts.config.get('steps', '?')}")
    if report:
        words.append(
            f"{details.get('num_images', '?')} images of {report.get('root')} {report.get('split')}"
        )
    if facts.environment:
        words.append(f"torch {facts.environment.get('torch')}, {facts.environment.get('device')}")
    tiles = "".join(
        _tile(label, shown(report, key), control and f"control {shown(report, control)}")
        for label, key, control in (
            ("PQ", "pq", ""),
            ("PQ things", "pq_things", ""),
            ("PQ stuff", "pq_stuff", ""),
            ("referring cIoU", "refer_ciou", "refer_ciou_shuffled"),
            ("retrieval R@1", "retrieval_r1", "retrieval_r1_shuffled"),
            ("CIDEr", "cider", "cider_shuffled"),
            ("zero-shot names", "zero_shot_top1", "zero_shot_top1_shuffled"),
        )
        if key in report
    )
    lead = escape(" · ".join(words))
    return (
        f'<h1>{escape(facts.name)}</h1><p class="lead">{lead}</p><div class="tiles">{tiles}</div>'
    )


def _tile(label: str, value: str, note: str) -> str:
    return f"<div class=tile><span>{escape(label)}</span><b>{value}</b><small>{note}</small></div>"


def _comparison(facts: RunFacts) -> str:
    """Ours, published, difference, in the paper's order."""
    rows = compare(facts.results, facts.against) if facts.results else []
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{escape(row.heading)}</td>"
        + "".join(
            f"<td class='n{' v' if place == 0 else ''}'>"
            f"{'–' if value is None else format(value, '+.1f' if place == 2 else '.1f')}</td>"
            for place, value in enumerate((row.ours, row.published, row.difference))
        )
        + f"<td>{_meter(row.ours, row.published)}</td></tr>"
        for row in rows
    )
    model = PUBLISHED[facts.against]
    head = (
        f"<tr><th></th><th class=n>ours</th><th class=n>{escape(facts.against)}</th>"
        "<th class=n>difference</th><th>0 – 100, orange: published</th></tr>"
    )
    note = escape("; ".join(text for text in (model.source, model.protocol_note) if text))
    return (
        f"<h2>Beside published figures</h2><div class=card><table>{head}{lines}</table></div>"
        f"<p class=lead>{escape(facts.against)}: {note}</p>"
    )


def _data_set(name: str, report: Mapping[str, Any]) -> str:
    """The figures of one named data set, or why there are none."""
    if "failed" in report:
        reason = escape(report["failed"])
        return f"<h2>{escape(name)}</h2><div class=card><p>failed: {reason}</p></div>"
    return _metrics(report, f"{name}, percent") + _classes(report, f"Classes of {name}")


def _metrics(report: Mapping[str, Any], title: str) -> str:
    rows = present_rows(report)
    if not rows:
        return ""
    lines, previous = [], ""
    for row in rows:
        control = shown(report, row.control_key) if row.control else ""
        group = row.group if row.group != previous else ""
        lines.append(
            f"<tr><td class=g>{group}</td><td>{escape(row.label)}</td>"
            f"<td class='n v'>{shown(report, row.key)}</td><td class=n>{control}</td>"
            f"<td>{_meter(report.get(row.key), report.get(row.control_key))}</td>"
            f"<td class=g>{escape(row.control)}</td></tr>"
        )
        previous = row.group
    head = (
        "<tr><th>task</th><th>metric</th><th class=n>value</th><th class=n>control</th>"
        "<th>0 – 100</th><th>the control (orange) exchanges</th></tr>"
    )
    return f"<h2>{escape(title)}</h2><div class=card><table>{head}{''.join(lines)}</table></div>"


def _meter(value: float | None, control: float | None) -> str:
    if value is None:
        return ""
    width = min(max(value, 0.0), 100.0)
    tick = "" if control is None else f"<u style='left:{min(max(control, 0.0), 100.0):.1f}%'></u>"
    return f"<div class=meter><i style='width:{width:.1f}%'></i>{tick}</div>"


def _curves(metrics: Rows, events: Rows) -> str:
    if not metrics:
        return ""
    marks = restarts(metrics) + rollbacks(events)
    names = sorted({name for row in metrics for name in row})
    tasks = [name for name in names if name.startswith("loss/")]
    charts = [line_chart([_series(metrics, "loss")], title="loss", marks=marks, is_log=True)]
    if len(tasks) > 1:
        series = [_series(metrics, name) for name in tasks]
        charts.append(line_chart(series, title="loss by task", marks=marks, is_log=True))
    for task in tasks:
        prefix = f"{task.removeprefix('loss/')}/"
        series = [_series(metrics, name) for name in names if name.startswith(prefix)]
        title = f"terms of {prefix.rstrip('/')}"
        if series:
            charts.append(line_chart(series, title=title, marks=marks, is_log=True))
    norms = [_series(metrics, name) for name in names if name.startswith("grad_norm/")]
    if norms:
        charts.append(line_chart(norms, title="gradient norm by task", marks=marks, is_log=True))
    for name, title in (
        ("gradient_norm", "gradient norm before clipping"),
        ("learning_rate", "learning rate"),
        ("images_per_second", "images a second"),
    ):
        if name in names:
            charts.append(line_chart([_series(metrics, name)], title=title, marks=marks))
    return f"<h2>Training</h2><div class=charts>{''.join(charts)}</div>"


def _series(metrics: Rows, name: str) -> Series:
    points = [(float(row["step"]), float(row[name])) for row in metrics if name in row]
    return Series(name=name.split("/")[-1], points=points)


def _pictures(panels: Sequence[tuple[str, Path]]) -> str:
    if not panels:
        return ""
    figures = "".join(
        f"<figure class=panel><figcaption>{escape(title)}</figcaption>"
        f'<img alt="{escape(title)}" src="{_embedded(path)}"></figure>'
        for title, path in panels
    )
    return f"<h2>Pictures</h2>{figures}"


def _embedded(path: Path) -> str:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
        picture.thumbnail((_WIDEST_PX, 20 * _WIDEST_PX))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _classes(report: Mapping[str, Any], title: str) -> str:
    per_class = report.get("details", {}).get("per_class", {})
    names = [name for name in _CLASS_FIGURES if any(name in row for row in per_class.values())]
    if not names:
        return ""
    first = names[0]
    ordered = sorted(per_class.items(), key=lambda item: -item[1].get(first, -1.0))
    lines = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f"<td class=n>{shown(row, name)}</td>" for name in names)
        + f"<td>{_meter(row.get(first), None)}</td></tr>"
        for label, row in ordered
    )
    heads = "".join(f"<th class=n>{_CLASS_FIGURES[name]}</th>" for name in names)
    table = f"<table><tr><th>class</th>{heads}<th></th></tr>{lines}</table>"
    return f"<h2>{escape(title)}</h2><div class=card>{table}</div>"


def _events(events: Rows) -> str:
    if not events:
        return ""
    first = float(events[0].get("time", 0.0))
    lines = "".join(
        f"<tr><td class=n>{float(event.get('time', first)) - first:.1f} s</td>"
        f"<td>{escape(str(event.get('event', '')))}</td><td class=n>{event.get('step', '')}</td>"
        f"<td class='g w'>{escape(_rest_of(event))}</td></tr>"
        for event in events
    )
    head = "<tr><th class=n>after</th><th>event</th><th class=n>step</th><th></th></tr>"
    return f"<h2>Events</h2><div class=card><table>{head}{lines}</table></div>"


def _rest_of(event: Mapping[str, Any]) -> str:
    known = ["time", "event", "step", "command"]
    if event.get("event") == "rollback":
        # of every step that was undone; the file of events has them
        known.append("keys")
    return ", ".join(
        f"{key} {value}"
        for key, value in event.items()
        if key not in known and value not in ({}, "")
    )


def _provenance(facts: RunFacts) -> str:
    report = facts.report
    names = ("checkpoint", "config_sha256", "protocols", "versions", "ground_truth", "details")
    origin = {name: report[name] for name in names if name in report}
    parts = (
        ("Protocols, versions and hashes", origin),
        ("Configuration", facts.config),
        ("Environment", facts.environment),
    )
    folds = "".join(
        f"<details><summary>{title}</summary>"
        f"<pre>{escape(json.dumps(value, indent=2))}</pre></details>"
        for title, value in parts
        if value
    )
    return f"<h2>Where the numbers come from</h2>{folds}"
