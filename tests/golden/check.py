"""Recorded runs against ours: `python tests/golden/check.py KIND FOLDER`.

One line per recorded file with its worst deviation and where it is; exit code 1 if a line fails.
A kind is a module beside this file with a function `check(folder) -> Iterator[Line]`.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import line  # noqa: E402
import maskformer_heads  # noqa: E402
import openseed_check  # noqa: E402
import xdecoder_check  # noqa: E402

KINDS: dict[str, Callable[[Path], Iterable[line.Line]]] = {
    "maskformer_heads": maskformer_heads.check,
    "openseed": openseed_check.check,
    "xdecoder": xdecoder_check.check,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/golden/check.py", description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    lines = list(KINDS[options.kind](options.folder))
    for each in lines:
        print(each.text())
    return 0 if lines and all(each.is_good for each in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
