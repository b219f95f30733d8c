"""Recorded files of the official X-Decoder code, and the recorded model built from them."""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from line import Line
from safetensors import safe_open
from torch import Tensor

from xdecoder.backbones.focal import FocalNet
from xdecoder.convert.rules import Conversion, convert
from xdecoder.convert.xdecoder import FOCAL, model_rules
from xdecoder.decoder import MaskedDecoder
from xdecoder.model import XDecoder
from xdecoder.pixel_decoder import FpnTransformer
from xdecoder.text.encoder import TextEncoder
from xdecoder.text.tokenizer import Tokenizer

# of the recorded root mean square; the README of the recordings
TOLERANCE = 1e-4
# gradients and optimizer steps may deviate ten times as far
GRADIENT = 10.0
BLOCKS = {"focal_dw": "conv", "focal": "plain"}
# ids that are no merge: 256 bytes, each also as the end of a word, and the two ends of a text
NUM_BASE_TOKENS = 514


@dataclass(frozen=True)
class Recording:
    """One recorded file: tensors (halves as float32) and facts as JSON strings.

    It notes which tensors were read and which were compared, so that none is forgotten.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, str]
    tolerance: float = TOLERANCE
    read_keys: set[str] = field(default_factory=set)
    compared_keys: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Tensor:
        self.read_keys.add(key)
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names start with a prefix, without it."""
        keys = [key for key in self.tensors if key.startswith(prefix)]
        return {key.removeprefix(prefix): self[key] for key in keys}

    def numbered(self, prefix: str) -> list[Tensor]:
        """Tensors named by the prefix and a number, in order."""
        return [self[key] for key in self.numbered_keys(prefix)]

    def numbered_keys(self, prefix: str) -> list[str]:
        """Their names."""
        keys = [key for key in self.tensors if key.removeprefix(prefix).isdigit()]
        return sorted(keys, key=lambda key: int(key.removeprefix(prefix)))

    def fact(self, name: str):
        """A fact by the start of its name."""
        return json.loads(
            next(v for k, v in self.facts.items() if re.split(r"[\[(]", k)[0] == name)
        )

    def compare(self, line: Line, key: str, actual: Tensor, *, factor: float = 1.0) -> None:
        """Add a tensor to a line, its deviation as a share of the recorded root mean square.

        factor: on the tolerance. Integers must be equal.
        """
        expected = self.tensors[key]
        self.compared_keys.add(key)
        actual = torch.as_tensor(actual).detach()
        if not expected.is_floating_point():
            line.require(key, torch.equal(actual.long(), expected.long()))
            return
        rms = expected.double().square().mean().sqrt()
        # what is zero everywhere has no size; the smallest number keeps the division defined
        rms = rms.clamp(min=torch.finfo(torch.float32).tiny)
        if not expected.any():
            rms = torch.ones_like(rms)
        line.compare(
            key, actual.double() / rms, expected.double() / rms, atol=factor * self.tolerance
        )

    def account(self, line: Line, inputs: tuple[str, ...], unused: dict[str, str]) -> None:
        """Complain about tensors that were neither compared nor read as inputs.

        inputs: how names of inputs start; unused: names that nothing of ours reads, with reasons.
        """
        rest = self.tensors.keys() - self.compared_keys
        used = {key for key in rest & self.read_keys if key.startswith(inputs)}
        reasons = {
            key: reason
            for pattern, reason in unused.items()
            for key in rest - used
            if re.fullmatch(pattern, key)
        }
        forgotten = sorted(rest - used - reasons.keys())
        line.complaints.extend(f"{key}: NOT COMPARED" for key in forgotten)
        line.notes = [f"{len(used)} inputs"] if used else []
        line.notes += [
            f"not used: {', '.join(sorted(k for k in reasons if reasons[k] == reason))}: {reason}"
            for reason in dict.fromkeys(reasons.values())
        ]


