"""Two micro-batches of one image each, against one batch of both images."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipelines.config import RunConfig
from pipelines.engine import loop
from xdecoder.batch import ImageTextBatch

# the parity of the first caption decides which terms there are
CAPTIONS = ("2", "4")


class EvenDraws:
    """Draws that do not depend on how a batch is cut."""

    def __init__(self, *_seeds: int) -> None:
        pass

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.full(shape, 0.5)


def batches_of(tiny: ModuleType, num_images: int) -> Callable[..., Iterator[Any]]:
    def stream(*arguments: Any, **options: Any) -> Iterator[Any]:
        for (batch,), state in tiny.tiny_stream(*arguments, **options):
            for first in range(0, 2, num_images):
                part = slice(first, first + num_images)
                micro = ImageTextBatch(
                    keys=batch.keys[part],
                    images=batch.images[part],
                    valid_sizes_hw=batch.valid_sizes_hw[part],
                    captions=CAPTIONS[part],
                )
                yield (micro,), state

    return stream


def test_accumulated_batches_equal_one_large_batch(
    tmp_path: Path,
    train_tiny: Callable[..., int],
    tiny: ModuleType,
    curve: Callable[[Path], dict[int, dict[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_dropout(config: RunConfig, device: torch.device) -> Any:
        losses = tiny.tiny_losses(config, device)
        losses.model.backbone[3] = torch.nn.Identity()
        return losses

    monkeypatch.setattr(loop, "Draws", EvenDraws)
    train_tiny(tmp_path / "one", make_losses=without_dropout, make_stream=batches_of(tiny, 2))
    train_tiny(
        tmp_path / "two",
        "parallel.accumulation=2",
        make_losses=without_dropout,
        make_stream=batches_of(tiny, 1),
    )
    whole, cut = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert whole.keys() == cut.keys()
    for step, row in whole.items():
        # sums of a few float32 in another order, through twelve steps of AdamW
        assert cut[step] == pytest.approx(row, rel=1e-4)
