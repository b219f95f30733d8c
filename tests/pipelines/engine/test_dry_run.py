import pytest
import torch
from torch import nn

from pipelines.engine.distributed import ProcessPlace
from pipelines.engine.dry_run import (
    Elsewhere,
    _counting,
    dry_run,
    memory_table,
    prediction_tables,
    work_of,
)
from pipelines.engine.optim import parameter_groups
from pipelines.errors import ConfigError
from pipelines.overrides import override
from pipelines.recipes import RECIPES

CPU = torch.device("cpu")


def test_activations_are_counted_once_and_parameters_not_at_all() -> None:
    layer = nn.Linear(5, 7, bias=False)
    own = {layer.weight.untyped_storage().data_ptr()}
    inputs = torch.ones(3, 5, requires_grad=True)
    with _counting(own) as kept:
        hidden = layer(inputs)
        (hidden * hidden).sum()
    # the inputs and the hidden layer, in float32
    assert sum(kept.values()) == 4 * (3 * 5 + 3 * 7)


def test_memory_is_summed_by_part_and_zero_shards_the_moments() -> None:
    model = nn.Linear(1024, 1024, bias=False)
    config = override(RECIPES["scenes"](), ["parallel.backend=deepspeed", "optimizer.ema_decay=0"])
    groups = parameter_groups(model, config.optimizer)
    table = memory_table(config, groups, activations=3 * 2**20, world_size=4)
    cells = list(table.columns[1].cells)
    # weights, gradients, two moments over four ranks, no average, a fourth of the optimizer's own
    # weights, a bucket of gradients, activations, together
    assert cells == ["4.0", "4.0", "2.0", "0.0", "1.0", "4.0", "3.0", "18.0"]


def test_dry_run_without_data_still_shows_parameters_and_batches(
    capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    config = override(
        RECIPES["scenes"](),
        [
            "model.backbone.weights=random",
            f"data.segmentation.shards={tmp_path}",
            f"data.image_text.shards={tmp_path}",
            "parallel.accumulation=3",
        ],
    )
    dry_run(config, place=ProcessPlace(), device=CPU)
    text = capsys.readouterr().out
    for words in ("backbone, decayed", "24 (3 x 8)", "no data, so no shapes", "moments"):
        assert words in text


def test_other_machines_get_a_share_of_the_step_and_their_own_tables() -> None:
    config = override(
        RECIPES["scenes"](), ["parallel.accumulation=2", "parallel.backend=deepspeed"]
    )
    model = nn.Linear(1024, 1024, bias=False)
    groups = parameter_groups(model, config.optimizer)
    # of one of four ranks, in one of two micro-batches
    work = work_of(config, groups, flops=1000, activations=50, world_size=4)
    assert (work.forward_flops, work.activation_bytes, work.num_images) == (8000, 200, 2 * (8 + 16))
    assert work.num_values == 2**20
    stages, counts, growth = prediction_tables(config, work, Elsewhere(num_gpus=4, gpu="h100"))
    assert "4 x H100" in str(stages.title)
    assert list(counts.columns[0].cells) == ["1", "2", "4", "8"]
    assert len(growth.rows) == 9
    assert "stage 1" in str(growth.title)


def test_other_machines_are_asked_for_by_number() -> None:
    assert Elsewhere.asked(None, "a100") is None
    assert Elsewhere.asked(3, "v100") == Elsewhere(num_gpus=3, gpu="v100")
    with pytest.raises(ConfigError, match="--gpus must be at least 1; got 0"):
        Elsewhere.asked(0, "a100")


def test_other_ranks_stay_silent(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(RECIPES["scenes"](), place=ProcessPlace(rank=1, world_size=2), device=CPU)
    assert capsys.readouterr().out == ""


def test_only_the_tasks_of_a_step_are_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    config = override(
        RECIPES["openseed_scenes"](),
        [
            "model.backbone.weights=random",
            f"data.segmentation.shards={tmp_path}",
            f"data.detection.shards={tmp_path}",
            "data.detection.batch_size=6",
        ],
    )
    dry_run(config, place=ProcessPlace(), device=CPU)
    text = capsys.readouterr().out
    assert "6 (1 x 6)" in text
    assert "image_text" not in text
