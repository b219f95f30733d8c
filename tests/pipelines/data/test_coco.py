import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

from pipelines.data.coco import Category, CocoFolder, decode_mask, encode_rle, read_segment_ids
from pipelines.errors import DataError


def _edit(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_records_hold_what_the_files_say(scenes_root: Path) -> None:
    split = CocoFolder(scenes_root).split("train")
    assert len(split) == 13
    assert [record.image_id for record in split] == sorted(record.image_id for record in split)
    assert [c.name for c in split.panoptic_categories if c.is_thing] == [
        c.name for c in split.instance_categories
    ]
    for record in split:
        assert record.image_path.exists()
        assert record.size_hw == (64, 88)
        assert len(record.captions) == 5
        assert {region.instance.id for region in record.refs} <= {i.id for i in record.instances}
        ids = read_segment_ids(record.panoptic_path)
        assert {segment.id for segment in record.segments} == set(np.unique(ids))


def test_refs_of_other_splits_stay_away(scenes_root: Path) -> None:
    folder = CocoFolder(scenes_root)
    for name in ("train", "val", "zeroshot"):
        split = folder.split(name)
        regions = [region for record in split for region in record.refs]
        assert regions
        kinds = {sentence.kind for region in regions for sentence in region.sentences}
        assert kinds == {"attribute", "relation"}


def test_the_year_of_a_split_may_be_left_out(own_root: Path) -> None:
    for path in [*own_root.glob("annotations/*_val*"), own_root / "images" / "val"]:
        path.rename(path.with_name(path.name.replace("val", "val2017")))
    split = CocoFolder(own_root).split("val")
    assert (split.name, len(split)) == ("val2017", 4)
    assert all(record.refs for record in split)
    with pytest.raises(DataError, match=r"split must be one of .*'val2017'.*got 'test'"):
        CocoFolder(own_root).split("test")


def test_a_kind_of_annotation_that_is_absent_is_none(own_root: Path) -> None:
    (own_root / "annotations/panoptic_val.json").unlink()
    _edit(own_root / "annotations/captions_val.json", lambda d: d["images"].pop(0))
    shutil.rmtree(own_root / "refs")
    split = CocoFolder(own_root).split("val")
    assert split.panoptic_categories == ()
    assert all(record.segments is None and record.panoptic_path is None for record in split)
    assert [record.captions is None for record in split] == [True, False, False, False]
    assert all(record.refs == () for record in split)


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"root must be a folder; got .*nowhere"):
        CocoFolder(tmp_path / "nowhere")


def test_a_split_without_annotations_says_what_it_needs(own_root: Path) -> None:
    (own_root / "images" / "spare").mkdir()
    with pytest.raises(DataError, match=r"at least one of panoptic_spare\.json"):
        CocoFolder(own_root).split("spare")


def test_damaged_annotation_files_are_named(own_root: Path) -> None:
    path = own_root / "annotations/captions_val.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(DataError, match=r"captions_val\.json: not a readable JSON"):
        CocoFolder(own_root).split("val")


def test_a_document_without_its_lists_is_named(own_root: Path) -> None:
    _edit(own_root / "annotations/instances_val.json", lambda d: d.pop("images"))
    with pytest.raises(DataError, match=r"instances_val\.json: needs `images`"):
        CocoFolder(own_root).split("val")


@pytest.mark.parametrize(
    ("kind", "field"),
    [("instances", "category_id"), ("instances", "segmentation"), ("captions", "caption")],
)
def test_an_annotation_without_a_field_is_named(own_root: Path, kind: str, field: str) -> None:
    _edit(own_root / f"annotations/{kind}_val.json", lambda d: d["annotations"][2].pop(field))
    with pytest.raises(DataError, match=f"annotation .* lacks or misuses a field .*{field}"):
        CocoFolder(own_root).split("val")


def test_a_segmentation_of_another_type_is_refused(own_root: Path) -> None:
    path = own_root / "annotations/instances_val.json"
    _edit(path, lambda d: d["annotations"][0].update(segmentation="none"))
    with pytest.raises(DataError, match="segmentation must be polygons or RLE"):
        CocoFolder(own_root).split("val")


def test_a_ref_to_a_missing_annotation_is_named(own_root: Path) -> None:
    _edit(own_root / "refs/instances.json", lambda d: d["annotations"].clear())
    with pytest.raises(DataError, match=r"must hold annotation \d+ of ref \d+"):
        CocoFolder(own_root).split("val")


def test_one_of_several_reference_lists_must_be_chosen(own_root: Path) -> None:
    shutil.copy(own_root / "refs/refs(scenes).p", own_root / "refs/refs(other).p")
    with pytest.raises(DataError, match=r"several reference lists \['other', 'scenes'\]"):
        CocoFolder(own_root).split("val")
    assert len(CocoFolder(own_root, refs_name="other").split("val")) == 4
    with pytest.raises(DataError, match="refs_name must be one of"):
        CocoFolder(own_root, refs_name="unc").split("val")


def test_polygons_and_both_kinds_of_rle_decode_to_the_same_region() -> None:
    size_hw = (20, 31)
    expected = np.zeros(size_hw, bool)
    expected[4:12, 5:25] = True
    polygons = [[5.0, 4.0, 25.0, 4.0, 25.0, 12.0, 5.0, 12.0]]
    compressed = rle_codec.encode(np.asfortranarray(expected, np.uint8))
    runs = np.diff(np.flatnonzero(np.diff(expected.T.ravel(), prepend=0, append=0)))
    counts = [int(np.flatnonzero(expected.T.ravel())[0]), *map(int, runs)]
    counts.append(expected.size - sum(counts))
    for segmentation in (polygons, compressed, {"size": size_hw, "counts": counts}):
        mask = decode_mask(segmentation, size_hw)
        assert mask.dtype == bool
        assert np.array_equal(mask, expected)
        assert isinstance(encode_rle(segmentation, size_hw)["counts"], str)


def test_panoptic_pictures_of_other_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (7, 5)).save(path)
    with pytest.raises(DataError, match=r"must be 8-bit RGB \[h, w, 3\]; got uint8 \[5, 7\]"):
        read_segment_ids(path)
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable panoptic PNG"):
        read_segment_ids(path)


def test_segment_ids_use_all_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[3, 2, 1]]], np.uint8)).save(tmp_path / "a.png")
    assert read_segment_ids(tmp_path / "a.png").item() == 3 + 2 * 256 + 65536


def test_class_names_lose_their_bookkeeping() -> None:
    names = ("floor-other-merged", "window-other", "mirror-stuff", "wall-brick", "dining table")
    prompts = [Category(id=1, name=name, is_thing=False).prompt for name in names]
    assert prompts == ["floor", "window", "mirror", "wall-brick", "dining table"]


def test_real_photographs_are_read_whole(shared_dir: Path) -> None:
    folder = CocoFolder(shared_dir / "data" / "coco_mini")
    expected = {"train": (179, 76, 566, 1453), "val": (196, 76, 981, 1361)}
    for name, counts in expected.items():
        split = folder.split(name)
        found = (
            len(split),
            sum(record.segments is not None for record in split),
            sum(len(record.captions or ()) for record in split),
            sum(len(record.instances or ()) for record in split),
        )
        assert found == counts
        assert any(i.is_crowd for record in split for i in record.instances or ())
        assert len({category.prompt for category in split.panoptic_categories}) == 133
