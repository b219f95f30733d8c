"""What the stream of data is timed on, and the proof that its samples are right."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.data.augment import draw_geometry, sample_generator
from pipelines.data.collate import build_segmentation_sample
from pipelines.data.config import DataConfig, SegmentationDataConfig
from pipelines.data.decode import decode_annotations, decode_segment_ids
from pipelines.data.source import ShardSource
from pipelines.data.stream import build_stream
from pipelines.scenes.dataset import ScenesRequest, write_scenes

# JPEG bytes per pixel of COCO's photographs are about those of this noise at this quality
NOISE, QUALITY = 12.0, 92


def make_scenes(folder: Path, count: int) -> Path:
    """A COCO-format folder of scenes whose JPEGs are as large as those of photographs."""
    request = ScenesRequest(num_train=count, num_val=1, num_zeroshot=1, size_hw=(480, 640))
    write_scenes(request, folder / "scenes", num_workers=os.cpu_count() or 1)
    rng = np.random.default_rng(0)
    for path in sorted((folder / "scenes/images/train").glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
        # as strong at the scale of two pixels as of one, as after a camera's own sharpening
        coarse = np.kron(rng.normal(0, NOISE, (240, 320, 3)), np.ones((2, 2, 1)))
        noisy = pixels + rng.normal(0, NOISE / 2, pixels.shape) + coarse
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return folder / "scenes"


def require_right_samples(config: DataConfig, source: ShardSource) -> None:
    """Leave with a message unless samples are right: alone, in the stream, and by a slow way."""
    part = config.segmentation
    stream = build_stream(replace(config, num_workers=1), rank=0, world_size=1, seed=0)
    try:
        (batch,), _ = next(stream)
    finally:
        stream.close()
    keys = {source.read(number).key: number for number in range(len(source.rows))}
    for place, key in enumerate(batch.keys):
        raw = source.read(keys[key])
        alone = build_segmentation_sample(raw, part, seed=0, epoch=0)
        same = torch.equal(alone.image, batch.images[place])
        same &= torch.equal(alone.segments.masks, batch.segments[place].masks)
        same &= torch.equal(alone.phrases.masks, batch.phrases[place].masks)
        if not (same and np.array_equal(slow_masks(raw, part), alone.segments.masks.numpy())):
            raise SystemExit(f"sample {key} is not what it must be; nothing is timed")


def slow_masks(raw: Any, part: SegmentationDataConfig) -> np.ndarray:
    """The masks of a sample by indexing every mask of the whole image, one by one."""
    annotations = decode_annotations(raw)
    rng = sample_generator(0, 0, "segmentation", raw.key)
    geometry = draw_geometry(rng, annotations.size_hw, part.size_hw, part.augment)
    ids = decode_segment_ids(raw, annotations)
    places = [
        start + np.minimum(((np.arange(valid) + 0.5) * window / valid).astype(int), window - 1)
        for start, window, valid in zip(
            geometry.window_yx, geometry.window_hw, geometry.valid_hw, strict=True
        )
    ]
    moved = ids[places[0][:, None], places[1][None]]
    moved = moved[:, ::-1] if geometry.is_mirrored else moved
    canvas = np.zeros(part.size_hw, np.int32)
    canvas[: geometry.valid_hw[0], : geometry.valid_hw[1]] = moved
    wanted = [number for number, _, is_crowd in annotations.segments or () if not is_crowd]
    masks = np.stack([canvas == number for number in wanted])
    return masks[masks.any(axis=(1, 2))]
