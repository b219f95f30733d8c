"""Which process this is, how it finds the others, and the few collectives that the engine needs.

Environments are read in this order; the first that is complete wins:

    torchrun   RANK, WORLD_SIZE, LOCAL_RANK
    slurm      SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID  (one task per process, through srun)
    openmpi    OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_RANK
    single     none of them: one process

`MASTER_ADDR` and `MASTER_PORT` win where they are set. Otherwise the address is the first host of
the node list and the port follows from the job id, so that all ranks agree without talking.
"""

import datetime
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipelines.errors import ConfigError, PipelineError

_Result = TypeVar("_Result")
_FAMILIES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
_DEFAULT_PORT = 29500
_FIRST_PORT, _NUM_PORTS = 10000, 20000
_COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True)
class ProcessPlace:
    """One process of a run; `family` says which environment named it."""

    family: str = "single"
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = _DEFAULT_PORT

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


def read_place(environment: Mapping[str, str]) -> ProcessPlace:
    """The place of this process, from environment variables alone.

    Raises:
        ConfigError: a variable is not a number, the rank is outside the world, or no master
            address can be found.
    """
    for family, names in _FAMILIES.items():
        if not all(name in environment for name in names):
            continue
        rank, world_size, local_rank = (_integer(environment, name) for name in names)
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"distributed: {names[0]} must be in 0..{names[1]}-1; got {rank} of {world_size}. "
                "Unset the variables of an old launch, or start through one launcher only."
            )
        return ProcessPlace(
            family=family,
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            master_addr=_master_addr(environment, family, world_size),
            master_port=_master_port(environment),
        )
    return ProcessPlace()


def first_host(node_list: str) -> str:
    """The first host name of a SLURM node list such as `node[01-03,7],other`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", node_list.strip())
    if match is None:
        raise ConfigError(
            f"distributed: SLURM_JOB_NODELIST must name a host; got {node_list!r}. Set MASTER_ADDR."
        )
    prefix, number, suffix = match.groups()
    return prefix + (number or "") + suffix


def _integer(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(
            f"distributed: {name} must be an integer; got {environment[name]!r}."
        ) from None


def _master_addr(environment: Mapping[str, str], family: str, world_size: int) -> str:
    if "MASTER_ADDR" in environment:
        return environment["MASTER_ADDR"]
    is_one_node = environment.get("SLURM_NNODES", "1") == "1"
    if family == "slurm" and not is_one_node:
        return first_host(environment.get("SLURM_JOB_NODELIST", ""))
    local_size = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", str(world_size))
    if family == "openmpi" and local_size != str(world_size):
        raise ConfigError(
            "distributed: Open MPI over several nodes needs MASTER_ADDR; it is not set. "
            "Pass `-x MASTER_ADDR=<first host>` to mpirun."
        )
    return "127.0.0.1"


def _master_port(environment: Mapping[str, str]) -> int:
    if "MASTER_PORT" in environment:
        return _integer(environment, "MASTER_PORT")
    if "SLURM_JOB_ID" in environment:
        return _FIRST_PORT + _integer(environment, "SLURM_JOB_ID") % _NUM_PORTS
    return _DEFAULT_PORT


class Group:
    """The processes of a run, and what they tell each other besides gradients.

    With one process every method answers at once and nothing is initialised.
    """

    def __init__(self, place: ProcessPlace, *, is_cuda: bool) -> None:
        self.place = place
        self._control: Any = None
        if place.world_size == 1:
            return
        _check_resolves(place.master_addr)
        os.environ["MASTER_ADDR"] = place.master_addr
        os.environ["MASTER_PORT"] = str(place.master_port)
        for name, value in zip(
            _FAMILIES["torchrun"], (place.rank, place.world_size, place.local_rank), strict=True
        ):
            os.environ[name] = str(value)
        dist.init_process_group("nccl" if is_cuda else "gloo", timeout=_COLLECTIVE_TIMEOUT)
        # flags and objects travel over the CPU, so that no message waits for a GPU stream
        self._control = dist.new_group(backend="gloo") if is_cuda else dist.group.WORLD

    def any_is_true(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.place.world_size == 1:
            return flag
        vote = torch.tensor([int(flag)])
        dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self._control)
        return bool(vote.item())

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order of rank, on every rank."""
        if self.place.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def main_does(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns on rank 0, on every rank; what it raises is raised on every rank."""
        if self.place.world_size == 1:
            return work()
        outcome: list[Any] = [None]
        if self.place.is_main:
            try:
                outcome = [work()]
            except PipelineError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0, group=self._control)
        if isinstance(outcome[0], PipelineError):
            raise outcome[0]
        return outcome[0]

    def barrier(self) -> None:
        """Return once every rank has come here."""
        if self.place.world_size > 1:
            dist.barrier(group=self._control)

    def close(self) -> None:
        """Leave the group; a rank that fails must not call it, the others would wait."""
        if self.place.world_size > 1:
            dist.destroy_process_group()


def _check_resolves(address: str) -> None:
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise ConfigError(
            f"distributed: the master address must resolve; got {address!r} ({error}). "
            "Set MASTER_ADDR to an address of the first node."
        ) from error
