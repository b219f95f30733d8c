"""COCO and REFER as their archives unpack, and folders of one's own in COCO's format."""

import pickle

import numpy as np
import pytest

from pipelines.errors import ConfigError, DataError

HW = (24, 37)
# of 2014 and 2017 alike
IDS = (139, 285)


def _box(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _instance(number: int, image_id: int, category_id: int, box: tuple) -> dict:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": _box(*box),
        "area": box[2] * box[3],
        "bbox": list(box),
        "iscrowd": 0,
    }


CATEGORIES = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def _images(pattern: str) -> list[dict]:
    return [{"id": i, "file_name": pattern.format(i), "height": HW[0], "width": HW[1]} for i in IDS]


def _write_coco(layout, split: str = "train2017", pattern: str = "{:012d}.jpg") -> None:
    images = _images(pattern)
    for image in images:
        layout.picture(f"{split}/{image['file_name']}")
    instances = [
        _instance(1, 139, 1, (2, 3, 20, 12)),
        _instance(2, 139, 90, (8, 6, 5, 4)),
        _instance(3, 285, 90, (1, 1, 6, 6)),
    ]
    layout.json(
        f"annotations/instances_{split}.json",
        {"images": images, "annotations": instances, "categories": CATEGORIES},
    )
    captions = [{"id": n, "image_id": i, "caption": f"image {i} "} for n, i in enumerate(IDS)]
    layout.json(f"annotations/captions_{split}.json", {"images": images, "annotations": captions})


def _write_panoptic(layout, *, folder: str = "annotations/panoptic_train2017") -> None:
    pixels = np.zeros((*HW, 3), np.uint8)
    pixels[:, :20, 1] = 5
    layout.labels(f"{folder}/000000000139.png", pixels)
    info = {"id": 1280, "category_id": 199, "area": 480, "bbox": [0, 0, 20, 24], "iscrowd": 0}
    layout.json(
        "annotations/panoptic_train2017.json",
        {
            "images": _images("{:012d}.jpg")[:1],
            "annotations": [
                {"image_id": 139, "file_name": "000000000139.png", "segments_info": [info]}
            ],
            "categories": [
                {**CATEGORIES[0], "isthing": 1},
                {**CATEGORIES[1], "isthing": 1},
                {"id": 199, "name": "wall-other-merged", "isthing": 0},
            ],
        },
    )


def test_the_official_layout_of_2017_is_read(layout, pack) -> None:
    _write_coco(layout)
    _write_panoptic(layout)
    packed = pack("coco")
    first, second = (packed.samples[f"{i:012d}"] for i in IDS)
    assert packed.manifest.names == ("person", "toothbrush", "wall")
    assert (first.document["annotation"], second.document["annotation"]) == ("panoptic", "masks")
    assert first.document["segments"] == [[1280, 2, 0]]
    assert (second.document["segments"], second.document["captions"]) == (None, ["image 285"])
    counts = packed.manifest.splits["train"].counts
    assert (counts["images_with_panoptic"], counts["images_with_masks"]) == (1, 1)


def test_pngs_may_lie_beside_the_annotations(layout, pack) -> None:
    _write_coco(layout)
    _write_panoptic(layout, folder="panoptic_train2017")
    assert pack("coco-panoptic").samples["000000000139"].region(2).sum() == 24 * 20


def test_instances_alone_become_segments_with_small_things_in_front(layout, pack) -> None:
    _write_coco(layout)
    _write_panoptic(layout)
    packed = pack("coco-instances")
    sample = packed.samples["000000000139"]
    person, brush = np.zeros(HW, bool), np.zeros(HW, bool)
    person[3:15, 2:22], brush[6:10, 8:13] = True, True
    assert packed.manifest.names == ("person", "toothbrush")
    assert np.array_equal(sample.region(0), person & ~brush)
    assert np.array_equal(sample.region(1), brush)
    assert {s.document["annotation"] for s in packed.samples.values()} == {"things"}
    assert packed.manifest.splits["train"].counts["captions"] == 0


