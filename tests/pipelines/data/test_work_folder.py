"""A preparation that was stopped, and one that several jobs share."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipelines.data import packing
from pipelines.data.coco import CocoFolder
from pipelines.data.packing import PackRequest, pack
from pipelines.data.work_folder import WorkFolder, write_whole
from pipelines.errors import DataError
from pipelines.prepare import main

_SHARD_BYTES = 3_000


def _request(root: Path, **changes) -> PackRequest:
    request = PackRequest(
        splits={"train": CocoFolder(root).split("train")},
        source={"kind": "coco", "root": root.name},
        shard_bytes=_SHARD_BYTES,
    )
    return replace(request, **changes)


class _Stopped(Exception):
    pass


def _stop_after(count: int):
    def on_samples(num_samples: int) -> None:
        nonlocal count
        count -= 1
        if count == 0:
            raise _Stopped

    return on_samples


@pytest.fixture(scope="session")
def whole(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of an undisturbed preparation."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert pack(_request(scenes_root), out) is not None
    return _files(out)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_stopped_preparation_keeps_what_is_done(
    scenes_root: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(_Stopped):
        pack(_request(scenes_root), out, on_samples=_stop_after(5))
    assert not out.exists()
    done = {path: path.stat().st_ino for path in (tmp_path / "out.partial/shards").iterdir()}
    assert 5 <= len(done) < len(whole) - 2
    counted: list[int] = []
    assert pack(_request(scenes_root), out, on_samples=counted.append) is not None
    assert sum(counted) == 13
    assert _files(out) == whole
    for path, number in done.items():
        assert (out / path.name).stat().st_ino == number
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_finished_shards_are_checked_before_they_are_kept(
    scenes_root: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out, shards = tmp_path / "out", tmp_path / "out.partial/shards"
    with pytest.raises(_Stopped):
        pack(_request(scenes_root), out, on_samples=_stop_after(6))
    flipped, short, gone = sorted(shards.iterdir())[:3]
    blob = bytearray(flipped.read_bytes())
    blob[700] ^= 1
    flipped.write_bytes(blob)
    short.write_bytes(short.read_bytes()[:-512])
    gone.unlink()
    # what a process leaves that was killed while it wrote
    (shards / ".train-000007.tar.12345").write_bytes(b"half")
    assert pack(_request(scenes_root), out) is not None
    assert _files(out) == whole


def test_a_finished_preparation_is_done_at_once(scenes_root: Path, tmp_path: Path) -> None:
    first = pack(_request(scenes_root), tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    counted: list[int] = []
    assert pack(_request(scenes_root), tmp_path / "out", on_samples=counted.append) == first
    assert counted == []
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_another_plan_does_not_continue_this_one(scenes_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(_Stopped):
        pack(_request(scenes_root), out, on_samples=_stop_after(2))
    with pytest.raises(DataError, match=r"out\.partial: holds an unfinished preparation of other"):
        pack(_request(scenes_root, shard_bytes=9_000), out)
    assert pack(_request(scenes_root), out) is not None
    with pytest.raises(DataError, match="must be absent or an empty folder"):
        pack(_request(scenes_root, shard_bytes=9_000), out)


def test_parts_make_the_same_shards_and_the_last_joins_them(
    scenes_root: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    totals: list[int] = []
    for number in (2, 0):
        request = _request(scenes_root, part=(number, 3))
        assert pack(request, out, on_total=totals.append) is None
        assert not out.exists()
    last = _request(scenes_root, part=(1, 3))
    manifest = pack(last, out, on_total=totals.append)
    assert manifest is not None
    assert sum(totals) == 13
    assert max(totals) < 7
    assert _files(out) == whole
    # a part that comes late, or again, finds everything done
    assert pack(_request(scenes_root, part=(2, 3)), out) == manifest


def test_there_are_shards_for_every_part(scenes_root: Path, tmp_path: Path) -> None:
    request = _request(scenes_root, shard_bytes=1 << 30, min_shards=4)
    manifest = pack(request, tmp_path / "out")
    assert manifest is not None
    assert [s.num_samples for s in manifest.splits["train"].shards] == [4, 3, 3, 3]


def test_jobs_that_finish_at_once_agree(
    scenes_root: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    finish = WorkFolder.finish

    def both_finish(work: WorkFolder, manifest, indices) -> None:
        finish(WorkFolder(out), manifest, indices)
        finish(work, manifest, indices)

    monkeypatch.setattr(WorkFolder, "finish", both_finish)
    assert pack(_request(scenes_root), out) is not None
    assert _files(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_another_filled_meanwhile_is_not_overwritten(
    scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    finish = WorkFolder.finish

    def filled_first(work: WorkFolder, manifest, indices) -> None:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
        finish(work, manifest, indices)

    monkeypatch.setattr(WorkFolder, "finish", filled_first)
    with pytest.raises(DataError, match=r"out: could not be written"):
        pack(_request(scenes_root), out)
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "out.partial/parts").glob("*.json"))) > 3


def test_an_error_in_one_part_keeps_the_others(own_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pack(_request(own_root, part=(0, 2)), out) is None
    done = sorted((tmp_path / "out.partial/parts").iterdir())
    for path in (own_root / "annotations/panoptic_train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="is listed, not there"):
        pack(_request(own_root, part=(1, 2)), out)
    assert sorted((tmp_path / "out.partial/parts").iterdir()) == done


_PROGRAM = """
import sys
from pathlib import Path
from pipelines.data import packing
from pipelines.prepare import main

if __name__ == "__main__":
    packing.MIN_SAMPLES_PER_WORKER = 1
    sys.exit(main(sys.argv[1:]))
"""
_WORDS = ["coco", "--shard-mb", "0.002", "--workers", "2"]


def _wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def test_a_killed_process_ends_its_workers_and_can_be_continued(
    scenes_root: Path, tmp_path: Path
) -> None:
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(_PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    words = [*_WORDS, "--root", str(scenes_root), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, str(program), *words], env=environment, stdout=subprocess.DEVNULL
    )
    parts = tmp_path / "out.partial/parts"
    _wait_for(lambda: out.exists() or (parts.is_dir() and any(parts.glob("*.json"))))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for(lambda: not any(child.is_running() for child in children))
    assert main(words) == 0
    undisturbed = tmp_path / "undisturbed"
    request = _request(scenes_root, shard_bytes=int(0.002 * 2**20))
    assert pack(request, undisturbed) is not None
    tars = {name: blob for name, blob in _files(out).items() if name.endswith((".tar", ".npy"))}
    expected = _files(undisturbed)
    assert tars == {name: expected[name] for name in tars}
    assert len(tars) == len(expected) - 1


def test_an_error_in_a_process_is_told_and_stops_the_others(
    own_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MIN_SAMPLES_PER_WORKER", 1)
    (own_root / "annotations/panoptic_train/000000000004.png").unlink()
    with pytest.raises(DataError, match=r"000000000004\.png: is listed, not there"):
        pack(_request(own_root, num_workers=2), tmp_path / "out")


def test_a_file_that_cannot_be_finished_leaves_no_trace(tmp_path: Path) -> None:
    def write(file) -> None:
        file.write(b"half")
        raise _Stopped

    with pytest.raises(_Stopped):
        write_whole(tmp_path / "a.tar", write)
    assert list(tmp_path.iterdir()) == []
