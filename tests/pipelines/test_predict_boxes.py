"""`python -m pipelines.predict` for boxes: detection, grounding, masks of boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.box_drawing import draw_boxes
from pipelines.predict import main
from xdecoder.prediction import ANSWERED
from xdecoder.tasks.detection import FoundPhrases

SIZE_HW = (50, 90)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def predicted(run: Path, photo: Path, task: str, *words: str) -> int:
    asked = ["--checkpoint", str(run), "--image", str(photo), "--task", task]
    return main([*asked, "--out", str(photo.parent / "out"), "--minimum-score", "0", *words])


def facts_of(photo: Path, task: str) -> dict[str, Any]:
    stem = photo.parent / "out" / f"photo_{task}"
    with Image.open(stem.with_name(f"{stem.name}.png")) as picture:
        assert picture.width > picture.height
    facts: dict[str, Any] = json.loads(stem.with_name(f"{stem.name}.json").read_text())
    assert facts["size_hw"] == list(SIZE_HW)
    return facts


def check_box(box: list[float]) -> None:
    x, y, width, height = box
    assert width > 0
    assert height > 0
    assert x >= 0
    assert y >= 0
    assert x + width <= SIZE_HW[1] + 1e-3
    assert y + height <= SIZE_HW[0] + 1e-3


@pytest.mark.parametrize("kind", ["boxes_run", "tiny_run"])
def test_names_and_phrases_are_told_apart(
    kind: str, request: pytest.FixtureRequest, photo: Path
) -> None:
    words = ("--vocabulary", "cup,sand", "--stuff", "sand", "--text", "the left cup")
    assert predicted(request.getfixturevalue(kind), photo, "detection", *words) == 0
    facts = facts_of(photo, "detection")
    assert {each["name"] for each in facts["detections"]} <= {"cup"}
    for each in facts["detections"]:
        check_box(each["bbox"])
        assert "segmentation" not in each
    assert [each["text"] for each in facts["phrases"]] == ["the left cup"]
    assert 0 <= facts["phrases"][0]["score"] <= 1


def test_only_what_is_asked_is_answered(boxes_run: Path, photo: Path) -> None:
    assert predicted(boxes_run, photo, "detection", "--vocabulary", "cup") == 0
    facts = facts_of(photo, "detection")
    assert facts["detections"]
    assert "phrases" not in facts
    assert predicted(boxes_run, photo, "detection", "--text", "a cup", "--text", "sand") == 0
    facts = facts_of(photo, "detection")
    assert [each["text"] for each in facts["phrases"]] == ["a cup", "sand"]
    assert "detections" not in facts
    for each in facts["phrases"]:
        check_box(each["bbox"])


def test_masks_are_written_where_they_are_wanted(boxes_run: Path, photo: Path) -> None:
    words = ("--vocabulary", "cup", "--masks", "--text", "a cup")
    assert predicted(boxes_run, photo, "detection", *words) == 0
    facts = facts_of(photo, "detection")
    for each in (*facts["detections"], *facts["phrases"]):
        region = coco_mask.decode(each["segmentation"])
        assert region.shape == SIZE_HW
        assert region.sum() == each["area_px"]


def test_given_boxes_get_masks(boxes_run: Path, photo: Path) -> None:
    words = ("--box", "cup=5,6,40,45", "--box", "red = cup=10,0,90,50")
    assert predicted(boxes_run, photo, "masks_of_boxes", *words) == 0
    masks = facts_of(photo, "masks_of_boxes")["masks"]
    assert [each["name"] for each in masks] == ["cup", "red = cup"]
    assert masks[0]["bbox"] == [5, 6, 35, 39]
    region = coco_mask.decode(masks[0]["segmentation"])
    region[6:45, 5:40] = 0
    assert not region.any()


def test_phrases_are_drawn_dashed_and_names_not(
    boxes_run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def kept(image: Any, boxes: Any, **more: Any) -> Image.Image:
        drawn.extend(boxes)
        return draw_boxes(image, boxes, **more)

    monkeypatch.setattr("pipelines.box_answers.draw_boxes", kept)
    assert predicted(boxes_run, photo, "detection", "--vocabulary", "cup", "--text", "a mug") == 0
    assert {each.is_dashed for each in drawn if each.label.startswith("cup ")} == {False}
    assert [each.label[:5] for each in drawn if each.is_dashed] == ["a mug"]
    scores = [float(each.label.split()[-1]) for each in drawn if not each.is_dashed]
    # the surest on top
    assert scores == sorted(scores)


def test_a_phrase_that_fits_badly_is_written_below(boxes_run: Path, photo: Path) -> None:
    stem = photo.parent / "out" / "photo_detection.png"
    sizes = []
    for limit in ("0", "1"):
        asked = ("--text", "a mug", "--minimum-score", limit)
        assert predicted(boxes_run, photo, "detection", *asked) == 0
        assert facts_of(photo, "detection")["phrases"][0]["score"] < 1
        with Image.open(stem) as picture:
            sizes.append(picture.size)
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] > sizes[0][1]


def test_a_phrase_without_a_box_is_not_drawn(
    tiny_run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = FoundPhrases(("a mug",), torch.zeros(1), torch.zeros(1, 4), None)
    drawn: list[Any] = []

    def kept(image: Any, boxes: Any, **more: Any) -> Image.Image:
        drawn.append(list(boxes))
        return draw_boxes(image, boxes, **more)

    monkeypatch.setattr("pipelines.box_answers._found", lambda *_: (None, nothing))
    monkeypatch.setattr("pipelines.box_answers.draw_boxes", kept)
    assert predicted(tiny_run, photo, "detection", "--text", "a mug") == 0
    assert drawn == [[]]
    assert facts_of(photo, "detection")["phrases"][0]["bbox"] == [0, 0, 0, 0]


def test_nothing_is_said_to_be_found(boxes_run: Path, photo: Path) -> None:
    words = ("--vocabulary", "cup", "--minimum-score", "1")
    assert predicted(boxes_run, photo, "detection", *words) == 0
    assert facts_of(photo, "detection")["detections"] == []


@pytest.mark.parametrize(
    ("kind", "task", "words", "message"),
    [
        ("boxes_run", "masks_of_boxes", (), "needs at least one --box; got none"),
        ("boxes_run", "masks_of_boxes", ("--box", "cup=200,6,240,45"), "box 0 must be x, y, x, y"),
        ("boxes_run", "captioning", (), "an OpenSeeD knows no captioning. Ask it for panoptic"),
        ("tiny_run", "masks_of_boxes", ("--box", "cup=1,2,3,4"), "or use an OpenSeeD"),
    ],
)
def test_what_cannot_be_is_said(
    kind: str,
    task: str,
    words: tuple[str, ...],
    message: str,
    request: pytest.FixtureRequest,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert predicted(request.getfixturevalue(kind), photo, task, *words) == 2
    assert message in capsys.readouterr().err


def test_a_model_of_fixed_classes_reads_no_phrases(
    boxes_run: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = {**ANSWERED, "OpenSeeD": ("Detection",)}
    monkeypatch.setattr("pipelines.predict.ANSWERED", closed)
    assert predicted(boxes_run, photo, "detection", "--text", "a cup") == 2
    assert "reads no phrases; got --text for detection" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["cup", "cup=1,2,3", "=1,2,3,4", "cup=5,2,3,4", "cup=1,a,3,4"])
def test_a_box_that_is_none_is_refused(
    text: str, boxes_run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        predicted(boxes_run, photo, "masks_of_boxes", "--box", text)
    assert "must be NAME=LEFT,TOP,RIGHT,BOTTOM in pixels" in capsys.readouterr().err
