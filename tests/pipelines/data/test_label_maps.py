"""Label maps and painted instances; what each source makes of them is tested with the sources."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipelines.data.label_maps import SegmentMap, paint_instances, read_label_map
from pipelines.data.records import Instance, LabelMap
from pipelines.errors import DataError

HW = (11, 17)


def _instance(number: int, box: tuple[int, int, int, int], *, is_crowd: bool = False) -> Instance:
    x, y, width, height = (float(value) for value in box)
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return Instance(
        id=number,
        category_id=number,
        segmentation=[corners],
        area=width * height,
        is_crowd=is_crowd,
        bbox_xywh_px=(x, y, width, height),
    )


def _map(path: Path, code, category_of, **more) -> LabelMap:
    return LabelMap(path=path, code=code, category_of=category_of, **more)


def test_small_instances_stand_in_front_and_crowds_behind() -> None:
    large, small = _instance(1, (0, 0, 10, 10)), _instance(2, (2, 2, 3, 3))
    # smaller than both, and yet behind them
    crowd = _instance(3, (2, 2, 2, 2), is_crowd=True)
    beside = _instance(4, (12, 1, 2, 4), is_crowd=True)
    found = paint_instances((small, crowd, large, beside), HW)
    by_category = {s.category_id: (found.ids == s.id).sum() for s in found.segments}
    assert by_category == {1: 100 - 9, 2: 9, 4: 8}
    assert {s.category_id for s in found.segments if s.is_crowd} == {4}


def test_boxes_without_masks_are_not_painted() -> None:
    box = Instance(
        id=1, category_id=1, segmentation=[], area=4.0, is_crowd=False, bbox_xywh_px=(0, 0, 2, 2)
    )
    found = paint_instances((box,), HW)
    assert found.segments == ()
    assert not found.ids.any()


def test_ids_of_all_three_bytes_survive_the_png(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [256, 65535, 65536 * 200 + 7]], np.int32)
    (tmp_path / "a.png").write_bytes(SegmentMap(ids=ids, segments=()).png())
    pixels = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert np.array_equal(pixels @ [1, 256, 65536], ids)


def test_classes_that_become_one_are_one_segment(tmp_path: Path) -> None:
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(tmp_path / "a.png")
    found = read_label_map(_map(tmp_path / "a.png", "index", {1: 50, 2: 40, 4: 50}))
    assert [(s.id, s.category_id) for s in found.segments] == [(1, 50), (2, 40)]
    assert found.ids.tolist() == [[0, 1, 2], [0, 1, 0]]


def test_sixteen_bit_labels_keep_their_values(tmp_path: Path) -> None:
    pixels = np.array([[3, 60000, 300]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
        found = read_label_map(_map(tmp_path / name, "index", {60000: 1, 300: 2}))
        assert found.ids.tolist() == [[0, 1, 2]]


def test_matlab_files_of_another_kind_are_named(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"Labels": np.ones(HW)})
    with pytest.raises(DataError, match=r"a\.mat: must be a MATLAB file with `LabelMap`"):
        read_label_map(_map(tmp_path / "a.mat", "mat", {1: 1}))
    (tmp_path / "b.mat").write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"b\.mat: must be a MATLAB file"):
        read_label_map(_map(tmp_path / "b.mat", "mat", {1: 1}))


def test_bitmasks_need_four_channels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"must be an RGBA bitmask; got \[11, 17, 3\]"):
        read_label_map(_map(tmp_path / "a.png", "bdd_rgba", {1: 1}))


def test_objects_need_their_own_picture_of_the_same_size(tmp_path: Path) -> None:
    for name, size_hw in (("a.png", HW), ("b.png", (5, 7))):
        Image.fromarray(np.ones(size_hw, np.uint8)).save(tmp_path / name)
    with pytest.raises(DataError, match="a picture of objects must belong to it; got none"):
        read_label_map(_map(tmp_path / "a.png", "class_and_object", {1: 1}))
    pair = _map(tmp_path / "a.png", "class_and_object", {1: 1}, object_path=tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: must have the size of a\.png \[11, 17\]; got"):
        read_label_map(pair)
