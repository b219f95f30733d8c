"""`python -m pipelines.submit <verb>`: run a verb as a job of a cluster or of this machine.

The launcher lives in `slurm/`, above this package, so it is started and not imported.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def command(arguments: Sequence[str]) -> list[str]:
    """What runs the launcher with these arguments."""
    return [sys.executable, "-m", "slurm.launch", *arguments]


def main(argv: Sequence[str] | None = None) -> int:
    """Become the launcher; does not return."""
    # the launcher is found beside this package, wherever it is called from
    home = str(Path(__file__).resolve().parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.execv(sys.executable, command(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
