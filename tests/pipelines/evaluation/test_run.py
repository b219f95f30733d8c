import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.coco import CocoFolder, CocoRecord, decode_mask, read_segment_ids
from pipelines.errors import ConfigError, DataError
from pipelines.evaluation.images import read_image
from pipelines.evaluation.naming_stage import META_FILE, PairVocabulary
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictor import FoundInstance, FoundSegments, NamedRegions
from pipelines.evaluation.run import evaluate, report_of, score_split
from pipelines.evaluation.sets import coco_data
from xdecoder.batch import Vocabulary
from xdecoder.model import XDecoder

OPTIONS = EvaluationOptions(
    size_hw=(48, 80), text_size_hw=(48, 80), batch_size=2, max_caption_tokens=4
)


class Oracle:
    """Knows every annotation of a split, and finds images again by their pixels."""

    def __init__(self, root: Path, split: str) -> None:
        self.split = CocoFolder(root).split(split)
        self.pairs = PairVocabulary.read(root)
        self.records = {
            read_image(record.image_path).tobytes(): record for record in self.split.records
        }
        self.captions = [caption for record in self.split for caption in record.captions or ()]

    def record(self, image: np.ndarray) -> CocoRecord:
        return self.records[image.tobytes()]

    def segment(self, images: Sequence[np.ndarray], vocabulary: Vocabulary) -> list[FoundSegments]:
        return [self._segment(self.record(image), vocabulary) for image in images]

    def _segment(self, record: CocoRecord, vocabulary: Vocabulary) -> FoundSegments:
        names = {category.id: category.prompt for category in self.split.panoptic_categories}
        names |= {category.id: category.prompt for category in self.split.instance_categories}
        place = {ident: vocabulary.names.index(name) for ident, name in names.items()}
        ids = np.zeros(record.size_hw, dtype=np.int64)
        if record.panoptic_path is not None:
            ids = read_segment_ids(record.panoptic_path).astype(np.int64)
        classes = {segment.id: place[segment.category_id] for segment in record.segments or ()}
        semantic = np.full(ids.shape, -1)
        for ident, index in classes.items():
            semantic[ids == ident] = index
        instances = tuple(
            FoundInstance(
                place[instance.category_id],
                0.9,
                decode_mask(instance.segmentation, record.size_hw),
            )
            for instance in record.instances or ()
        )
        return FoundSegments(
            segment_ids=ids,
            classes=classes,
            scores=dict.fromkeys(classes, 1.0),
            semantic=semantic,
            instances=instances,
        )

    def refer(self, image: np.ndarray, phrases: Sequence[str]) -> list[np.ndarray]:
        record = self.record(image)
        regions = {
            sentence.text: decode_mask(region.instance.segmentation, record.size_hw)
            for region in record.refs
            for sentence in region.sentences
        }
        nothing = np.zeros(record.size_hw, dtype=bool)
        return [regions.get(phrase, nothing) for phrase in phrases]

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        return [(self.record(image).captions or ("",))[0] for image in images]

    def caption_hits(
        self, images: Sequence[np.ndarray], captions: Sequence[str]
    ) -> tuple[int, int]:
        hits = [
            10 * (caption in (self.record(image).captions or ()))
            for image, caption in zip(images, captions, strict=True)
        ]
        return sum(hits), 10 * len(hits)

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([self._vector(self.record(image).captions or ()) for image in images])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vector([text]) for text in texts])

    def _vector(self, captions: Sequence[str]) -> np.ndarray:
        vector = np.array([caption in captions for caption in self.captions], dtype=np.float32)
        return vector / np.linalg.norm(vector)

    def name_regions(self, image: np.ndarray, texts: Sequence[str]) -> NamedRegions:
        record = self.record(image)
        assert self.pairs is not None
        instances = record.instances or ()
        regions = [decode_mask(each.segmentation, record.size_hw) for each in instances]
        names = [" ".join(self.pairs.pair_of_instance[each.id]) for each in instances]
        similarity = [[float(text == name) for text in texts] for name in names]
        return NamedRegions(np.stack(regions), np.array(similarity))


def copied(root: Path, target: Path) -> Path:
    shutil.copytree(root, target)
    return target


def keep_images(path: Path, num_images: int) -> None:
    """Cut an annotation file down to its first images."""
    document = json.loads(path.read_text())
    document["images"] = document["images"][:num_images]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    path.write_text(json.dumps(document))


def test_the_truth_scores_everything_and_its_controls_do_not(scenes_root: Path) -> None:
    oracle = Oracle(scenes_root, "val")
    values = score_split(
        oracle, coco_data(scenes_root, "val"), options=OPTIONS, is_quiet=True
    ).values
    for key in ("pq", "pq_things", "pq_stuff", "ap", "miou", "refer_ciou", "refer_miou"):
        assert values[key] == pytest.approx(100), key
    for key in ("refer_p50", "bleu4", "caption_token_accuracy", "retrieval_r1"):
        assert values[key] == pytest.approx(100), key
    assert values["refer_ciou_shuffled"] < 50
    assert values["caption_token_accuracy_shuffled"] == 0
    assert values["retrieval_r1_shuffled"] < 30
    assert values["cider_shuffled"] < values["cider"] / 2
    assert values["refer_ciou_relation"] == pytest.approx(100)


