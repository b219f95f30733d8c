"""`python -m pipelines.pretrain`: train a recipe, or continue it where it stopped."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from pipelines.engine.signals import StopFlag

# a signal that comes while torch is imported must not kill the run: handlers first
_STOP = StopFlag()
if __name__ == "__main__":
    _STOP.install()

from pipelines.cli import (  # noqa: E402
    add_run_options,
    asked_for,
    config_of,
    main_of,
    print_config,
    show_config,
)
from pipelines.config import RunConfig  # noqa: E402
from pipelines.engine.distributed import Group, read_place  # noqa: E402
from pipelines.engine.dry_run import Elsewhere, dry_run  # noqa: E402
from pipelines.engine.loop import DrawPanels  # noqa: E402
from pipelines.engine.machine import choose_device  # noqa: E402
from pipelines.engine.session import Request, run  # noqa: E402
from pipelines.errors import ExitCode  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a run; see `--help` for what each code means."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.pretrain",
        description="Train a recipe with all its tasks at once, or continue where it stopped.",
    )
    add_run_options(parser)
    return main_of(_pretrain, parser, argv)


def _pretrain(options: argparse.Namespace) -> ExitCode:
    config = config_of(options)
    if options.print_config:
        print_config(config)
        return ExitCode.FINISHED
    place = read_place(os.environ)
    device = choose_device(config.parallel, place)
    if options.dry_run:
        elsewhere = Elsewhere.asked(options.gpus, options.gpu)
        dry_run(config, place=place, device=device, elsewhere=elsewhere)
        return ExitCode.FINISHED
    if place.is_main:
        show_config(config)
    else:
        # what every rank would say is said once; the log file of each rank has all of it
        logging.getLogger().handlers[0].setLevel(logging.WARNING)
    group = Group(place, is_cuda=device.type == "cuda")
    request = Request(
        resume=options.resume, asked=asked_for(options), draw_panels=_panels_of(config)
    )
    code = run(config, request, group=group, device=device, stop=_STOP)
    group.close()
    return code


def _panels_of(config: RunConfig) -> DrawPanels | None:
    if not config.tracking.panels_every:
        return None
    # metric packages come with it, which a run without pictures does not need
    from pipelines.evaluation.options import options_of_run
    from pipelines.evaluation.panels import TrainingPanels

    return TrainingPanels(config.run_folder / "panels", options=options_of_run(config))


if __name__ == "__main__":
    code = main()
    _STOP.ignore()
    sys.exit(code)
