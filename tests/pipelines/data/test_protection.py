import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.config import DataConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.evaluation_sets import read_protection
from pipelines.data.preparation import PrepareRequest, prepare
from pipelines.data.protection import (
    PAPER,
    check_protection,
    content_hashes,
    expanded,
    set_name,
)
from pipelines.data.shards import Manifest, read_index, read_manifest
from pipelines.data.sources import EVALUATION_SETS, Request, source_named
from pipelines.data.stream import build_stream
from pipelines.errors import ConfigError, DataError


def _prepare(root: Path, out: Path, *protect: str, protect_roots: tuple = ()) -> Manifest:
    manifest = prepare(
        PrepareRequest(
            source=source_named("coco"),
            request=Request(root=root, split=""),
            splits=["train"],
            protect=protect,
            protect_roots=protect_roots,
            shard_bytes=15_000,
        ),
        out,
    )
    assert manifest is not None
    return manifest


def _keys(out: Path) -> set[str]:
    index = read_index(out, read_manifest(out).splits["train"])
    return {key.decode() for key in index["key"]}


def _list_of(path: Path, *image_ids: int) -> str:
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in image_ids]
    path.write_text(json.dumps({"images": images, "annotations": []}))
    return str(path)


def _without_metadata(jpeg: bytes) -> bytes:
    """The same picture with a comment behind its first marker."""
    comment = b"a comment"
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


@pytest.fixture
def leaky_root(own_root: Path) -> Path:
    """Validation images 10000001 and 10000002 hide among the training images 2 and 3."""
    train, val = own_root / "images/train", own_root / "images/val"
    pictures = sorted(val.iterdir())
    shutil.copy(pictures[0], train / "000000000002.jpg")
    (train / "000000000003.jpg").write_bytes(_without_metadata(pictures[1].read_bytes()))
    return own_root


def test_images_are_left_out_by_id_by_bytes_and_by_pixels(leaky_root: Path, tmp_path: Path) -> None:
    listed = _list_of(tmp_path / "secret.json", 5, 700)
    manifest = _prepare(leaky_root, tmp_path / "out", f"{leaky_root}:val", listed)
    removed = {(r.key, r.protects, r.reason) for r in manifest.splits["train"].removed}
    assert removed == {
        ("000000000002", "root:val", "bytes"),
        ("000000000003", "root:val", "pixels"),
        ("000000000005", "secret.json", "id"),
    }
    assert manifest.splits["train"].num_samples == 10
    gone = {key for key, _, _ in removed}
    assert not _keys(tmp_path / "out") & gone
    assert len(_keys(tmp_path / "out") | gone) == 13
    assert manifest.protect["root:val"].num_hashed == 4
    assert (
        manifest.protect["secret.json"].num_images,
        manifest.protect["secret.json"].num_hashed,
    ) == (
        2,
        0,
    )


def test_nothing_is_left_out_without_being_asked(leaky_root: Path, tmp_path: Path) -> None:
    manifest = _prepare(leaky_root, tmp_path / "out")
    assert (manifest.filter_sha256, manifest.protect) == ("", {})
    assert manifest.splits["train"].removed == ()
    assert manifest.splits["train"].num_samples == 13


