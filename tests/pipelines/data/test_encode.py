"""Records as samples; what comes out of whole shards is tested with packing and the sources."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.encode import ClassTable, UnusableImage, encode_record, read_image
from pipelines.data.records import Category, CocoRecord, Instance
from pipelines.errors import DataError

HW = (12, 19)
CLASSES = ClassTable(
    categories=(Category(id=7, name="cup", is_thing=True),),
    class_ids={7: 0},
    paints_instances=True,
)


def _picture(mode: str = "RGB", kind: str = "JPEG", size_hw: tuple[int, int] = HW) -> bytes:
    buffer = io.BytesIO()
    channels = {"RGB": (3,), "CMYK": (4,), "L": ()}[mode]
    pixels = np.full((*size_hw, *channels), 90, np.uint8)
    Image.fromarray(pixels, mode=mode).save(buffer, format=kind)
    return buffer.getvalue()


def _record(name: str = "a.jpg", **more) -> CocoRecord:
    return CocoRecord(image_id=3, image_path=Path(name), **{"size_hw": HW, **more})


def test_plain_jpegs_are_kept_byte_for_byte() -> None:
    for mode in ("RGB", "L"):
        jpeg = _picture(mode)
        sample = encode_record(_record(), jpeg, CLASSES)
        assert sample.members["jpg"] == jpeg
        assert not sample.is_transcoded


@pytest.mark.parametrize(
    ("mode", "kind", "name"), [("CMYK", "JPEG", "a.jpg"), ("L", "PNG", "a.png")]
)
def test_what_decoders_disagree_about_becomes_a_plain_jpeg(mode: str, kind: str, name: str) -> None:
    sample = encode_record(_record(name), _picture(mode, kind), CLASSES)
    assert sample.is_transcoded
    with Image.open(io.BytesIO(sample.members["jpg"])) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", HW[::-1])


def test_other_pictures_have_the_annotated_size_too() -> None:
    with pytest.raises(DataError, match=r"must have height and width \(12, 19\).*got \(5, 6\)"):
        encode_record(_record("a.png"), _picture("RGB", "PNG", (5, 6)), CLASSES)


def test_what_is_no_picture_is_unusable() -> None:
    with pytest.raises(UnusableImage, match=r"a\.jpg: cannot be opened as a picture"):
        encode_record(_record(), b"<html>", CLASSES)


def test_a_cut_picture_is_found_when_it_must_decode() -> None:
    cut = _picture(size_hw=(120, 190))[:-400]
    record = _record(size_hw=(120, 190))
    assert encode_record(record, cut, CLASSES).members["jpg"] == cut
    with pytest.raises(UnusableImage, match="cannot be opened as a picture"):
        encode_record(record, cut, CLASSES, must_decode=True)


def test_missing_images_are_unusable_and_ranges_are_cut_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with pytest.raises(UnusableImage, match=r"a\.tar: image 3 is listed, not there"):
        read_image(_record(str(path)))
    path.write_bytes(b"head-image-tail")
    assert read_image(_record(str(path), image_range=(5, 5))) == b"image"


def test_an_unlisted_category_is_named() -> None:
    box = Instance(
        id=1, category_id=8, segmentation=[], area=1.0, is_crowd=False, bbox_xywh_px=(1, 2, 3, 4)
    )
    with pytest.raises(DataError, match="must be one of the 1 listed categories; got 8"):
        encode_record(_record(instances=(box,)), _picture(), CLASSES)


def test_the_kind_of_annotation_is_told() -> None:
    corners = [1.0, 2.0, 5.0, 2.0, 5.0, 8.0, 1.0, 8.0]
    box, cup = (
        Instance(
            id=n,
            category_id=7,
            segmentation=s,
            area=24.0,
            is_crowd=False,
            bbox_xywh_px=(1, 2, 4, 6),
        )
        for n, s in enumerate(([], [corners]))
    )
    unpainted = ClassTable(categories=CLASSES.categories, class_ids=CLASSES.class_ids)
    kinds = [
        json.loads(encode_record(_record(instances=i), _picture(), c).members["json"])["annotation"]
        for i, c in (
            (None, CLASSES),
            ((), CLASSES),
            ((box,), CLASSES),
            ((box, cup), CLASSES),
            ((box, cup), unpainted),
        )
    ]
    assert kinds == ["none", "none", "boxes", "things", "masks"]
