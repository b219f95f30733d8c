"""Reading a recorded OpenSeeD: its model with its weights, its images, its targets."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from xdecoder.config import PixelDecoderConfig, TextConfig
from xdecoder.convert.openseed import OPENSEED
from xdecoder.convert.rules import convert
from xdecoder.mask_former.config import SwinConfig
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import BoxDecoderConfig, OpenSeeDConfig, PyramidConfig
from xdecoder.text.encoder import TextEncoder

_PIXELS = "sem_seg_head.pixel_decoder."
_PREDICTOR = "sem_seg_head.predictor."


class Used(dict):
    """A file that knows which of its tensors were asked for."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.used = set()

    def __getitem__(self, key):
        self.used.add(key)
        return super().__getitem__(key)


@dataclass(frozen=True)
class Recording:
    """One variant's folder."""

    folder: Path

    @cached_property
    def info(self):
        return json.loads((self.folder / "info.json").read_text())

    @cached_property
    def settings(self):
        return json.loads((self.folder / "config.json").read_text())["MODEL"]

    @property
    def sizes(self):
        return self.info["hyper_parameters"]

    @cached_property
    def weights(self):
        return load_file(self.folder / "weights.safetensors")

    @cached_property
    def eval(self):
        return Used(load_file(self.folder / "eval.safetensors"))

    @cached_property
    def train(self):
        return Used(load_file(self.folder / "train.safetensors"))

    @cached_property
    def conversion(self):
        return convert(self.weights, OPENSEED)

    @cached_property
    def ours_of(self):
        """Our name of each of their weights."""
        return {theirs: ours for theirs, ours, change in self.conversion.report if change != "drop"}

    def model(self):
        config = self._config()
        model = build_openseed(config)
        # the recorded vocabulary is none of the byte-pair encoding's
        model.text_encoder = TextEncoder(
            config.text_dim,
            num_layers=config.text.num_layers,
            num_heads=config.text.num_heads,
            context_length=config.text.context_length,
            vocabulary_size=self.sizes["vocab"],
            out_dim=config.shared_dim,
        )
        model.load_state_dict(self.conversion.state)
        return model.eval()

    def _config(self):
        sizes, settings = self.sizes, self.settings
        swin = settings["BACKBONE"]["SWIN"]
        decoder, encoder = settings["DECODER"], settings["ENCODER"]
        num_levels = encoder["TOTAL_NUM_FEATURE_LEVELS"]
        encoded = encoder["DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"]
        layer = _PREDICTOR + "decoder.layers.0.cross_attn.attention_weights.weight"
        background = self.weights.get(_PREDICTOR + "query_feat.weight", torch.empty(0))
        config = OpenSeeDConfig(
            dim=sizes["dim"],
            mask_dim=sizes["mask_dim"],
            text_dim=sizes["text_width"],
            shared_dim=sizes["dim_proj"],
            backbone=SwinConfig(
                dim=swin["EMBED_DIM"],
                depths=tuple(swin["DEPTHS"]),
                num_heads=tuple(swin["NUM_HEADS"]),
                window=swin["WINDOW_SIZE"],
                drop_path=0.0,
                pixel_mean=tuple(self._input("PIXEL_MEAN")),
                pixel_std=tuple(self._input("PIXEL_STD")),
            ),
            pixel_decoder=PixelDecoderConfig(
                num_layers=sizes["enc_layers"],
                num_heads=decoder["NHEADS"],
                ffn_dim=sizes["ffn"],
                is_finest_first=True,
            ),
            pyramid=PyramidConfig(
                encodes_finest="res2" in encoded, num_extra_levels=num_levels - len(encoded)
            ),
            decoder=BoxDecoderConfig(
                num_layers=sizes["dec_layers"],
                ffn_dim=sizes["ffn"],
                num_queries=sizes["num_queries"],
                num_background=len(background),
                norms_twice=True,
                proposal_sizes="against_stride",
            ),
            text=TextConfig(
                num_layers=sizes["text_layers"],
                num_heads=sizes["text_heads"],
                context_length=sizes["context"],
                num_merges=0,
            ),
            size_divisibility=decoder["SIZE_DIVISIBILITY"],
        )
        samples = num_levels * config.decoder.num_points
        num_heads = self.weights[layer].shape[0] // samples
        return replace(config, decoder=replace(config.decoder, num_heads=num_heads))

    def _input(self, key):
        return json.loads((self.folder / "config.json").read_text())["INPUT"][key]

    def batch(self):
        """The images padded to one size, and their sizes."""
        images, index = [], 0
        while f"image.{index}" in self.eval:
            images.append(self.eval[f"image.{index}"].float())
            index += 1
        sizes_hw = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (max(size[axis] for size in sizes_hw) for axis in (0, 1))
        batch = torch.zeros(len(images), 3, height, width)
        for padded, image in zip(batch, images, strict=True):
            padded[:, : image.shape[1], : image.shape[2]] = image
        return batch, sizes_hw
