import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.engine.signals import StopFlag
from pipelines.errors import ExitCode

REPOSITORY = Path(__file__).resolve().parents[3]
NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    flag = StopFlag().install()
    yield flag
    flag.forced_exit.give_up()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_sets_the_flag_and_nothing_else(flag: StopFlag, number: signal.Signals) -> None:
    assert not flag.is_set
    os.kill(os.getpid(), number)
    assert flag.is_set
    assert flag.reason == number.name


def test_cluster_signals_ask_for_a_requeue_and_a_person_does_not() -> None:
    assert StopFlag.exit_code_of("SIGUSR2") == ExitCode.REQUEUE == 75
    assert StopFlag.exit_code_of("SIGTERM") == ExitCode.REQUEUE
    assert StopFlag.exit_code_of("SIGINT") == ExitCode.INTERRUPTED


def test_first_signal_is_remembered(flag: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGINT)
    assert flag.reason == "SIGUSR1"


def test_second_interrupt_leaves_at_once(flag: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_every_signal_is_counted(flag: StopFlag) -> None:
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert (flag.reason, flag.num_signals) == ("SIGUSR2", 3)


def test_continuing_after_a_suspension_is_no_reason_to_stop(flag: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGCONT)
    assert not flag.is_set


def test_request_stops_like_a_signal_but_never_hides_one(flag: StopFlag) -> None:
    flag.request("wall time")
    assert StopFlag.exit_code_of(str(flag.reason)) == ExitCode.REQUEUE
    flag.request("later")
    assert flag.reason == "wall time"


def test_signal_after_the_end_does_not_change_the_exit_code() -> None:
    # the object outlives Python's own handlers, and signals the process while it shuts down
    program = """
import os, signal, sys
from pipelines.engine.signals import StopFlag
class Late:
    def __del__(self, kill=os.kill, me=os.getpid()):
        kill(me, 12)
stop = StopFlag().install()
if sys.argv[1] == "ignore":
    stop.ignore()
signal.late = Late()
"""
    codes = [
        subprocess.run([sys.executable, "-c", program, how], cwd=REPOSITORY).returncode
        for how in ("ignore", "keep")
    ]
    assert codes == [0, -signal.SIGUSR2]
