"""The tiny run as a module, and as a process."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[3]
TINY_RUN = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_run", TINY_RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train_tiny(tiny: ModuleType) -> Callable[..., int]:
    """Train the tiny run in this process: folder, assignments, and a request's fields."""
    from pipelines.engine.distributed import Group, ProcessPlace
    from pipelines.engine.session import Request, run
    from pipelines.engine.signals import StopFlag
    from pipelines.overrides import override

    def train(
        folder: Path,
        *assignments: str,
        resume: str = "auto",
        stop: StopFlag | None = None,
        **fields: Any,
    ) -> int:
        request = Request(
            resume=resume,
            **{"make_losses": tiny.tiny_losses, "make_stream": tiny.tiny_stream, **fields},
        )
        return run(
            override(tiny.tiny_config(str(folder)), assignments),
            request,
            group=Group(ProcessPlace(), is_cuda=False),
            device=torch.device("cpu"),
            stop=stop or StopFlag(),
        )

    yield train
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def start_tiny() -> Callable[..., subprocess.Popen]:
    """Start the tiny run as one process, or as several under torchrun."""

    def start(
        folder: Path, *arguments: str, ranks: int = 1, environment: dict[str, str] | None = None
    ) -> subprocess.Popen:
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            launcher += [str(ranks)]
        names = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
        inherited = {name: os.environ[name] for name in names if name in os.environ}
        return subprocess.Popen(
            [*launcher, str(TINY_RUN), str(folder), *arguments],
            cwd=REPOSITORY,
            env={**inherited, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
            | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def curve() -> Callable[[Path], dict[int, dict[str, float]]]:
    """Losses and gradient norms of a run by step, without what depends on the clock."""

    def read(folder: Path) -> dict[int, dict[str, float]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row["step"] for row in rows]
        assert steps == sorted(set(steps)), "a step has two rows"
        return {
            row["step"]: {
                key: value
                for key, value in row.items()
                if "/" in key or key in ("loss", "gradient_norm", "learning_rate")
            }
            for row in rows
        }

    return read
