"""The check before a run under DeepSpeed, and that each kind of wrong gradient fails it."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pipelines.config import ParallelConfig, RunConfig
from pipelines.engine.distributed import Group, ProcessPlace
from pipelines.errors import BackendUnavailable

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
    ),
]


def check(**settings: object) -> None:
    from pipelines.engine.self_check import check_deepspeed

    parallel = replace(ParallelConfig(backend="deepspeed", device="cpu"), **settings)
    config = RunConfig(name="x", steps=3, parallel=parallel)
    group = Group(ProcessPlace(), is_cuda=False)
    check_deepspeed(config, group=group, device=torch.device("cpu"))


@pytest.mark.parametrize("stage", range(4))
def test_every_stage_passes(stage: int) -> None:
    before = torch.random.get_rng_state()
    check(zero_stage=stage, accumulation=2 if stage == 2 else 1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_with_accumulation_passes(stage: int) -> None:
    check(zero_stage=stage, offload="optimizer", accumulation=2)


def test_all_but_its_own_steps_keep_the_linear_layer_of_torch() -> None:
    before, used = nn.functional.linear, set()
    watch = register_module_forward_pre_hook(lambda *_: used.add(nn.functional.linear.__name__))
    with watch:
        check(zero_stage=3)
    # plain torch, which the check compares with, and DeepSpeed
    assert used == {"linear", "zero3_linear_wrap"}
    assert nn.functional.linear is before


def test_gradients_of_the_step_before_fail_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.engine.zero_state import ShardedWeights

    monkeypatch.setattr(ShardedWeights, "after_step", lambda _state: None)
    with pytest.raises(BackendUnavailable, match=r"zero_stage=3 must compute .* in step 2 of"):
        check(zero_stage=3)


def test_dataclasses_that_nobody_looks_into_fail_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.zero import parameter_offload, utils

    from pipelines.engine import deepspeed_backend

    monkeypatch.setattr(deepspeed_backend, "_see_dataclasses", lambda: None)
    monkeypatch.setattr(parameter_offload, "apply_to_tensors_only", utils.apply_to_tensors_only)
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        check(zero_stage=3)


def test_gradients_that_offloading_loses_fail_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.engine import deepspeed_backend
    from pipelines.engine.deepspeed_backend import DeepSpeedBackend

    settings = deepspeed_backend._settings

    def managed(*arguments: object, **options: object) -> dict[str, object]:
        return {**settings(*arguments, **options), "managed_gradient_accumulation": True}

    def backward(backend: DeepSpeedBackend, loss: Tensor) -> None:
        backend._num = getattr(backend, "_num", 0) + 1
        backend._engine.set_gradient_accumulation_boundary(backend._num % 2 == 0)
        backend._engine.backward(loss)
        if backend._num % 2:
            backend._engine.step()

    monkeypatch.setattr(deepspeed_backend, "_settings", managed)
    monkeypatch.setattr(DeepSpeedBackend, "backward", backward)
    with pytest.raises(BackendUnavailable, match=r"set parallel\.backend=torch"):
        check(zero_stage=2, offload="optimizer", accumulation=2)


def test_default_clipping_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.engine import deepspeed_backend

    settings = deepspeed_backend._settings

    def without(*arguments: object, **options: object) -> dict[str, object]:
        given = settings(*arguments, **options)
        del given["gradient_clipping"]
        return given

    monkeypatch.setattr(deepspeed_backend, "_settings", without)
    with pytest.raises(BackendUnavailable, match="loss and gradient norm are"):
        check(zero_stage=1)
