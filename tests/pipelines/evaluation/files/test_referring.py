import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.coco import CocoFolder
from pipelines.errors import DataError
from pipelines.evaluation.files import FileOptions, score_files
from pipelines.evaluation.instance import encode_mask

SIZE_HW = (6, 20)


def strip(*columns: int) -> np.ndarray:
    region = np.zeros(SIZE_HW, dtype=bool)
    region[2, list(columns)] = True
    return region


# IoU 1, 1/2, 0 and 3/4; the last sentence is about the same object as the one before
TRUE = [strip(0, 1), strip(0, 1), strip(0, 1, 2), strip(4, 5, 6)]
FOUND = [strip(0, 1), strip(0, 1, 2, 3), strip(9), strip(4, 5, 6, 7)]
CIOU = (2 + 2 + 0 + 3) / (2 + 4 + 4 + 4)


def written(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def rows(regions: list[np.ndarray], **names: list[Any]) -> list[dict[str, Any]]:
    return [
        {"segmentation": encode_mask(region), **{name: names[name][i] for name in names}}
        for i, region in enumerate(regions)
    ]


IDS = [40, 7, 12, 3]
LAYOUTS = {
    "by sentence id": (rows(TRUE, sent_id=IDS), rows(FOUND, sent_id=IDS)[::-1]),
    "an object by id": (
        {str(i): encode_mask(region) for i, region in zip(IDS, TRUE, strict=True)},
        {str(i): encode_mask(region) for i, region in zip(IDS, FOUND, strict=True)},
    ),
    "id under another name": (rows(TRUE, sentence_id=IDS), rows(FOUND, id=IDS)),
    "by image and text": (
        rows(TRUE, image_id=[1, 1, 2, 2], sent=["A cup", "left", "left", "toy"]),
        {"predictions": rows(FOUND, image_id=[1, 1, 2, 2], text=["a cup ", "left", "left", "toy"])},
    ),
    "ids of each image": (
        rows(TRUE, image_id=[1, 1, 2, 2], sent_id=[0, 1, 0, 1]),
        rows(FOUND, image_id=[1, 1, 2, 2], sent_id=[0, 1, 0, 1]),
    ),
    "in order": ([encode_mask(r) for r in TRUE], [encode_mask(r) for r in FOUND]),
    "sentences of a region": (
        {
            "images": [{"id": 1, "height": SIZE_HW[0], "width": SIZE_HW[1]}],
            "annotations": [
                {"image_id": 1, "segmentation": encode_mask(TRUE[0]),
                 "sentences": [{"sent_id": 40}, {"sent_id": 7}]},
                {"image_id": 1, "segmentation": encode_mask(TRUE[2]),
                 "sentences": [{"sent_id": 12}]},
                {"image_id": 1, "segmentation": encode_mask(TRUE[3]),
                 "sentences": [{"sent_id": 3}]},
            ],
        },
        rows(FOUND, sent_id=IDS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_the_same_in_every_layout(tmp_path: Path, layout: str) -> None:
    truth, found = LAYOUTS[layout]
    report = score_files(
        "referring",
        predictions=written(tmp_path / "found.json", found),
        truth=written(tmp_path / "truth.json", truth),
    )
    assert report["ciou"] == CIOU
    assert report["miou"] == pytest.approx((1 + 0.5 + 0 + 0.75) / 4)
    assert [report[f"p{t}"] for t in (50, 60, 70, 80, 90)] == [0.75, 0.5, 0.5, 0.25, 0.25]
    assert report["official"]["oIoU"] == report["official"]["cIoU"] == CIOU
    assert report["details"]["num_sentences"] == 4


def refer_files(folder: Path) -> Path:
    """REFER's two files: object 5 has two refs, so only the last counts for xdecoder-v2."""
    sentences = [[(40, "a cup"), (7, "left cup")], [(12, "wide")], [(3, "ball")]]
    refs = [
        {"ref_id": n, "ann_id": ann_id, "image_id": 1, "split": split,
         "sentences": [{"sent_id": i, "sent": text, "raw": text} for i, text in each]}
        for n, (each, ann_id, split) in enumerate(
            zip(sentences, (5, 6, 6), ("val", "val", "val"), strict=True)
        )
    ]  # fmt: skip
    refs.append({**refs[0], "ref_id": 9, "split": "train", "sentences": []})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    objects = [
        {"id": ann_id, "image_id": 1, "category_id": 1, "segmentation": encode_mask(region)}
        for ann_id, region in ((5, TRUE[0]), (6, TRUE[2]))
    ]
    images = [{"id": 1, "height": SIZE_HW[0], "width": SIZE_HW[1]}]
    written(folder / "instances.json", {"images": images, "annotations": objects})
    return folder


def test_refers_own_files_may_be_the_truth(tmp_path: Path) -> None:
    report = score_files(
        "referring",
        predictions=written(tmp_path / "found.json", rows(FOUND, sent_id=IDS)),
        truth=refer_files(tmp_path),
        options=FileOptions(split="val"),
    )
    assert report["details"]["num_sentences"] == 4
    assert report["ground_truth"]["num_files"] == 2
    assert report["ciou"] == (2 + 2 + 0 + 0) / (2 + 4 + 4 + 7)


def test_the_released_protocol_counts_one_sentence_of_the_last_ref_of_an_object(
    tmp_path: Path,
) -> None:
    report = score_files(
        "referring",
        predictions=written(tmp_path / "found.json", rows(FOUND, sent_id=IDS)),
        truth=refer_files(tmp_path),
        options=FileOptions(split="val", protocol="xdecoder-v2"),
    )
    assert set(report["per_item"]) == {"40", "3"}
    assert report["protocol"] == "xdecoder-v2"
    assert report["miou"] == pytest.approx((2 / (2 + 1e-6)) / 2, rel=1e-12)
    assert report["miou"] < 0.5


def test_the_truth_against_itself_is_perfect_on_real_photographs(
    shared_dir: Path, tmp_path: Path
) -> None:
    root = shared_dir / "data" / "coco_mini"
    found = [
        {"sent_id": sentence.id, "segmentation": region.instance.segmentation,
         "height": record.size_hw[0], "width": record.size_hw[1]}
        for record in CocoFolder(root).split("val2017")
        for region in record.refs
        for sentence in region.sentences
    ]  # fmt: skip
    report = score_files(
        "referring",
        predictions=written(tmp_path / "found.json", found),
        truth=root / "refs",
        options=FileOptions(split="val"),
    )
    assert (report["ciou"], report["miou"], report["p90"]) == (1, 1, 1)
    assert report["details"]["num_sentences"] == len(found) > 100


@pytest.mark.parametrize("region", [None, []])
def test_nothing_found_is_an_empty_region(tmp_path: Path, region: object) -> None:
    found = [{"sent_id": 1, "segmentation": region}]
    report = score_files(
        "referring",
        predictions=written(tmp_path / "found.json", found),
        truth=written(tmp_path / "truth.json", rows(TRUE[:1], sent_id=[1])),
    )
    assert (report["ciou"], report["p50"]) == (0, 0)


@pytest.mark.parametrize(
    ("truth", "found", "text"),
    [
        (rows(TRUE, sent_id=IDS), rows(FOUND[:3], sent_id=IDS), "for every sentence .*1 of 4 lack"),
        (rows(TRUE[:2], sent_id=IDS), rows(FOUND[:3], sent_id=IDS), "every sentence must occur in"),
        (
            rows(TRUE[:2], sent_id=[5, 6]),
            rows(FOUND[:3], sent_id=[5, 6, 6]),
            "must occur once; '6'",
        ),
        (rows(TRUE, sent_id=IDS), rows(FOUND, image_id=IDS), "must be named like those of"),
        (rows(TRUE), rows(FOUND[:2]), "for 2 and 4 regions"),
        (rows(TRUE[:1], sent_id=[1]), [{"sent_id": 1}], "entry 0 must have a region under"),
        (
            rows(TRUE[:1], sent_id=[1]),
            rows([strip(1).T], sent_id=[1]),
            "must be 6x20 like the image",
        ),
        ([], rows(FOUND[:1], sent_id=[1]), "must hold at least one sentence"),
        ([{"sent_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}], [], "polygons need the height"),
        ([{"sent_id": 1, "segmentation": None}], rows(FOUND[:1], sent_id=[1]), "needs the size of"),
        ([{"ann_id": 3, "sentences": [{"sent_id": 1}]}], [], "instances.json: must be a JSON file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, truth: Any, found: Any, text: str) -> None:
    if not found and truth and "sent_id" in truth[0]:
        found = rows(FOUND[:1], sent_id=[1])
    paths = written(tmp_path / "found.json", found), written(tmp_path / "truth.json", truth)
    with pytest.raises(DataError, match=text):
        score_files("referring", predictions=paths[0], truth=paths[1])


def test_a_folder_without_one_list_of_refs_is_refused(tmp_path: Path) -> None:
    found = written(tmp_path / "found.json", rows(FOUND, sent_id=IDS))
    with pytest.raises(DataError, match=r"a folder with one refs\(\.\.\.\)\.p; it has 0"):
        score_files("referring", predictions=found, truth=tmp_path)
