import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

from pipelines.errors import DataError
from pipelines.scenes import dataset
from pipelines.scenes.dataset import ScenesRequest, build_scene, is_written, write_scenes
from pipelines.scenes.vocabulary import HELDOUT_PAIRS

SIZE_HW = (64, 88)
REQUEST = ScenesRequest(num_train=12, num_val=4, num_zeroshot=6, size_hw=SIZE_HW, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "root"
    write_scenes(REQUEST, folder)
    return folder


def _load(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_scene_depends_on_seed_split_and_index_only() -> None:
    def same(one, other) -> bool:
        return np.array_equal(one.image, other.image) and one.captions == other.captions

    scene = build_scene(seed=1, split="train", index=4, size_hw=SIZE_HW)
    assert same(scene, build_scene(seed=1, split="train", index=4, size_hw=SIZE_HW))
    for seed, split, index in ((2, "train", 4), (1, "val", 4), (1, "train", 5)):
        assert not same(scene, build_scene(seed=seed, split=split, index=index, size_hw=SIZE_HW))


def test_more_scenes_and_more_processes_change_nothing(root: Path, tmp_path: Path) -> None:
    larger = ScenesRequest(num_train=15, num_val=4, num_zeroshot=6, size_hw=SIZE_HW, seed=3)
    write_scenes(larger, tmp_path / "out", num_workers=2)
    for path in (*root.glob("images/*/*.jpg"), *root.glob("annotations/*/*.png")):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(root)).read_bytes()
    for kind in ("panoptic", "instances", "captions"):
        few = _load(root / f"annotations/{kind}_train.json")["annotations"]
        many = _load(tmp_path / f"out/annotations/{kind}_train.json")["annotations"]
        assert many[: len(few)] == few


@pytest.mark.parametrize("split", ["train", "val", "zeroshot"])
def test_panoptic_annotations_agree_with_the_pixels(root: Path, split: str) -> None:
    document = _load(root / f"annotations/panoptic_{split}.json")
    for entry in document["annotations"]:
        folder = root / "annotations" / f"panoptic_{split}"
        pixels = np.asarray(Image.open(folder / entry["file_name"])).astype(int)
        assert pixels.shape == (*SIZE_HW, 3)
        ids = pixels @ [1, 256, 65536]
        assert set(np.unique(ids)) == {segment["id"] for segment in entry["segments_info"]}
        for segment in entry["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            assert len(rows) == segment["area"]
            x, y, width, height = segment["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


def test_instances_are_the_visible_things_of_the_panoptic_picture(root: Path) -> None:
    panoptic = {
        e["image_id"]: e for e in _load(root / "annotations/panoptic_train.json")["annotations"]
    }
    instances = _load(root / "annotations/instances_train.json")["annotations"]
    assert len({instance["id"] for instance in instances}) == len(instances)
    for image_id, entry in panoptic.items():
        png = root / "annotations/panoptic_train" / entry["file_name"]
        ids = np.asarray(Image.open(png)).astype(int) @ [1, 256, 65536]
        things = [s for s in entry["segments_info"] if s["category_id"] <= 6]
        own = [i for i in instances if i["image_id"] == image_id]
        assert [i["category_id"] for i in own] == [s["category_id"] for s in things]
        for instance, segment in zip(own, things, strict=True):
            mask = rle_codec.decode(instance["segmentation"])
            assert np.array_equal(mask.astype(bool), ids == segment["id"])
            assert instance["area"] == mask.sum()


def test_heldout_pairs_never_occur_in_training_and_always_in_zeroshot(root: Path) -> None:
    meta = _load(root / "annotations/scenes_meta.json")
    pairs = {(pair["colour"], pair["shape"]) for pair in meta["heldout_pairs"]}
    assert pairs == set(HELDOUT_PAIRS)
    with_pair: dict[str, set[int]] = {"train": set(), "val": set(), "zeroshot": set()}
    for split, images in with_pair.items():
        for instance in _load(root / f"annotations/instances_{split}.json")["annotations"]:
            look = meta["instances"][str(instance["id"])]
            if (look["colour"], look["shape"]) in pairs:
                images.add(instance["image_id"])
    assert with_pair["train"] == with_pair["val"] == set()
    assert len(with_pair["zeroshot"]) == REQUEST.num_zeroshot
    named = re.compile("|".join(f"{colour} {shape}" for colour, shape in pairs), re.IGNORECASE)
    refs = pickle.loads((root / "refs/refs(scenes).p").read_bytes())
    texts = [(r["split"], s["sent"], s["is_heldout"]) for r in refs for s in r["sentences"]]
    assert all(bool(named.search(text)) == is_heldout for _, text, is_heldout in texts)
    assert not any(is_heldout for split, _, is_heldout in texts if split != "zeroshot")
    assert any(is_heldout for split, _, is_heldout in texts if split == "zeroshot")
    captions = _load(root / "annotations/captions_train.json")["annotations"]
    assert len(captions) == 5 * REQUEST.num_train
    assert not any(named.search(caption["caption"]) for caption in captions)


def test_every_ref_points_to_an_instance_of_its_image(root: Path) -> None:
    instances = {i["id"]: i for i in _load(root / "refs/instances.json")["annotations"]}
    refs = pickle.loads((root / "refs/refs(scenes).p").read_bytes())
    assert {ref["split"] for ref in refs} == {"train", "val", "zeroshot"}
    sentences = [sentence for ref in refs for sentence in ref["sentences"]]
    assert len({s["sent_id"] for s in sentences}) == len(sentences)
    assert {s["kind"] for s in sentences} == {"attribute", "relation"}
    for ref in refs:
        instance = instances[ref["ann_id"]]
        assert instance["image_id"] == ref["image_id"]
        assert instance["category_id"] == ref["category_id"]
        assert ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]]


def test_writing_again_is_no_work_and_other_scenes_are_refused(root: Path) -> None:
    before = (root / "annotations/scenes_meta.json").stat().st_mtime_ns
    calls: list[int] = []
    write_scenes(REQUEST, root, on_scene=lambda: calls.append(1))
    assert calls == []
    assert (root / "annotations/scenes_meta.json").stat().st_mtime_ns == before
    other = ScenesRequest(num_train=13, size_hw=SIZE_HW, seed=3)
    assert not is_written(other, root)
    with pytest.raises(DataError, match="must be absent or an empty folder"):
        write_scenes(other, root)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(dataset, "_dump", fail)
    with pytest.raises(OSError, match="disk full"):
        write_scenes(REQUEST, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train": -1}, "numbers must be 0..9999999"),
        ({"size_hw": (40, 90)}, "both sides must be at least 48 px"),
        ({"seed": -2}, "seed must not be negative"),
    ],
)
def test_impossible_requests_say_what_is_possible(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScenesRequest(**{"num_train": 2, **change})
