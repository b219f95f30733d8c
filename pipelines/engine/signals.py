"""A flag that signals set, so that a run stops between two steps and not inside one.

    SIGTERM, SIGUSR1, SIGUSR2   the cluster wants the machine: save, leave with 75, be requeued
    SIGINT                      a person wants to stop: save, leave with 130; again: leave at once

Imports nothing heavy: the default action of these signals is death, so the handlers must be in
place before torch is imported.
"""

import signal
from types import FrameType

from pipelines.errors import ExitCode

_REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Remembers the first signal; the loop asks for it at every step boundary."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> "StopFlag":
        """Itself, with the handlers in place for the rest of the process."""
        for number in _REQUEUE_SIGNALS:
            signal.signal(number, self._remember)
        signal.signal(signal.SIGINT, self._remember)
        return self

    @property
    def is_set(self) -> bool:
        """Whether a signal came since `install`."""
        return self.signal_name is not None

    @staticmethod
    def exit_code_of(signal_name: str) -> ExitCode:
        """What a run that stopped because of this signal leaves with."""
        return ExitCode.INTERRUPTED if signal_name == "SIGINT" else ExitCode.REQUEUE

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(number).name
