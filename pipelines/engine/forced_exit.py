"""The end of a process that was asked to stop and does not.

    signal --(C handler)--> pipe --> thread --(time is over)--> stacks, last words, exit

Handlers written in Python wait until the main thread leaves the call it is in, and a collective
whose other side is gone does not return. The pipe is written by Python's C handler at once, and the
thread runs because the call has released the interpreter. Leaving by itself keeps a hung job
inside its time: its batch script can still requeue it from the newest checkpoint.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping

# how often the thread looks at the clock once a signal has come, in seconds
_INTERVAL = 0.2


class ForcedExit:
    """Leaves with the code of the first signal, when its time is over; never without a signal.

    seconds: after the signal; None = never. latest: not later than this, in seconds since 1970.
    last_words: called before the exit, for example to write an event.
    """

    def __init__(self, exit_codes: Mapping[int, int]) -> None:
        self.seconds: float | None = None
        self.latest: float | None = None
        self.last_words: Callable[[], None] | None = None
        self._exit_codes = exit_codes
        self._is_watching = False

    def watch(self) -> None:
        """Start listening for signals; their handlers must be in place."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._leave_forks_alone()
        self._is_watching = True
        threading.Thread(target=self._wait, args=(reader,), daemon=True, name="stop").start()

    def give_up(self) -> None:
        """Never leave by force from now on."""
        self._is_watching = False
        _stop_listening()

    def _leave_forks_alone(self) -> None:
        """A forked worker shares the pipe, but its signals are no business of this process.

        They wait from before the fork until the worker has let go of the pipe.
        """

        def hold() -> None:
            held.append(signal.pthread_sigmask(signal.SIG_BLOCK, self._exit_codes))

        def release() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held.pop())

        def let_go() -> None:
            _stop_listening()
            release()

        held: list[set[int | signal.Signals]] = []
        os.register_at_fork(before=hold, after_in_parent=release, after_in_child=let_go)

    def _wait(self, reader: int) -> None:
        first, began = 0, 0.0
        while not first:
            numbers = [number for number in os.read(reader, 64) if number in self._exit_codes]
            first, began = (numbers[0] if numbers else 0), time.monotonic()
        while self._is_watching:
            waited = time.monotonic() - began
            if self._is_over(waited):
                self._leave(first, waited)
            time.sleep(_INTERVAL)

    def _is_over(self, waited: float) -> bool:
        if self.seconds is None:
            return False
        return waited >= self.seconds or (self.latest is not None and time.time() >= self.latest)

    def _leave(self, number: int, waited: float) -> None:
        name, code = signal.Signals(number).name, self._exit_codes[number]
        print(
            f"forced exit: {name} came {waited:.0f} s ago and the run has not stopped by itself; "
            f"leaving with {code} without saving. The stacks of all threads follow.",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        try:
            if self.last_words is not None:
                self.last_words()
        finally:
            os._exit(code)


def _stop_listening() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
