"""What a folder of shards holds: a table to read, a JSON for programs, a picture of the classes."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from pipelines.data.protection import removed_counts
from pipelines.data.shards import Manifest, SplitInfo, read_manifest
from pipelines.drawing import FAINT, INK, PAPER, class_colour
from pipelines.labels import font

_SHOWN_CLASSES = 20
# of the picture, in pixels
_ROW, _MARGIN, _NAME_WIDTH, _BAR_WIDTH, _COUNT_WIDTH = 18, 16, 190, 520, 90
_ROWS_PER_COLUMN = 75


def statistics_of(folder: Path) -> dict[str, Any]:
    """Everything that the manifest knows, per split: sizes, kinds, classes, and what was removed.

    Raises:
        DataError: there is no readable manifest.
    """
    manifest = read_manifest(folder)
    return {
        "folder": folder.name,
        "source": manifest.source,
        "licence": manifest.licence,
        "filter_sha256": manifest.filter_sha256,
        "protect": {name: asdict(images) for name, images in manifest.protect.items()},
        "splits": {name: _split_statistics(split) for name, split in manifest.splits.items()},
    }


def _split_statistics(split: SplitInfo) -> dict[str, Any]:
    samples = [shard.num_samples for shard in split.shards]
    sizes = [shard.num_bytes for shard in split.shards]
    histogram = dict(Counter(split.class_histogram).most_common())
    return {
        "samples": split.num_samples,
        "shards": len(split.shards),
        "bytes": sum(sizes),
        "samples_per_shard": [min(samples), max(samples)],
        "bytes_per_shard": [min(sizes), max(sizes)],
        "counts": split.counts,
        "removed": [
            {"protects": protects, "reason": reason, "samples": count}
            for (protects, reason), count in sorted(removed_counts(split).items())
        ],
        "classes_seen": sum(count > 0 for count in histogram.values()),
        "class_histogram": histogram,
    }


def print_statistics(folder: Path) -> None:
    """Print tables: sizes and kinds, what was removed, the most frequent classes."""
    statistics = statistics_of(folder)
    console = Console(soft_wrap=True)
    source = statistics["source"]
    console.print(f"{folder}: {source.get('kind')} from {source.get('root')}", highlight=False)
    console.print(f"licence: {statistics['licence'] or 'not stated'}", highlight=False)
    for name, split in statistics["splits"].items():
        console.print(_sizes_table(name, split))
        if split["class_histogram"]:
            console.print(_classes_table(name, split))
    if statistics["protect"]:
        console.print(_protection_table(statistics))
    else:
        console.print("no evaluation set is protected")


def write_statistics(folder: Path, out: Path) -> tuple[Path, ...]:
    """The files written into `out`: `stats.json`, and `histogram_<split>.png` with classes.

    Raises:
        DataError: there is no readable manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "stats.json"
    path.write_text(json.dumps(statistics_of(folder), indent=1) + "\n", encoding="utf-8")
    written = [path]
    manifest = read_manifest(folder)
    for name, split in manifest.splits.items():
        if any(split.class_histogram.values()):
            written.append(out / f"histogram_{name}.png")
            draw_histogram(manifest, name).save(written[-1])
    return tuple(written)


def draw_histogram(manifest: Manifest, split: str) -> Image.Image:
    """Bars of how often each class of a split occurs, the most frequent first, on a root scale.

    Classes that never occur are listed with 0. The scale is the square root, so that rare classes
    can be seen beside frequent ones.
    """
    entries = Counter(manifest.splits[split].class_histogram).most_common()
    most = max(count for _, count in entries)
    num_columns = -(-len(entries) // _ROWS_PER_COLUMN)
    num_rows = min(len(entries), _ROWS_PER_COLUMN)
    column_width = _NAME_WIDTH + _BAR_WIDTH + _COUNT_WIDTH
    size = (num_columns * column_width + 2 * _MARGIN, (num_rows + 2) * _ROW + 2 * _MARGIN)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    kind = manifest.source.get("kind")
    title = f"{kind} {split}: {sum(n for _, n in entries)} regions of {len(entries)} classes"
    draw.text((_MARGIN, _MARGIN), title, fill=INK, font=font(14))
    colours = {name: class_colour(place) for place, name in enumerate(manifest.names)}
    for place, (name, count) in enumerate(entries):
        column, row = divmod(place, _ROWS_PER_COLUMN)
        left = _MARGIN + column * column_width
        top = _MARGIN + (row + 2) * _ROW
        draw.text((left, top), name[:28], fill=INK if count else FAINT, font=font(12))
        width = round(_BAR_WIDTH * (count / most) ** 0.5)
        start = left + _NAME_WIDTH
        if count:
            draw.rectangle((start, top + 2, start + width, top + _ROW - 4), fill=colours[name])
        draw.text((start + width + 6, top), str(count), fill=FAINT, font=font(12))
    return picture


def _sizes_table(name: str, split: dict[str, Any]) -> Table:
    table = Table("what", "how much", title=name, title_justify="left")
    low, high = split["samples_per_shard"]
    table.add_row("samples", f"{split['samples']}")
    table.add_row("shards", f"{split['shards']}, {low} to {high} samples each")
    table.add_row("bytes", f"{split['bytes'] / 2**20:.1f} MiB")
    for kind, count in split["counts"].items():
        if kind != "images":
            table.add_row(kind.replace("_", " "), f"{count}")
    for entry in split["removed"]:
        table.add_row(f"removed: {entry['reason']} in {entry['protects']}", f"{entry['samples']}")
    return table


def _classes_table(name: str, split: dict[str, Any]) -> Table:
    histogram = list(split["class_histogram"].items())
    seen = f"{split['classes_seen']} of {len(histogram)} classes occur"
    table = Table("class", "regions", title=f"{name}: {seen}", title_justify="left")
    for class_name, count in histogram[:_SHOWN_CLASSES]:
        table.add_row(class_name, f"{count}")
    if len(histogram) > _SHOWN_CLASSES:
        rest = sum(count for _, count in histogram[_SHOWN_CLASSES:])
        table.add_row(f"{len(histogram) - _SHOWN_CLASSES} others", f"{rest}")
    return table


def _protection_table(statistics: dict[str, Any]) -> Table:
    title = f"protected, filter {statistics['filter_sha256'][:12]}"
    table = Table("evaluation set", "images", "compared by content", title=title)
    table.title_justify = "left"
    for name, images in statistics["protect"].items():
        table.add_row(name, f"{images['num_images']}", f"{images['num_hashed']}")
    return table
