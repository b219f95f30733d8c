import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipelines.data.coco import CocoFolder, decode_mask
from pipelines.data.packing import PackRequest, pack, pack_coco
from pipelines.data.shards import read_index, read_manifest
from pipelines.errors import DataError


def _edit(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _plain_stream(shards: Path, split: str) -> list[dict]:
    files = [str(shards / shard.file) for shard in read_manifest(shards).splits[split].shards]
    return list(webdataset.WebDataset(files, shardshuffle=False))


def test_shards_are_plain_webdataset_tars_in_index_order(shards: Path) -> None:
    samples = _plain_stream(shards, "train")
    index = read_index(shards, read_manifest(shards).splits["train"])
    assert [sample["__key__"].encode() for sample in samples] == list(index["key"])
    assert len({sample["__key__"] for sample in samples}) == 13


def test_pictures_are_kept_byte_for_byte(scenes_root: Path, shards: Path) -> None:
    for sample in _plain_stream(shards, "train"):
        key = sample["__key__"]
        assert sample["jpg"] == (scenes_root / f"images/train/{key}.jpg").read_bytes()
        png = scenes_root / f"annotations/panoptic_train/{key}.png"
        assert sample["panoptic.png"] == png.read_bytes()


def test_samples_say_what_the_annotations_say(scenes_root: Path, shards: Path) -> None:
    split = CocoFolder(scenes_root).split("train")
    records = {record.image_path.stem: record for record in split}
    names = read_manifest(shards).names
    categories = {category.id: category.prompt for category in split.panoptic_categories}
    for sample in _plain_stream(shards, "train"):
        record, document = records[sample["__key__"]], json.loads(sample["json"])
        assert document["image_id"] == record.image_id
        assert document["captions"] == list(record.captions)
        assert [[s[0], names[s[1]]] for s in document["segments"]] == [
            [s.id, categories[s.category_id]] for s in record.segments
        ]
        for packed, instance in zip(document["instances"], record.instances, strict=True):
            mask = decode_mask({"size": [64, 88], "counts": packed["rle"]}, (64, 88))
            assert np.array_equal(mask, decode_mask(instance.segmentation, (64, 88)))
            assert names[packed["class_id"]] == categories[instance.category_id]
        for packed, region in zip(document["regions"], record.refs, strict=True):
            assert packed["instance_id"] == region.instance.id
            assert [s["text"] for s in packed["sentences"]] == [s.text for s in region.sentences]


def test_the_manifest_counts_what_is_there(scenes_root: Path, shards: Path) -> None:
    manifest = read_manifest(shards)
    assert manifest.names[:2] == ("circle", "square")
    assert manifest.is_thing == (True,) * 6 + (False,) * 5
    for name, split in manifest.splits.items():
        records = CocoFolder(scenes_root).split(name).records
        assert split.num_samples == len(records) == sum(s.num_samples for s in split.shards)
        assert split.counts["captions"] == 5 * len(records)
        assert split.counts["segments"] == sum(len(record.segments) for record in records)
        assert sum(split.class_histogram.values()) == split.counts["segments"]
        sentences = sum(len(region.sentences) for r in records for region in r.refs)
        assert split.counts["sentences"] == sentences
        for shard in split.shards:
            assert (shards / shard.file).stat().st_size == shard.num_bytes


def test_shards_hold_nearly_equal_numbers_of_samples(shards: Path) -> None:
    counts = [shard.num_samples for shard in read_manifest(shards).splits["train"].shards]
    assert len(counts) >= 3
    assert max(counts) - min(counts) <= 1


def test_the_same_source_gives_the_same_bytes(
    scenes_root: Path, shards: Path, tmp_path: Path
) -> None:
    pack_coco(scenes_root, tmp_path / "again", ["train", "val"], shard_bytes=15_000)
    names = sorted(path.name for path in shards.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (shards / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_images_may_lack_any_kind_of_annotation(own_root: Path, tmp_path: Path) -> None:
    for kind in ("panoptic", "captions", "instances"):
        path = own_root / f"annotations/{kind}_train.json"
        # another image loses its entry in each file
        gone = {"panoptic": 1, "captions": 2, "instances": 3}[kind]
        _edit(
            path, lambda d, gone=gone: d.update(images=[i for i in d["images"] if i["id"] != gone])
        )
        _edit(
            path,
            lambda d, gone=gone: d.update(
                annotations=[a for a in d["annotations"] if a["image_id"] != gone]
            ),
        )
    pack_coco(own_root, tmp_path / "out", ["train"])
    documents = [json.loads(s["json"]) for s in _plain_stream(tmp_path / "out", "train")]
    by_id = {document["image_id"]: document for document in documents}
    assert len(by_id) == 13
    assert (by_id[1]["segments"], by_id[2]["captions"], by_id[3]["instances"]) == (None, [], None)
    index = read_index(tmp_path / "out", read_manifest(tmp_path / "out").splits["train"])
    assert sorted(index["num_segments"])[0] == -1
    assert sorted(index["num_captions"])[0] == 0


def test_crowds_stay_marked(own_root: Path, tmp_path: Path) -> None:
    path = own_root / "annotations/panoptic_train.json"
    _edit(path, lambda d: d["annotations"][0]["segments_info"][0].update(iscrowd=1))
    image_id = json.loads(path.read_text())["annotations"][0]["image_id"]
    pack_coco(own_root, tmp_path / "out", ["train"])
    documents = [json.loads(s["json"]) for s in _plain_stream(tmp_path / "out", "train")]
    crowds = {d["image_id"]: sum(segment[2] for segment in d["segments"]) for d in documents}
    assert crowds.pop(image_id) == 1
    assert set(crowds.values()) == {0}


def _missing_image(root: Path) -> None:
    (root / "images/train/000000000004.jpg").unlink()


def _missing_png(root: Path) -> None:
    (root / "annotations/panoptic_train/000000000004.png").unlink()


def _turned_image(root: Path) -> None:
    path = root / "images/train/000000000004.jpg"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)


def _png_named_jpg(root: Path) -> None:
    path = root / "images/train/000000000004.jpg"
    Image.open(path).convert("RGB").save(path, format="PNG")


def _unlisted_class(root: Path) -> None:
    path = root / "annotations/panoptic_train.json"
    _edit(path, lambda d: d["annotations"][2]["segments_info"][0].update(category_id=77))


def _dotted_name(root: Path) -> None:
    for kind in ("panoptic", "instances", "captions"):
        path = root / f"annotations/{kind}_train.json"
        _edit(path, lambda d: d["images"][5].update(file_name="a.b.jpg"))


def _twin_class(root: Path) -> None:
    path = root / "annotations/panoptic_train.json"
    _edit(path, lambda d: d["categories"][0].update(name="square-merged"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing_image, r"000000000004\.jpg: image 4 is listed, not there"),
        (_missing_png, r"000000000004\.png: is listed, not there"),
        (_turned_image, r"height and width \(64, 88\).*got JPEG \(88, 64\)"),
        (_png_named_jpg, r"must be a JPEG .*got PNG"),
        (_unlisted_class, r"category_id must be one of the 11 listed categories; got 77"),
        (_dotted_name, r"must be unique and free of dots; got 'a\.b'"),
        (_twin_class, r"class names must differ.*repeated: \['square'\]"),
    ],
)
def test_contradictions_are_named_and_leave_nothing(
    own_root: Path, tmp_path: Path, damage, message: str
) -> None:
    damage(own_root)
    with pytest.raises(DataError, match=message):
        pack_coco(own_root, tmp_path / "out", ["train"])
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_splits_with_other_classes_need_another_folder(own_root: Path, tmp_path: Path) -> None:
    _edit(own_root / "annotations/panoptic_val.json", lambda d: d["categories"].pop())
    with pytest.raises(DataError, match="must list the same categories; found 2 different lists"):
        pack_coco(own_root, tmp_path / "out", ["train", "val"])


def test_keys_that_repeat_in_a_list_from_the_web_are_named(
    scenes_root: Path, tmp_path: Path
) -> None:
    split = CocoFolder(scenes_root).split("train")
    twice = replace(split, records=split.records * 2, is_complete=False)
    request = PackRequest(splits={"train": twice}, source={"kind": "coco", "root": "root"})
    with pytest.raises(DataError, match=r"sample keys must be unique; repeated: \[b'000000000001'"):
        pack(request, tmp_path / "out")


def test_a_folder_in_use_is_refused(scenes_root: Path, own_shards: Path) -> None:
    with pytest.raises(DataError, match="must be absent or an empty folder"):
        pack_coco(scenes_root, own_shards, ["train"])


def test_real_photographs_are_packed(shared_dir: Path, tmp_path: Path) -> None:
    root = shared_dir / "data" / "coco_mini"
    manifest = pack_coco(root, tmp_path / "out", ["val"], shard_bytes=8 << 20)
    counts = manifest.splits["val"].counts
    assert (counts["images"], counts["panoptic_images"], counts["captions"]) == (196, 76, 981)
    assert len(manifest.names) == 133
    assert len(manifest.splits["val"].shards) == 4
