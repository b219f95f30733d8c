"""A flag that signals set, so that a run stops between two steps and not inside one.

    SIGTERM, SIGUSR1, SIGUSR2   the cluster wants the machine: save, leave with 75, be requeued
    SIGINT                      a person wants to stop: save, leave with 130; again: leave at once
    SIGCONT                     nothing: SLURM sends it along with the others, but alone it only
                                means that a suspended job goes on

    signal --> flag --> ranks agree at a step boundary --> save --> leave with the agreed code
       |
       +--> forced_exit.py: if that takes too long, leave without saving

A second signal while saving changes nothing: the save goes on, and leaving follows it anyway.

Imports nothing heavy: the default action of these signals is death, so the handlers must be in
place before torch is imported.
"""

import signal
from types import FrameType

from pipelines.engine.forced_exit import ForcedExit
from pipelines.errors import ExitCode

_REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_STOP_SIGNALS = (*_REQUEUE_SIGNALS, signal.SIGINT)


class StopFlag:
    """Remembers the first reason to stop; the loop asks for it at every step boundary.

    reason: the name of the first signal, or what `request` was given. num_signals: how many came.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.num_signals = 0
        self.forced_exit = ForcedExit(
            {
                number: ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.HANG
                for number in _STOP_SIGNALS
            }
        )

    def install(self) -> "StopFlag":
        """Itself, with the handlers in place for the rest of the process."""
        for number in _STOP_SIGNALS:
            signal.signal(number, self._remember)
        self.forced_exit.watch()
        return self

    def ignore(self) -> None:
        """Let signals do nothing from now on: the run is over, and only its process is left.

        Python gives handlers up while it shuts down, and a finished run would die of a signal.
        """
        self.forced_exit.give_up()
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @property
    def is_set(self) -> bool:
        """Whether there is a reason to stop."""
        return self.reason is not None

    def request(self, reason: str) -> None:
        """Stop at the next step boundary as if a signal of the cluster had come."""
        self.reason = self.reason or reason

    @staticmethod
    def exit_code_of(reason: str) -> ExitCode:
        """What a run that stopped for this reason leaves with."""
        return ExitCode.INTERRUPTED if reason == "SIGINT" else ExitCode.REQUEUE

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.num_signals += 1
        if number == signal.SIGINT and self.reason == "SIGINT":
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)
