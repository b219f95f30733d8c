"""Published schedules and sizes of MaskFormer and Mask2Former, and their parameter groups."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipelines.engine.optim import group_table, parameter_groups
from pipelines.engine.schedule import learning_rate_factor
from pipelines.families import build_model_of
from pipelines.overrides import override
from pipelines.recipes import RECIPES
from pipelines.recipes.scaling import scaled_to_batch
from xdecoder.mask_former.config import MaskFormerConfig

NAMES = sorted(name for name in RECIPES if name.startswith(("mask2former_", "maskformer_")))


def factor_at(config, share):
    return learning_rate_factor(config.schedule, int(share * config.steps), config.steps)


@pytest.mark.parametrize(
    ("name", "steps", "batch_size", "learning_rate", "weight_decay", "num_classes"),
    [
        ("mask2former_coco_panoptic", 368_750, 16, 1e-4, 0.05, 133),
        ("mask2former_coco_panoptic_swin_l", 737_500, 16, 1e-4, 0.05, 133),
        ("mask2former_coco_instance", 368_750, 16, 1e-4, 0.05, 80),
        ("mask2former_ade20k_semantic", 160_000, 16, 1e-4, 0.05, 150),
        ("mask2former_ade20k_panoptic", 160_000, 16, 1e-4, 0.05, 150),
        ("mask2former_ade20k_instance", 160_000, 16, 1e-4, 0.05, 100),
        ("mask2former_cityscapes_semantic", 90_000, 16, 1e-4, 0.05, 19),
        ("mask2former_cityscapes_panoptic", 90_000, 16, 1e-4, 0.05, 19),
        ("mask2former_cityscapes_instance", 90_000, 16, 1e-4, 0.05, 8),
        ("maskformer_coco_panoptic", 554_400, 64, 1e-4, 1e-4, 133),
        ("maskformer_coco_panoptic_swin_t", 554_400, 64, 6e-5, 0.01, 133),
        ("maskformer_ade20k_semantic", 160_000, 16, 1e-4, 1e-4, 150),
        ("maskformer_ade20k_semantic_swin_t", 160_000, 16, 6e-5, 0.01, 150),
        ("maskformer_ade20k_panoptic", 720_000, 16, 1e-4, 1e-4, 150),
        ("maskformer_cityscapes_semantic", 90_000, 16, 1e-4, 1e-4, 19),
    ],
)
def test_recipes_have_the_published_numbers(
    name, steps, batch_size, learning_rate, weight_decay, num_classes
):
    config = RECIPES[name]()
    assert isinstance(config.model, MaskFormerConfig)
    assert config.name == name
    assert config.steps == steps
    assert config.data.segmentation.batch_size == batch_size
    assert config.optimizer.learning_rate == learning_rate
    assert config.optimizer.weight_decay == weight_decay
    assert config.optimizer.clip_norm == 0.01
    assert config.model.num_classes == num_classes
    kind = name.split("_")[2]
    assert config.losses.targets == kind
    assert config.losses.kind == ("points" if name.startswith("mask2") else "dense")
    assert config.model.decoder.num_queries == (200 if name.endswith("swin_l") else 100)
    dropout = 0.0 if name.startswith("mask2") else 0.1
    assert config.model.decoder.dropout == config.model.pixel_decoder.dropout == dropout


def test_every_recipe_of_the_family_is_checked():
    marker = test_recipes_have_the_published_numbers.pytestmark[0]
    assert sorted(row[0] for row in marker.args[1]) == NAMES


def test_coco_steps_down_and_the_others_fall_all_the_way():
    coco = RECIPES["mask2former_coco_panoptic"]()
    before, after = 327_776 / coco.steps, 327_780 / coco.steps
    assert factor_at(coco, before) == 1.0
    assert factor_at(coco, after) == pytest.approx(0.1)
    assert factor_at(coco, 355_094 / coco.steps) == pytest.approx(0.01)
    plain = RECIPES["maskformer_coco_panoptic"]()
    assert factor_at(plain, 369_500 / plain.steps) == 1.0
    assert factor_at(plain, 369_700 / plain.steps) == pytest.approx(0.1)
    ade = RECIPES["mask2former_ade20k_semantic"]()
    assert factor_at(ade, 0.5) == pytest.approx(0.5**0.9)


@pytest.mark.parametrize("trunk", ["r50", "r101", "swin_t", "swin_s", "swin_b", "swin_l"])
def test_the_trunk_is_chosen_by_its_name(trunk):
    config = RECIPES["mask2former_coco_panoptic"]()
    config = override(config, [f"model.backbone.name={trunk}"])
    with torch.device("meta"):
        model = build_model_of(config.model, has_initial_weights=False)
    widths = {"r": (256, 2048), "swin_t": (96, 768), "swin_s": (96, 768)}
    widths |= {"swin_b": (128, 1024), "swin_l": (192, 1536)}
    dims = model.backbone.out_dims
    assert (dims[0], dims[-1]) == widths[trunk if trunk.startswith("swin") else "r"]


@pytest.mark.parametrize("name", ["mask2former_coco_panoptic_swin_l", "maskformer_coco_panoptic"])
def test_norms_and_tables_do_not_decay_and_the_trunk_learns_a_tenth(name):
    config = RECIPES[name]()
    with torch.device("meta"):
        model = build_model_of(config.model, has_initial_weights=False)
    groups = parameter_groups(model, config.optimizer)
    of_name = {each: group for group in groups for each in group.names}
    assert of_name.keys() == dict(model.named_parameters()).keys()
    for prefix, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding | nn.LayerNorm | nn.GroupNorm)
        for each, _ in module.named_parameters(recurse=False):
            group = of_name[f"{prefix}.{each}"]
            is_trunk = prefix.startswith("backbone.")
            assert group.learning_rate == pytest.approx(1e-5 if is_trunk else 1e-4)
            if is_table or each == "offset_bias":
                assert group.weight_decay == 0
            if isinstance(module, nn.Linear | nn.Conv2d) and each == "weight":
                assert group.weight_decay == config.optimizer.weight_decay
    table = group_table(groups, model)
    cells = [str(cell) for column in table.columns for cell in column.cells]
    assert {
        "backbone, decayed",
        "rest, not decayed",
        "rest, decayed",
        "1.00e-05",
        "1.00e-04",
    } <= set(cells)


def test_eight_gpus_fewer_train_longer_at_a_lower_rate():
    base = RECIPES["mask2former_coco_panoptic"]()
    small = scaled_to_batch(base, 2)
    assert small.steps == 8 * base.steps
    assert small.optimizer.learning_rate == pytest.approx(1.25e-5)
    assert small.schedule.milestones == base.schedule.milestones
    assert replace(small, steps=base.steps).data.segmentation.batch_size == 2
