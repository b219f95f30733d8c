"""Every source with label maps, from its owner's layout to regions in shards."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipelines.data.sources import Request, source_named
from pipelines.errors import ConfigError, DataError

HW = (24, 37)


def _two_halves(low: int, high: int, dtype: type = np.uint8) -> np.ndarray:
    pixels = np.full(HW, low, dtype)
    pixels[:, 20:] = high
    return pixels


LEFT = _two_halves(1, 0).astype(bool)


def _write_ade(layout) -> None:
    layout.picture("images/training/ADE_train_00000001.jpg")
    layout.labels("annotations/training/ADE_train_00000001.png", _two_halves(2, 0))
    layout.picture("images/validation/ADE_val_00000001.jpg")
    layout.labels("annotations/validation/ADE_val_00000001.png", _two_halves(150, 1))
    names = ["wall", "building, edifice", *(f"thing {n}" for n in range(3, 149)), "screen, film"]
    names += ["screen, crt screen"]
    rows = [f"{n}\t0.1\t5\t5\t{name}" for n, name in enumerate(names, start=1)]
    layout.text("objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName", *rows)


def test_ade20k_regions_are_shifted_by_the_unlabelled_zero(layout, pack) -> None:
    _write_ade(layout)
    packed = pack("ade20k-150")
    sample = packed.samples["ADE_train_00000001"]
    assert packed.manifest.names[:3] == ("wall", "building", "thing 3")
    assert packed.manifest.names[148:] == ("screen, film", "screen, crt screen")
    assert not any(packed.manifest.is_thing)
    assert [s[1] for s in sample.document["segments"]] == [1]
    assert np.array_equal(sample.region(1), LEFT)
    assert sample.document["annotation"] == "semantic"
    assert pack("ade20k-150", "val").samples["ADE_val_00000001"].document["segments"] == [
        [1, 0, 0],
        [150, 149, 0],
    ]


def test_real_ade20k_images_are_read_with_our_list_where_theirs_is_missing(
    shared_dir, layout, pack
) -> None:
    folder = shared_dir / "data" / "semantic_mini" / "ade20k"
    for kind in ("images", "annotations"):
        for path in (folder / kind).iterdir():
            part = "training" if "train" in path.name else "validation"
            layout.path(f"{kind}/{part}/{path.name}").write_bytes(path.read_bytes())
    packed = pack("ade20k-150")
    assert len(packed.manifest.names) == len(set(packed.manifest.names)) == 150
    rows = (folder / "objectInfo150.csv").read_text().splitlines()[1:]
    # their table writes several words as it writes synonyms, `coffee;table;cocktail;table`
    tables = [row.rpartition(",")[2].replace(";", " ").split() for row in rows]
    for name, words in zip(packed.manifest.names, tables, strict=True):
        assert set(name.split()) <= set(words)
    for key, sample in packed.samples.items():
        truth = np.asarray(Image.open(folder / "annotations" / f"{key}.png"))
        assert np.array_equal(sample.ids, truth)
        seen = sorted(int(value) - 1 for value in np.unique(truth) if value)
        assert [s[1] for s in sample.document["segments"]] == seen


def _ade_json(layout, kind: str) -> None:
    layout.picture("images/training/ADE_train_00000004.jpg")
    image = {"id": 4, "file_name": "ADE_train_00000004.jpg", "height": HW[0], "width": HW[1]}
    categories = [{"id": 7, "name": "bed", "isthing": 1}, {"id": 0, "name": "wall", "isthing": 0}]
    if kind == "instance":
        polygon = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
        entry = {"id": 1, "image_id": 4, "category_id": 7, "segmentation": [polygon]}
        annotations = [{**entry, "area": 60, "bbox": [2, 3, 10, 6], "iscrowd": 0}]
        categories = categories[:1]
    else:
        pixels = np.zeros((*HW, 3), np.uint8)
        pixels[..., 0] = _two_halves(9, 0)
        layout.labels("ade20k_panoptic_train/ADE_train_00000004.png", pixels)
        info = {"id": 9, "category_id": 7, "area": 480, "bbox": [0, 0, 20, 24], "iscrowd": 0}
        file_name = "ADE_train_00000004.png"
        annotations = [{"image_id": "ADE_4", "file_name": file_name, "segments_info": [info]}]
    document = {"images": [image], "annotations": annotations, "categories": categories}
    layout.json(f"ade20k_{kind}_train.json", document)


def test_ade20k_instances_become_things_without_stuff(layout, pack) -> None:
    _ade_json(layout, "instance")
    packed = pack("ade20k-150-instance")
    sample = packed.samples["ADE_train_00000004"]
    assert (packed.manifest.names, packed.manifest.is_thing) == (("bed",), (True,))
    assert sample.document["annotation"] == "things"
    expected = np.zeros(HW, bool)
    expected[3:9, 2:12] = True
    assert np.array_equal(sample.region(0), expected)


def test_a_panoptic_list_of_another_kind_is_named(layout, pack) -> None:
    _ade_json(layout, "panoptic")
    layout.json("ade20k_panoptic_train.json", {"annotations": []})
    with pytest.raises(DataError, match=r"ade20k_panoptic_train\.json: not a COCO panoptic file"):
        pack("ade20k-150-panoptic")


def test_ade20k_panoptic_pictures_are_kept(layout, pack) -> None:
    _ade_json(layout, "panoptic")
    packed = pack("ade20k-150-panoptic")
    sample = packed.samples["ADE_train_00000004"]
    assert packed.manifest.is_thing == (True, False)
    assert sample.document["segments"] == [[9, 0, 0]]
    assert np.array_equal(sample.region(0), LEFT)


def test_ade20k_847_reads_the_full_release_and_the_converted_maps_alike(layout, pack) -> None:
    # 2978 wall and 3110 andiron: R // 10 * 256 + G; 17 is no class of the list
    for part, values in (("training", (2978, 3110)), ("validation", (17, 2978))):
        name = f"images/ADE/{part}/urban/street/ADE_frame_{values[0]}"
        layout.picture(f"{name}.jpg")
        codes = _two_halves(*values, np.int64)
        pixels = np.stack([codes // 256 * 10, codes % 256, codes * 0], -1).astype(np.uint8)
        layout.labels(f"{name}_seg.png", pixels)
    train, val = pack("ade20k-847"), pack("ade20k-847", "val")
    sample = train.samples["ADE_frame_2978"]
    names = train.manifest.names
    assert len(names) == len(set(names)) == 847
    assert [names[s[1]] for s in sample.document["segments"]] == ["wall", "andiron"]
    assert np.array_equal(sample.region(0), LEFT)
    assert [s[1] for s in val.samples["ADE_frame_17"].document["segments"]] == [0]

    layout.picture("images_detectron2/training/ADE_other.jpg")
    layout.labels(
        "annotations_detectron2/training/ADE_other.tif", _two_halves(796, 65535, np.uint16)
    )
    (layout.root / "images").rename(layout.root / "gone")
    converted = pack("ade20k-847", "train=train").samples["ADE_other"]
    assert [names[s[1]] for s in converted.document["segments"]] == ["andiron"]


def test_cityscapes_keeps_objects_apart_and_groups_as_crowds(layout, pack) -> None:
    stem = "ulm_000000_000019"
    source = layout.picture(f"leftImg8bit/train/ulm/{stem}_leftImg8bit.png")
    ids = np.full(HW, 7, np.uint16)
    ids[:8, :10], ids[:8, 10:20], ids[8:12], ids[12:16] = 26000, 26001, 24, 4
    layout.labels(f"gtFine/train/ulm/{stem}_gtFine_instanceIds.png", ids)
    packed = pack("cityscapes")
    sample, names = packed.samples[stem], packed.manifest.names
    found = [(s[0], names[s[1]], s[2]) for s in sample.document["segments"]]
    expected = [(7, "road", 0), (24, "person", 1), (26000, "car", 0), (26001, "car", 0)]
    assert sorted(found) == expected
    assert np.array_equal(sample.ids, np.where(ids == 4, 0, ids))
    assert sum(packed.manifest.is_thing) == 8
    assert packed.manifest.splits["train"].counts["transcoded_images"] == 1
    with Image.open(io.BytesIO(sample.jpeg)) as picture, Image.open(source) as given:
        difference = np.asarray(picture).astype(int) - np.asarray(given)
        assert picture.format == "JPEG"
    assert np.abs(difference).mean() < 3


def test_bdd10k_masks_hold_train_ids(layout, pack) -> None:
    layout.picture("images/10k/val/0a1b-2c.jpg")
    layout.labels("labels/sem_seg/masks/val/0a1b-2c.png", _two_halves(13, 255))
    packed = pack("bdd10k", "val")
    sample = packed.samples["0a1b-2c"]
    assert [packed.manifest.names[s[1]] for s in sample.document["segments"]] == ["car"]
    assert np.array_equal(sample.region(13), LEFT)


def test_bdd10k_bitmasks_count_objects_and_join_stuff(layout, pack) -> None:
    layout.picture("images/10k/train/f1.jpg")
    pixels = np.zeros((*HW, 4), np.uint8)
    pixels[:10] = (30, 0, 0, 1)
    pixels[10:14] = (30, 0, 0, 2)
    pixels[14:, :9] = (35, 0, 1, 4)
    pixels[14:, 9:18] = (35, 2, 1, 5)
    layout.labels("labels/pan_seg/bitmasks/train/f1.png", pixels)
    packed = pack("bdd10k-panoptic")
    sample, names = packed.samples["f1"], packed.manifest.names
    found = [(names[s[1]], s[2]) for s in sample.document["segments"]]
    assert found == [("sky", 0), ("car", 0), ("car", 1)]
    sky = np.zeros(HW, bool)
    sky[:14] = True
    assert np.array_equal(sample.region(names.index("sky")), sky)
    assert sum(packed.manifest.is_thing) == 10


def test_scannet_20_leaves_the_other_classes_of_nyu_unlabelled(layout, pack) -> None:
    layout.text("scannetv2_train.txt", "scene0001_00")
    for scene in ("scene0001_00", "scene0002_00"):
        layout.picture(f"scannet_frames_25k/{scene}/color/000100.jpg")
        layout.labels(f"scannet_frames_25k/{scene}/label/000100.png", _two_halves(39, 13))
    few, many = pack("scannet25k-20"), pack("scannet25k-40")
    assert list(few.samples) == list(many.samples) == ["scene0001_00_000100"]
    sample = few.samples["scene0001_00_000100"]
    assert [few.manifest.names[s[1]] for s in sample.document["segments"]] == ["other furniture"]
    whole = many.samples["scene0001_00_000100"].document["segments"]
    assert [many.manifest.names[s[1]] for s in whole] == ["blinds", "other furniture"]


def test_sunrgbd_labels_of_train_follow_the_5050_of_test(layout, pack) -> None:
    layout.picture("SUNRGBD-train_images/img-000002.jpg")
    layout.picture("SUNRGBD-test_images/img-000002.jpg")
    layout.labels("sunrgbd_train_test_labels/img-000002.png", _two_halves(1, 0))
    layout.labels("sunrgbd_train_test_labels/img-005052.png", _two_halves(37, 0))
    train, test = pack("sunrgbd-37"), pack("sunrgbd-37", "test")
    names = train.manifest.names
    (of_train,), (of_test,) = train.samples.values(), test.samples.values()
    assert [names[s[1]] for s in of_train.document["segments"]] == ["bag"]
    assert [names[s[1]] for s in of_test.document["segments"]] == ["wall"]
    assert not set(train.samples) & set(test.samples)


def test_voc_objects_are_things_and_its_ground_is_unlabelled(layout, pack) -> None:
    layout.text("ImageSets/Segmentation/train.txt", "2007_000032")
    layout.picture("JPEGImages/2007_000032.jpg")
    classes, objects = np.zeros(HW, np.uint8), np.zeros(HW, np.uint8)
    classes[2:9, 2:9], objects[2:9, 2:9] = 15, 1
    # a border that carries another class
    classes[2, 2:4] = 9
    classes[2:9, 12:20], objects[2:9, 12:20] = 15, 2
    classes[9, 2:9], objects[9, 2:9] = 255, 255
    layout.palette_labels("SegmentationClass/2007_000032.png", classes)
    layout.palette_labels("SegmentationObject/2007_000032.png", objects)
    packed = pack("voc2012")
    sample = packed.samples["2007_000032"]
    assert packed.manifest.names[14] == "person"
    assert sample.document["segments"] == [[1, 14, 0], [2, 14, 0]]
    assert np.array_equal(sample.ids, np.where(objects == 255, 0, objects))
    assert sample.document["annotation"] == "things"


def _write_context(layout) -> None:
    layout.text("ImageSets/Main/train.txt", "2008_000002", "2008_000003")
    for stem in ("2008_000002", "2008_000003"):
        layout.picture(f"JPEGImages/{stem}.jpg")
    path = layout.path("trainval/2008_000002.mat")
    savemat(path, {"LabelMap": _two_halves(459, 2, np.uint16)})
    names = ["accordion", "aeroplane", *(f"class {n}" for n in range(3, 459)), "wood"]
    layout.text("labels.txt", *(f"{n}: {name}" for n, name in enumerate(names, start=1)))
    layout.text("59_labels.txt", "0: empty", "1: aeroplane", "2: class 5")


def test_pascal_context_reads_both_lists_of_its_release(layout, pack) -> None:
    _write_context(layout)
    many, few = pack("pascal-context-459"), pack("pascal-context-59")
    # the second image has no label map in the release
    assert list(many.samples) == list(few.samples) == ["2008_000002"]
    names = [many.manifest.names[s[1]] for s in many.samples["2008_000002"].document["segments"]]
    assert (len(many.manifest.names), names) == (459, ["aeroplane", "wood"])
    sample = few.samples["2008_000002"]
    assert few.manifest.names == ("aeroplane", "class 5")
    assert np.array_equal(sample.region(0), ~LEFT)


def test_a_class_that_the_longer_list_lacks_is_named(layout, pack) -> None:
    _write_context(layout)
    layout.text("59_labels.txt", "1: dragon")
    with pytest.raises(DataError, match=r"must be among those of labels\.txt; got \['dragon'\]"):
        pack("pascal-context-59")
    layout.text("labels.txt", "accordion")
    with pytest.raises(DataError, match=r"a line must be `number: name`; got 'accordion'"):
        pack("pascal-context-459")


def test_missing_files_are_named_with_their_place_and_address(layout, pack) -> None:
    layout.picture("leftImg8bit/train/ulm/ulm_0_leftImg8bit.png")
    with pytest.raises(DataError) as caught:
        pack("cityscapes")
    place = layout.root / "gtFine/train/*/*_gtFine_instanceIds.png"
    address = "https://www.cityscapes-dataset.com/downloads/ gtFine_trainvaltest.zip"
    assert f"{place}   from {address}" in str(caught.value)
    assert "leftImg8bit/" not in str(caught.value)


def test_a_split_that_the_set_does_not_have_is_refused(layout, pack) -> None:
    _write_ade(layout)
    with pytest.raises(ConfigError, match="--split must be one of train, val; got 'test'"):
        pack("ade20k-150", "test")
    with pytest.raises(DataError, match=r"root must be a folder; got nowhere\. voc2012 is given"):
        source_named("voc2012").read(Request(root=Path("nowhere"), split="train"))


def test_label_maps_of_another_size_or_kind_are_named(layout, pack) -> None:
    _write_ade(layout)
    name = "annotations/training/ADE_train_00000001.png"
    layout.labels(name, np.zeros((5, 6), np.uint8))
    with pytest.raises(DataError, match=r"must have the height and width of ADE_.*\(24, 37\)"):
        pack("ade20k-150")
    layout.labels(name, np.zeros((*HW, 3), np.uint8))
    with pytest.raises(DataError, match=r"integer picture with 2 dimensions; got uint8"):
        pack("ade20k-150")
    layout.path(name).write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable label map"):
        pack("ade20k-150")
