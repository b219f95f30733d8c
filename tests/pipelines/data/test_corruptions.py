"""Two hundred ways in which shards may be wrong, each in a folder of its own.

Every one must end in counted skips or in an error with a message: no crash, no hang, no exhausted
memory, no file outside of the folder. They run in a process of their own, which a crash would end.
"""

import gzip
import io
import json
import multiprocessing
import os
import resource
import shutil
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.config import AugmentConfig, DataConfig, ImageTextDataConfig
from pipelines.data.config import SegmentationDataConfig as SegmentationConfig
from pipelines.data.shards import read_index, read_manifest
from pipelines.data.stream import build_stream
from pipelines.errors import PipelineError

Members = dict[str, bytes]
Corruption = Callable[[Path, np.random.Generator], None]
COUNT = 200
# more than the samples need, and less than any of the bombs would take
MEMORY = 1 << 30
ERRORS_OF_FEW_WORDS = 40


def _keys(folder: Path) -> list[str]:
    split = read_manifest(folder).splits["train"]
    return [key.decode() for key in read_index(folder, split)["key"]]


def _shard(folder: Path, rng: np.random.Generator) -> Path:
    return folder / rng.choice([s.file for s in read_manifest(folder).splits["train"].shards])


def _flip_bits(folder: Path, rng: np.random.Generator) -> None:
    path = _shard(folder, rng)
    blob = bytearray(path.read_bytes())
    # the blocks at the end of a tar belong to no sample
    for place in rng.integers(len(blob) - 10_240, size=int(rng.integers(1, 9))):
        blob[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(blob)


def _cut(folder: Path, rng: np.random.Generator) -> None:
    path = _shard(folder, rng)
    blob = path.read_bytes()
    path.write_bytes(blob[: int(rng.integers(len(blob) - 10_240))])


def _swap(folder: Path, rng: np.random.Generator) -> None:
    files = [shard.file for shard in read_manifest(folder).splits["train"].shards]
    one, other = rng.choice(files, 2, replace=False)
    (folder / one).rename(folder / "between")
    (folder / other).rename(folder / one)
    (folder / "between").rename(folder / other)


def _fill_with_noise(folder: Path, rng: np.random.Generator) -> None:
    path = _shard(folder, rng)
    path.write_bytes(rng.bytes(path.stat().st_size))


def _remove(folder: Path, rng: np.random.Generator) -> None:
    _shard(folder, rng).unlink()


def _replace_by_folder(folder: Path, rng: np.random.Generator) -> None:
    path = _shard(folder, rng)
    path.unlink()
    path.mkdir()


def _wrong_index(folder: Path, rng: np.random.Generator) -> None:
    path = folder / "train.index.npy"
    blob = bytearray(path.read_bytes())
    blob[int(rng.integers(len(blob)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(blob)


def _wrong_manifest(folder: Path, rng: np.random.Generator) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    split = document["splits"]["train"]
    wrong = [
        lambda: document.pop("names"),
        lambda: document.update(splits=[]),
        lambda: document.update(version=9),
        lambda: split.update(num_samples=10**9),
        lambda: split.update(index="../train.index.npy"),
        lambda: split.update(index_sha256="0" * 64),
        lambda: split["shards"][0].update(file="../../../../etc/passwd"),
        lambda: split["shards"][0].update(file="/etc/passwd"),
        lambda: split["shards"][0].update(file=7),
        lambda: split["shards"][0].pop("sha256"),
        lambda: split["shards"].pop(),
        lambda: split["shards"][0].update(num_bytes=10),
    ]
    wrong[int(rng.integers(len(wrong)))]()
    text = json.dumps(document)
    path.write_text(text[: len(text) // 2] if rng.random() < 0.2 else text)


def _change_one(
    repack: Callable, change: Callable[[np.random.Generator, str, Members], Members | bytes]
) -> Corruption:
    """A corruption that was there before packing, so that checksums agree."""

    def corrupt(folder: Path, rng: np.random.Generator) -> None:
        key = str(rng.choice(_keys(folder)))
        repack(folder, key, lambda members: change(rng, key, members))

    return corrupt


def _wrong_json(rng: np.random.Generator, key: str, members: Members) -> Members:
    document = json.loads(members[f"{key}.json"])
    segment = document["segments"][0]
    replacements = [
        b"", b"{", b"null", b"[1, 2]", b"\xff\xfe\x00", b"[" * 200_000, b"1" * 5000,
        {"size_hw": [64]}, {"size_hw": [-64, 88]}, {"size_hw": [64, 1e400]}, {"size_hw": "ab"},
        {"size_hw": [64, 89]}, {"size_hw": [10**6, 10**6]}, {"segments": 3}, {"segments": [[1]]},
        {"segments": [segment] * 2}, {"segments": [[0, 0, 0]]}, {"segments": [[1 << 24, 0, 0]]},
        {"segments": [[-5, 0, 0]]}, {"segments": [[*segment[:1], 10**6, 0]]},
        {"segments": [[*segment[:1], -1, 0]]}, {"captions": None}, {"captions": []},
        {"regions": [{}]}, {"regions": "abc"}, {"regions": _regions("\u20ac")},
        {"regions": _regions("")}, {"regions": _regions("0" * 9)}, {"regions": _regions("P" * 99)},
        {"regions": _regions("oooo1")}, {"regions": _regions("_" * 4000)},
    ]  # fmt: skip
    chosen = replacements[int(rng.integers(len(replacements)))]
    if isinstance(chosen, bytes):
        return {**members, f"{key}.json": chosen}
    text = json.dumps({**document, **chosen}).replace("Infinity", "1e400")
    return {**members, f"{key}.json": text.encode()}


def _regions(rle: str) -> list[dict]:
    sentences = [{"text": "the left one", "kind": "authored"}]
    return [{"instance_id": 1, "class_id": 0, "rle": rle, "sentences": sentences}]


def _wrong_picture(rng: np.random.Generator, key: str, members: Members) -> Members:
    name = f"{key}.{rng.choice(['jpg', 'panoptic.png'])}"
    content = members[name]
    wrong = [
        b"",
        rng.bytes(500),
        content[: int(rng.integers(2, len(content) // 2))],
        b"GIF89a" + content,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        members[f"{key}.jpg" if name.endswith("png") else f"{key}.panoptic.png"],
    ]
    return {**members, name: wrong[int(rng.integers(len(wrong)))]}


def _missing_member(rng: np.random.Generator, key: str, members: Members) -> Members:
    gone = str(rng.choice(list(members)))
    return {name: content for name, content in members.items() if name != gone}


def _wrong_names(rng: np.random.Generator, key: str, members: Members) -> Members:
    jpeg = members[f"{key}.jpg"]
    names = [
        f"../{key}.jpg", f"../../outside/{key}.jpg", f"/tmp/xdec-escape/{key}.jpg", "..", f"{key}",
        f"x/{key}.jpg", f"C:\\{key}.jpg", "other.jpg", "\u20ac.jpg", "a" * 90,
    ]  # fmt: skip
    name = names[int(rng.integers(len(names)))]
    kept = {n: content for n, content in members.items() if not n.endswith(".jpg")}
    return {name: jpeg, **kept} if rng.random() < 0.5 else {**kept, name: jpeg}


def _no_file(rng: np.random.Generator, key: str, members: Members) -> bytes:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
    info = tarfile.TarInfo(f"{key}.jpg")
    info.type = kinds[int(rng.integers(len(kinds)))]
    info.linkname = str(rng.choice(["/etc/passwd", "../manifest.json", f"{key}.json"]))
    kept = {name: content for name, content in members.items() if not name.endswith(".jpg")}
    return info.tobuf() + _tar(kept)


def _sparse(rng: np.random.Generator, key: str, members: Members) -> bytes:
    info = tarfile.TarInfo(f"{key}.jpg")
    if rng.random() < 0.5:
        info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"}
        return info.tobuf(format=tarfile.PAX_FORMAT) + _tar(members)
    block = bytearray(info.tobuf(format=tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[483:495] = b"%011o\0" % (1 << 32)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + _tar(members)


def _compressed(rng: np.random.Generator, key: str, members: Members) -> bytes:
    blown = _tar({f"{key}.jpg": bytes(1 << 24), **members})
    return gzip.compress(blown if rng.random() < 0.5 else bytes(1 << 24), compresslevel=1)


def _lying_header(rng: np.random.Generator, key: str, members: Members) -> bytes:
    blob = bytearray(_tar(members))
    sizes = [b"77777777777\0", b"-0000000001\0", b"\x80" + b"\xff" * 11, b"00000000001\0"]
    blob[124:136] = sizes[int(rng.integers(len(sizes)))]
    blob[148:156] = b"        "
    blob[148:156] = b"%06o\0 " % sum(blob[:512])
    return bytes(blob)


def _bomb(
    hundred: tuple[bytes, bytes], rng: np.random.Generator, key: str, members: Members
) -> Members:
    """Pictures of 100 megapixels, and small files that say they are larger still."""
    document = json.loads(members[f"{key}.json"])
    says = {
        **members,
        f"{key}.json": json.dumps({**document, "size_hw": [10_000, 10_000]}).encode(),
    }
    jpeg, png = bytearray(members[f"{key}.jpg"]), bytearray(members[f"{key}.panoptic.png"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    png[16:24] = struct.pack(">II", 2_000_000, 2_000_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    text = Image.new("RGB", (88, 64))
    stream = io.BytesIO()
    text.save(stream, "PNG")
    body = b"big\0\0" + _zeros()
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    blown = stream.getvalue()[:33] + chunk + stream.getvalue()[33:-20]
    wrong = [
        {**members, f"{key}.jpg": hundred[0]},
        {**members, f"{key}.panoptic.png": hundred[1]},
        {**says, f"{key}.jpg": hundred[0], f"{key}.panoptic.png": hundred[1]},
        {**members, f"{key}.jpg": bytes(jpeg)},
        {**members, f"{key}.panoptic.png": bytes(png)},
        {**members, f"{key}.panoptic.png": blown},
        says,
    ]
    return wrong[int(rng.integers(len(wrong)))]


@cache
def _zeros() -> bytes:
    return zlib.compress(bytes(1 << 27), level=1)


def _tar(members: Members) -> bytes:
    blob = b""
    for name, content in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        blob += info.tobuf() + content + bytes(-len(content) % 512)
    return blob


def _hundred_megapixels() -> tuple[bytes, bytes]:
    picture = Image.new("L", (10_000, 10_000))
    files = (io.BytesIO(), io.BytesIO())
    picture.save(files[0], "JPEG", quality=1)
    picture.convert("1").save(files[1], "PNG", compress_level=1)
    return files[0].getvalue(), files[1].getvalue()


def _corruptions(repack: Callable) -> dict[str, Corruption]:
    change = partial(_change_one, repack)
    return {
        "flipped bits": _flip_bits,
        "cut off": _cut,
        "swapped": _swap,
        "noise": _fill_with_noise,
        "gone": _remove,
        "a folder": _replace_by_folder,
        "wrong index": _wrong_index,
        "wrong manifest": _wrong_manifest,
        "wrong JSON": change(_wrong_json),
        "wrong picture": change(_wrong_picture),
        "missing member": change(_missing_member),
        "wrong names": change(_wrong_names),
        "no file": change(_no_file),
        "sparse": change(_sparse),
        "compressed": change(_compressed),
        "lying header": change(_lying_header),
        "bomb": change(partial(_bomb, _hundred_megapixels())),
    }


def _config(folder: Path) -> DataConfig:
    augment = AugmentConfig(scale_range=(0.1, 2.0))
    return DataConfig(
        segmentation=SegmentationConfig(
            shards=(str(folder),), size_hw=(48, 72), batch_size=4, max_phrases=50, augment=augment
        ),
        image_text=ImageTextDataConfig(
            shards=(str(folder),), size_hw=(32, 44), batch_size=4, augment=augment
        ),
    )


def _outcome(folder: Path) -> dict:
    """What became of one pass over the folder: skipped samples, or the error that ended it."""
    damage: list[str] = []
    try:
        stream = build_stream(_config(folder), rank=0, world_size=1, seed=0)
        stream.on_damage = lambda found: damage.append(str(found))
        for batches, _ in islice(stream, 4):
            assert [len(batch.keys) for batch in batches] == [4, 4]
    except PipelineError as error:
        return {"damage": damage, "error": str(error)}
    return {"damage": damage, "error": None}


def _run_all(shards: Path, work: Path, repack: Callable, results: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    corruptions = _corruptions(repack)
    with results.open("w") as file:
        for number in range(COUNT):
            kind = list(corruptions)[number % len(corruptions)]
            folder = Path(shutil.copytree(shards, work / f"case{number}"))
            corruptions[kind](folder, np.random.default_rng(number))
            before = {path: path.stat().st_size for path in folder.rglob("*")}
            row = {"number": number, "kind": kind, **_outcome(folder)}
            row["is_untouched"] = before == {p: p.stat().st_size for p in folder.rglob("*")}
            file.write(json.dumps(row) + "\n")
            file.flush()
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def outcomes(
    shards: Path, tmp_path_factory: pytest.TempPathFactory, repack: Callable
) -> tuple[list[dict], int | None, list[str]]:
    top = tmp_path_factory.mktemp("corruptions")
    work, results = top / "inner" / "work", top / "results.jsonl"
    work.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(
        target=_run_all, args=(shards, work, repack, results)
    )
    process.start()
    began = time.monotonic()
    process.join(timeout=240)
    if process.is_alive():
        process.kill()
        process.join()
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    left = sorted(str(path.relative_to(top)) for path in top.rglob("*"))
    print(f"{len(rows)} corruptions in {time.monotonic() - began:.1f} s")
    return rows, process.exitcode, left


def test_no_corruption_crashes_or_hangs(outcomes) -> None:
    rows, exit_code, _ = outcomes
    assert exit_code == 0, f"ended after {rows[-1:]}"
    assert len(rows) == COUNT


def test_every_corruption_is_a_counted_skip_or_a_clear_error(outcomes) -> None:
    rows, _, _ = outcomes
    silent = [row for row in rows if not row["damage"] and row["error"] is None]
    assert not silent
    messages = [text for row in rows for text in (*row["damage"], row["error"]) if text]
    assert all(len(text) > ERRORS_OF_FEW_WORDS for text in messages)
    assert all("/case" in text for text in messages)
    named = [text for row in rows for text in row["damage"]]
    assert all(".tar: sample 0000" in text for text in named)
    assert sum(row["error"] is None for row in rows) > COUNT / 2


def test_no_corruption_writes_a_file(outcomes) -> None:
    rows, _, left = outcomes
    assert left == ["inner", "inner/work", "results.jsonl"]
    assert all(row["is_untouched"] for row in rows)
    assert not Path("/tmp/xdec-escape").exists()
