"""The checks of recorded runs, and that they see a difference."""

import subprocess
import sys
from pathlib import Path

import check
import pytest
from safetensors.torch import load_file, save_file


def test_heads_give_the_recorded_outputs_losses_and_gradients(shared_dir, capsys):
    folder = shared_dir / "golden" / "maskformer_heads" / "case_a"
    code = check.main(["maskformer_heads", str(folder)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.count("ok ") == 2
    assert printed.count("reference: ") == printed.count("fused: ") == 2


def test_the_command_runs_from_anywhere(shared_dir, tmp_path):
    name = "sub_contrastive_losses.safetensors"
    source = shared_dir / "golden" / "xdecoder" / "case_a"
    for file in ("config.json", name):
        (tmp_path / file).write_bytes((source / file).read_bytes())
    command = [sys.executable, str(Path(check.__file__).resolve()), "xdecoder", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("ok   sub_contrastive_losses: reference: 2 compared")


def test_another_weight_fails_the_check(shared_dir, tmp_path, capsys):
    source = shared_dir / "golden" / "maskformer_heads" / "case_a" / "maskformer"
    folder = tmp_path / "maskformer"
    folder.mkdir()
    for name in ("info.json", "io.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    weights = load_file(source / "weights.safetensors")
    weights["predictor.class_embed.bias"][0] += 0.01
    save_file(weights, folder / "weights.safetensors")
    assert check.main(["maskformer_heads", str(tmp_path)]) == 1
    assert "FAIL maskformer" in capsys.readouterr().out


def test_an_empty_folder_is_not_a_success(tmp_path):
    assert check.main(["maskformer_heads", str(tmp_path)]) == 1
    assert check.main(["xdecoder", str(tmp_path)]) == 1


def test_an_unknown_kind_is_refused(capsys):
    with pytest.raises(SystemExit) as refusal:
        check.main(["nothing", "."])
    assert refusal.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
