"""Scenes on disk, in COCO's own formats.

    OUT/images/<split>/%012d.jpg
    OUT/annotations/{panoptic,instances,captions}_<split>.json
    OUT/annotations/panoptic_<split>/%012d.png
    OUT/annotations/scenes_meta.json       vocabularies, held-out pairs, attributes of instances
    OUT/refs/{instances.json, refs(scenes).p}

A scene depends on (seed, split, index, size) and on nothing else, so any number of them, made by
any number of processes, starts with the same ones.
"""

import io
import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from PIL import Image
from pycocotools import mask as rle_codec

from pipelines.data.atomic_folder import atomic_folder
from pipelines.scenes.captions import draw_captions
from pipelines.scenes.layout import Layout, draw_layout
from pipelines.scenes.phrases import Phrase, draw_phrases, place_of
from pipelines.scenes.render import render
from pipelines.scenes.vocabulary import (
    CATEGORY_IDS,
    COLOURS,
    HELDOUT_PAIRS,
    SHAPES,
    SIZES,
    STUFF,
)

# raise it when the same seed no longer gives the same scenes
FORMAT_VERSION = 1
SPLITS = ("train", "val", "zeroshot")
_IDS_PER_SPLIT = 10_000_000
_IDS_PER_IMAGE = 10
_JPEG_QUALITY = 92

Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ScenesRequest:
    """How many scenes of which size, and the seed that they are drawn from."""

    num_train: int
    num_val: int = 200
    num_zeroshot: int = 100
    size_hw: tuple[int, int] = (96, 128)
    seed: int = 0

    def __post_init__(self) -> None:
        counts = self.counts()
        if min(counts.values()) < 0 or max(counts.values()) > _IDS_PER_SPLIT - 1:
            raise ValueError(f"scenes: numbers must be 0..{_IDS_PER_SPLIT - 1}; got {counts}.")
        if min(self.size_hw) < 48:
            raise ValueError(f"scenes: both sides must be at least 48 px; got {self.size_hw}.")
        if self.seed < 0:
            raise ValueError(f"scenes: seed must not be negative; got {self.seed}.")

    def counts(self) -> dict[str, int]:
        """Scenes of each split."""
        return dict(zip(SPLITS, (self.num_train, self.num_val, self.num_zeroshot), strict=True))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scene with everything that is said about it."""

    image: UInt8[ndarray, "h w 3"]
    layout: Layout
    phrases: tuple[Phrase, ...]
    captions: tuple[str, ...]


def build_scene(*, seed: int, split: str, index: int, size_hw: tuple[int, int]) -> Scene:
    """The scene with this index; every zeroshot scene shows one held-out pair, others none."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    heldout = index % len(HELDOUT_PAIRS) if split == "zeroshot" else None
    layout = draw_layout(rng, size_hw, heldout)
    return Scene(
        image=render(rng, layout),
        layout=layout,
        phrases=draw_phrases(rng, layout),
        captions=draw_captions(rng, layout),
    )


def write_scenes(
    request: ScenesRequest,
    out: Path,
    *,
    num_workers: int = 1,
    on_scene: Callable[[], None] = lambda: None,
) -> None:
    """Writes the folder, complete or not at all; `on_scene` is called after each scene.

    Raises:
        DataError: `out` holds something else than these scenes.
    """
    if is_written(request, out):
        return
    with atomic_folder(out) as folder:
        for name in ("annotations", "refs"):
            (folder / name).mkdir()
        refs: list[Entry] = []
        instances: list[Entry] = []
        images: list[Entry] = []
        attributes: dict[int, Entry] = {}
        for split, count in request.counts().items():
            found = list(_written(request, folder, split, count, num_workers, on_scene))
            _write_split(folder, split, found)
            images += [entry["image"] for entry in found]
            instances += [item for entry in found for item in entry["instances"]]
            refs += [item for entry in found for item in entry["refs"]]
            for entry in found:
                attributes.update(entry["attributes"])
        things = [category for category in _categories() if category["isthing"]]
        _dump(
            folder / "refs" / "instances.json",
            {**_HEADER, "images": images, "annotations": instances, "categories": things},
        )
        (folder / "refs" / "refs(scenes).p").write_bytes(pickle.dumps(refs, protocol=4))
        _dump(folder / _META, {**_meta(request), "instances": attributes})


def is_written(request: ScenesRequest, out: Path) -> bool:
    """Whether `out` already holds exactly the requested scenes."""
    path = out / _META
    if not path.exists():
        return False
    meta = json.loads(path.read_text(encoding="utf-8"))
    meta.pop("instances", None)
    return bool(meta == json.loads(json.dumps(_meta(request))))


_META = Path("annotations") / "scenes_meta.json"
_HEADER: Entry = {"info": {"description": "procedural scenes", "version": str(FORMAT_VERSION)}}


def _meta(request: ScenesRequest) -> Entry:
    return {
        "version": FORMAT_VERSION,
        "seed": request.seed,
        "size_hw": request.size_hw,
        "splits": request.counts(),
        "shapes": SHAPES,
        "colours": COLOURS,
        "sizes": SIZES,
        "stuff": STUFF,
        "heldout_pairs": [{"colour": c, "shape": s} for c, s in HELDOUT_PAIRS],
    }


def _written(
    request: ScenesRequest,
    folder: Path,
    split: str,
    count: int,
    num_workers: int,
    on_scene: Callable[[], None],
) -> Iterator[Entry]:
    for name in (f"images/{split}", f"annotations/panoptic_{split}"):
        (folder / name).mkdir(parents=True)
    write = partial(_write_scene, request.seed, request.size_hw, split, folder)
    for entry in _mapped(write, range(count), num_workers):
        on_scene()
        yield entry