def test_names_of_new_pairs_are_found_and_their_control_fails(scenes_root: Path) -> None:
    oracle = Oracle(scenes_root, "zeroshot")
    scores = score_split(
        oracle,
        coco_data(scenes_root, "zeroshot"),
        options=OPTIONS,
        stages=["naming"],
        is_quiet=True,
    )
    assert scores.values["zero_shot_top1"] == 100
    assert scores.values["zero_shot_top1_shuffled"] < 50
    assert scores.values["zero_shot_chance"] == pytest.approx(100 / 42)
    assert scores.details["num_objects_naming"] >= 5


def test_splits_without_new_pairs_have_no_names(scenes_root: Path) -> None:
    oracle = Oracle(scenes_root, "val")
    scores = score_split(oracle, coco_data(scenes_root, "val"), options=OPTIONS, stages=["naming"])
    assert "zero_shot_top1" not in scores.values


def test_images_count_only_where_they_are_annotated(scenes_root: Path, tmp_path: Path) -> None:
    root = copied(scenes_root, tmp_path / "root")
    keep_images(root / "annotations" / "panoptic_val.json", 2)
    keep_images(root / "annotations" / "instances_val.json", 3)
    keep_images(root / "annotations" / "captions_val.json", 4)
    oracle = Oracle(root, "val")
    scores = score_split(oracle, coco_data(root, "val"), options=OPTIONS, is_quiet=True)
    names = ("panoptic", "instances", "captioning", "retrieval")
    assert [scores.details[f"num_images_{name}"] for name in names] == [2, 3, 4, 4]
    assert scores.values["pq"] == pytest.approx(100)
    assert scores.values["ap"] == pytest.approx(100)


def test_kinds_that_a_split_lacks_have_no_metric(scenes_root: Path, tmp_path: Path) -> None:
    root = copied(scenes_root, tmp_path / "root")
    (root / "annotations" / "panoptic_val.json").unlink()
    (root / "annotations" / "captions_val.json").unlink()
    shutil.rmtree(root / "refs")
    values = score_split(Oracle(root, "val"), coco_data(root, "val"), options=OPTIONS).values
    assert set(values) == {"ap", "ap50", "ap75", "box_ap", "box_ap50", "box_ap75"}


def test_fewer_images_can_be_asked_for(scenes_root: Path) -> None:
    options = dataclasses.replace(OPTIONS, max_images=3)
    scores = score_split(Oracle(scenes_root, "val"), coco_data(scenes_root, "val"), options=options)
    assert scores.details["num_images"] == 3
    assert scores.values["pq"] == pytest.approx(100)


def test_figures_by_image_are_reported_for_each_image(scenes_root: Path) -> None:
    scores = score_split(Oracle(scenes_root, "val"), coco_data(scenes_root, "val"), options=OPTIONS)
    assert len(scores.images) == 5
    assert all(row["pq"] == pytest.approx(100) for row in scores.images.values())


def test_the_report_says_where_its_numbers_come_from(scenes_root: Path) -> None:
    scores = score_split(
        Oracle(scenes_root, "val"),
        coco_data(scenes_root, "val"),
        options=OPTIONS,
        stages=["retrieval"],
    )
    report = report_of(scores, coco_data(scenes_root, "val"), OPTIONS)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["protocols"]["refer"].startswith("refer-per-sentence/fit-48x80")
    assert len(report["ground_truth"]["annotations/captions_val.json"]) == 64
    assert report["versions"]["pycocotools"] != "absent"


def test_a_model_is_evaluated_the_same_every_time(scenes_root: Path, tiny_model: XDecoder) -> None:
    options = dataclasses.replace(OPTIONS, max_images=2, object_threshold=0.0)
    reports = [
        evaluate(tiny_model, scenes_root, "val", options=options, is_quiet=True) for _ in range(2)
    ]
    for report in reports:
        del report["evaluation_seconds"]
    assert reports[0] == reports[1]
    assert reports[0]["refer_ciou"] is not None


def test_unknown_stages_are_refused(scenes_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages must be among .* got \['depth'\]"):
        score_split(
            Oracle(scenes_root, "val"),
            coco_data(scenes_root, "val"),
            options=OPTIONS,
            stages=["depth"],
        )


def test_an_image_of_another_size_is_named(scenes_root: Path, tmp_path: Path) -> None:
    root = copied(scenes_root, tmp_path / "root")
    path = root / "annotations" / "panoptic_val.json"
    document = json.loads(path.read_text())
    document["images"][0]["height"] += 1
    path.write_text(json.dumps(document))
    for kind in ("instances", "captions"):
        (root / "annotations" / f"{kind}_val.json").unlink()
    with pytest.raises(DataError, match=r"\.jpg: must be 49x80 as annotated; got 48x80"):
        score_split(Oracle(scenes_root, "val"), coco_data(root, "val"), options=OPTIONS)


def test_a_damaged_list_of_pairs_is_named(scenes_root: Path, tmp_path: Path) -> None:
    root = copied(scenes_root, tmp_path / "root")
    (root / META_FILE).write_text("{}")
    with pytest.raises(DataError, match=r"scenes_meta\.json: must list colours, shapes"):
        PairVocabulary.read(root)


def test_no_list_of_pairs_is_no_error(tmp_path: Path) -> None:
    assert PairVocabulary.read(tmp_path) is None


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be positive; got"):
        dataclasses.replace(OPTIONS, batch_size=0)
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\); got 1.5"):
        dataclasses.replace(OPTIONS, object_threshold=1.5)
