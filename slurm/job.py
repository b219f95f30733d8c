"""What a submitted job runs: one verb in every task, as `python -m pipelines.<verb>` would.

Everything here happens before torch is imported: submitit's own handlers know nothing of ranks, and
are replaced by those of the verb within a second.
"""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence

import submitit
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from pipelines.errors import ExitCode

_FIRST_PORT, _NUM_PORTS = 10000, 20000
_GO_ON = (ExitCode.REQUEUE, ExitCode.HANG)


class Job:
    """A verb with its words; called in every task, on the node.

    On SLURM it leaves with the verb's own code, by which the shell around the tasks requeues the
    job. The local executor starts the tasks again by a code of its own. The state is in the run
    folder, so the same job is simply run again.
    """

    def __init__(self, verb: str, words: Sequence[str]) -> None:
        self.verb = verb
        self.words = tuple(words)

    def __call__(self) -> str:
        executor = os.environ.get("SUBMITIT_EXECUTOR", "")
        if executor == "local":
            os.environ.update(torchrun_variables(os.environ))
        code = run_verb(self.verb, self.words)
        if code == ExitCode.FINISHED:
            return f"{self.verb} finished"
        if code in _GO_ON and executor in ("slurm", "local"):
            sys.stdout.flush()
            sys.stderr.flush()
            # no result is written for a job that is not over
            os._exit(LOCAL_REQUEUE_RETURN_CODE if executor == "local" else code)
        raise RuntimeError(
            f"{self.verb} {' '.join(self.words)}: left with code {code}; see the log"
        )

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same job again, for a signal that comes before the verb has its own handlers."""
        return submitit.helpers.DelayedSubmission(self)


def run_verb(verb: str, words: Sequence[str]) -> int:
    """The exit code of `python -m pipelines.<verb> <words>`, run in this process."""
    arguments, sys.argv = sys.argv, [f"pipelines.{verb}", *words]
    try:
        runpy.run_module(f"pipelines.{verb}", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        sys.argv = arguments
    return int(ExitCode.FINISHED)


def torchrun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The place of a task of submitit's local executor, in the words that the trainer reads."""
    job = int(environment["SUBMITIT_LOCAL_JOB_ID"])
    return {
        "RANK": environment["SUBMITIT_LOCAL_GLOBALID"],
        "WORLD_SIZE": environment["SUBMITIT_LOCAL_NTASKS"],
        "LOCAL_RANK": environment["SUBMITIT_LOCAL_LOCALID"],
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_FIRST_PORT + job % _NUM_PORTS),
    }
