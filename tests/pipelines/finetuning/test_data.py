import json

import pytest

from pipelines.errors import DataError
from pipelines.finetuning.data import find_data, usual_answers
from pipelines.finetuning.tasks import task_named


def test_without_a_root_the_files_and_their_address_are_named():
    with pytest.raises(DataError, match=r"name its folder with --root DIR.*lichengunc/refer.*unc"):
        find_data(task_named("refcoco"), "")


def test_a_root_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"--root nowhere: there is no such folder"):
        find_data(task_named("custom"), "nowhere")


def test_missing_files_are_listed_one_by_one(tmp_path):
    with pytest.raises(DataError, match=r"(?s)ade20k_panoptic_train.json   from http.*val.json"):
        find_data(task_named("ade20k-panoptic"), str(tmp_path))


def test_a_folder_in_cocos_format_stands_in_for_phrases(scenes_root):
    data = find_data(task_named("refcoco"), str(scenes_root))
    assert data.location.source == "coco"
    assert data.is_own_format
    # REFER's own folder of it means the same
    inside = find_data(task_named("refcoco"), str(scenes_root / "refs"))
    assert inside.root.resolve() == scenes_root.resolve()
    assert len(data.evaluated().split) == 5


def test_without_phrases_a_folder_does_not_stand_in(scenes_root, tmp_path):
    for name in ("images", "annotations"):
        (tmp_path / name).symlink_to(scenes_root / name)
    with pytest.raises(DataError, match=r"refs\(unc\).p"):
        find_data(task_named("refcoco"), str(tmp_path))


def test_shards_of_different_data_have_different_folders(scenes_root, tmp_path):
    first = find_data(task_named("refcoco"), str(scenes_root)).shard_folder(tmp_path)
    other = find_data(task_named("custom"), str(scenes_root)).shard_folder(tmp_path)
    assert first != other
    assert first == find_data(task_named("refcoco"), str(scenes_root)).shard_folder(tmp_path)


def test_usual_answers_are_those_that_most_people_gave_often_enough(vqa_root):
    answers = usual_answers(find_data(task_named("vqav2"), str(vqa_root)))
    # twenty questions are answered with yes, ten with 2; no and red never win
    assert answers == ("yes", "2")


def test_damaged_questions_are_named(vqa_root, tmp_path):
    for path in vqa_root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    path = tmp_path / "v2_mscoco_train2014_annotations.json"
    path.unlink()
    path.write_text(json.dumps({"annotations": [{"question_id": 1}]}))
    with pytest.raises(DataError, match=r"must list question_id, image_id and question"):
        usual_answers(find_data(task_named("vqav2"), str(tmp_path)))
