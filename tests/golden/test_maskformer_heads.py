"""The check of recorded heads reads every size from the recording, not from one case."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xdecoder.batch import SegmentTargets
from xdecoder.config import PixelDecoderConfig
from xdecoder.convert.mask_former import head_rules
from xdecoder.convert.rules import convert
from xdecoder.losses.criterion import label_weight
from xdecoder.losses.draws import Draws, UniformSource
from xdecoder.losses.points import PointSampling
from xdecoder.mask_former.build import build_head
from xdecoder.mask_former.config import MaskFormerConfig, MaskLossConfig, QueryDecoderConfig
from xdecoder.mask_former.criterion import mask_losses

CHANNELS = (8, 12, 20, 28)
SIZES_HW = ((12, 20), (6, 10), (3, 5), (2, 3))
# the second image has nothing to find
NUM_TARGETS = (4, 0, 1)
SIZES = {
    "channels": CHANNELS, "dim": 32, "mask_dim": 64, "heads": 4, "ffn": 40, "ffn_enc": 56,
    "enc": 1, "dec": 3, "queries": 9, "classes": 5, "points": 33, "hw": SIZES_HW[0],
    "ngt": NUM_TARGETS,
}  # fmt: skip


class Recording(UniformSource):
    """Draws that are kept."""

    def __init__(self):
        self.source, self.kept = Draws(3), []

    def uniform(self, *shape):
        self.kept.append(self.source.uniform(*shape))
        return self.kept[-1]


@pytest.fixture
def heads(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("maskformer_heads")


def record(folder, official, kind):
    """A case of our own in the format of the recordings, with their names of weights."""
    is_masked = kind == "mask2former"
    head = _head(is_masked)
    maps = [
        torch.randn(len(NUM_TARGETS), dim, *size_hw)
        for dim, size_hw in zip(CHANNELS, SIZES_HW, strict=True)
    ]
    output = head(maps, (48, 80))
    segments = [
        SegmentTargets(masks=torch.rand(n, 48, 80) > 0.5, class_ids=torch.arange(n))
        for n in NUM_TARGETS
    ]
    config = MaskLossConfig(
        kind="points" if is_masked else "dense",
        ce=2.0, mask=5.0, dice=5.0, background=0.2, points=PointSampling(num_points=33),
    )  # fmt: skip
    draws = Recording()
    divide = {"label_weight": label_weight(NUM_TARGETS, 9, 0.2), "segments": 5.0}
    losses = mask_losses(output, segments, draws, config, divide)
    total = 2 * losses.ce.sum() + 5 * losses.mask.sum() + 5 * losses.dice.sum()
    total.backward()
    names = _official_names(official / kind, head, is_masked)
    _write(folder / kind, head, maps, output, segments, losses, total, draws.kept, names)


def _head(is_masked):
    config = MaskFormerConfig(
        num_classes=5,
        pixel_dim=32,
        mask_dim=64,
        pixel_decoder=PixelDecoderConfig(
            kind="msdeform" if is_masked else "fpn_transformer",
            num_layers=1,
            num_heads=4,
            ffn_dim=56 if is_masked else 40,
        ),
        decoder=QueryDecoderConfig(
            kind="masked" if is_masked else "detr",
            dim=32, num_layers=3, num_heads=4, ffn_dim=40, num_queries=9,
        ),
    )  # fmt: skip
    head = build_head(config, CHANNELS)
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return head


def _official_names(recorded, head, is_masked):
    """Our names of the head's weights, and what they are called in a recording."""
    weights = load_file(recorded / "weights.safetensors")
    report = convert(weights, head_rules(is_masked=is_masked)).report
    wanted = head.state_dict()
    names = {ours: theirs for theirs, ours, change in report if ours in wanted and change == "same"}
    assert names.keys() == wanted.keys()
    return names


def _write(folder, head, maps, output, segments, losses, total, draws, names):
    folder.mkdir()
    save_file(
        {names[key]: value.detach() for key, value in head.state_dict().items()},
        folder / "weights.safetensors",
    )
    pyramid = head.pixel_decoder(maps)
    memory = pyramid.levels[0] if pyramid.memory is None else pyramid.memory
    tensors = {f"in.res{stage + 2}": map_ for stage, map_ in enumerate(maps)}
    tensors |= {f"rng.{i}": draw for i, draw in enumerate(draws)}
    tensors["pixel_decoder.mask_features"] = pyramid.mask_features
    tensors["pixel_decoder.transformer_encoder_features"] = memory
    for i, image in enumerate(segments):
        tensors[f"gt{i}.masks"] = image.masks.to(torch.uint8)
        tensors[f"gt{i}.labels"] = image.class_ids
    unweighted = {}
    for i, layer in enumerate(output.layers):
        is_last = i == len(output.layers) - 1
        name, suffix = ("final", "") if is_last else (f"aux{i}", f"_{i}")
        prefix = "out." if is_last else f"out.{name}."
        tensors[f"{prefix}pred_logits"] = layer.class_logits
        tensors[f"{prefix}pred_masks"] = output.mask_logits(i)
        for term in ("ce", "mask", "dice"):
            unweighted[f"loss_{term}{suffix}"] = getattr(losses, term)[i].item()
        first = 0
        for image, count in enumerate(NUM_TARGETS):
            queries = losses.matchings[i].query_index[0, first : first + count]
            tensors[f"match.{name}.{image}"] = torch.stack([queries, torch.arange(count)])
            first += count
    kept = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    save_file(kept, folder / "io.safetensors")
    norms = {names[key]: p.grad.norm().item() for key, p in head.named_parameters()}
    info = {
        "hyper_parameters": SIZES,
        "weights": {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0},
        "eos_coef": 0.2,
        "losses_unweighted": unweighted,
        "total_weighted": total.item(),
        "grad_norms": norms,
    }
    (folder / "info.json").write_text(json.dumps(info))


def test_a_case_of_other_sizes_with_an_empty_image_passes(heads, shared_dir, tmp_path):
    official = shared_dir / "golden" / "maskformer_heads" / "case_a"
    for kind in ("mask2former", "maskformer"):
        record(tmp_path, official, kind)
    lines = list(heads.check(tmp_path))
    assert [line.name for line in lines] == ["mask2former", "maskformer"]
    assert all(line.is_good for line in lines), [line.text() for line in lines]


def test_another_number_of_heads_is_noticed(heads, shared_dir, tmp_path):
    official = shared_dir / "golden" / "maskformer_heads" / "case_a"
    record(tmp_path, official, "maskformer")
    path = tmp_path / "maskformer" / "info.json"
    info = json.loads(path.read_text())
    info["hyper_parameters"]["heads"] = 2
    path.write_text(json.dumps(info))
    (line,) = heads.check(tmp_path)
    assert not line.is_good
