"""Where a number comes from: protocol, tools, ground truth, weights, configuration."""

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.evaluation.captions import OWN_TOKENIZER, STANFORD_TOKENIZER
from pipelines.evaluation.options import EvaluationOptions
from pipelines.overrides import to_json

_TOOLS = ("torch", "timm", "numpy", "pillow", "pycocotools", "pycocoevalcap")


def protocols(options: EvaluationOptions) -> dict[str, str]:
    """How each family of metrics is defined, as an id; equal ids mean comparable numbers."""
    seen, read = options.seen_as, options.read_as
    asked = f"{seen}/{options.vocabulary}/{options.resize}"
    asked += "/with-global-query" if options.has_global_query else ""
    tokenizer = OWN_TOKENIZER if options.java == "never" else STANFORD_TOKENIZER
    pool = f"pools-of-{options.retrieval_pool}" if options.retrieval_pool else "all-images"
    texts = f"first-{options.texts_per_image}" if options.texts_per_image else "all"
    return {
        "pq": f"coco-panoptic/{asked}/object-{options.object_threshold:g}"
        f"/overlap-{options.overlap_threshold:g}",
        "ap": f"coco-segm/{asked}/top-{options.max_instances}/things",
        "box_ap": f"coco-bbox/{asked}/top-{options.max_instances}/things/by-{options.box_score}",
        "miou": f"semantic/{asked}/mean-over-true-or-predicted",
        "refer": f"{options.refer_protocol}/{seen}/{options.resize}/control-other-object",
        "captioning": f"greedy-{options.max_caption_tokens}/{read}/{tokenizer}",
        "caption_token_accuracy": f"teacher-forced/{read}/first-reference/control-other-image",
        "answering": f"vqa-v2/{read}/ten-people/control-other-image",
        "retrieval": f"{pool}/{read}/{texts}-captions/ties-against/mean-of-directions",
        "zero_shot": "heldout-pairs/best-overlapping-query/all-colour-shape-names"
        "/control-names-of-other-objects",
    }


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; absent ones say so."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _TOOLS}


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def file_hashes(
    paths: Iterable[Path], *, root: Path, pictures: Sequence[Path] = ()
) -> dict[str, str]:
    """SHA-256 of files, by their path below `root`, and one of all pictures together."""
    hashes = {_below(path, root): digest_of_file(path) for path in sorted(set(paths))}
    if pictures:
        hashes[f"{len(pictures)} label pictures"] = digest_of_files(pictures)
    return hashes


def digest_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the digests of files, in their order."""
    return hashlib.sha256("\n".join(digest_of_file(path) for path in paths).encode()).hexdigest()


def _below(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def config_hash(config: RunConfig) -> str:
    """SHA-256 of every value of a configuration."""
    text = json.dumps(to_json(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """The folder of a checkpoint, its step, and the hash of its manifest (so of all its files)."""
    facts: dict[str, Any] = {"folder": str(folder)}
    state, manifest = folder / "state.json", folder / "MANIFEST.json"
    if state.is_file():
        facts["step"] = json.loads(state.read_text())["step"]
    weights = [path for path in (manifest, folder / "model.safetensors") if path.is_file()]
    if weights:
        facts["sha256"] = digest_of_file(weights[0])
    return facts


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
