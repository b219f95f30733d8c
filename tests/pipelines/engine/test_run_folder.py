import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.engine.run_folder import differences, prepare_folder
from pipelines.errors import ConfigError
from pipelines.overrides import override, to_json
from pipelines.recipes import RECIPES


def test_differences_are_dotted_paths_with_both_values() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": [1]}
    new = {"a": {"b": 1, "c": 3}, "d": [1], "e": 5}
    assert list(differences(old, new)) == [("a.c", 2, 3), ("e", None, 5)]


def test_folder_gets_what_was_asked_and_what_it_resolved_to(tmp_path: Path) -> None:
    config = replace(RECIPES["scenes"](), output_dir=str(tmp_path / "run"))
    prepare_folder(config, {"recipe": "scenes"}, is_forced=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"recipe": "scenes"}
    resolved = json.loads((tmp_path / "run" / "config.resolved.json").read_text())
    assert resolved == to_json(config)


def test_every_changed_value_is_named_unless_it_is_forced(tmp_path: Path) -> None:
    config = replace(RECIPES["scenes"](), output_dir=str(tmp_path / "run"))
    run_id = prepare_folder(config, {}, is_forced=False)
    other = override(config, ["seed=9", "model.decoder.num_latents=7", "tracking.log_every=3"])
    with pytest.raises(ConfigError) as caught:
        prepare_folder(other, {}, is_forced=False)
    message = str(caught.value)
    assert "seed: 0 -> 9" in message
    assert "model.decoder.num_latents" in message
    assert "log_every" not in message
    assert prepare_folder(other, {}, is_forced=True) == run_id
