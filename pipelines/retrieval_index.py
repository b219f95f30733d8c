"""Vectors of a folder of pictures, made once and kept in one file.

    index.safetensors    vectors [N, C]; metadata: weights, fit, path, size and time of pictures

It is replaced in one instant, so a process that dies leaves the old file or a newer one. Only what
is new or has changed since is looked at again; other weights or image sizes make all of it stale.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import DataError
from pipelines.evaluation.images import read_image
from pipelines.image_files import Broken, with_progress
from xdecoder.images import ImageFit
from xdecoder.model import XDecoder
from xdecoder.pretrained import weights_hash
from xdecoder.settings import to_json
from xdecoder.tasks.retrieval import Embedding

_log = logging.getLogger(__name__)
_FORMAT = "1"
# pictures between two writes: what a killed process loses at most
_SAVE_EVERY = 200


class _Entry(NamedTuple):
    """A picture as it was when its vector was made."""

    vector: Tensor
    num_bytes: int
    modified_ns: int


def index_images(
    path: Path, images: Sequence[Path], model: XDecoder, *, fit: ImageFit, broken: Broken
) -> tuple[list[Path], Float[Tensor, "n c"]]:
    """The pictures that can be read, and `retrieval.Embedding` of both sides of each, in order.

    broken: collects the others. What had to be done, and why, is logged.
    """
    facts = {
        "format": _FORMAT,
        "weights": weights_hash(model),
        "fit": json.dumps(to_json(fit), sort_keys=True),
    }
    entries, why_stale = _read(path, facts)
    if why_stale:
        _log.info("index %s: all of it is made anew: %s", path, why_stale)
    known, wanted = set(entries), [_key(image) for image in images]
    missing = [image for image, key in zip(images, wanted, strict=True) if _is_new(entries, key)]
    changed = sum(_key(image) in known for image in missing)
    _log.info(
        "index %s: %d pictures, %d new, %d changed",
        path,
        len(images),
        len(missing) - changed,
        changed,
    )
    embedding = Embedding(side="both", fit=fit)
    for count, image in enumerate(with_progress(missing, "index"), start=1):
        entry = broken.attempt(lambda image=image: _entry(model, embedding, image))  # type: ignore[misc]
        entries.pop(_key(image), None)
        if entry is not None:
            entries[_key(image)] = entry
        if count % _SAVE_EVERY == 0:
            _write(path, entries, facts)
    if missing:
        _write(path, entries, facts)
    readable = [image for image, key in zip(images, wanted, strict=True) if key in entries]
    if not readable:
        return [], torch.empty(0, 0)
    return readable, torch.stack([entries[_key(image)].vector for image in readable])


def _key(image: Path) -> str:
    return str(image.resolve())


def _entry(model: XDecoder, embedding: Embedding, image: Path) -> _Entry:
    try:
        # before reading, so that a change meanwhile is seen next time
        status = image.stat()
    except OSError as error:
        raise DataError(f"{image}: must be a picture; got {error}.") from error
    vector = model.predict(read_image(image), embedding).cpu()
    return _Entry(vector, status.st_size, status.st_mtime_ns)


def _is_new(entries: Mapping[str, _Entry], key: str) -> bool:
    entry = entries.get(key)
    if entry is None or not Path(key).is_file():
        return True
    status = Path(key).stat()
    return (entry.num_bytes, entry.modified_ns) != (status.st_size, status.st_mtime_ns)


def _read(path: Path, facts: Mapping[str, str]) -> tuple[dict[str, _Entry], str]:
    """What the file holds that still counts, and why nothing does."""
    if not path.exists():
        return {}, "there is none yet"
    try:
        with safe_open(path, framework="pt") as file:
            metadata, vectors = file.metadata() or {}, file.get_tensor("vectors")
        rows = json.loads(metadata["entries"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        return {}, f"the file is damaged ({error})"
    for name, meaning in (
        ("format", "written by another version"),
        ("weights", "made with other weights"),
        ("fit", "made at other image sizes"),
    ):
        if metadata.get(name) != facts[name]:
            return {}, f"it was {meaning} ({metadata.get(name)}, now {facts[name]})"
    if len(rows) != len(vectors):
        return {}, f"the file is damaged ({len(rows)} names for {len(vectors)} vectors)"
    entries = {
        name: _Entry(vector, num_bytes, modified_ns)
        for (name, num_bytes, modified_ns), vector in zip(rows, vectors, strict=True)
    }
    return {name: entry for name, entry in entries.items() if Path(name).is_file()}, ""


def _write(path: Path, entries: Mapping[str, _Entry], facts: Mapping[str, str]) -> None:
    if not entries:
        return
    rows = [(name, entry.num_bytes, entry.modified_ns) for name, entry in entries.items()]
    vectors = torch.stack([entry.vector for entry in entries.values()])
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": vectors}, partial, metadata={**facts, "entries": json.dumps(rows)})
        partial.replace(path)
    except OSError as error:
        if partial.exists():
            partial.unlink()
        raise DataError(
            f"index {path}: must be a file that can be written; got {error}. Name another --index."
        ) from error
