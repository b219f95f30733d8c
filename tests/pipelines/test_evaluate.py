import json
from pathlib import Path

import pytest

from pipelines.evaluate import main


def evaluated(tiny_run: Path, out: Path, *words: object) -> int:
    return main(["--checkpoint", str(tiny_run), "--out", str(out), "--quiet", *map(str, words)])


def test_a_report_has_metrics_controls_and_origin(
    tiny_run: Path, scenes_root: Path, tmp_path: Path
) -> None:
    code = evaluated(
        tiny_run, tmp_path, "--root", scenes_root, "--split", "val", "--max-images", 3,
        "--zero-shot-split", "zeroshot", "--object-threshold", 0,
    )  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == 0
    keys = "pq pq_things pq_stuff ap miou refer_ciou refer_ciou_shuffled retrieval_r1 cider"
    keys += " caption_token_accuracy zero_shot_top1 zero_shot_top1_shuffled wall_seconds"
    assert set(keys.split()) <= set(report)
    assert report["checkpoint"]["step"] == 7
    assert len(report["config_sha256"]) == 64
    assert report["details"]["num_images"] == 3
    assert report["zero_shot_data"]["split"] == "zeroshot"
    assert "zero_shot_refer_ciou" in report


def test_the_runs_own_folder_and_split_are_the_default(tiny_run: Path, tmp_path: Path) -> None:
    words = ("--stages", "retrieval", "--max-images", 2)
    assert evaluated(tiny_run, tmp_path / "here.json", *words) == 0
    assert json.loads((tmp_path / "here.json").read_text())["split"] == "val"


def test_a_table_is_printed(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # wide enough that no cell is broken
    monkeypatch.setenv("COLUMNS", "160")
    words = ["--checkpoint", str(tiny_run), "--out", str(tmp_path), "--stages", "retrieval"]
    assert main([*words, "--max-images", "2"]) == 0
    assert "captions of other images" in capsys.readouterr().out


def test_a_missing_folder_is_a_data_error(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(tiny_run, tmp_path, "--root", tmp_path / "gone") == 3
    assert "gone" in capsys.readouterr().err


def test_a_size_must_be_two_numbers(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluated(tiny_run, tmp_path, "--size", "96")
    assert "must be HEIGHTxWIDTH, as in 96x128; got '96'" in capsys.readouterr().err
