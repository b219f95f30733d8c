"""`python -m pipelines.finetune`: one downstream task, from data to a score.

    python -m pipelines.finetune --task list
    python -m pipelines.finetune --task refcoco --root data/refer --init-from runs/demo
    python -m pipelines.finetune --task ade20k-panoptic --root data/ADEChallengeData2016
    torchrun --nproc-per-node 8 -m pipelines.finetune --task coco-captions --root data/coco

The data are packed into shards once, the weights are scored, trained and scored again. The same
command again continues where it stopped.
"""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.engine.signals import StopFlag

# a signal that comes while torch is imported must not kill the run: handlers first
_STOP = StopFlag()
if __name__ == "__main__":
    _STOP.install()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from pipelines.cli import (  # noqa: E402
    EXIT_CODES,
    add_change_options,
    assignments_of,
    main_of,
    print_config,
    show_config,
    smoke,
)
from pipelines.config import RunConfig  # noqa: E402
from pipelines.engine.checkpoint import find_checkpoint  # noqa: E402
from pipelines.engine.distributed import Group, read_place  # noqa: E402
from pipelines.engine.dry_run import Elsewhere, dry_run  # noqa: E402
from pipelines.engine.machine import choose_device  # noqa: E402
from pipelines.engine.session import Request, run  # noqa: E402
from pipelines.errors import ExitCode  # noqa: E402
from pipelines.evaluation.options import options_of_run  # noqa: E402
from pipelines.evaluation.provenance import checkpoint_facts, config_hash  # noqa: E402
from pipelines.evaluation.suite import (  # noqa: E402
    RESULTS_NAME,
    Evaluated,
    Job,
    read_results,
    run_jobs,
)
from pipelines.evaluation.table import rich_table  # noqa: E402
from pipelines.families import build_model_of  # noqa: E402
from pipelines.finetuning.data import TaskData, find_data, usual_answers  # noqa: E402
from pipelines.finetuning.recipe import finetuning, protocol_settings  # noqa: E402
from pipelines.finetuning.start import DEFAULT_NAME, NAMES, Start, find_start  # noqa: E402
from pipelines.finetuning.tasks import TASKS, FinetuneTask, task_named  # noqa: E402
from pipelines.initial_weights import load_initial_weights  # noqa: E402
from pipelines.overrides import override  # noqa: E402

