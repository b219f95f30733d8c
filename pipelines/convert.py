"""`python -m pipelines.convert`: published weights to ours and back, every key accounted for."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.cli import main_of
from pipelines.errors import CheckpointError, ExitCode
from pipelines.families import build_model_of
from pipelines.overrides import from_json
from xdecoder.config import RESNETS, BackboneConfig, ModelConfig
from xdecoder.convert import hf_config
from xdecoder.convert import rules as naming
from xdecoder.convert.backbones import RESNET, SWIN
from xdecoder.convert.hf_mask_former import UNUSED
from xdecoder.convert.inference import infer_config
from xdecoder.convert.mask_former import detectron2_rules
from xdecoder.convert.openseed import is_openseed, read_openseed
from xdecoder.convert.pairs import read_pairs, write_pairs
from xdecoder.convert.pickles import read_detectron2_pickle, read_torch_file
from xdecoder.convert.released import incomplete_parts, is_released, read_released
from xdecoder.convert.trunks import is_trunk, read_trunk
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig
from xdecoder.mask_former.model import MaskFormer
from xdecoder.openseed.config import OpenSeeDConfig
from xdecoder.pretrained import Settings, settings_document

_WEIGHTS, _CONFIG, _REPORT, _UNUSED = (
    "model.safetensors",
    "config.json",
    "report.txt",
    "unused.safetensors",
)
# the kind of a folder whose weights are a start and not a model
INITIAL = "xdecoder_initial"
_DECLARED: dict[str, type] = {
    "mask_former": MaskFormerConfig,
    "xdecoder": ModelConfig,
    "openseed": OpenSeeDConfig,
    INITIAL: ModelConfig,
}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Weights under our names, the model that they are of, and what became of every key.

    unused: tensors of the source that are no weights of ours, kept so that writing the source's
    layout again gives the same file. is_initial: only what training starts from.
    """

    config: Settings
    state: dict[str, Tensor]
    report: tuple[tuple[str, str, str], ...]
    unused: dict[str, Tensor]
    is_initial: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a conversion: 0, or 2 where a key stays unexplained."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.convert",
        description="Read detectron2 .pkl, X-Decoder or OpenSeeD .pt, a HuggingFace folder or a "
        "converted folder; write safetensors, the model's settings and a report of every key.",
    )
    parser.add_argument("source", type=Path, help="a .pkl, .pt or .pth file, or a folder")
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--layout", choices=("ours", "hf"), default="ours", help="of what is written"
    )
    parser.add_argument("--num-heads", type=int, default=8, help="of detectron2 files' attention")
    return main_of(_convert, parser, argv)


def _convert(options: argparse.Namespace) -> ExitCode:
    if options.out.exists():
        raise CheckpointError(
            f"convert: {options.out} must not exist yet, so that nothing is mixed. Name another."
        )
    try:
        converted = read(options.source, num_heads=options.num_heads)
        check(converted)
        write = write_hf if options.layout == "hf" else write_ours
        write(converted, options.out)
    except naming.CheckpointError as error:
        raise CheckpointError(str(error)) from error
    lines = report_lines(converted)
    (options.out / _REPORT).write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return ExitCode.FINISHED


def read(source: Path, *, num_heads: int = 8) -> Converted:
    """Weights of any layout that we know.

    Raises:
        CheckpointError: a file of another kind, or keys that no rule explains.
    """
    if source.is_dir():
        return _read_folder(source)
    if source.suffix == ".pkl":
        state = read_detectron2_pickle(source)
    elif source.suffix in (".pt", ".pth"):
        state = read_torch_file(source)
    else:
        raise CheckpointError(
            f"convert: a source must be a .pkl, .pt or .pth file or a folder; got {source}."
        )
    if is_openseed(state):
        config, conversion = read_openseed(state)
        # what is dropped are copies, and nothing writes this layout again
        return replace(_converted(config, conversion, state), unused={})
    if is_released(state):
        return _read_xdecoder(state)
    return _read_trunk(state) if is_trunk(state) else _read_detectron2(state, num_heads)


def load_mask_former(folder: Path) -> tuple[MaskFormer, MaskFormerConfig]:
    """The model of a converted folder in evaluation mode, and its settings."""
    converted = _read_folder(folder)
    if not isinstance(converted.config, MaskFormerConfig):
        kind = settings_document(converted.config)["kind"]
        raise CheckpointError(f"convert: {folder} must hold a MaskFormer; its kind is {kind}.")
    model = build_mask_former(converted.config)
    model.load_state_dict(converted.state)
    return model.eval(), converted.config


def check(converted: Converted) -> None:
    """Return if the weights fill the model exactly, initial ones the parts that they have.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen weights.
    """
    wanted = _empty_model(converted.config).state_dict()
    missing = _missing(converted)
    if converted.is_initial:
        missing = incomplete_parts(converted.state, missing)
    unexpected = sorted(converted.state.keys() - wanted.keys())
    misshapen = [
        f"{name} {list(converted.state[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in converted.state and converted.state[name].shape != tensor.shape
    ]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            "convert: the weights must fill the model exactly; missing: "
            f"{', '.join(missing[:5]) or 'none'}; unexpected: {', '.join(unexpected[:5]) or 'none'}"
            f"; wrong shape: {', '.join(misshapen[:5]) or 'none'}. Check that the file is complete."
        )


def _missing(converted: Converted) -> list[str]:
    return sorted(_empty_model(converted.config).state_dict().keys() - converted.state.keys())


