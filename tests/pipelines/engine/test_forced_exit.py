"""Processes that cannot stop by themselves: one waits in a lock for ever, one on the wall clock."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
# a lock that nobody gives back holds the main thread outside of Python, as a dead collective does
STUCK = """
import ctypes, os, sys, time
from pipelines.engine.signals import StopFlag
stop = StopFlag().install()
stop.forced_exit.seconds, latest = float(sys.argv[1]) or None, float(sys.argv[2])
stop.forced_exit.latest = time.time() + latest if latest else None
stop.forced_exit.last_words = lambda: print("last words", flush=True)
child = os.fork()
if child == 0:
    time.sleep(120)
    os._exit(0)
print("ready", child, flush=True)
ctypes.PyDLL(None)
pause = ctypes.CDLL(None).pthread_barrier_wait
barrier = ctypes.create_string_buffer(64)
ctypes.CDLL(None).pthread_barrier_init(barrier, None, 2)
pause(barrier)
"""


def start(seconds: float, latest: float = 0.0) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(seconds), str(latest)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[1])


def end(process: subprocess.Popen[str], child: int) -> tuple[str, str]:
    if process.poll() is None:
        process.kill()
    os.kill(child, signal.SIGKILL)
    return process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR2, 5), (signal.SIGINT, 130)])
def test_stuck_process_leaves_with_stacks_and_a_code(number: signal.Signals, code: int) -> None:
    process, child = start(0.3)
    process.send_signal(number)
    assert process.wait(timeout=10) == code
    output, errors = end(process, child)
    assert output == "last words\n"
    assert f"{number.name} came" in errors
    assert "leaving with" in errors
    assert 'File "<string>", line' in errors


def test_end_of_the_job_comes_before_a_long_grace() -> None:
    process, child = start(60.0, latest=1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 5
    end(process, child)


def test_without_a_limit_and_without_a_signal_nothing_happens() -> None:
    process, child = start(0.0)
    process.send_signal(signal.SIGTERM)
    calm, calm_child = start(0.2)
    # a child shares the pipe of its parent, but its signals are its own
    os.kill(calm_child, signal.SIGUSR1)
    time.sleep(1.2)
    assert process.poll() is None
    assert calm.poll() is None
    end(process, child)
    end(calm, calm_child)
