"""Similarities and vectors: which forms are read, and which mistakes are named."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation.files import FileOptions, score_files
from tests.testing.answer_files import refused, written


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
