"""What the trainer adds to a step: the timers, and the loop around the computation.

python benchmarks/overhead/overhead.py timers --output FILE.json
python benchmarks/overhead/overhead.py loop --output FILE.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.overhead import loop, timers


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    if arguments.part == "timers":
        results = timers.measure(arguments.width, arguments.batch, arguments.steps or 60)
    else:
        results = loop.measure(arguments.steps or 2000)
    common.store(arguments.output, **results)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("part", choices=["timers", "loop"])
    parser.add_argument("--steps", type=int, help="default: 60 for timers, 2000 for loop")
    parser.add_argument("--width", type=int, default=16, help="of cnn6, for timers")
    parser.add_argument("--batch", type=int, default=32, help="for timers")
    arguments = parser.parse_args(words)
    least = loop.WARM_UP + 2 if arguments.part == "loop" else 4
    if arguments.steps is not None and arguments.steps < least:
        parser.error(f"--steps: got {arguments.steps}; {arguments.part} needs {least} or more")
    return arguments


if __name__ == "__main__":
    main()