_log = logging.getLogger(__name__)
_SHARDS = Path("shards")
_BEFORE = "before"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line."""
    return main_of(_finetune, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.finetune",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    which = parser.add_argument_group("which task")
    which.add_argument("--task", required=True, help="a task, or `list` to describe all of them")
    which.add_argument(
        "--root", metavar="DIR", help="short for data.root: the data set in its owner's layout"
    )
    which.add_argument("--no-before", action="store_true", help="do not score before training")
    add_change_options(parser, which)
    parser.set_defaults(init_from=DEFAULT_NAME)
    own_help = {
        "init_from": "a run, a checkpoint, a converted folder, or the name of published weights: "
        f"{', '.join(NAMES)}; default: %(default)s",
        "shards": f"where the packed data of all tasks are kept; default: {_SHARDS}",
    }
    for action in parser._actions:
        action.help = own_help.get(action.dest, action.help)
    return parser


def _finetune(options: argparse.Namespace) -> ExitCode | int:
    if options.task == "list":
        print("\n".join(_task_lines()))
        return ExitCode.FINISHED
    task = task_named(options.task)
    assignments = _assignments(options)
    data = find_data(task, _root_of(assignments))
    start = find_start(options.init_from)
    answers = usual_answers(data) if task.kind == "answering" else ()
    planned = override(finetuning(task, start, answers=answers), assignments)
    if options.print_config:
        print_config(planned)
        return ExitCode.FINISHED
    place = read_place(os.environ)
    device = choose_device(planned.parallel, place)
    group = Group(place, is_cuda=device.type == "cuda")
    shards = group.main_does(lambda: _packed(data, options, num_workers=place.world_size))
    config = override(finetuning(task, start, shards=shards, answers=answers), assignments)
    config = smoke(config) if options.smoke else config
    if options.dry_run:
        elsewhere = Elsewhere.asked(options.gpus, options.gpu)
        dry_run(config, place=place, device=device, elsewhere=elsewhere)
        return ExitCode.FINISHED
    if place.is_main:
        show_config(config)
    scored = _Scored(task=task, data=data, start=start, config=config, group=group, device=device)
    # a new answer head knows nothing that could be scored
    if not options.no_before and not answers:
        scored.score(start.folder, f"{task.name}-{_BEFORE}")
    asked = {"task": task.name, "assignments": assignments, "init_from": options.init_from}
    request = Request(resume=options.resume, asked=asked)
    code: ExitCode | int = run(config, request, group=group, device=device, stop=_STOP)
    if code == ExitCode.FINISHED:
        code = scored.score(find_checkpoint(config.run_folder), task.name)
        if place.is_main:
            scored.tell()
    group.close()
    return code


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scored:
    """The figures of a task before and after, in the run's folder."""

    task: FinetuneTask
    data: TaskData
    start: Start
    config: RunConfig
    group: Group
    device: torch.device

    @property
    def folder(self) -> Path:
        return self.config.run_folder / "eval"

    def score(self, checkpoint: Path, name: str) -> ExitCode | int:
        """Evaluate weights on the task's own split, by its protocol."""
        model = build_model_of(self.config.model, has_initial_weights=False)
        load_initial_weights(model, checkpoint)
        evaluated = Evaluated(
            model=model.eval().to(self.device),
            group=self.group,
            facts={
                "checkpoint": checkpoint_facts(checkpoint),
                "config_sha256": config_hash(self.config),
                "is_averaged": True,
            },
        )
        settings = protocol_settings(self.task, self.start)
        options = dataclasses.replace(options_of_run(self.config), **settings)
        job = Job(
            name=name,
            load=self.data.evaluated,
            options=options,
            stages=self.task.stages,
            folder=self.folder / name,
        )
        _, code = run_jobs(evaluated, [job], self.folder)
        return code

    def tell(self) -> None:
        """Print the task's metric before and after."""
        results = read_results(self.folder / RESULTS_NAME)
        after = results.get(self.task.name, {})
        before = results.get(f"{self.task.name}-{_BEFORE}", {})
        Console().print(rich_table(after, title=f"{self.task.name}, percent"))
        values = [each.get(self.task.metric) for each in (before, after)]
        shown = " -> ".join("-" if value is None else f"{value:.1f}" for value in values)
        Console().print(f"{self.task.name}: {self.task.metric} {shown}   ({self.folder})")


def _assignments(options: argparse.Namespace) -> list[str]:
    """Changes to the task's run; where it starts is no change but what it is made from."""
    root = [f"data.root={options.root}"] if options.root else []
    given = argparse.Namespace(**{**vars(options), "init_from": None, "shards": None})
    return root + assignments_of(given)


def _root_of(assignments: Sequence[str]) -> str:
    """What was last assigned to data.root."""
    roots = [text.partition("=")[2] for text in assignments if text.startswith("data.root=")]
    return roots[-1] if roots else ""


def _packed(data: TaskData, options: argparse.Namespace, *, num_workers: int) -> tuple[str, ...]:
    """The folder of shards of the task's data, made if it is not there."""
    folder = data.shard_folder(Path(options.shards or _SHARDS))
    _log.info("%s: packing %s into %s, unless it is there", data.task.name, data.root, folder)
    data.pack(folder, num_workers=num_workers)
    return (str(folder),)


def _task_lines() -> Iterator[str]:
    for task in TASKS:
        sources = " or ".join(dict.fromkeys(each.source for each in task.locations))
        schedule = task.schedule
        yield f"{task.name:20} {task.description}"
        yield (
            f"{'':20} data: {sources}; {schedule.epochs} epochs, {schedule.batch_size} images in "
            f"a step at {schedule.size_hw[0]}x{schedule.size_hw[1]}; metric: {task.metric}"
        )


if __name__ == "__main__":
    code = main()
    _STOP.ignore()
    sys.exit(code)
