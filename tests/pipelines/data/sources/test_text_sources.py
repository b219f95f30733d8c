"""Captions and pairs: Karpathy's lists, Visual Genome, and lists from the web."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.sources import Request, pairs, source_named
from pipelines.data.sources.pairs import LineFile
from pipelines.errors import DataError

HW = (24, 37)


def _karpathy(file_name: str, split: str, number: int, **more) -> dict:
    sentences = [{"raw": f"Text {number}.", "tokens": []}, {"raw": " again ", "tokens": []}]
    return {"filename": file_name, "split": split, "sentences": sentences, **more}


def _write_karpathy(layout) -> None:
    entries = []
    for number, (folder, split) in enumerate(
        (("train2014", "train"), ("val2014", "restval"), ("val2014", "test")), start=40
    ):
        name = f"COCO_{folder}_{number:012d}.jpg"
        layout.picture(f"{folder}/{name}")
        entries.append(_karpathy(name, split, number, filepath=folder, cocoid=number))
    layout.json("dataset_coco.json", {"images": entries})


def test_karpathys_splits_draw_on_both_folders_of_2014(layout, pack) -> None:
    _write_karpathy(layout)
    packed = pack("coco-karpathy", "train+restval")
    names = ["COCO_train2014_000000000040", "COCO_val2014_000000000041"]
    assert sorted(packed.samples) == names
    assert packed.samples[names[0]].document["captions"] == ["Text 40.", "again"]
    assert list(packed.manifest.splits) == ["train"]


def test_karpathys_images_may_be_those_of_2017(layout, pack) -> None:
    _write_karpathy(layout)
    layout.picture("train2017/000000000042.jpg")
    packed = pack("coco-karpathy", "test", images=layout.root / "train2017")
    assert list(packed.samples) == ["000000000042"]


def test_a_list_of_another_kind_is_named(layout, pack) -> None:
    layout.json("dataset_coco.json", {"annotations": []})
    layout.picture("train2014/COCO_train2014_000000000001.jpg")
    with pytest.raises(DataError, match="must hold `images`, each with split"):
        pack("coco-karpathy")


def test_flickr30k_is_read_from_either_list(layout, pack) -> None:
    for number in (100, 101):
        layout.picture(f"flickr30k-images/{number}.jpg")
    layout.text(
        "results_20130124.token", "100.jpg#0\tOne dog .", "100.jpg#1\tA dog .", "101.jpg#0\tA cat ."
    )
    by_token = pack("flickr30k", "all")
    assert by_token.samples["100"].document["captions"] == ["One dog .", "A dog ."]
    with pytest.raises(DataError, match=r"split 'test' needs dataset_flickr30k\.json from https"):
        pack("flickr30k", "test")
    layout.json("dataset_flickr30k.json", {"images": [_karpathy("101.jpg", "test", 101)]})
    assert list(pack("flickr30k", "test").samples) == ["101"]


def test_a_token_line_that_does_not_fit_is_named(layout, pack) -> None:
    layout.text("results_20130124.token", "100.jpg One dog .")
    layout.picture("flickr30k-images/100.jpg")
    with pytest.raises(DataError, match=r"line 1 must be `image\.jpg#0<TAB>caption`"):
        pack("flickr30k", "all")


def _write_visual_genome(layout) -> None:
    entries = [
        {"image_id": 1, "width": HW[1], "height": HW[0], "coco_id": 139, "flickr_id": 77},
        {"image_id": 2, "width": HW[1], "height": HW[0], "coco_id": None, "flickr_id": None},
        {"image_id": 3, "width": HW[1], "height": HW[0], "coco_id": None, "flickr_id": None},
    ]
    layout.json("image_data.json", entries)
    phrases = ["a clock", " a clock ", "green tree"]
    regions = [{"region_id": n, "phrase": text} for n, text in enumerate(phrases)]
    layout.json(
        "region_descriptions.json", [{"id": 1, "regions": regions}, {"id": 2, "regions": regions}]
    )
    layout.picture("VG_100K/1.jpg")
    layout.picture("VG_100K_2/2.jpg")


def test_visual_genome_phrases_are_captions_once_each(layout, pack) -> None:
    _write_visual_genome(layout)
    packed = pack("vg")
    # an image without phrases has nothing to say
    assert sorted(packed.samples) == ["1", "2"]
    assert packed.samples["1"].document["captions"] == ["a clock", "green tree"]


def test_visual_genome_knows_the_ids_of_its_pictures_elsewhere(layout) -> None:
    _write_visual_genome(layout)
    split = source_named("vg").read(Request(root=layout.root, split="train"))
    assert [record.identities for record in split] == [("vg:1", "coco:139", "flickr:77"), ("vg:2",)]


def test_visual_genome_without_a_field_is_named(layout, pack) -> None:
    _write_visual_genome(layout)
    layout.json("region_descriptions.json", [{"id": 1}])
    with pytest.raises(DataError, match=r"region_descriptions\.json id and regions"):
        pack("vg")


def test_rows_of_a_list_meet_the_pictures_of_their_number(layout, pack) -> None:
    url = "http://farm5.staticflickr.com/4026/{}_84c1fdb8d6_z.jpg"
    rows = [f"text {n} ä\t{url.format(n)}" for n in range(4)]
    layout.text("Train_GCC-training.tsv", *rows)
    layout.picture("images/000000000.jpg")
    layout.picture("images/000000003.jpg")
    layout.path("images/000000001.jpg").write_bytes(b"<html>gone</html>")
    packed = pack("cc3m")
    texts = {key: s.document["captions"] for key, s in packed.samples.items()}
    assert texts == {"000000000": ["text 0 ä"], "000000003": ["text 3 ä"]}
    # row 1 is no picture, row 2 has none
    assert packed.manifest.splits["train"].counts["unusable_images"] == 2


def test_cc12m_has_its_columns_the_other_way_round(layout, pack) -> None:
    layout.text("cc12m.tsv", "http://a/b.jpg\tfirst text", "http://a/c.jpg\tsecond text")
    layout.picture("images/00000/000000001.jpg")
    (sample,) = pack("cc12m").samples.values()
    assert sample.document["captions"] == ["second text"]


def test_sbu_joins_two_files_by_line_and_knows_flickrs_ids(layout, pack) -> None:
    name = "SBU_captioned_photo_dataset"
    urls = [f"http://static.flickr.com/2723/{n}_b0f291553e.jpg" for n in (4385058960, 88)]
    layout.text(f"{name}_urls.txt", *urls)
    layout.text(f"{name}_captions.txt", "a monkey", "a door")
    layout.picture("images/000000001.jpg")
    (sample,) = pack("sbu").samples.values()
    assert sample.document["captions"] == ["a door"]
    split = source_named("sbu").read(Request(root=layout.root, split="train"))
    assert [r.identities for r in split] == [("flickr:4385058960",), ("flickr:88",)]
    layout.text(f"{name}_urls.txt", urls[0])
    with pytest.raises(DataError, match=r"must have a line for each of the 2 .*; got 1"):
        pack("sbu", "new=train")


def _write_tar(layout, name: str, members: dict[str, bytes]) -> None:
    with tarfile.open(layout.path(name), "w") as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_tars_of_img2dataset_are_read_without_unpacking(layout, pack) -> None:
    jpeg = layout.picture("spare/a.jpg").read_bytes()
    webp = io.BytesIO()
    Image.new("RGB", (15, 8), (200, 10, 10)).save(webp, format="WEBP", lossless=True)
    _write_tar(
        layout,
        "00000.tar",
        {
            "000000000.jpg": jpeg,
            "000000000.txt": b" a picture ",
            "000000000.json": b'{"url": "http://farm5.staticflickr.com/4026/77_84c1.jpg"}',
            "000000001.json": b"{}",
        },
    )
    _write_tar(layout, "00001.tar", {"000010000.webp": webp.getvalue(), "000010000.txt": b"red"})
    packed = pack("cc12m")
    assert packed.samples["000000000"].jpeg == jpeg
    assert packed.samples["000000000"].document["captions"] == ["a picture"]
    with Image.open(io.BytesIO(packed.samples["000010000"].jpeg)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (15, 8))
    counts = packed.manifest.splits["train"].counts
    assert (counts["images"], counts["transcoded_images"]) == (2, 1)
    split = source_named("cc12m").read(Request(root=layout.root, split="train"))
    assert [record.identities for record in split] == [("flickr:77",), ()]


def test_files_of_img2dataset_are_read(layout, pack) -> None:
    layout.picture("00000/000000007.jpg")
    layout.text("00000/000000007.txt", "seven")
    layout.json("00000/000000007.json", {"url": "https://live.staticflickr.com/1/88_ab_b.jpg"})
    layout.picture("00000/no.8.webp")
    layout.text("00000/no.8.txt", "eight")
    samples = pack("pairs").samples
    texts = {key: sample.document["captions"] for key, sample in samples.items()}
    assert texts == {"000000007": ["seven"], "no_8": ["eight"]}
    split = source_named("pairs").read(Request(root=layout.root, split="train"))
    assert [record.identities for record in split] == [("flickr:88",), ()]


def test_lines_are_found_across_chunks_and_without_a_last_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "_CHUNK_BYTES", 5)
    lines = ["one", "", "a longer line", "ö", "last"]
    for end in ("", "\n"):
        (tmp_path / "list").write_text("\n".join(lines) + end, encoding="utf-8")
        assert list(LineFile(tmp_path / "list")) == lines


def test_a_list_none_of_whose_pictures_opens_is_an_error(layout, pack) -> None:
    layout.text("cc12m.tsv", "http://a/b.jpg\tfirst text")
    layout.path("images/000000000.jpg").write_bytes(b"<html>gone</html>")
    with pytest.raises(DataError, match="none of the 1 images of split 'train' can be used"):
        pack("cc12m")
    layout.picture("images/000000000.jpg")
    assert len(pack("cc12m").samples) == 1


def test_texts_beside_pictures_win_over_the_rows_of_a_list(layout, pack) -> None:
    layout.text("cc12m.tsv", "url\tcaption", "http://a/b.jpg\tfirst text")
    layout.picture("images/00000/000000000.jpg")
    layout.text("images/00000/000000000.txt", "first text")
    (sample,) = pack("cc12m").samples.values()
    assert sample.document["captions"] == ["first text"]


def test_a_header_is_refused_because_it_shifts_the_rows(layout, pack) -> None:
    layout.text("cc12m.tsv", "url\tcaption", "http://a/b.jpg\tfirst text")
    layout.picture("images/000000000.jpg")
    with pytest.raises(DataError, match=r"first line must be the first pair.*got 'url\\tcaption'"):
        pack("cc12m")


def test_a_damaged_tar_is_named(layout, pack) -> None:
    layout.path("00000.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"00000\.tar: not a readable tar"):
        pack("pairs")


def test_a_list_without_pictures_says_what_fetches_them(layout, pack) -> None:
    layout.text("spare.txt", "nothing")
    with pytest.raises(DataError, match="img2dataset, https://github"):
        pack("sbu")
    layout.text("cc12m.tsv", "http://a/b.jpg\tfirst text")
    with pytest.raises(DataError, match=r"images: must be the folder of the images of cc12m\.tsv"):
        pack("cc12m")
