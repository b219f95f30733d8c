"""Scoring files from the command line, and mistakes that are those of no one metric."""

from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.evaluate import main
from pipelines.evaluation.files import FileOptions, score_files
from tests.testing.answer_files import detection_pair, refused


def test_the_three_options_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--predictions", str(tmp_path), "--metric", "box"]) == 2
    assert "--ground-truth is missing" in capsys.readouterr().err


def test_help_shows_an_example_of_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in (
        "panoptic:",
        "instance, box:",
        "semantic:",
        "referring:",
        "caption:",
        "retrieval:",
        "vqa:",
    ):
        assert f"\n{name}" in text


def test_the_figures_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, truth = detection_pair(tmp_path)
    words = ["--predictions", str(found), "--ground-truth", str(truth), "--metric", "instance"]
    assert main(words) == 0
    assert "ap_large" in capsys.readouterr().out


def test_unknown_metrics_and_protocols_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metric must be one of \['panoptic', .* got 'depth'"):
        score_files("depth", predictions=tmp_path, truth=tmp_path)
    with pytest.raises(ConfigError, match=r"protocol must be one of .* got 'mine'"):
        FileOptions(protocol="mine")


def test_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text("{")
    refused("vqa", path, path, r"found\.json: must be JSON; got")
    refused("vqa", path, tmp_path / "gone.json", "there is no such file")
