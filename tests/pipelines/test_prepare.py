from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.shards import read_manifest
from pipelines.prepare import main

_SCENES = ["--num-train", "5", "--num-val", "2", "--num-zeroshot", "2", "--size", "64x88"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare") / "scenes"
    assert main(["scenes", "--out", str(folder), *_SCENES, "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def shards(root: Path) -> Path:
    out = root / "shards"
    command = ["coco", "--root", str(root), "--out", str(out), "--split", "train", "val"]
    assert main([*command, "--shard-mb", "0.01", "--workers", "1"]) == 0
    return out


def test_scenes_have_the_size_and_number_asked_for(root: Path) -> None:
    pictures = sorted((root / "images/train").iterdir())
    assert len(pictures) == 5
    with Image.open(pictures[0]) as picture:
        assert (picture.height, picture.width) == (64, 88)


def test_making_the_same_scenes_again_says_so(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["scenes", "--out", str(root), *_SCENES]) == 0
    assert "these scenes are there already" in capsys.readouterr().out


def test_shards_hold_the_splits_asked_for(shards: Path) -> None:
    manifest = read_manifest(shards)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {
        "train": 5,
        "val": 2,
    }
    assert len(manifest.splits["train"].shards) > 1


def test_verify_accepts_what_was_written_and_names_what_was_not(
    shards: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["verify", str(shards)]) == 0
    path = shards / "train-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + b"?" + whole[601:])
    assert main(["verify", str(shards)]) == 3
    message = capsys.readouterr().err
    assert "shards are damaged" in message
    assert "train-000000.tar: the checksum differs" in message
    path.write_bytes(whole)


def test_preview_writes_one_panel_per_sample(shards: Path, tmp_path: Path) -> None:
    assert main(["preview", str(shards), "--out", str(tmp_path), "--n", "2"]) == 0
    panels = sorted(tmp_path.iterdir())
    assert len(panels) == 2
    key = panels[0].name.split("-")[1]
    command = ["preview", str(shards), "--out", str(tmp_path), "--sample", key, "--epoch", "4"]
    assert main([*command, "--size", "48x72", "--scale", "0.5", "1.5", "--flip", "0.5"]) == 0
    assert (tmp_path / f"train-{key}-epoch4.png").exists()


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["coco", "--root", "/nowhere", "--out", "{tmp}"], 3, "root must be a folder"),
        (["scenes", "--out", "{tmp}/a", "--num-train", "-1"], 2, "numbers must be"),
        (["scenes", "--out", "{tmp}/a", "--size", "96"], 2, "must be HEIGHTxWIDTH"),
        (["verify", "{tmp}"], 3, "shards need a manifest"),
        (["voc", "--out", "{tmp}"], 2, "invalid choice"),
        (["scenes", "--out", "{tmp}/a", "--num", "3"], 2, "unrecognized arguments"),
    ],
)
def test_mistakes_end_with_their_exit_code(
    command: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = [part.replace("{tmp}", str(tmp_path)) for part in command]
    try:
        found = main(arguments)
    except SystemExit as stop:
        found = stop.code
    assert found == code
    assert message in capsys.readouterr().err
