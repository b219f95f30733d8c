import json
from dataclasses import replace

import pytest
import torch

from xdecoder.convert.openseed import OPENSEED
from xdecoder.convert.rules import CheckpointError, convert
from xdecoder.mask_former.published import TRUNKS
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import released

_MODELS = (
    ("openseed_swint_lang", "swin_t", False, 18),
    ("openseed_swint_lang_o365", "swin_t", False, 77),
    ("openseed_swint_lang_o365_decouple", "swin_t", True, 77),
    ("openseed_swinl_lang_decouple", "swin_l", True, 18),
)


@pytest.mark.parametrize(("name", "trunk", "is_decoupled", "context_length"), _MODELS)
def test_names_and_shapes_are_those_of_the_released_files(
    shared_dir, name, trunk, is_decoupled, context_length
):
    path = shared_dir / "specs/statedicts/openseed_swint_statedict.json"
    published = json.loads(path.read_text())["models"][name]
    state = {key: torch.empty(shape, device="meta") for key, shape in published["shapes"].items()}
    converted = convert(state, OPENSEED).state
    settings = released(TRUNKS[trunk], is_decoupled=is_decoupled, context_length=context_length)
    with torch.device("meta"):
        model = build_openseed(settings)
    ours = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in converted.items()} == ours
    assert sum(each.numel() for each in model.parameters()) == published["n_params"]
    other = replace(settings, pyramid=replace(settings.pyramid, num_extra_levels=2))
    with torch.device("meta"):
        assert build_openseed(other).state_dict().keys() != ours.keys()


def test_a_key_without_a_rule_is_listed():
    with pytest.raises(CheckpointError, match=r"sem_seg_head.predictor.surprise \[2\]: no rule"):
        convert({"sem_seg_head.predictor.surprise": torch.zeros(2)}, OPENSEED)
