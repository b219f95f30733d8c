"""What files may look like, and which mistakes are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ConfigError, DataError
from pipelines.evaluate import main
from pipelines.evaluation.files import FileOptions, score_files
from pipelines.evaluation.instance import encode_mask
from pipelines.evaluation.panoptic import ids_to_rgb

SIZE_HW = (20, 30)


def blob(top: int, left: int, height: int = 8, width: int = 10) -> np.ndarray:
    region = np.zeros(SIZE_HW, dtype=bool)
    region[top : top + height, left : left + width] = True
    return region


def written(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def refused(metric: str, predictions: Path, truth: Path, text: str, **options: Any) -> None:
    with pytest.raises(DataError, match=text):
        score_files(metric, predictions=predictions, truth=truth, options=FileOptions(**options))


def panoptic_pair(folder: Path) -> tuple[Path, Path]:
    ids = np.where(blob(2, 3), 70000, 0)
    pictures = folder / "pngs"
    pictures.mkdir()
    Image.fromarray(ids_to_rgb(ids)).save(pictures / "a.png")
    row = {"image_id": 1, "file_name": "a.png"}
    segments = [{"id": 70000, "category_id": 7}]
    categories = [{"id": 7, "name": "cup", "isthing": 1}]
    truth = {"annotations": [{**row, "segments_info": segments}], "categories": categories}
    found = {"annotations": [{**row, "segments_info": segments}]}
    return written(folder / "found.json", found), written(folder / "truth.json", truth)


def edited(path: Path, change: Callable[[Any], object]) -> Path:
    document = json.loads(path.read_text())
    change(document)
    return written(path, document)


def test_pngs_are_found_in_the_only_folder_that_has_them(tmp_path: Path) -> None:
    found, truth = panoptic_pair(tmp_path)
    assert score_files("panoptic", predictions=found, truth=truth)["pq"] == 1


def test_pngs_in_two_folders_need_a_name(tmp_path: Path) -> None:
    found, truth = panoptic_pair(tmp_path)
    (tmp_path / "others").mkdir()
    Image.fromarray(ids_to_rgb(np.zeros(SIZE_HW, int))).save(tmp_path / "others" / "a.png")
    refused("panoptic", found, truth, "Name the folder with --predictions-folder")
    options = {"predictions_folder": tmp_path / "pngs", "truth_folder": tmp_path / "pngs"}
    report = score_files("panoptic", predictions=found, truth=truth, options=FileOptions(**options))
    assert report["pq"] == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["annotations"].clear(), r"prediction for every image of truth\.json; 1 of 1"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "every image_id must occur once"),
        (lambda d: d["annotations"][0]["segments_info"].clear(), r"\[70000\] occur in only one"),
        (lambda d: d["annotations"][0]["segments_info"][0].pop("id"), "must have id and category"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(id=0), "other than 0, which is"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(category_id=9),
         "every category_id must occur in .*truth.json; 1 do not: 9"),
        (lambda d: d["annotations"][0].update(file_name="b.png"), "b.png"),
        (lambda d: d["annotations"][0].pop("image_id"), "entry 0 must have 'image_id'; it has"),
        (lambda d: d.pop("annotations"), "must be a list of objects, or hold one under"),
    ],
)  # fmt: skip
def test_mistakes_in_panoptic_predictions_are_named(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    found, truth = panoptic_pair(tmp_path)
    (tmp_path / "pngs").rename(tmp_path / "found")
    edited(found, change)
    refused("panoptic", found, truth, text, truth_folder=tmp_path / "found")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.pop("categories"), "must list `categories` with id and isthing"),
        (lambda d: d["categories"][0].pop("isthing"), "must have id and isthing; lacks 'isthing'"),
    ],
)
def test_a_truth_without_classes_is_refused(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    found, truth = panoptic_pair(tmp_path)
    refused("panoptic", found, edited(truth, change), text)


def test_a_folder_without_one_panoptic_json_is_refused(tmp_path: Path) -> None:
    found, _ = panoptic_pair(tmp_path)
    refused("panoptic", found, tmp_path / "pngs", "or a folder with one; got 0 JSON files")


def detection_pair(folder: Path) -> tuple[Path, Path]:
    row = {"image_id": 1, "category_id": 7, "segmentation": encode_mask(blob(2, 3))}
    images = [{"id": 1, "height": SIZE_HW[0], "width": SIZE_HW[1]}]
    truth = {"images": images, "annotations": [row], "categories": [{"id": 7, "name": "cup"}]}
    found = written(folder / "found.json", [{**row, "score": 0.5}])
    return found, written(folder / "truth.json", truth)


def test_boxes_sizes_and_ids_that_a_truth_lacks_follow_from_its_masks(tmp_path: Path) -> None:
    found, truth = detection_pair(tmp_path)
    for metric in ("instance", "box"):
        report = score_files(metric, predictions=found, truth=truth)
        assert report["ap"] == pytest.approx(1)
        assert report["notes"] == [
            "annotations are numbered anew: their ids were missing, equal or 0"
        ]
    assert report["ap_large"] is None


@pytest.mark.parametrize(
    "segmentation",
    [
        [[3, 2, 13, 2, 13, 10, 3, 10]],
        {"size": list(SIZE_HW), "counts": [62, 8, *[12, 8] * 9, 350]},
    ],
    ids=["polygons", "plain RLE"],
)
def test_masks_may_be_polygons_or_plain_rle(tmp_path: Path, segmentation: object) -> None:
    found, truth = detection_pair(tmp_path)
    edited(found, lambda rows: rows[0].update(segmentation=segmentation))
    assert score_files("instance", predictions=found, truth=truth)["ap"] == pytest.approx(1)


def test_no_results_score_zero(tmp_path: Path) -> None:
    found, truth = detection_pair(tmp_path)
    assert score_files("instance", predictions=written(found, []), truth=truth)["ap"] == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d[0].update(image_id=9), "every image_id must occur in .*; 1 do not: 9"),
        (lambda d: d[0].update(category_id=9), "every category_id must occur in .*; 1 do not: 9"),
        (lambda d: d[0].pop("score"), "entry 0 must have 'score'"),
        (lambda d: d[0].update(score="high"), "score of entry 0 must be a number; got 'high'"),
        (lambda d: d[0].pop("segmentation"), "entry 0 must have 'segmentation'"),
        (lambda d: d[0]["segmentation"].update(size=[30, 20]), "must be 20x30 like the image; got"),
        (lambda d: d[0].update(segmentation={"size": [20, 30], "counts": [5, 7]}), "sum to 12"),
        (lambda d: d[0].update(segmentation={"counts": "abc"}), "must be RLE .* or polygons"),
    ],
)
def test_mistakes_in_results_are_named(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    found, truth = detection_pair(tmp_path)
    refused("instance", edited(found, change), truth, text)


def test_a_box_needs_four_numbers(tmp_path: Path) -> None:
    found, truth = detection_pair(tmp_path)
    edited(found, lambda rows: rows[0].update(bbox=[1, 2, 3]))
    refused(
        "box", found, truth, r"bbox of entry 0 must be \[x, y, width, height\]; got \[1, 2, 3\]"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.pop("images"), "an object with `images`, `annotations`"),
        (lambda d: d["annotations"][0].update(image_id=5), "of entry 0 must be in `images`; got 5"),
        (lambda d: d["images"][0].pop("height"), "image 1 must have height and width"),
    ],
)
def test_mistakes_in_an_instances_file_are_named(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    found, truth = detection_pair(tmp_path)
    refused("instance", found, edited(truth, change), text)


def labels(path: Path, values: list[list[int]], dtype: type = np.uint8) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array(values, dtype=dtype)).save(path)


def test_sixteen_bit_labels_and_several_ignored_values_count(tmp_path: Path) -> None:
    labels(tmp_path / "truth" / "a.png", [[0, 400, 400], [65535, 9, 400]], np.uint16)
    labels(tmp_path / "found" / "a.tif", [[0, 400, 9], [3, 400, 400]], np.uint16)
    options = FileOptions(ignore=(65535, 9))
    report = score_files(
        "semantic", predictions=tmp_path / "found", truth=tmp_path / "truth", options=options
    )
    assert report["details"]["num_classes"] == 400
    assert report["miou"] == pytest.approx((1 + 2 / 3) / 2)
    assert report["per_class"] == {"0": {"iou": 1.0}, "400": {"iou": 2 / 3}}


def test_without_a_count_the_largest_label_says_how_many_classes(tmp_path: Path) -> None:
    labels(tmp_path / "truth" / "a.png", [[0, 1, 255]])
    labels(tmp_path / "found" / "a.png", [[0, 4, 255]])
    report = score_files("semantic", predictions=tmp_path / "found", truth=tmp_path / "truth")
    assert report["details"]["num_classes"] == 5
    assert (report["miou"], report["details"]["num_classes_in_mean"]) == (pytest.approx(1 / 3), 3)


@pytest.mark.parametrize(
    ("true", "found", "options", "text"),
    [
        ({"a": [[0, 1]]}, {"b": [[0, 1]]}, {}, r"1 are missing: 'a'"),
        ({"a": [[0, 1]]}, {"a": [[0], [1]]}, {}, "one size; got"),
        ({"a": [[0, 7]]}, {"a": [[0, 1]]}, {"num_classes": 2}, r"0\.\.1 or ignored \(255\); got 7"),
        ({"a": [[0, 7]]}, {"a": [[0, 1]]}, {"num_classes": 0}, "num_classes must be positive"),
        ({}, {"a": [[0, 1]]}, {}, "must hold label pictures"),
        ({"a": [[[1, 2, 3]] * 2]}, {"a": [[0, 1]]}, {}, "one label a pixel .* Colours must be"),
    ],
)
def test_mistakes_in_label_folders_are_named(
    tmp_path: Path, true: dict, found: dict, options: dict[str, Any], text: str
) -> None:
    for side, pictures in (("truth", true), ("found", found)):
        (tmp_path / side).mkdir()
        for name, values in pictures.items():
            labels(tmp_path / side / f"{name}.png", values)
    refused("semantic", tmp_path / "found", tmp_path / "truth", text, **options)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    labels(tmp_path / "truth" / "a.png", [[0, 1]])
    refused("semantic", tmp_path / "gone", tmp_path / "truth", "there is no such folder")


def test_a_name_with_two_suffixes_is_ambiguous(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        labels(tmp_path / "truth" / name, [[0, 1]])
    refused("semantic", tmp_path / "truth", tmp_path / "truth", "must be unique without suffix")


def saved(path: Path, **arrays: np.ndarray) -> Path:
    if "" in arrays:
        np.save(path, arrays[""])
    else:
        np.savez(path, **arrays)
    return path


SIMILARITY = np.array([[0.9, 0.1, 0.2, 0.3], [0.8, 0.7, 0.1, 0.95], [0.0, 0.2, 0.9, 0.1]])
OWNERS = [0, 1, 2, 2]


@pytest.mark.parametrize(
    "document",
    [
        OWNERS,
        {"image_of_text": OWNERS},
        {"texts_of_image": [[0], [1], [2, 3]]},
        {"images": [{"id": 50}, {"id": 3}, {"id": 9}, {"id": 4}],
         "annotations": [{"image_id": i, "id": n} for n, i in enumerate([50, 3, 9, 9])]},
        {"images": [{"split": "test", "cocoid": 8, "sentences": [{"sentid": 1}]},
                    {"split": "train", "cocoid": 1, "sentences": [{"sentid": 7}]},
                    {"split": "test", "cocoid": 2, "sentences": [{"sentid": 2}]},
                    {"split": "test", "cocoid": 3, "sentences": [{"sentid": 3}, {"sentid": 4}]}]},
    ],
    ids=["list", "image_of_text", "texts_of_image", "captions", "karpathy"],
)  # fmt: skip
def test_pairs_may_be_given_in_five_ways(tmp_path: Path, document: object) -> None:
    found = saved(tmp_path / "found.npy", **{"": SIMILARITY})
    report = score_files(
        "retrieval", predictions=found, truth=written(tmp_path / "truth.json", document)
    )
    # image 1 likes text 3 best; text 3 likes image 1 best
    assert (report["i2t_r1"], report["t2i_r1"]) == (pytest.approx(2 / 3), pytest.approx(3 / 4))
    assert report["official"]["IR@5"] == 1


def test_ids_put_rows_and_columns_in_any_order(tmp_path: Path) -> None:
    captions = {
        "images": [{"id": 50}, {"id": 3}, {"id": 9}],
        "annotations": [{"image_id": i, "id": 70 + n} for n, i in enumerate([50, 3, 9, 9])],
    }
    rows, columns = np.array([2, 0, 1]), np.array([3, 1, 0, 2])
    found = saved(
        tmp_path / "found.npz",
        similarity=SIMILARITY[rows][:, columns],
        image_ids=np.array([50, 3, 9])[rows],
        text_ids=70 + columns,
    )
    report = score_files(
        "retrieval", predictions=found, truth=written(tmp_path / "truth.json", captions)
    )
    assert report["i2t_r1"] == pytest.approx(2 / 3)


def test_vectors_are_compared_by_cosine_from_a_file_or_a_folder(tmp_path: Path) -> None:
    images, texts = np.eye(3)[:, [1, 0, 2]] * [[5.0], [0.1], [1.0]], np.eye(3)[[1, 0, 2, 2]] * 3
    file = saved(tmp_path / "found.npz", images=images, texts=texts)
    folder = tmp_path / "found"
    folder.mkdir()
    np.save(folder / "images.npy", images)
    np.save(folder / "texts.npy", texts)
    truth = written(tmp_path / "truth.json", OWNERS)
    for predictions in (file, folder):
        assert score_files("retrieval", predictions=predictions, truth=truth)["i2t_r1"] == 1


def test_texts_beyond_a_number_of_each_image_can_be_left_out(tmp_path: Path) -> None:
    found = saved(tmp_path / "found.npy", **{"": SIMILARITY[:, :3]})
    report = score_files(
        "retrieval",
        predictions=found,
        truth=written(tmp_path / "truth.json", OWNERS),
        options=FileOptions(texts_per_image=1),
    )
    assert report["details"]["num_texts"] == 3


@pytest.mark.parametrize(
    ("arrays", "document", "text"),
    [
        ({"": SIMILARITY.T}, OWNERS, r"similarity must be \[3, 4\] .* got \[4, 3\]. Rows are"),
        ({"": SIMILARITY * np.nan}, OWNERS, r"finite numbers"),
        ({"": SIMILARITY}, [0, 0, 2, 2], "every one of the 3 images needs a caption"),
        ({"": SIMILARITY}, {"pairs": []}, "must give the image .* of each text"),
        ({"vectors": SIMILARITY}, OWNERS, r"must hold `similarity`, or `images` and `texts`; got"),
        ({"images": np.zeros((3, 2)), "texts": np.ones((4, 2))}, OWNERS, "must not be zero; 3 are"),
        ({"similarity": SIMILARITY, "text_ids": np.array([1, 1, 2, 3])}, OWNERS, "occur twice"),
        ({"similarity": SIMILARITY, "text_ids": np.arange(4) + 5}, OWNERS, "every text id must"),
        ({"": SIMILARITY}, {"images": [{"split": "val"}]}, r"of split 'test'; it has \['val'\]"),
    ],
)  # fmt: skip
def test_mistakes_about_retrieval_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], document: object, text: str
) -> None:
    found = saved(tmp_path / ("found.npy" if "" in arrays else "found.npz"), **arrays)
    refused("retrieval", found, written(tmp_path / "truth.json", document), text)


def test_a_file_that_is_no_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "found.npy"
    path.write_text("0.1")
    refused("retrieval", path, written(tmp_path / "truth.json", OWNERS), "an .npy or .npz file")


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


def question(ident: int, answers: list[str], kind: str) -> dict[str, Any]:
    people = [{"answer": answer, "answer_id": n} for n, answer in enumerate(answers)]
    return {"question_id": ident, "answer_type": kind, "question_type": "is", "answers": people}


def test_questions_are_scored_by_type_too(tmp_path: Path) -> None:
    rows = [question(1, ["yes"] * 10, "yes/no"), question(2, ["2"] * 2 + ["3"] * 8, "number")]
    truth = written(tmp_path / "truth.json", {"annotations": rows})
    answers = [{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "two"}]
    report = score_files("vqa", predictions=written(tmp_path / "found.json", answers), truth=truth)
    # two of ten said 2: for each of those two one other agrees, for each of the eight two do
    number = (2 * 1 / 3 + 8 * 2 / 3) / 10
    assert report["accuracy_number"] == pytest.approx(number)
    assert report["accuracy"] == pytest.approx((1 + number) / 2)
    assert report["accuracy_yes_no"] == 1


@pytest.mark.parametrize(
    ("answers", "rows", "text"),
    [
        (
            [],
            [question(1, ["a"], "other")],
            "a prediction for every question of truth.json; 1 of 1",
        ),
        ([{"question_id": 1, "answer": "a"}], [], "every question must occur in"),
        (
            [{"question_id": 1, "answer": "a"}],
            [{"question_id": 1}],
            "must have `answers` of people",
        ),
        ([], [], "must hold at least one question"),
    ],
)
def test_mistakes_about_questions_are_named(
    tmp_path: Path, answers: object, rows: object, text: str
) -> None:
    truth = written(tmp_path / "truth.json", {"annotations": rows})
    refused("vqa", written(tmp_path / "found.json", answers), truth, text)


def test_the_three_options_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--predictions", str(tmp_path), "--metric", "box"]) == 2
    assert "--ground-truth is missing" in capsys.readouterr().err


def test_help_shows_an_example_of_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in (
        "panoptic:",
        "instance, box:",
        "semantic:",
        "referring:",
        "caption:",
        "retrieval:",
        "vqa:",
    ):
        assert f"\n{name}" in text


def test_the_figures_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, truth = detection_pair(tmp_path)
    words = ["--predictions", str(found), "--ground-truth", str(truth), "--metric", "instance"]
    assert main(words) == 0
    assert "ap_large" in capsys.readouterr().out


def test_unknown_metrics_and_protocols_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metric must be one of \['panoptic', .* got 'depth'"):
        score_files("depth", predictions=tmp_path, truth=tmp_path)
    with pytest.raises(ConfigError, match=r"protocol must be one of .* got 'mine'"):
        FileOptions(protocol="mine")


def test_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text("{")
    refused("vqa", path, path, r"found\.json: must be JSON; got")
    refused("vqa", path, tmp_path / "gone.json", "there is no such file")
