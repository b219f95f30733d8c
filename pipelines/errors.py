"""The errors that end a run, and the exit code that each of them leaves behind.

Batch scripts switch on these codes, so they never change meaning: a job is requeued on
`REQUEUE` and `HANG` only, never on a mistake that would come back.
"""

from enum import IntEnum

from xdecoder.settings import SettingsError


class ExitCode(IntEnum):
    """What the exit status of every `python -m pipelines.<verb>` means."""

    FINISHED = 0
    USAGE = 2
    DATA = 3
    NON_FINITE = 4
    HANG = 5
    OUT_OF_MEMORY = 6
    REQUEUE = 75
    INTERRUPTED = 130


class PipelineError(Exception):
    """A run cannot go on; the message says who, what must hold, what came and what to do."""

    exit_code = ExitCode.USAGE


class ConfigError(PipelineError, SettingsError):
    """A configuration value is unknown, has the wrong type, or contradicts another one."""


class DataError(PipelineError, ValueError):
    """Shards, annotations or images are missing or damaged."""

    exit_code = ExitCode.DATA


class DamagedSampleError(DataError):
    """The bytes of one sample cannot be used; another sample can take its place in the order.

    Anything that may differ between machines or pass by itself, as a shard that cannot be opened,
    is a plain `DataError`: skipping it would give each rank an order of its own.
    """

    def __init__(self, shard: str, key: str, reason: str) -> None:
        gap = "" if reason.startswith(":") else " "
        super().__init__(f"{shard}: sample {key}{gap}{reason}")
        self.shard, self.key, self.reason = shard, key, reason


class CheckpointError(PipelineError, RuntimeError):
    """A checkpoint is missing, incomplete, damaged, or does not fit the model."""


class NonFiniteLossError(PipelineError, ArithmeticError):
    """A loss became NaN or infinite."""

    exit_code = ExitCode.NON_FINITE


class DivergenceError(PipelineError, ArithmeticError):
    """A loss jumps again and again, however often the run goes back and leaves the data out."""

    exit_code = ExitCode.NON_FINITE


class BackendUnavailable(PipelineError, RuntimeError):
    """A training backend or tracker was asked for that this environment does not have."""
