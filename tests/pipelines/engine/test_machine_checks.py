"""Each thing that the doctor looks at, where it is as it should be and where it is not."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.engine import machine_checks
from pipelines.engine.machine_checks import (
    check_cluster,
    check_compilers,
    check_deepspeed,
    check_disk,
    check_memory,
    check_network,
    check_operators,
    check_shards,
    check_threads,
    check_torch,
    check_wandb,
)


def test_old_torch_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_torch().state == "good"
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    check = check_torch()
    assert (check.state, check.advice) == ("bad", "Install torch >= 2.11.")


def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 3})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    check = check_threads({})
    assert check.state == "note"
    assert check.advice == "Set OMP_NUM_THREADS to at most 2."


def test_small_shared_memory_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda _path: usage)
    assert "--shm-size" in check_memory().advice


def test_missing_compiler_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks.shutil, "which", lambda _name: None)
    assert check_compilers().found == "g++ no, ninja no, nvcc no"
    assert check_compilers().state == "note"


def test_operators_name_their_backends() -> None:
    names = {check.name: check.found for check in check_operators()}
    assert set(names) == {"deformable attention", "masked attention"}
    assert all("reference" in found for found in names.values())


@pytest.mark.parametrize(
    ("version", "state", "word"),
    [("0.19.8", "good", ""), ("0.20.1", "note", "self_check"), (None, "note", "extra `train`")],
)
def test_untested_deepspeed_is_noted(
    monkeypatch: pytest.MonkeyPatch, version: str | None, state: str, word: str
) -> None:
    monkeypatch.setattr(machine_checks, "_version", lambda _package: version)
    check = check_deepspeed()
    assert check.state == state
    assert word in check.advice


def test_cluster_names_its_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not on the PATH" in check_cluster({}).found
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho slurm 23.1\n")
    sbatch.chmod(0o755)
    assert check_cluster({"SLURM_JOB_ID": "42"}).found.startswith("slurm 23.1, inside job 42")


def test_interface_that_is_not_there_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    assert check_network({"NCCL_SOCKET_IFNAME": "eth", "HOME": "/x"}).found == (
        "NCCL_SOCKET_IFNAME=eth"
    )
    assert check_network({"NCCL_SOCKET_IFNAME": "^docker"}).state == "good"
    check = check_network({"NCCL_SOCKET_IFNAME": "ib0,eth0"})
    assert check.state == "bad"
    assert check.found == "NCCL_SOCKET_IFNAME asks for ib0; there are eth0, lo" or (
        "asks for ib0; there are" in check.found
    )


def test_host_that_does_not_find_itself_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: object) -> None:
        raise OSError("no such host")

    monkeypatch.setattr(machine_checks.socket, "getaddrinfo", unknown)
    assert "MASTER_ADDR" in check_network({}).advice


def test_full_disk_is_bad_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_disk(tmp_path / "runs").state == "good"

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(machine_checks.os, "fsync", full)
    check = check_disk(tmp_path / "runs")
    assert check.state == "bad"
    assert "No space left" in check.found
    assert list((tmp_path / "runs").iterdir()) == []


def test_folder_that_is_a_file_is_bad(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert check_disk(tmp_path / "runs").state == "bad"


def test_folder_without_shards_is_bad(tmp_path: Path) -> None:
    check = check_shards(tmp_path)
    assert check.state == "bad"
    assert "manifest" in check.found


def test_key_of_wandb_is_seen_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "_version", lambda _package: "1.0")
    assert check_wandb({"WANDB_API_KEY": "secret"}).found == "1.0, WANDB_MODE not set, a key"
    monkeypatch.setattr(machine_checks, "_version", lambda _package: None)
    assert "metrics.jsonl" in check_wandb({}).advice