def test_the_filter_hash_tells_other_filters_apart(own_root: Path, tmp_path: Path) -> None:
    hashes = [
        _prepare(own_root, tmp_path / name, _list_of(tmp_path / "a.json", *ids)).filter_sha256
        for name, ids in (("one", (900, 901)), ("two", (901, 900)), ("three", (900, 902)))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_all_images_protected_is_an_error(own_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image to pack; of 13 that are listed, 13 were removed"):
        _prepare(own_root, tmp_path / "out", f"{own_root}:train")


def test_a_recompressed_picture_is_another_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    jpegs = []
    for quality in (90, 60):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
        jpegs.append(buffer.getvalue())
    first, second = (set(content_hashes(jpeg)) for jpeg in jpegs)
    assert not first & second
    copied = set(content_hashes(_without_metadata(jpegs[0])))
    assert {key.partition(":")[0] for key in first & copied} == {"pixels"}


def test_what_is_no_picture_has_its_bytes_only() -> None:
    (key,) = content_hashes(b"no picture")
    assert key.startswith("bytes:")


def test_the_paper_protects_what_it_is_evaluated_on() -> None:
    assert expanded(["paper", "karpathy-test", "a:b"]) == (*PAPER, "a:b")
    assert (
        {"refcocog-umd-val", "karpathy-val", "karpathy-test"} <= set(PAPER) <= set(EVALUATION_SETS)
    )


def test_every_named_set_belongs_to_a_source_that_has_its_split() -> None:
    for name, wanted in EVALUATION_SETS.items():
        source = source_named(wanted.source)
        assert not source.splits or wanted.split in source.splits, name
        assert not source.split_bys or wanted.split_by in source.split_bys, name


def test_named_sets_are_found_below_the_roots_that_are_given(
    own_root: Path, tmp_path: Path
) -> None:
    entries = [
        {"filename": f"COCO_val2014_{i:012d}.jpg", "filepath": "val2014", "split": split}
        | {"cocoid": i, "sentences": []}
        for i, split in ((7, "test"), (8, "val"), (9, "test"))
    ]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/dataset_coco.json").write_text(json.dumps({"images": entries}))
    roots = (tmp_path / "nowhere", tmp_path / "lists")
    manifest = _prepare(own_root, tmp_path / "out", "karpathy-test", protect_roots=roots)
    removed = sorted((r.key, r.reason) for r in manifest.splits["train"].removed)
    assert removed == [("000000000007", "id"), ("000000000009", "id")]


def _write_paper_sets(root: Path) -> None:
    """Images 1 to 3 of COCO 2014 in RefCOCOg and Karpathy's lists, and 4 in val2017."""
    (root / "refcocog").mkdir(parents=True)
    (root / "annotations").mkdir()
    image = {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "height": 4, "width": 6}
    entry = {"id": 9, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]]}
    instances = {
        "images": [image],
        "annotations": [{**entry, "area": 2, "bbox": [0, 0, 2, 2]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (root / "refcocog/instances.json").write_text(json.dumps(instances))
    sentences = [{"sent_id": 1, "sent": "it", "raw": "it"}]
    refs = [{"ref_id": 1, "ann_id": 9, "image_id": 1, "split": "val", "sentences": sentences}]
    (root / "refcocog/refs(umd).p").write_bytes(pickle.dumps(refs))
    karpathy = [
        {"filename": f"COCO_val2014_{i:012d}.jpg", "filepath": "val2014", "split": split}
        | {"cocoid": i, "sentences": []}
        for i, split in ((2, "val"), (3, "test"), (5, "restval"))
    ]
    (root / "dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    listed = {"id": 4, "file_name": "000000000004.jpg", "height": 4, "width": 6}
    listed["flickr_url"] = "http://farm3.staticflickr.com/2/4444_abc_z.jpg"
    captions = {"images": [listed], "annotations": []}
    (root / "annotations/captions_val2017.json").write_text(json.dumps(captions))


def test_one_flag_protects_the_papers_evaluation_in_every_source(tmp_path: Path) -> None:
    _write_paper_sets(tmp_path / "lists")
    root = tmp_path / "vg"
    (root / "VG_100K").mkdir(parents=True)
    # Visual Genome knows images 1 to 5 by their ids in COCO, and another by Flickr's
    entries = [(10 + n, n, None) for n in (1, 2, 3, 4, 5)] + [(16, None, 4444), (17, None, 5)]
    images = [
        {"image_id": i, "coco_id": coco, "flickr_id": flickr, "height": 6, "width": 9}
        for i, coco, flickr in entries
    ]
    (root / "image_data.json").write_text(json.dumps(images))
    regions = [{"id": i, "regions": [{"phrase": "a thing"}]} for i, _, _ in entries]
    (root / "region_descriptions.json").write_text(json.dumps(regions))
    for number, (i, _, _) in enumerate(entries):
        Image.new("RGB", (9, 6), (30 * number, 0, 0)).save(root / f"VG_100K/{i}.jpg")
    wanted = PrepareRequest(
        source=source_named("vg"),
        request=Request(root=root, split=""),
        splits=["train"],
        protect=["paper"],
        protect_roots=[tmp_path / "lists"],
    )
    manifest = prepare(wanted, tmp_path / "out")
    assert manifest is not None
    assert {r.key: r.protects for r in manifest.splits["train"].removed} == {
        "11": "refcocog-umd-val",
        "12": "karpathy-val",
        "13": "karpathy-test",
        "14": "coco-2017-val",
        "16": "coco-2017-val",
    }
    assert _keys(tmp_path / "out") == {"15", "17"}
    check_protection([("out", manifest)], ("paper",))


def test_a_list_from_the_web_is_compared_by_its_addresses(tmp_path: Path) -> None:
    _write_paper_sets(tmp_path / "lists")
    root = tmp_path / "sbu"
    (root / "images").mkdir(parents=True)
    urls = [f"http://static.flickr.com/1/{n}_ab.jpg" for n in (4444, 4445)]
    (root / "SBU_captioned_photo_dataset_urls.txt").write_text("\n".join(urls))
    (root / "SBU_captioned_photo_dataset_captions.txt").write_text("a\nb")
    for number in range(2):
        Image.new("RGB", (9, 6), (90 * number, 0, 0)).save(root / f"images/{number:09d}.jpg")
    wanted = PrepareRequest(
        source=source_named("sbu"),
        request=Request(root=root, split=""),
        splits=["train"],
        protect=["coco-2017-val"],
        protect_roots=[tmp_path / "lists"],
    )
    manifest = prepare(wanted, tmp_path / "out")
    assert manifest is not None
    removed = [(r.key, r.reason) for r in manifest.splits["train"].removed]
    assert removed == [("000000000", "id")]
    assert _keys(tmp_path / "out") == {"000000001"}


def test_a_set_whose_list_is_missing_says_where_it_may_lie(own_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _prepare(
            own_root, tmp_path / "out", "refcocog-umd-val", protect_roots=(tmp_path / "refer",)
        )
    message = str(caught.value)
    for place in (tmp_path / "refer", own_root):
        assert f"{place}/refcocog/refs(umd).p   from https://github.com/lichengunc/refer" in message
    assert "--protect-root FOLDER" in message


def test_unknown_names_and_unusable_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--protect karpaty-test: must be one of .*karpathy-test"
    ):
        read_protection(["karpaty-test"], [tmp_path])
    with pytest.raises(DataError, match=r"--protect gone\.json: there is no such file"):
        read_protection(["gone.json"], [tmp_path])
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}))
    with pytest.raises(DataError, match=r"must be named as COCO names them.*got 'a\.jpg'"):
        read_protection([str(path)], [tmp_path])


def test_ids_of_a_folder_that_is_not_cocos_match_nothing(own_root: Path, tmp_path: Path) -> None:
    for path in sorted((own_root / "images/val").iterdir()):
        path.rename(path.with_name(f"photo{int(path.stem) % 100}.jpg"))
    for kind in ("panoptic", "instances", "captions"):
        path = own_root / f"annotations/{kind}_val.json"
        document = json.loads(path.read_text())
        for number, image in enumerate(document["images"]):
            image["file_name"] = f"photo{image['id'] % 100}.jpg"
            image["id"] = number + 1
        document["annotations"] = []
        path.write_text(json.dumps(document))
    manifest = _prepare(own_root, tmp_path / "out", f"{own_root}:val")
    # training images 1 to 4 have the ids of validation images, and are other pictures
    assert manifest.splits["train"].num_samples == 13
    assert manifest.protect["root:val"].num_hashed == 4


def _config(shards: Path, *protected: str) -> DataConfig:
    return DataConfig(
        segmentation=SegmentationDataConfig(shards=(str(shards),), size_hw=(48, 72), batch_size=2),
        image_text=ImageTextDataConfig(shards=(str(shards),), size_hw=(24, 40), batch_size=4),
        protected=protected,
    )


def test_training_refuses_shards_that_do_not_protect_its_evaluation(
    own_root: Path, tmp_path: Path
) -> None:
    _prepare(own_root, tmp_path / "out", f"{own_root}:val")
    stream = build_stream(
        _config(tmp_path / "out", "elsewhere/root:val"), rank=0, world_size=1, seed=0
    )
    assert len(next(stream)[0]) == 2
    with pytest.raises(DataError) as caught:
        build_stream(_config(tmp_path / "out", "root:val", "paper"), rank=0, world_size=1, seed=0)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'out'}: data.protected demands")
    assert f"prepared without {', '.join(PAPER)}" in message
    command = "`python -m pipelines.prepare coco --root ROOT --out OUT --protect root:val,paper`"
    assert command in message
    assert caught.value.exit_code == 3


