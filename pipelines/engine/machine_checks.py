"""What a run will need of this machine, looked at one thing at a time, without starting a run."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from kernels.__main__ import capabilities
from pipelines.data.shards import read_index, read_manifest, read_sample
from pipelines.errors import PipelineError

_GIB, _MIB = 2**30, 2**20
_OLDEST_TORCH = (2, 11)
# what the tests of pipelines/engine/deepspeed_backend.py were run with
_TESTED_DEEPSPEED = "0.19"
# of a checkpoint folder: two checkpoints of a model of 100 M parameters
_LITTLE_DISK_GIB = 5.0
_PROBE_BYTES = 16 * _MIB
# data workers hand over batches through it
_LITTLE_SHM_GIB = 1.0
State = Literal["good", "note", "bad"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing: what was found, and what to do about it. Only `bad` stops a run."""

    name: str
    state: State
    found: str
    advice: str = ""


def check_machine(
    folder: Path, shards: Sequence[Path], environment: Mapping[str, str]
) -> Iterator[Check]:
    """Everything, in the order in which it would fail.

    folder: where runs are to be written. shards: folders of data to look into.
    """
    yield check_torch()
    yield check_devices()
    yield check_threads(environment)
    yield check_memory()
    yield check_compilers()
    yield from check_operators()
    yield check_deepspeed()
    yield check_cluster(environment)
    yield check_network(environment)
    yield check_disk(folder)
    for path in shards:
        yield check_shards(path)
    yield check_wandb(environment)


def check_torch() -> Check:
    """PyTorch's version against the oldest that our operators load into."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    oldest = ".".join(map(str, _OLDEST_TORCH))
    return Check(
        name="PyTorch",
        state="good" if version >= _OLDEST_TORCH else "bad",
        found=f"{torch.__version__}, Python {sys.version.split()[0]}",
        advice="" if version >= _OLDEST_TORCH else f"Install torch >= {oldest}.",
    )


def check_devices() -> Check:
    """CUDA devices, or none."""
    count = torch.cuda.device_count()
    if not count:
        built = torch.version.cuda
        return Check(
            name="CUDA",
            state="note",
            found="no device" + (f" (PyTorch is built for CUDA {built})" if built else ""),
            advice="Runs use the CPU. On a cluster, ask for GPUs: --gpus-per-node.",
        )
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    return Check(name="CUDA", state="good", found=f"{count} x {', '.join(names)}")


def check_threads(environment: Mapping[str, str]) -> Check:
    """Cores that this process may use, against the threads that PyTorch takes."""
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    asked = environment.get("OMP_NUM_THREADS", "not set")
    too_many = threads > cores
    return Check(
        name="CPU",
        state="note" if too_many else "good",
        found=f"{cores} cores, {threads} threads, OMP_NUM_THREADS {asked}",
        advice=f"Set OMP_NUM_THREADS to at most {cores}." if too_many else "",
    )


def check_memory() -> Check:
    """Memory of the machine and the shared memory that data workers use."""
    memory = psutil.virtual_memory()
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    has_little = shared < _LITTLE_SHM_GIB * _GIB
    return Check(
        name="memory",
        state="note" if has_little else "good",
        found=f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free, "
        f"/dev/shm {shared / _GIB:.1f} GiB",
        advice="Enlarge /dev/shm (docker: --shm-size), or set data.num_workers=0."
        if has_little
        else "",
    )


def check_compilers() -> Check:
    """Compilers; the operators were built with one, Triton and DeepSpeed may ask for one."""
    found = {name: shutil.which(name) for name in ("g++", "ninja", "nvcc")}
    missing = [name for name, path in found.items() if path is None]
    is_needed = bool(torch.cuda.device_count()) and "nvcc" in missing
    return Check(
        name="compilers",
        state="note" if is_needed or "g++" in missing else "good",
        found=", ".join(f"{name} {'yes' if path else 'no'}" for name, path in found.items()),
        advice="Without g++ the operators run on PyTorch; without nvcc, on Triton."
        if missing and (is_needed or "g++" in missing)
        else "",
    )


def check_operators() -> Iterator[Check]:
    """The backends of each operator on the device that a run would choose."""
    device = "cuda" if torch.cuda.device_count() else "cpu"
    rows = [row for row in capabilities() if row.device == device and row.dtype == "float32"]
    for op in dict.fromkeys(row.op for row in rows):
        backends = [row for row in rows if row.op == op]
        usable = [row.backend for row in backends if row.is_available]
        is_slow = usable in ([], ["reference"])
        reasons = "; ".join(row.reason for row in backends if not row.is_available and row.reason)
        yield Check(
            name=op,
            state="note" if is_slow else "good",
            found=f"{device}: {', '.join(usable) or 'nothing'}",
            advice=f"Only the slow reference runs: {reasons}" if is_slow else "",
        )


def check_deepspeed() -> Check:
    """DeepSpeed's version against the one that our workarounds were tested with."""
    version = _version("deepspeed")
    if version is None:
        return Check(
            name="DeepSpeed",
            state="note",
            found="not installed",
            advice="parallel.backend=deepspeed needs the extra `train`; torch needs nothing.",
        )
    is_tested = version.startswith(_TESTED_DEEPSPEED)
    return Check(
        name="DeepSpeed",
        state="good" if is_tested else "note",
        found=version,
        advice=""
        if is_tested
        else f"Tested with {_TESTED_DEEPSPEED}: run tests/pipelines/engine/test_zero.py, and leave "
        "parallel.self_check on.",
    )


