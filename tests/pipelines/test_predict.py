import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.engine.checkpoint_files import write_tensors
from pipelines.predict import main
from xdecoder.config import PixelDecoderConfig
from xdecoder.images import ImageFit
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, ResNetConfig
from xdecoder.prediction import PredictionConfig
from xdecoder.pretrained import settings_document


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A turned picture: 50 high and 90 wide when upright."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def predicted(tiny_run: Path, photo: Path, task: str, *words: str) -> tuple[int, Path]:
    out = photo.parent / "out"
    asked = ["--checkpoint", str(tiny_run), "--image", str(photo), "--task", task]
    thresholds = ["--object-threshold", "0", "--minimum-score", "0"]
    code = main([*asked, "--out", str(out), *thresholds, *words])
    return code, out / f"photo_{task}"


@pytest.mark.parametrize(
    ("task", "part", "words"),
    [
        ("panoptic", "segments", ("--vocabulary", "cup, sand", "--stuff", "sand")),
        ("semantic", "classes", ("--vocabulary", "cup,sand")),
        ("instance", "instances", ("--vocabulary", "cup,sand")),
        ("referring", "phrases", ("--text", "a cup")),
        ("referring", "phrases", ("--text", "a cup", "--text", "sand")),
    ],
)
def test_regions_are_drawn_and_written_at_the_upright_size(
    tiny_run: Path, photo: Path, task: str, part: str, words: tuple[str, ...]
) -> None:
    code, stem = predicted(tiny_run, photo, task, *words)
    facts = json.loads(stem.with_name(stem.name + ".json").read_text())
    assert code == 0
    assert facts["size_hw"] == [50, 90]
    for entry in facts[part]:
        region = coco_mask.decode(entry["segmentation"])
        assert region.shape == (50, 90)
        assert region.sum() == entry["area_px"]
    with Image.open(stem.with_name(stem.name + ".png")) as picture:
        assert picture.width > picture.height


