"""Heads of MaskFormer and Mask2Former: outputs, assignments, losses and gradient norms."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from line import Line
from safetensors.torch import load_file

from xdecoder.batch import SegmentTargets
from xdecoder.config import PixelDecoderConfig
from xdecoder.convert.mask_former import head_rules
from xdecoder.convert.rules import convert
from xdecoder.losses.criterion import label_weight
from xdecoder.losses.draws import RecordedDraws
from xdecoder.losses.mask import pad_masks
from xdecoder.losses.points import PointSampling
from xdecoder.mask_former.build import build_head
from xdecoder.mask_former.config import MaskFormerConfig, MaskLossConfig, QueryDecoderConfig
from xdecoder.mask_former.criterion import mask_losses

# the README of the recordings; losses and gradient norms are also allowed a share of their size
ATOL = 1e-4
RTOL = 1e-4
_TERMS = {"ce": "loss_ce", "mask": "loss_mask", "dice": "loss_dice"}


def check(folder: Path) -> Iterator[Line]:
    """One line per recorded head below a folder."""
    for kind in ("mask2former", "maskformer"):
        if (folder / kind / "info.json").is_file():
            yield _check_head(folder / kind, is_masked=kind == "mask2former")


def _check_head(folder: Path, *, is_masked: bool) -> Line:
    info = json.loads((folder / "info.json").read_text())
    recorded = load_file(folder / "io.safetensors")
    weights = load_file(folder / "weights.safetensors")
    line = Line(folder.name)
    line.run_with_each_backend(lambda: _compare(line, info, recorded, weights, is_masked))
    return line


def _compare(line, info, recorded, weights, is_masked):
    conversion = convert(weights, head_rules(is_masked=is_masked))
    maps = [recorded[f"in.res{stage}"] for stage in (2, 3, 4, 5)]
    config = _config(info, weights, is_masked)
    head = build_head(config, [map_.shape[1] for map_ in maps])
    head.load_state_dict(conversion.state)
    # padded images are four times the finest map
    canvas_hw = (4 * maps[0].shape[2], 4 * maps[0].shape[3])
    output = head(maps, canvas_hw)
    _compare_outputs(line, head, output, maps, recorded)
    losses = _losses(output, recorded, info, is_masked)
    _compare_losses(line, losses, recorded, info, len(maps[0]))
    total = sum(
        weight * getattr(losses, ours).sum()
        for ours, theirs in _TERMS.items()
        for weight in [info["weights"][theirs]]
    )
    line.compare("total", total, info["total_weighted"], atol=ATOL, rtol=RTOL)
    total.backward()
    ours_of = {theirs: ours for theirs, ours, change in conversion.report if change != "drop"}
    parameters = dict(head.named_parameters())
    for theirs, norm in info["grad_norms"].items():
        gradient = parameters[ours_of[theirs]].grad
        actual = 0.0 if gradient is None else gradient.norm()
        line.compare(f"grad {theirs}", actual, norm, atol=ATOL, rtol=RTOL)


def _config(info, weights, is_masked):
    sizes = info["hyper_parameters"]
    return MaskFormerConfig(
        num_classes=sizes["classes"],
        pixel_dim=sizes["dim"],
        mask_dim=sizes["mask_dim"],
        pixel_decoder=PixelDecoderConfig(
            kind="msdeform" if is_masked else "fpn_transformer",
            num_layers=sizes["enc"],
            num_heads=sizes["heads"],
            ffn_dim=sizes["ffn_enc"] if is_masked else sizes["ffn"],
        ),
        decoder=QueryDecoderConfig(
            kind="masked" if is_masked else "detr",
            dim=sizes["dim"],
            num_layers=sizes["dec"],
            num_heads=sizes["heads"],
            ffn_dim=sizes["ffn"],
            num_queries=sizes["queries"],
            has_input_projection=any(key.startswith("predictor.input_proj.") for key in weights),
        ),
    )


def _names(output):
    """Recorded names of predictions: the last is final, the others are aux0, aux1, ..."""
    return [*(f"aux{i}" for i in range(len(output.layers) - 1)), "final"]


def _compare_outputs(line, head, output, maps, recorded):
    pyramid = head.pixel_decoder(maps)
    line.compare("mask_features", pyramid.mask_features, recorded["pixel_decoder.mask_features"])
    memory = pyramid.levels[0] if pyramid.memory is None else pyramid.memory
    line.compare("memory", memory, recorded["pixel_decoder.transformer_encoder_features"])
    for i, level in enumerate(pyramid.levels):
        if f"pixel_decoder.multi_scale.{i}" in recorded:
            line.compare(f"level {i}", level, recorded[f"pixel_decoder.multi_scale.{i}"])
    for i, name in enumerate(_names(output)):
        prefix = "out." if name == "final" else f"out.{name}."
        logits = output.layers[i].class_logits
        line.compare(f"{name} classes", logits, recorded[f"{prefix}pred_logits"], atol=ATOL)
        line.compare(f"{name} masks", output.mask_logits(i), recorded[f"{prefix}pred_masks"])


def _losses(output, recorded, info, is_masked):
    num_images = len(output.mask_features)
    segments = [
        SegmentTargets(
            masks=pad_masks(recorded[f"gt{i}.masks"].bool(), output.canvas_hw),
            class_ids=recorded[f"gt{i}.labels"].long(),
        )
        for i in range(num_images)
    ]
    counts = [len(each.class_ids) for each in segments]
    weights = info["weights"]
    config = MaskLossConfig(
        kind="points" if is_masked else "dense",
        ce=weights["loss_ce"],
        mask=weights["loss_mask"],
        dice=weights["loss_dice"],
        background=info["eos_coef"],
        points=PointSampling(num_points=info["hyper_parameters"]["points"]),
    )
    num_draws = sum(key.startswith("rng.") for key in recorded)
    draws = RecordedDraws([recorded[f"rng.{i}"] for i in range(num_draws)])
    num_queries = output.layers[-1].class_logits.shape[1]
    divide = {
        "label_weight": label_weight(counts, num_queries, config.background),
        "segments": float(max(sum(counts), 1)),
    }
    return mask_losses(output, segments, draws, config, divide)


def _compare_losses(line, losses, recorded, info, num_images):
    num_layers = len(losses.matchings)
    for i, matching in enumerate(losses.matchings):
        name = "final" if i == num_layers - 1 else f"aux{i}"
        for image in range(num_images):
            rows = (matching.image_index == image) & matching.is_matched[0]
            first = (matching.image_index < image).sum()
            targets = rows.nonzero().flatten() - first
            ours = set(zip(matching.query_index[0][rows].tolist(), targets.tolist(), strict=True))
            theirs = set(zip(*recorded[f"match.{name}.{image}"].tolist(), strict=True))
            line.require(f"match {name} {image}", ours == theirs)
        suffix = "" if name == "final" else f"_{i}"
        for ours_name, theirs_name in _TERMS.items():
            key = theirs_name + suffix
            expected = info["losses_unweighted"][key]
            actual = getattr(losses, ours_name)[i]
            line.compare(key, actual, expected, atol=ATOL, rtol=RTOL)
    assert torch.isfinite(losses.ce).all()
