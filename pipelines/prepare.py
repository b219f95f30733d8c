"""`python -m pipelines.prepare <source>`: data sets on disk, and data sets as shards.

scenes   procedural scenes in COCO's formats, made here, any number of them
coco     a COCO-format folder (the scenes too) as tar shards with a manifest
verify   read every shard again and compare checksums
preview  PNG panels of what the training stream delivers
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
    _add_coco(sources.add_parser("coco", help="pack a COCO-format folder", allow_abbrev=False))
    _add_verify(sources.add_parser("verify", help="check shards", allow_abbrev=False))
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


def _add_coco(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, help="COCO-format folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards to make")
    parser.add_argument(
        "--split", nargs="+", default=["train"], metavar="SPLIT", help="splits to pack"
    )
    parser.add_argument("--refs", default=None, metavar="NAME", help="which refs(NAME).p to use")
    parser.add_argument("--shard-mb", type=float, default=32.0, help="MiB of images in a shard")
    _add_workers(parser)
    parser.set_defaults(run=_run_coco)


def _run_coco(options: argparse.Namespace) -> None:
    from pipelines.data.packing import pack_coco

    with _progress("samples", None) as (progress, task):
        manifest = pack_coco(
            options.root,
            options.out,
            options.split,
            refs_name=options.refs,
            shard_bytes=int(options.shard_mb * 2**20),
            num_workers=options.workers,
            on_total=lambda total: progress.update(task, total=total),
            on_samples=lambda count: progress.advance(task, count),
        )
    for name, split in manifest.splits.items():
        print(f"{options.out} {name}: {len(split.shards)} shards, {split.counts}")


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
