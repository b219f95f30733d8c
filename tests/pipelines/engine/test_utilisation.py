"""MFU."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipelines.config import ParallelConfig
from pipelines.engine import utilisation
from pipelines.engine.progress import describe_row
from pipelines.engine.utilisation import Utilisation, build_utilisation, peak_flops, peak_of_name
from pipelines.tracking.jsonl import read_metrics

BF16, FP32 = ParallelConfig(precision="bf16"), ParallelConfig(precision="fp32")


@pytest.mark.parametrize(
    ("name", "config", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", BF16, 989e12),
        ("NVIDIA H100 PCIe", BF16, 756e12),
        ("NVIDIA A100-SXM4-80GB", FP32, 19.5e12),
        ("a device of next year", BF16, None),
    ],
)
def test_peak_follows_from_name_and_precision(
    name: str, config: ParallelConfig, peak: float | None
) -> None:
    assert peak_of_name(name, config) == peak


def test_a_processor_and_a_sharded_model_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu"), BF16) is None
    monkeypatch.setattr(utilisation, "peak_flops", lambda *_: 1e12)
    sharded = ParallelConfig(backend="deepspeed", zero_stage=3)
    for config, is_known in ((BF16, True), (sharded, False)):
        made = build_utilisation(torch.device("cpu"), config)
        assert (made._peak is not None) == is_known


def test_three_passes_of_every_micro_batch_count_and_dropout_goes_on_as_before(
    tiny: ModuleType,
) -> None:
    losses: Any = tiny.TinyLosses().train()
    (batch,), _ = next(tiny.tiny_stream(None, rank=0, world_size=1, seed=1))
    made = Utilisation(1e6, num_micro=2)
    assert made.columns(1.0) == {}
    before = torch.get_rng_state()
    made.count_once(losses, (batch,), 1)
    assert torch.equal(torch.get_rng_state(), before)
    positions = (tiny.HEIGHT - 2) * (tiny.WIDTH - 2)
    num_images = len(batch.keys)
    convolution = 2 * num_images * positions * tiny.CHANNELS * 3 * 9
    head = 2 * num_images * tiny.CHANNELS * positions * tiny.CHANNELS
    expected = convolution + head
    if int(batch.captions[0]) % 2:
        expected += 2 * num_images * tiny.CHANNELS * 2
    assert made.columns(0.5)["mfu"] == pytest.approx(3 * 2 * expected / 0.5 / 1e6)
    made.count_once(losses, (batch, batch), 1)
    assert made.columns(0.5)["mfu"] == pytest.approx(3 * 2 * expected / 0.5 / 1e6)


def test_rows_have_it_where_the_peak_is_known(
    tmp_path: Path, train_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(tmp_path / "unknown")
    monkeypatch.setattr(utilisation, "peak_flops", lambda *_: 1e9)
    train_tiny(tmp_path / "known")
    rows, others = (read_metrics(tmp_path / name) for name in ("known", "unknown"))
    assert [row["step"] for row in rows if "mfu" in row] == [
        row["step"] for row in rows if "seconds_per_step" in row
    ]
    assert not [row for row in others if "mfu" in row]
    assert [row["loss"] for row in rows] == [row["loss"] for row in others]
    assert "GiB  mfu 41 %  eta" in describe_row(
        {**rows[-1], "mfu": 0.414}, num_steps=12, memory_gib=1.0
    )
