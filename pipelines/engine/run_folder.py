"""The folder of a run: who may write there, and what lies beside its checkpoints.

config.json           recipe, assignments and flags, as they were asked for
config.resolved.json  every value
environment.json      versions, device, threads, launcher
run_id                one name over all restarts, for services that follow the run
metrics.jsonl events.jsonl logs/ checkpoints/ panels/
"""

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.engine.checkpoint_files import write_text_atomically
from pipelines.errors import ConfigError
from pipelines.overrides import to_json

_log = logging.getLogger(__name__)
# settings that may change between restarts: none of them changes a number
_FREE = (
    "output_dir",
    "name",
    "init_from",
    "checkpoint.",
    "preemption",
    "tracking.",
    "watch.max_",
    "watch.stall_",
    "watch.on_stall",
    "watch.heartbeat_",
    "evaluation.",
    "data.num_workers",
    "data.prefetch",
    "data.pin_memory",
    "data.cache_",
    "data.max_damaged",
)


def prepare_folder(config: RunConfig, asked: Mapping[str, Any], *, is_forced: bool) -> str:
    """The run id of the folder, which is made or, if its configuration agrees, taken over.

    is_forced: go on with another configuration, as `--resume PATH` asks; it is logged.

    Raises:
        ConfigError: the folder holds a run of another configuration; every difference is named.
    """
    folder = config.run_folder
    for name in ("checkpoints", "logs", "panels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    resolved = folder / "config.resolved.json"
    if resolved.is_file() and not is_forced:
        _refuse_other_run(folder, json.loads(resolved.read_text()), to_json(config))
    write_text_atomically(folder / "config.json", json.dumps(asked, indent=1))
    write_text_atomically(resolved, json.dumps(to_json(config), indent=1))
    identity = folder / "run_id"
    if not identity.is_file():
        write_text_atomically(identity, secrets.token_hex(4))
    return identity.read_text().strip()


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted path, old and new value of everything that differs between two configurations."""
    for key in sorted(old.keys() | new.keys()):
        before, after, path = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, prefix=f"{path}.")
        elif before != after:
            yield path, before, after


def _refuse_other_run(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [
        f"{path}: {before!r} -> {after!r}"
        for path, before, after in differences(old, new)
        if not path.startswith(_FREE)
    ]
    if changed:
        raise ConfigError(
            f"run folder: {folder} holds a run of another configuration; "
            f"{'; '.join(changed)}. Choose another --output-dir, remove the folder, or continue "
            f"on purpose with --resume {folder}."
        )
