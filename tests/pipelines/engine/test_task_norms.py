"""Gradient norms of single tasks, against backward passes of runs that train one task alone."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.engine.checkpoint_files import read_tensors
from pipelines.engine.distributed import Group, ProcessPlace
from pipelines.engine.task_norms import Measurement, TaskNorms
from pipelines.tracking.jsonl import read_metrics

Train = Callable[..., int]
TASKS = ("image_text", "segmentation")
EVERY_OTHER = "tracking.task_norms_every=2"
# two sums of the same float32 gradients, one with zeros of another task between them
TOLERANCE = 1e-6


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "checkpoints" / "latest" / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    expected, found = weights(first), weights(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def losses_of(tiny: Any, *tasks: str) -> Callable[..., nn.Module]:
    """Two tasks that share the trunk, or one of them alone."""

    class Split(tiny.TinyLosses):
        def forward(self, batches: Any, draws: Any, counts: Any = None) -> dict[str, Tensor]:
            terms = super().forward(batches, draws, counts)
            terms["segmentation/match/1"] = terms.pop("image_text/match/1")
            return {name: term for name, term in terms.items() if name.split("/")[0] in tasks}

    return lambda *_: Split().train()


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("parallel.accumulation=3",),
        ("parallel.precision=fp16", "parallel.initial_loss_scale=512"),
    ],
    ids=("plain", "accumulated", "fp16"),
)
def test_each_norm_is_that_of_a_run_of_its_task_alone(
    tmp_path: Path, train_tiny: Train, tiny: Any, settings: tuple[str, ...]
) -> None:
    def first_row(name: str, tasks: tuple[str, ...], *more: str) -> dict[str, float]:
        make = losses_of(tiny, *tasks)
        train_tiny(tmp_path / name, *settings, *more, "steps=4", make_losses=make)
        return read_metrics(tmp_path / name)[0]

    row = first_row("both", TASKS, "tracking.task_norms_every=1")
    # the first step starts from the same weights; clipping comes after the norm
    for task in TASKS:
        alone = first_row(task, (task,))["gradient_norm"]
        assert row[f"grad_norm/{task}"] == pytest.approx(alone, rel=TOLERANCE)
    assert row["grad_norm/image_text"] != pytest.approx(row["grad_norm/segmentation"], rel=0.01)
    assert row["gradient_norm"] != pytest.approx(row["grad_norm/image_text"], rel=0.01)


def test_measuring_changes_no_bit_of_the_training(
    tmp_path: Path, train_tiny: Train, tiny: Any
) -> None:
    make = losses_of(tiny, *TASKS)
    settings = ("parallel.accumulation=2", "steps=9")
    train_tiny(tmp_path / "plain", *settings, make_losses=make)
    train_tiny(tmp_path / "measured", *settings, EVERY_OTHER, make_losses=make)
    assert_same_weights(tmp_path / "plain", tmp_path / "measured")
    rows = read_metrics(tmp_path / "measured")
    measured = [row["step"] for row in rows if "grad_norm/segmentation" in row]
    assert measured == [2, 4, 6, 8]
    assert not [
        name for row in read_metrics(tmp_path / "plain") for name in row if "grad_n" in name
    ]


def test_a_gradient_that_is_not_finite_has_no_norm_in_the_row(
    tmp_path: Path, train_tiny: Train, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_POISON_STEP", "3")
    train_tiny(tmp_path, EVERY_OTHER, "steps=6", make_losses=losses_of(tiny, *TASKS))
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert [step for step, row in rows.items() if "grad_norm/segmentation" in row] == [2, 6]
    assert rows[4]["left_out"] == 1


def measurement(parameters: list[nn.Parameter]) -> Measurement:
    group = Group(ProcessPlace(), is_cuda=False)
    found = TaskNorms(parameters, every=1, accumulation=1, group=group).begin(1, loss_scale=1.0)
    assert found is not None
    return found


def test_recomputed_blocks_can_be_asked_twice() -> None:
    block, seen = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5)), torch.ones(2, 3)
    torch.manual_seed(5)
    features = torch.utils.checkpoint.checkpoint(block, seen, use_reentrant=False)
    terms = {"a/x/0": features.square().sum(), "b/x/0": features.sum()}
    watch = measurement(list(block.parameters()))
    watch(terms)
    sum(terms.values()).backward()
    together = torch.cat([value.grad.flatten() for value in block.parameters()])
    norms = watch.norms()
    torch.manual_seed(5)
    block(seen).sum().backward(inputs=list(block.parameters()))
    alone = torch.cat([value.grad.flatten() for value in block.parameters()]) - together
    assert norms["b"].item() == pytest.approx(alone.norm().item(), rel=1e-5)
    assert norms["a"].item() > 0


def test_a_frozen_parameter_and_a_constant_term_count_nothing() -> None:
    trained, frozen = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.ones(5))
    watch = measurement([trained, frozen.requires_grad_(False)])
    watch({"a/x/0": trained.square().sum() / 2 + frozen.sum(), "b/x/0": torch.tensor(2.0)})
    assert {name: norm.item() for name, norm in watch.norms().items()} == {"a": 5.0}
    assert trained.grad is None


@pytest.mark.dist
def test_two_ranks_measure_the_gradient_of_both_under_every_backend(tmp_path: Path) -> None:
    settings = ("steps=4", "tracking.log_every=1", "parallel.accumulation=2")
    backends = {"torch": ("parallel.backend=torch",)}
    if importlib.util.find_spec("deepspeed"):
        zero = ("parallel.backend=deepspeed", "parallel.self_check=false")
        backends |= {f"zero{n}": (*zero, f"parallel.zero_stage={n}") for n in range(3)}

    def case(folder: str, tasks: tuple[str, ...], *more: str) -> dict[str, Any]:
        trap = f"tasks {' '.join(tasks)}"
        return {
            "folder": str(tmp_path / folder),
            "assignments": (*settings, *more),
            "trap": trap,
        }

    cases = [case(f"only_{task}", (task,)) for task in TASKS]
    for name, backend in backends.items():
        cases.append(case(f"{name}_plain", TASKS, *backend))
        cases.append(case(f"{name}_measured", TASKS, *backend, "tracking.task_norms_every=1"))
    here = Path(__file__).parent
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(here / "zero_run.py"), json.dumps(cases)),
        ],
        env={
            **{name: value for name, value in os.environ.items() if name != "RANK"},
            "PYTHONPATH": f"{here.parents[2]}:{here}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    for name in backends:
        assert_same_weights(tmp_path / f"{name}_plain", tmp_path / f"{name}_measured")
        row = read_metrics(tmp_path / f"{name}_measured")[0]
        for task in TASKS:
            alone = read_metrics(tmp_path / f"only_{task}")[0]["gradient_norm"]
            assert row[f"grad_norm/{task}"] == pytest.approx(alone, rel=TOLERANCE), (name, task)