def test_folders_must_mean_the_same_images_by_a_set(own_root: Path, tmp_path: Path) -> None:
    for name, ids in (("one", (900, 901)), ("two", (900, 902)), ("three", (901, 900))):
        (tmp_path / name).mkdir()
        _prepare(own_root, tmp_path / name / "out", _list_of(tmp_path / name / "a.json", *ids))
    manifests = {
        name: (name, read_manifest(tmp_path / name / "out")) for name in ("one", "two", "three")
    }
    check_protection([manifests["one"], manifests["three"]], ("a.json",))
    with pytest.raises(DataError, match=r"two and one: both protect a\.json, but not the same"):
        check_protection([manifests["one"], manifests["two"]], ("a.json",))


def test_shards_of_before_protect_nothing(shards: Path) -> None:
    document = json.loads((shards / "manifest.json").read_text())
    for name in ("licence", "protect", "filter_sha256"):
        del document[name]
    for split in document["splits"].values():
        del split["removed"]
    old = shards.parent / "old"
    shutil.copytree(shards, old, dirs_exist_ok=True)
    (old / "manifest.json").write_text(json.dumps(document))
    manifest = read_manifest(old)
    assert replace(manifest, source={}) == replace(read_manifest(shards), source={})
    with pytest.raises(DataError, match="prepared without karpathy-test"):
        check_protection([("old", manifest)], ("karpathy-test",))


def test_names_of_paths_lose_their_folders() -> None:
    assert [set_name(t) for t in ("data/coco:val", "/x/a.json", "paper")] == [
        "coco:val",
        "a.json",
        "paper",
    ]
