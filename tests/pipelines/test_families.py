"""Which model and tasks a configuration means, and where its classes come from."""

import json
from dataclasses import replace

import pytest
import torch

from pipelines.config import OptimizerConfig, RunConfig
from pipelines.data.shards import read_manifest, write_manifest
from pipelines.engine.optim import freeze, parameter_groups
from pipelines.errors import ConfigError
from pipelines.families import build_model_of, build_tasks_of, with_classes_of_data
from pipelines.overrides import from_json, override, to_json
from pipelines.prepare import main as prepare
from pipelines.recipes import RECIPES
from xdecoder.mask_former.model import MaskFormer
from xdecoder.mask_former.task import MaskTask
from xdecoder.model import XDecoder
from xdecoder.openseed.model import OpenSeeD


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


def test_openseed_is_trained_on_segments_and_on_boxes():
    config = RECIPES["openseed_scenes"]()
    with torch.device("meta"):
        model = build_model_of(config.model, has_initial_weights=False)
    assert isinstance(model, OpenSeeD)
    tasks = build_tasks_of(config)
    assert [task.name for task in tasks] == ["segmentation", "detection"]
    templates = ("a {}.", "the {}.")
    for task in build_tasks_of(replace(config, losses=replace(config.losses, templates=templates))):
        assert task.templates == templates
    assert with_classes_of_data(config) is config


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("openseed_scenes", "image_text", "must be 0 for OpenSeeD, which reads no captions; got 4"),
        ("scenes", "detection", r"must be 0 for a model that predicts no boxes; got 4\. Boxes"),
        ("maskformer_coco_panoptic", "detection", "must be 0 for a model that predicts no boxes"),
    ],
)
def test_batches_that_a_family_cannot_read_are_refused(name, part, words):
    config = RECIPES[name]()
    data = replace(config.data, **{part: replace(getattr(config.data, part), batch_size=4)})
    with pytest.raises(ConfigError, match=rf"data\.{part}\.batch_size {words}"):
        replace(config, data=data)


def test_losses_of_another_family_are_refused_for_openseed():
    config = RECIPES["openseed_scenes"]()
    with pytest.raises(ConfigError, match="of one family; got OpenSeeDConfig and MaskLossConfig"):
        replace(config, losses=RECIPES["mask2former_coco_panoptic"]().losses)


def test_values_of_openseed_are_set_and_saved_by_their_paths():
    recipe = RECIPES["openseed_scenes"]()
    changes = ("model.decoder.num_queries=21", "losses.assistance.is_on=false", "losses.giou=3")
    config = override(recipe, changes)
    assert (config.model.decoder.num_queries, config.losses.giou) == (21, 3.0)
    assert not config.losses.assistance.is_on
    assert from_json(RunConfig, json.loads(json.dumps(to_json(config)))) == config
    with pytest.raises(ConfigError, match=r"'model\.decoder\.num_querys'.*model\.decoder\.num_q"):
        override(recipe, ("model.decoder.num_querys=21",))


def test_parts_of_openseed_have_learning_rates_of_their_own_and_can_be_frozen():
    with torch.device("meta"):
        model = build_model_of(RECIPES["openseed_scenes"]().model, has_initial_weights=False)
    settings = OptimizerConfig(
        learning_rate=1.0, backbone_multiplier=0.5, text_multiplier=0.25, frozen=("pixel_decoder",)
    )
    freeze(model, settings.frozen)
    rates = {
        name: group.learning_rate
        for group in parameter_groups(model, settings)
        for name in group.names
    }
    named = [name for name, _ in model.named_parameters()]
    expected = {"backbone": 0.5, "text_encoder": 0.25, "decoder": 1.0, "logit_scale": 1.0}
    parts = [name.partition(".")[0] for name in named]
    assert set(parts) == {*expected, "pixel_decoder"}
    trained = {n: p for n, p in zip(named, parts, strict=True) if p != "pixel_decoder"}
    assert rates == {name: expected[part] for name, part in trained.items()}
    decays = {
        name: group.weight_decay
        for group in parameter_groups(model, settings)
        for name in group.names
    }
    # weights are pulled towards zero, what stands for itself is not
    assert decays["decoder.heads.class_projection.weight"] > 0
    assert decays["decoder.layers.0.cross_attention.sampling_offsets.weight"] > 0
    for name in ("decoder.background_content.weight", "decoder.heads.norm.weight", "logit_scale"):
        assert decays[name] == 0
