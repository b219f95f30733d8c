"""ZeRO against plain PyTorch: the same losses, and checkpoints that fit each other."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.engine.checkpoint_files import read_tensors

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(
        subprocess.run(
            [sys.executable, "-c", "import importlib.util as u; exit(not u.find_spec('deepspeed'))"]
        ).returncode
        != 0,
        reason="deepspeed is not installed",
    ),
]
Curve = Callable[[Path], dict[int, dict[str, float]]]
Start = Callable[..., subprocess.Popen]
# one rounding of a float32 sum, grown over twelve steps of AdamW
TOLERANCE = 1e-5


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output


def zero(stage: int) -> tuple[str, ...]:
    return "--set", "parallel.backend=deepspeed", "--set", f"parallel.zero_stage={stage}"


def assert_close(first: Path, second: Path, curve: Curve) -> None:
    one, two = curve(first), curve(second)
    assert one.keys() == two.keys()
    for step, row in one.items():
        assert two[step] == pytest.approx(row, rel=TOLERANCE)


def test_two_ranks_of_zero_equal_plain_torch_and_swap_checkpoints(
    tmp_path: Path, start_tiny: Start, curve: Curve
) -> None:
    """Trained under ZeRO-1, continued under ZeRO-2, then by plain PyTorch, against PyTorch alone.

    Every continuation starts from the state that the others wrote, moments included.
    """
    finish(start_tiny(tmp_path / "torch", ranks=2))
    finish(start_tiny(tmp_path / "mixed", *zero(1), ranks=2))
    assert_close(tmp_path / "torch", tmp_path / "mixed", curve)

    moments = read_tensors(tmp_path / "mixed" / "checkpoints" / "latest" / "optimizer.safetensors")
    plain = read_tensors(tmp_path / "torch" / "checkpoints" / "latest" / "optimizer.safetensors")
    assert moments.keys() == plain.keys()

    step_9 = str(tmp_path / "mixed" / "checkpoints" / "step_00000009")
    finish(start_tiny(tmp_path / "two", *zero(2), "--resume", step_9, ranks=2))
    finish(start_tiny(tmp_path / "three", "--resume", step_9, ranks=2))
    expected = {step: row for step, row in curve(tmp_path / "mixed").items() if step > 9}
    for name in ("two", "three"):
        continued = curve(tmp_path / name)
        assert continued.keys() == expected.keys()
        for step, row in expected.items():
            assert continued[step] == pytest.approx(row, rel=TOLERANCE)


def test_one_rank_accumulates_like_plain_torch_and_resumes_exactly(
    tmp_path: Path, start_tiny: Start, train_tiny: Callable[..., int], curve: Curve
) -> None:
    accumulated = "parallel.accumulation=3"
    train_tiny(tmp_path / "torch", accumulated)
    finish(start_tiny(tmp_path / "zero", *zero(1), "--set", accumulated))
    assert_close(tmp_path / "torch", tmp_path / "zero", curve)
    whole = curve(tmp_path / "zero")

    (tmp_path / "zero" / "checkpoints" / "step_00000012" / "COMPLETE").unlink()
    finish(start_tiny(tmp_path / "zero", *zero(1), "--set", accumulated))
    assert curve(tmp_path / "zero") == whole
