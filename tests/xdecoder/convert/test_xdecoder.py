"""The released models' names and shapes, from their recorded state dicts."""

import json

import pytest
import torch

from xdecoder.build import build_model
from xdecoder.config import released
from xdecoder.convert.rules import CheckpointError, Rule, convert
from xdecoder.convert.xdecoder import FOCAL, HEAD, davit, model_rules


def _released_shapes(shared_dir, name):
    folder = shared_dir / "specs" / "statedicts"
    if name == "focal_t":
        return json.loads((folder / "xdecoder_focalt_statedict.json").read_text())
    others = json.loads((folder / "xdecoder_other_statedicts.json").read_text())["state_dicts"]
    return others[name.replace("_", "")]


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("focal_t", FOCAL),
        ("focal_l", FOCAL),
        ("davit_d3", davit((1, 1, 9, 1))),
        ("davit_d5", davit((1, 1, 9, 1))),
    ],
)
def test_released_names_and_shapes_fill_our_model_exactly(shared_dir, name, backbone):
    shapes = _released_shapes(shared_dir, "focall" if name == "focal_l" else name)
    theirs = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with torch.device("meta"):
        model = build_model(released(name))
    state = convert(theirs, model_rules(backbone)).state
    model.load_state_dict(state, assign=True)


def test_every_key_is_reported_with_its_change():
    theirs = {
        "sem_seg_head.predictor.class_embed": torch.arange(6.0).reshape(2, 3),
        "sem_seg_head.predictor.lang_encoder.logit_scale": torch.tensor(1.5),
        "criterion.empty_weight": torch.ones(4),
    }
    conversion = convert(theirs, HEAD)
    weight = conversion.state["decoder.heads.class_projection.weight"]
    assert torch.equal(weight, torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))
    assert conversion.state["logit_scale"].shape == (1,)
    assert [change for _, _, change in conversion.report] == ["transpose", "vector", "drop"]


def test_unexplained_keys_are_refused_by_name():
    with pytest.raises(CheckpointError, match=r"backbone\.stem\.weight \[3\]: no rule"):
        convert({"backbone.stem.weight": torch.ones(3)}, HEAD)


def test_two_keys_that_meet_in_one_name_are_refused():
    with pytest.raises(CheckpointError, match="b: c is taken"):
        convert({"a": torch.ones(2), "b": torch.ones(2)}, [Rule("[ab]", "c")])
