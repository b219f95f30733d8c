"""The offline files of wandb; skipped where the package is not installed."""

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import BackendUnavailable
from pipelines.tracking import wandb_tracker
from pipelines.tracking.wandb_tracker import WandbTracker

wandb = pytest.importorskip("wandb")
BLOCK, HEADER = 32768, struct.Struct("<IHB")


def open_tracker(folder: Path) -> WandbTracker:
    return WandbTracker(
        folder,
        mode="offline",
        project="test",
        name="run",
        run_id="abcd1234",
        config={"seed": 3},
    )


def records(file: Path) -> Iterator[bytes]:
    """Payloads of a LevelDB log: 32 KiB blocks of (checksum, length, kind) and data."""
    content, place, parts = file.read_bytes(), len(b":W&B123"), []
    while place + HEADER.size <= len(content):
        if BLOCK - place % BLOCK < HEADER.size:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(content, place)
        parts.append(content[place + HEADER.size : place + HEADER.size + length])
        place += HEADER.size + length
        # 1: whole, 2: first part, 3: middle, 4: last part
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def history(file: Path) -> list[dict[str, Any]]:
    from wandb.proto import wandb_internal_pb2

    rows = []
    for payload in records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == "history":
            keys = [item.key or "/".join(item.nested_key) for item in record.history.item]
            values = [json.loads(item.value_json) for item in record.history.item]
            rows.append(dict(zip(keys, values, strict=True)))
    return rows


def test_restarts_share_an_id_and_continue_the_step(tmp_path: Path) -> None:
    for steps in ((1, 2), (3, 4)):
        tracker = open_tracker(tmp_path)
        tracker.log_rows([{"step": step, "loss": step / 8} for step in steps])
        tracker.finish()
    files = sorted((tmp_path / "wandb").glob("offline-run-*-abcd1234*/run-abcd1234.wandb"))
    assert files
    rows = [row for file in files for row in history(file)]
    assert sorted((row["_step"], row["loss"]) for row in rows) == [
        *((1, 0.125), (2, 0.25), (3, 0.375), (4, 0.5))
    ]


def test_pictures_are_copied_beside_the_rows(tmp_path: Path) -> None:
    picture = tmp_path / "panel.png"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(picture)
    tracker = open_tracker(tmp_path)
    tracker.log_rows([{"step": 1, "loss": 1.0}])
    tracker.log_pictures(1, {"panel": picture})
    tracker.finish()
    assert list((tmp_path / "wandb").rglob("media/images/panel_1_*.png"))


def test_unreachable_server_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert wandb_tracker._resolve("auto") == "offline"
    assert wandb_tracker._resolve("online") == "online"


def test_reachable_server_with_a_key_means_online(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def close(self) -> None:
            pass

    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: Connection())
    assert wandb_tracker._resolve("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_tracker._resolve("auto") == "offline"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BackendUnavailable, match=r"or set tracking\.wandb=off"):
        wandb_tracker._import_wandb()


def test_after_going_back_the_earlier_steps_are_kept_again(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path)
    tracker.log_rows([{"step": step, "loss": float(step)} for step in (1, 2, 3)])
    tracker.go_back(1)
    tracker.log_rows([{"step": step, "loss": step / 8} for step in (2, 3)])
    tracker.finish()
    files = sorted((tmp_path / "wandb").glob("offline-run-*-abcd1234*/run-abcd1234.wandb"))
    assert [[(row["_step"], row["loss"]) for row in history(file)] for file in files] == [
        [(1, 1.0), (2, 2.0), (3, 3.0)],
        [(2, 0.25), (3, 0.375)],
    ]
