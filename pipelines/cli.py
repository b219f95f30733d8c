"""What all verbs share on the command line: recipes, assignments, flags, exit codes."""

import argparse
import dataclasses
import errno
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console

from pipelines.config import RunConfig
from pipelines.engine.scaling_model import GPUS
from pipelines.errors import ExitCode, PipelineError
from pipelines.families import with_classes_of_data
from pipelines.overrides import override, to_json
from pipelines.recipes import RECIPES
from xdecoder.config import ConfigError as ModelConfigError

_SMOKE_STEPS = 3
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE)
# of one value in the overview, in characters
_LONGEST_SHOWN = 80

_EXAMPLES = """
examples:
  python -m pipelines.pretrain --recipe scenes --print-config
  python -m pipelines.pretrain --recipe scenes --dry-run
  python -m pipelines.pretrain --recipe scenes --set optimizer.learning_rate=5e-4 --run-name half
  torchrun --nproc-per-node 2 -m pipelines.pretrain --recipe scenes --output-dir runs/two

The same command again continues the run where its newest complete checkpoint is.
"""

EXIT_CODES = """
exit codes:
  0 finished             2 wrong option or configuration   3 data missing or damaged
  4 loss diverged        5 hang                            6 out of memory
  75 saved, wants to be requeued (SIGTERM, SIGUSR1, SIGUSR2)   130 saved after Ctrl-C
"""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose and change a run."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES + EXIT_CODES
    which = parser.add_argument_group("which run")
    which.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        default="scenes",
        help="a function of pipelines/recipes; default: %(default)s",
    )
    add_change_options(parser, which)


def add_change_options(parser: argparse.ArgumentParser, which: argparse._ArgumentGroup) -> None:
    """Add what every verb that trains can change, `which` holding what decides the run."""
    which.add_argument(
        "--set",
        dest="assignments",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="change one value by its dotted path, for example schedule.kind=constant; repeatable",
    )
    which.add_argument(
        "--shards",
        metavar="DIR",
        help="short for data.segmentation.shards, data.detection.shards and data.image_text.shards",
    )
    which.add_argument("--output-dir", metavar="DIR", help="the run folder; default: runs/<name>")
    which.add_argument("--run-name", metavar="NAME", help="default: what the run is made from")
    which.add_argument("--seed", type=int, help="of weights, data order and draws; default: 0")
    start = parser.add_argument_group("how it starts")
    start.add_argument(
        "--resume",
        metavar="auto|never|PATH",
        default="auto",
        help="auto: continue the run folder if it has a checkpoint; never: refuse if it has one; "
        "PATH: continue from this run or checkpoint, even under another configuration",
    )
    start.add_argument(
        "--init-from",
        metavar="PATH",
        help="take only the weights of a run, a checkpoint or a converted folder",
    )
    start.add_argument(
        "--smoke", action="store_true", help=f"{_SMOKE_STEPS} steps with everything switched on"
    )
    _add_show_options(parser)


def _add_show_options(parser: argparse.ArgumentParser) -> None:
    show = parser.add_argument_group("show and leave")
    show.add_argument("--print-config", action="store_true", help="every value, as JSON")
    show.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, print shapes, parameters, memory and batches; train nothing",
    )
    show.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="in a dry run: predict time and memory of a step on N GPUs, and on 1 to 256",
    )
    show.add_argument(
        "--gpu", choices=GPUS, default="a100", help="of which kind; default: %(default)s"
    )


def config_of(options: argparse.Namespace) -> RunConfig:
    """The configuration that the options of `add_run_options` ask for.

    Raises:
        ConfigError: an assignment or a rule between values is violated.
    """
    recipe = RECIPES[options.recipe]()
    config = with_classes_of_data(override(recipe, assignments_of(options)))
    return smoke(config) if options.smoke else config


def assignments_of(options: argparse.Namespace) -> list[str]:
    """All changes to the recipe as `path=value`, flags first so that `--set` wins."""
    shards = options.shards
    flags = {
        "data.segmentation.shards": shards,
        "data.detection.shards": shards,
        "data.image_text.shards": shards,
        "output_dir": options.output_dir,
        "name": options.run_name,
        "seed": options.seed,
        "init_from": options.init_from,
    }
    given = [f"{path}={value}" for path, value in flags.items() if value is not None]
    return given + list(options.assignments)


def asked_for(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, to be saved beside what it resolved to."""
    return {
        "recipe": options.recipe,
        "assignments": assignments_of(options),
        "smoke": options.smoke,
        "resume": options.resume,
    }


def print_config(config: RunConfig) -> None:
    """Print every value; on a terminal in colour."""
    console = Console()
    text = json.dumps(to_json(config), indent=2)
    if console.is_terminal:
        console.print_json(text)
    else:
        print(text)


def show_config(config: RunConfig) -> None:
    """Print every value in few lines, one line per group."""
    Console(soft_wrap=True).print("\n".join(_group_lines(config, "run")), highlight=True)


def _group_lines(config: Any, path: str) -> Iterator[str]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    groups = {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}
    leaves = " ".join(
        f"{name}={_short(value)}" for name, value in values.items() if name not in groups
    )
    if leaves:
        yield f"{path + ':':24} {leaves}"
    for name, value in groups.items():
        yield from _group_lines(value, name if path == "run" else f"{path}.{name}")


def _short(value: Any) -> str:
    text = repr(value)
    is_long = isinstance(value, tuple) and len(text) > _LONGEST_SHOWN
    return f"({len(value)} values)" if is_long else text


def main_of(
    verb: Callable[[argparse.Namespace], ExitCode | int],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
) -> int:
    """The exit code of a verb; known errors become one line on stderr and their code."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stdout,
        force=True,
    )
    try:
        return int(verb(parser.parse_args(argv)))
    except PipelineError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return int(error.exit_code)
    except ModelConfigError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return int(ExitCode.USAGE)
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        print(
            f"{parser.prog}: {error}. The disk of the run is full, read-only or gone; "
            "mend that and give the same command again, which goes on from the last checkpoint.",
            file=sys.stderr,
        )
        return int(ExitCode.DATA)
    except (torch.OutOfMemoryError, MemoryError) as error:
        print(
            f"{parser.prog}: out of memory ({error}). Lower data.*.batch_size, or raise "
            "parallel.accumulation by the same factor.",
            file=sys.stderr,
        )
        return int(ExitCode.OUT_OF_MEMORY)


def smoke(config: RunConfig) -> RunConfig:
    """The same run for three steps: every part is used, nothing is learned."""
    return dataclasses.replace(
        config,
        steps=_SMOKE_STEPS,
        schedule=dataclasses.replace(config.schedule, warmup_steps=0),
        checkpoint=dataclasses.replace(config.checkpoint, every_steps=2),
        tracking=dataclasses.replace(config.tracking, log_every=1, panels_every=_SMOKE_STEPS),
    )
