"""Shards behind a web server, read through fsspec and aiohttp as from any host."""

import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipelines.data import shard_cache
from pipelines.data.config import DataConfig, DetectionDataConfig, SegmentationDataConfig
from pipelines.data.config import ImageTextDataConfig as TextConfig
from pipelines.data.stream import build_stream
from pipelines.errors import DataError

pytest.importorskip("aiohttp", reason="needs the extra `remote`")


class _Whole(SimpleHTTPRequestHandler):
    """Files as Python's own server gives them out: always whole."""

    def log_message(self, *_args: object) -> None:
        pass


class _Ranges(_Whole):
    """Files as storage services give them out: also in parts."""

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        self.send_response(206)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "_PAUSES", ())


def _serve(handler: type[_Whole], folder: Path) -> Iterator[str]:
    # a process of its own: workers must not inherit the socket that it listens on
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    process = get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    server.socket.close()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        process.kill()
        process.join()


@pytest.fixture(params=[_Whole, _Ranges])
def address(request: pytest.FixtureRequest, shards: Path) -> Iterator[str]:
    yield from _serve(request.param, shards)


def _keys(address: str, cache: Path, num_workers: int) -> list[list[tuple[str, ...]]]:
    config = DataConfig(
        segmentation=SegmentationDataConfig(shards=(address,), size_hw=(48, 72), batch_size=4),
        detection=DetectionDataConfig(shards=(address,), size_hw=(40, 64), batch_size=2),
        image_text=TextConfig(batch_size=0),
        num_workers=num_workers,
        cache_dir=str(cache),
    )
    stream = build_stream(config, rank=0, world_size=1, seed=0)
    try:
        return [[batch.keys for batch in batches] for batches, _ in islice(stream, 4)]
    finally:
        stream.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shards_of_a_web_server_give_the_stream_of_local_ones(
    address: str, shards: Path, tmp_path: Path, num_workers: int
) -> None:
    found = _keys(address, tmp_path / "cache", num_workers)
    assert found == _keys(str(shards), tmp_path / "unused", 0)
    assert len(list((tmp_path / "cache").iterdir())) > 3


def test_what_a_web_server_does_not_have_is_named(address: str, tmp_path: Path) -> None:
    message = rf"^{address}/nowhere/manifest\.json: cannot be read \(FileNotFound.*Look at the addr"
    with pytest.raises(DataError, match=message):
        _keys(f"{address}/nowhere", tmp_path, 0)
