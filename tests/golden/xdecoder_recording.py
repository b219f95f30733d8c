"""Recorded files of the official X-Decoder code, and the recorded model built from them."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from xdecoder.backbones.focal import FocalNet
from xdecoder.convert.rules import convert
from xdecoder.convert.xdecoder import FOCAL, model_rules
from xdecoder.decoder import MaskedDecoder
from xdecoder.model import XDecoder
from xdecoder.pixel_decoder import FpnTransformer
from xdecoder.text.encoder import TextEncoder
from xdecoder.text.tokenizer import Tokenizer

BLOCKS = {"focal_dw": "conv", "focal": "plain"}
# ids that are no merge: 256 bytes, each also as the end of a word, and the two ends of a text
NUM_BASE_TOKENS = 514


@dataclass(frozen=True)
class Recording:
    """One recorded file: tensors (halves as float32) and facts as JSON strings."""

    tensors: dict[str, Tensor]
    facts: dict[str, str]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names start with a prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def numbered(self, prefix: str) -> list[Tensor]:
        """Tensors named by the prefix and a number, in order."""
        part = self.part(prefix)
        return [part[key] for key in sorted((k for k in part if k.isdigit()), key=int)]

    def fact(self, name: str):
        """A fact by the start of its name."""
        return json.loads(next(v for k, v in self.facts.items() if k.split("[")[0] == name))


def read(path: Path) -> Recording:
    """One file."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = file.metadata() or {}
    halves = torch.float16
    return Recording({k: v.float() if v.dtype == halves else v for k, v in tensors.items()}, facts)


@dataclass(frozen=True)
class Case:
    """A folder of recordings."""

    folder: Path

    def read(self, name: str) -> Recording:
        return read(self.folder / f"{name}.safetensors")

    @cached_property
    def settings(self) -> dict:
        """The official configuration of the recorded model."""
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def official(self) -> dict:
        return self.settings["MODEL"]

    def model(self) -> XDecoder:
        """The recorded model with its weights, in evaluation mode."""
        state = convert(self.read("weights").tensors, model_rules(FOCAL)).state
        model = build(self.settings, len(state["text_encoder.token_embedding.weight"]))
        model.load_state_dict(state)
        return model.eval()


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


def compare(line, name: str, actual: Tensor, expected: Tensor, *, tolerance: float = 1e-4) -> None:
    """Add a tensor to a line, with its deviation as a share of the recorded root mean square."""
    expected = torch.as_tensor(expected).detach().double()
    rms = expected.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    actual = torch.as_tensor(actual).detach().double()
    line.compare(name, actual / rms, expected / rms, atol=tolerance)


def joined(recording: Recording) -> tuple[Tensor, list[tuple[int, int]]]:
    """All images in one batch, and their sizes; what is in the padding must not matter."""
    images = recording.numbered("in.image_")
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    batch = torch.full((len(images), 3, height, width), 77.0)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
    return batch, [(image.shape[1], image.shape[2]) for image in images]
