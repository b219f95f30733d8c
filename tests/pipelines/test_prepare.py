import json
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.shards import read_manifest
from pipelines.data.sources import SOURCES
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


def test_removed_and_unseen_images_are_told(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (2, 4, 999)]
    (tmp_path / "secret.json").write_text(json.dumps({"images": images, "annotations": []}))
    command = ["coco", "--root", str(root), "--out", str(tmp_path / "out"), "--workers", "1"]
    protect = ["--protect", f"{root}:val,{tmp_path}/secret.json"]
    assert main([*command, *protect]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path}/out train: 2 removed, id in secret.json" in text
    assert f"{tmp_path}/out: 3 images of secret.json were not there, compared by id only" in text
    assert "scenes:val were not there" not in text
    assert read_manifest(tmp_path / "out").splits["train"].num_samples == 3


def test_parts_are_joined_by_the_last_of_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["coco", "--root", str(root), "--out", str(tmp_path / "out"), "--min-shards", "3"]
    assert main([*command, "--part", "1/2", "--workers", "1"]) == 0
    assert "this part is done; others are still missing" in capsys.readouterr().out
    assert main([*command, "--part", "0/2", "--workers", "1"]) == 0
    assert len(read_manifest(tmp_path / "out").splits["train"].shards) == 3


def test_statistics_are_printed_and_written(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["stats", str(shards)]) == 0
    assert main(["stats", str(shards), "--out", str(tmp_path / "stats")]) == 0
    assert "classes occur" in capsys.readouterr().out
    assert len(list((tmp_path / "stats").iterdir())) == 3


def test_every_source_has_a_command_and_is_listed(capsys: pytest.CaptureFixture) -> None:
    assert main(["sources"]) == 0
    listed = capsys.readouterr().out
    for source in SOURCES:
        with pytest.raises(SystemExit) as stop:
            main([source.name, "--help"])
        assert stop.value.code == 0
        assert f"{source.name}: {source.description}" in listed
        assert all(f"ROOT/{needed.path}   from {needed.url}" in listed for needed in source.files)
    assert source.licence in " ".join(capsys.readouterr().out.split())


def test_every_source_is_described_for_its_users() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    for source in SOURCES:
        assert f"pipelines.prepare {source.name} " in text, source.name
        assert source.licence in text, source.name
        for needed in source.files:
            addresses = [word.strip("(),") for word in needed.url.split() if "://" in word]
            names = [f"`{name}`" for name in needed.path.split("|")]
            assert [part for part in (*addresses, *names) if part not in text] == []


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["coco", "--root", "/nowhere", "--out", "{tmp}"], 3, "root must be a folder"),
        (["scenes", "--out", "{tmp}/a", "--num-train", "-1"], 2, "numbers must be"),
        (["scenes", "--out", "{tmp}/a", "--size", "96"], 2, "must be HEIGHTxWIDTH"),
        (["verify", "{tmp}"], 3, "shards need a manifest"),
        (["voc", "--out", "{tmp}"], 2, "invalid choice"),
        (["voc2012", "--root", "{tmp}", "--out", "{tmp}/a"], 3, "ImageSets/Segmentation/train.txt"),
        (["vg", "--root", "{tmp}", "--out", "a", "--split", "val"], 2, "must be one of train"),
        (["coco", "--root", "{tmp}", "--out", "a", "--part", "2/2"], 2, "must be I/N"),
        (["cc3m", "--root", "{tmp}", "--out", "a", "--refer", "b"], 2, "unrecognized arguments"),
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