def test_boxes_alone_leave_everything_else_behind(layout, pack) -> None:
    _write_coco(layout)
    _write_panoptic(layout)
    # several lists of phrases, of which boxes need none
    for name in ("unc", "google"):
        layout.path(f"refs/refs({name}).p").write_bytes(pickle.dumps([]))
    packed = pack("coco-boxes")
    sample = packed.samples["000000000139"]
    assert packed.manifest.names == ("person", "toothbrush")
    assert packed.manifest.is_thing == (True, True)
    assert sample.ids is None
    assert sample.document["instances"] == [
        {"id": 1, "class_id": 0, "is_crowd": 0, "rle": None, "bbox": [2, 3, 20, 12]},
        {"id": 2, "class_id": 1, "is_crowd": 0, "rle": None, "bbox": [8, 6, 5, 4]},
    ]
    left = [sample.document[name] for name in ("annotation", "segments", "captions", "regions")]
    assert left == ["boxes", None, [], []]
    counts = packed.manifest.splits["train"].counts
    assert (counts["instances"], counts["segments"], counts["captions"]) == (3, 0, 0)


def test_boxes_need_a_list_of_instances(layout, pack) -> None:
    _write_coco(layout)
    layout.path("annotations/instances_train2017.json").unlink()
    with pytest.raises(DataError, match=r"coco-boxes: files are missing.*\n.*instances_train\*"):
        pack("coco-boxes")


def test_captions_alone_need_no_classes(layout, pack) -> None:
    _write_coco(layout, "train2014", "COCO_train2014_{:012d}.jpg")
    packed = pack("coco-captions", "train2014")
    assert sorted(packed.samples) == [f"COCO_train2014_{i:012d}" for i in IDS]
    assert packed.manifest.names == ()


def test_two_years_need_to_be_told_apart(layout, pack) -> None:
    _write_coco(layout)
    _write_coco(layout, "train2014", "COCO_train2014_{:012d}.jpg")
    with pytest.raises(DataError, match=r"split must be one of \['train2014', 'train2017'\]"):
        pack("coco-captions", "train")
    both = pack("coco-captions", "all=train2014+train2017")
    assert len(both.samples) == 4
    assert list(both.manifest.splits) == ["all"]


def test_a_split_text_that_names_nothing_is_refused(layout, pack) -> None:
    _write_coco(layout)
    with pytest.raises(ConfigError, match=r"--split must be A, A\+B or NAME=A\+B; got 'train\+'"):
        pack("coco", "train+")


def test_splits_with_other_classes_cannot_be_one(layout, pack) -> None:
    _write_coco(layout)
    _write_coco(layout, "val2017", "{:012d}.jpg")
    path = layout.path("annotations/instances_val2017.json")
    path.write_text(path.read_text().replace("toothbrush", "brush"))
    with pytest.raises(ConfigError, match="only splits with the same classes"):
        pack("coco-instances", "train+val")


def test_a_missing_annotation_file_is_named(layout, pack) -> None:
    _write_coco(layout)
    with pytest.raises(DataError) as caught:
        pack("coco-panoptic")
    assert f"{layout.root}/annotations/panoptic_train*.json   from http://images." in str(
        caught.value
    )


def _write_refer(layout, name: str, split_by: str) -> None:
    images = _images("COCO_train2014_{:012d}.jpg")
    instances = [_instance(11, 139, 90, (2, 3, 9, 8)), _instance(12, 139, 1, (20, 3, 9, 8))]
    layout.json(
        f"{name}/instances.json",
        {"images": images, "annotations": instances, "categories": CATEGORIES},
    )
    refs = [
        {
            "ref_id": 5,
            "ann_id": 12,
            "image_id": 139,
            "split": split,
            "sentences": [
                {"sent_id": n, "sent": text, "raw": text, "tokens": text.split()}
                for n, text in enumerate(("the man", "left one"))
            ],
        }
        for split in ("val",)
    ]
    layout.path(f"{name}/refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))


@pytest.mark.parametrize(
    ("name", "split_by"), [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "google")]
)
def test_refer_gives_segments_and_sentences(layout, pack, name: str, split_by: str) -> None:
    _write_refer(layout, name, split_by)
    layout.picture("images/mscoco/images/train2014/COCO_train2014_000000000139.jpg")
    packed = pack(name, "val", split_by=split_by)
    (sample,) = packed.samples.values()
    assert [r["instance_id"] for r in sample.document["regions"]] == [12]
    sentences = [s["text"] for s in sample.document["regions"][0]["sentences"]]
    assert sentences == ["the man", "left one"]
    # all annotated instances of the image are segments, not the referred one only
    assert sorted(s[1] for s in sample.document["segments"]) == [0, 1]


def test_refer_takes_the_usual_split_and_images_of_2017(layout, pack) -> None:
    _write_refer(layout, "refcocog", "umd")
    layout.picture("elsewhere/000000000139.jpg")
    packed = pack("refcocog", "val", images=layout.root / "elsewhere")
    assert list(packed.samples) == ["000000000139"]


