import os
import signal
from collections.abc import Iterator

import pytest

from pipelines.engine.signals import StopFlag
from pipelines.errors import ExitCode

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@pytest.fixture
def flag() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield StopFlag().install()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_sets_the_flag_and_nothing_else(flag: StopFlag, number: signal.Signals) -> None:
    assert not flag.is_set
    os.kill(os.getpid(), number)
    assert flag.is_set
    assert flag.signal_name == number.name


def test_cluster_signals_ask_for_a_requeue_and_a_person_does_not() -> None:
    assert StopFlag.exit_code_of("SIGUSR2") == ExitCode.REQUEUE == 75
    assert StopFlag.exit_code_of("SIGTERM") == ExitCode.REQUEUE
    assert StopFlag.exit_code_of("SIGINT") == ExitCode.INTERRUPTED


def test_first_signal_is_remembered(flag: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGINT)
    assert flag.signal_name == "SIGUSR1"


def test_second_interrupt_leaves_at_once(flag: StopFlag) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
