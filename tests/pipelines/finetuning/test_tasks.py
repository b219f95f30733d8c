import pytest

from pipelines.data.evaluation_sets import EVALUATION_SETS
from pipelines.data.sources import source_named
from pipelines.errors import ConfigError
from pipelines.evaluation.table import ROWS
from pipelines.finetuning.tasks import TASKS, task_named

NAMES = (
    *("refcoco", "refcoco+", "refcocog", "refcocog-google"),
    *("ade20k-semantic", "ade20k-instance", "ade20k-panoptic"),
    *("cityscapes-semantic", "cityscapes-instance", "cityscapes-panoptic"),
    *("coco-panoptic", "coco-instance", "coco-captions", "coco-retrieval"),
    *("flickr30k-retrieval", "vqav2", "custom"),
)


def test_every_promised_task_is_there():
    assert {task.name for task in TASKS} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_names_splits_metrics_and_protected_sets_that_exist(name):
    task = task_named(name)
    for location in task.locations:
        source = source_named(location.source)
        for split in (*location.train, location.val):
            assert not source.splits or split in source.splits
        assert not source.split_bys or location.split_by in source.split_bys
    assert task.metric in {row.key for row in ROWS}
    assert set(task.protect) <= EVALUATION_SETS.keys()
    assert task.schedule.epochs > 0


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"must be one of refcoco, .*; got 'refcoc'"):
        task_named("refcoc")