def facts_of(stem: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(stem.with_name(f"{stem.name}.json").read_text())
    return facts


@pytest.mark.parametrize("beams", ["1", "3"])
def test_a_caption_is_written(tiny_run: Path, photo: Path, beams: str) -> None:
    code, stem = predicted(tiny_run, photo, "captioning", "--beams", beams, "--max-tokens", "5")
    facts = facts_of(stem)
    assert code == 0
    assert isinstance(facts["caption"], str)
    assert 1 <= facts["num_tokens"] <= 5
    assert facts["log_prob"] < 0
    assert stem.with_name(f"{stem.name}.png").is_file()


def test_a_caption_is_written_about_each_phrase(tiny_run: Path, photo: Path) -> None:
    words = ("--text", "a cup", "--text", "sand", "--max-tokens", "4")
    code, stem = predicted(tiny_run, photo, "referring_captioning", *words)
    assert code == 0
    for place, (entry, phrase) in enumerate(
        zip(facts_of(stem)["phrases"], ("a cup", "sand"), strict=True)
    ):
        assert entry["text"] == phrase
        assert (entry["caption"] is None) == (entry["area_px"] == 0)
        assert stem.with_name(f"{stem.name}_{place}.png").is_file()


def test_texts_are_ranked(tiny_run: Path, photo: Path) -> None:
    words = [word for text in ("a cup", "sand", "a ball") for word in ("--text", text)]
    _, stem = predicted(tiny_run, photo, "retrieval", *words)
    ranking = facts_of(stem)["ranking"]
    assert {row["text"] for row in ranking} == {"a cup", "sand", "a ball"}
    assert ranking[0]["similarity"] >= ranking[-1]["similarity"]


@pytest.mark.parametrize("task", ["retrieval", "region_retrieval"])
def test_a_folder_is_searched_through_an_index(tiny_run: Path, photo: Path, task: str) -> None:
    copy_turned(photo, photo.with_name("other.png"))
    out = photo.parent / "out"
    arguments = ["--checkpoint", str(tiny_run), "--image", str(photo.parent), "--task", task]
    code = main([*arguments, "--text", "A cup!", "--out", str(out)])
    facts = facts_of(out / task)
    assert code == 0
    assert facts["num_images"] == 2
    key = {"retrieval": "texts", "region_retrieval": "phrases"}[task]
    assert {Path(each["image"]).name for each in facts[key][0]["images"]} == {
        "photo.jpg",
        "other.png",
    }
    assert (out / f"{task}_0_a-cup.png").is_file()
    assert (out / "index.safetensors").is_file()


def copy_turned(photo: Path, to: Path) -> None:
    with Image.open(photo) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(to)


def test_one_broken_image_is_named_after_the_others_are_done(
    tiny_run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = photo.with_name("broken.png")
    broken.write_bytes(b"\x89PNG nothing")
    code, _ = predicted(tiny_run, photo, "captioning", "--image", str(broken), str(photo))
    assert code == 3
    error = capsys.readouterr().err
    assert "1 of 2 pictures could not be used" in error
    assert "broken.png: must be a picture" in error
    assert facts_of(photo.parent / "out" / "photo_captioning")["caption"] is not None


def test_a_missing_image_is_named(
    tiny_run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = predicted(tiny_run, photo, "captioning", "--image", "not_here.jpg")
    assert code == 3
    assert "not_here.jpg: must be a picture" in capsys.readouterr().err


def test_a_vocabulary_is_read_from_a_file(tiny_run: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# classes\ncup, with handle\nsand\n")
    words = ("--vocabulary", str(tmp_path / "names.txt"), "--stuff", "sand")
    _, stem = predicted(tiny_run, photo, "semantic", *words)
    names = {each["name"] for each in facts_of(stem)["classes"]}
    assert names <= {"cup, with handle", "sand"}
    assert names


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("panoptic", (), "needs names to look for; got none"),
        ("referring", (), "task referring needs at least one --text"),
        ("region_retrieval", (), "task region_retrieval needs at least one --text"),
        ("editing", ("--text", "a cup"), "needs --inpainting, the folder of an inpainting"),
        ("captioning", ("--beams", "0"), "must be at least 1; got 0, 8 and 50"),
    ],
)
def test_what_is_missing_is_said(
    tiny_run: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    words: tuple[str, ...],
    message: str,
) -> None:
    assert predicted(tiny_run, photo, task, *words)[0] == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_refused(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predicted(photo.parent, photo, "captioning")[0] == 2
    assert "must be a run with a complete checkpoint" in capsys.readouterr().err


def test_a_model_of_fixed_classes_segments_only(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mask_former_folder(tmp_path / "closed")
    code, stem = predicted(folder, photo, "semantic")
    assert code == 0
    assert {each["name"] for each in facts_of(stem)["classes"]} <= {"cup", "sand", "sky"}
    assert predicted(folder, photo, "captioning")[0] == 2
    assert "a MaskFormer knows no captioning" in capsys.readouterr().err
    assert predicted(folder, photo, "panoptic", "--vocabulary", "cup,sandy")[0] == 2
    assert "'sandy' is none of them, the nearest is 'sand'" in capsys.readouterr().err


def mask_former_folder(folder: Path) -> Path:
    """An untrained MaskFormer as a converted folder."""
    config = MaskFormerConfig(
        num_classes=3,
        class_names=("cup", "sand", "sky"),
        is_thing=(True, False, False),
        backbone=ResNetConfig(depths=(1, 1, 1, 1)),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=32),
        decoder=QueryDecoderConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=32, num_queries=6),
        pixel_dim=32,
        mask_dim=32,
    )
    folder.mkdir()
    write_tensors(folder / "model.safetensors", build_mask_former(config).state_dict())
    document = settings_document(config, PredictionConfig(segmentation=ImageFit(size_hw=(48, 80))))
    (folder / "config.json").write_text(json.dumps(document))
    return folder
