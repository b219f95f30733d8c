"""Where a number comes from: protocol, tools, ground truth, weights, configuration."""

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.evaluation.captions import OWN_TOKENIZER, STANFORD_TOKENIZER
from pipelines.evaluation.options import EvaluationOptions
from pipelines.overrides import to_json

_TOOLS = ("torch", "timm", "numpy", "pillow", "pycocotools", "pycocoevalcap")


def protocols(options: EvaluationOptions) -> dict[str, str]:
    """How each family of metrics is defined, as an id; equal ids mean comparable numbers."""
    seen = f"fit-{options.size_hw[0]}x{options.size_hw[1]}"
    read = f"fit-{options.text_size_hw[0]}x{options.text_size_hw[1]}"
    tokenizer = OWN_TOKENIZER if options.java == "never" else STANFORD_TOKENIZER
    return {
        "pq": f"coco-panoptic/{seen}/object-{options.object_threshold:g}"
        f"/overlap-{options.overlap_threshold:g}",
        "ap": f"coco-segm/{seen}/top-{options.max_instances}/things",
        "miou": f"panoptic-as-semantic/{seen}/mean-over-true-or-predicted",
        "refer": f"refer-per-sentence/{seen}/control-other-object",
        "captioning": f"greedy-{options.max_caption_tokens}/{read}/{tokenizer}",
        "caption_token_accuracy": f"teacher-forced/{read}/first-reference/control-other-image",
        "retrieval": f"pools-of-{options.retrieval_pool}/{read}/all-captions/mean-of-directions",
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


def file_hashes(paths: Iterable[Path], *, root: Path) -> dict[str, str]:
    """SHA-256 of files, by their path below `root`."""
    return {path.relative_to(root).as_posix(): digest_of_file(path) for path in sorted(set(paths))}


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
    if manifest.is_file():
        facts["sha256"] = digest_of_file(manifest)
    return facts


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
