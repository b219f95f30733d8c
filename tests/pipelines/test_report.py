import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate import main as evaluate
from pipelines.evaluation.published import COLUMNS, PUBLISHED
from pipelines.evaluation.sets import SETS
from pipelines.report import best_and_worst, main
from pipelines.report_page import RunFacts, render_page, restarts, rollbacks

VOID = {"meta", "img", "br", "line", "polyline"}


class Balance(HTMLParser):
    """Fails on a closing tag that closes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def evaluated_run(
    tiny_run: Path, scenes_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "some <run>"
    shutil.copytree(tiny_run, folder)
    words = ["--checkpoint", str(folder), "--root", str(scenes_root), "--max-images", "3"]
    assert evaluate([*words, "--quiet", "--object-threshold", "0", "--stages", "segmentation",
                     "retrieval"]) == 0  # fmt: skip
    return folder


def test_a_page_has_metrics_curves_pictures_and_origin(evaluated_run: Path) -> None:
    assert main([str(evaluated_run), "--num-panels", "1"]) == 0
    page = (evaluated_run / "report.html").read_text()
    assert "some &lt;run&gt;" in page
    assert page.count("<svg") >= 5
    assert page.count("data:image/jpeg;base64,") == 2
    for text in ("restart 1", "loss by task", "captions of other images", "Configuration"):
        assert text in page
    checker = Balance()
    checker.feed(page)
    assert checker.open == []


def test_a_page_loads_nothing_from_elsewhere(evaluated_run: Path) -> None:
    assert main([str(evaluated_run), "--num-panels", "0"]) == 0
    page = (evaluated_run / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "<script" not in page
    assert "prefers-color-scheme:dark" in page


def test_a_run_without_evaluation_has_its_curves(tiny_run: Path, tmp_path: Path) -> None:
    assert main([str(tiny_run), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert "Metrics, percent" not in page


def test_the_table_is_markdown(evaluated_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(evaluated_run), "--table"]) == 0
    assert "| Segmentation | PQ |" in capsys.readouterr().out


FIGURES = {"coco-panoptic": {"pq": 55.04, "ap": 40.0, "miou": None},
           "voc2012": {"failed": "no <folder>"},
           "scenes": {"pq": 80.0, "protocols": {"pq": "coco-panoptic/fit-48x80"},
                      "details": {"per_class": {"a & b": {"iou": 71.5}}}}}  # fmt: skip


@pytest.fixture
def suite_run(tmp_path: Path) -> Path:
    """A folder that has nothing but results of named data sets."""
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "results.json").write_text(json.dumps(FIGURES))
    return tmp_path


def test_ours_stands_beside_published_in_the_papers_order(
    suite_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(suite_run), "--table"]) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("| COCO")]
    assert lines[0] == "| COCO PQ | 55.0 | 50.8 | +4.2 |"
    assert lines[1] == "| COCO AP | 40.0 | 39.5 | +0.5 |"
    assert lines[2] == "| COCO mIoU | – | 62.4 | – |"
    assert text.index("ADE AP") < text.index("COCO PQ") < text.index("RefCOCOg cIoU")
    assert "focalt-last: microsoft/X-Decoder README; RefCOCOg by protocol xdecoder-v2." in text
    assert "scenes: coco-panoptic/fit-48x80" in text
    assert "no <folder>" in text


def test_the_comparison_is_a_latex_table_too(
    suite_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--table", "--format", "latex", "--against", "focall-last"]
    assert main([str(suite_run), *words]) == 0
    text = capsys.readouterr().out
    rows = [line.split("&") for line in text.splitlines() if line.endswith(r" \\")]
    assert len({len(row) for row in rows}) == 1
    assert [row[0].strip() for row in rows] == ["", "ours", "focall-last", "difference"]
    place = next(i for i, cell in enumerate(rows[0]) if cell.strip() == "COCO PQ")
    assert [row[place].strip() for row in rows[1:]] == ["55.0", "56.2", "-1.2"]


def test_a_latex_table_needs_named_sets(
    evaluated_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(evaluated_run), "--table", "--format", "latex"]) == 3
    assert "--format latex compares named data sets" in capsys.readouterr().err


def test_a_page_shows_named_sets_their_classes_and_what_failed(suite_run: Path) -> None:
    assert main([str(suite_run)]) == 0
    page = (suite_run / "report.html").read_text()
    for text in ("Beside published figures", "+4.2", "failed: no &lt;folder&gt;",
                 "Classes of scenes", "a &amp; b", "71.5"):  # fmt: skip
        assert text in page
    checker = Balance()
    checker.feed(page)
    assert checker.open == []


def test_every_published_figure_has_a_column() -> None:
    headings = [column.heading for column in COLUMNS]
    assert len(set(headings)) == len(headings)
    for model in PUBLISHED.values():
        assert set(model.figures) <= set(headings)
    assert {column.data_set for column in COLUMNS} <= set(SETS)


def test_a_missing_report_says_how_to_make_it(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_run), "--table"]) == 3
    assert "python -m pipelines.evaluate --checkpoint" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 3
    assert "must hold metrics.jsonl, report.json or eval/results.json" in capsys.readouterr().err


def test_a_damaged_report_is_named(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text("{")
    assert main([str(tiny_run), "--report", str(tmp_path / "report.json"), "--table"]) == 3
    assert "report.json: must be JSON" in capsys.readouterr().err


def test_lost_data_cost_the_panels_and_not_the_page(evaluated_run: Path, tmp_path: Path) -> None:
    report = json.loads((evaluated_run / "report.json").read_text())
    report["root"] = str(tmp_path / "gone")
    (tmp_path / "report.json").write_text(json.dumps(report))
    words = [str(evaluated_run), "--report", str(tmp_path / "report.json")]
    assert main([*words, "--out", str(tmp_path / "page.html")]) == 0
    assert "data:image" not in (tmp_path / "page.html").read_text()


def test_no_image_is_best_and_worst() -> None:
    images = {str(key): {"pq": float(key)} for key in range(5)} | {"9": {"cider": 1.0}}
    assert best_and_worst({"images": images}, 3) == ([4, 3, 2], [0, 1])


def test_restarts_are_where_the_start_changes() -> None:
    rows = [{"step": step, "restart": step // 3} for step in range(1, 8)]
    assert restarts(rows) == [(3.0, "restart 1"), (6.0, "restart 2")]


def facts_of(*, metrics: list[dict[str, Any]], events: Sequence[dict[str, Any]] = ()) -> RunFacts:
    return RunFacts(
        name="night",
        report={},
        results={},
        against="focalt-last",
        metrics=metrics,
        events=events,
        config={},
        environment={},
        panels=[],
    )


def test_rollbacks_are_marked_once_and_their_keys_stay_out_of_the_page() -> None:
    event = {"event": "rollback", "step": 9, "to_step": 6, "num_rollbacks": 1, "sigmas": 8.5}
    # the second one was met again after a restart
    events = [
        {**event, "keys": {"7": [["secret"]]}},
        *({**event, "to_step": 12, "num_rollbacks": 2} for _ in range(2)),
    ]
    assert rollbacks(events) == [(6.0, "rollback 1"), (12.0, "rollback 2")]
    metrics = [{"step": step, "loss": 9.0 / step} for step in range(1, 20)]
    page = render_page(facts_of(metrics=metrics, events=events))
    assert "rollback 2</text>" in page
    assert "to_step 12, num_rollbacks 2, sigmas 8.5" in page
    assert "secret" not in page


def test_norms_of_tasks_share_a_chart() -> None:
    metrics = [
        {"step": step, "loss": 9.0, "grad_norm/caption": 2.0 * step, "grad_norm/seg": 3.0 / step}
        for step in range(1, 20)
    ]
    page = render_page(facts_of(metrics=metrics))
    chart = page.partition("gradient norm by task")[2].partition("</figure>")[0]
    assert "caption" in chart
    assert "seg" in chart
    assert "gradient norm by task" not in render_page(facts_of(metrics=[{"step": 1, "loss": 9.0}]))
