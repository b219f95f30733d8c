"""A process that has everything imported and starts the tiny run in forks of itself.

Each line on standard input, `since delay folder`, starts one run and SIGKILLs it `delay` seconds
after its `start` or after its first `batch`; `never` lets it end. The answer is one line: the exit
status, negative for a signal.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tiny_run import tiny_config, tiny_losses, tiny_stream

from pipelines.engine.distributed import Group, ProcessPlace
from pipelines.engine.session import Request, run
from pipelines.engine.signals import StopFlag
from pipelines.overrides import override


def child(folder: str, assignments: list[str], first_batch: int) -> None:
    log = Path(folder).with_suffix(".log")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    def stream(*arguments: Any, **options: Any) -> Iterator[Any]:
        os.write(first_batch, b".")
        yield from tiny_stream(*arguments, **options)

    request = Request(make_losses=tiny_losses, make_stream=stream)
    config = override(tiny_config(folder), assignments)
    group = Group(ProcessPlace(), is_cuda=False)
    code = run(config, request, group=group, device=torch.device("cpu"), stop=StopFlag())
    os._exit(int(code))


def main() -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        since, delay, folder = line.split()
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            child(folder, sys.argv[1:], writer)
        os.close(writer)
        if since == "batch":
            # nothing comes if the run has no step left, or fails
            os.read(reader, 1)
        os.close(reader)
        if since != "never":
            time.sleep(float(delay))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