def read(path: Path, *, dtype: torch.dtype, tolerance: float) -> Recording:
    """One file; floating numbers in the given precision."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = file.metadata() or {}
    converted = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    return Recording(converted, facts, tolerance)


@dataclass(frozen=True)
class Case:
    """A folder of recordings, and the precision and tolerance that we compute with."""

    folder: Path
    dtype: torch.dtype = torch.float32
    tolerance: float = TOLERANCE

    def read(self, name: str) -> Recording:
        path = self.folder / f"{name}.safetensors"
        return read(path, dtype=self.dtype, tolerance=self.tolerance)

    @cached_property
    def settings(self) -> dict:
        """The official configuration of the recorded model."""
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def official(self) -> dict:
        return self.settings["MODEL"]

    @cached_property
    def conversion(self) -> Conversion:
        """The recorded weights under our names."""
        return convert(self.read("weights").tensors, model_rules(FOCAL))

    def model(self) -> XDecoder:
        """The recorded model with its weights, in evaluation mode."""
        state = self.conversion.state
        model = build(self.settings, len(state["text_encoder.token_embedding.weight"]))
        model.load_state_dict(state)
        return model.to(self.dtype).eval()


def focal_net(settings: dict, name: str) -> FocalNet:
    """The trunk of an official setting, which has one number of levels for all its stages."""
    return FocalNet(
        settings["EMBED_DIM"],
        depths=settings["DEPTHS"],
        num_levels=settings["FOCAL_LEVELS"][0],
        window=settings["FOCAL_WINDOWS"][0],
        block=BLOCKS[name],
    )


def build(settings: dict, vocabulary_size: int) -> XDecoder:
    """The model of an official configuration, with random weights."""
    official = settings["MODEL"]
    text, decoder, encoder = official["TEXT"], official["DECODER"], official["ENCODER"]
    trunk = focal_net(official["BACKBONE"]["FOCAL"], official["BACKBONE"]["NAME"])
    return XDecoder(
        backbone=trunk,
        pixel_decoder=FpnTransformer(
            trunk.out_dims,
            dim=encoder["CONVS_DIM"],
            mask_dim=encoder["MASK_DIM"],
            num_layers=encoder["TRANSFORMER_ENC_LAYERS"],
            num_heads=decoder["NHEADS"],
            ffn_dim=decoder["DIM_FEEDFORWARD"],
        ),
        decoder=masked_decoder(official),
        text_encoder=TextEncoder(
            text["WIDTH"],
            num_layers=text["LAYERS"],
            num_heads=text["HEADS"],
            context_length=text["CONTEXT_LENGTH"],
            vocabulary_size=vocabulary_size,
        ),
        tokenizer=Tokenizer(
            context_length=text["CONTEXT_LENGTH"], num_merges=vocabulary_size - NUM_BASE_TOKENS
        ),
        dim=official["DIM_PROJ"],
        pixel_mean=settings["INPUT"]["PIXEL_MEAN"],
        pixel_std=settings["INPUT"]["PIXEL_STD"],
        size_divisibility=decoder["SIZE_DIVISIBILITY"],
        initial_logit_scale=0.0,
    )


def masked_decoder(official: dict) -> MaskedDecoder:
    """The decoder with the official code's resizing and its un-masked grounding row."""
    decoder = official["DECODER"]
    return MaskedDecoder(
        decoder["HIDDEN_DIM"],
        num_layers=decoder["DEC_LAYERS"] - 1,
        num_heads=decoder["NHEADS"],
        ffn_dim=decoder["DIM_FEEDFORWARD"],
        num_latents=decoder["NUM_OBJECT_QUERIES"] - 1,
        context_length=official["TEXT"]["CONTEXT_LENGTH"],
        mask_resize="bicubic_antialias",
        unmask_first_grounding_row=True,
    )


def joined(recording: Recording) -> tuple[Tensor, list[tuple[int, int]]]:
    """All images in one batch, and their sizes."""
    images = recording.numbered("in.image_")
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    # what is in the padding must not matter
    batch = torch.full((len(images), 3, height, width), 77.0)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
    return batch, [(image.shape[1], image.shape[2]) for image in images]