def report_lines(converted: Converted) -> list[str]:
    """One line per key of the source and per weight that it lacks, then the counts.

    `check` refuses what is missing, but in initial weights.
    """
    by_kind: dict[str, int] = {}
    lines = []
    for theirs, ours, change in converted.report:
        kind = {"same": "matched", "drop": "dropped"}.get(change, "reshaped")
        by_kind[kind] = by_kind.get(kind, 0) + 1
        how = "" if change in ("same", "drop") else f" ({change})"
        lines.append(f"{kind:8} {theirs} -> {ours}{how}")
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(by_kind.items()))
    missing = _missing(converted)
    lines += [f"missing  {name}: training starts it at random" for name in missing]
    return [*lines, f"total: {counts}, {len(missing)} missing"]


def write_ours(converted: Converted, out: Path) -> None:
    """Our layout: weights, settings, and what else the source held."""
    document = settings_document(converted.config)
    if converted.is_initial:
        document["kind"] = INITIAL
    _write(out, converted.state, document)
    if converted.unused:
        save_file(_unshared(converted.unused), out / _UNUSED)


def write_hf(converted: Converted, out: Path) -> None:
    """HuggingFace's layout, with the tensors that it has beyond the weights.

    Raises:
        CheckpointError: HuggingFace has no class for such a model.
    """
    config = converted.config
    if not isinstance(config, MaskFormerConfig):
        kind = settings_document(config)["kind"]
        raise CheckpointError(
            f"convert: transformers has no class for the kind {kind}; keep our layout."
        )
    settings = hf_config.write_config(config)
    theirs = write_pairs(converted.state, hf_config.table_of(config))
    extra = {
        key: tensor
        for key, tensor in converted.unused.items()
        if key.startswith(("model.", "criterion."))
    }
    if "criterion.empty_weight" not in extra:
        extra["criterion.empty_weight"] = torch.ones(config.num_classes + 1)
        extra["criterion.empty_weight"][-1] = settings["no_object_weight"]
    _write(out, theirs | extra, settings)


def _write(out: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    out.mkdir(parents=True)
    # transformers asks for the format
    save_file(_unshared(state), out / _WEIGHTS, metadata={"format": "pt"})
    (out / _CONFIG).write_text(json.dumps(settings, indent=1) + "\n")


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file needs them, each with memory of its own; shared ones are copied."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in taken else tensor.contiguous()
        taken.add(place)
    return tensors


def _read_folder(folder: Path) -> Converted:
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(
            f"convert: {folder} must have {_CONFIG} and safetensors; there is no {_CONFIG}."
        )
    settings = json.loads((folder / _CONFIG).read_text())
    if settings.get("kind") in _DECLARED:
        return _read_ours(folder, settings)
    state: dict[str, Tensor] = {}
    # what is beside the weights of ours has another name and another reader
    for file in sorted(folder.glob("model*.safetensors")):
        state |= load_file(file)
    if not state:
        raise CheckpointError(f"convert: {folder} must have {_WEIGHTS}; no such file is there.")
    conversion = read_pairs(state, hf_config.table_for(settings), UNUSED)
    heads = hf_config.num_heads(settings)
    config = infer_config(
        conversion.state,
        num_pixel_heads=heads,
        num_heads=heads,
        class_names=hf_config.class_names(settings),
    )
    return _converted(config, conversion, state)


def _read_ours(folder: Path, settings: Mapping[str, Any]) -> Converted:
    config: Any = from_json(_DECLARED[settings["kind"]], settings["model"])
    state = load_file(folder / _WEIGHTS)
    report = tuple((name, name, "same") for name in state)
    has_unused = (folder / _UNUSED).is_file()
    unused = load_file(folder / _UNUSED) if has_unused else {}
    return Converted(
        config=config,
        state=state,
        report=report,
        unused=unused,
        is_initial=settings["kind"] == INITIAL,
    )


def _read_detectron2(state: dict[str, Tensor], num_heads: int) -> Converted:
    is_masked = any(key.endswith("self_attn.sampling_offsets.weight") for key in state)
    is_swin = any(key.startswith("backbone.patch_embed.") for key in state)
    rules = detectron2_rules(SWIN if is_swin else RESNET, is_masked=is_masked)
    conversion = naming.convert(state, rules)
    config = infer_config(conversion.state, num_pixel_heads=num_heads, num_heads=num_heads)
    return _converted(config, conversion, state)


def _read_xdecoder(state: dict[str, Tensor]) -> Converted:
    found = read_released(state)
    converted = _converted(found.config, found.conversion, state)
    return replace(converted, is_initial=found.is_initial)


def _read_trunk(state: Mapping[str, Tensor]) -> Converted:
    name, conversion = read_trunk(state)
    config = ModelConfig(backbone=BackboneConfig(name=name, freeze_norm=name in RESNETS))
    return replace(_converted(config, conversion, state), is_initial=True)


def _converted(
    config: Settings,
    conversion: naming.Conversion,
    state: Mapping[str, Tensor],
) -> Converted:
    dropped = {theirs for theirs, _, change in conversion.report if change == "drop"}
    return Converted(
        config=config,
        state=conversion.state,
        report=conversion.report,
        unused={key: state[key] for key in sorted(dropped)},
    )


def _empty_model(config: Settings) -> nn.Module:
    with torch.device("meta"):
        return build_model_of(config, has_initial_weights=False)


if __name__ == "__main__":
    sys.exit(main())
