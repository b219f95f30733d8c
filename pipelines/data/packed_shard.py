"""One shard from its records, and many shards by several processes."""

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import Any, BinaryIO

import numpy as np
from numpy import ndarray
from webdataset import TarWriter

from pipelines.data.encode import (
    ClassTable,
    EncodedSample,
    UnusableImage,
    encode_record,
    read_image,
)
from pipelines.data.protection import ImageFilter
from pipelines.data.records import CocoRecord
from pipelines.data.shards import RemovedSample, ShardInfo, file_sha256, index_dtype
from pipelines.data.work_folder import PackedShard, WorkFolder, write_whole

# starting a process takes about as long as packing this many samples
MIN_SAMPLES_PER_WORKER = 1000


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to pack; unless it is complete, images that cannot be used are only counted."""

    name: str
    records: tuple[CocoRecord, ...]
    is_complete: bool


def pack_shards(
    work: WorkFolder,
    jobs: Iterable[ShardJob],
    classes: ClassTable,
    protection: ImageFilter,
    *,
    num_workers: int,
) -> Iterator[PackedShard]:
    """The shards of the jobs as they become ready, kept in the work folder.

    Raises:
        DataError: a record contradicts its files.
    """
    pack_one = partial(_pack_shard, work, classes, protection)
    if num_workers <= 1:
        yield from map(pack_one, jobs)
        return
    jobs = iter(jobs)
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:
        # a few jobs wait at any time, never all of them: millions of records would not fit
        running = {pool.submit(pack_one, job) for job in islice(jobs, 2 * num_workers)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(pack_one, job) for job in islice(jobs, len(done))}
                yield from (future.result() for future in done)
        except BaseException:
            _cancel(running)
            raise


def _cancel(futures: set[Future[PackedShard]]) -> None:
    for future in futures:
        future.cancel()


def _end_with_parent() -> None:
    # a worker waits for jobs through a pipe that it holds open itself, so it would outlive a parent
    # that was killed
    parent = parent_process()
    assert parent is not None
    Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _pack_shard(
    work: WorkFolder, classes: ClassTable, protection: ImageFilter, job: ShardJob
) -> PackedShard:
    writing = _Writing(classes, protection, is_complete=job.is_complete)
    path = work.shards / job.name
    write_whole(path, lambda file: writing.write(file, job.records))
    rows = writing.rows()
    blob = path.read_bytes()
    for row in rows:
        row["crc32"] = zlib.crc32(blob[row["offset"] : row["offset"] + row["num_bytes"]])
    packed = PackedShard(
        info=ShardInfo(
            file=job.name, num_samples=len(rows), num_bytes=len(blob), sha256=file_sha256(path)
        ),
        rows=rows,
        histogram=writing.histogram,
        counts=writing.counts,
        removed=tuple(writing.removed),
    )
    work.keep(packed)
    return packed


class _Writing:
    def __init__(self, classes: ClassTable, protection: ImageFilter, *, is_complete: bool) -> None:
        self.classes = classes
        self.protection = protection
        self.is_complete = is_complete
        self.entries: list[dict[str, Any]] = []
        self.histogram: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.removed: list[RemovedSample] = []

    def write(self, file: BinaryIO, records: Iterable[CocoRecord]) -> None:
        # fixed time and owner: the same source gives the same bytes
        with TarWriter(file, user="", group="", mtime=0) as writer:
            for record in records:
                self._add(writer, record)

    def rows(self) -> ndarray:
        length = max((len(entry["key"]) for entry in self.entries), default=1)
        rows = np.zeros(len(self.entries), index_dtype(length))
        for row, entry in zip(rows, self.entries, strict=True):
            for name, value in entry.items():
                row[name] = value
        return rows

    def _add(self, writer: TarWriter, record: CocoRecord) -> None:
        try:
            removed = self.protection.by_identity(record)
            image = b"" if removed else read_image(record)
            removed = removed or self.protection.by_content(record, image)
            if removed is not None:
                self.removed.append(removed)
                return
            sample = encode_record(record, image, self.classes, must_decode=not self.is_complete)
        except UnusableImage:
            if self.is_complete:
                raise
            self.counts["unusable_images"] += 1
            return
        offset = writer.tarstream.offset
        writer.write({"__key__": record.sample_key, **sample.members})
        num_bytes = writer.tarstream.offset - offset
        self._count(record, sample, offset, num_bytes)

    def _count(
        self, record: CocoRecord, sample: EncodedSample, offset: int, num_bytes: int
    ) -> None:
        document = sample.document
        segments, instances = document["segments"], document["instances"]
        self.entries.append(
            {
                "key": record.sample_key.encode("utf-8"),
                "offset": offset,
                "num_bytes": num_bytes,
                "num_segments": -1 if segments is None else len(segments),
                "num_instances": len(instances or ()),
                "num_captions": len(document["captions"]),
                "num_sentences": sum(len(r["sentences"]) for r in document["regions"]),
            }
        )
        self.counts[f"images_with_{document['annotation']}"] += 1
        self.counts["transcoded_images"] += int(sample.is_transcoded)
        if segments is not None:
            self.histogram.update(segment[1] for segment in segments)
        else:
            self.histogram.update(entry["class_id"] for entry in instances or ())