def _mapped(
    function: Callable[[int], Entry], indices: Iterable[int], num_workers: int
) -> Iterator[Entry]:
    if num_workers <= 1:
        yield from map(function, indices)
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, indices, chunksize=16)


def _write_scene(
    seed: int, size_hw: tuple[int, int], split: str, folder: Path, index: int
) -> Entry:
    scene = build_scene(seed=seed, split=split, index=index, size_hw=size_hw)
    image_id = SPLITS.index(split) * _IDS_PER_SPLIT + index + 1
    name = f"{image_id:012d}"
    jpeg, png = io.BytesIO(), io.BytesIO()
    # full chroma resolution: colours carry the words
    Image.fromarray(scene.image).save(jpeg, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    segment_ids, segments = _segments(scene.layout)
    rgb = np.stack([segment_ids & 255, segment_ids >> 8, np.zeros_like(segment_ids)], axis=2)
    Image.fromarray(rgb.astype(np.uint8)).save(png, "PNG")
    (folder / "images" / split / f"{name}.jpg").write_bytes(jpeg.getvalue())
    (folder / "annotations" / f"panoptic_{split}" / f"{name}.png").write_bytes(png.getvalue())
    height, width = size_hw
    return {
        "image": {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width},
        "panoptic": {
            "image_id": image_id,
            "file_name": f"{name}.png",
            "segments_info": segments,
        },
        "instances": _instances(scene.layout, image_id),
        "captions": [
            {"id": image_id * _IDS_PER_IMAGE + i, "image_id": image_id, "caption": caption}
            for i, caption in enumerate(scene.captions)
        ],
        "refs": _refs(scene, split, image_id),
        "attributes": {
            image_id * _IDS_PER_IMAGE + i: {
                **asdict(thing.look),
                "place": place_of(scene.layout, i),
            }
            for i, thing in enumerate(scene.layout.things)
        },
    }


def _segments(layout: Layout) -> tuple[ndarray, list[Entry]]:
    # id = 256 * (k-th segment) + category, so that a PNG shows things in shades of their class
    segment_ids = np.zeros(layout.size_hw, np.int32)
    regions = [(layout.stuff == code) & (layout.owner == 0) for code in range(len(STUFF))]
    masks = list(zip(STUFF, regions, strict=True))
    masks += [(t.look.shape, layout.visible_mask(i)) for i, t in enumerate(layout.things)]
    segments: list[Entry] = []
    for name, mask in masks:
        if not mask.any():
            continue
        segment_id = 256 * (len(segments) + 1) + CATEGORY_IDS[name]
        segment_ids[mask] = segment_id
        segments.append({"id": segment_id, "category_id": CATEGORY_IDS[name], **_extent(mask)[1]})
    return segment_ids, segments


def _extent(mask: Bool[ndarray, "h w"]) -> tuple[Entry, Entry]:
    rle = rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
    extent = {
        "area": int(rle_codec.area(rle)),
        "bbox": [float(value) for value in rle_codec.toBbox(rle)],
        "iscrowd": 0,
    }
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}, extent


def _instances(layout: Layout, image_id: int) -> list[Entry]:
    entries = []
    for index, thing in enumerate(layout.things):
        rle, extent = _extent(layout.visible_mask(index))
        entries.append(
            {
                "id": image_id * _IDS_PER_IMAGE + index,
                "image_id": image_id,
                "category_id": CATEGORY_IDS[thing.look.shape],
                "segmentation": rle,
                **extent,
            }
        )
    return entries


def _refs(scene: Scene, split: str, image_id: int) -> list[Entry]:
    refs = []
    for index, thing in enumerate(scene.layout.things):
        phrases = [phrase for phrase in scene.phrases if phrase.thing == index]
        if not phrases:
            continue
        ref_id = image_id * _IDS_PER_IMAGE + index
        sentences = [
            {
                "sent_id": ref_id * _IDS_PER_IMAGE + number,
                "sent": phrase.text,
                "raw": phrase.text,
                "tokens": phrase.text.split(),
                "kind": phrase.kind,
                "is_relation_needed": phrase.is_relation_needed,
                "is_heldout": phrase.is_heldout,
            }
            for number, phrase in enumerate(phrases)
        ]
        refs.append(
            {
                "ref_id": ref_id,
                "ann_id": ref_id,
                "image_id": image_id,
                "category_id": CATEGORY_IDS[thing.look.shape],
                "file_name": f"{image_id:012d}.jpg",
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    return refs


def _categories() -> list[Entry]:
    return [
        {
            "id": number,
            "name": name,
            "isthing": int(name in SHAPES),
            "supercategory": "thing" if name in SHAPES else "stuff",
        }
        for name, number in CATEGORY_IDS.items()
    ]


def _write_split(folder: Path, split: str, found: list[Entry]) -> None:
    images = [entry["image"] for entry in found]
    categories = _categories()
    things = [category for category in categories if category["isthing"]]
    documents = {
        "panoptic": ([entry["panoptic"] for entry in found], categories),
        "instances": ([item for entry in found for item in entry["instances"]], things),
        "captions": ([item for entry in found for item in entry["captions"]], None),
    }
    for kind, (annotations, used) in documents.items():
        document = {**_HEADER, "images": images, "annotations": annotations}
        if used is not None:
            document["categories"] = used
        _dump(folder / "annotations" / f"{kind}_{split}.json", document)


def _dump(path: Path, document: Entry) -> None:
    path.write_text(json.dumps(document, separators=(",", ":")) + os.linesep, encoding="utf-8")
