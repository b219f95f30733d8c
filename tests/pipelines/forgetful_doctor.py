"""The proof of exact resume on a stream that starts again from its first sample."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.data.stream import build_stream
from pipelines.doctor import make_shards, proof_config, tell
from pipelines.engine.resume_proof import prove_resume


def forgetful_stream(*arguments: Any, state: object = None, **options: Any) -> Any:
    return build_stream(*arguments, **options)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    comparisons = prove_resume(
        proof_config(make_shards(folder), num_steps=8),
        folder / "runs",
        kill_at=4,
        world_size=1,
        make_stream=forgetful_stream,
    )
    sys.exit(int(tell(comparisons, Console(width=120))))
