"""The checks of recorded runs, and that they see a difference."""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

CHECK = Path(__file__).with_name("check.py")


def _run(kind, folder):
    command = [sys.executable, str(CHECK), kind, str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def test_heads_give_the_recorded_outputs_losses_and_gradients(shared_dir):
    result = _run("maskformer_heads", shared_dir / "golden" / "maskformer_heads" / "case_a")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ok ") == 2


def test_another_weight_fails_the_check(shared_dir, tmp_path):
    source = shared_dir / "golden" / "maskformer_heads" / "case_a" / "maskformer"
    folder = tmp_path / "maskformer"
    folder.mkdir()
    for name in ("info.json", "io.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    weights = load_file(source / "weights.safetensors")
    weights["predictor.class_embed.bias"][0] += 0.01
    save_file(weights, folder / "weights.safetensors")
    result = _run("maskformer_heads", tmp_path)
    assert result.returncode == 1
    assert "FAIL maskformer" in result.stdout


def test_an_empty_folder_is_not_a_success(tmp_path):
    assert _run("maskformer_heads", tmp_path).returncode == 1


def test_an_unknown_kind_is_refused():
    result = _run("nothing", ".")
    assert result.returncode == 2
    assert "invalid choice" in result.stderr


def test_recorded_eval_runs_of_xdecoder_pass_and_missing_parts_fail(shared_dir):
    result = _run("xdecoder", shared_dir / "golden" / "xdecoder" / "case_a")
    assert "FAIL" in result.stdout, result.stderr
    for name in ("seg", "referring", "captioning", "retrieval"):
        assert f"ok   full_eval_{name}:" in result.stdout, result.stdout
    failures = [each for each in result.stdout.splitlines() if each.startswith("FAIL")]
    assert all("NOT COVERED" in each for each in failures), result.stdout
    # what is not computed must not look like a success
    assert result.returncode == 1