def check_cluster(environment: Mapping[str, str]) -> Check:
    """SLURM's commands, and the job that this is, if it is one."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        return Check(
            name="SLURM",
            state="note",
            found="sbatch is not on the PATH",
            advice="Only for clusters: load its module, or start runs by torchrun.",
        )
    answer = subprocess.run([sbatch, "--version"], capture_output=True, text=True)
    said = (answer.stdout or answer.stderr).strip().splitlines() or ["no version"]
    job = environment.get("SLURM_JOB_ID")
    inside = f", inside job {job}" if job else ", not inside a job"
    submitit = _version("submitit")
    return Check(
        name="SLURM",
        state="good" if submitit else "note",
        found=said[0] + inside + f", submitit {submitit or 'not installed'}",
        advice="" if submitit else "`python -m pipelines.submit` needs the extra `train`.",
    )


def check_network(environment: Mapping[str, str]) -> Check:
    """That this host finds itself, and that the interfaces which are asked for exist."""
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return Check(
            name="network",
            state="note",
            found=f"the own host name {host!r} does not resolve",
            advice="Set MASTER_ADDR to an address of the first node.",
        )
    settings = {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(("NCCL_", "GLOO_", "TORCH_NCCL_"))
    }
    text = " ".join(f"{name}={value}" for name, value in settings.items()) or "no NCCL_ or GLOO_"
    return _check_interfaces(settings, text)


def _check_interfaces(settings: Mapping[str, str], text: str) -> Check:
    present = {name for _, name in socket.if_nameindex()}
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        asked = settings.get(variable, "")
        # NCCL's own syntax: a list, of prefixes, after ^ of those to avoid, after = exact
        names = asked.lstrip("=").split(",") if asked and not asked.startswith("^") else []
        lost = [name for name in names if not any(has.startswith(name) for has in present)]
        if lost:
            return Check(
                name="network",
                state="bad",
                found=f"{variable} asks for {', '.join(lost)}; there are {', '.join(present)}",
                advice=f"Unset {variable}, or name an interface of every node.",
            )
    return Check(name="network", state="good", found=text)


def check_disk(folder: Path) -> Check:
    """That a checkpoint can be written there: room, rights, and how fast."""
    name = f"disk {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        seconds = _probe(folder)
    except OSError as error:
        return Check(
            name=name,
            state="bad",
            found=str(error),
            advice="Choose another --output-dir, or have the folder made writable.",
        )
    free = shutil.disk_usage(folder).free / _GIB
    has_little = free < _LITTLE_DISK_GIB
    speed = _PROBE_BYTES / _MIB / max(seconds, 1e-9)
    return Check(
        name=name,
        state="note" if has_little else "good",
        found=f"{free:.1f} GiB free, written and synced at {speed:,.0f} MiB/s",
        advice="Free space, or lower checkpoint.keep_last." if has_little else "",
    )


def _probe(folder: Path) -> float:
    """Seconds to write, sync and rename a small file, as checkpoints are."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor_") as inside:
        path, began = Path(inside, "probe"), time.perf_counter()
        with path.open("wb") as file:
            file.write(os.urandom(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        path.rename(path.with_suffix(".done"))
        return time.perf_counter() - began


def check_shards(folder: Path) -> Check:
    """That the manifest, all files of the size it says, and a sample of every split are there."""
    name = f"shards {folder}"
    try:
        manifest = read_manifest(folder)
        counts = []
        for split_name, split in manifest.splits.items():
            index = read_index(folder, split)
            counts.append(f"{split_name} {len(index)} samples in {len(split.shards)} shards")
            row = index[len(index) // 2]
            read_sample(folder, split.shards[row["shard"]], row)
            for shard in split.shards:
                _require_size(folder / shard.file, shard.num_bytes)
    except (PipelineError, OSError) as error:
        return Check(
            name=name,
            state="bad",
            found=str(error),
            advice="Prepare again, or copy the folder again.",
        )
    return Check(
        name=name,
        state="good",
        found=", ".join(counts),
        advice="Sizes only; `python -m pipelines.prepare verify` reads every byte.",
    )


def _require_size(path: Path, num_bytes: int) -> None:
    found = path.stat().st_size
    if found != num_bytes:
        raise OSError(f"{path} must have {num_bytes} bytes; it has {found}")


def check_wandb(environment: Mapping[str, str]) -> Check:
    """Whether runs can be followed by wandb; nothing is asked of its server."""
    version = _version("wandb")
    if version is None:
        return Check(
            name="wandb",
            state="note",
            found="not installed",
            advice="metrics.jsonl is always written; for wandb install the extra `train`.",
        )
    mode = environment.get("WANDB_MODE", "not set")
    netrc = Path("~/.netrc").expanduser()
    has_key = "WANDB_API_KEY" in environment or (
        netrc.is_file() and "api.wandb.ai" in netrc.read_text()
    )
    return Check(
        name="wandb",
        state="good",
        found=f"{version}, WANDB_MODE {mode}, {'a key' if has_key else 'no key'}",
        advice="" if has_key else "Without a key it writes offline runs, for `wandb sync`.",
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
