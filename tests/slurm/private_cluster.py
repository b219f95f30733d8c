"""A SLURM cluster of two nodes on this machine, all of it in one folder and owned by the test.

Nothing outside the folder is read or written. The daemons stay in the foreground as children of
this process, so that they are ended by their own ids. What a daemon has started, and outlives it,
is known by the cluster's configuration file in its environment, and ended by its own id too.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.testing.waiting import wait_until

NUM_NODES = 2
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_SYSTEM_PROGRAMS = "/usr/local/sbin:/usr/sbin:/sbin"
# what runs on a node beside its daemon
_OF_A_NODE = {"slurmstepd", "srun", "bash", "python", "python3", "slurm_script"}

_CONFIGURATION = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=8
SlurmdTimeout=120
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=node0,node1 Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=node0,node1 PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """The programs of SLURM and munge that this machine does not have."""
    return [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]


class PrivateCluster:
    """Two nodes and their controller, running until `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not _is_of_a_launch(name)},
            "PATH": _search_path(),
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def start(self) -> None:
        """Return when both nodes take jobs."""
        folder = self._folder
        for name in ("state", "spool-node0", "spool-node1"):
            (folder / name).mkdir()
        text = _CONFIGURATION.format(
            folder=folder, host=socket.gethostname(), user=getpass.getuser(), ports=_free_ports(3)
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "plugstack.conf").touch()
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        files = [f"--{option}={folder}/munge.{end}" for option, end in names.items()]
        self._spawn("munged", "--foreground", "--force", *files)
        wait_until(lambda: (folder / "munge.socket").exists(), "munged")
        self._spawn("slurmctld", "-D")
        wait_until(lambda: "UP" in self.ask("scontrol", "ping", is_checked=False), "slurmctld")
        for index in range(NUM_NODES):
            self.start_node(f"node{index}")
        wait_until(self._has_idle_nodes, "both nodes")

    def stop(self) -> None:
        """Cancel what runs, then end the daemons, the last one first, and what outlived them."""
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):
            self.ask("scancel", f"--user={getpass.getuser()}", is_checked=False)
            wait_until(lambda: not self.ask("squeue", "--noheader", is_checked=False), "no jobs")
        for name in reversed(list(self._daemons)):
            self._end(name)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def start_node(self, name: str) -> None:
        """Have the node join, or join again."""
        self._spawn("slurmd", "-D", "-N", name, key=name)

    def kill_node(self, name: str) -> None:
        """Take a node away as if its power had failed: its daemon and everything it runs."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.environ().get("SLURMD_NODENAME") == name:
                    for victim in (process.parent(), process):
                        if victim is not None and victim.name() in _OF_A_NODE:
                            victim.kill()

    def processes(self) -> list[psutil.Process]:
        """Everything on this machine that was started by or for this cluster, daemons too."""
        own = self.environment["SLURM_CONF"]
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == own and process.pid != os.getpid():
                    found.append(process)
        return found

    def ask(self, *words: str, is_checked: bool = True) -> str:
        """What a SLURM command prints."""
        result = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=30
        )
        if is_checked and result.returncode:
            raise AssertionError(f"{' '.join(words)}: {result.stdout}{result.stderr}")
        return result.stdout.strip()

    def state_of(self, job: str) -> str:
        """Such as PENDING, RUNNING, COMPLETING, COMPLETED, FAILED."""
        facts = self.ask("scontrol", "show", "job", job, "-o")
        return facts.split("JobState=")[1].split()[0]

    def start_now(self, job: str) -> None:
        """Spare a requeued job the two minutes that SLURM lets it wait."""
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now", is_checked=False)

    def _spawn(self, *words: str, key: str = "") -> None:
        with (self._folder / f"{words[0]}.output").open("ab") as output:
            daemon = subprocess.Popen(
                words, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
        self._daemons[key or words[0]] = daemon

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _has_idle_nodes(self) -> bool:
        states = self.ask("sinfo", "-hN", "-p", "all", "-o", "%T", is_checked=False)
        return states.split() == ["idle"] * NUM_NODES


def _search_path() -> str:
    return f"{os.environ['PATH']}:{_SYSTEM_PROGRAMS}"


def _is_of_a_launch(name: str) -> bool:
    return name.startswith(("SLURM_", "SBATCH_", "MASTER_")) or name in {"RANK", "WORLD_SIZE"}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        return list(_bound_ports(sockets))


def _bound_ports(sockets: list[socket.socket]) -> Iterator[int]:
    for each in sockets:
        each.bind(("127.0.0.1", 0))
        yield each.getsockname()[1]
