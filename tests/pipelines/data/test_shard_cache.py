import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipelines.data import shard_cache
from pipelines.data.shard_cache import ShardCache, default_cache_folder, read_remote
from pipelines.errors import ConfigError, DataError


@pytest.fixture
def bucket() -> Iterator[str]:
    """A remote folder that only this process, and those that it forks, can see."""
    url = "memory://bucket"
    yield url
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "_PAUSES", (0.0, 0.0))


def _upload(bucket: str, name: str, content: bytes) -> dict[str, object]:
    with fsspec.open(f"{bucket}/{name}", "wb") as file:
        file.write(content)
    return {
        "url": f"{bucket}/{name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_bytes": len(content),
    }


def _files(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.is_file())


def test_a_file_is_fetched_once(bucket: str, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", max_bytes=1000)
    facts = _upload(bucket, "a.tar", b"first" * 20)
    path = cache.fetch(**facts)
    assert path.read_bytes() == b"first" * 20
    fsspec.filesystem("memory").rm("/bucket/a.tar")
    assert cache.fetch(**facts) == path
    assert _files(cache) == [facts["sha256"]]


def test_a_size_that_nobody_knows_is_asked_for(bucket: str, tmp_path: Path) -> None:
    facts = _upload(bucket, "a.npy", b"index" * 30)
    del facts["num_bytes"]
    assert ShardCache(tmp_path, max_bytes=1000).fetch(**facts).read_bytes() == b"index" * 30


def test_the_file_that_was_used_longest_ago_makes_room(bucket: str, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", max_bytes=350)
    files = [_upload(bucket, name, name.encode() * 100) for name in "abc"]
    for facts in files:
        cache.fetch(**facts)
    old = time.time() - 1000
    for place, facts in enumerate(files):
        os.utime(cache.folder / facts["sha256"], (old + place, old + place))
    cache.fetch(**files[0])
    new = _upload(bucket, "d", b"d" * 120)
    cache.fetch(**new)
    left = sorted([files[0]["sha256"], files[2]["sha256"], new["sha256"]])
    assert _files(cache) == left
    assert sum(path.stat().st_size for path in cache.folder.iterdir() if path.is_file()) <= 350


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 99 + b"y", r"^memory://bucket/a: must have 100 bytes and checksum .*says; got 100"),
        (b"x" * 40, r"^memory://bucket/a: must have 100 bytes .*got 40 and"),
        (b"x" * 400, r"^memory://bucket/a: must have 100 bytes .*got 400 and"),
    ],
)
def test_a_file_that_is_not_the_one_meant_is_refused(
    bucket: str, tmp_path: Path, content: bytes, message: str
) -> None:
    cache = ShardCache(tmp_path, max_bytes=1000)
    facts = _upload(bucket, "a", b"x" * 100)
    _upload(bucket, "a", content)
    with pytest.raises(DataError, match=message):
        cache.fetch(**facts)
    assert _files(cache) == []


def test_a_file_that_is_not_there_is_named_by_its_url(bucket: str, tmp_path: Path) -> None:
    facts = _upload(bucket, "a", b"x")
    with pytest.raises(DataError, match=r"^memory://bucket/b: cannot be read \(FileNotFound"):
        ShardCache(tmp_path, max_bytes=9).fetch(**{**facts, "url": "memory://bucket/b"})
    with pytest.raises(DataError, match=r"^memory://bucket/b: cannot be read \(FileNotFound"):
        read_remote("memory://bucket/b")


@pytest.mark.parametrize("url", ["nothing://bucket/a", "hdfs9://a/b"])
def test_a_protocol_that_nobody_speaks_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match=rf"^{url}: its protocol must be one that fsspec knows"):
        read_remote(url)


def test_a_network_that_fails_now_and_then_is_asked_again(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = _upload(bucket, "a", b"x" * 50)
    failures = iter([OSError("reset"), KeyError("a service's own error")])
    system = type(fsspec.filesystem("memory"))
    plain_open = system.open

    def fail_twice(self: object, *args: object, **kwargs: object) -> object:
        for failure in failures:
            raise failure
        return plain_open(self, *args, **kwargs)

    monkeypatch.setattr(system, "open", fail_twice)
    assert ShardCache(tmp_path, max_bytes=99).fetch(**facts).read_bytes() == b"x" * 50
    failures = iter([OSError("reset")] * 9)
    with pytest.raises(DataError, match=r"memory://bucket/a: cannot be read \(OSError: reset"):
        read_remote(facts["url"])


def test_a_file_larger_than_the_cache_names_the_setting(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.cache_gib: .* room for memory://bucket/a \(50 b"):
        ShardCache(tmp_path, max_bytes=49).fetch(**_upload(bucket, "a", b"x" * 50))


def test_a_name_that_is_no_checksum_is_refused(bucket: str, tmp_path: Path) -> None:
    facts = {**_upload(bucket, "a", b"x"), "sha256": "../../escape"}
    with pytest.raises(DataError, match=r"SHA-256 in hexadecimal digits; got '\.\./\.\./escape'"):
        ShardCache(tmp_path / "cache", max_bytes=49).fetch(**facts)
    assert not (tmp_path / "escape").exists()


def test_a_folder_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.cache_dir must be a folder that can be written"):
        ShardCache(tmp_path / "file", max_bytes=9)


def test_what_a_killed_process_left_is_removed(bucket: str, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, max_bytes=100)
    (tmp_path / ("0" * 64 + ".partial")).write_bytes(bytes(90))
    facts = _upload(bucket, "a", b"x" * 50)
    cache.fetch(**facts)
    assert _files(cache) == [facts["sha256"]]


def test_the_environment_says_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDEC_DATA_CACHE", "/scratch/shards")
    assert default_cache_folder() == Path("/scratch/shards")
    monkeypatch.delenv("XDEC_DATA_CACHE")
    assert default_cache_folder().name == f"xdecoder-shards-{os.getuid()}"


def _fetch_all(folder: Path, files: list[dict], rounds: int, first: int, results: object) -> None:
    cache = ShardCache(folder, max_bytes=250)
    largest = 0
    for number in range(rounds * len(files)):
        facts = files[(number + first) % len(files)]
        try:
            content = cache.fetch(**facts).read_bytes()
            assert hashlib.sha256(content).hexdigest() == facts["sha256"]
        except FileNotFoundError:
            # another process needed the room before the file was opened
            continue
        sizes = [_size(path) for path in folder.iterdir() if path.is_file()]
        largest = max(largest, sum(sizes))
    results.put(largest)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_processes_of_a_node_share_a_cache_within_its_bound(bucket: str, tmp_path: Path) -> None:
    files = [_upload(bucket, name, name.encode() * 100) for name in "abcd"]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_fetch_all, args=(tmp_path, files, 12, first, results))
        for first in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert all(results.get() <= 250 for _ in processes)
    assert not [name for name in _files(ShardCache(tmp_path, max_bytes=1)) if "partial" in name]


def test_a_fetch_waits_while_others_fill_the_folder(bucket: str, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, max_bytes=100)
    other = _upload(bucket, "b", b"y" * 80)
    partial = tmp_path / f"{other['sha256']}.partial"
    with cache._lock(other["sha256"]):
        partial.write_bytes(bytes(80))
        thread = threading.Thread(target=cache.fetch, kwargs=_upload(bucket, "a", b"x" * 50))
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive()
        partial.replace(tmp_path / other["sha256"])
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert _files(cache) == [hashlib.sha256(b"x" * 50).hexdigest()]
