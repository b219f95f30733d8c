import dataclasses
from pathlib import Path

from pipelines.config import RunConfig
from pipelines.data.shards import Manifest, write_manifest
from pipelines.prediction import prediction_of_run
from pipelines.prepare import main as prepare
from pipelines.recipes import RECIPES
from xdecoder.batch import Vocabulary
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, maskformer_losses


def test_sizes_are_those_of_training(tiny_config: RunConfig) -> None:
    found = prediction_of_run(tiny_config)
    assert found.segmentation.size_hw == tiny_config.data.segmentation.size_hw
    assert found.text.size_hw == tiny_config.data.image_text.size_hw
    assert found.vocabulary is None


def test_names_are_those_of_the_shards(
    tiny_config: RunConfig, scenes_root: Path, tmp_path: Path
) -> None:
    arguments = ["coco", "--root", str(scenes_root), "--split", "train"]
    assert prepare([*arguments, "--out", str(tmp_path / "shards")]) == 0
    data = dataclasses.replace(
        tiny_config.data,
        segmentation=dataclasses.replace(
            tiny_config.data.segmentation, shards=(str(tmp_path / "shards"),)
        ),
    )
    found = prediction_of_run(dataclasses.replace(tiny_config, data=data)).vocabulary
    assert found is not None
    assert dict(zip(found.names, found.is_thing, strict=True))["sky"] is False
    assert any(found.is_thing)


def test_maskformer_keeps_its_own_rules(tiny_config: RunConfig) -> None:
    model = MaskFormerConfig(decoder=QueryDecoderConfig(kind="detr"))
    no_texts = dataclasses.replace(tiny_config.data.image_text, batch_size=0)
    config = dataclasses.replace(
        tiny_config,
        model=model,
        losses=maskformer_losses(),
        data=dataclasses.replace(tiny_config.data, image_text=no_texts),
    )
    found = prediction_of_run(config)
    assert found.keeps_faint_pixels
    assert found.object_threshold == 0.8


def test_openseed_is_asked_for_the_names_of_both_kinds_of_shards(tmp_path: Path) -> None:
    names = {"masks": ("cat", "sky"), "boxes": ("dog", "cat", "grass")}
    for folder, classes in names.items():
        (tmp_path / folder).mkdir()
        manifest = Manifest(
            source={},
            names=classes,
            is_thing=tuple(name not in ("sky", "grass") for name in classes),
            splits={},
        )
        write_manifest(tmp_path / folder, manifest)
    config = RECIPES["openseed_scenes"]()
    data = dataclasses.replace(
        config.data,
        segmentation=dataclasses.replace(config.data.segmentation, shards=(f"{tmp_path}/masks",)),
        detection=dataclasses.replace(config.data.detection, shards=(f"{tmp_path}/boxes",)),
    )
    found = prediction_of_run(dataclasses.replace(config, data=data))
    assert found.vocabulary == Vocabulary.of("cat", "sky", "dog", stuff=("sky",))
    assert found.object_threshold == 0.25
    assert found.templates == config.losses.templates
    no_boxes = dataclasses.replace(data.detection, batch_size=0)
    only_masks = dataclasses.replace(data, detection=no_boxes)
    found = prediction_of_run(dataclasses.replace(config, data=only_masks))
    assert found.vocabulary == Vocabulary.of("cat", "sky", stuff=("sky",))
