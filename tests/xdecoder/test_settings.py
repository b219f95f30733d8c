from dataclasses import dataclass

import pytest

from xdecoder.config import BackboneConfig, ModelConfig, tiny
from xdecoder.mask_former.config import MaskFormerConfig, ResNetConfig, SwinConfig
from xdecoder.settings import SettingsError, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Size:
    height: int = 3
    width: int | None = None


def test_settings_come_back_as_they_were() -> None:
    assert from_json(ModelConfig, to_json(tiny())) == tiny()


def test_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(SettingsError, match=r"no 'heigth'; the nearest key is 'height'"):
        from_json(Size, {"heigth": 4})


@pytest.mark.parametrize("value", ["4", 4.0, True, None])
def test_a_value_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match="height must be int; got"):
        from_json(Size, {"height": value})


def test_a_rule_of_a_group_is_reported() -> None:
    with pytest.raises(SettingsError, match=r"model\.dim must be a multiple of 32"):
        from_json(ModelConfig, to_json(tiny()) | {"dim": 33})


@pytest.mark.parametrize("backbone", [SwinConfig(window=5), ResNetConfig(), BackboneConfig()])
def test_a_group_of_a_union_is_known_by_its_keys(backbone: object) -> None:
    config = MaskFormerConfig(backbone=backbone)  # type: ignore[arg-type]
    assert from_json(MaskFormerConfig, to_json(config)) == config


def test_a_wrong_key_in_a_group_of_a_union_is_named() -> None:
    values = to_json(MaskFormerConfig(backbone=SwinConfig()))
    values["backbone"]["windov"] = values["backbone"].pop("window")
    with pytest.raises(SettingsError, match=r"'backbone.windov'; the nearest key is .*window'"):
        from_json(MaskFormerConfig, values)
