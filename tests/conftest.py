"""Fixtures and switches of the whole test run."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with recorded runs and real photographs; tests that need it skip without it."""
    folder = Path(os.environ.get("XDEC_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no shared folder at {folder}; set XDEC_SHARED to run this test")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip device tests where there is no device, and say so."""
    counts = {"gpu": 1, "multigpu": 2}
    available = torch.cuda.device_count()
    for item in items:
        for marker, needed in counts.items():
            if item.get_closest_marker(marker) and available < needed:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA device(s)"))
