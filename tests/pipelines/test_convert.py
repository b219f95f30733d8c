"""Conversion of every layout that we read, and of what must be refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines import convert
from pipelines.errors import CheckpointError
from xdecoder.config import PixelDecoderConfig
from xdecoder.convert.backbones import RESNET, SWIN
from xdecoder.convert.hf_config import write_config
from xdecoder.convert.hf_mask_former import UNUSED
from xdecoder.convert.inference import infer_config
from xdecoder.convert.mask_former import detectron2_rules
from xdecoder.convert.pairs import read_pairs
from xdecoder.convert.rules import CheckpointError as NamingError
from xdecoder.convert.rules import convert as rename
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import (
    MaskFormerConfig,
    QueryDecoderConfig,
    SwinConfig,
)

SWIN_SMALL = SwinConfig(dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4, drop_path=0)


def _config(kind, **changes):
    is_masked = kind == "masked"
    return MaskFormerConfig(
        num_classes=5,
        backbone=SWIN_SMALL,
        pixel_decoder=PixelDecoderConfig(
            kind="msdeform" if is_masked else "fpn_transformer",
            num_layers=2 if is_masked else 0,
            num_heads=4,
            ffn_dim=48 if is_masked else PixelDecoderConfig.ffn_dim,
        ),
        decoder=QueryDecoderConfig(
            kind=kind,
            dim=32,
            num_layers=2,
            num_heads=4,
            ffn_dim=40,
            num_queries=6,
            has_input_projection=not is_masked,
        ),
        pixel_dim=32,
        mask_dim=32,
        **changes,
    )


def _converted_folder(config, folder):
    state = build_mask_former(config).state_dict()
    converted = convert.Converted(config=config, state=state, report=(), unused={})
    convert.write_ours(converted, folder)
    return state


@pytest.mark.parametrize("kind", ["masked", "detr"])
def test_ours_to_huggingface_and_back_is_bit_exact(kind, tmp_path):
    state = _converted_folder(_config(kind), tmp_path / "ours")
    assert convert.main([str(tmp_path / "ours"), str(tmp_path / "hf"), "--layout", "hf"]) == 0
    assert convert.main([str(tmp_path / "hf"), str(tmp_path / "again")]) == 0
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert convert.main([str(tmp_path / "again"), str(tmp_path / "hf2"), "--layout", "hf"]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "hf2"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["masked", "detr"])
def test_settings_are_read_off_the_weights(kind):
    config = _config(kind)
    with torch.device("meta"):
        state = build_mask_former(config).state_dict()
    inferred = infer_config(state, num_pixel_heads=4, num_heads=4)
    # the heads of an encoder that is not there, and the drop path, leave no trace
    assert inferred.decoder == config.decoder
    assert inferred.pixel_decoder == config.pixel_decoder
    assert inferred.backbone == SwinConfig(**{**SWIN_SMALL.__dict__, "drop_path": 0.3})


@pytest.mark.parametrize(
    ("family", "model", "num_parameters"),
    [
        ("mask2former", "coco_panoptic_R50", 43_983_878),
        ("mask2former", "coco_panoptic_swin_tiny", 47_435_264),
        ("mask2former", "coco_panoptic_swin_large_200q", 215_535_610),
        ("maskformer", "coco_panoptic_R50", 45_012_038),
        ("maskformer", "coco_panoptic_swin_tiny", 41_752_640),
        ("maskformer", "ade20k150_R50", 41_254_743),
        ("maskformer", "ade20k150_swin_tiny", 41_757_009),
    ],
)
def test_official_names_and_shapes_fill_our_model_exactly(
    shared_dir, family, model, num_parameters
):
    path = shared_dir / "specs" / "statedicts" / f"{family}_d2_statedict.json"
    shapes = json.loads(path.read_text())["models"][model]["shapes"]
    theirs = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    trunk = SWIN if any("patch_embed" in key for key in shapes) else RESNET
    rules = detectron2_rules(trunk, is_masked=family == "mask2former")
    state = rename(theirs, rules).state
    with torch.device("meta"):
        built = build_mask_former(infer_config(state))
    built.load_state_dict(state, assign=True)
    assert sum(parameter.numel() for parameter in built.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("mask2former", "mask2former_swin_tiny_coco_panoptic"),
        ("maskformer", "maskformer_swin_tiny_coco_panoptic"),
        ("maskformer", "maskformer_resnet50_ade"),
    ],
)
def test_huggingface_names_and_shapes_fill_our_model_exactly(shared_dir, family, model):
    path = shared_dir / "specs" / "statedicts" / f"{family}_hf_statedict.json"
    recorded = json.loads(path.read_text())[model]
    theirs = {key: torch.empty(s, device="meta") for key, s in recorded["on_disk"].items()}
    table = convert.hf_config.table_for(recorded["config"])
    state = read_pairs(theirs, table, UNUSED).state
    with torch.device("meta"):
        built = build_mask_former(infer_config(state))
    built.load_state_dict(state, assign=True)


def _old_layout(state):
    """Names of a detectron2 file from before version 2, for a MaskFormer with a ResNet."""
    theirs = {}
    for key, tensor in state.items():
        theirs[key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")] = tensor.numpy()
    return theirs


def _detectron2_head(shared_dir, name):
    file = shared_dir / "golden" / "maskformer_heads" / "case_a" / name / "weights.safetensors"
    return {f"sem_seg_head.{key}": tensor for key, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", ["maskformer", "mask2former"])
def test_older_layouts_mean_the_same_weights(shared_dir, tmp_path, name):
    is_masked = name == "mask2former"
    new = _detectron2_head(shared_dir, name)
    old = {key: torch.as_tensor(value) for key, value in _old_layout(new).items()}
    old = {key.replace("query_feat", "static_query"): value for key, value in old.items()}
    rules = detectron2_rules(RESNET, is_masked=is_masked)
    expected, actual = rename(new, rules).state, rename(old, rules).state
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_a_pickle_of_arrays_is_read(tmp_path):
    path = tmp_path / "model.pkl"
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "count": np.float32(2)}))
    state = convert.read_detectron2_pickle(path)
    assert torch.equal(state["b"], torch.arange(6.0).reshape(2, 3))


class _Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_that_could_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": _Harmful()}}))
    with pytest.raises(NamingError, match=r"asks for builtins\.print, which could run code"):
        convert.read_detectron2_pickle(path)
    assert "must not run" not in capsys.readouterr().out


def test_a_torch_file_that_could_run_code_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": _Harmful()}, path)
    with pytest.raises(NamingError, match="must hold tensors only"):
        convert.read_torch_file(path)


def test_something_else_in_a_pickle_is_refused(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": "text"}))
    with pytest.raises(NamingError, match="dictionary of names to arrays; got str"):
        convert.read_detectron2_pickle(path)
    path.write_bytes(b"not a pickle")
    with pytest.raises(NamingError, match="reading it failed"):
        convert.read_detectron2_pickle(path)


def test_missing_and_misshapen_weights_are_refused_by_name(tmp_path):
    config = _config("masked")
    state = build_mask_former(config).state_dict()
    del state["head.decoder.heads.norm.bias"]
    state["head.decoder.heads.norm.weight"] = torch.ones(3)
    converted = convert.Converted(config=config, state=state, report=(), unused={})
    with pytest.raises(
        CheckpointError, match=r"missing: head\.decoder\.heads\.norm\.bias; .*\[3\]"
    ):
        convert.check(converted)


def test_an_unexplained_key_of_a_folder_is_refused(tmp_path):
    with pytest.raises(NamingError, match=r"strange \[2\]: no rule"):
        read_pairs({"strange": torch.ones(2)}, (), UNUSED)


def test_a_part_that_is_missing_is_refused():
    pairs = convert.hf_config.table_for(write_config(_config("masked")))
    key = "model.transformer_module.decoder.layers.0.self_attn.q_proj.weight"
    with pytest.raises(NamingError, match="a part is missing"):
        read_pairs({key: torch.ones(32, 32)}, pairs, UNUSED)


def test_a_model_that_huggingface_lacks_is_refused(tmp_path):
    config = _config("detr")
    with_encoder = MaskFormerConfig(
        **{**config.__dict__, "pixel_decoder": PixelDecoderConfig(kind="fpn_transformer")}
    )
    with pytest.raises(NamingError, match="MaskFormer with a plain"):
        write_config(with_encoder)


def test_other_models_and_files_are_refused(tmp_path, capsys):
    with pytest.raises(NamingError, match="got 'detr' with None"):
        convert.hf_config.table_for({"model_type": "detr"})
    (tmp_path / "model.onnx").write_bytes(b"")
    assert convert.main([str(tmp_path / "model.onnx"), str(tmp_path / "out")]) == 2
    assert "must be a .pkl, .pt or .pth file or a folder" in capsys.readouterr().err
    assert convert.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "there is no config.json" in capsys.readouterr().err
    assert convert.main([str(tmp_path), str(tmp_path)]) == 2
    assert "must not exist yet" in capsys.readouterr().err


def test_every_key_is_reported(tmp_path, capsys):
    state = _converted_folder(_config("masked"), tmp_path / "ours")
    convert.main([str(tmp_path / "ours"), str(tmp_path / "hf"), "--layout", "hf"])
    capsys.readouterr()
    convert.main([str(tmp_path / "hf"), str(tmp_path / "again")])
    lines = (tmp_path / "again" / "report.txt").read_text().splitlines()
    # the three parts of a joined weight have a line each, and so has the dropped class weight
    assert sum(line.startswith("reshaped") for line in lines) % 3 == 0
    assert "dropped  criterion.empty_weight -> derived: class weights of the loss" in lines
    assert lines[-1].endswith("0 missing")
    assert len(lines) > len(state)
