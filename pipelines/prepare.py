"""`python -m pipelines.prepare <source>`: data sets on disk, and data sets as shards.

scenes   procedural scenes in COCO's formats, made here, any number of them
coco     a COCO-format folder (the scenes too) as tar shards with a manifest
...      every other data set of `docs/data.md`, by name
sources  what there is, which files each needs and where they are given out
verify   read every shard again and compare checksums
stats    what shards hold, as a table, JSON and a picture
preview  PNG panels of what the training stream delivers

The same command again continues where it was stopped, and is done at once when all is there.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipelines.data.sources import EVALUATION_SETS, SOURCES, Request, Source
from pipelines.errors import DataError, ExitCode, PipelineError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of one command line."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (PipelineError, ValueError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", ExitCode.USAGE))
    return int(ExitCode.FINISHED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sources = parser.add_subparsers(required=True, metavar="SOURCE")
    _add_scenes(sources.add_parser("scenes", help="make procedural scenes", allow_abbrev=False))
    for source in SOURCES:
        parser_of_source = sources.add_parser(
            source.name, help=source.description.replace("%", "%%"), allow_abbrev=False
        )
        _add_source(parser_of_source, source)
    _add_list(sources.add_parser("sources", help="what there is", allow_abbrev=False))
    _add_verify(sources.add_parser("verify", help="check shards", allow_abbrev=False))
    _add_stats(sources.add_parser("stats", help="count what is there", allow_abbrev=False))
    _add_preview(sources.add_parser("preview", help="draw samples", allow_abbrev=False))
    return parser


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--num-train", type=int, default=6000)
    parser.add_argument("--num-val", type=int, default=200)
    parser.add_argument("--num-zeroshot", type=int, default=100)
    parser.add_argument("--size", type=_size_hw, default=(96, 128), metavar="HxW", help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    _add_workers(parser)
    parser.set_defaults(run=_run_scenes)


def _run_scenes(options: argparse.Namespace) -> None:
    from pipelines.scenes.dataset import ScenesRequest, is_written, write_scenes

    request = ScenesRequest(
        num_train=options.num_train,
        num_val=options.num_val,
        num_zeroshot=options.num_zeroshot,
        size_hw=options.size,
        seed=options.seed,
    )
    if is_written(request, options.out):
        print(f"{options.out}: these scenes are there already")
        return
    with _progress("scenes", sum(request.counts().values())) as (progress, task):
        write_scenes(
            request,
            options.out,
            num_workers=options.workers,
            on_scene=lambda: progress.advance(task),
        )
    print(f"{options.out}: {request.counts()}")


def _add_source(parser: argparse.ArgumentParser, source: Source) -> None:
    parser.description = f"{source.description}. From {source.url}. Licence: {source.licence}."
    parser.add_argument("--root", type=Path, required=True, help="the data set's own folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards to make")
    there_are = f"; there are {', '.join(source.splits)}" if source.splits else ""
    parser.add_argument(
        "--split",
        nargs="+",
        default=["train"],
        metavar="SPLIT",
        help=f"splits to pack; A+B or A=B+C packs both as A{there_are}",
    )
    for name in source.takes:
        flags, settings = _TAKEN[name]
        parser.add_argument(*flags, dest=name, **settings)
    _add_protection(parser)
    parser.add_argument("--shard-mb", type=float, default=32.0, help="MiB of images in a shard")
    parser.add_argument("--min-shards", type=int, default=1, metavar="N", help="so many at least")
    parser.add_argument(
        "--part",
        type=_part,
        default=(0, 1),
        metavar="I/N",
        help="pack only every Nth shard from the Ith on, counted from 0; the last part to finish "
        "writes the manifest",
    )
    _add_workers(parser)
    parser.set_defaults(run=partial(_run_source, source))


# the options of `sources.Request`, by field
_TAKEN: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "split_by": (
        ("--split-by", "--refs"),
        {"default": "", "metavar": "NAME", "help": "which refs(NAME).p to use"},
    ),
    "refer": (
        ("--refer",),
        {"type": Path, "metavar": "DIR", "help": "folder of refs(*).p and instances.json"},
    ),
    "images": (
        ("--images",),
        {"type": Path, "metavar": "DIR", "help": "folder of images, if not below --root"},
    ),
    "class_list": (
        ("--classes",),
        {"type": Path, "metavar": "FILE", "help": "one class on each line"},
    ),
}


def _add_protection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protect",
        action="append",
        default=[],
        metavar="SET,SET",
        help="leave out the images of these evaluation sets: `paper`, "
        f"{', '.join(EVALUATION_SETS)}, ROOT:SPLIT of a COCO-format folder, or FILE.json",
    )
    parser.add_argument(
        "--protect-root",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="where the files of those sets lie, if not below --root; repeatable",
    )


def _run_source(source: Source, options: argparse.Namespace) -> None:
    from pipelines.data.preparation import PrepareRequest, prepare
    from pipelines.data.protection import removed_counts

    taken = {name: getattr(options, name) for name in source.takes}
    wanted = PrepareRequest(
        source=source,
        request=Request(root=options.root, split="", **taken),
        splits=options.split,
        protect=[name for text in options.protect for name in text.split(",") if name],
        protect_roots=options.protect_root,
        shard_bytes=int(options.shard_mb * 2**20),
        min_shards=options.min_shards,
        part=options.part,
        num_workers=options.workers,
    )
    with _progress("samples", None) as (progress, task):
        manifest = prepare(
            wanted,
            options.out,
            on_total=lambda total: progress.update(task, total=total),
            on_samples=lambda count: progress.advance(task, count),
        )
    if manifest is None:
        print(f"{options.out}: this part is done; others are still missing")
        return
    for name, split in manifest.splits.items():
        print(f"{options.out} {name}: {len(split.shards)} shards, {split.counts}")
        for (protects, reason), count in removed_counts(split).items():
            print(f"{options.out} {name}: {count} removed, {reason} in {protects}")
    for name, images in manifest.protect.items():
        if images.num_hashed < images.num_images:
            unseen = images.num_images - images.num_hashed
            print(f"{options.out}: {unseen} images of {name} were not there, compared by id only")


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run_list)


def _run_list(options: argparse.Namespace) -> None:
    for source in SOURCES:
        print(f"{source.name}: {source.description}\n    licence: {source.licence}")
        for needed in source.files:
            print(f"    ROOT/{needed.path}   from {needed.url}")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards")
    parser.set_defaults(run=_run_verify)


def _run_verify(options: argparse.Namespace) -> None:
    from pipelines.data.shards import read_manifest
    from pipelines.data.verification import verify_shards

    manifest = read_manifest(options.shards)
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    with _progress("shards", num_shards) as (progress, task):
        problems = verify_shards(options.shards, on_shard=lambda: progress.advance(task))
    if problems:
        raise DataError("\n".join(("shards are damaged; prepare or copy them again.", *problems)))
    print(f"{options.shards}: {num_shards} shards are as they were written")


def _add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards")
    parser.add_argument("--out", type=Path, help="folder for stats.json and histogram.png")
    parser.set_defaults(run=_run_stats)


def _run_stats(options: argparse.Namespace) -> None:
    from pipelines.data.statistics import print_statistics, write_statistics

    print_statistics(options.shards)
    if options.out is not None:
        for path in write_statistics(options.shards, options.out):
            print(path)


def _add_preview(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG panels")
    parser.add_argument("--split", default="train")
    parser.add_argument("--n", type=int, default=8, help="samples to draw, from the first on")
    parser.add_argument("--sample", default=None, metavar="KEY", help="this sample only")
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=_size_hw, default=None, metavar="HxW", help="as trained")
    parser.add_argument("--scale", type=float, nargs=2, default=(1.0, 1.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--flip", type=float, default=0.0, metavar="PROBABILITY")
    parser.add_argument("--colour", type=float, default=0.0, metavar="STRENGTH")
    parser.set_defaults(run=_run_preview)


def _run_preview(options: argparse.Namespace) -> None:
    from pipelines.data.config import AugmentConfig
    from pipelines.data.preview import draw_preview, sample_keys

    augment = AugmentConfig(
        flip_prob=options.flip, scale_range=tuple(options.scale), colour_strength=options.colour
    )
    keys = sample_keys(options.shards, options.split)[: options.n]
    options.out.mkdir(parents=True, exist_ok=True)
    for key in keys if options.sample is None else (options.sample,):
        picture = draw_preview(
            options.shards,
            options.split,
            key,
            size_hw=options.size,
            augment=augment,
            seed=options.seed,
            epoch=options.epoch,
        )
        path = options.out / f"{options.split}-{key}-epoch{options.epoch}.png"
        picture.save(path)
        print(path)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes"
    )


def _part(text: str) -> tuple[int, int]:
    number, separator, total = text.partition("/")
    if not (separator and number.isdigit() and total.isdigit() and int(number) < int(total)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N - 1; got {text!r}")
    return int(number), int(total)


def _size_hw(text: str) -> tuple[int, int]:
    height, separator, width = text.partition("x")
    if not (separator and height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, as 96x128; got {text!r}")
    return int(height), int(width)


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: object) -> Text:
        speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
        return Text(f"{speed:.0f}/s" if speed else "")


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        yield progress, progress.add_task(name, total=total)


if __name__ == "__main__":
    sys.exit(main())
