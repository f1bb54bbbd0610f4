"""Accuracy on CIFAR-10 (JPEG): stages, heads, sequential training, alternatives, asynchrony.

    DGLPIPE_CIFAR10=DIR python benchmarks/accuracy_cifar10/accuracy.py

DIR has `train/<class>/*.jpg` and `test/<class>/*.jpg`. Makes the runs of `studies.py` that are not
in the result file, several at a time, one core each. It can be stopped at any time: finished runs
are in the result file, and others go on from their last checkpoint in the folder `--work`.
`--tables` prints the tables of the result file, `--write` writes them and the pictures to README.md
and docs/learning.md. An accuracy is that of the last epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.accuracy_cifar10.pictures import draw
from benchmarks.accuracy_cifar10.results import RESULTS, Results
from benchmarks.accuracy_cifar10.studies import Run, next_runs
from benchmarks.accuracy_cifar10.tables import documents, tables, write
from benchmarks.common import log

FOLDER = "DGLPIPE_CIFAR10"
FAST_BF16 = ("avx512_bf16", "amx_bf16")


def log_of(folder: Path) -> Path:
    """The output of the run in `folder`, whose name may have a point."""
    return folder.with_name(f"{folder.name}.log")


class Workers:
    """Makes the missing runs, `count` at a time."""

    def __init__(self, results: Results, work: Path, words: Sequence[str], count: int) -> None:
        self._results, self._work, self._words = results, work, words
        self._count = count
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._commands: set[subprocess.Popen[bytes]] = set()
        self.failed: list[str] = []
        self._stops = threading.Event()

    def run(self) -> None:
        """Returns when no run is missing, or `stop` was called."""
        threads = [threading.Thread(target=self._work_off) for _ in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Ends the runs in progress after a checkpoint."""
        self._stops.set()
        for command in list(self._commands):
            command.terminate()

    def _work_off(self) -> None:
        while not self._stops.is_set():
            with self._lock:
                missing = next_runs(self._results.done())
                run = next((one for one in missing if one.key not in self._taken), None)
                if run is None:
                    waiting = bool(missing) and bool(self._commands)
                else:
                    self._taken.add(run.key)
            if run is not None:
                self._train(run)
            elif not waiting or self._stops.wait(1):  # tuning runs of other threads are missing
                return

    def _train(self, run: Run) -> None:
        folder = self._work / run.key.replace("/", "_").replace(" ", "_")
        real = "method=dgl_async" in run.words and "method.simulate=true" not in run.words
        own = [] if real else ["pipeline.processes=1"]
        words = [*run.words, *own, *self._words, f"run_dir={folder}"]
        with log_of(folder).open("ab") as output:
            command = subprocess.Popen(
                [sys.executable, "-m", "dglpipe", "train", *words], stdout=output, stderr=output
            )
            self._commands.add(command)
            status = command.wait()
            self._commands.discard(command)
        if status == 0:
            self._results.add(run, folder)
            log(f"{run.key}: {self._results.runs[run.key]['exits']}")
        elif not self._stops.is_set():
            self.failed.append(run.key)
            log(f"{run.key}: status {status}, see {log_of(folder)}")


def precision() -> str:
    """bf16 on processors that compute with it; fp32 on others, where it is slower."""
    flags = common.CPUS.read_text() if common.CPUS.exists() else ""
    return "bf16" if any(flag in flags for flag in FAST_BF16) else "fp32"


def main() -> None:
    arguments = parse()
    if arguments.tables or arguments.write:
        stored = Results(arguments.output)
        if arguments.write:
            draw(stored)
            for file, text in documents(stored).items():
                write(file, text)
        log(tables(stored))
        return
    root = os.environ.get(FOLDER)
    if not root:
        sys.exit(f"{FOLDER} is not set: give it the folder with train/ and test/")
    arguments.work.mkdir(parents=True, exist_ok=True)
    common.prepare(str(arguments.output))
    words = [
        *("data=image_folder", f"data.root={root}", "data.image_size=32", "evaluate.every=0"),
        *("pipeline.threads=1", f"precision={precision()}", "checkpoint.every=391"),
        *("checkpoint.keep=1", "resume=auto", *arguments.overrides),
    ]
    workers = Workers(Results(arguments.output), arguments.work, words, arguments.at_once)
    with stopping(workers):
        workers.run()
    sys.exit(1 if workers.failed else 0)


@contextlib.contextmanager
def stopping(workers: Workers) -> Iterator[None]:
    """Context in which SIGINT and SIGTERM end the runs after a checkpoint."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: workers.stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file of the results")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy_cifar10"))
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
    parser.add_argument("--tables", action="store_true", help="print the tables, train nothing")
    parser.add_argument("--write", action="store_true", help="write tables and pictures")
    parser.add_argument("overrides", nargs="*", help="of all runs")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
