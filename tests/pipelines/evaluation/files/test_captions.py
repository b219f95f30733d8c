"""Files of captions: which images count, and which mistakes are named."""

from pathlib import Path

import pytest

from pipelines.evaluation.files import FileOptions, score_files
from tests.testing.answer_files import refused, written


def test_captions_count_for_the_images_that_have_one(tmp_path: Path) -> None:
    found = written(tmp_path / "found.json", [{"image_id": 1, "caption": "a red cup"}])
    truth = written(tmp_path / "truth.json", {"1": ["A red cup."], "2": ["A dog."]})
    report = score_files(
        "caption", predictions=found, truth=truth, options=FileOptions(java="never")
    )
    assert report["protocol"] == "coco-caption/ptb-rules/1-of-2-images"
    assert report["notes"] == ["1 images of the truth have no caption: '2'"]
    assert report["bleu1"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("found", "truth", "text"),
    [
        (
            [{"image_id": 1, "caption": "a"}] * 2,
            {"1": ["a"]},
            "every image_id must occur once; '1'",
        ),
        ([{"image_id": 3, "caption": "a"}], {"1": ["a"]}, "every image_id must occur in .*: '3'"),
        ([{"image_id": 1, "caption": 5}], {"1": ["a"]}, "caption of entry 0 must be text; got 5"),
        ([], {"1": ["a"]}, "must hold at least one caption"),
        ({"1": "a"}, {"1": "a"}, "an object from image to a list of captions"),
    ],
)
def test_mistakes_in_captions_are_named(
    tmp_path: Path, found: object, truth: object, text: str
) -> None:
    files = written(tmp_path / "found.json", found), written(tmp_path / "truth.json", truth)
    refused("caption", *files, text, java="never")
