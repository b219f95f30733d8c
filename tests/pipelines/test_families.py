"""Which model and tasks a configuration means, and where its classes come from."""

from dataclasses import replace

import pytest
import torch

from pipelines.data.shards import read_manifest, write_manifest
from pipelines.errors import ConfigError
from pipelines.families import build_model_of, build_tasks_of, with_classes_of_data
from pipelines.prepare import main as prepare
from pipelines.recipes import RECIPES
from xdecoder.mask_former.model import MaskFormer
from xdecoder.mask_former.task import MaskTask
from xdecoder.model import XDecoder


@pytest.fixture(scope="module")
def shards(scenes_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("families") / "shards"
    words = ["coco", "--root", str(scenes_root), "--split", "train", "--out", str(out)]
    assert prepare(words) == 0
    return out


def config_on(*folders, name="mask2former_coco_panoptic", **model_changes):
    config = RECIPES[name]()
    data = replace(
        config.data,
        segmentation=replace(config.data.segmentation, shards=tuple(map(str, folders))),
    )
    return replace(config, data=data, model=replace(config.model, **model_changes))


def test_classes_are_those_of_the_shards(shards):
    manifest = read_manifest(shards)
    model = with_classes_of_data(config_on(shards)).model
    assert (model.class_names, model.is_thing) == (manifest.names, manifest.is_thing)
    assert model.num_classes == len(manifest.names)


def test_instance_models_have_the_things_of_the_shards(shards):
    model = with_classes_of_data(config_on(shards, name="mask2former_coco_instance")).model
    manifest = read_manifest(shards)
    things = [n for n, thing in zip(manifest.names, manifest.is_thing, strict=True) if thing]
    assert list(model.class_names) == things
    assert all(model.is_thing)
    assert 0 < model.num_classes < len(manifest.names)


def test_a_list_of_ones_own_keeps_its_order(shards):
    manifest = read_manifest(shards)
    names = (manifest.names[-1], manifest.names[0])
    config = config_on(shards, class_names=names, num_classes=2)
    model = with_classes_of_data(config).model
    assert model.class_names == names
    assert model.is_thing == (manifest.is_thing[-1], manifest.is_thing[0])


def test_a_class_that_the_shards_lack_is_refused(shards):
    config = config_on(shards, class_names=("unicorn",), num_classes=1)
    with pytest.raises(ConfigError, match=r"classes of the shards; 1 are not: unicorn"):
        with_classes_of_data(config)


def test_shards_with_different_lists_are_refused(shards, tmp_path):
    manifest = read_manifest(shards)
    (tmp_path / "other").mkdir()
    other = replace(manifest, names=tuple(reversed(manifest.names)))
    write_manifest(tmp_path / "other", other)
    with pytest.raises(ConfigError, match=r"must have one list of classes .* have 2"):
        with_classes_of_data(config_on(shards, tmp_path / "other"))


def test_missing_shards_and_open_vocabularies_change_nothing(tmp_path, shards):
    config = config_on(tmp_path / "nowhere")
    assert with_classes_of_data(config) is config
    scenes = RECIPES["scenes"]()
    assert with_classes_of_data(scenes) is scenes


def test_each_family_builds_its_model_and_tasks(tiny_config, shards):
    assert isinstance(build_model_of(tiny_config.model), XDecoder)
    assert [task.name for task in build_tasks_of(tiny_config)] == ["segmentation", "image_text"]
    config = with_classes_of_data(config_on(shards))
    with torch.device("meta"):
        assert isinstance(build_model_of(config.model, has_initial_weights=False), MaskFormer)
    (task,) = build_tasks_of(config)
    assert isinstance(task, MaskTask)
    assert task.class_names == config.model.class_names


def test_model_and_losses_of_two_families_are_refused():
    config = RECIPES["mask2former_coco_panoptic"]()
    with pytest.raises(ConfigError, match="of one family; got MaskFormerConfig and LossConfig"):
        replace(config, losses=RECIPES["scenes"]().losses)


def test_captions_for_a_model_that_reads_none_are_refused():
    config = RECIPES["mask2former_coco_panoptic"]()
    data = replace(config.data, image_text=replace(config.data.image_text, batch_size=4))
    with pytest.raises(ConfigError, match=r"data\.image_text\.batch_size must be 0 .*; got 4"):
        replace(config, data=data)