def test_refer_without_what_was_asked_for_is_named(layout, pack) -> None:
    _write_refer(layout, "refcoco", "unc")
    folder = "images/mscoco/images/train2014"
    with pytest.raises(DataError, match=rf"{folder}/\*\.jpg   from http://images.cocodataset"):
        pack("refcoco", "val")
    layout.picture(f"{folder}/COCO_train2014_000000000139.jpg")
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: has no reference of split 'testA'"):
        pack("refcoco", "testA")
    with pytest.raises(ConfigError, match="--split-by must be one of unc, google; got 'umd'"):
        pack("refcoco", "val", split_by="umd")
    with pytest.raises(DataError, match=r"refcoco\+/refs\(unc\)\.p   from https://github"):
        pack("refcoco+", "val")
    path = layout.path("refcoco/instances.json")
    path.write_text(path.read_text().replace('{"id": 139,', '{"id": 140,'))
    with pytest.raises(DataError, match="must list image 139"):
        pack("refcoco", "val")


def test_phrases_join_the_annotations_of_coco(layout, pack) -> None:
    _write_coco(layout)
    _write_panoptic(layout)
    _write_refer(layout, "refcocog", "umd")
    path = layout.path("refcocog/refs(umd).p")
    path.write_bytes(path.read_bytes().replace(b"X\x03\x00\x00\x00val", b"X\x05\x00\x00\x00train"))
    packed = pack("coco", refer=layout.root / "refcocog", split_by="umd")
    assert [r["instance_id"] for r in packed.samples["000000000139"].document["regions"]] == [12]


def test_a_class_list_cuts_ones_own_folder(layout, pack) -> None:
    _write_coco(layout)
    layout.text("classes.txt", "toothbrush")
    packed = pack("custom", class_list=layout.root / "classes.txt")
    assert packed.manifest.names == ("toothbrush",)
    documents = [sample.document for sample in packed.samples.values()]
    assert [len(document["instances"]) for document in documents] == [1, 1]


def test_a_class_list_names_numbers_that_a_folder_leaves_unnamed(layout, pack) -> None:
    _write_coco(layout)
    path = layout.path("annotations/instances_train2017.json")
    path.write_text(path.read_text().replace(', "categories"', ', "others"'))
    layout.text("classes.txt", "90\tbrush", "1\tsomebody")
    packed = pack("custom", class_list=layout.root / "classes.txt")
    assert packed.manifest.names == ("brush", "somebody")
    assert packed.samples["000000000285"].document["segments"] == [[1, 0, 0]]


def test_class_lists_that_do_not_fit_are_named(layout, pack) -> None:
    _write_coco(layout)
    with pytest.raises(ConfigError, match="--classes must name a file"):
        pack("custom")
    layout.text("classes.txt", "dragon")
    with pytest.raises(DataError, match=r"2 categories of .*; not there: \['dragon'\]"):
        pack("custom", class_list=layout.root / "classes.txt")
    layout.text("classes.txt", "one\tdragon")
    with pytest.raises(DataError, match="a line must be `name` or `number<TAB>name`"):
        pack("custom", class_list=layout.root / "classes.txt")
    with pytest.raises(DataError, match="must be a file with one class on each line"):
        pack("custom", class_list=layout.root / "no.txt")


def test_objects365_has_boxes_and_no_segments(layout, pack) -> None:
    layout.picture("train/patch8/objects365_v1_00420917.jpg")
    image = {"id": 420917, "file_name": "images/v1/patch8/objects365_v1_00420917.jpg"}
    box = {"id": 1, "image_id": 420917, "category_id": 2, "area": 30.0, "iscrowd": 0}
    layout.json(
        "zhiyuan_objv2_train.json",
        {
            "images": [{**image, "height": HW[0], "width": HW[1]}],
            "annotations": [{**box, "bbox": [3.5, 4, 5, 6]}],
            "categories": [{"id": 2, "name": "Sneakers"}],
        },
    )
    packed = pack("objects365")
    (sample,) = packed.samples.values()
    assert (sample.document["annotation"], sample.document["segments"]) == ("boxes", None)
    (entry,) = sample.document["instances"]
    assert (entry["bbox"], entry["rle"]) == ([3.5, 4.0, 5.0, 6.0], None)
    assert packed.manifest.splits["train"].class_histogram == {"Sneakers": 1}
